//! The daemons of one process: starting them, noticing that one fails, stopping them in order. `blockyard up` runs all of
//! them, `osd run`, `mon` and `gateway` some; it is the same code, and they know each other through the state store and
//! sockets only.
//!
//! The calling thread runs the control plane of all of them; each OSD and the gateway have a thread of their own.

mod metrics;
pub mod notify;
pub mod run;
pub mod signals;
mod task;

use std::net::SocketAddr;
use std::sync::Arc;

use cluster_state::StateStore;
use futures::future::{join_all, select_all};
use gateway::{GatewayHandle, GatewayOptions};
use mon::MonConfig;
use osd::{OsdHandle, OsdOptions};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::error::CliError;
pub use metrics::Exports;
pub use task::Task;

/// What runs.
#[derive(Default)]
pub struct Node {
    /// OSDs.
    pub osds: Vec<OsdHandle>,
    /// The gateway, if there is one here.
    pub gateway: Option<GatewayHandle>,
    monitor: Option<Task>,
    metrics: Option<Task>,
}

impl Node {
    /// Starts OSDs, all stores at the same time.
    pub async fn start_osds(&mut self, osds: Vec<OsdOptions>) -> Result<(), CliError> {
        let starting = osds.into_iter().map(|options| spawn_blocking(move || osd::spawn(options)));
        let mut failure = None;
        for started in join_all(starting).await {
            match started {
                Ok(Ok(osd)) => self.osds.push(osd),
                Ok(Err(error)) => failure = failure.or(Some(error.to_string())),
                Err(error) => failure = failure.or(Some(error.to_string())),
            }
        }
        failure.map_or(Ok(()), |why| Err(CliError::failed(why)))
    }

    /// Starts a gateway.
    pub async fn start_gateway(&mut self, options: GatewayOptions) -> Result<(), CliError> {
        let started = spawn_blocking(move || gateway::spawn(options)).await;
        let started = started.map_err(|e| CliError::failed(format!("starting the gateway failed: {e}")))?;
        self.gateway = Some(started.map_err(|e| CliError::failed(e.to_string()))?);
        Ok(())
    }

    /// Starts a monitor.
    pub fn start_monitor(&mut self, state: Arc<dyn StateStore>, config: MonConfig) {
        self.monitor = Some(Task::spawn(|stop| async move {
            mon::run(state, config, async move { drop(stop.await) }).await.map_err(|e| e.to_string())
        }));
    }

    /// Serves metrics of what runs here.
    pub fn start_metrics(&mut self, listener: TcpListener, exports: Exports) {
        self.metrics = Some(Task::spawn(|stop| async move {
            tokio::select! {
                _ = stop => Ok(()),
                served = metrics::serve(listener, exports) => served.map_err(|e| e.to_string()),
            }
        }));
    }

    /// Makers of the metrics of OSDs and gateway.
    pub fn exports(&self) -> Exports {
        let mut exports: Exports = Vec::new();
        if !self.osds.is_empty() {
            let osds: Vec<_> = self.osds.iter().map(|osd| (osd.id(), osd.live_receiver())).collect();
            exports.push(Arc::new(move || {
                let now: Vec<_> = osds.iter().map(|(id, live)| (*id, live.borrow().clone())).collect();
                osd::to_prometheus(&now)
            }));
        }
        if let Some(gateway) = &self.gateway {
            let stats = gateway.stats_receiver();
            exports.push(Arc::new(move || stats.borrow().to_prometheus()));
        }
        exports
    }

    /// Waits until something fails, and says what and why.
    pub async fn failed(&mut self) -> CliError {
        let Node { osds, gateway, monitor, metrics } = self;
        let osd_failed = async |osd: &OsdHandle| (osd.id(), osd.failed().await);
        let osds = async {
            match osds.is_empty() {
                true => std::future::pending().await,
                false => select_all(osds.iter().map(|osd| Box::pin(osd_failed(osd)))).await.0,
            }
        };
        let gateway = async {
            match gateway {
                Some(gateway) => gateway.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            (id, why) = osds => CliError::failed(format!("OSD {id} failed: {why}")),
            why = gateway => CliError::failed(format!("the gateway failed: {why}")),
            failure = task_failed(monitor, "the monitor") => failure,
            failure = task_failed(metrics, "serving metrics") => failure,
        }
    }

    /// Stops everything: first who asks, then who answers.
    pub async fn stop(self) -> Vec<String> {
        let mut failures = Vec::new();
        if let Some(gateway) = self.gateway {
            gateway.stop();
            failures.extend(joined("the gateway", spawn_blocking(move || gateway.join())).await);
        }
        self.osds.iter().for_each(OsdHandle::stop);
        let ending = self.osds.into_iter().map(|osd| joined("an OSD", spawn_blocking(move || osd.join())));
        failures.extend(join_all(ending).await.into_iter().flatten());
        for (what, task) in [("the monitor", self.monitor), ("serving metrics", self.metrics)] {
            if let Some(task) = task {
                failures.extend(task.stop().await.err().map(|why| format!("{what} failed: {why}")));
            }
        }
        failures
    }
}

/// Waits until a task fails; for ever if there is none.
async fn task_failed(task: &mut Option<Task>, what: &str) -> CliError {
    match task {
        Some(task) => task.failed(what).await,
        None => std::future::pending().await,
    }
}

/// Makes a listener part of the runtime.
pub fn adopt(what: &str, listener: std::net::TcpListener) -> Result<(SocketAddr, TcpListener), CliError> {
    let adopt = || Ok((listener.local_addr()?, TcpListener::from_std(listener)?));
    adopt().map_err(|e: std::io::Error| CliError::failed(format!("cannot serve {what}: {e}")))
}

/// Why a thread did not end well, if it did not.
async fn joined<E: std::fmt::Display>(what: &str, ending: JoinHandle<Result<(), E>>) -> Option<String> {
    match ending.await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(error) => Some(format!("{what} failed: {error}")),
    }
}
