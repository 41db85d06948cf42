//! The fixed header of every message.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::DecodeError;
use crate::layout::SECTOR;
use crate::limits::{WIRE_BODY_MAX, WIRE_BODY_MAX_BEFORE_HELLO, WIRE_PAYLOAD_MAX};

/// First bytes of a message: "BYD1".
pub const MAGIC: [u8; 4] = *b"BYD1";
/// Length of the header. Bytes.
pub const HEADER_LEN: usize = 32;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct RawHeader {
    pub magic: [u8; 4],
    pub kind: u8,
    pub flags: u8,
    pub body_len: U16,
    pub payload_len: U32,
    /// CRC-32C of header (with this field zero), body and checksum list.
    pub head_crc: U32,
    pub id: U64,
    pub reserved: U64,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN);
const _: () = assert!(WIRE_BODY_MAX <= u16::MAX as usize && WIRE_BODY_MAX.is_multiple_of(8));
pub(super) const HEAD_CRC_OFFSET: usize = 12;

/// Sizes that a header announces, within bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub body: usize,
    pub crcs: usize,
    pub payload: usize,
}

impl Sizes {
    /// Length of everything before the payload.
    pub fn head(self) -> usize {
        HEADER_LEN + self.body + self.crcs
    }
}

impl RawHeader {
    /// Judges the lengths. Before a peer has introduced itself hardly anything is allowed.
    pub fn sizes(&self, introduced: bool) -> Result<Sizes, DecodeError> {
        let error = |field, offset| Err(DecodeError { field, offset });
        if self.magic != MAGIC {
            return error("magic (not a Blockyard daemon or client)", 0);
        }
        let body = usize::from(self.body_len.get());
        let payload = self.payload_len.get() as usize;
        let (body_max, payload_max) =
            if introduced { (WIRE_BODY_MAX, WIRE_PAYLOAD_MAX) } else { (WIRE_BODY_MAX_BEFORE_HELLO, 0) };
        if body > body_max || !body.is_multiple_of(8) {
            return error("body length", 6);
        }
        if payload > payload_max || !payload.is_multiple_of(SECTOR) {
            return error("payload length", 8);
        }
        Ok(Sizes { body, crcs: payload / SECTOR * 4, payload })
    }
}
