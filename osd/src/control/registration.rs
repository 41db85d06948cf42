//! The OSD's keys in the cluster, bound to a lease that ends soon after the OSD does: where it listens, and which others it
//! cannot reach.
//!
//! The shard is told each time that the registration was found: a primary that has not yet recorded its interval serves reads on the
//! strength of that, because nobody takes its place before the registration is withdrawn.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster_io::clock;
use cluster_proto::OsdId;
use cluster_proto::map::{Member, OsdState, Suspicion, keys};
use cluster_state::{LeaseId, StateError, StateStore, Txn};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::command::{Command, CommandSender};

/// Pause after a failure.
const RETRY: Duration = Duration::from_millis(500);
/// Longest pause between questions for our registration.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// How long deregistering may take; after that the lease ends by itself.
const END_MAX: Duration = Duration::from_secs(1);

/// Keeps an OSD registered.
pub(crate) struct Registration {
    state: Arc<dyn StateStore>,
    id: OsdId,
    own: OsdState,
    ttl_s: u32,
    suspects: watch::Receiver<Vec<Member>>,
    lease: Mutex<Option<LeaseId>>,
}

/// What was last reported of others, under which lease.
type Reported = Option<(LeaseId, Vec<Member>)>;

impl Registration {
    pub fn new(
        state: Arc<dyn StateStore>,
        id: OsdId,
        own: OsdState,
        ttl_s: u32,
        suspects: watch::Receiver<Vec<Member>>,
    ) -> Self {
        Self { state, id, own, ttl_s, suspects, lease: Mutex::new(None) }
    }

    /// Registers, and again whenever the lease or the key was lost; and reports whom the shard suspects.
    pub async fn run(&self, commands: &CommandSender) -> Infallible {
        let ttl = Duration::from_secs(self.ttl_s.into());
        let mut suspects = self.suspects.clone();
        let mut reported = None;
        loop {
            let pause = match timeout(ttl, self.turn(commands, &mut reported)).await {
                // What was just written is asked for at once.
                Ok(Ok(found)) => {
                    if found {
                        RENEW_EVERY.min(ttl / 3)
                    } else {
                        Duration::ZERO
                    }
                }
                Ok(Err(error)) => {
                    // The mirrors report outages; one more message per attempt would say nothing new.
                    tracing::debug!(osd = self.id.0, "not registered for the moment: {error}");
                    RETRY
                }
                Err(_) => {
                    tracing::debug!(osd = self.id.0, "the state store does not answer");
                    Duration::ZERO
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                // The shard's end of it ends with the shard, and then this task.
                Ok(()) = suspects.changed() => {}
            }
        }
    }

    async fn turn(&self, commands: &CommandSender, reported: &mut Reported) -> Result<bool, StateError> {
        let asked = clock::now_ms();
        let found = self.renew().await?;
        commands.send(if found { Command::Registered { asked } } else { Command::Unregistered }).await;
        self.report(reported).await?;
        Ok(found)
    }

    /// Writes whom we suspect, if that is not what is written.
    async fn report(&self, reported: &mut Reported) -> Result<(), StateError> {
        let Some(lease) = *self.lease.lock().unwrap_or_else(PoisonError::into_inner) else { return Ok(()) };
        let suspects = self.suspects.borrow().clone();
        let known = reported.as_ref().map_or((true, &[][..]), |(under, them)| (*under == lease, &them[..]));
        if known.1 == suspects && (known.0 || suspects.is_empty()) {
            return Ok(());
        }
        let key = keys::suspicion(self.id);
        let txn = match suspects.is_empty() {
            true => Txn::new().delete(key),
            false => {
                let report = Suspicion { incarnation: self.own.incarnation, suspects: suspects.clone() };
                Txn::new().put_leased(key, serde_json::to_vec(&report).unwrap_or_default(), lease)
            }
        };
        self.state.txn(txn).await?;
        if !suspects.is_empty() {
            tracing::info!(osd = self.id.0, ?suspects, "reported OSDs that cannot be reached");
        }
        *reported = Some((lease, suspects));
        Ok(())
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

    /// Keeps the lease and the key alive. False if the key was not there and has been written.
    async fn renew(&self) -> Result<bool, StateError> {
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
            return Ok(true);
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
        Ok(false)
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
        let (suspect, suspects) = watch::channel(Vec::new());
        let registration = Registration::new(state.clone(), OsdId(3), own.clone(), 5, suspects);
        let key = keys::osd(OsdId(3));
        let present = || async { state.get(&key).await.expect("memory").map(|entry| (entry.value, entry.lease)) };
        assert!(!registration.renew().await.expect("memory"), "it was not there");
        let first = present().await.expect("registered");
        assert_eq!(serde_json::from_slice::<OsdState>(&first.0).expect("JSON"), own);
        assert!(registration.renew().await.expect("memory"));
        assert_eq!(present().await.as_ref(), Some(&first), "nothing to do");

        state.txn(Txn::new().delete(&key)).await.expect("memory");
        registration.renew().await.expect("memory");
        assert_eq!(present().await.as_ref(), Some(&first), "under the same lease");

        state.lease_revoke(LeaseId(first.1)).await.expect("memory");
        assert_eq!(present().await, None);
        registration.renew().await.expect("memory");
        assert_ne!(present().await.expect("registered").1, first.1, "under a new lease");

        let report = || async { state.get(&keys::suspicion(OsdId(3))).await.expect("memory") };
        let mut reported = None;
        registration.report(&mut reported).await.expect("memory");
        assert!(report().await.is_none(), "nothing to report");
        suspect.send_replace(vec![Member { osd: OsdId(4), incarnation: Incarnation(8) }]);
        registration.report(&mut reported).await.expect("memory");
        let written: Suspicion = serde_json::from_slice(&report().await.expect("a report").value).expect("JSON");
        assert_eq!((written.incarnation, written.suspects.len()), (own.incarnation, 1));
        suspect.send_replace(Vec::new());
        registration.report(&mut reported).await.expect("memory");
        assert!(report().await.is_none());
        suspect.send_replace(written.suspects);
        registration.report(&mut reported).await.expect("memory");

        registration.end().await;
        assert_eq!((present().await, report().await), (None, None), "both end with the lease");
    }
}
