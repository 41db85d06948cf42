//! Why foreign bytes were refused.

use std::fmt;

/// A message that does not follow the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecodeError {
    /// The field that is wrong.
    pub field: &'static str,
    /// Where it begins, in bytes from the start of the message's data.
    pub offset: usize,
}

impl DecodeError {
    pub(crate) fn new(field: &'static str, offset: usize) -> Self {
        Self { field, offset }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad {} at byte {}", self.field, self.offset)
    }
}

impl std::error::Error for DecodeError {}
