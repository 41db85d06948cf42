//! Every limit of the cluster in one table (docs/limits.md explains them). "Full" is an explicit answer, never growth.

use crate::layout::SECTOR;

/// Smallest object size of a pool. Bytes.
pub const BLOCK_SIZE_MIN: u32 = 128 << 10;
/// Object size of a pool unless it says otherwise. Bytes.
pub const BLOCK_SIZE_DEFAULT: u32 = 1 << 20;
/// Largest object size of a pool. Bytes.
pub const BLOCK_SIZE_MAX: u32 = 4 << 20;
/// Sectors of the largest object.
pub const SECTORS_PER_OBJECT_MAX: u32 = BLOCK_SIZE_MAX / SECTOR as u32;
/// Largest image. Bytes: 2^31 objects of the smallest size.
pub const IMAGE_SIZE_MAX: u64 = (BLOCK_SIZE_MIN as u64) << 31;
/// Longest name of an image or pool. Bytes of UTF-8.
pub const NAME_LEN_MAX: usize = 255;
/// Shards of an erasure-coded object, data and parity together.
pub const SHARDS_MAX: usize = 32;
/// Bytes of an erasure-coded object that lie together in one data shard before the next one's turn comes. A power of two
/// and a divisor of every block size.
pub const STRIPE_UNIT: usize = 16 << 10;
/// Sector ranges in one patch of an object.
pub const PATCH_RANGES_MAX: usize = 128;
/// Copies in a replicated pool.
pub const REPLICAS_MAX: usize = 16;
/// PGs of one pool.
pub const PG_COUNT_MAX: u32 = 1 << 16;
/// PGs of a pool unless it says otherwise.
pub const PG_COUNT_DEFAULT: u32 = 64;
/// Bytes that one compare-and-write compares (and writes).
pub const COMPARE_AND_WRITE_MAX: usize = 64 << 10;

/// Payload of one message. Bytes. A compare-and-write carries two halves, which are far smaller than an object.
pub const WIRE_PAYLOAD_MAX: usize = BLOCK_SIZE_MAX as usize;
/// Body of one message: fields and lists, without header, checksums and payload. Bytes.
pub const WIRE_BODY_MAX: usize = 60 << 10;
/// Body that a peer may send before it has introduced itself; it may not send payload. Bytes.
pub const WIRE_BODY_MAX_BEFORE_HELLO: usize = 256;
/// What one sealed record of an encrypted connection holds. Bytes. A message's head fits, and a usual message with all of its payload.
pub const WIRE_RECORD_MAX: usize = 256 << 10;
/// Object heads in one message of a list.
pub const WIRE_HEADS_MAX: usize = 1024;
/// Remembered requests that travel with one object in recovery; the newest are kept.
pub const WIRE_REQUESTS_MAX: usize = 1024;
/// Time for a new connection to introduce itself. Milliseconds.
pub const HELLO_TIMEOUT_MS: u64 = 5_000;
/// An idle connection between daemons or from a client is probed this often. Milliseconds.
pub const PING_INTERVAL_MS: u64 = 250;
/// A connection from which nothing came for this long is given up. Milliseconds.
pub const PING_TIMEOUT_MS: u64 = 1_500;
/// A primary serves reads for so long after it sent the probe that each of its members has answered. Milliseconds.
pub const READ_LEASE_MS: u64 = 2_000;
/// A member that changes to a new primary counts so long from its last answer to the old one: the lease and what clocks may differ in
/// their speed. Milliseconds.
pub const READ_LEASE_WAIT_MS: u64 = READ_LEASE_MS + READ_LEASE_MS / 10;
/// A primary below `min_size` serves reads for so long after it last asked for and found its registration. Milliseconds.
pub const REGISTRATION_LEASE_MS: u64 = 5_000;
/// The next primary waits so long if nothing else tells that the one before is over. Milliseconds.
pub const REGISTRATION_LEASE_WAIT_MS: u64 = REGISTRATION_LEASE_MS + REGISTRATION_LEASE_MS / 10;

/// Largest payload of a change that is durable when answered in a pool with `immediate-commit = small`. Bytes.
pub const IMMEDIATE_COMMIT_SMALL_MAX: usize = 64 << 10;
/// Answered changes that a client keeps until they are synced; at half of it a sync begins, at all of it new changes wait. With those
/// under way less than what travels with an object ([`WIRE_REQUESTS_MAX`]), so that a repeated one is always recognised.
pub const UNSYNCED_MAX: usize = 512;
/// Payload of those changes. Bytes.
pub const UNSYNCED_BYTES_MAX: usize = 64 << 20;
/// A change that was not synced for so long is synced without being asked for. Milliseconds.
pub const UNSYNCED_MS_MAX: u64 = 5_000;

/// Requests of one client that may be unacknowledged at once: a sequence number may be at most this far above the
/// client's floor. Fits the 16-bit window of a log entry.
pub const CLIENT_WINDOW: u64 = 32 << 10;
/// Client requests one OSD holds before it answers `Busy`.
pub const OSD_REQUESTS_MAX: usize = 16 << 10;
/// Bytes of client payload one OSD holds before it answers `Busy`.
pub const OSD_REQUEST_BYTES_MAX: usize = 512 << 20;
/// Clients whose applied requests a store remembers.
pub const CLIENTS_REMEMBERED_MAX: usize = 16 << 10;
/// Queries of primaries that an OSD keeps because its map is behind theirs: as many as one pool can have PGs.
pub const EARLY_QUERIES_MAX: usize = PG_COUNT_MAX as usize;
/// Objects of one PG that a member may list in peering: with objects of 128 KiB, 256 GiB of one PG.
pub const PG_HEADS_MAX: usize = 2 << 20;
/// Digest buckets per PG.
pub const DIGEST_BUCKETS: usize = 256;

const _: () = {
    assert!(BLOCK_SIZE_MIN.is_power_of_two() && BLOCK_SIZE_MAX.is_power_of_two());
    assert!(BLOCK_SIZE_MIN <= BLOCK_SIZE_DEFAULT && BLOCK_SIZE_DEFAULT <= BLOCK_SIZE_MAX);
    assert!(2 * COMPARE_AND_WRITE_MAX <= BLOCK_SIZE_MIN as usize);
    assert!(2 * COMPARE_AND_WRITE_MAX <= WIRE_PAYLOAD_MAX);
    assert!(PING_TIMEOUT_MS < READ_LEASE_MS && PING_INTERVAL_MS < READ_LEASE_MS / 2);
    assert!(CLIENT_WINDOW < u16::MAX as u64);
    assert!(2 * UNSYNCED_MAX <= WIRE_REQUESTS_MAX);
    assert!(IMAGE_SIZE_MAX / BLOCK_SIZE_MIN as u64 <= u32::MAX as u64);
};
