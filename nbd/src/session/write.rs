//! Previous hop: `gateway/src/driver/connection.rs`, which hands over the bytes of the socket.
//! Next hop: `cluster/client/src/write.rs`, as [`VolumeOp::Write`].
//!
//! Writes: a request is checked when its header is there; then its payload is copied, as it arrives, into the one
//! aligned buffer that travels to the device. The reply is sent when the volume has answered.

use buffer::{Buffer, BufferMut};
use gateway_core::VolumeOp;

use super::slots::{Operation, Progress};
use crate::wire::flags::CommandFlags;
use crate::wire::request::Request;

/// A write whose payload has not arrived in full.
pub(super) struct Incoming {
    pub(super) request: Request,
    data: BufferMut,
    filled: usize,
}

impl Incoming {
    /// For an admitted request: its length is at most the maximum block size.
    pub(super) fn new(request: Request) -> Self {
        let len = usize::try_from(request.len).expect("admitted writes are at most the maximum block size");
        Self { request, data: BufferMut::for_overwrite(len), filled: 0 }
    }

    /// Takes payload from the input. True when it is complete.
    pub(super) fn fill(&mut self, input: &mut &[u8]) -> bool {
        let more = input.len().min(self.data.len() - self.filled);
        let (piece, rest) = input.split_at(more);
        self.data[self.filled..self.filled + more].copy_from_slice(piece);
        self.filled += more;
        *input = rest;
        self.filled == self.data.len()
    }

    pub(super) fn finish(self) -> (Request, Buffer) {
        debug_assert_eq!(self.filled, self.data.len());
        (self.request, self.data.freeze())
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.data.len()
    }
}

pub(super) fn operation(request: &Request, data: Buffer) -> Operation {
    debug_assert_eq!(request.len, data.len() as u64);
    let fua = request.flags.has(CommandFlags::FUA);
    (VolumeOp::Write { offset: request.offset, data, fua }, Progress::Last)
}
