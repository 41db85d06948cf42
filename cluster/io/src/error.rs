//! What can go wrong with the process's environment.

use std::io;

/// The class of an [`Error`], for callers that decide by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// The kernel does not offer io_uring (or not enough of it) to this process.
    Unavailable,
    /// Somebody else listens on that address or socket path.
    AddressInUse,
    /// Another process has that disk open exclusively.
    Locked,
    /// The disk is not something a store can live on, or the file not one that holds a secret: a directory, a device.
    Unsuitable,
    /// A file with a secret is open to others.
    Exposed,
    /// Anything else the kernel refused; the source says why.
    Os,
}

/// A failure of the environment: what failed, on what, and why.
#[derive(Debug, thiserror::Error)]
#[error("{context}{}", cause(.source.as_ref()))]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<io::Error>,
}

fn cause(source: Option<&io::Error>) -> String {
    source.map(|e| format!(": {e}")).unwrap_or_default()
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>, source: Option<io::Error>) -> Self {
        Self { kind, context: context.into(), source }
    }

    pub(crate) fn os(context: impl Into<String>, source: io::Error) -> Self {
        Self::new(ErrorKind::Os, context, Some(source))
    }

    /// The class of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The kernel's own error, if it was one.
    pub fn io(&self) -> Option<&io::Error> {
        self.source.as_ref()
    }
}
