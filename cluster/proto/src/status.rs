//! Outcome of an operation. Each front door maps it to its own protocol in one file, `status.rs`.

use std::fmt;

/// How an operation ended. `Ok` apart, each says what the receiver is expected to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u16)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Not served here now (wrong primary, older or newer epoch, PG not active): refresh the map and send again.
    Retry = 1,
    /// Queues are full: send again later.
    Busy = 2,
    /// No space left in the pool: the client waits and sends again, it does not fail.
    NoSpace = 3,
    /// A compare-and-write found other content. Final.
    Mismatch = 4,
    /// The data failed its checksum and no intact copy is left. Final.
    Corrupt = 5,
    /// The device failed. Final for this copy; another may serve.
    Io = 6,
    /// The request breaks a rule (range, alignment, size, window). Final.
    Invalid = 7,
    /// The pool, image or object does not exist. Final.
    NotFound = 8,
    /// The image or export is read-only. Final.
    ReadOnly = 9,
    /// A checksum did not match its payload on arrival: send again.
    BadPayload = 10,
}

impl Status {
    /// Decodes the wire's number; `None` for one this version does not know.
    pub const fn from_u16(n: u16) -> Option<Status> {
        Some(match n {
            0 => Status::Ok,
            1 => Status::Retry,
            2 => Status::Busy,
            3 => Status::NoSpace,
            4 => Status::Mismatch,
            5 => Status::Corrupt,
            6 => Status::Io,
            7 => Status::Invalid,
            8 => Status::NotFound,
            9 => Status::ReadOnly,
            10 => Status::BadPayload,
            _ => return None,
        })
    }

    /// Whether sending the same request again later may succeed.
    pub const fn is_transient(self) -> bool {
        matches!(self, Status::Retry | Status::Busy | Status::NoSpace | Status::BadPayload)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Ok => "done",
            Status::Retry => "not served here at the moment",
            Status::Busy => "queues are full",
            Status::NoSpace => "no space left",
            Status::Mismatch => "content differs from what was expected",
            Status::Corrupt => "checksum mismatch in every copy",
            Status::Io => "device error",
            Status::Invalid => "invalid request",
            Status::NotFound => "does not exist",
            Status::ReadOnly => "read-only",
            Status::BadPayload => "payload damaged on the way",
        })
    }
}
