//! Headers of structured and extended reply chunks, and the fixed parts of their payloads.

use zerocopy::byteorder::network_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_MAGIC: u32 = 0x6e8a_278c;
/// The last chunk of a reply. All of ours are: every reply here is one chunk.
const FLAG_DONE: u16 = 1 << 0;

/// Kinds of chunks.
//= nbd-proto §Structured reply types
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum ChunkKind {
    /// Nothing but success.
    None = 0,
    /// Offset and data.
    OffsetData = 1,
    /// Context and 32-bit descriptors.
    BlockStatus = 5,
    /// Context and 64-bit descriptors.
    BlockStatusExt = 6,
    /// Error number and message.
    Error = 1 << 15 | 1,
}

/// Header of the only chunk of a reply.
//= nbd-proto §Structured reply chunk message
#[derive(IntoBytes, Immutable, Debug)]
#[repr(C)]
pub struct StructuredChunk {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    length: U32,
}

const _: () = assert!(size_of::<StructuredChunk>() == 20);

impl StructuredChunk {
    /// With `len` bytes of payload.
    pub fn new(kind: ChunkKind, cookie: u64, len: u32) -> Self {
        Self {
            magic: STRUCTURED_MAGIC.into(),
            flags: FLAG_DONE.into(),
            kind: (kind as u16).into(),
            cookie: cookie.into(),
            length: len.into(),
        }
    }
}

/// Header of the only chunk of a reply to a request with an extended header.
//= nbd-proto §Extended reply chunk message
#[derive(IntoBytes, Immutable, Debug)]
#[repr(C)]
pub struct ExtendedChunk {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    offset: U64,
    length: U64,
}

const _: () = assert!(size_of::<ExtendedChunk>() == 32);

impl ExtendedChunk {
    /// For the request at `offset`, with `len` bytes of payload.
    pub fn new(kind: ChunkKind, cookie: u64, offset: u64, len: u32) -> Self {
        Self {
            magic: EXTENDED_MAGIC.into(),
            flags: FLAG_DONE.into(),
            kind: (kind as u16).into(),
            cookie: cookie.into(),
            offset: offset.into(),
            length: u64::from(len).into(),
        }
    }
}

/// Begins the payload of [`ChunkKind::Error`]; the message follows.
#[derive(IntoBytes, Immutable, Debug)]
#[repr(C)]
pub struct ErrorPayload {
    error: U32,
    message_len: U16,
}

const _: () = assert!(size_of::<ErrorPayload>() == 6);

impl ErrorPayload {
    /// `error` is not 0.
    pub fn new(error: u32, message_len: u16) -> Self {
        debug_assert_ne!(error, 0);
        Self { error: error.into(), message_len: message_len.into() }
    }
}
