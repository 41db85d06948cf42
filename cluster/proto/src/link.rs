//! The connecting side of a connection to an OSD, as a state machine: connect, introduce, keep alive, back off. Clients
//! and primaries use the same one. Times are milliseconds on the caller's monotonic clock.

use std::net::SocketAddr;

use uuid::Uuid;

use crate::ids::{Incarnation, OsdId};
use crate::limits::{HELLO_TIMEOUT_MS, PING_INTERVAL_MS, PING_TIMEOUT_MS};
use crate::wire::{Hello, PROTOCOL, Role};

/// Milliseconds on a monotonic clock.
pub type Millis = u64;

/// First pause after a failed attempt; doubles up to [`BACKOFF_MAX_MS`].
const BACKOFF_MIN_MS: u64 = 20;
/// Longest pause between attempts.
const BACKOFF_MAX_MS: u64 = 500;

/// A connection as the core and its driver name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct LinkId(pub u64);

/// Who we are, for introductions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Our cluster.
    pub cluster: Uuid,
    /// What we are.
    pub role: Role,
    /// Our run.
    pub incarnation: Incarnation,
}

impl Identity {
    /// Our introduction to an OSD.
    pub fn hello(&self, target: OsdId) -> Hello {
        Hello { protocol: PROTOCOL, cluster: self.cluster, role: self.role, incarnation: self.incarnation, target }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Backoff { until: Millis },
    Connecting { link: LinkId, address: SocketAddr, deadline: Millis },
    Handshaking { link: LinkId, address: SocketAddr, deadline: Millis },
    Ready(Ready),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ready {
    link: LinkId,
    address: SocketAddr,
    incarnation: Incarnation,
    heard: Millis,
    /// When the last probe was sent.
    pinged: Millis,
    /// Its answer is awaited.
    waiting: bool,
    /// When the last probe that was answered had been sent.
    answered: Millis,
}

/// What is to be done about a link now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkAction {
    /// Open a connection; it is known by the id given to [`Outgoing::poll`].
    Connect(SocketAddr),
    /// Send a ping.
    Ping(LinkId),
    /// Close this connection: it is silent, or the OSD has moved. [`Outgoing::handle_closed`] has been done.
    Close(LinkId),
}

/// A connection that we keep up to one OSD.
#[derive(Debug)]
pub struct Outgoing {
    target: OsdId,
    state: State,
    failures: u32,
}

impl Outgoing {
    /// Not connected yet; tries at once.
    pub fn new(target: OsdId) -> Self {
        Self { target, state: State::Backoff { until: 0 }, failures: 0 }
    }

    /// The OSD.
    pub fn target(&self) -> OsdId {
        self.target
    }

    /// The connection and the OSD's run, once introduced.
    pub fn ready(&self) -> Option<(LinkId, Incarnation)> {
        match self.state {
            State::Ready(ready) => Some((ready.link, ready.incarnation)),
            _ => None,
        }
    }

    /// Whether the OSD could not be reached or was lost since it was last ready.
    pub fn has_failed(&self) -> bool {
        self.failures > 0 && self.ready().is_none()
    }

    /// When the last probe that the OSD answered was sent (or the connection made): what the answer grants counts from there.
    pub fn answered(&self) -> Option<Millis> {
        match self.state {
            State::Ready(ready) => Some(ready.answered),
            _ => None,
        }
    }

    /// The connection in whatever state.
    pub fn link(&self) -> Option<LinkId> {
        match self.state {
            State::Backoff { .. } => None,
            State::Connecting { link, .. } | State::Handshaking { link, .. } | State::Ready(Ready { link, .. }) => {
                Some(link)
            }
        }
    }

    /// Next thing to do, given where the OSD is said to listen. Call until it returns `None`, and again at least every
    /// 100 ms. `fresh` becomes the id of a new connection.
    pub fn poll(&mut self, now: Millis, address: Option<SocketAddr>, fresh: LinkId) -> Option<LinkAction> {
        match &mut self.state {
            State::Backoff { until } => {
                let address = address.filter(|_| *until <= now)?;
                self.state = State::Connecting { link: fresh, address, deadline: now + HELLO_TIMEOUT_MS };
                Some(LinkAction::Connect(address))
            }
            State::Connecting { link, address: used, deadline }
            | State::Handshaking { link, address: used, deadline } => {
                let link = *link;
                (*deadline <= now || address.is_some_and(|a| a != *used)).then(|| self.give_up(now, link))
            }
            State::Ready(ready) => {
                let link = ready.link;
                if ready.heard + PING_TIMEOUT_MS <= now || address.is_some_and(|a| a != ready.address) {
                    return Some(self.give_up(now, link));
                }
                if !ready.waiting && ready.pinged + PING_INTERVAL_MS <= now {
                    (ready.pinged, ready.waiting) = (now, true);
                    return Some(LinkAction::Ping(link));
                }
                None
            }
        }
    }

    fn give_up(&mut self, now: Millis, link: LinkId) -> LinkAction {
        self.handle_closed(now);
        LinkAction::Close(link)
    }

    /// The connection is open: send the introduction now.
    pub fn handle_connected(&mut self) {
        if let State::Connecting { link, address, deadline } = self.state {
            self.state = State::Handshaking { link, address, deadline };
        }
    }

    /// The OSD has introduced itself. False if it is not who we want: close the connection.
    pub fn handle_welcome(&mut self, now: Millis, identity: &Identity, welcome: &Hello) -> bool {
        let State::Handshaking { link, address, .. } = self.state else { return false };
        let ok = welcome.protocol == PROTOCOL
            && welcome.cluster == identity.cluster
            && welcome.role == Role::Osd(self.target);
        if ok {
            let incarnation = welcome.incarnation;
            self.state = State::Ready(Ready {
                link,
                address,
                incarnation,
                heard: now,
                pinged: now,
                waiting: false,
                answered: now,
            });
            self.failures = 0;
        }
        ok
    }

    /// Something arrived.
    pub fn heard(&mut self, now: Millis) {
        if let State::Ready(ready) = &mut self.state {
            ready.heard = now;
        }
    }

    /// Our probe was answered.
    pub fn handle_pong(&mut self) {
        if let State::Ready(ready) = &mut self.state
            && std::mem::take(&mut ready.waiting)
        {
            ready.answered = ready.pinged;
        }
    }

    /// The connection is gone or could not be opened.
    pub fn handle_closed(&mut self, now: Millis) {
        let pause = (BACKOFF_MIN_MS << self.failures.min(6)).min(BACKOFF_MAX_MS);
        self.failures += 1;
        self.state = State::Backoff { until: now + pause };
    }

    /// The OSD is known to be back: try at once.
    pub fn reset_backoff(&mut self) {
        if let State::Backoff { until } = &mut self.state {
            *until = 0;
            self.failures = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ClientId;

    fn identity() -> Identity {
        Identity { cluster: Uuid::from_u128(1), role: Role::Client(ClientId(5)), incarnation: Incarnation(6) }
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn ready() -> Outgoing {
        let mut out = Outgoing::new(OsdId(1));
        assert_eq!(out.poll(0, None, LinkId(1)), None);
        assert_eq!(out.poll(0, Some(address(1)), LinkId(1)), Some(LinkAction::Connect(address(1))));
        out.handle_connected();
        let welcome = Hello { role: Role::Osd(OsdId(1)), incarnation: Incarnation(9), ..identity().hello(OsdId(1)) };
        assert!(out.handle_welcome(10, &identity(), &welcome));
        assert_eq!(out.ready(), Some((LinkId(1), Incarnation(9))));
        out
    }

    #[test]
    fn a_silent_connection_is_probed_and_given_up() {
        let mut out = ready();
        assert_eq!(out.poll(11, Some(address(1)), LinkId(2)), None);
        assert_eq!(out.poll(300, Some(address(1)), LinkId(2)), Some(LinkAction::Ping(LinkId(1))));
        out.heard(310);
        out.handle_pong();
        assert_eq!(out.answered(), Some(300), "counts from the question, not from the answer");
        assert_eq!(out.poll(320, Some(address(1)), LinkId(2)), None);
        assert_eq!(out.poll(550, Some(address(1)), LinkId(2)), Some(LinkAction::Ping(LinkId(1))));
        assert_eq!(out.poll(310 + PING_TIMEOUT_MS, Some(address(1)), LinkId(2)), Some(LinkAction::Close(LinkId(1))));
        assert_eq!(out.ready(), None);
    }

    #[test]
    fn an_osd_that_moved_is_followed() {
        let mut out = ready();
        assert_eq!(out.poll(20, Some(address(2)), LinkId(2)), Some(LinkAction::Close(LinkId(1))));
        assert_eq!(out.poll(20, Some(address(2)), LinkId(2)), None, "after a pause");
        out.reset_backoff();
        assert_eq!(out.poll(20, Some(address(2)), LinkId(2)), Some(LinkAction::Connect(address(2))));
    }

    #[test]
    fn a_stranger_is_not_accepted() {
        let mut out = Outgoing::new(OsdId(1));
        out.poll(0, Some(address(1)), LinkId(1));
        out.handle_connected();
        let other = Hello { role: Role::Osd(OsdId(2)), ..identity().hello(OsdId(1)) };
        assert!(!out.handle_welcome(0, &identity(), &other));
        assert_eq!(out.ready(), None);
    }
}
