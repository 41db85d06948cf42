//! Reading and writing the little-endian fields of a body.

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes that are not a message of this protocol. The connection they came from is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("bad {field} at byte {offset} of the message")]
pub struct DecodeError {
    /// What is wrong.
    pub field: &'static str,
    /// Byte offset in the message's head.
    pub offset: usize,
}

/// Takes raw structs from the front of a body, never past its end.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub fn new(body: &'a [u8]) -> Self {
        Self { rest: body, offset: super::HEADER_LEN }
    }

    pub fn error(&self, field: &'static str) -> DecodeError {
        DecodeError { field, offset: self.offset }
    }

    pub fn take<T: FromBytes + KnownLayout + Immutable>(&mut self, field: &'static str) -> Result<&'a T, DecodeError> {
        let (value, rest) = T::ref_from_prefix(self.rest).map_err(|_| self.error(field))?;
        self.advance(rest);
        Ok(value)
    }

    /// `count` structs; the count came from outside and is judged by `max` first.
    pub fn list<T: FromBytes + KnownLayout + Immutable>(
        &mut self,
        count: u32,
        max: usize,
        field: &'static str,
    ) -> Result<&'a [T], DecodeError> {
        let count = count as usize;
        if count > max {
            return Err(self.error(field));
        }
        let (list, rest) = <[T]>::ref_from_prefix_with_elems(self.rest, count).map_err(|_| self.error(field))?;
        self.advance(rest);
        Ok(list)
    }

    /// Whatever follows is of another version of the protocol.
    pub fn skip_rest(&mut self) {
        self.advance(&[]);
    }

    /// The body must be used up: what we do not understand we do not act on.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.len() < 8 { Ok(()) } else { Err(self.error("length of body")) }
    }

    fn advance(&mut self, rest: &'a [u8]) {
        self.offset += self.rest.len() - rest.len();
        self.rest = rest;
    }
}

/// Appends a raw struct.
pub(super) fn put<T: IntoBytes + Immutable>(out: &mut Vec<u8>, value: &T) {
    out.extend_from_slice(value.as_bytes());
}
