//! Strings and counters inside the data of an option.

use crate::limits::STRING_LEN_MAX;
use crate::wire::DecodeError;

//= nbd-proto §Conventions
/// UTF-8, no NUL, bounded.
pub(super) fn validate<'a>(bytes: &'a [u8], field: &'static str, offset: usize) -> Result<&'a str, DecodeError> {
    let error = DecodeError::new(field, offset);
    if bytes.len() > STRING_LEN_MAX || bytes.contains(&0) {
        return Err(error);
    }
    std::str::from_utf8(bytes).map_err(|_| error)
}

/// Reads the data of an option from front to back.
pub(super) struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0 }
    }

    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let bytes = self.data[self.at..].first_chunk::<N>().ok_or(DecodeError::new(field, self.at))?;
        self.at += N;
        Ok(*bytes)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// A 32-bit length and as many bytes of string.
    pub(super) fn string(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let at = self.at;
        let len = self.u32(field)? as usize;
        let bytes = self.data[self.at..].get(..len).ok_or(DecodeError::new(field, at))?;
        let string = validate(bytes, field, at)?;
        self.at += len;
        Ok(string)
    }

    /// Nothing may be left.
    pub(super) fn finish(&self, field: &'static str) -> Result<(), DecodeError> {
        if self.at == self.data.len() { Ok(()) } else { Err(DecodeError::new(field, self.at)) }
    }
}
