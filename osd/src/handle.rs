//! Starting an OSD, watching it, and ending it.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc as blocking;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster_io::{Waker, entropy};
use cluster_proto::map::OsdState;
use cluster_proto::{Incarnation, OsdId};
use tokio::sync::{mpsc, watch};

use crate::activations::{ActivationRequest, Activations};
use crate::command::CommandSender;
use crate::control::{Control, Registration};
use crate::live::Live;
use crate::options::OsdOptions;
use crate::shard::{Shard, ShardSetup};
use crate::{Error, ErrorKind};

/// Batches of cluster state on their way to the shard.
const COMMANDS_MAX: usize = 64;
/// Activation records on their way to the control plane.
const ACTIVATIONS_MAX: usize = 256;
/// How long [`OsdHandle::join`] waits for the control plane to deregister.
const DEREGISTER_MAX: Duration = Duration::from_secs(3);

/// How an OSD ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// As asked for; everything acknowledged is on the device and recorded.
    Stopped,
    /// Its device failed or it met a fault of its own. Restarting it is worth a try.
    Failed(Error),
}

/// A running OSD. Dropping the handle stops the OSD without waiting for it.
#[derive(Debug)]
pub struct OsdHandle {
    id: OsdId,
    address: SocketAddr,
    incarnation: Incarnation,
    stop: watch::Sender<bool>,
    waker: Waker,
    live: watch::Receiver<Live>,
    end: watch::Receiver<Option<End>>,
    thread: Option<JoinHandle<()>>,
    deregistered: blocking::Receiver<()>,
}

/// What the thread tells when it serves.
struct Ready {
    address: SocketAddr,
    waker: Waker,
}

/// Opens the store, starts listening and registers with the cluster. Returns when the OSD serves, which may take
/// seconds if a large store has much to replay; blocks meanwhile. The state store need not be reachable.
///
/// # Errors
/// Everything that keeps the OSD from starting, as a sentence that says what to do; see [`ErrorKind`].
pub fn spawn(options: OsdOptions) -> Result<OsdHandle, Error> {
    options.validate()?;
    let id = options.id;
    let incarnation = Incarnation(entropy::random_u64()?);
    let (stop, stopped) = watch::channel(false);
    let (publish, live) = watch::channel(Live::default());
    let (ended, end) = watch::channel(None);
    let (commands, from_control) = mpsc::channel(COMMANDS_MAX);
    let (activations, to_control) = mpsc::channel::<ActivationRequest>(ACTIVATIONS_MAX);
    let (suspects, suspected) = watch::channel(Vec::new());
    let setup = ShardSetup {
        options: options.clone(),
        incarnation,
        commands: from_control,
        activations: Activations::new(activations),
        suspects,
        live: publish,
        stop: stopped.clone(),
    };
    let (tell, told) = blocking::sync_channel(1);
    let thread = thread::Builder::new()
        .name(format!("osd-{id}"))
        .spawn(move || run_thread(setup, &tell, &ended))
        .map_err(|e| Error::new(ErrorKind::System, format!("cannot start a thread for OSD {id}: {e}")))?;
    let ready = told.recv().unwrap_or_else(|_| Err(panicked(id)))?;
    let registration = Registration::new(
        options.state.clone(),
        id,
        OsdState { address: options.advertised(ready.address), incarnation, started: seconds_since_1970() },
        options.lease_ttl_s,
        suspected,
    );
    let (deregister, deregistered) = blocking::sync_channel(1);
    let control = Control {
        id,
        cluster: options.cluster,
        state: options.state,
        commands: CommandSender::new(commands, ready.waker.clone()),
        activations: to_control,
        live: live.clone(),
        registration,
    };
    options.runtime.spawn(control.run(stopped, end.clone(), deregister));
    Ok(OsdHandle {
        id,
        address: ready.address,
        incarnation,
        stop,
        waker: ready.waker,
        live,
        end,
        thread: Some(thread),
        deregistered,
    })
}

/// The whole life of the OSD's thread.
fn run_thread(
    setup: ShardSetup,
    ready: &blocking::SyncSender<Result<Ready, Error>>,
    ended: &watch::Sender<Option<End>>,
) {
    let id = setup.options.id;
    let life = || {
        let shard = match Shard::open(setup) {
            Ok(shard) => shard,
            Err(error) => {
                // Without a listener `spawn` has been left; then nobody wants to know.
                let _ = ready.send(Err(error));
                return Ok(());
            }
        };
        let _ = ready.send(Ok(Ready { address: shard.address(), waker: shard.waker() }));
        shard.run()
    };
    let end = match catch_unwind(AssertUnwindSafe(life)) {
        Ok(Ok(())) => End::Stopped,
        Ok(Err(error)) => End::Failed(error),
        Err(_) => End::Failed(panicked(id)),
    };
    if let End::Failed(error) = &end {
        tracing::error!(osd = id.0, "OSD {id} has ended: {error}");
    }
    ended.send_replace(Some(end));
}

fn panicked(id: OsdId) -> Error {
    Error::new(ErrorKind::Broken, format!("OSD {id} met a fault of its own (the log has a panic message): restart it"))
}

pub(crate) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl OsdHandle {
    /// Number of the OSD.
    pub fn id(&self) -> OsdId {
        self.id
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// This run of it.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// How it is, or was at its end.
    pub fn live(&self) -> Live {
        self.live.borrow().clone()
    }

    /// The same, to keep: it goes on to be updated, and shows the last state after the OSD's end. The OSD's thread writes
    /// to it several times a second, so a receiver to which nothing new comes tells of a thread that hangs.
    pub fn live_receiver(&self) -> watch::Receiver<Live> {
        self.live.clone()
    }

    /// Begins to stop: takes no more requests, finishes what is in the store, records it, deregisters. See
    /// [`join`](Self::join).
    pub fn stop(&self) {
        self.stop.send_replace(true);
        self.waker.wake();
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

    /// Waits for the end after [`stop`](Self::stop) or a failure; blocks. The device is free afterwards.
    ///
    /// # Errors
    /// Why it failed.
    pub fn join(mut self) -> Result<(), Error> {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            return Err(panicked(self.id));
        }
        // If the runtime is gone the lease ends by itself.
        let _ = self.deregistered.recv_timeout(DEREGISTER_MAX);
        match self.end() {
            Some(End::Failed(error)) => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for OsdHandle {
    fn drop(&mut self) {
        self.stop();
    }
}
