//! Follows pools, images and export entries, and tells the thread what has changed of the exports.

use std::sync::Arc;

use blockyard_client::feed::{KeyChange, KeyDiff};
use cluster_io::Waker;
use cluster_proto::map::keys;
use cluster_state::{Mirror, StateStore, watch_forever};
use tokio::sync::mpsc;

use crate::catalog::{Catalog, ExportChange};

/// Ranges that exports are made of.
const RANGES: [&str; 3] = [keys::CONFIG, keys::IMAGES, keys::EXPORTS];

/// One followed range.
struct Range {
    mirror: Mirror,
    diff: KeyDiff,
}

impl Range {
    fn new(state: &Arc<dyn StateStore>, prefix: &str) -> Self {
        Self { mirror: watch_forever(state.clone(), prefix), diff: KeyDiff::default() }
    }

    /// Cancel-safe, as the mirror is.
    async fn next(&mut self) -> Vec<KeyChange> {
        let event = self.mirror.next().await;
        self.diff.changes(event)
    }
}

/// Runs until the thread has ended.
pub(crate) async fn follow(state: Arc<dyn StateStore>, sender: mpsc::Sender<Vec<ExportChange>>, waker: Waker) {
    let mut catalog = Catalog::default();
    let [mut config, mut images, mut entries] = RANGES.map(|prefix| Range::new(&state, prefix));
    // Each range once before anything is told, so that the first exports are all of them.
    for range in [&mut config, &mut images, &mut entries] {
        take(&mut catalog, range.next().await);
    }
    loop {
        let changes = catalog.changes();
        if !changes.is_empty() && sender.send(changes).await.is_err() {
            return;
        }
        waker.wake();
        let changes = tokio::select! {
            changes = config.next() => changes,
            changes = images.next() => changes,
            changes = entries.next() => changes,
        };
        take(&mut catalog, changes);
    }
}

fn take(catalog: &mut Catalog, changes: Vec<KeyChange>) {
    for (key, value) in changes {
        if let Err(error) = catalog.apply(&key, value.as_deref()) {
            tracing::error!("ignored a bad value in the cluster state: {error}");
        }
    }
}
