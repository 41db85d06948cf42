//! Clients and their work.

use cluster_client::{ImageOp, Output as ClientOutput};

use super::{CLIENT_BASE, Event, World};
use crate::net::NodeId;
use crate::nodes::ClientNode;
use crate::workload::{self, Record};

impl World {
    pub(super) fn add_client(&mut self, number: u32, life: u32, to_do: u32) {
        let (size, block) = (self.shape.size, self.shape.block as u32);
        let credentials = self.credentials.clone();
        let client = ClientNode::new((NodeId(number), life), (size, block), to_do, credentials, &mut self.rng);
        let (node, index) = (client.node, (number - CLIENT_BASE) as usize);
        if index < self.clients.len() {
            self.clients[index] = client;
        } else {
            self.clients.push(client);
        }
        let delay = self.state_delay();
        self.after(delay, Event::State { node, life });
        self.after(0, Event::Wake { node, life });
        self.after(0, Event::Begin { client: index, life });
    }

    /// A client dies and another takes its place; what it had asked for may or may not happen.
    pub fn crash_client(&mut self, client: usize) {
        let old = &self.clients[client];
        let (number, life, to_do) = (old.node.0, old.life, old.to_do);
        self.lazy.dead.insert(old.run_number());
        self.note(|| format!("client {number} dies"));
        self.break_all(NodeId(number));
        self.add_client(number, life + 1, to_do);
    }

    pub(super) fn begin(&mut self, client: usize, life: u32) {
        let at_once = 4;
        let node = &self.clients[client];
        if node.life != life || node.to_do == 0 {
            return;
        }
        if node.pending.len() < at_once {
            let op = self.records.len() as u64 + 1;
            let (mut record, mut image_op) = workload::make(&mut self.rng, self.shape, op);
            while self.is_left_out(&image_op) {
                (record, image_op) = workload::make(&mut self.rng, self.shape, op);
            }
            self.clients[client].to_do -= 1;
            self.submit(client, record, image_op);
            self.flush_sometimes(client);
        }
        let pause = if self.rng.one_in(2) { self.rng.range(1, 1_000) } else { self.rng.range(1, 60_000) };
        self.after(pause, Event::Begin { client, life });
    }

    pub(crate) fn submit(&mut self, client: usize, record: Record, op: ImageOp) {
        let number = self.records.len() as u64;
        self.note(|| {
            format!("client {client} begins {} {:?} {}+{}", number + 1, record.kind, record.offset, record.len)
        });
        let node = &mut self.clients[client];
        let lazy = !self.osds[0].disk.is_write_through() && workload::is_lazy(&record, &op, self.lazy.pool);
        self.records.push(Record { start: self.stamp, client: node.run_number(), lazy, ..record });
        node.pending.insert(number);
        node.core.submit(node.image, number, op);
        self.pump_client(client);
    }

    pub(super) fn pump_client(&mut self, client: usize) {
        loop {
            let node = &mut self.clients[client];
            let (id, life) = (node.node, node.life);
            if let Some((_, tag, reply)) = node.core.poll_reply() {
                node.pending.remove(&tag);
                self.answered += 1;
                self.note(|| format!("client {client} has the answer to {}: ok {}", tag + 1, reply.is_ok()));
                if self.is_excused(&self.records[tag as usize], &reply) {
                    // Whether it changed something, and when, nobody knows.
                    continue;
                }
                if let Err(why) = workload::answered(&mut self.records[tag as usize], self.stamp, reply) {
                    return self.fail(why);
                }
                continue;
            }
            match node.core.poll_output() {
                Some(ClientOutput::Connect { link, address }) => self.dial(id, life, link, address),
                Some(ClientOutput::Send { link, message }) => self.send(id, life, link, &message),
                Some(ClientOutput::Introduced { link, session }) => self.introduced(id, life, link, session),
                Some(ClientOutput::Notice(text)) => self.note(|| format!("client {}: {text}", id.0)),
                Some(ClientOutput::Close(link)) => self.hang_up(id, life, link),
                None => break,
            }
        }
        let node = &mut self.clients[client];
        let wake = (node.core.poll_timeout() * 1000).max(self.now + 1);
        if node.wake <= self.now || wake < node.wake {
            node.wake = wake;
            let (node, life) = (node.node, node.life);
            self.at(wake, Event::Wake { node, life });
        }
    }
}
