//! The volume contract: what a protocol session may ask of the disk behind an export, and what it is told.

use buffer::Buffer;

use crate::status::Status;

/// What a session needs to know of a volume. Changes arrive as [`VolumeEvent`]s.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeInfo {
    /// Name under which the volume is exported.
    pub name: String,
    /// Free text for people.
    pub description: String,
    /// Bytes; a multiple of 512.
    pub size: u64,
    /// No writes.
    pub read_only: bool,
    /// Smallest request that is served without a read-modify-write, and the unit of discard. Bytes, a power of two.
    pub preferred_block: u32,
    /// A request of this size, aligned to it, touches one object. Bytes, a power of two.
    pub optimal_io: u32,
    /// Largest read or write. Bytes.
    pub max_transfer: u32,
}

/// A request to a volume. Offsets and lengths are bytes, of any alignment, and lie inside the volume (the session
/// checks that first, because the answer differs per protocol).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VolumeOp {
    /// Reads.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Writes. Durable when answered if `fua`.
    Write {
        /// First byte.
        offset: u64,
        /// What to write.
        data: Buffer,
        /// Durable when answered.
        fua: bool,
    },
    /// Makes every write answered before this request durable.
    Flush,
    /// The content may be dropped; whole blocks read as zeroes afterwards.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The space may be given back; otherwise it stays allocated where the volume knows such a thing.
        may_unmap: bool,
        /// Durable when answered.
        fua: bool,
    },
    /// Writes `data` if the range holds exactly `compare`, atomically; else [`Status::Mismatch`].
    CompareAndWrite {
        /// First byte.
        offset: u64,
        /// Expected content.
        compare: Buffer,
        /// New content, as long as `compare`.
        data: Buffer,
    },
    /// Which parts hold data.
    BlockStatus {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// A stretch with one allocation state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Bytes.
    pub len: u64,
    /// Holds data; if not it reads as zeroes.
    pub data: bool,
}

/// Answer to a [`VolumeOp`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VolumeReply {
    /// Done.
    Done,
    /// The data read, in order; the pieces' lengths add up to what was asked for. More than one piece where the range
    /// crosses objects, so that nothing is copied together.
    Data(Vec<Buffer>),
    /// Consecutive extents that begin at the offset asked for and cover at least its first byte, at most its range.
    Extents(Vec<Extent>),
    /// Failed.
    Failed(Status),
}

/// Something changed at the volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VolumeEvent {
    /// New size, in bytes.
    Resized(u64),
    /// The volume was removed; every request fails from now on.
    Removed,
}

/// A disk that answers later: the cluster's client library, or [`crate::ram::RamVolume`] in tests.
pub trait BlockDevice {
    /// What the volume is like now.
    fn info(&self) -> VolumeInfo;
    /// Starts a request. `tag` comes back with the answer; tags of requests in flight are distinct.
    fn submit(&mut self, tag: u64, op: VolumeOp);
    /// Next finished request.
    fn poll_reply(&mut self) -> Option<(u64, VolumeReply)>;
    /// Next change.
    fn poll_event(&mut self) -> Option<VolumeEvent>;
}
