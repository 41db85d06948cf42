//! Items about an export, as `INFO` and `GO` report them. The text of NAME and DESCRIPTION follows its type directly.

use zerocopy::byteorder::network_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use crate::wire::flags::TransmissionFlags;

/// Number of the item with size and flags; always sent.
//= nbd-proto §Option reply types, NBD_REP_INFO
pub const EXPORT: u16 = 0;
/// Number of the item with the canonical name.
pub const NAME: u16 = 1;
/// Number of the item with the description.
pub const DESCRIPTION: u16 = 2;
/// Number of the item with the block sizes.
pub const BLOCK_SIZE: u16 = 3;

/// Size and flags.
#[derive(IntoBytes, Immutable, Debug)]
#[repr(C)]
pub struct ExportInfo {
    kind: U16,
    size: U64,
    flags: U16,
}

const _: () = assert!(size_of::<ExportInfo>() == 12);

impl ExportInfo {
    /// Of an export of `size` bytes.
    pub fn new(size: u64, flags: TransmissionFlags) -> Self {
        Self { kind: EXPORT.into(), size: size.into(), flags: flags.0.into() }
    }
}

/// Block sizes.
//= nbd-proto §Block size constraints
#[derive(IntoBytes, Immutable, Debug)]
#[repr(C)]
pub struct BlockSizeInfo {
    kind: U16,
    minimum: U32,
    preferred: U32,
    maximum: U32,
}

const _: () = assert!(size_of::<BlockSizeInfo>() == 14);

impl BlockSizeInfo {
    /// Every byte can be addressed; `preferred` is efficient, a payload is at most `maximum` bytes.
    pub fn new(preferred: u32, maximum: u32) -> Self {
        Self { kind: BLOCK_SIZE.into(), minimum: 1.into(), preferred: preferred.into(), maximum: maximum.into() }
    }
}
