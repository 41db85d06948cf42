//! Lets the state store forget its history. Real etcd keeps every value that ever was until somebody says so, and
//! statistics alone are some values per second; without this it is full after some weeks.

use std::convert::Infallible;
use std::time::Duration;

use cluster_proto::map::keys;
use cluster_state::{StateError, StateStore};
use tokio::time::sleep;

/// How much history stays at least: a watch that was away for less goes on where it was, others read everything again.
pub(crate) const KEEP: Duration = Duration::from_secs(120);

/// Compacts for ever, whenever this monitor `leads`.
pub(crate) async fn run(store: &dyn StateStore, leads: impl Fn() -> bool, keep: Duration) -> Infallible {
    let mut old = None;
    loop {
        sleep(keep).await;
        old = match turn(store, old.filter(|_| leads())).await {
            Ok(revision) => Some(revision),
            Err(error) => {
                tracing::debug!("the history of the state store was not compacted: {error}");
                None
            }
        };
    }
}

/// Forgets what was before revision `old`; returns the present one.
async fn turn(store: &dyn StateStore, old: Option<i64>) -> Result<i64, StateError> {
    if let Some(revision) = old {
        store.compact(revision).await?;
    }
    Ok(store.range(keys::LEADER).await?.revision)
}

#[cfg(test)]
mod tests {
    use cluster_state::{EmbeddedStore, Txn, WatchError};
    use tokio::time::timeout;

    use super::*;

    /// Whether the first revisions can still be watched after a while.
    async fn is_kept(leads: bool) -> bool {
        let store = EmbeddedStore::in_memory();
        for n in 0..10 {
            store.txn(Txn::new().put(format!("{}x", keys::STATS), format!("{n}"))).await.unwrap();
        }
        let _ = timeout(Duration::from_millis(300), run(&store, || leads, Duration::from_millis(10))).await;
        match store.watch(keys::STATS, 2).await {
            Ok(mut watch) => !matches!(watch.next().await, Err(WatchError::Compacted { .. })),
            Err(_) => false,
        }
    }

    #[tokio::test]
    async fn only_the_leader_lets_history_be_forgotten() {
        assert!(is_kept(false).await);
        assert!(!is_kept(true).await);
    }
}
