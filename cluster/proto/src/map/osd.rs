//! OSDs and gateways: configuration, liveness, statistics.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::Incarnation;
use crate::shard::Space;

/// Configuration of an OSD.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct OsdConfig {
    /// Share of data it should get, relative to the others; by custom its size in TiB.
    pub weight: f64,
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

/// Statistics that an OSD writes every few seconds. Counters run from the OSD's start.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct OsdStats {
    /// This run of it.
    pub incarnation: Incarnation,
    /// Space of the store.
    pub space: Space,
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
    /// Device errors.
    pub io_errors: u64,
    /// Objects copied to or from this OSD to bring members to the same state.
    pub recovered_objects: u64,
    /// Objects of PGs this OSD leads that some member lacks.
    pub objects_degraded: u64,
    /// PGs this OSD leads and serves.
    pub pgs_active: u32,
    /// PGs this OSD leads and does not serve.
    pub pgs_inactive: u32,
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
