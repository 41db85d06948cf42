//! The way of the cluster state to the client core: followed on the control plane (tokio), applied on the shard thread.

use std::collections::BTreeSet;
use std::sync::Arc;

use cluster_io::Waker;
use cluster_proto::Uuid;
use cluster_proto::map::{ClusterInfo, keys, parse};
use cluster_state::{MirrorEvent, StateStore, WatchEvent, watch_forever};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind};

/// Batches of changes between the two threads; the follower waits when the shard thread lags behind by so many.
const BATCHES_MAX: usize = 64;

/// A key's new value; `None`: it is gone.
pub type KeyChange = (String, Option<Vec<u8>>);

/// Turns what a [`cluster_state::Mirror`] tells into changes of single keys, also where it begins anew because the store
/// no longer knew what had happened in between: then keys that have vanished meanwhile are reported as deleted.
#[derive(Debug, Default)]
pub struct KeyDiff {
    known: BTreeSet<String>,
}

impl KeyDiff {
    /// The changes that an event means, in order.
    pub fn changes(&mut self, event: MirrorEvent) -> Vec<KeyChange> {
        match event {
            MirrorEvent::Reset(snapshot) => {
                let now: BTreeSet<_> = snapshot.entries.iter().map(|entry| entry.key.clone()).collect();
                let gone = self.known.difference(&now).map(|key| (key.clone(), None));
                let mut changes: Vec<_> = gone.collect();
                changes.extend(snapshot.entries.into_iter().map(|entry| (entry.key, Some(entry.value))));
                self.known = now;
                changes
            }
            MirrorEvent::Batch(batch) => batch.events.into_iter().map(|event| self.change(event)).collect(),
        }
    }

    fn change(&mut self, event: WatchEvent) -> KeyChange {
        match event {
            WatchEvent::Put(entry) => {
                self.known.insert(entry.key.clone());
                (entry.key, Some(entry.value))
            }
            WatchEvent::Delete { key, .. } => {
                self.known.remove(&key);
                (key, None)
            }
        }
    }
}

/// A followed part of the cluster state, as the shard thread sees it: changes in the order in which they were made.
/// Dropping it ends the following.
#[derive(Debug)]
pub struct MapFeed {
    changes: mpsc::Receiver<Vec<KeyChange>>,
    task: JoinHandle<()>,
}

impl MapFeed {
    /// Follows what every client has to know (`config/`, `osd/` and `pg/`) on `runtime`, and wakes the shard thread at
    /// each change. Outages of the store are waited out; what is known stays known meanwhile.
    pub fn spawn(runtime: &Handle, state: Arc<dyn StateStore>, waker: Waker) -> Self {
        let (sender, changes) = mpsc::channel(BATCHES_MAX);
        let task = runtime.spawn(async move {
            tokio::join!(
                follow(state.clone(), keys::CONFIG, sender.clone(), waker.clone()),
                follow(state.clone(), keys::OSDS, sender.clone(), waker.clone()),
                follow(state, keys::PGS, sender, waker),
            );
        });
        Self { changes, task }
    }

    /// The next changes, if there are any now.
    pub fn poll(&mut self) -> Option<Vec<KeyChange>> {
        self.changes.try_recv().ok()
    }
}

impl Drop for MapFeed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Follows one range, whose own order is kept, until nobody listens any more.
async fn follow(state: Arc<dyn StateStore>, prefix: &str, changes: mpsc::Sender<Vec<KeyChange>>, waker: Waker) {
    let mut mirror = watch_forever(state, prefix);
    let mut diff = KeyDiff::default();
    loop {
        let batch = diff.changes(mirror.next().await);
        if changes.send(batch).await.is_err() {
            return;
        }
        waker.wake();
    }
}

/// The identity of the cluster whose state this is.
///
/// # Errors
/// `NotFound`: the store holds no cluster. `State`: it cannot be reached. `Invalid`: its content is not understood.
pub async fn cluster_id(state: &dyn StateStore) -> Result<Uuid, Error> {
    let Some(entry) = state.get(keys::CLUSTER).await? else {
        let location = state.location();
        let text =
            format!("there is no Blockyard cluster in the state store {location}: start one with `blockyard up`");
        return Err(Error::new(ErrorKind::NotFound, text));
    };
    let info: ClusterInfo =
        parse(keys::CLUSTER, &entry.value).map_err(|e| Error::new(ErrorKind::Invalid, e.to_string()))?;
    Ok(info.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_state::{KeyValue, Snapshot, WatchBatch};

    fn entry(key: &str, value: &str) -> KeyValue {
        let value = value.as_bytes().to_vec();
        KeyValue { key: key.into(), value, create_revision: 1, mod_revision: 1, version: 1, lease: 0 }
    }

    fn show(changes: Vec<KeyChange>) -> Vec<(String, String)> {
        let text = |value: Option<Vec<u8>>| value.map_or("-".into(), |v| String::from_utf8(v).unwrap());
        changes.into_iter().map(|(key, value)| (key, text(value))).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_reset_tells_of_keys_that_vanished_unseen() {
        let mut diff = KeyDiff::default();
        let reset = |entries| MirrorEvent::Reset(Snapshot { revision: 1, entries });
        let first = diff.changes(reset(vec![entry("a", "1"), entry("b", "1")]));
        assert_eq!(show(first), pairs(&[("a", "1"), ("b", "1")]));
        let events = vec![WatchEvent::Put(entry("c", "1")), WatchEvent::Delete { key: "a".into(), revision: 3 }];
        let batch = diff.changes(MirrorEvent::Batch(WatchBatch { revision: 3, events }));
        assert_eq!(show(batch), pairs(&[("c", "1"), ("a", "-")]));
        let again = diff.changes(reset(vec![entry("a", "2"), entry("c", "1")]));
        assert_eq!(show(again), pairs(&[("b", "-"), ("a", "2"), ("c", "1")]));
    }
}
