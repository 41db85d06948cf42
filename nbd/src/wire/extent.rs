//! Descriptors in replies to `BLOCK_STATUS`.

use zerocopy::byteorder::network_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

/// Flags of `base:allocation`: not allocated.
//= nbd-proto §Metadata contexts
pub const STATE_HOLE: u32 = 1 << 0;
/// Reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;

/// A descriptor of [`super::chunk::ChunkKind::BlockStatus`]; the 32-bit id of the context comes before the first.
#[derive(IntoBytes, Immutable, Debug)]
#[repr(C)]
pub struct Descriptor {
    length: U32,
    flags: U32,
}

const _: () = assert!(size_of::<Descriptor>() == 8);

impl Descriptor {
    /// `len` bytes, not 0.
    pub fn new(len: u32, flags: u32) -> Self {
        debug_assert_ne!(len, 0);
        Self { length: len.into(), flags: flags.into() }
    }
}

/// A descriptor of [`super::chunk::ChunkKind::BlockStatusExt`]; the 32-bit id of the context and the 32-bit count come
/// before the first.
#[derive(IntoBytes, Immutable, Debug)]
#[repr(C)]
pub struct ExtDescriptor {
    length: U64,
    flags: U64,
}

const _: () = assert!(size_of::<ExtDescriptor>() == 16);

impl ExtDescriptor {
    /// `len` bytes, not 0.
    pub fn new(len: u64, flags: u32) -> Self {
        debug_assert_ne!(len, 0);
        Self { length: len.into(), flags: u64::from(flags).into() }
    }
}
