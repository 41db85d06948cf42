//! The first bytes of each side, and the answer to `EXPORT_NAME`.

use zerocopy::byteorder::network_endian::{U16, U64};
use zerocopy::{Immutable, IntoBytes};

use crate::wire::DecodeError;
use crate::wire::flags::{FIXED_NEWSTYLE, NO_ZEROES, TransmissionFlags};

const INIT_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// Begins the options of either side.
pub const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");

/// What the server says first.
//= nbd-proto §Newstyle negotiation
#[derive(IntoBytes, Immutable, Debug)]
#[repr(C)]
pub struct Greeting {
    init_magic: U64,
    option_magic: U64,
    handshake_flags: U16,
}

const _: () = assert!(size_of::<Greeting>() == 18);

impl Greeting {
    /// Fixed newstyle, zeroes can be left out.
    pub fn new() -> Self {
        Self {
            init_magic: INIT_MAGIC.into(),
            option_magic: OPTION_MAGIC.into(),
            handshake_flags: (FIXED_NEWSTYLE | NO_ZEROES).into(),
        }
    }
}

impl Default for Greeting {
    fn default() -> Self {
        Self::new()
    }
}

/// What the client answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientFlags {
    /// It knows that options are answered, and so may send others than `EXPORT_NAME`.
    pub fixed_newstyle: bool,
    /// It does not want the 124 zero bytes.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// Length on the wire. Bytes.
    pub const LEN: usize = 4;

    //= nbd-proto §Client flags: "the server MUST drop the TCP connection if the client sets an unknown flag"
    /// Refuses unknown flags.
    pub fn decode(bytes: [u8; Self::LEN]) -> Result<Self, DecodeError> {
        let bits = u32::from_be_bytes(bytes);
        if bits & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
            return Err(DecodeError::new("client flags", 0));
        }
        Ok(Self { fixed_newstyle: bits & u32::from(FIXED_NEWSTYLE) != 0, no_zeroes: bits & u32::from(NO_ZEROES) != 0 })
    }
}

/// The answer to `EXPORT_NAME`; the first [`ExportAnswer::SHORT_LEN`] bytes of it if zeroes are left out.
//= nbd-proto §Newstyle negotiation
#[derive(IntoBytes, Immutable, Debug)]
#[repr(C)]
pub struct ExportAnswer {
    size: U64,
    flags: U16,
    zeroes: [u8; 124],
}

const _: () = assert!(size_of::<ExportAnswer>() == 134);

impl ExportAnswer {
    /// Length without the zeroes. Bytes.
    pub const SHORT_LEN: usize = 10;

    /// For an export of `size` bytes.
    pub fn new(size: u64, flags: TransmissionFlags) -> Self {
        Self { size: size.into(), flags: flags.0.into(), zeroes: [0; 124] }
    }
}
