//! The cluster map as the watches tell it, with the revisions that transactions are conditioned on.

use std::collections::BTreeMap;

use cluster_proto::map::{ClusterMap, keys};
use cluster_state::{MirrorEvent, Snapshot, StateError, StateStore, WatchEvent};

/// A [`ClusterMap`] fed by mirrors of ranges of the state store.
///
/// Values that break the schema are reported in the log and leave the previous value in force.
#[derive(Debug, Default)]
pub struct View {
    map: ClusterMap,
    /// Every key of the mirrored ranges and its last revision, whether its value is valid or not.
    revisions: BTreeMap<String, i64>,
    /// Ranges that have been read, with the last revision seen of each.
    ranges: BTreeMap<&'static str, i64>,
}

impl View {
    /// Ranges that a view of the whole map needs.
    pub const RANGES: [&'static str; 3] = [keys::CONFIG, keys::OSDS, keys::PGS];

    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The map.
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// Revision in which the key was last written; 0 if it does not exist.
    pub fn revision(&self, key: &str) -> i64 {
        self.revisions.get(key).copied().unwrap_or(0)
    }

    /// Last revision seen of one of the [`View::RANGES`]; 0 if it was not read yet.
    pub fn range_revision(&self, range: &str) -> i64 {
        self.ranges.get(range).copied().unwrap_or(0)
    }

    /// Whether all ranges have been read.
    pub fn is_complete(&self) -> bool {
        Self::RANGES.iter().all(|range| self.ranges.contains_key(range))
    }

    /// Takes what the mirror of `range` tells.
    pub fn handle_event(&mut self, range: &'static str, event: MirrorEvent) {
        let revision = match event {
            MirrorEvent::Reset(snapshot) => self.reset(range, snapshot),
            MirrorEvent::Batch(batch) => {
                for event in batch.events {
                    match event {
                        WatchEvent::Put(entry) => self.set(entry.key, Some(&entry.value), entry.mod_revision),
                        WatchEvent::Delete { key, .. } => self.set(key, None, 0),
                    }
                }
                batch.revision
            }
        };
        self.ranges.insert(range, revision);
    }

    /// Takes everything that is under `range` now.
    pub fn reset(&mut self, range: &'static str, snapshot: Snapshot) -> i64 {
        let present: std::collections::BTreeSet<_> = snapshot.entries.iter().map(|entry| &entry.key).collect();
        let under_range = self.revisions.range(range.to_owned()..).map(|(key, _)| key);
        let gone: Vec<_> = under_range
            .take_while(|key| key.starts_with(range))
            .filter(|key| !present.contains(key))
            .cloned()
            .collect();
        gone.into_iter().for_each(|key| self.set(key, None, 0));
        for entry in snapshot.entries {
            self.set(entry.key, Some(&entry.value), entry.mod_revision);
        }
        self.ranges.insert(range, snapshot.revision);
        snapshot.revision
    }

    fn set(&mut self, key: String, value: Option<&[u8]>, revision: i64) {
        if let Err(error) = self.map.apply(&key, value) {
            tracing::error!("the cluster state breaks its schema, the value before stays in force: {error}");
        }
        match value {
            Some(_) => self.revisions.insert(key, revision),
            None => self.revisions.remove(&key),
        };
    }
}

/// Adds what has been scrubbed, which no view has, to a map. Values that cannot be understood are left out.
///
/// # Errors
/// The state store does not answer.
pub async fn add_scrubbed(store: &dyn StateStore, map: &mut ClusterMap) -> Result<(), StateError> {
    for entry in store.range(keys::SCRUBBED).await?.entries {
        let _ = map.apply(&entry.key, Some(&entry.value));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cluster_proto::map::OsdConfig;
    use cluster_proto::{OsdId, PoolId};
    use cluster_state::KeyValue;

    use super::*;

    fn entry(key: String, value: &[u8], revision: i64) -> KeyValue {
        KeyValue { key, value: value.into(), create_revision: 1, mod_revision: revision, version: 1, lease: 0 }
    }

    #[test]
    fn a_reset_forgets_what_is_gone_and_nothing_else() {
        let mut view = View::new();
        let weight = serde_json::to_vec(&OsdConfig::new(1.0)).unwrap();
        let first = (1..=2).map(|id| entry(keys::osd_config(OsdId(id)), &weight, 5)).collect();
        view.handle_event(keys::CONFIG, MirrorEvent::Reset(Snapshot { revision: 7, entries: first }));
        view.handle_event(keys::OSDS, MirrorEvent::Reset(Snapshot { revision: 8, entries: Vec::new() }));
        assert_eq!((view.map().osd_configs.len(), view.revision(&keys::osd_config(OsdId(2)))), (2, 5));
        assert!(!view.is_complete());
        let bad = entry(keys::pool(PoolId(1)), b"{}", 9);
        let second = vec![entry(keys::osd_config(OsdId(2)), b"nonsense", 9), bad];
        view.handle_event(keys::CONFIG, MirrorEvent::Reset(Snapshot { revision: 9, entries: second }));
        assert_eq!(view.map().osd_configs.keys().copied().collect::<Vec<_>>(), [OsdId(2)]);
        assert!(view.map().pools.is_empty());
        assert_eq!(view.range_revision(keys::CONFIG), 9);
        view.handle_event(keys::PGS, MirrorEvent::Reset(Snapshot::default()));
        assert!(view.is_complete());
    }
}
