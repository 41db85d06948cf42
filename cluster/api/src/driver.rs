//! The driver of the client core: moves bytes between the core and its connections to OSDs, inside any reactor loop.
//!
//! Whoever owns a [`Reactor`] (the gateway's worker, this library's own thread, a [`LocalImage`](crate::LocalImage)) embeds one:
//!
//! ```text
//! loop {
//!     while let Some(event) = io.next_event() {
//!         if driver.owns_event(&event) { driver.handle_event(&mut io, event) } else { .. }
//!     }
//!     while let Some(changes) = feed.poll() { driver.handle_changes(&io, changes) }
//!     driver.client_mut().submit(image, tag, op);
//!     driver.pump(&mut io);
//!     while let Some((image, tag, result)) = driver.client_mut().poll_reply() { .. }
//!     io.turn(Some(driver.deadline()))?;
//! }
//! ```

use std::time::Instant;

use cluster_client::{Client, ClientOptions, Output};
use cluster_io::{ConnId, Event, Reactor, Received, clock, entropy};
use cluster_proto::link::{LinkId, Millis};
use cluster_proto::wire::{Channel, Message, Nonce};
use rustc_hash::FxHashMap;

use crate::feed::KeyChange;

/// A connection to an OSD.
struct Peer {
    conn: ConnId,
    link: LinkId,
    channel: Channel,
}

/// A [`Client`] with its connections. One per thread; nothing is shared.
///
/// It never waits, and allocates nothing per operation: messages are encoded into the connection's send buffer, and
/// taken apart in the receive buffer.
pub struct ClientDriver {
    client: Client,
    /// By the index of the connection, which is small.
    peers: Vec<Option<Peer>>,
    conns: FxHashMap<LinkId, ConnId>,
    notice: Option<String>,
}

/// Milliseconds on the clock that the core is given.
fn now_ms(io: &Reactor) -> Millis {
    io.now_ns() / 1_000_000
}

impl ClientDriver {
    /// A driver of a new core that knows nothing of the cluster yet.
    pub fn new(options: ClientOptions) -> Self {
        Self { client: Client::new(options), peers: Vec::new(), conns: FxHashMap::default(), notice: None }
    }

    /// The core, to submit operations to and to take replies from.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// The core.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether a connection is one of this driver's.
    pub fn owns(&self, conn: ConnId) -> bool {
        self.peer(conn).is_some()
    }

    /// Whether an event is about one of this driver's connections.
    pub fn owns_event(&self, event: &Event) -> bool {
        match event {
            Event::Connected { conn } | Event::Received { conn, .. } | Event::Closed { conn, .. } => self.owns(*conn),
            _ => false,
        }
    }

    /// Takes an event of one of this driver's connections; others are ignored. Follow up with [`ClientDriver::pump`].
    pub fn handle_event(&mut self, io: &mut Reactor, event: Event) {
        match event {
            Event::Connected { conn } => {
                let Some(link) = self.peer(conn).map(|peer| peer.link) else { return };
                match entropy::bytes() {
                    Ok(nonce) => self.client.handle_connected(now_ms(io), link, Nonce(nonce)),
                    Err(error) => self.break_off(io, conn, &error),
                }
            }
            Event::Received { conn, data } => self.handle_received(io, conn, &data),
            Event::Closed { conn, error } => {
                if let Some(peer) = self.remove(conn) {
                    tracing::debug!("connection to an OSD ended: {error:?}");
                    self.client.handle_closed(now_ms(io), peer.link);
                }
            }
            _ => {}
        }
    }

    /// Applies changes of the cluster state, in their order. A value that breaks its schema is ignored, loudly.
    pub fn handle_changes(&mut self, io: &Reactor, changes: Vec<KeyChange>) {
        let now = now_ms(io);
        for (key, value) in changes {
            if let Err(error) = self.client.handle_map(now, &key, value.as_deref()) {
                tracing::error!("ignored a bad value in the cluster state: {error}");
            }
        }
    }

    /// Lets the core act on the time, and carries out all that it asks for. To be called after every input and before
    /// every [`Reactor::turn`]; costs next to nothing when there is nothing to do.
    pub fn pump(&mut self, io: &mut Reactor) {
        let now = now_ms(io);
        if self.client.poll_timeout() <= now {
            self.client.handle_timeout(now);
        }
        self.carry_out(io);
    }

    fn carry_out(&mut self, io: &mut Reactor) {
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Send { link, message } => self.send(io, link, &message),
                Output::Introduced { link, session } => {
                    if let Some(peer) = self.peer_by_link(link) {
                        peer.channel.introduce(session);
                    }
                }
                Output::Notice(text) => {
                    tracing::warn!("{text}");
                    self.notice = Some(text);
                }
                Output::Connect { link, address } => {
                    let conn = io.connect_tcp(address);
                    self.insert(Peer { conn, link, channel: Channel::new() });
                }
                Output::Close(link) => {
                    if let Some(peer) = self.conns.get(&link).copied().and_then(|conn| self.remove(conn)) {
                        // A refusal is worth being read; what was sent to an OSD that is given up is not.
                        if peer.channel.is_introduced() { io.abort(peer.conn) } else { io.close(peer.conn) }
                    }
                }
            }
        }
    }

    /// When [`ClientDriver::pump`] wants to be called again at the latest.
    pub fn deadline(&self) -> Instant {
        clock::instant_of(self.client.poll_timeout().saturating_mul(1_000_000))
    }

    /// What the core wanted an operator to read last: why an OSD and this client refused each other.
    pub fn last_notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// Ends all connections at once. What was sent may or may not take effect.
    pub fn abort_all(&mut self, io: &mut Reactor) {
        self.conns.clear();
        for peer in self.peers.drain(..).flatten() {
            io.abort(peer.conn);
        }
    }

    fn peer(&self, conn: ConnId) -> Option<&Peer> {
        self.peers.get(conn.index())?.as_ref().filter(|peer| peer.conn == conn)
    }

    fn insert(&mut self, peer: Peer) {
        let index = peer.conn.index();
        if self.peers.len() <= index {
            self.peers.resize_with(index + 1, || None);
        }
        self.conns.insert(peer.link, peer.conn);
        self.peers[index] = Some(peer);
    }

    fn remove(&mut self, conn: ConnId) -> Option<Peer> {
        let peer = self.peers.get_mut(conn.index())?.take_if(|peer| peer.conn == conn)?;
        self.conns.remove(&peer.link);
        Some(peer)
    }

    fn peer_by_link(&mut self, link: LinkId) -> Option<&mut Peer> {
        self.peer_mut(*self.conns.get(&link)?)
    }

    fn peer_mut(&mut self, conn: ConnId) -> Option<&mut Peer> {
        self.peers.get_mut(conn.index())?.as_mut().filter(|peer| peer.conn == conn)
    }

    fn send(&mut self, io: &mut Reactor, link: LinkId, message: &Message) {
        let Some(peer) = self.peer_by_link(link) else { return };
        let conn = peer.conn;
        let mut payload = None;
        io.send_with(conn, |out| payload = peer.channel.encode(message, out));
        if let Some(payload) = payload {
            io.send_buffer(conn, payload);
        }
    }

    fn handle_received(&mut self, io: &mut Reactor, conn: ConnId, data: &Received) {
        let now = now_ms(io);
        let mut input: &[u8] = data;
        while let Some(peer) = self.peer_mut(conn) {
            let link = peer.link;
            match peer.channel.decode(&mut input) {
                Ok(Some(message)) => {
                    let is_introduced = peer.channel.is_introduced();
                    self.client.handle_message(now, link, message);
                    if !is_introduced {
                        self.carry_out(io);
                    }
                }
                Ok(None) => return,
                Err(error) => return self.break_off(io, conn, &error),
            }
        }
    }

    fn break_off(&mut self, io: &mut Reactor, conn: ConnId, error: &dyn std::fmt::Display) {
        if let Some(peer) = self.remove(conn) {
            tracing::error!("closing a connection to an OSD: {error}");
            io.abort(conn);
            self.client.handle_closed(now_ms(io), peer.link);
        }
    }
}
