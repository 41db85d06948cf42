//! The cluster state on its way to the shard: one range, key by key, in order.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use cluster_proto::Uuid;
use cluster_proto::map::{ClusterInfo, keys, parse};
use cluster_state::{KeyValue, MirrorEvent, Snapshot, StateStore, WatchBatch, WatchEvent, watch_forever};

use crate::command::{Command, CommandSender, MapEvent};

/// Events of one command.
const BATCH_MAX: usize = 256;

/// What was told of a range, so that what vanished while nobody looked can be told too.
#[derive(Default)]
struct Told {
    keys: BTreeSet<String>,
}

/// Follows a range for ever.
pub(super) async fn run(
    state: Arc<dyn StateStore>,
    prefix: &'static str,
    cluster: Uuid,
    commands: CommandSender,
) -> Infallible {
    let mut mirror = watch_forever(state, prefix);
    let mut told = Told::default();
    loop {
        let events = match mirror.next().await {
            MirrorEvent::Reset(snapshot) if is_foreign(&snapshot, cluster) => {
                tracing::error!("the state store holds another cluster's state; going on with what was known before");
                continue;
            }
            MirrorEvent::Reset(snapshot) => told.reset(snapshot),
            MirrorEvent::Batch(batch) => told.apply(batch),
        };
        for batch in events.chunks(BATCH_MAX) {
            commands.send(Command::Map(batch.to_vec())).await;
        }
    }
}

/// Whether the configuration says that it is another cluster's.
fn is_foreign(snapshot: &Snapshot, cluster: Uuid) -> bool {
    let info = snapshot.entries.iter().find(|entry| entry.key == keys::CLUSTER);
    info.is_some_and(|entry| parse::<ClusterInfo>(&entry.key, &entry.value).is_ok_and(|info| info.id != cluster))
}

fn put(entry: KeyValue) -> MapEvent {
    MapEvent { key: entry.key, value: Some(entry.value) }
}

impl Told {
    fn reset(&mut self, snapshot: Snapshot) -> Vec<MapEvent> {
        let now: BTreeSet<String> = snapshot.entries.iter().map(|entry| entry.key.clone()).collect();
        let vanished = self.keys.difference(&now).map(|key| MapEvent { key: key.clone(), value: None });
        let events = vanished.chain(snapshot.entries.into_iter().map(put)).collect();
        self.keys = now;
        events
    }

    fn apply(&mut self, batch: WatchBatch) -> Vec<MapEvent> {
        let mut events = Vec::with_capacity(batch.events.len());
        for event in batch.events {
            events.push(match event {
                WatchEvent::Put(entry) => {
                    self.keys.insert(entry.key.clone());
                    put(entry)
                }
                WatchEvent::Delete { key, .. } => {
                    self.keys.remove(&key);
                    MapEvent { key, value: None }
                }
            });
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str) -> KeyValue {
        KeyValue { key: key.into(), value: value.into(), create_revision: 1, mod_revision: 1, version: 1, lease: 0 }
    }

    fn names(events: &[MapEvent]) -> Vec<(&str, bool)> {
        events.iter().map(|e| (e.key.as_str(), e.value.is_some())).collect()
    }

    #[test]
    fn a_reset_also_tells_what_vanished() {
        let mut told = Told::default();
        let first = Snapshot { revision: 1, entries: vec![entry("a", "1"), entry("b", "1")] };
        assert_eq!(names(&told.reset(first)), [("a", true), ("b", true)]);
        let batch = WatchBatch {
            revision: 3,
            events: vec![WatchEvent::Put(entry("c", "1")), WatchEvent::Delete { key: "a".into(), revision: 3 }],
        };
        assert_eq!(names(&told.apply(batch)), [("c", true), ("a", false)]);
        let again = Snapshot { revision: 9, entries: vec![entry("b", "2"), entry("d", "1")] };
        assert_eq!(names(&told.reset(again)), [("c", false), ("b", true), ("d", true)]);
    }

    #[test]
    fn the_state_of_another_cluster_is_seen() {
        let info = |n| ClusterInfo { id: Uuid::from_u128(n), created: 0, schema: 1 };
        let json = serde_json::to_string(&info(1)).expect("JSON");
        let snapshot = Snapshot { revision: 1, entries: vec![entry(keys::CLUSTER, &json)] };
        assert!(!is_foreign(&snapshot, info(1).id));
        assert!(is_foreign(&snapshot, info(2).id));
        assert!(!is_foreign(&Snapshot::default(), info(1).id));
    }
}
