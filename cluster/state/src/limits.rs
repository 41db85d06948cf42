//! Every limit of the state store in one table.

/// Bytes of one request (all keys and values of a transaction). etcd's own default is 1.5 MiB; callers stay well below.
pub const REQUEST_BYTES_MAX: usize = 2 << 20;
/// Bytes that a gRPC message may have: a request and its framing.
pub const MESSAGE_BYTES_MAX: usize = REQUEST_BYTES_MAX + (64 << 10);
/// Bytes of one answer that a client accepts from etcd. One page of a range, or all events of one revision.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Bytes of one key.
pub const KEY_BYTES_MAX: usize = 4 << 10;
/// Compares and operations of one transaction, nested ones included. etcd's default is 128 per branch; our callers stay
/// below that.
pub const TXN_OPS_MAX: usize = 1024;
/// How deep transactions may be nested.
pub const TXN_DEPTH_MAX: usize = 4;
/// Keys that [`crate::StateStore::range`] asks etcd for at once.
pub const PAGE_KEYS: usize = 1000;
/// Bytes of all keys and values of an embedded store; more is refused as `Full`.
pub const STORE_BYTES_MAX: usize = 512 << 20;
/// Events that an embedded store keeps for watches that lag behind or reconnect.
pub const HISTORY_EVENTS_MAX: usize = 64 << 10;
/// Bytes of these events.
pub const HISTORY_BYTES_MAX: usize = 64 << 20;
/// Events of one watch batch, unless a single revision has more.
pub const BATCH_EVENTS_MAX: usize = 1000;
/// Bytes of one watch batch, unless a single revision has more.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Live leases of an embedded store.
pub const LEASES_MAX: usize = 16 << 10;
/// Shortest lease. Seconds.
pub const LEASE_TTL_S_MIN: u32 = 1;
/// Longest lease. Seconds: about 100 days.
pub const LEASE_TTL_S_MAX: u32 = 9_000_000;
/// Requests that an embedded store holds at once; further callers wait.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 1024;
/// Requests that share one commit of an embedded store.
pub const GROUP_COMMIT_MAX: usize = 256;
/// Watches of one connection to an embedded store.
pub const WATCHES_PER_STREAM_MAX: usize = 4096;
/// Connections to an embedded store; further ones wait to be accepted.
pub const CONNECTIONS_MAX: usize = 1024;
/// Requests and streams of one connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 256;

const _: () = {
    assert!(KEY_BYTES_MAX < REQUEST_BYTES_MAX && REQUEST_BYTES_MAX < MESSAGE_BYTES_MAX);
    assert!(MESSAGE_BYTES_MAX < ANSWER_BYTES_MAX);
    assert!(BATCH_BYTES_MAX < ANSWER_BYTES_MAX && BATCH_EVENTS_MAX < HISTORY_EVENTS_MAX);
    assert!(REQUEST_BYTES_MAX < HISTORY_BYTES_MAX);
};
