//! Election: whoever creates the leader key, bound to its lease, leads until the key is gone.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use cluster_proto::map::keys;
use cluster_state::{Compare, LeaseId, StateError, StateStore, Txn};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Pause after a failure.
const RETRY: Duration = Duration::from_millis(500);
/// How long a resignation may take; after that the lease ends by itself.
const RESIGN_MAX: Duration = Duration::from_secs(1);

/// Proof of leadership: only valid while the leader key exists as it was created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leading {
    lease: LeaseId,
    revision: i64,
}

impl Leading {
    /// The condition that every write of a leader carries: so a deposed leader cannot write.
    pub fn condition(self) -> Compare {
        Compare::CreateRevision { key: keys::LEADER.into(), revision: self.revision }
    }

    /// Lets another monitor lead at once.
    pub async fn resign(self, store: &dyn StateStore) {
        if !matches!(timeout(RESIGN_MAX, store.lease_revoke(self.lease)).await, Ok(Ok(()))) {
            tracing::warn!("the leadership could not be given up; it ends with its lease");
        }
    }
}

/// Wants to lead, for ever.
pub(crate) struct Candidate {
    store: Arc<dyn StateStore>,
    name: String,
    ttl_s: u32,
    elect: watch::Sender<Option<Leading>>,
}

impl Candidate {
    pub fn new(store: Arc<dyn StateStore>, name: String, ttl_s: u32, elect: watch::Sender<Option<Leading>>) -> Self {
        Self { store, name, ttl_s: ttl_s.clamp(1, 60), elect }
    }

    /// Campaigns, leads while the lease lasts, and campaigns again.
    pub async fn run(self) -> Infallible {
        let mut lease = None;
        loop {
            if let Err(error) = self.turn(&mut lease).await {
                // The mirror reports outages; one more message per turn would say nothing new.
                tracing::debug!("no election for the moment: {error}");
                self.elect.send_replace(None);
                sleep(RETRY).await;
            }
        }
    }

    async fn turn(&self, lease: &mut Option<LeaseId>) -> Result<(), StateError> {
        let held = match *lease {
            Some(id) if self.store.lease_keep_alive(id).await? => id,
            _ => self.store.lease_grant(self.ttl_s).await?,
        };
        *lease = Some(held);
        match self.campaign(held).await? {
            Some(leading) => {
                tracing::info!("monitor {} leads", self.name);
                self.elect.send_replace(Some(leading));
                let end = self.lead(leading).await;
                tracing::warn!("monitor {} leads no longer", self.name);
                self.elect.send_replace(None);
                end
            }
            None => self.await_vacancy(held).await,
        }
    }

    /// Tries to create the leader key.
    async fn campaign(&self, lease: LeaseId) -> Result<Option<Leading>, StateError> {
        let txn = Txn::new()
            .when(Compare::Absent(keys::LEADER.into()))
            .put_leased(keys::LEADER, self.name.as_bytes(), lease)
            .or_read(keys::LEADER);
        let result = self.store.txn(txn).await?;
        if result.succeeded {
            return Ok(Some(Leading { lease, revision: result.revision }));
        }
        // After an answer that was lost the key may be ours.
        let own = result.read.into_iter().flatten().next().filter(|entry| entry.lease == lease.0);
        Ok(own.map(|entry| Leading { lease, revision: entry.create_revision }))
    }

    /// Keeps the lease alive; returns when it has ended or the key is gone.
    async fn lead(&self, leading: Leading) -> Result<(), StateError> {
        loop {
            sleep(self.beat()).await;
            if !self.keep_alive(leading.lease).await? {
                return Ok(());
            }
            let key = self.store.get(keys::LEADER).await?;
            if key.is_none_or(|entry| entry.create_revision != leading.revision) {
                return Ok(());
            }
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<bool, StateError> {
        // An outage shorter than the lease must not cost the leadership.
        for _ in 0..3 {
            if let Ok(alive) = self.store.lease_keep_alive(lease).await {
                return Ok(alive);
            }
            sleep(RETRY.min(self.beat())).await;
        }
        self.store.lease_keep_alive(lease).await
    }

    /// Waits until the leader key may be gone.
    async fn await_vacancy(&self, lease: LeaseId) -> Result<(), StateError> {
        loop {
            let Some(leader) = self.store.get(keys::LEADER).await? else { return Ok(()) };
            let mut watch = self.store.watch(keys::LEADER, leader.mod_revision + 1).await?;
            // Whatever the watch says (a change, or that it broke), the key is looked at again.
            let _ = timeout(self.beat(), watch.next()).await;
            if !self.store.lease_keep_alive(lease).await? {
                return Ok(());
            }
        }
    }

    fn beat(&self) -> Duration {
        Duration::from_millis(u64::from(self.ttl_s) * 1000 / 3)
    }
}
