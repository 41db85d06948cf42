//! The monitor. Stateless: it mirrors the cluster state, asks [`mon_core`] what must change, and writes that, if it is
//! the one that leads. Any number may run.
//!
//! Loss of all monitors, or of the state store, stops changes of membership, not I/O.

mod leader;
mod metrics;
mod monitor;
mod view;

use std::future::Future;
use std::sync::Arc;

use cluster_proto::map::ClusterMap;
use cluster_state::StateStore;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use view::View;

/// Settings of a monitor.
#[derive(Debug)]
pub struct MonConfig {
    /// Name under which it leads, for people; need not be unique.
    pub name: String,
    /// How long a dead leader blocks the next. Seconds, 1 to 60; 5 is a good value.
    pub lease_ttl_s: u32,
    /// Where to serve metrics (`GET /metrics`), if at all.
    pub metrics: Option<TcpListener>,
}

/// Why a monitor ended.
#[derive(Debug, thiserror::Error)]
pub enum MonError {
    /// The metrics port failed.
    #[error("cannot serve metrics: {0}")]
    Metrics(#[from] std::io::Error),
}

/// Runs a monitor until `shutdown` is ready, then gives up its leadership.
///
/// Outages of the store are waited out; they are no errors.
///
/// # Errors
/// See [`MonError`].
pub async fn run(
    store: Arc<dyn StateStore>,
    config: MonConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), MonError> {
    let (publish, latest) = watch::channel(Arc::new(ClusterMap::default()));
    let (elect, elected) = watch::channel(None);
    let candidate = leader::Candidate::new(store.clone(), config.name, config.lease_ttl_s, elect);
    let monitor = monitor::Monitor::new(store.clone(), elected.clone(), publish);
    let outcome = tokio::select! {
        () = shutdown => Ok(()),
        never = candidate.run() => match never {},
        never = monitor.run() => match never {},
        result = metrics::serve(config.metrics, store.clone(), latest, elected.clone()) => result,
    };
    let leading = *elected.borrow();
    if let Some(leading) = leading {
        leading.resign(&*store).await;
    }
    Ok(outcome?)
}
