//! How nodes connect and what they say travels.

use std::net::SocketAddr;

use cluster_proto::link::LinkId;
use cluster_proto::wire::{Message, Nonce, Session};

use super::{Event, World};
use crate::net::NodeId;

impl World {
    pub(super) fn dial(&mut self, node: NodeId, life: u32, link: LinkId, address: SocketAddr) {
        let target = NodeId(u32::from(address.port()));
        let delay = self.rng.range(50, 3_000);
        let arrival = self.net.arrival(node, target, self.now, delay);
        self.at(arrival, Event::Connect { node, life, link, target });
    }

    pub(super) fn connect(&mut self, node: NodeId, life: u32, link: LinkId, target: NodeId) {
        if self.life_of(node) != life {
            return;
        }
        let now = self.clock_of(node);
        let osd = target.0 as usize - 1;
        let (near, far) = (self.nonce(), self.nonce());
        let accepted = match &mut self.osds[osd].run {
            Some(run) => run.core.as_mut().map(|core| core.handle_accepted(now, far)),
            None => None,
        };
        let Some(theirs) = accepted else { return self.tell_closed(node, link) };
        let their_life = self.osds[osd].life;
        self.net.add([(node, life, link), (target, their_life, theirs)], self.now);
        if let Some(client) = self.client_index(node) {
            self.clients[client].core.handle_connected(now, link, near);
            self.pump_client(client);
        } else if let Some(run) = &mut self.osds[node.0 as usize - 1].run
            && let Some(core) = &mut run.core
        {
            core.handle_connected(now, link, near);
            self.pump_osd(node.0 as usize - 1);
        }
    }

    pub(super) fn nonce(&mut self) -> Nonce {
        let mut bytes = [0; Nonce::LEN];
        bytes.as_chunks_mut::<8>().0.iter_mut().for_each(|chunk| *chunk = self.rng.bits().to_le_bytes());
        Nonce(bytes)
    }

    pub(super) fn introduced(&mut self, node: NodeId, life: u32, link: LinkId, session: Option<Box<Session>>) {
        if let Some((number, side)) = self.net.find(node, life, link) {
            self.net.conns[number].ends[side].channel.introduce(session);
        }
    }

    pub(super) fn send(&mut self, node: NodeId, life: u32, link: LinkId, message: &Message) {
        let Some((number, side)) = self.net.find(node, life, link) else { return };
        let conn = &mut self.net.conns[number];
        if !conn.alive || !conn.ends[side].open {
            return;
        }
        let mut bytes = Vec::new();
        if let Some(payload) = conn.ends[side].channel.encode(message, &mut bytes) {
            bytes.extend_from_slice(&payload);
        }
        if !self.calm && self.faults.network && self.rng.one_in(3000) {
            let at = self.rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.rng.below(8);
            self.note(|| format!("a bit flips on connection {number}"));
        }
        let other = 1 - side;
        let delay = if self.rng.one_in(50) { self.rng.range(1_000, 100_000) } else { self.rng.range(20, 2_000) };
        let to = self.net.conns[number].ends[other].node;
        let end = &self.net.conns[number].ends[other];
        let arrival = self.net.arrival(node, to, self.now, delay).max(end.last_arrival);
        self.net.conns[number].ends[other].last_arrival = arrival;
        self.at(arrival, Event::Arrive { conn: number, side: other, bytes });
    }

    pub(super) fn arrive(&mut self, number: usize, side: usize, bytes: &[u8]) {
        let mut input = bytes;
        loop {
            let conn = &mut self.net.conns[number];
            let end = &mut conn.ends[side];
            let (node, life, link) = (end.node, end.life, end.link);
            if !conn.alive || !end.open || self.life_of(node) != life {
                return;
            }
            match self.net.conns[number].ends[side].channel.decode(&mut input) {
                Ok(Some(message)) => self.arrived(node, link, message),
                Ok(None) => return,
                Err(_) => {
                    self.note(|| format!("damaged bytes on connection {number}"));
                    self.hang_up(node, life, link);
                    return self.tell_closed(node, link);
                }
            }
        }
    }

    pub(super) fn arrived(&mut self, node: NodeId, link: LinkId, message: Message) {
        let now = self.clock_of(node);
        if let Some(client) = self.client_index(node) {
            self.clients[client].core.handle_message(now, link, message);
            self.pump_client(client);
        } else if let Some(run) = &mut self.osds[node.0 as usize - 1].run
            && let Some(core) = &mut run.core
        {
            core.handle_message(now, &mut run.store, link, message);
            self.pump_osd(node.0 as usize - 1);
        }
    }

    /// A node closes its side; what it sent before still arrives.
    pub(super) fn hang_up(&mut self, node: NodeId, life: u32, link: LinkId) {
        let Some((number, side)) = self.net.find(node, life, link) else { return };
        let conn = &mut self.net.conns[number];
        if !std::mem::replace(&mut conn.ends[side].open, false) {
            return;
        }
        let other = 1 - side;
        let (from, to) = (conn.ends[side].node, conn.ends[other].node);
        let last = conn.ends[other].last_arrival;
        let arrival = self.net.arrival(from, to, self.now, 100).max(last);
        self.at(arrival, Event::Broken { conn: number, side: other });
    }

    pub(super) fn broken(&mut self, number: usize, side: usize) {
        let conn = &mut self.net.conns[number];
        conn.alive = false;
        if !std::mem::replace(&mut conn.ends[side].open, false) {
            return;
        }
        let (node, life, link) = (conn.ends[side].node, conn.ends[side].life, conn.ends[side].link);
        if self.life_of(node) == life {
            self.tell_closed(node, link);
        }
    }

    pub(super) fn tell_closed(&mut self, node: NodeId, link: LinkId) {
        let now = self.clock_of(node);
        if let Some(client) = self.client_index(node) {
            self.clients[client].core.handle_closed(now, link);
            self.pump_client(client);
        } else if let Some(run) = &mut self.osds[node.0 as usize - 1].run
            && let Some(core) = &mut run.core
        {
            core.handle_closed(now, &mut run.store, link);
            self.pump_osd(node.0 as usize - 1);
        }
    }

    /// A connection is cut: what is under way is lost, and each side notices some time.
    pub fn cut_conn(&mut self, number: usize) {
        self.note(|| format!("connection {number} is cut"));
        self.net.conns[number].alive = false;
        for side in 0..2 {
            let delay = self.rng.range(10, 1_000_000);
            self.after(delay, Event::Broken { conn: number, side });
        }
    }

    /// A node died: its connections die with it, and the others notice.
    pub(super) fn break_all(&mut self, node: NodeId) {
        for number in self.net.alive_of(node) {
            self.net.conns[number].alive = false;
            for side in 0..2 {
                let delay = self.rng.range(10, 5_000);
                self.after(delay, Event::Broken { conn: number, side });
            }
        }
    }
}
