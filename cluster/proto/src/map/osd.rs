//! OSDs and gateways: configuration, liveness, statistics.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::SchemaError;
use super::pool::validate_name;
use super::rules::validate_tags;
use crate::ids::Incarnation;
use crate::shard::Space;

/// Configuration of an OSD.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct OsdConfig {
    /// Share of data it should get, relative to the others; by custom its size in TiB. From 0 (nothing) to 1,000,000.
    pub weight: f64,
    /// The operator's correction of the weight, a factor. 0 to 1, default 1.
    #[serde(default = "reweight_default", skip_serializing_if = "is_reweight_default")]
    pub reweight: f64,
    /// The node of the placement tree it stands in; a name that the tree does not know is a host. Empty (default): the OSD is a
    /// host of its own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// What pools may ask for, such as `ssd`. At most 16, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The store that it has, as its superblock says. Another one under its number, like that of a predecessor, is not it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Uuid>,
}

/// Largest weight of an OSD.
pub const WEIGHT_MAX: f64 = 1e6;

fn reweight_default() -> f64 {
    1.0
}

// serde's skip_serializing_if wants a reference.
fn is_reweight_default(reweight: &f64) -> bool {
    *reweight == reweight_default()
}

impl OsdConfig {
    /// An OSD of this weight with the defaults of everything else.
    pub fn new(weight: f64) -> Self {
        Self { weight, reweight: reweight_default(), host: String::new(), tags: Vec::new(), store: None }
    }

    /// The weight that placement uses.
    pub fn effective_weight(&self) -> f64 {
        self.weight * self.reweight
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// The first field that is out of range, with the range.
    pub fn validate(&self) -> Result<(), SchemaError> {
        let (weight, reweight) = (self.weight, self.reweight);
        SchemaError::check((0.0..=WEIGHT_MAX).contains(&weight), || {
            format!("weight is {weight}: give a number from 0 to {WEIGHT_MAX}")
        })?;
        SchemaError::check((0.0..=1.0).contains(&reweight), || {
            format!("reweight is {reweight}: give a number from 0 to 1")
        })?;
        if !self.host.is_empty() {
            validate_name("host", &self.host)?;
        }
        validate_tags(&self.tags)
    }
}

/// A running OSD. Bound to the OSD's lease: gone when the OSD is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct OsdState {
    /// Where it listens.
    pub address: SocketAddr,
    /// This run of it.
    pub incarnation: Incarnation,
    /// Seconds since 1970.
    pub started: u64,
}

/// What an OSD has recovered of late, as primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RecoveryRate {
    /// The time that the others are about: up to ten seconds; 0 if nothing was recovered. Milliseconds.
    pub window_ms: u64,
    /// Objects recovered in it.
    pub objects: u64,
    /// Bytes written to members for that.
    pub bytes: u64,
}

impl RecoveryRate {
    /// Objects in a second.
    pub fn objects_per_second(&self) -> f64 {
        self.per_second(self.objects)
    }

    /// Bytes in a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.per_second(self.bytes)
    }

    fn per_second(&self, count: u64) -> f64 {
        if self.window_ms == 0 { 0.0 } else { count as f64 * 1000.0 / self.window_ms as f64 }
    }
}

/// How long operations of one kind took of late at an OSD. The times are at most a quarter too long.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct LatencyStats {
    /// Where they took place: `client` (requests, from arrival to answer), `member` (at other members), `store` (the own one).
    pub at: String,
    /// What they were: `read`, `write`, `sync`, `other`.
    pub op: String,
    /// How many ended in the last ten seconds or so; the quantiles are of these.
    pub count: u64,
    /// Half of them took no longer. Microseconds.
    pub p50_us: u64,
    /// 99 of 100 took no longer. Microseconds.
    pub p99_us: u64,
}

/// Statistics that an OSD writes every few seconds. Counters run from the OSD's start.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct OsdStats {
    /// This run of it.
    pub incarnation: Incarnation,
    /// Space of the store.
    pub space: Space,
    /// Its device may lose with its power what was not flushed: in a lazy pool, its changes are durable after a sync only.
    pub volatile_cache: bool,
    /// Client reads answered.
    pub reads: u64,
    /// Client changes answered.
    pub writes: u64,
    /// Bytes read for clients.
    pub read_bytes: u64,
    /// Bytes written for clients.
    pub write_bytes: u64,
    /// Sectors whose stored data did not match its checksum.
    pub crc_errors: u64,
    /// Damaged sectors rewritten from another copy.
    pub repaired_sectors: u64,
    /// Sectors that nobody could read when their object was copied to members that lacked it.
    pub lost_sectors: u64,
    /// Device errors.
    pub io_errors: u64,
    /// Objects of PGs this OSD leads that were brought to members that lacked them.
    pub recovered_objects: u64,
    /// Of these, those of which only the sectors that had changed were written.
    pub patched_objects: u64,
    /// Bytes that were written to members for that.
    pub recovered_bytes: u64,
    /// Present speed of recovery.
    pub recovery: RecoveryRate,
    /// Objects of PGs this OSD leads that some member lacks.
    pub objects_degraded: u64,
    /// Objects of PGs this OSD leads that deep scrubs have verified, each time counted.
    pub scrubbed_objects: u64,
    /// Damaged sectors, rows of wrong parity, and differences between members, that scrubs of PGs this OSD leads have found.
    pub scrub_errors: u64,
    /// Damaged sectors, and rows of wrong parity, that those scrubs could not repair.
    pub scrub_unrepaired: u64,
    /// PGs this OSD leads and serves.
    pub pgs_active: u32,
    /// PGs this OSD leads and does not serve.
    pub pgs_inactive: u32,
    /// Latencies of what there was of late.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub latencies: Vec<LatencyStats>,
}

/// A running gateway. Bound to the gateway's lease.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GatewayState {
    /// Where it serves NBD.
    pub nbd: Vec<String>,
    /// This run of it.
    pub incarnation: Incarnation,
}
