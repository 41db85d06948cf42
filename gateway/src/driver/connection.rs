//! One initiator's connection: its protocol session, what it is attached to, and its backpressure.

use std::collections::VecDeque;
use std::rc::Rc;

use cluster_io::{ConnId, Reactor};
use gateway_core::{Exports, Millis, Output, Session, VolumeEvent, VolumeReply};

use crate::config::{SEND_QUEUE_MAX, SLICE_MAX};
use crate::directory::{Attachment, Export};

/// A connection. It lives in [`Connections`], found by its id.
pub(crate) struct Connection {
    pub conn: ConnId,
    pub session: Box<dyn Session>,
    pub attachment: Option<Attachment>,
    /// Requests at the volume.
    pub in_flight: u32,
    /// Answers that wait until the client has taken what is queued already.
    answers: VecDeque<(u64, VolumeReply)>,
    /// Whether its socket is read at the moment.
    paused: bool,
    /// When its session wants to be called, as noted in the list of timers.
    pub timer: Option<Millis>,
}

impl Connection {
    pub(crate) fn new(conn: ConnId, session: Box<dyn Session>) -> Self {
        Self { conn, session, attachment: None, in_flight: 0, answers: VecDeque::new(), paused: false, timer: None }
    }

    /// Bytes came from the initiator.
    pub(crate) fn handle_bytes(&mut self, now: Millis, exports: &dyn Exports, bytes: &[u8]) {
        for slice in bytes.chunks(SLICE_MAX) {
            self.session.handle_bytes(now, exports, slice);
        }
    }

    /// A request ended. Its answer waits while the client does not take what is queued already: the session, which
    /// starts further requests as answers come in, then starts none.
    pub(crate) fn handle_reply(&mut self, tag: u64, reply: VolumeReply) {
        self.answers.push_back((tag, reply));
    }

    /// Hands the session the next answer, if the client takes what is sent. False: nothing was done.
    pub(crate) fn answer(&mut self, now: Millis, io: &Reactor) -> bool {
        if io.send_queue_bytes(self.conn) > SEND_QUEUE_MAX {
            return false;
        }
        let Some((tag, reply)) = self.answers.pop_front() else { return false };
        self.in_flight -= 1;
        self.session.handle_reply(now, tag, reply);
        true
    }

    /// An export changed. Returns whether it is this connection's.
    pub(crate) fn handle_event(&mut self, now: Millis, export: &Rc<Export>, event: &VolumeEvent) -> bool {
        let concerned = self.attachment.as_ref().is_some_and(|attachment| Rc::ptr_eq(&attachment.export, export));
        if concerned {
            self.session.handle_event(now, event.clone());
        }
        concerned
    }

    /// Sends what the session wants to send, up to the first output that is not for the socket.
    pub(crate) fn send(&mut self, io: &mut Reactor) -> Option<Output> {
        loop {
            match self.session.poll_output()? {
                Output::Bytes(bytes) => io.send_bytes(self.conn, &bytes),
                Output::Payload(data) => io.send_buffer(self.conn, data),
                other => return Some(other),
            }
        }
    }

    /// Reads from the socket or not, as the session, the socket's other direction and the gateway as a whole (`is_full`)
    /// allow. Returns whether it is paused.
    pub(crate) fn regulate(&mut self, io: &mut Reactor, is_full: bool) -> bool {
        let pause = is_full || self.session.is_saturated() || io.send_queue_bytes(self.conn) > SEND_QUEUE_MAX;
        if pause != self.paused {
            self.paused = pause;
            if pause { io.pause_receive(self.conn) } else { io.resume_receive(self.conn) }
        }
        pause
    }
}

/// All connections of a gateway, by the index of their sockets.
#[derive(Default)]
pub(crate) struct Connections {
    slots: Vec<Option<Connection>>,
    count: usize,
}

impl Connections {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn insert(&mut self, connection: Connection) {
        let index = connection.conn.index();
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        debug_assert!(self.slots[index].is_none(), "the end of a connection is handled before its slot is used again");
        self.count += 1;
        self.slots[index] = Some(connection);
    }

    pub(crate) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.slots.get_mut(conn.index())?.as_mut().filter(|connection| connection.conn == conn)
    }

    pub(crate) fn remove(&mut self, conn: ConnId) -> Option<Connection> {
        let connection = self.slots.get_mut(conn.index())?.take_if(|connection| connection.conn == conn)?;
        self.count -= 1;
        Some(connection)
    }

    pub(crate) fn ids(&self) -> Vec<ConnId> {
        self.slots.iter().flatten().map(|connection| connection.conn).collect()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Connection> {
        self.slots.iter_mut().flatten()
    }
}
