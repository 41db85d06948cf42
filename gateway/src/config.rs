//! Settings of one gateway, and the bounds of its driver.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster_proto::Uuid;
use cluster_proto::auth::Credentials;
use cluster_state::StateStore;

use crate::error::{Error, ErrorKind};

/// Received bytes that a session is given at once. Bytes.
pub(crate) const SLICE_MAX: usize = 256 << 10;
/// Output that waits for a slow client before nothing more is read from it. Bytes.
pub(crate) const SEND_QUEUE_MAX: usize = 4 << 20;
/// Data of writes under way in the whole gateway before nothing more is read from anybody. Bytes.
pub(crate) const WRITE_BYTES_MAX: usize = 512 << 20;
/// Largest read or write that clients are told they may send. Bytes.
pub(crate) const TRANSFER_MAX: u32 = 32 << 20;
/// Smallest write that needs no read before it. Bytes.
pub(crate) const PREFERRED_BLOCK: u32 = 4096;
/// Batches of changed exports on their way to the thread.
pub(crate) const CHANGES_MAX: usize = 64;
/// How often statistics are published while there is something new. Milliseconds.
pub(crate) const PUBLISH_MS: u64 = 1_000;

const _: () = assert!(SEND_QUEUE_MAX >= cluster_io::SEND_QUIET_MAX);

/// What a gateway is told at start.
#[derive(Clone)]
pub struct GatewayOptions {
    /// TCP addresses on which NBD is served; port 0 means any free one.
    pub nbd_tcp: Vec<SocketAddr>,
    /// Unix sockets on which NBD is served.
    pub nbd_unix: Vec<PathBuf>,
    /// The cluster.
    pub cluster: Uuid,
    /// The cluster's key, if it has one.
    pub credentials: Option<Credentials>,
    /// The cluster state.
    pub state: Arc<dyn StateStore>,
    /// Where the control plane runs. It must have time enabled and outlive the gateway.
    pub runtime: tokio::runtime::Handle,
    /// Connections served at once, 1 to 65,536; more are accepted and closed. Default 1024.
    pub connections_max: usize,
    /// How long requests under way may take to end when the gateway stops. Default 2 s.
    pub stop_timeout: Duration,
    /// How long it then waits until what was answered in lazy pools is durable. Default 10 s.
    pub sync_timeout: Duration,
    /// How long others take a dead gateway for alive. Seconds, 1 to 60; default 5.
    pub lease_ttl_s: u32,
    /// How long the gateway looks for work before it sleeps: latency for processor time. At most 1 s; default 0.
    pub busy_poll: Duration,
}

impl GatewayOptions {
    /// The defaults of everything that has one; no listeners yet.
    pub fn new(cluster: Uuid, state: Arc<dyn StateStore>, runtime: tokio::runtime::Handle) -> Self {
        Self {
            nbd_tcp: Vec::new(),
            nbd_unix: Vec::new(),
            cluster,
            credentials: None,
            state,
            runtime,
            connections_max: 1024,
            stop_timeout: Duration::from_secs(2),
            sync_timeout: Duration::from_secs(10),
            lease_ttl_s: 5,
            busy_poll: Duration::ZERO,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let invalid = |text: String| Err(Error::new(ErrorKind::Invalid, text));
        if !(1..=60).contains(&self.lease_ttl_s) {
            return invalid(format!("the lease lasts {} s: give 1 to 60", self.lease_ttl_s));
        }
        if self.busy_poll > Duration::from_secs(1) {
            return invalid(format!("it polls for {:?} before it sleeps: give at most 1 s", self.busy_poll));
        }
        if !(1..=65_536).contains(&self.connections_max) {
            return invalid(format!("{} connections: give 1 to 65536", self.connections_max));
        }
        if self.nbd_tcp.is_empty() && self.nbd_unix.is_empty() {
            return invalid("the gateway has nothing to listen on: give an address or a socket".into());
        }
        Ok(())
    }
}
