//! Trims and zeroes.
//!
//! Previous hop: `gateway/src/driver/connection.rs`. Next hop: `cluster/client/src/write.rs`.

use gateway_core::VolumeOp;

use super::slots::{Operation, Progress};
use crate::wire::flags::CommandFlags;
use crate::wire::request::Request;

//= nbd-proto §Request types, NBD_CMD_TRIM
/// A volume has no durable discard, so a trim with `FUA` is a discard and then a flush.
pub(super) fn trim(request: &Request) -> Operation {
    let progress = if request.flags.has(CommandFlags::FUA) { Progress::Trimming } else { Progress::Last };
    (VolumeOp::Discard { offset: request.offset, len: request.len }, progress)
}

//= nbd-proto §Request types, NBD_CMD_WRITE_ZEROES
/// `FAST_ZERO` changes nothing: zeroing is never slower than writing here. A volume that cannot do it answers
/// `Unsupported`, which is the `ENOTSUP` that such a client expects.
pub(super) fn write_zeroes(request: &Request) -> Operation {
    let op = VolumeOp::WriteZeroes {
        offset: request.offset,
        len: request.len,
        may_unmap: !request.flags.has(CommandFlags::NO_HOLE),
        fua: request.flags.has(CommandFlags::FUA),
    };
    (op, Progress::Last)
}
