//! What can go wrong between a program and its images.

use cluster_proto::Status;
use cluster_state::{StateError, StateErrorKind};

/// The class of an [`Error`], for callers that decide by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ErrorKind {
    /// The cluster, pool or image does not exist.
    NotFound,
    /// There is an image of that name already.
    AlreadyExists,
    /// The request breaks a rule: out of range, too long, not a legal name or size.
    Invalid,
    /// The image is read-only.
    ReadOnly,
    /// A compare-and-write found other content; nothing was written.
    Mismatch,
    /// The data is damaged in every copy.
    Corrupt,
    /// The device failed, on every copy that could be asked.
    Io,
    /// The image was removed, or is being removed.
    Removed,
    /// Somebody else changed the same metadata at the same time: look again and decide anew.
    Conflict,
    /// The state store could not be reached or refused; see [`Error::state`].
    State,
    /// This process cannot do it: no io_uring, no threads, no descriptors.
    Environment,
    /// The client's thread has ended.
    Closed,
}

/// What failed, on what, and why, as one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: ErrorKind,
    context: String,
    state: Option<StateErrorKind>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), state: None }
    }

    /// The class of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the state store said, for [`ErrorKind::State`].
    pub fn state(&self) -> Option<StateErrorKind> {
        self.state
    }

    /// An operation on an image ended with `status`, which is not `Ok`.
    pub(crate) fn operation(status: Status, what: impl FnOnce() -> String) -> Self {
        let kind = match status {
            Status::NotFound => ErrorKind::Removed,
            Status::ReadOnly => ErrorKind::ReadOnly,
            Status::Mismatch => ErrorKind::Mismatch,
            Status::Corrupt => ErrorKind::Corrupt,
            Status::Invalid => ErrorKind::Invalid,
            Status::Ok | Status::Io | Status::Retry | Status::Busy | Status::NoSpace | Status::BadPayload => {
                ErrorKind::Io
            }
        };
        let why = match kind {
            ErrorKind::Removed => "the image was removed".to_owned(),
            ErrorKind::Invalid => "the range is not inside the image, or too long".to_owned(),
            _ => status.to_string(),
        };
        Self::new(kind, format!("cannot {}: {why}", what()))
    }

    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the client has ended: its thread failed, see the log")
    }
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        Self { kind: ErrorKind::State, state: Some(error.kind), context: error.context }
    }
}

impl From<cluster_io::Error> for Error {
    fn from(error: cluster_io::Error) -> Self {
        Self::new(ErrorKind::Environment, error.to_string())
    }
}
