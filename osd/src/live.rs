//! How a running OSD is, as its thread publishes it several times a second.

use blockstore::StoreStats;
use cluster_io::Counters;
use cluster_proto::PgId;
use cluster_proto::map::{OsdStats, PgScrub};
use osd_core::Latencies;
use serde::Serialize;

/// A recent state of an OSD, at most about 100 ms old. Counters run from its start.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// What the cluster sees of it, with what the store knows: space, device errors, checksum errors (each failed check of
    /// a sector, so one damaged sector that is read twice counts twice).
    pub stats: OsdStats,
    /// What it has scrubbed that is not in the cluster state yet.
    pub unrecorded_scrubs: Vec<(PgId, PgScrub)>,
    /// How long operations took.
    pub latencies: Box<Latencies>,
    /// What its store did.
    pub store: StoreStats,
    /// What its reactor did.
    pub reactor: Counters,
    /// Open connections, in either direction.
    pub connections: usize,
    /// Connections that are not listened to at present, because they do not take their answers.
    pub paused_connections: usize,
    /// Client requests being worked on.
    pub held_requests: usize,
    /// Operations that the store has not finished.
    pub store_operations: usize,
}

/// The value of the OSD's statistics key: what the cluster reads, and the store's own counters for people.
#[derive(Serialize)]
struct Statistics<'a> {
    #[serde(flatten)]
    stats: &'a OsdStats,
    store: &'a StoreStats,
}

impl Live {
    /// JSON for the state store.
    pub(crate) fn statistics(&self) -> Vec<u8> {
        // Plain structs of numbers always have a JSON form.
        serde_json::to_vec(&Statistics { stats: &self.stats, store: &self.store }).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_reads_its_part_of_the_statistics() {
        let mut live = Live::default();
        (live.stats.reads, live.stats.space.total, live.store.flushes) = (7, 1 << 30, 3);
        let read: OsdStats = serde_json::from_slice(&live.statistics()).expect("it is of that type");
        assert_eq!(read, live.stats);
        let all: serde_json::Value = serde_json::from_slice(&live.statistics()).expect("JSON");
        assert_eq!(all["store"]["flushes"], 3);
    }
}
