//! What the server answers while haggling.

use zerocopy::byteorder::network_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Kinds of replies.
//= nbd-proto §Option reply types
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ReplyKind {
    /// Accepted, or end of a list.
    Ack = 1,
    /// One export.
    Server = 2,
    /// One item about an export.
    Info = 3,
    /// One metadata context.
    MetaContext = 4,
    /// Option not known.
    ErrUnsup = 1 << 31 | 1,
    /// Option known, not allowed here.
    ErrPolicy = 1 << 31 | 2,
    /// Option malformed or out of place.
    ErrInvalid = 1 << 31 | 3,
    /// No such export.
    ErrUnknown = 1 << 31 | 6,
    /// Option longer than is accepted.
    ErrTooBig = 1 << 31 | 9,
    /// Something that extended headers have replaced.
    ErrExtHeaderReqd = 1 << 31 | 10,
}

/// Begins every reply to an option; `length` bytes of data follow.
//= nbd-proto §Fixed newstyle negotiation
#[derive(IntoBytes, Immutable, Debug)]
#[repr(C)]
pub struct OptionReply {
    magic: U64,
    option: U32,
    kind: U32,
    length: U32,
}

const _: () = assert!(size_of::<OptionReply>() == 20);

impl OptionReply {
    /// For the option `code`, with `len` bytes of data.
    pub fn new(code: u32, kind: ReplyKind, len: usize) -> Self {
        let len = u32::try_from(len).expect("replies are far below 4 GiB");
        Self { magic: REPLY_MAGIC.into(), option: code.into(), kind: (kind as u32).into(), length: len.into() }
    }
}
