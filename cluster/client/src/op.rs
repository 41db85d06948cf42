//! What can be asked of an image, and the answers. Offsets and lengths are bytes, of any alignment.

use buffer::Buffer;
use cluster_proto::Status;
use cluster_proto::shard::Allocation;

use crate::image::ImageId;

/// An operation on an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ImageOp {
    /// Reads.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Writes. The part in one object that is aligned to 4 KiB takes effect atomically.
    Write {
        /// First byte.
        offset: u64,
        /// What.
        data: Buffer,
    },
    /// Makes the range read as zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Store zeroes instead of giving the space back.
        keep_allocated: bool,
    },
    /// Gives back the space of the whole sectors in the range; they read as zeroes afterwards.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Writes `data` if the range holds exactly `compare`, atomically; else fails with [`Status::Mismatch`]. The range
    /// lies in one object and has at most 64 KiB.
    CompareAndWrite {
        /// First byte.
        offset: u64,
        /// Expected content.
        compare: Buffer,
        /// New content, as long as `compare`.
        data: Buffer,
    },
    /// Makes every operation answered before durable.
    Flush,
    /// Which parts hold data. The answer may cover less than the range, but at least its first byte.
    Allocation {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Removes whole objects, also beyond the image's end: for shrinking and removing images.
    DeleteObjects {
        /// First object.
        first: u32,
        /// One past the last.
        end: u32,
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

/// Answer to an [`ImageOp`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ImageReply {
    /// Done.
    Done,
    /// Data read, in order. One piece per object.
    Data(Vec<Buffer>),
    /// Consecutive extents from the offset asked for.
    Extents(Vec<Extent>),
}

/// What a part of a task brought back.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    Nothing,
    Data(Buffer),
    Runs(Vec<Allocation>),
}

/// Names a task: generation and slot.
pub(crate) type TaskId = u64;

/// An operation in progress. It is cut into parts lazily, so that a huge range needs little memory.
#[derive(Debug)]
pub(crate) struct Task {
    pub image: ImageId,
    pub tag: u64,
    pub op: ImageOp,
    /// Progress of cutting: bytes of the range, or objects.
    pub cursor: u64,
    /// Parts under way.
    pub pending: u32,
    pub failed: Option<Status>,
    /// Results by part, for operations that return something.
    pub found: Vec<Found>,
}
