//! Outcome of a volume operation, in the house's words. Each protocol maps it in its own `status.rs`.

use std::fmt;

/// Why a volume operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Status {
    /// Not supported by this volume.
    Unsupported,
    /// Breaks a rule (range, size).
    Invalid,
    /// The volume is read-only.
    ReadOnly,
    /// A compare-and-write found other content.
    Mismatch,
    /// Data is lost or damaged in every copy.
    Medium,
    /// The volume does not exist (any more).
    Gone,
    /// Any other failure of the storage behind it.
    Failed,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Unsupported => "operation not supported",
            Status::Invalid => "invalid request",
            Status::ReadOnly => "read-only",
            Status::Mismatch => "content differs from what was expected",
            Status::Medium => "data is damaged in every copy",
            Status::Gone => "the volume was removed",
            Status::Failed => "the storage failed",
        })
    }
}
