//! What the client asks while haggling.

use zerocopy::byteorder::network_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::wire::greeting::OPTION_MAGIC;
use crate::wire::string;
use crate::wire::{DecodeError, string::Reader};

/// Begins every option.
//= nbd-proto §Newstyle negotiation
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
struct RawOption {
    magic: U64,
    option: U32,
    length: U32,
}

const _: () = assert!(size_of::<RawOption>() == OptionHeader::LEN);

/// The options of the protocol.
//= nbd-proto §Option types
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptionKind {
    /// Choose an export and begin; cannot be answered with an error.
    ExportName,
    /// Go away politely.
    Abort,
    /// Names of the exports.
    List,
    /// Switch to TLS.
    StartTls,
    /// Describe an export.
    Info,
    /// Describe an export and begin.
    Go,
    /// Use structured replies.
    StructuredReply,
    /// Which metadata contexts there are.
    ListMetaContext,
    /// Choose metadata contexts.
    SetMetaContext,
    /// Use 64-bit lengths.
    ExtendedHeaders,
    /// Not known to this server.
    Unknown,
}

impl From<u32> for OptionKind {
    fn from(code: u32) -> Self {
        match code {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            5 => Self::StartTls,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            11 => Self::ExtendedHeaders,
            _ => Self::Unknown,
        }
    }
}

/// The header of an option; its data follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionHeader {
    /// As sent, to be repeated in the reply.
    pub code: u32,
    /// What it means.
    pub kind: OptionKind,
    /// Data that follows. Bytes, any value.
    pub len: u32,
}

impl OptionHeader {
    /// Length on the wire. Bytes.
    pub const LEN: usize = 16;

    /// Refuses a wrong magic number and wrong length of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let raw = RawOption::ref_from_bytes(bytes).map_err(|_| DecodeError::new("option header", 0))?;
        if raw.magic.get() != OPTION_MAGIC {
            return Err(DecodeError::new("option magic", 0));
        }
        Ok(Self { code: raw.option.get(), kind: raw.option.get().into(), len: raw.length.get() })
    }
}

/// The data of `EXPORT_NAME`.
pub fn decode_export_name(data: &[u8]) -> Result<&str, DecodeError> {
    string::validate(data, "export name", 0)
}

/// The data of `INFO` and `GO`.
//= nbd-proto §Option types, NBD_OPT_GO
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InfoQuery<'a> {
    /// Export it asks about; empty for the default one.
    pub name: &'a str,
    /// Pairs of bytes, each the number of an item.
    items: &'a [u8],
}

impl<'a> InfoQuery<'a> {
    /// Refuses lengths that do not add up and bad strings.
    pub fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(data);
        let name = reader.string("export name")?;
        let count = reader.u16("count of information requests")? as usize;
        let start = 4 + name.len() + 2;
        for _ in 0..count {
            reader.u16("information request")?;
        }
        reader.finish("trailing bytes")?;
        Ok(Self { name, items: &data[start..] })
    }

    /// Whether an item was asked for.
    pub fn asks(&self, item: u16) -> bool {
        self.items.chunks_exact(2).any(|pair| pair == item.to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &[u8], items: &[u16]) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(name);
        data.extend_from_slice(&(items.len() as u16).to_be_bytes());
        items.iter().for_each(|item| data.extend_from_slice(&item.to_be_bytes()));
        data
    }

    #[test]
    fn an_info_query_is_taken_apart() {
        let data = info(b"demo", &[3, 1]);
        let query = InfoQuery::decode(&data).expect("valid");
        assert_eq!(query.name, "demo");
        assert!(query.asks(1) && query.asks(3) && !query.asks(2));
    }

    #[test]
    fn every_shortened_or_lengthened_info_query_is_refused() {
        let mut data = info(b"demo", &[3, 1]);
        for len in 0..data.len() {
            assert!(InfoQuery::decode(&data[..len]).is_err(), "{len} bytes");
        }
        data.push(0);
        assert_eq!(InfoQuery::decode(&data), Err(DecodeError::new("trailing bytes", 14)));
    }

    #[test]
    fn bad_strings_are_refused() {
        assert!(InfoQuery::decode(&info(b"a\0b", &[])).is_err());
        assert!(InfoQuery::decode(&info(b"\xff", &[])).is_err());
        assert!(InfoQuery::decode(&info(&[b'a'; 4097], &[])).is_err());
        assert!(InfoQuery::decode(&info(&[b'a'; 4096], &[])).is_ok());
        assert!(decode_export_name(&[b'a'; 4097]).is_err());
    }

    #[test]
    fn a_header_needs_its_magic() {
        let mut bytes = *b"IHAVEOPT\0\0\0\x07\0\0\0\x09";
        let header = OptionHeader::decode(&bytes).expect("valid");
        assert_eq!((header.kind, header.len), (OptionKind::Go, 9));
        bytes[0] = b'X';
        assert_eq!(OptionHeader::decode(&bytes), Err(DecodeError::new("option magic", 0)));
        assert!(OptionHeader::decode(&bytes[..15]).is_err());
    }
}
