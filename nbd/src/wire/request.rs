//! A request of the transmission phase, with compact or extended header.

use zerocopy::byteorder::network_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::wire::DecodeError;
use crate::wire::flags::CommandFlags;

const COMPACT_MAGIC: u32 = 0x2560_9513;
const EXTENDED_MAGIC: u32 = 0x21e4_1c71;

//= nbd-proto §Compact request message
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawCompact {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U32,
}

//= nbd-proto §Extended request message
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawExtended {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U64,
}

const _: () = assert!(size_of::<RawCompact>() == HeaderKind::Compact.header_len());
const _: () = assert!(size_of::<RawExtended>() == HeaderKind::Extended.header_len());

/// Which header was negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderKind {
    /// 32-bit lengths.
    Compact,
    /// 64-bit lengths.
    Extended,
}

impl HeaderKind {
    /// Length on the wire. Bytes.
    pub const fn header_len(self) -> usize {
        match self {
            HeaderKind::Compact => 28,
            HeaderKind::Extended => 32,
        }
    }
}

/// What is asked for.
//= nbd-proto §Request types
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Read.
    Read,
    /// Write; the payload follows.
    Write,
    /// Finish and close.
    Disconnect,
    /// Make answered writes durable.
    Flush,
    /// The content is not needed any more.
    Trim,
    /// The content will be needed soon.
    Cache,
    /// Make it read as zeroes.
    WriteZeroes,
    /// Ask for the metadata that was negotiated.
    BlockStatus,
    /// Not known to this server.
    Unknown,
}

impl From<u16> for Command {
    fn from(code: u16) -> Self {
        match code {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => Self::Unknown,
        }
    }
}

/// A request; `payload_len` bytes follow it. Offset and length may be anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// What is asked for.
    pub command: Command,
    /// How.
    pub flags: CommandFlags,
    /// To be repeated in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Request {
    /// Refuses a wrong magic number and wrong length of `bytes`.
    pub fn decode(kind: HeaderKind, bytes: &[u8]) -> Result<Self, DecodeError> {
        match kind {
            HeaderKind::Compact => Self::decode_compact(bytes),
            HeaderKind::Extended => Self::decode_extended(bytes),
        }
    }

    fn decode_compact(bytes: &[u8]) -> Result<Self, DecodeError> {
        let raw = RawCompact::ref_from_bytes(bytes).map_err(|_| DecodeError::new("request header", 0))?;
        if raw.magic.get() != COMPACT_MAGIC {
            return Err(DecodeError::new("request magic", 0));
        }
        Ok(Self {
            command: raw.command.get().into(),
            flags: CommandFlags(raw.flags.get()),
            cookie: raw.cookie.get(),
            offset: raw.offset.get(),
            len: raw.length.get().into(),
        })
    }

    fn decode_extended(bytes: &[u8]) -> Result<Self, DecodeError> {
        let raw = RawExtended::ref_from_bytes(bytes).map_err(|_| DecodeError::new("request header", 0))?;
        if raw.magic.get() != EXTENDED_MAGIC {
            return Err(DecodeError::new("request magic", 0));
        }
        Ok(Self {
            command: raw.command.get().into(),
            flags: CommandFlags(raw.flags.get()),
            cookie: raw.cookie.get(),
            offset: raw.offset.get(),
            len: raw.length.get(),
        })
    }

    //= nbd-proto §Command flags, NBD_CMD_FLAG_PAYLOAD_LEN
    /// Bytes that follow the header. A write has them whether an extended header says so or not: clients exist that
    /// forget the flag, and both readings agree on the length.
    pub fn payload_len(&self, kind: HeaderKind) -> u64 {
        let announced = kind == HeaderKind::Extended && self.flags.has(CommandFlags::PAYLOAD_LEN);
        if announced || self.command == Command::Write { self.len } else { 0 }
    }

    /// One behind the last byte, if that is a number.
    pub fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }
}
