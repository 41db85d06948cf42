//! Every bound of a connection, in one table.

/// Longest name or other string of the protocol. Bytes.
//= nbd-proto §Conventions: a string "MUST be no longer than 4096 bytes"
pub const STRING_LEN_MAX: usize = 4096;
/// Longest data of an option that is looked at; longer ones are skipped and answered `TOO_BIG`. Bytes.
pub const OPTION_LEN_MAX: u32 = 16 << 10;
/// Option replies of one connection, after which it is taken for an attack and closed. Bytes.
pub const HANDSHAKE_REPLY_BYTES_MAX: usize = 16 << 20;
/// Longest payload of a read or write that is ever accepted; a volume may allow less. Bytes.
//= nbd-proto §Block size constraints: clients that do not ask assume 32 MiB
pub const PAYLOAD_LEN_MAX: u32 = 32 << 20;
/// Requests that may be at the volume at once.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 256;
/// Payload of the requests at the volume, read and written. Bytes.
pub const BYTES_IN_FLIGHT_MAX: u64 = 64 << 20;
/// Descriptors in one reply to `BLOCK_STATUS`.
pub const EXTENTS_MAX: usize = 2048;
/// A payload announced with an extended header that is longer than this is not even skipped. Bytes.
pub const SKIP_LEN_MAX: u64 = u32::MAX as u64;
/// A client that takes longer than this to send the next complete option is dropped. Milliseconds.
pub const HANDSHAKE_TIMEOUT_MS: u64 = 10_000;

// Two strings and their lengths fit an option; one request of any accepted size fits the bytes in flight.
const _: () = assert!(OPTION_LEN_MAX as usize >= 2 * (STRING_LEN_MAX + 4) + 4);
const _: () = assert!(BYTES_IN_FLIGHT_MAX >= PAYLOAD_LEN_MAX as u64);

/// The bounds that a server may choose. [`Limits::default`] is the table of this module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests at the volume at once; at least 1. Further ones wait inside the session.
    pub requests_in_flight_max: usize,
    /// Payload of the requests at the volume, in bytes. One request is always let through, whatever its size.
    pub bytes_in_flight_max: u64,
    /// Largest read or write, in bytes; advertised as the maximum block size together with the volume's own.
    pub payload_len_max: u32,
    /// Time to the next complete option while haggling, in milliseconds.
    pub handshake_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_in_flight_max: REQUESTS_IN_FLIGHT_MAX,
            bytes_in_flight_max: BYTES_IN_FLIGHT_MAX,
            payload_len_max: PAYLOAD_LEN_MAX,
            handshake_timeout_ms: HANDSHAKE_TIMEOUT_MS,
        }
    }
}
