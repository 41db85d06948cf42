//! Why an engine cannot be opened, as a person reads it.

/// What failed, on what, and why, as one sentence.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Error(pub String);

impl Error {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl From<blockyard_client::Error> for Error {
    fn from(error: blockyard_client::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<cluster_state::StateError> for Error {
    fn from(error: cluster_state::StateError) -> Self {
        Self(error.to_string())
    }
}

impl From<cluster_io::Error> for Error {
    fn from(error: cluster_io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<osd::Error> for Error {
    fn from(error: osd::Error) -> Self {
        Self(error.to_string())
    }
}
