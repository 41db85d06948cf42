//! The parts of the cluster: the state store with its server, and a [`Node`] with all daemons.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster_proto::auth::Credentials;
use cluster_state::{EmbeddedStore, StateStore, serve_etcd};
use gateway::{GatewayOptions, GatewayStats};
use mon::MonConfig;
use osd::OsdOptions;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::bootstrap::Layout;
use super::directory::Directory;
use super::ports::Listeners;
use crate::error::CliError;
use crate::node::{Node, Task, adopt};

/// How long a dead process of this cluster is taken for alive. Seconds.
const LEASE_TTL_S: u32 = 5;
/// How long stopping may take in all.
const STOP_MAX: Duration = Duration::from_secs(10);

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
    metrics: Option<SocketAddr>,
    node: Node,
    nbd_socket: Option<PathBuf>,
    credentials: Option<Credentials>,
    busy_poll: Duration,
}

impl Parts {
    /// Nothing runs yet. `credentials`: the cluster's, if it has a key. `busy_poll`: how long OSDs and the gateway look for work before
    /// they sleep.
    pub fn new(credentials: Option<Credentials>, busy_poll: Duration) -> Self {
        Self { credentials, busy_poll, ..Self::default() }
    }

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
        self.node.start_osds(self.osds(directory, layout, &state)).await?;
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

    /// What the OSDs of the data directory are told.
    fn osds(&self, directory: &Directory, layout: &Layout, state: &Arc<dyn StateStore>) -> Vec<OsdOptions> {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = |id: &_| OsdOptions {
            lease_ttl_s: LEASE_TTL_S,
            busy_poll: self.busy_poll,
            credentials: self.credentials.clone(),
            ..OsdOptions::new(directory.osd(*id), *id, layout.cluster, listen, state.clone(), Handle::current())
        };
        layout.osds.iter().map(options).collect()
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
            busy_poll: self.busy_poll,
            credentials: self.credentials.clone(),
            ..GatewayOptions::new(layout.cluster, state.clone(), Handle::current())
        };
        self.node.start_gateway(options).await
    }

    fn start_monitor(&mut self, listener: std::net::TcpListener, state: Arc<dyn StateStore>) -> Result<(), CliError> {
        let (address, listener) = adopt("metrics", listener)?;
        let exports = self.node.exports();
        let config = MonConfig {
            name: format!("up-{}", std::process::id()),
            lease_ttl_s: LEASE_TTL_S,
            credentials: self.credentials.clone(),
            metrics: Some(listener),
            more_metrics: Some(Arc::new(move || exports.iter().map(|export| export()).collect())),
        };
        self.node.start_monitor(state, config);
        self.metrics = Some(address);
        Ok(())
    }

    /// Where everything serves. Only to be called when everything was started.
    pub fn serving(&self) -> Result<Serving, CliError> {
        let (Some((etcd, _)), Some(metrics), Some(gateway)) = (&self.etcd, self.metrics, &self.node.gateway) else {
            return Err(not_started());
        };
        let nbd = gateway.nbd_addresses().first().copied().ok_or_else(not_started)?;
        let (nbd_socket, stats) = (self.nbd_socket.clone(), gateway.stats_receiver());
        Ok(Serving { etcd: *etcd, metrics, nbd, nbd_socket, stats })
    }

    /// Waits until a part fails, and says which and why. Only to be called when everything was started.
    pub async fn failed(&mut self) -> CliError {
        let Some((_, etcd)) = &mut self.etcd else { return not_started() };
        let failure = tokio::select! {
            failure = etcd.failed("the state store") => failure,
            failure = self.node.failed() => failure,
        };
        CliError::failed(format!("the cluster stops, because {failure}"))
    }

    /// Stops everything: first who asks, then who answers.
    pub async fn stop(self) -> Result<(), CliError> {
        timeout(STOP_MAX, self.stop_in_order()).await.unwrap_or_else(|_| {
            Err(CliError::failed(format!("the cluster did not stop within {} s", STOP_MAX.as_secs())))
        })
    }

    async fn stop_in_order(self) -> Result<(), CliError> {
        let mut failures = self.node.stop().await;
        if let Some((_, task)) = self.etcd {
            failures.extend(task.stop().await.err().map(|why| format!("the state store failed: {why}")));
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
