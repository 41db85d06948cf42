//! The parts of the cluster: starting them, noticing that one fails, stopping them in order.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster_state::{EmbeddedStore, StateStore, serve_etcd};
use futures::future::{join_all, select_all};
use gateway::{GatewayHandle, GatewayOptions, GatewayStats};
use mon::MonConfig;
use osd::{OsdHandle, OsdOptions};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::bootstrap::Layout;
use super::directory::Directory;
use super::ports::Listeners;
use crate::error::CliError;

/// How long a dead process of this cluster is taken for alive. Seconds.
const LEASE_TTL_S: u32 = 5;
/// How long stopping may take in all.
const STOP_MAX: Duration = Duration::from_secs(10);

/// A task of the control plane.
struct Task {
    stop: oneshot::Sender<()>,
    handle: JoinHandle<Result<(), String>>,
}

impl Task {
    /// Runs what `work` makes of a future that is ready when the task shall stop.
    fn spawn<F>(work: impl FnOnce(oneshot::Receiver<()>) -> F) -> Task
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        Task { stop, handle: tokio::spawn(work(stopped)) }
    }

    async fn stop(self) -> Result<(), String> {
        drop(self.stop);
        self.handle.await.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// Waits until it ends although nobody asked for that.
    async fn failed(&mut self, what: &str) -> CliError {
        let why = match (&mut self.handle).await {
            Ok(Ok(())) => "it ended".to_owned(),
            Ok(Err(why)) => why,
            Err(error) => error.to_string(),
        };
        CliError::failed(format!("{what} failed, so the cluster stops: {why}"))
    }
}

/// Where a started cluster serves.
pub struct Serving {
    /// The state store.
    pub etcd: SocketAddr,
    /// Metrics.
    pub metrics: SocketAddr,
    /// NBD over TCP.
    pub nbd: SocketAddr,
    /// NBD over a Unix socket.
    pub nbd_socket: Option<PathBuf>,
    /// What the gateway exports and does.
    pub stats: watch::Receiver<Arc<GatewayStats>>,
}

/// Everything that runs.
#[derive(Default)]
pub struct Parts {
    store: Option<EmbeddedStore>,
    etcd: Option<(SocketAddr, Task)>,
    monitor: Option<(SocketAddr, Task)>,
    osds: Vec<OsdHandle>,
    gateway: Option<GatewayHandle>,
    nbd_socket: Option<PathBuf>,
}

impl Parts {
    /// Opens the state store.
    pub async fn open_store(&mut self, directory: &Directory) -> Result<EmbeddedStore, CliError> {
        let path = directory.state();
        let opened = spawn_blocking(move || EmbeddedStore::open(path)).await;
        let store = opened.map_err(|e| CliError::failed(format!("opening the state store failed: {e}")))?;
        let store = store.map_err(|e| CliError::failed(e.to_string()))?;
        self.store = Some(store.clone());
        Ok(store)
    }

    /// Starts all but the state store, which is open.
    pub async fn start(
        &mut self,
        directory: &Directory,
        listeners: Listeners,
        layout: &Layout,
    ) -> Result<(), CliError> {
        let Some(store) = self.store.clone() else { return Err(CliError::failed("the state store is not open")) };
        let state: Arc<dyn StateStore> = Arc::new(store.clone());
        self.start_etcd(store, listeners.etcd)?;
        self.start_osds(directory, layout, &state).await?;
        self.start_gateway(directory, listeners.nbd, layout, &state).await?;
        self.start_monitor(listeners.metrics, state)
    }

    fn start_etcd(&mut self, store: EmbeddedStore, listener: std::net::TcpListener) -> Result<(), CliError> {
        let (address, listener) = adopt("the state store", listener)?;
        let task = Task::spawn(|stop| async move {
            serve_etcd(store, listener, async move { drop(stop.await) }).await.map_err(|e| e.to_string())
        });
        self.etcd = Some((address, task));
        Ok(())
    }

    /// Opens all stores at the same time.
    async fn start_osds(
        &mut self,
        directory: &Directory,
        layout: &Layout,
        state: &Arc<dyn StateStore>,
    ) -> Result<(), CliError> {
        let starting = layout.osds.iter().map(|id| {
            let listen = SocketAddr::from(([127, 0, 0, 1], 0));
            let path = directory.osd(*id);
            let options = OsdOptions {
                lease_ttl_s: LEASE_TTL_S,
                ..OsdOptions::new(path, *id, layout.cluster, listen, state.clone(), Handle::current())
            };
            spawn_blocking(move || osd::spawn(options))
        });
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

    async fn start_gateway(
        &mut self,
        directory: &Directory,
        nbd: SocketAddr,
        layout: &Layout,
        state: &Arc<dyn StateStore>,
    ) -> Result<(), CliError> {
        self.nbd_socket = directory.nbd_socket();
        let options = GatewayOptions {
            nbd_tcp: vec![nbd],
            nbd_unix: self.nbd_socket.iter().cloned().collect(),
            lease_ttl_s: LEASE_TTL_S,
            ..GatewayOptions::new(layout.cluster, state.clone(), Handle::current())
        };
        let started = spawn_blocking(move || gateway::spawn(options)).await;
        let started = started.map_err(|e| CliError::failed(format!("starting the gateway failed: {e}")))?;
        self.gateway = Some(started.map_err(|e| CliError::failed(e.to_string()))?);
        Ok(())
    }

    fn start_monitor(&mut self, listener: std::net::TcpListener, state: Arc<dyn StateStore>) -> Result<(), CliError> {
        let (address, listener) = adopt("metrics", listener)?;
        let stats = self.gateway.as_ref().map(GatewayHandle::stats_receiver);
        let more = move || stats.as_ref().map_or_else(String::new, |stats| stats.borrow().to_prometheus());
        let config = MonConfig {
            name: format!("up-{}", std::process::id()),
            lease_ttl_s: LEASE_TTL_S,
            metrics: Some(listener),
            more_metrics: Some(Arc::new(more)),
        };
        let task = Task::spawn(|stop| async move {
            mon::run(state, config, async move { drop(stop.await) }).await.map_err(|e| e.to_string())
        });
        self.monitor = Some((address, task));
        Ok(())
    }

    /// Where everything serves. Only to be called when everything was started.
    pub fn serving(&self) -> Result<Serving, CliError> {
        let (Some((etcd, _)), Some((metrics, _)), Some(gateway)) = (&self.etcd, &self.monitor, &self.gateway) else {
            return Err(not_started());
        };
        let nbd = gateway.nbd_addresses().first().copied().ok_or_else(not_started)?;
        let (nbd_socket, stats) = (self.nbd_socket.clone(), gateway.stats_receiver());
        Ok(Serving { etcd: *etcd, metrics: *metrics, nbd, nbd_socket, stats })
    }

    /// Waits until a part fails, and says which and why. Only to be called when everything was started.
    pub async fn failed(&mut self) -> CliError {
        let Parts { etcd, monitor, osds, gateway, .. } = self;
        let (Some((_, etcd)), Some((_, monitor)), Some(gateway)) = (etcd, monitor, gateway) else {
            return not_started();
        };
        let osd_failed = async |osd: &OsdHandle| (osd.id(), osd.failed().await);
        let osds = select_all(osds.iter().map(|osd| Box::pin(osd_failed(osd))));
        tokio::select! {
            failure = etcd.failed("the state store") => failure,
            failure = monitor.failed("the monitor") => failure,
            ((id, why), _, _) = osds => CliError::failed(format!("OSD {id} failed, so the cluster stops: {why}")),
            why = gateway.failed() => CliError::failed(format!("the gateway failed, so the cluster stops: {why}")),
        }
    }

    /// Stops everything: first who asks, then who answers.
    pub async fn stop(self) -> Result<(), CliError> {
        timeout(STOP_MAX, self.stop_in_order()).await.unwrap_or_else(|_| {
            Err(CliError::failed(format!("the cluster did not stop within {} s", STOP_MAX.as_secs())))
        })
    }

    async fn stop_in_order(self) -> Result<(), CliError> {
        let mut failures = Vec::new();
        if let Some(gateway) = self.gateway {
            gateway.stop();
            failures.extend(joined("the gateway", spawn_blocking(move || gateway.join())).await);
        }
        self.osds.iter().for_each(OsdHandle::stop);
        let ending = self.osds.into_iter().map(|osd| joined("an OSD", spawn_blocking(move || osd.join())));
        failures.extend(join_all(ending).await.into_iter().flatten());
        for (what, task) in [("the monitor", self.monitor), ("the state store", self.etcd)] {
            if let Some((_, task)) = task {
                failures.extend(task.stop().await.err().map(|why| format!("{what} failed: {why}")));
            }
        }
        if let Some(store) = self.store {
            store.close().await;
        }
        match failures.is_empty() {
            true => Ok(()),
            false => Err(CliError::failed(failures.join("; "))),
        }
    }
}

fn not_started() -> CliError {
    CliError::failed("the cluster is not started")
}

/// Makes a listener part of the runtime.
fn adopt(what: &str, listener: std::net::TcpListener) -> Result<(SocketAddr, TcpListener), CliError> {
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
