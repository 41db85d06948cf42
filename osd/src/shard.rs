//! The data path's loop: reactor, core and store on one thread.
//!
//! Each turn takes what happened, lets core and store answer until neither has anything left to say, and hands all of
//! it to the kernel at once. Nothing is decided here. The store is drained of device requests only when the core is
//! quiet, so that all changes of a turn share log blocks and device writes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use blockstore::{Durability, Store, StoreState};
use cluster_io::{ConnId, DiskId, Event, ListenerId, PeerAddr, Reactor, ReactorConfig, Waker, clock, entropy};
use cluster_proto::ids::{Incarnation, OsdId};
use cluster_proto::link::{LinkId, Millis};
use cluster_proto::map::Member;
use cluster_proto::shard::ShardIndex;
use cluster_proto::wire::{Message, Nonce};
use osd_core::{Osd, Output};
use tokio::sync::{mpsc, watch};

use crate::activations::{ActivationRequest, Activations};
use crate::command::{Command, MapEvent};
use crate::connections::Connections;
use crate::live::Live;
use crate::options::OsdOptions;
use crate::{Error, ErrorKind, device, opening};

/// Connections that others may have to us; more are turned away.
const CONNECTIONS_MAX: usize = 4096;
/// Bytes of answers that a peer may leave untaken; above it we listen to it no more, until half of it is gone.
const SEND_QUEUE_MAX: usize = 32 << 20;
/// How often the state is published and an idle store told so.
const BEAT: Duration = Duration::from_millis(100);
/// With so many operations in the store at the moment of a beat, freed space is discarded,
const QUIET_OPERATIONS: usize = 4;
/// if no more than this was written since the last one: large writes take freed space up again. Bytes.
const QUIET_BYTES: u64 = 1 << 20;
/// How long a stopping OSD waits for its store's operations, and then for its peers to take their answers.
const STOP_MAX: Duration = Duration::from_secs(2);

const _: () = assert!(SEND_QUEUE_MAX / 2 > cluster_io::SEND_QUIET_MAX);

/// What a shard starts with.
pub(crate) struct ShardSetup {
    pub options: OsdOptions,
    pub incarnation: Incarnation,
    pub commands: mpsc::Receiver<Command>,
    pub activations: Activations,
    pub suspects: watch::Sender<Vec<Member>>,
    pub live: watch::Sender<Live>,
    pub stop: watch::Receiver<bool>,
}

/// One OSD's thread.
pub(crate) struct Shard {
    id: OsdId,
    reactor: Reactor,
    core: Osd,
    store: Store,
    disk: DiskId,
    listener: ListenerId,
    address: SocketAddr,
    connections: Connections,
    commands: mpsc::Receiver<Command>,
    activations: Activations,
    suspects: watch::Sender<Vec<Member>>,
    live: watch::Sender<Live>,
    stop: watch::Receiver<bool>,
    /// Operations that the store has not answered.
    store_operations: usize,
    /// The store was given something since the last beat.
    is_busy: bool,
    next_beat: Instant,
    now: Millis,
}

impl Shard {
    /// Opens the store and starts listening.
    pub fn open(setup: ShardSetup) -> Result<Self, Error> {
        let options = &setup.options;
        let mut reactor = Reactor::new(ReactorConfig::default())?;
        reactor.set_busy_poll(options.busy_poll);
        let (disk, store) = opening::open_store(&mut reactor, options)?;
        let listener = reactor.listen_tcp(options.listen)?;
        let address = reactor.local_addr(listener).unwrap_or(options.listen);
        let core = osd_core::OsdOptions {
            id: options.id,
            cluster: options.cluster,
            incarnation: setup.incarnation,
            credentials: options.credentials.clone(),
            started: reactor.now_ns() / 1_000_000,
            started_unix: crate::handle::seconds_since_1970(),
            slow_operation_ms: options.slow_operation_ms.into(),
        };
        tracing::info!(osd = options.id.0, %address, incarnation = setup.incarnation.0, "serving");
        Ok(Self {
            id: options.id,
            core: Osd::new(core),
            store,
            disk,
            listener,
            address,
            connections: Connections::default(),
            commands: setup.commands,
            activations: setup.activations,
            suspects: setup.suspects,
            live: setup.live,
            stop: setup.stop,
            store_operations: 0,
            is_busy: false,
            next_beat: reactor.now(),
            now: reactor.now_ns() / 1_000_000,
            reactor,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn waker(&self) -> Waker {
        self.reactor.waker()
    }

    /// Serves until told to stop, then ends in order.
    pub fn run(mut self) -> Result<(), Error> {
        while !*self.stop.borrow() {
            self.turn()?;
        }
        tracing::info!(osd = self.id.0, "stopping");
        self.reactor.close_listener(self.listener);
        self.connections.ids().into_iter().for_each(|conn| self.reactor.pause_receive(conn));
        self.turn_until(|shard| shard.store_operations == 0)?;
        self.store.begin_close();
        self.turn_until(|shard| shard.store.state() == StoreState::Closed)?;
        if self.store.state() != StoreState::Closed {
            tracing::warn!(osd = self.id.0, "the store took too long to close; the next start will verify its tail");
        }
        self.connections.ids().into_iter().for_each(|conn| self.reactor.close(conn));
        self.turn_until(|shard| shard.reactor.connections() == 0)?;
        self.publish();
        Ok(())
    }

    fn turn_until(&mut self, is_done: impl Fn(&Self) -> bool) -> Result<(), Error> {
        let deadline = Instant::now() + STOP_MAX;
        while !is_done(self) && Instant::now() < deadline {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), Error> {
        self.settle()?;
        let timeout = clock::instant_of(self.core.poll_timeout().saturating_mul(1_000_000));
        self.reactor.turn(Some(timeout.min(self.next_beat)))?;
        self.now = self.reactor.now_ns() / 1_000_000;
        self.core.handle_clock(self.reactor.now_ns() / 1_000);
        while let Some(event) = self.reactor.next_event() {
            self.handle_event(event);
        }
        self.resume_drained();
        if self.core.poll_timeout() <= self.now {
            self.core.handle_timeout(self.now, &mut self.store);
        }
        if self.next_beat <= self.reactor.now() {
            self.beat();
        }
        Ok(())
    }

    fn beat(&mut self) {
        self.next_beat = self.reactor.now() + BEAT;
        if !self.is_busy && self.store_operations == 0 {
            self.store.handle_idle();
        }
        self.is_busy = false;
        let published = self.live.borrow().store.data_bytes_written;
        let written = self.store.stats().data_bytes_written - published;
        if self.store_operations <= QUIET_OPERATIONS && written <= QUIET_BYTES {
            self.store.discard_unused();
        }
        self.publish();
    }

    // ---- what happened

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Received { conn, data } => self.handle_bytes(conn, &data),
            Event::DiskRead { token, result, .. } => self.store.handle_device(token, device::read_result(result)),
            Event::DiskDone { token, result, .. } => self.store.handle_device(token, device::done_result(result)),
            Event::Accepted { conn, peer, .. } => self.handle_accepted(conn, peer),
            Event::Connected { conn } => {
                let Some(link) = self.connections.get_mut(conn).map(|connection| connection.link) else { return };
                match entropy::bytes() {
                    Ok(nonce) => self.core.handle_connected(self.now, link, Nonce(nonce)),
                    Err(error) => self.break_off(conn, &error),
                }
            }
            Event::Closed { conn, error } => {
                if let Some(connection) = self.connections.remove(conn) {
                    let peer = connection.peer_name();
                    tracing::debug!(osd = self.id.0, %peer, error = ?error, "a connection ended");
                    self.core.handle_closed(self.now, &mut self.store, connection.link);
                }
            }
            Event::Woken => self.take_commands(),
        }
    }

    fn handle_accepted(&mut self, conn: ConnId, peer: PeerAddr) {
        if self.connections.len() >= CONNECTIONS_MAX {
            tracing::warn!(osd = self.id.0, ?peer, "turned a connection away: there are {CONNECTIONS_MAX} already");
            return self.reactor.abort(conn);
        }
        match entropy::bytes() {
            Ok(nonce) => {
                let link = self.core.handle_accepted(self.now, Nonce(nonce));
                self.connections.insert_accepted(conn, link, peer);
            }
            Err(error) => {
                tracing::warn!(osd = self.id.0, ?peer, "turned a connection away: {error}");
                self.reactor.abort(conn);
            }
        }
    }

    fn handle_bytes(&mut self, conn: ConnId, mut input: &[u8]) {
        while let Some(connection) = self.connections.get_mut(conn) {
            let link = connection.link;
            match connection.channel.decode(&mut input) {
                Ok(Some(message)) => {
                    let is_introduced = connection.channel.is_introduced();
                    self.core.handle_message(self.now, &mut self.store, link, message);
                    if !is_introduced {
                        self.carry_out_all();
                    }
                }
                Ok(None) => return,
                Err(error) => return self.break_off(conn, &error),
            }
        }
    }

    /// The peer does not keep the protocol.
    fn break_off(&mut self, conn: ConnId, error: &dyn std::fmt::Display) {
        if let Some(connection) = self.connections.remove(conn) {
            tracing::warn!(osd = self.id.0, peer = connection.peer_name(), "broke off a connection: {error}");
            self.reactor.abort(conn);
            self.core.handle_closed(self.now, &mut self.store, connection.link);
        }
    }

    fn take_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Map(events) => events.into_iter().for_each(|event| self.handle_map(&event)),
                Command::Activated { pg, epoch, ok } => {
                    self.core.handle_activated(self.now, &mut self.store, pg, epoch, ok);
                }
                Command::Registered { asked } => self.core.handle_registered(asked),
                Command::Unregistered => self.core.handle_unregistered(),
            }
        }
    }

    fn handle_map(&mut self, event: &MapEvent) {
        if let Err(e) = self.core.handle_map(self.now, &mut self.store, &event.key, event.value.as_deref()) {
            tracing::error!(osd = self.id.0, "ignored a value of the cluster state, the previous one stays: {e}");
        }
    }

    fn resume_drained(&mut self) {
        let Self { connections, reactor, .. } = self;
        if connections.paused_len() > 0 {
            let drained = connections.take_drained(|conn| reactor.send_queue_bytes(conn) <= SEND_QUEUE_MAX / 2);
            drained.into_iter().for_each(|conn| reactor.resume_receive(conn));
        }
    }

    // ---- what is to be done

    /// Carries out what core and store want until they want nothing more.
    fn settle(&mut self) -> Result<(), Error> {
        loop {
            self.carry_out_all();
            self.check_store()?;
            if let Some((tag, outcome)) = self.store.poll_outcome() {
                self.store_operations -= 1;
                self.core.handle_local(self.now, &mut self.store, tag, outcome);
            } else if let Some(request) = self.store.poll_device() {
                device::submit(&mut self.reactor, self.disk, request);
            } else {
                self.activations.flush();
                return Ok(());
            }
        }
    }

    fn carry_out_all(&mut self) {
        while let Some(output) = self.core.poll_output() {
            self.carry_out(output);
        }
    }

    /// A store that failed answers everything with an I/O error, which clients must not see: their requests wait for
    /// another member, or for this OSD's next run.
    fn check_store(&self) -> Result<(), Error> {
        if self.store.is_running() {
            return Ok(());
        }
        match self.store.state() {
            StoreState::Failed(why) => Err(Error::new(ErrorKind::Broken, format!("its store cannot go on: {why}"))),
            _ => Ok(()),
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Send { link, message } => self.send(link, &message),
            Output::Local { tag, op } => {
                self.store_operations += 1;
                self.is_busy = true;
                self.store.submit(tag, op);
            }
            Output::Connect { link, address } => {
                let conn = self.reactor.connect_tcp(address);
                self.connections.insert_opened(conn, link, address);
            }
            Output::Introduced { link, session } => {
                if let Some(connection) = self.connections.by_link(link) {
                    connection.channel.introduce(session);
                }
            }
            Output::Close(link) => {
                if let Some(connection) = self.connections.remove_link(link) {
                    self.reactor.close(connection.conn);
                }
            }
            Output::Activate { pg, record } => self.activations.push(ActivationRequest { pg, record }),
            Output::Suspect(suspects) => drop(self.suspects.send_replace(suspects)),
            Output::Notice(text) => tracing::info!(osd = self.id.0, "{text}"),
            Output::Warning(text) => tracing::warn!(osd = self.id.0, "{text}"),
        }
    }

    fn send(&mut self, link: LinkId, message: &Message) {
        let Some(connection) = self.connections.by_link(link) else { return };
        let (conn, may_pause) = (connection.conn, connection.accepted && !connection.paused);
        let mut payload = None;
        self.reactor.send_with(conn, |out| payload = connection.channel.encode(message, out));
        if let Some(payload) = payload {
            self.reactor.send_buffer(conn, payload);
        }
        if may_pause && self.reactor.send_queue_bytes(conn) > SEND_QUEUE_MAX {
            self.reactor.pause_receive(conn);
            self.connections.pause(conn);
        }
    }

    fn publish(&mut self) {
        let store = self.store.stats();
        let mut stats = self.core.stats();
        (stats.space, stats.io_errors, stats.crc_errors) = (self.store.space(), store.io_errors, store.crc_errors);
        stats.volatile_cache = self.store.durability() == Durability::Flush;
        self.live.send_replace(Live {
            stats,
            unrecorded_scrubs: self.core.unrecorded_scrubs(),
            latencies: Box::new(self.core.latencies().clone()),
            store,
            reactor: self.reactor.counters(),
            connections: self.connections.len(),
            paused_connections: self.connections.paused_len(),
            held_requests: self.core.held_requests(),
            store_operations: self.store_operations,
        });
    }
}
