//! What an engine drives.

use std::time::Instant;

use cluster_client::{ImageOp, ImageReply};
use cluster_proto::Status;

use crate::error::Error;

/// The answer to an operation, with the tag that it was given.
pub(crate) type Reply = (u64, Result<ImageReply, Status>);

/// Something that carries out operations, on the calling thread.
pub(crate) trait Target {
    /// Bytes.
    fn size(&self) -> u64;
    /// What offsets and lengths must be multiples of. Bytes.
    fn unit(&self) -> u64;
    /// Queues a read, write, discard or flush; the next turn sends it.
    fn submit(&mut self, tag: u64, op: ImageOp);
    /// Next answer that is there.
    fn poll_reply(&mut self) -> Option<Reply>;
    /// Sends what is queued and waits until something happens or `until` has come; not at all if there are answers.
    ///
    /// # Errors
    /// It cannot go on.
    fn turn(&mut self, until: Instant) -> Result<(), Error>;
    /// Brings it to a good end. What is under way is not waited for.
    ///
    /// # Errors
    /// Something was left behind, or is not as it should be.
    fn close(self: Box<Self>) -> Result<(), Error>;
}

/// What a block device takes: whole blocks of 512 bytes.
pub(crate) const BLOCK: u64 = 512;
