//! A network of connections: bytes arrive in order or not at all, after a while; connections break; links between
//! nodes stall in one or both directions.

use std::collections::BTreeMap;

use cluster_proto::link::LinkId;
use cluster_proto::wire::Channel;

/// Microseconds.
pub type Micros = u64;

/// A process at a time: OSDs are 1..=n, clients come above.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct NodeId(pub u32);

/// One end of a connection.
pub struct End {
    /// Whose.
    pub node: NodeId,
    /// The run of the node; an end of an earlier run is dead.
    pub life: u32,
    /// The node's name for the connection.
    pub link: LinkId,
    /// Turns messages into bytes, and arriving bytes into messages.
    pub channel: Channel,
    /// When the last thing sent to this end arrives: what follows comes later.
    pub last_arrival: Micros,
    /// This end still has the connection.
    pub open: bool,
}

/// A connection; side 0 opened it.
pub struct Conn {
    /// The ends.
    pub ends: [End; 2],
    /// Bytes still arrive.
    pub alive: bool,
}

/// All connections there ever were, and which directions stall.
#[derive(Default)]
pub struct Net {
    /// By number.
    pub conns: Vec<Conn>,
    by_link: BTreeMap<(NodeId, u32, LinkId), (usize, usize)>,
    stalled_until: BTreeMap<(NodeId, NodeId), Micros>,
}

impl Net {
    /// A new connection, seen by its opener already.
    pub fn add(&mut self, ends: [(NodeId, u32, LinkId); 2], now: Micros) -> usize {
        let number = self.conns.len();
        for (side, (node, life, link)) in ends.iter().enumerate() {
            self.by_link.insert((*node, *life, *link), (number, side));
        }
        let end = |(node, life, link): (NodeId, u32, LinkId)| End {
            node,
            life,
            link,
            channel: Channel::new(),
            last_arrival: now,
            open: true,
        };
        self.conns.push(Conn { ends: ends.map(end), alive: true });
        number
    }

    /// Connection and side of a node's link.
    pub fn find(&self, node: NodeId, life: u32, link: LinkId) -> Option<(usize, usize)> {
        self.by_link.get(&(node, life, link)).copied()
    }

    /// From `from` to `to` nothing arrives before `until`.
    pub fn stall(&mut self, from: NodeId, to: NodeId, until: Micros) {
        let entry = self.stalled_until.entry((from, to)).or_default();
        *entry = until.max(*entry);
    }

    /// When something sent now with this delay arrives.
    pub fn arrival(&self, from: NodeId, to: NodeId, now: Micros, delay: Micros) -> Micros {
        now.max(self.stalled_until.get(&(from, to)).copied().unwrap_or(0)) + delay
    }

    /// Lifts every stall.
    pub fn heal(&mut self) {
        self.stalled_until.clear();
    }

    /// Numbers of the connections that carry bytes.
    pub fn alive(&self) -> Vec<usize> {
        (0..self.conns.len()).filter(|&n| self.conns[n].alive).collect()
    }

    /// Numbers of a node's connections that carry bytes.
    pub fn alive_of(&self, node: NodeId) -> Vec<usize> {
        self.alive().into_iter().filter(|&n| self.conns[n].ends.iter().any(|end| end.node == node)).collect()
    }
}
