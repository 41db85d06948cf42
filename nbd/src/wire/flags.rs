//! Flag fields of the greeting, the export and the requests.

use std::ops::BitOr;

/// Handshake flag: options other than `EXPORT_NAME` are understood.
//= nbd-proto §Handshake flags
pub const FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag: the 124 zero bytes after `EXPORT_NAME` can be left out.
pub const NO_ZEROES: u16 = 1 << 1;

/// What the server can do with an export.
//= nbd-proto §Transmission flags
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransmissionFlags(pub u16);

impl TransmissionFlags {
    /// Always set.
    pub const HAS_FLAGS: Self = Self(1 << 0);
    /// Writes are refused.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// `FLUSH` is served.
    pub const SEND_FLUSH: Self = Self(1 << 2);
    /// `FUA` is honoured.
    pub const SEND_FUA: Self = Self(1 << 3);
    /// `TRIM` is served.
    pub const SEND_TRIM: Self = Self(1 << 5);
    /// `WRITE_ZEROES` is served.
    pub const SEND_WRITE_ZEROES: Self = Self(1 << 6);
    /// The `DF` flag of reads is honoured; only with structured replies.
    pub const SEND_DF: Self = Self(1 << 7);
    /// Several connections see one cache, so a flush on one covers all.
    pub const CAN_MULTI_CONN: Self = Self(1 << 8);
    /// `CACHE` is served.
    pub const SEND_CACHE: Self = Self(1 << 10);
    /// The `FAST_ZERO` flag of `WRITE_ZEROES` is honoured.
    pub const SEND_FAST_ZERO: Self = Self(1 << 11);
}

impl BitOr for TransmissionFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The flags of one request.
//= nbd-proto §Command flags
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommandFlags(pub u16);

impl CommandFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Durable when answered.
    pub const FUA: Self = Self(1 << 0);
    /// Zeroed space stays allocated.
    pub const NO_HOLE: Self = Self(1 << 1);
    /// One content chunk at most.
    pub const DF: Self = Self(1 << 2);
    /// One extent per context at most.
    pub const REQ_ONE: Self = Self(1 << 3);
    /// Fail rather than write zeroes slowly.
    pub const FAST_ZERO: Self = Self(1 << 4);
    /// With extended headers: the length is that of a payload which follows.
    pub const PAYLOAD_LEN: Self = Self(1 << 5);

    /// Whether all of `flags` are set.
    pub fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Whether nothing but `allowed` is set.
    pub fn is_subset(self, allowed: Self) -> bool {
        self.0 & !allowed.0 == 0
    }
}

impl BitOr for CommandFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
