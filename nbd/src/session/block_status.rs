//! Allocation status.
//!
//! Previous hop: `gateway/src/driver/connection.rs`. Next hop: `cluster/client/src/read.rs`.

use gateway_core::{Bytes, Extent, VolumeOp, VolumeReply};
use zerocopy::IntoBytes;

use super::outbox::Outbox;
use super::slots::{Operation, Progress};
use super::{Mode, reply};
use crate::limits::EXTENTS_MAX;
use crate::status::Errno;
use crate::wire::chunk::ChunkKind;
use crate::wire::extent::{Descriptor, ExtDescriptor, STATE_HOLE, STATE_ZERO};
use crate::wire::flags::CommandFlags;
use crate::wire::meta_context::BASE_ALLOCATION_ID;
use crate::wire::request::Request;

pub(super) fn operation(request: &Request) -> Operation {
    (VolumeOp::BlockStatus { offset: request.offset, len: request.len }, Progress::Last)
}

pub(super) fn finish(mode: Mode, request: &Request, answer: VolumeReply, outbox: &mut Outbox) {
    let extents = match answer {
        VolumeReply::Extents(extents) => merge(&extents, request),
        VolumeReply::Failed(status) => {
            return reply::error(mode, request, status.into(), &status.to_string(), outbox);
        }
        VolumeReply::Done | VolumeReply::Data(_) => Vec::new(),
    };
    if extents.is_empty() {
        return reply::error(mode, request, Errno::Io, "the volume returned no extents", outbox);
    }
    send(mode, request, &extents, outbox);
}

//= nbd-proto §Request types, NBD_CMD_BLOCK_STATUS: "the sum of the length fields of each descriptor MUST not be
//= greater than the overall length of the request"; "SHOULD use different status values between consecutive descriptors"
/// Merges neighbours of one state, clips to the request and to the number of descriptors that one reply may have.
fn merge(extents: &[Extent], request: &Request) -> Vec<Extent> {
    let count_max = if request.flags.has(CommandFlags::REQ_ONE) { 1 } else { EXTENTS_MAX };
    let mut merged: Vec<Extent> = Vec::new();
    let mut left = request.len;
    for extent in extents {
        let len = extent.len.min(left);
        left -= len;
        let is_full = merged.len() == count_max;
        match merged.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.data == extent.data => last.len += len,
            _ if is_full => break,
            _ => merged.push(Extent { len, data: extent.data }),
        }
    }
    merged
}

fn send(mode: Mode, request: &Request, extents: &[Extent], outbox: &mut Outbox) {
    let mut list = Bytes::new();
    let id = BASE_ALLOCATION_ID.to_be_bytes();
    if mode == Mode::Extended {
        list.extend_from_slice(&(extents.len() as u32).to_be_bytes());
        extents.iter().for_each(|e| list.extend_from_slice(ExtDescriptor::new(e.len, state(e)).as_bytes()));
        reply::chunk(mode, request, ChunkKind::BlockStatusExt, &[&id, &list], 0, outbox);
    } else {
        // A compact request has a 32-bit length, and no extent is longer than the request.
        extents.iter().for_each(|e| list.extend_from_slice(Descriptor::new(e.len as u32, state(e)).as_bytes()));
        reply::chunk(mode, request, ChunkKind::BlockStatus, &[&id, &list], 0, outbox);
    }
}

//= nbd-proto §Metadata contexts
fn state(extent: &Extent) -> u32 {
    if extent.data { 0 } else { STATE_HOLE | STATE_ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::request::Command;

    fn request(len: u64, flags: CommandFlags) -> Request {
        Request { command: Command::BlockStatus, flags, cookie: 0, offset: 0, len }
    }

    fn merged(list: &[(u64, bool)], len: u64, flags: CommandFlags) -> Vec<(u64, bool)> {
        let extents: Vec<Extent> = list.iter().map(|&(len, data)| Extent { len, data }).collect();
        merge(&extents, &request(len, flags)).iter().map(|e| (e.len, e.data)).collect()
    }

    #[test]
    fn neighbours_merge_and_the_request_bounds_all() {
        let list = [(10, true), (0, false), (5, true), (3, false), (9, true)];
        assert_eq!(merged(&list, 20, CommandFlags::NONE), [(15, true), (3, false), (2, true)]);
        assert_eq!(merged(&list, 12, CommandFlags::NONE), [(12, true)]);
        assert_eq!(merged(&list, 20, CommandFlags::REQ_ONE), [(15, true)]);
        assert_eq!(merged(&[(u64::MAX, true), (u64::MAX, true)], 7, CommandFlags::NONE), [(7, true)]);
    }

    #[test]
    fn a_reply_has_a_bounded_number_of_descriptors() {
        let list: Vec<(u64, bool)> = (0..10_000).map(|n| (1, n % 2 == 0)).collect();
        assert_eq!(merged(&list, 10_000, CommandFlags::NONE).len(), EXTENTS_MAX);
    }
}
