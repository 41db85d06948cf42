//! The state machine of all connections: receiving, sending, ending.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::conn::{Conn, Phase};
use crate::event::{ConnId, Event};
use crate::op::{self, Key, Kind};
use crate::reactor::Core;
use crate::ring::Completion;
use crate::slots::{SlotId, Slots};

/// A driver that holds back while [`send_queue_bytes`](crate::Reactor::send_queue_bytes) is above a limit must not choose
/// it lower than this: a queue of up to so many bytes may drain without ending the turn that drains it. Bytes.
pub const SEND_QUIET_MAX: usize = 64 << 10;

/// All connections of a reactor.
#[derive(Default)]
pub(crate) struct Net {
    pub(crate) conns: Slots<Conn>,
    /// Connections with output to submit before the next wait.
    dirty: Vec<SlotId>,
    /// Connections with a send that completes only if it fails.
    sent_now: Vec<SlotId>,
    /// Connections whose receive ended because no buffer was free, in order.
    starved: VecDeque<SlotId>,
    /// When closing connections are cut, in order of time (the patience is the same for all).
    deadlines: VecDeque<(Instant, SlotId)>,
}

impl Net {
    /// Takes over an accepted socket and starts to receive.
    pub(crate) fn adopt(&mut self, core: &mut Core, socket: Socket) -> SlotId {
        let id = self.conns.insert(Conn::new(Some(socket), Phase::Open));
        self.receive(core, id);
        id
    }

    /// Starts to connect; failures are reported as the connection's end.
    pub(crate) fn connect(&mut self, core: &mut Core, domain: Domain, address: SockAddr) -> io::Result<SlotId> {
        let socket = match domain {
            Domain::UNIX => Socket::new(domain, Type::STREAM, None)?,
            _ => Self::tcp_socket(domain)?,
        };
        let mut conn = Conn::new(Some(socket), Phase::Connecting);
        let fd = conn.fd();
        conn.target = Some(Box::new(address));
        let id = self.conns.insert(conn);
        let target = self.conns.get(id).and_then(|c| c.target.as_deref()).expect("just set");
        // SAFETY: the boxed address is dropped by `handle_connect`, that is at the completion, or with the slot
        // after `Ring::drain`.
        unsafe { op::connect(&mut core.ring, id, fd, target) }
        Ok(id)
    }

    /// A connection that could not even be begun.
    pub(crate) fn stillborn(&mut self, core: &mut Core, error: io::Error) -> SlotId {
        let id = self.conns.insert(Conn::new(None, Phase::Connecting));
        self.end(core, id, Some(error));
        id
    }

    /// The connection, if the driver may still use it.
    pub(crate) fn usable(&mut self, id: SlotId) -> Option<&mut Conn> {
        self.conns.get_mut(id).filter(|c| !c.deaf && c.phase != Phase::Ended)
    }

    /// Whether events of this connection still go to the driver.
    pub(crate) fn is_heard(&self, id: SlotId) -> bool {
        self.conns.get(id).is_some_and(|c| !c.deaf)
    }

    /// Notes that there is output.
    pub(crate) fn mark_dirty(&mut self, id: SlotId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !conn.dirty && !conn.sending && conn.can_send() && conn.outgoing.len() > 0 {
            conn.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Submits what has gathered since the last wait.
    pub(crate) fn flush(&mut self, core: &mut Core) {
        for i in 0..self.dirty.len() {
            self.send(core, self.dirty[i]);
        }
        self.dirty.clear();
        self.feed_starved(core);
    }

    fn feed_starved(&mut self, core: &mut Core) {
        let mut free = core.pool.free();
        while free > 0
            && let Some(id) = self.starved.pop_front()
        {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            conn.starved = false;
            free -= usize::from(conn.wants_input());
            self.receive(core, id);
        }
    }

    fn send(&mut self, core: &mut Core, id: SlotId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.dirty = false;
        if conn.sending || !conn.can_send() || conn.outgoing.len() == 0 {
            return;
        }
        let fd = conn.fd();
        conn.sending = true;
        conn.sending_bytes = conn.outgoing.prepare();
        // What one operation does not cover must be continued at its completion, so that has to be posted; and a
        // driver that waits for a long queue to shrink has to be woken by one.
        let now = !conn.blocked && conn.sending_bytes == conn.outgoing.len() && conn.sending_bytes <= SEND_QUIET_MAX;
        let outgoing = &mut conn.outgoing;
        // SAFETY: the slot lives while `sending` is set, and with it `outgoing`, which keeps the flying batch, the
        // list and the header unchanged until `advance` or `prepare`; both are called only with `sending` reset, by
        // `handle_send` at the completion or by `settle`.
        unsafe { op::send(&mut core.ring, id, fd, &mut outgoing.header, &mut outgoing.list, now) }
        if now {
            self.sent_now.push(id);
        }
    }

    /// Whether an earlier enter left it open how its sends ended: then the next must not wait.
    pub(crate) fn is_unsettled(&self) -> bool {
        !self.sent_now.is_empty()
    }

    /// After an enter and its completions: the sends that did not complete have succeeded.
    pub(crate) fn settle(&mut self, core: &mut Core) {
        if self.sent_now.is_empty() || !core.ring.is_settled() {
            return;
        }
        let mut sent = std::mem::take(&mut self.sent_now);
        for id in sent.drain(..) {
            self.handle_sent(core, id, None);
        }
        self.sent_now = sent;
    }

    /// Makes sure that a receive is in flight, if one is wanted.
    pub(crate) fn receive(&mut self, core: &mut Core, id: SlotId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.wants_input() && !conn.receiving && !conn.starved {
            conn.receiving = true;
            op::receive(&mut core.ring, id, conn.fd(), core.pool.group());
        }
    }

    pub(crate) fn pause(&mut self, core: &mut Core, id: SlotId) {
        let Some(conn) = self.usable(id).filter(|c| !c.paused) else { return };
        conn.paused = true;
        if conn.receiving {
            core.ring.cancel(Key::new(Kind::Receive, id));
        }
    }

    pub(crate) fn resume(&mut self, core: &mut Core, id: SlotId) {
        let Some(conn) = self.usable(id) else { return };
        conn.paused = false;
        self.receive(core, id);
    }

    /// Ends a connection after its output; see [`Phase`].
    pub(crate) fn close(&mut self, core: &mut Core, id: SlotId, patience: Duration) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.deaf = true;
        match conn.phase {
            Phase::Connecting => return self.end(core, id, None),
            Phase::Open => conn.phase = Phase::Draining,
            Phase::Draining | Phase::Lingering => return,
            Phase::Ended => return self.release(id),
        }
        self.deadlines.push_back((core.now + patience, id));
        self.receive(core, id);
        self.linger_when_sent(core, id);
    }

    pub(crate) fn abort(&mut self, core: &mut Core, id: SlotId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.deaf = true;
        // So that the kernel drops what the peer has not taken. It only fails on sockets that never connected.
        let _ = conn.socket.as_ref().map(|s| s.set_linger(Some(Duration::ZERO)));
        self.end(core, id, None);
    }

    fn linger_when_sent(&mut self, core: &mut Core, id: SlotId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.phase != Phase::Draining || conn.outgoing.len() > 0 {
            return;
        }
        conn.phase = Phase::Lingering;
        let told = conn.socket.as_ref().is_some_and(|s| s.shutdown(Shutdown::Write).is_ok());
        if conn.end_of_input || !told {
            self.end(core, id, None);
        }
    }

    /// Ends a connection at once and reports it, unless the driver knows.
    pub(crate) fn end(&mut self, core: &mut Core, id: SlotId, error: Option<io::Error>) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.phase != Phase::Ended {
            conn.phase = Phase::Ended;
            conn.outgoing.discard_pending();
            let running =
                [(Kind::Receive, conn.receiving), (Kind::Send, conn.sending), (Kind::Connect, conn.target.is_some())];
            for (kind, _) in running.into_iter().filter(|(_, running)| *running) {
                core.ring.cancel(Key::new(kind, id));
            }
            if !conn.deaf {
                core.events.push_back(Event::Closed { conn: ConnId(id), error });
            }
        }
        self.release(id);
    }

    /// The driver took the `Closed` event.
    pub(crate) fn forget(&mut self, id: SlotId) {
        if let Some(conn) = self.conns.get_mut(id) {
            debug_assert_eq!(conn.phase, Phase::Ended);
            conn.deaf = true;
        }
        self.release(id);
    }

    /// Frees the slot and closes the socket, once neither kernel nor driver refer to it.
    fn release(&mut self, id: SlotId) {
        let over = |c: &Conn| c.phase == Phase::Ended && c.deaf && !c.is_in_flight();
        if self.conns.get(id).is_some_and(over) {
            self.conns.remove(id);
        }
    }

    /// When [`Net::expire`] has something to do next.
    pub(crate) fn deadline(&mut self) -> Option<Instant> {
        while let Some((_, id)) = self.deadlines.front()
            && self.conns.get(*id).is_none_or(|c| c.phase == Phase::Ended)
        {
            self.deadlines.pop_front();
        }
        self.deadlines.front().map(|(at, _)| *at)
    }

    /// Cuts closing connections whose time is over.
    pub(crate) fn expire(&mut self, core: &mut Core) {
        while self.deadline().is_some_and(|at| at <= core.now) {
            if let Some((_, id)) = self.deadlines.pop_front() {
                self.abort(core, id);
            }
        }
    }

    pub(crate) fn handle_connect(&mut self, core: &mut Core, completion: Completion) {
        let id = completion.key.slot;
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.target = None;
        match completion.outcome() {
            _ if conn.phase == Phase::Ended => self.release(id),
            Ok(_) => {
                conn.phase = Phase::Open;
                core.events.push_back(Event::Connected { conn: ConnId(id) });
                self.receive(core, id);
                self.mark_dirty(id);
            }
            Err(e) => self.end(core, id, Some(e)),
        }
    }

    pub(crate) fn handle_receive(&mut self, core: &mut Core, completion: Completion) {
        let id = completion.key.slot;
        // Taken first: whatever else is the matter, the buffer has to go back.
        let len = usize::try_from(completion.result).unwrap_or(0);
        let data = completion.buffer().map(|buffer| core.pool.take(buffer, len));
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.receiving = completion.more();
        match (completion.outcome(), data) {
            (Ok(1..), Some(data)) => {
                if !conn.deaf && conn.phase != Phase::Ended {
                    core.events.push_back(Event::Received { conn: ConnId(id), data });
                }
            }
            (Ok(_), _) => self.input_ended(core, id),
            (Err(e), _) => self.receive_failed(core, id, e),
        }
        self.receive(core, id);
        self.release(id);
    }

    fn input_ended(&mut self, core: &mut Core, id: SlotId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.end_of_input = true;
        if conn.phase != Phase::Draining {
            self.end(core, id, None);
        }
    }

    fn receive_failed(&mut self, core: &mut Core, id: SlotId, error: io::Error) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        match error.raw_os_error() {
            Some(libc::ENOBUFS) if conn.wants_input() => {
                conn.starved = true;
                self.starved.push_back(id);
            }
            // Ended on request (a pause, perhaps taken back meanwhile), or to be tried again.
            Some(libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN) => {}
            _ => self.end(core, id, Some(error)),
        }
    }

    pub(crate) fn handle_send(&mut self, core: &mut Core, completion: Completion) {
        let id = completion.key.slot;
        if completion.key.kind == Kind::SendNow {
            // Rare, so that a search is cheaper than more state.
            self.sent_now.retain(|sent| *sent != id);
        }
        self.handle_sent(core, id, Some(completion.outcome()));
    }

    /// A send ended; `None` is a complete success.
    fn handle_sent(&mut self, core: &mut Core, id: SlotId, outcome: Option<io::Result<usize>>) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        debug_assert!(conn.sending);
        conn.sending = false;
        let all = conn.sending_bytes;
        let failure = match outcome.unwrap_or(Ok(all)) {
            Ok(count) => {
                conn.blocked = count < all;
                conn.outgoing.advance(count);
                None
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {
                conn.blocked = true;
                None
            }
            Err(e) => Some(e),
        };
        if let Some(e) = failure {
            self.end(core, id, Some(e));
        }
        self.mark_dirty(id);
        self.linger_when_sent(core, id);
        self.release(id);
    }

    /// A socket of the right family for listening or connecting.
    pub(crate) fn tcp_socket(domain: Domain) -> io::Result<Socket> {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        avoid_pacing(&socket);
        Ok(socket)
    }
}

/// Takes another congestion control for a socket where the system's default is BBR, which sends by a timer: made for the
/// internet, it costs requests and answers within a data centre CPU time and latency. Other defaults (DCTCP) are
/// somebody's choice and stay, as does BBR where the system allows nothing else. Connections that a listener accepts
/// inherit its choice.
fn avoid_pacing(socket: &Socket) {
    if socket.tcp_congestion().is_ok_and(|name| name.starts_with(b"bbr")) {
        let _ = socket.set_tcp_congestion(b"cubic").or_else(|_| socket.set_tcp_congestion(b"reno"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bbr_is_replaced() {
        let socket = Net::tcp_socket(Domain::IPV4).unwrap();
        assert!(!socket.tcp_congestion().unwrap().starts_with(b"bbr"));
        socket.set_tcp_congestion(b"reno").unwrap();
        avoid_pacing(&socket);
        assert!(socket.tcp_congestion().unwrap().starts_with(b"reno"));
        if socket.set_tcp_congestion(b"bbr").is_err() {
            eprintln!("not tested further: this kernel has no BBR, or does not let this user choose it");
            return;
        }
        avoid_pacing(&socket);
        assert!(!socket.tcp_congestion().unwrap().starts_with(b"bbr"));
    }
}
