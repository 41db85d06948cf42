//! The monitor. Stateless: it mirrors the cluster state, asks [`mon_core`] what must change, and writes that, if it is
//! the one that leads. Any number may run.
//!
//! Loss of all monitors, or of the state store, stops changes of membership, not I/O.

mod absence;
mod compaction;
mod leader;
mod metrics;
mod monitor;
pub mod probe;
mod view;

use std::future::Future;
use std::sync::Arc;

use cluster_proto::auth::Credentials;
use cluster_proto::map::ClusterMap;
use cluster_state::StateStore;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use view::{View, add_scrubbed};

/// Settings of a monitor.
pub struct MonConfig {
    /// Name under which it leads, for people; need not be unique.
    pub name: String,
    /// How long a dead leader blocks the next. Seconds, 1 to 60; 5 is a good value.
    pub lease_ttl_s: u32,
    /// The cluster's key, if it has one: what probes prove themselves with.
    pub credentials: Option<Credentials>,
    /// Where to serve metrics (`GET /metrics`), if at all.
    pub metrics: Option<TcpListener>,
    /// Metrics of other parts of the same process, to be served along: text in Prometheus' format, made at each scrape.
    pub more_metrics: Option<MoreMetrics>,
}

/// Makes further metrics.
pub type MoreMetrics = Arc<dyn Fn() -> String + Send + Sync>;

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
    let monitor = monitor::Monitor::new(store.clone(), config.credentials, elected.clone(), publish);
    let source = metrics::Source { store: store.clone(), latest, elected: elected.clone(), more: config.more_metrics };
    let outcome = tokio::select! {
        () = shutdown => Ok(()),
        never = candidate.run() => match never {},
        never = monitor.run() => match never {},
        never = compaction::run(&*store, || elected.borrow().is_some(), compaction::KEEP) => match never {},
        result = metrics::serve(config.metrics, source) => result,
    };
    let leading = *elected.borrow();
    if let Some(leading) = leading {
        leading.resign(&*store).await;
    }
    Ok(outcome?)
}
