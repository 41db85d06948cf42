//! The OSD's key in the cluster: where it listens, bound to a lease that ends soon after the OSD does.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster_proto::OsdId;
use cluster_proto::map::{OsdState, keys};
use cluster_state::{LeaseId, StateError, StateStore, Txn};
use tokio::time::{sleep, timeout};

/// Pause after a failure.
const RETRY: Duration = Duration::from_millis(500);
/// How long deregistering may take; after that the lease ends by itself.
const END_MAX: Duration = Duration::from_secs(1);

/// Keeps an OSD registered.
pub(crate) struct Registration {
    state: Arc<dyn StateStore>,
    id: OsdId,
    own: OsdState,
    ttl_s: u32,
    lease: Mutex<Option<LeaseId>>,
}

impl Registration {
    pub fn new(state: Arc<dyn StateStore>, id: OsdId, own: OsdState, ttl_s: u32) -> Self {
        Self { state, id, own, ttl_s, lease: Mutex::new(None) }
    }

    /// Registers, and again whenever the lease or the key was lost.
    pub async fn run(&self) -> Infallible {
        let ttl = Duration::from_secs(self.ttl_s.into());
        loop {
            match timeout(ttl, self.renew()).await {
                Ok(Ok(())) => sleep(ttl / 3).await,
                Ok(Err(error)) => {
                    // The mirrors report outages; one more message per attempt would say nothing new.
                    tracing::debug!(osd = self.id.0, "not registered for the moment: {error}");
                    sleep(RETRY).await;
                }
                Err(_) => tracing::debug!(osd = self.id.0, "the state store does not answer"),
            }
        }
    }

    /// Deregisters, so that others need not wait for the lease to end.
    pub async fn end(&self) {
        if let Some(lease) = self.take_lease()
            && !matches!(timeout(END_MAX, self.state.lease_revoke(lease)).await, Ok(Ok(())))
        {
            tracing::warn!(osd = self.id.0, "cannot deregister now; the lease of {} s does it", self.ttl_s);
        }
    }

    fn take_lease(&self) -> Option<LeaseId> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn keep_lease(&self, lease: LeaseId) {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = Some(lease);
    }

    async fn renew(&self) -> Result<(), StateError> {
        let held = *self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        let lease = match held {
            Some(lease) if self.state.lease_keep_alive(lease).await? => lease,
            _ => self.state.lease_grant(self.ttl_s).await?,
        };
        self.keep_lease(lease);
        let key = keys::osd(self.id);
        let found = self.state.get(&key).await?;
        let present = found.as_ref().and_then(|entry| serde_json::from_slice::<OsdState>(&entry.value).ok());
        if present.as_ref() == Some(&self.own) && found.is_some_and(|entry| entry.lease == lease.0) {
            return Ok(());
        }
        if held == Some(lease)
            && let Some(other) = present.filter(|other| other.incarnation != self.own.incarnation)
        {
            let address = other.address;
            tracing::error!(osd = self.id.0, %address, "somebody else registered as this OSD: stop one of the two");
        }
        let value = serde_json::to_vec(&self.own).unwrap_or_default();
        self.state.txn(Txn::new().put_leased(key, value, lease)).await?;
        tracing::info!(osd = self.id.0, address = %self.own.address, "registered");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::Incarnation;
    use cluster_state::EmbeddedStore;

    #[tokio::test]
    async fn a_lost_key_or_lease_is_replaced_and_the_end_removes_it() {
        let state = Arc::new(EmbeddedStore::in_memory());
        let own =
            OsdState { address: "127.0.0.1:1".parse().expect("address"), incarnation: Incarnation(5), started: 1 };
        let registration = Registration::new(state.clone(), OsdId(3), own.clone(), 5);
        let key = keys::osd(OsdId(3));
        let present = || async { state.get(&key).await.expect("memory").map(|entry| (entry.value, entry.lease)) };
        registration.renew().await.expect("memory");
        let first = present().await.expect("registered");
        assert_eq!(serde_json::from_slice::<OsdState>(&first.0).expect("JSON"), own);
        registration.renew().await.expect("memory");
        assert_eq!(present().await.as_ref(), Some(&first), "nothing to do");

        state.txn(Txn::new().delete(&key)).await.expect("memory");
        registration.renew().await.expect("memory");
        assert_eq!(present().await.as_ref(), Some(&first), "under the same lease");

        state.lease_revoke(LeaseId(first.1)).await.expect("memory");
        assert_eq!(present().await, None);
        registration.renew().await.expect("memory");
        assert_ne!(present().await.expect("registered").1, first.1, "under a new lease");

        registration.end().await;
        assert_eq!(present().await, None);
    }
}
