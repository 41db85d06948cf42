//! The connections of a shard: how the core names them, what is half received, and which are paused.

use std::net::SocketAddr;

use cluster_io::{ConnId, PeerAddr};
use cluster_proto::link::LinkId;
use cluster_proto::wire::Channel;
use rustc_hash::FxHashMap;

/// One connection.
pub(crate) struct Connection {
    pub conn: ConnId,
    /// The core's name for it.
    pub link: LinkId,
    pub peer: PeerAddr,
    /// Somebody made it to us. Only such a connection is ever paused: two OSDs that both stopped listening on the
    /// connections they opened to each other would wait for ever.
    pub accepted: bool,
    pub paused: bool,
    pub channel: Channel,
}

impl Connection {
    /// The other end, for messages.
    pub fn peer_name(&self) -> String {
        match self.peer {
            PeerAddr::Tcp(address) => address.to_string(),
            PeerAddr::Unix => "a local socket".into(),
        }
    }
}

/// All connections, found by either name.
#[derive(Default)]
pub(crate) struct Connections {
    slots: Vec<Option<Connection>>,
    by_link: FxHashMap<LinkId, ConnId>,
    /// Paused ones; may contain some that are gone.
    paused: Vec<ConnId>,
}

impl Connections {
    pub fn len(&self) -> usize {
        self.by_link.len()
    }

    pub fn paused_len(&self) -> usize {
        self.paused.len()
    }

    /// A connection that somebody made to us.
    pub fn insert_accepted(&mut self, conn: ConnId, link: LinkId, peer: PeerAddr) {
        self.insert(Connection { conn, link, peer, accepted: true, paused: false, channel: Channel::new() });
    }

    /// A connection that we make.
    pub fn insert_opened(&mut self, conn: ConnId, link: LinkId, address: SocketAddr) {
        let peer = PeerAddr::Tcp(address);
        self.insert(Connection { conn, link, peer, accepted: false, paused: false, channel: Channel::new() });
    }

    fn insert(&mut self, connection: Connection) {
        let (conn, link) = (connection.conn, connection.link);
        if self.slots.len() <= conn.index() {
            self.slots.resize_with(conn.index() + 1, || None);
        }
        if let Some(old) = self.slots[conn.index()].replace(connection) {
            debug_assert!(false, "the slot of a connection is reused after its end only");
            self.by_link.remove(&old.link);
        }
        self.by_link.insert(link, conn);
    }

    pub fn get_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.slots.get_mut(conn.index())?.as_mut().filter(|c| c.conn == conn)
    }

    pub fn by_link(&mut self, link: LinkId) -> Option<&mut Connection> {
        let conn = *self.by_link.get(&link)?;
        self.get_mut(conn)
    }

    pub fn remove(&mut self, conn: ConnId) -> Option<Connection> {
        self.get_mut(conn)?;
        let connection = self.slots[conn.index()].take()?;
        self.by_link.remove(&connection.link);
        Some(connection)
    }

    pub fn remove_link(&mut self, link: LinkId) -> Option<Connection> {
        let conn = *self.by_link.get(&link)?;
        self.remove(conn)
    }

    /// Names of all connections.
    pub fn ids(&self) -> Vec<ConnId> {
        self.slots.iter().flatten().map(|c| c.conn).collect()
    }

    /// Remembers that a connection is paused.
    pub fn pause(&mut self, conn: ConnId) {
        if let Some(connection) = self.get_mut(conn) {
            connection.paused = true;
            self.paused.push(conn);
        }
    }

    /// Takes those out of the paused ones whose queue has drained, and forgets those that are gone.
    pub fn take_drained(&mut self, mut is_drained: impl FnMut(ConnId) -> bool) -> Vec<ConnId> {
        let mut drained = Vec::new();
        let mut paused = std::mem::take(&mut self.paused);
        paused.retain(|&conn| match self.get_mut(conn) {
            Some(connection) if is_drained(conn) => {
                connection.paused = false;
                drained.push(conn);
                false
            }
            Some(_) => true,
            None => false,
        });
        self.paused = paused;
        drained
    }
}
