//! The simple reply.

use zerocopy::byteorder::network_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

const MAGIC: u32 = 0x6744_6698;

/// The whole reply, or what comes before the data of a read.
//= nbd-proto §Simple reply message
#[derive(IntoBytes, Immutable, Debug)]
#[repr(C)]
pub struct SimpleReply {
    magic: U32,
    error: U32,
    cookie: U64,
}

const _: () = assert!(size_of::<SimpleReply>() == 16);

impl SimpleReply {
    /// `error` 0 means success.
    pub fn new(cookie: u64, error: u32) -> Self {
        Self { magic: MAGIC.into(), error: error.into(), cookie: cookie.into() }
    }
}
