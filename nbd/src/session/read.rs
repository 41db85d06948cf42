//! Reads.
//!
//! Previous hop: `gateway/src/driver/connection.rs`, which hands over the bytes of the socket.
//! Next hop: `cluster/client/src/read.rs`, as [`VolumeOp::Read`]. The answer leaves as one header and the pieces of the
//! volume as they are: nothing is copied here, and one chunk holds all, so `DF` needs no care.

use buffer::Buffer;
use gateway_core::{VolumeOp, VolumeReply};

use super::Mode;
use super::outbox::Outbox;
use super::reply;
use super::slots::{Operation, Progress};
use crate::status::Errno;
use crate::wire::request::Request;

pub(super) fn operation(request: &Request) -> Operation {
    let len = u32::try_from(request.len).expect("admitted reads are at most the maximum block size");
    (VolumeOp::Read { offset: request.offset, len }, Progress::Last)
}

pub(super) fn finish(mode: Mode, request: &Request, answer: VolumeReply, outbox: &mut Outbox) {
    match answer {
        VolumeReply::Data(pieces) if total(&pieces) == request.len => reply::data(mode, request, pieces, outbox),
        VolumeReply::Failed(status) => reply::error(mode, request, status.into(), &status.to_string(), outbox),
        // A header that promises other bytes than follow would make all later replies unreadable.
        _ => reply::error(mode, request, Errno::Io, "the volume returned another amount of data", outbox),
    }
}

fn total(pieces: &[Buffer]) -> u64 {
    pieces.iter().map(|piece| piece.len() as u64).sum()
}
