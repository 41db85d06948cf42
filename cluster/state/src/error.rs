//! What can go wrong between a caller and the state store.

use std::fmt;

/// Why a request failed; decides what the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateErrorKind {
    /// The store could not be reached or refused to serve. A write with this error was **not** applied. Try again later.
    Unavailable,
    /// The connection broke while a write was under way: it may or may not have been applied. Read before trying again.
    Unknown,
    /// The request breaks a rule (empty key, one key changed twice in a transaction, ...). Trying again is useless.
    Invalid,
    /// The request, or an answer to it, is larger than the store accepts (see [`crate::limits`]).
    TooLarge,
    /// The store has reached its size limit, or its disk is full. Nothing was applied; deleting still works.
    Full,
    /// The lease is not known: it expired or was revoked.
    LeaseNotFound,
    /// The wanted revision is older than the history that the store keeps.
    Compacted,
    /// User name, password or certificate were not accepted, or the user may not do this.
    Denied,
    /// Another process has the embedded store open.
    InUse,
    /// The file of the embedded store cannot be understood.
    Corrupt,
}

/// A failed request: what failed, where, why, and what to do, as one sentence; and its [`StateErrorKind`].
#[derive(Clone, Debug, thiserror::Error)]
#[error("{context}")]
pub struct StateError {
    /// What the caller should do about it.
    pub kind: StateErrorKind,
    /// The sentence for a person.
    pub context: String,
}

impl StateError {
    /// An error of `kind` that reads `context`.
    pub fn new(kind: StateErrorKind, context: impl fmt::Display) -> Self {
        Self { kind, context: context.to_string() }
    }

    pub(crate) fn unavailable(context: impl fmt::Display) -> Self {
        Self::new(StateErrorKind::Unavailable, context)
    }

    pub(crate) fn invalid(context: impl fmt::Display) -> Self {
        Self::new(StateErrorKind::Invalid, context)
    }
}

/// Why a watch ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WatchError {
    /// The store no longer has the events that the watch needed next. Read the range again and watch from there.
    #[error("the store has compacted its history up to revision {first_available}; the range must be read again")]
    Compacted {
        /// The oldest revision a watch can start from.
        first_available: i64,
    },
    /// The connection to the store was lost. Watch again from the revision after the last batch.
    #[error(transparent)]
    Lost(#[from] StateError),
}
