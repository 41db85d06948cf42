//! Why an OSD cannot be prepared, started or kept running.

/// The class of an [`Error`], for callers that decide by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// The file or device does not exist: it has to be prepared.
    Missing,
    /// Another process has it open.
    Locked,
    /// Something is on it that preparing would destroy.
    Occupied,
    /// It is smaller than the smallest store.
    TooSmall,
    /// It is no store, or one that cannot be opened.
    BadStore,
    /// It belongs to another cluster or OSD.
    Stranger,
    /// The address to listen on is taken.
    AddressInUse,
    /// A setting contradicts itself.
    Invalid,
    /// The device failed while the OSD ran, or the OSD ended by a fault of its own.
    Broken,
    /// Anything else that the system refused.
    System,
}

/// A failure: what failed, on what, why, and what to do, as one sentence.
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
        let kind = match error.kind() {
            cluster_io::ErrorKind::AddressInUse => ErrorKind::AddressInUse,
            cluster_io::ErrorKind::Locked => ErrorKind::Locked,
            _ => ErrorKind::System,
        };
        Self::new(kind, error.to_string())
    }
}
