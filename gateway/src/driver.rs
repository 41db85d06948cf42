//! The gateway's thread: one reactor, the initiators' connections, and the client core with its connections to OSDs.
//!
//! A turn takes all events, hands bytes to sessions and messages to the core, carries requests and answers between the two
//! until nothing moves, and submits everything with one system call.

mod completion;
mod connection;
mod listener;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_client::driver::ClientDriver;
use blockyard_client::feed::MapFeed;
use cluster_io::{ConnId, Event, ListenerId, PeerAddr, Reactor, clock};
use gateway_core::{Millis, Output};
use tokio::sync::{mpsc, watch};

use crate::catalog::ExportChange;
use crate::config::{PUBLISH_MS, WRITE_BYTES_MAX};
use crate::directory::{Directory, Notice};
use crate::error::Error;
use crate::metrics::GatewayStats;
use completion::{Flights, Landing};
use connection::{Connection, Connections};
pub(crate) use listener::Listeners;

/// What the thread and the control plane exchange.
pub(crate) struct Channels {
    pub map: MapFeed,
    pub exports: mpsc::Receiver<Vec<ExportChange>>,
    pub stop: watch::Receiver<bool>,
    pub stats: watch::Sender<Arc<GatewayStats>>,
}

/// How many, and how long.
pub(crate) struct Bounds {
    pub connections_max: usize,
    /// For requests under way when it stops.
    pub stop_timeout: Duration,
    /// For what is not durable then.
    pub sync_timeout: Duration,
}

/// The thread's whole state.
pub(crate) struct Worker {
    io: Reactor,
    driver: ClientDriver,
    listeners: Listeners,
    channels: Channels,
    directory: Directory,
    connections: Connections,
    flights: Flights,
    /// When sessions want to be called.
    timers: BTreeSet<(Millis, ConnId)>,
    /// Connections that are not read at the moment; looked at again every turn.
    paused: Vec<ConnId>,
    connections_max: usize,
    stop_timeout: Duration,
    sync_timeout: Duration,
    accepted: u64,
    refused: u64,
    /// Something happened since the last publication, and when the next is due.
    unpublished: bool,
    publish_at: Millis,
    stopping: bool,
}

impl Worker {
    pub(crate) fn new(
        io: Reactor,
        driver: ClientDriver,
        listeners: Listeners,
        channels: Channels,
        bounds: Bounds,
    ) -> Self {
        let Bounds { connections_max, stop_timeout, sync_timeout } = bounds;
        Self {
            io,
            driver,
            listeners,
            channels,
            directory: Directory::default(),
            connections: Connections::default(),
            flights: Flights::default(),
            timers: BTreeSet::new(),
            paused: Vec::new(),
            connections_max,
            stop_timeout,
            sync_timeout,
            accepted: 0,
            refused: 0,
            unpublished: true,
            publish_at: 0,
            stopping: false,
        }
    }

    /// Serves until told to stop, and then ends what is under way.
    pub(crate) fn run(mut self) -> Result<(), Error> {
        while !*self.channels.stop.borrow() {
            self.step(None)?;
        }
        self.stop()
    }

    fn step(&mut self, until: Option<Instant>) -> Result<(), Error> {
        while let Some(event) = self.io.next_event() {
            self.handle(event);
        }
        self.take_changes();
        self.expire();
        for conn in self.paused.clone() {
            self.answer(conn);
        }
        self.settle();
        self.regulate();
        self.publish();
        let deadline = self.deadline();
        Ok(self.io.turn(Some(until.map_or(deadline, |until| deadline.min(until))))?)
    }

    fn now(&self) -> Millis {
        self.io.now_ns() / 1_000_000
    }

    fn deadline(&self) -> Instant {
        let timer = self.timers.first().map(|(at, _)| *at);
        let publish = self.unpublished.then_some(self.publish_at);
        let own = [timer, publish].into_iter().flatten().min();
        let core = self.driver.deadline();
        own.map_or(core, |at| core.min(clock::instant_of(at.saturating_mul(1_000_000))))
    }

    fn handle(&mut self, event: Event) {
        if self.driver.owns_event(&event) {
            return self.driver.handle_event(&mut self.io, event);
        }
        match event {
            Event::Accepted { listener, conn, peer } => self.accept(listener, conn, peer),
            Event::Received { conn, data } => {
                let now = self.now();
                if let Some(connection) = self.connections.get_mut(conn) {
                    connection.handle_bytes(now, &self.directory, &data);
                    self.drain(conn);
                }
            }
            Event::Closed { conn, error } => {
                tracing::debug!("a client went away: {error:?}");
                self.forget(conn);
            }
            Event::Connected { .. } | Event::DiskRead { .. } | Event::DiskDone { .. } | Event::Woken => {}
        }
    }

    fn accept(&mut self, listener: ListenerId, conn: ConnId, peer: PeerAddr) {
        self.unpublished = true;
        let session = self.listeners.session(listener, self.now());
        let Some(session) = session.filter(|_| self.connections.len() < self.connections_max) else {
            tracing::warn!("turned {peer:?} away: there are {} connections already", self.connections.len());
            self.refused += 1;
            return self.io.close(conn);
        };
        self.accepted += 1;
        self.connections.insert(Connection::new(conn, session));
        self.drain(conn);
    }

    /// Carries out what a session asks for.
    fn drain(&mut self, conn: ConnId) {
        let now_ns = self.io.now_ns();
        loop {
            let Some(connection) = self.connections.get_mut(conn) else { return };
            match connection.send(&mut self.io) {
                Some(Output::Request { tag, op }) => {
                    connection.in_flight += 1;
                    let attachment = connection.attachment.as_ref();
                    self.flights.submit(self.driver.client_mut(), now_ns, conn, attachment, (tag, op));
                }
                Some(Output::Attach(name)) => self.attach(conn, &name),
                Some(Output::Close) => {
                    self.forget(conn);
                    return self.io.close(conn);
                }
                Some(Output::Bytes(_) | Output::Payload(_)) | None => break,
            }
        }
        self.note_timer(conn);
        self.regulate_one(conn);
    }

    fn attach(&mut self, conn: ConnId, name: &str) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        debug_assert!(connection.attachment.is_none(), "a session attaches once");
        connection.attachment = self.directory.attach(self.driver.client_mut(), name);
        self.unpublished = true;
    }

    /// A connection has ended. What it has under way goes on; nobody hears of it.
    fn forget(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.remove(conn) else { return };
        if let Some(at) = connection.timer {
            self.timers.remove(&(at, conn));
        }
        if let Some(attachment) = connection.attachment {
            self.directory.detach(self.driver.client_mut(), &attachment);
        }
        self.unpublished = true;
    }

    /// Hands out answers, and carries out what sessions ask for in turn, until nothing moves.
    fn settle(&mut self) {
        loop {
            self.driver.pump(&mut self.io);
            let mut moved = false;
            while let Some(landing) = self.flights.land(self.driver.client_mut(), self.io.now_ns()) {
                moved = true;
                self.land(landing);
            }
            if !moved {
                return;
            }
            self.unpublished = true;
        }
    }

    fn land(&mut self, landing: Landing) {
        if let Some(connection) = self.connections.get_mut(landing.conn) {
            connection.handle_reply(landing.tag, landing.reply);
            self.answer(landing.conn);
        }
    }

    /// Lets the session answer as far as the client takes it.
    fn answer(&mut self, conn: ConnId) {
        let now = self.now();
        while let Some(connection) = self.connections.get_mut(conn) {
            if !connection.answer(now, &self.io) {
                break;
            }
            self.drain(conn);
        }
        self.regulate_one(conn);
    }

    fn take_changes(&mut self) {
        while let Some(changes) = self.channels.map.poll() {
            self.driver.handle_changes(&self.io, changes);
        }
        while let Ok(changes) = self.channels.exports.try_recv() {
            let notices = self.directory.apply(self.driver.client_mut(), changes);
            notices.into_iter().for_each(|notice| self.announce(&notice));
            // Whoever waits for an export to appear need not wait for the clock.
            (self.unpublished, self.publish_at) = (true, 0);
        }
    }

    fn announce(&mut self, (export, event): &Notice) {
        let now = self.now();
        let concerned: Vec<_> = self
            .connections
            .iter_mut()
            .filter_map(|connection| connection.handle_event(now, export, event).then_some(connection.conn))
            .collect();
        concerned.into_iter().for_each(|conn| self.drain(conn));
    }

    // ---- time

    fn note_timer(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let wanted = connection.session.poll_timeout();
        if wanted != connection.timer {
            let old = std::mem::replace(&mut connection.timer, wanted);
            old.map(|at| self.timers.remove(&(at, conn)));
            wanted.map(|at| self.timers.insert((at, conn)));
        }
    }

    fn expire(&mut self) {
        let now = self.now();
        while let Some((_, conn)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.pop_first();
            if let Some(connection) = self.connections.get_mut(conn) {
                connection.timer = None;
                connection.session.handle_timeout(now);
                self.drain(conn);
            }
        }
    }

    // ---- backpressure

    fn is_full(&self) -> bool {
        self.stopping || self.flights.payload_bytes() > WRITE_BYTES_MAX
    }

    fn regulate_one(&mut self, conn: ConnId) {
        let is_full = self.is_full();
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if connection.regulate(&mut self.io, is_full) && !self.paused.contains(&conn) {
            self.paused.push(conn);
        }
    }

    /// Resumes whoever may be read again.
    fn regulate(&mut self) {
        let is_full = self.is_full();
        let Self { paused, connections, io, .. } = self;
        paused.retain(|conn| connections.get_mut(*conn).is_some_and(|connection| connection.regulate(io, is_full)));
    }

    // ---- statistics

    fn publish(&mut self) {
        let now = self.now();
        if !self.unpublished || now < self.publish_at {
            return;
        }
        (self.unpublished, self.publish_at) = (false, now + PUBLISH_MS);
        let used = self.directory.iter().filter_map(|(name, export)| {
            let stats = export.stats();
            stats.as_ref().map(|stats| (name.clone(), (**stats).clone()))
        });
        let stats = GatewayStats {
            names: self.directory.all_names(),
            connections: self.connections.len() as u64,
            accepted: self.accepted,
            refused: self.refused,
            in_flight: self.flights.len() as u64,
            unsynced: self.driver.client_mut().unsynced() as u64,
            exports: used.collect(),
        };
        self.channels.stats.send_replace(Arc::new(stats));
    }

    // ---- the end

    /// Takes no more requests, lets those under way end, sends their answers, makes durable what was answered, and closes.
    fn stop(mut self) -> Result<(), Error> {
        let end = Instant::now() + self.stop_timeout;
        self.listeners.close(&mut self.io);
        self.stopping = true;
        self.connections.ids().into_iter().for_each(|conn| self.regulate_one(conn));
        while self.connections.len() > 0 && Instant::now() < end {
            let idle: Vec<_> = self.connections.iter_mut().filter(|c| c.in_flight == 0).map(|c| c.conn).collect();
            for conn in idle {
                self.forget(conn);
                self.io.close(conn);
            }
            if self.connections.len() > 0 {
                self.step(Some(end))?;
            }
        }
        if self.connections.len() > 0 {
            tracing::warn!("stopped with {} requests under way: the cluster did not answer", self.flights.len());
        }
        self.connections.ids().into_iter().for_each(|conn| self.io.abort(conn));
        self.sync_all()?;
        self.driver.abort_all(&mut self.io);
        self.unpublished = true;
        self.publish_at = 0;
        self.publish();
        self.finish_sending()
    }

    /// Makes durable what clients were answered in lazy pools, as far as the cluster does it in time: only we could repeat it after a loss
    /// of power.
    fn sync_all(&mut self) -> Result<(), Error> {
        let end = Instant::now() + self.sync_timeout;
        let left = |worker: &mut Self| worker.driver.client_mut().unsynced();
        let at_first = left(self);
        while left(self) > 0 && Instant::now() < end {
            // Answers may yet come, and syncs be in vain because a PG has begun a new interval.
            self.driver.client_mut().sync();
            self.step(Some(end))?;
        }
        match left(self) {
            0 if at_first > 0 => tracing::info!("synced {at_first} changes before the end"),
            0 => {}
            left => tracing::warn!(
                "stopped with {left} answered changes that are not durable, because the cluster did not sync them within {} s: \
                 they are lost if the power of too many servers fails before they write them back",
                self.sync_timeout.as_secs()
            ),
        }
        Ok(())
    }

    /// Waits until the sockets being closed are closed; the reactor bounds that.
    fn finish_sending(mut self) -> Result<(), Error> {
        while self.io.connections() > 0 {
            while self.io.next_event().is_some() {}
            self.io.turn(None)?;
        }
        Ok(())
    }
}
