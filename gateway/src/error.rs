//! What keeps a gateway from running.

use cluster_io::ErrorKind as IoKind;

/// The class of an [`Error`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// A setting is out of its range.
    Invalid,
    /// Somebody else listens on a port or socket.
    AddressInUse,
    /// The operating system refused something.
    System,
    /// A fault of our own.
    Broken,
}

/// What failed, on what, why, and what to do, as one sentence.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: ErrorKind,
    context: String,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into() }
    }

    /// The class of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<cluster_io::Error> for Error {
    fn from(error: cluster_io::Error) -> Self {
        let kind = if error.kind() == IoKind::AddressInUse { ErrorKind::AddressInUse } else { ErrorKind::System };
        Self::new(kind, error.to_string())
    }
}
