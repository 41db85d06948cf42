//! Keeps the gateway's key in the cluster state, bound to a lease. I/O does not depend on it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use cluster_proto::map::{GatewayState, keys};
use cluster_state::{LeaseId, StateError, StateStore, Txn};
use tokio::time::{sleep, timeout};

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// How long the end may take.
const END_MAX: Duration = Duration::from_secs(2);

/// The gateway's place in the cluster state.
pub(crate) struct Registration {
    state: Arc<dyn StateStore>,
    key: String,
    value: GatewayState,
    lease_ttl_s: u32,
    lease: Option<LeaseId>,
}

impl Registration {
    pub(crate) fn new(state: Arc<dyn StateStore>, value: GatewayState, lease_ttl_s: u32) -> Self {
        let key = format!("{}{}", keys::GATEWAYS, value.incarnation);
        Self { state, key, value, lease_ttl_s, lease: None }
    }

    /// Registers, and again whenever the lease is lost, until the future is dropped.
    pub(crate) async fn keep(&mut self) -> Infallible {
        let mut failing = false;
        loop {
            let pause = match self.renew().await {
                Ok(()) => {
                    failing = false;
                    Duration::from_secs(self.lease_ttl_s.into()) / 3
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!("the gateway is not registered for the moment: {error}");
                    }
                    failing = true;
                    RETRY
                }
            };
            sleep(pause).await;
        }
    }

    async fn renew(&mut self) -> Result<(), StateError> {
        if let Some(lease) = self.lease {
            if self.state.lease_keep_alive(lease).await? {
                return Ok(());
            }
            self.lease = None;
        }
        let lease = self.state.lease_grant(self.lease_ttl_s).await?;
        // A plain struct of texts and numbers has a JSON form.
        let value = serde_json::to_vec(&self.value).unwrap_or_default();
        self.state.txn(Txn::new().put_leased(self.key.clone(), value, lease)).await?;
        self.lease = Some(lease);
        Ok(())
    }

    /// Deregisters, if the store answers in time; otherwise the lease ends by itself.
    pub(crate) async fn end(&mut self) {
        if let Some(lease) = self.lease.take()
            && !matches!(timeout(END_MAX, self.state.lease_revoke(lease)).await, Ok(Ok(())))
        {
            tracing::debug!("the gateway's registration is left to its lease");
        }
    }
}
