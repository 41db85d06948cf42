//! Starting a gateway, watching it, and ending it.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc as blocking};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use blockyard_client::driver::ClientDriver;
use blockyard_client::feed::MapFeed;
use cluster_client::ClientOptions;
use cluster_io::{Reactor, ReactorConfig, Waker, entropy};
use cluster_proto::map::GatewayState;
use cluster_proto::{ClientId, Incarnation};
use tokio::sync::{mpsc, watch};

use crate::catalog::ExportChange;
use crate::config::{CHANGES_MAX, GatewayOptions};
use crate::control::{Control, Registration};
use crate::driver::{Bounds, Channels, Listeners, Worker};
use crate::error::{Error, ErrorKind};
use crate::metrics::GatewayStats;

/// How long [`GatewayHandle::join`] waits for the control plane to deregister.
const DEREGISTER_MAX: Duration = Duration::from_secs(3);

/// How a gateway ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// As asked for.
    Stopped,
    /// It met a fault of its own. Restarting it is worth a try.
    Failed(Error),
}

/// A running gateway. Dropping the handle stops the gateway without waiting for it.
#[derive(Debug)]
pub struct GatewayHandle {
    nbd_addresses: Vec<SocketAddr>,
    incarnation: Incarnation,
    stop_max: Duration,
    stop: watch::Sender<bool>,
    waker: Waker,
    stats: watch::Receiver<Arc<GatewayStats>>,
    end: watch::Receiver<Option<End>>,
    thread: Option<JoinHandle<()>>,
    deregistered: blocking::Receiver<()>,
}

/// What the thread needs to begin.
struct Setup {
    options: GatewayOptions,
    incarnation: Incarnation,
    exports: mpsc::Receiver<Vec<ExportChange>>,
    stop: watch::Receiver<bool>,
    stats: watch::Sender<Arc<GatewayStats>>,
}

/// What the thread tells when it serves.
struct Ready {
    nbd_addresses: Vec<SocketAddr>,
    waker: Waker,
}

/// Starts to listen and to follow the cluster. Returns as soon as it listens; blocks for that moment. The state store need
/// not be reachable, but without having seen it there are no exports: [`GatewayHandle::wait_export`] waits for one.
///
/// # Errors
/// Everything that keeps the gateway from starting, as a sentence that says what to do; see [`ErrorKind`].
pub fn spawn(options: GatewayOptions) -> Result<GatewayHandle, Error> {
    options.validate()?;
    let incarnation = Incarnation(entropy::random_u64()?.max(1));
    let (stop, stopped) = watch::channel(false);
    let (publish, stats) = watch::channel(Arc::new(GatewayStats::default()));
    let (ended, end) = watch::channel(None);
    let (changes, exports) = mpsc::channel(CHANGES_MAX);
    let setup = Setup { options: options.clone(), incarnation, exports, stop: stopped.clone(), stats: publish };
    let (tell, told) = blocking::sync_channel(1);
    let thread = thread::Builder::new()
        .name("gateway".into())
        .spawn(move || run_thread(setup, &tell, &ended))
        .map_err(|e| Error::new(ErrorKind::System, format!("cannot start a thread for the gateway: {e}")))?;
    let ready = told.recv().unwrap_or_else(|_| Err(panicked()))?;
    let unix = options.nbd_unix.iter().map(|path| format!("unix:{}", path.display()));
    let nbd = ready.nbd_addresses.iter().map(SocketAddr::to_string).chain(unix).collect();
    let stop_max = options.stop_timeout + options.sync_timeout + DEREGISTER_MAX;
    let registration = Registration::new(options.state.clone(), GatewayState { nbd, incarnation }, options.lease_ttl_s);
    let (deregister, deregistered) = blocking::sync_channel(1);
    let control = Control { state: options.state, changes, waker: ready.waker.clone(), registration };
    options.runtime.spawn(control.run(stopped, end.clone(), deregister));
    Ok(GatewayHandle {
        nbd_addresses: ready.nbd_addresses,
        incarnation,
        stop_max,
        stop,
        waker: ready.waker,
        stats,
        end,
        thread: Some(thread),
        deregistered,
    })
}

/// The whole life of the gateway's thread.
fn run_thread(setup: Setup, ready: &blocking::SyncSender<Result<Ready, Error>>, ended: &watch::Sender<Option<End>>) {
    let life = || match open(setup) {
        Ok((worker, serves)) => {
            let _ = ready.send(Ok(serves));
            worker.run()
        }
        Err(error) => {
            // Without a listener `spawn` has been left; then nobody wants to know.
            let _ = ready.send(Err(error));
            Ok(())
        }
    };
    let end = match catch_unwind(AssertUnwindSafe(life)) {
        Ok(Ok(())) => End::Stopped,
        Ok(Err(error)) => End::Failed(error),
        Err(_) => End::Failed(panicked()),
    };
    if let End::Failed(error) = &end {
        tracing::error!("the gateway has ended: {error}");
    }
    ended.send_replace(Some(end));
}

fn open(setup: Setup) -> Result<(Worker, Ready), Error> {
    let Setup { options, incarnation, exports, stop, stats } = setup;
    let mut io = Reactor::new(ReactorConfig { receive_buffer_bytes: 64 << 10, ..ReactorConfig::default() })?;
    io.set_busy_poll(options.busy_poll);
    let listeners = Listeners::open(&mut io, &options)?;
    let ready = Ready { nbd_addresses: listeners.nbd_addresses.clone(), waker: io.waker() };
    let map = MapFeed::spawn(&options.runtime, options.state, io.waker());
    // A client of its own: its number must not be that of any other, and the incarnation is as random as can be.
    let client = ClientOptions {
        id: ClientId(incarnation.0),
        cluster: options.cluster,
        credentials: options.credentials.clone(),
    };
    let channels = Channels { map, exports, stop, stats };
    let GatewayOptions { connections_max, stop_timeout, sync_timeout, .. } = options;
    let bounds = Bounds { connections_max, stop_timeout, sync_timeout };
    Ok((Worker::new(io, ClientDriver::new(client), listeners, channels, bounds), ready))
}

fn panicked() -> Error {
    Error::new(ErrorKind::Broken, "the gateway met a fault of its own (the log has a panic message): restart it")
}

impl GatewayHandle {
    /// Where NBD is served over TCP, in the order of the options, with the ports that were chosen.
    pub fn nbd_addresses(&self) -> &[SocketAddr] {
        &self.nbd_addresses
    }

    /// This run of it; also its key under `gateway/` in the cluster state.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// What it has done, as of about a second ago.
    pub fn stats(&self) -> Arc<GatewayStats> {
        self.stats.borrow().clone()
    }

    /// The same, to keep: it goes on to be updated, and shows the last state after the gateway's end.
    pub fn stats_receiver(&self) -> watch::Receiver<Arc<GatewayStats>> {
        self.stats.clone()
    }

    /// Waits until there is an export of this name. Never ready if the gateway ends before.
    pub async fn wait_export(&self, name: &str) {
        let mut stats = self.stats.clone();
        if stats.wait_for(|stats| stats.names.contains(name)).await.is_err() {
            std::future::pending().await
        }
    }

    /// Begins to stop: takes no more connections and requests, lets those under way end for a while, and deregisters. See
    /// [`join`](Self::join).
    pub fn stop(&self) {
        self.stop.send_replace(true);
        self.waker.wake();
    }

    /// How long stopping may take: requests under way, what is to be made durable, the state store.
    pub fn stop_max(&self) -> Duration {
        self.stop_max
    }

    /// How it ended, if it has.
    pub fn end(&self) -> Option<End> {
        self.end.borrow().clone()
    }

    /// Waits until it fails, and says why. Never ready if it stops as asked for.
    pub async fn failed(&self) -> Error {
        let mut end = self.end.clone();
        if let Ok(end) = end.wait_for(|end| matches!(end, Some(End::Failed(_)))).await
            && let Some(End::Failed(error)) = &*end
        {
            return error.clone();
        }
        std::future::pending().await
    }

    /// Waits for the end after [`stop`](Self::stop) or a failure; blocks. The ports are free afterwards.
    ///
    /// # Errors
    /// Why it failed.
    pub fn join(mut self) -> Result<(), Error> {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            return Err(panicked());
        }
        // If the runtime is gone the lease ends by itself.
        let _ = self.deregistered.recv_timeout(DEREGISTER_MAX);
        match self.end() {
            Some(End::Failed(error)) => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for GatewayHandle {
    fn drop(&mut self) {
        self.stop();
    }
}
