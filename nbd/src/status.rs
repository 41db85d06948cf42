//! The outcome of a volume operation in NBD's words: the error field of a reply.

use gateway_core::Status;

/// An error number of the protocol.
//= nbd-proto §Error values
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Errno {
    /// Operation not permitted: a write to a read-only export.
    Perm = 1,
    /// Input/output error.
    Io = 5,
    /// Invalid argument.
    Inval = 22,
    /// No space left on device: a write past the end.
    NoSpc = 28,
    /// Value too large: an unfragmented read above the maximum.
    Overflow = 75,
    /// Operation not supported.
    NotSup = 95,
    /// The export is going away.
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }
}

impl From<Status> for Errno {
    fn from(status: Status) -> Self {
        match status {
            Status::Unsupported => Errno::NotSup,
            Status::Invalid => Errno::Inval,
            Status::ReadOnly => Errno::Perm,
            Status::Gone => Errno::Shutdown,
            // NBD has no compare-and-write, so a mismatch can only be a fault of the volume.
            Status::Mismatch | Status::Medium | Status::Failed => Errno::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_errno() {
        let table = [
            (Status::Unsupported, 95),
            (Status::Invalid, 22),
            (Status::ReadOnly, 1),
            (Status::Mismatch, 5),
            (Status::Medium, 5),
            (Status::Gone, 108),
            (Status::Failed, 5),
        ];
        for (status, code) in table {
            assert_eq!(Errno::from(status).code(), code, "{status}");
        }
    }
}
