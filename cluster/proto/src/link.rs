//! Both sides of a connection to an OSD, as state machines. [`Outgoing`] connects, introduces itself, keeps alive, backs off;
//! clients and primaries use the same one. [`Accepting`] is the introduction as the OSD at the other end sees it. Times are
//! milliseconds on the caller's monotonic clock.
//!
//! ```text
//! connecting side                                accepting side
//!   Hello {who, security, nonce}          -->
//!                                         <--    Welcome {who, security, nonce} proof      or Refuse
//!   Proof                                 -->                                              or Refuse
//! ```
//!
//! Without cluster keys there are no proofs: the accepting side takes the Hello for an introduction. With them it takes
//! nothing before the Proof as one. If either side wants encryption, all is sealed that follows the Welcome in one direction
//! and the Proof in the other.

use std::net::SocketAddr;

use uuid::Uuid;

use crate::auth::{Credentials, Introductions, Side};
use crate::ids::{Incarnation, OsdId};
use crate::limits::{HELLO_TIMEOUT_MS, PING_INTERVAL_MS, PING_TIMEOUT_MS};
use crate::wire::{Hello, Message, Nonce, PROTOCOL, Refusal, Role, Security, Session, Welcome};

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
#[derive(Clone, Debug)]
pub struct Identity {
    /// Our cluster.
    pub cluster: Uuid,
    /// What we are.
    pub role: Role,
    /// Our run.
    pub incarnation: Incarnation,
    /// The cluster's key, if it has one.
    pub credentials: Option<Credentials>,
}

impl Identity {
    /// Our introduction, to an OSD or as one. `nonce` must be unpredictable and never used before.
    pub fn hello(&self, target: OsdId, nonce: Nonce) -> Hello {
        Hello {
            protocol: PROTOCOL,
            cluster: self.cluster,
            role: self.role,
            incarnation: self.incarnation,
            target,
            security: self.security(),
            nonce,
        }
    }

    fn security(&self) -> Security {
        match &self.credentials {
            None => Security::Open,
            Some(Credentials { encrypt: false, .. }) => Security::Proved,
            Some(Credentials { encrypt: true, .. }) => Security::Encrypted,
        }
    }

    /// What both sides judge alike of the other's introduction, apart from who it is.
    fn judge(&self, other: &Hello) -> Result<(), Refusal> {
        if other.protocol != PROTOCOL {
            Err(Refusal::Protocol)
        } else if other.cluster != self.cluster {
            Err(Refusal::Cluster)
        } else {
            Ok(())
        }
    }
}

/// A settled introduction.
#[derive(Debug)]
pub struct Introduced {
    /// Who is at the other end.
    pub role: Role,
    /// Its run.
    pub incarnation: Incarnation,
    /// To be sent, in plain.
    pub answer: Option<Message>,
    /// From then on everything is sealed and opened with this, if it is to be encrypted. Either way the connection's decoder is
    /// told ([`Decoder::introduce`](crate::wire::Decoder::introduce)) before it gets another byte.
    pub session: Option<Box<Session>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Backoff { until: Millis },
    Connecting { link: LinkId, address: SocketAddr, deadline: Millis },
    Handshaking { link: LinkId, address: SocketAddr, deadline: Millis, nonce: Nonce },
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
    /// Why one side refused the last attempt that got so far.
    refusal: Option<Refusal>,
}

impl Outgoing {
    /// Not connected yet; tries at once.
    pub fn new(target: OsdId) -> Self {
        Self { target, state: State::Backoff { until: 0 }, failures: 0, refusal: None }
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
            | State::Handshaking { link, address: used, deadline, .. } => {
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

    /// The connection is open: send the message now. `nonce` must be unpredictable and never used before.
    pub fn handle_connected(&mut self, identity: &Identity, nonce: Nonce) -> Option<Message> {
        let State::Connecting { link, address, deadline } = self.state else { return None };
        self.state = State::Handshaking { link, address, deadline, nonce };
        Some(Message::Hello(identity.hello(self.target, nonce)))
    }

    /// The OSD has introduced itself.
    ///
    /// # Errors
    /// It is not who we want, or cannot prove it: send the refusal, so that its operator sees it too, and close the connection.
    pub fn handle_welcome(
        &mut self,
        now: Millis,
        identity: &Identity,
        welcome: &Welcome,
    ) -> Result<Introduced, Refusal> {
        let State::Handshaking { link, address, nonce, .. } = self.state else { return Err(Refusal::NotHello) };
        let introduced = self.judge(identity, nonce, welcome)?;
        self.state = State::Ready(Ready {
            link,
            address,
            incarnation: introduced.incarnation,
            heard: now,
            pinged: now,
            waiting: false,
            answered: now,
        });
        self.failures = 0;
        self.refusal = None;
        Ok(introduced)
    }

    /// One of the two sides refused the other. True if that is news: attempts go on, and an operator need not read of each.
    pub fn handle_refusal(&mut self, why: Refusal) -> bool {
        self.refusal.replace(why) != Some(why)
    }

    fn judge(
        &self,
        identity: &Identity,
        nonce: Nonce,
        Welcome { hello: other, proof }: &Welcome,
    ) -> Result<Introduced, Refusal> {
        identity.judge(other)?;
        if other.role != Role::Osd(self.target) {
            return Err(Refusal::Target);
        }
        let (role, incarnation) = (other.role, other.incarnation);
        let (credentials, proof) = match (&identity.credentials, proof) {
            (None, None) => return Ok(Introduced { role, incarnation, answer: None, session: None }),
            (None, Some(_)) => return Err(Refusal::KeyMissing),
            (Some(_), None) => return Err(Refusal::KeyUnexpected),
            (Some(credentials), Some(proof)) => (credentials, proof),
        };
        let hello = identity.hello(self.target, nonce);
        let both = Introductions { hello: &hello, welcome: other };
        if !both.is_proved(&credentials.key, Side::Accepting, proof) {
            return Err(Refusal::Key);
        }
        let answer = Some(Message::Proof(both.proof(&credentials.key, Side::Connecting)));
        Ok(Introduced { role, incarnation, answer, session: both.session(credentials, Side::Connecting) })
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

/// What is to be done about a message of somebody who is not introduced yet.
#[derive(Debug)]
pub enum Accepted {
    /// Send this; more is to come.
    Answer(Message),
    /// It is introduced.
    Introduced(Introduced),
    /// Send the refusal and close the connection.
    Refused(Refusal),
    /// The other side does not want us: close the connection.
    Left(Refusal),
}

/// The introduction of a connection that somebody made to us, an OSD. Nobody is introduced before it says so; once it has,
/// it has done its work. Its owner keeps the time: [`HELLO_TIMEOUT_MS`].
#[derive(Debug)]
pub struct Accepting {
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    AwaitHello { nonce: Nonce },
    AwaitProof { hello: Hello, welcome: Hello },
    Over,
}

impl Accepting {
    /// Somebody connected. `nonce` must be unpredictable and never used before.
    pub fn new(nonce: Nonce) -> Self {
        Self { stage: Stage::AwaitHello { nonce } }
    }

    /// A message arrived.
    pub fn handle(&mut self, identity: &Identity, message: &Message) -> Accepted {
        match (std::mem::replace(&mut self.stage, Stage::Over), message) {
            (_, Message::Refuse(why)) => Accepted::Left(*why),
            (Stage::AwaitHello { nonce }, Message::Hello(hello)) => self.handle_hello(identity, *hello, nonce),
            (Stage::AwaitProof { hello, welcome }, Message::Proof(proof)) => {
                let both = Introductions { hello: &hello, welcome: &welcome };
                match &identity.credentials {
                    Some(credentials) if both.is_proved(&credentials.key, Side::Connecting, proof) => {
                        let session = both.session(credentials, Side::Accepting);
                        let (role, incarnation) = (hello.role, hello.incarnation);
                        Accepted::Introduced(Introduced { role, incarnation, answer: None, session })
                    }
                    _ => Accepted::Refused(Refusal::Key),
                }
            }
            _ => Accepted::Refused(Refusal::NotHello),
        }
    }

    fn handle_hello(&mut self, identity: &Identity, hello: Hello, nonce: Nonce) -> Accepted {
        if let Err(refusal) = judge_caller(identity, &hello) {
            return Accepted::Refused(refusal);
        }
        let welcome = identity.hello(hello.target, nonce);
        let Some(credentials) = &identity.credentials else {
            let (role, incarnation) = (hello.role, hello.incarnation);
            let answer = Some(Message::Welcome(Welcome { hello: welcome, proof: None }));
            return Accepted::Introduced(Introduced { role, incarnation, answer, session: None });
        };
        let both = Introductions { hello: &hello, welcome: &welcome };
        let proof = Some(both.proof(&credentials.key, Side::Accepting));
        self.stage = Stage::AwaitProof { hello, welcome };
        Accepted::Answer(Message::Welcome(Welcome { hello: welcome, proof }))
    }
}

fn judge_caller(identity: &Identity, hello: &Hello) -> Result<(), Refusal> {
    identity.judge(hello)?;
    if identity.role != Role::Osd(hello.target) {
        return Err(Refusal::Target);
    }
    match (identity.credentials.is_some(), hello.security.is_proved()) {
        (true, false) => Err(Refusal::KeyMissing),
        (false, true) => Err(Refusal::KeyUnexpected),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ClientId;

    fn identity() -> Identity {
        Identity {
            cluster: Uuid::from_u128(1),
            role: Role::Client(ClientId(5)),
            incarnation: Incarnation(6),
            credentials: None,
        }
    }

    fn welcome(osd: OsdId) -> Welcome {
        let hello = Hello { role: Role::Osd(osd), incarnation: Incarnation(9), ..identity().hello(osd, Nonce::ZERO) };
        Welcome { hello, proof: None }
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn ready() -> Outgoing {
        let mut out = Outgoing::new(OsdId(1));
        assert_eq!(out.poll(0, None, LinkId(1)), None);
        assert_eq!(out.poll(0, Some(address(1)), LinkId(1)), Some(LinkAction::Connect(address(1))));
        assert!(out.handle_connected(&identity(), Nonce::ZERO).is_some());
        let introduced = out.handle_welcome(10, &identity(), &welcome(OsdId(1))).unwrap();
        assert_eq!((introduced.role, introduced.incarnation), (Role::Osd(OsdId(1)), Incarnation(9)));
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
        out.handle_connected(&identity(), Nonce::ZERO);
        assert_eq!(out.handle_welcome(0, &identity(), &welcome(OsdId(2))).err(), Some(Refusal::Target));
        let news = [Refusal::Target, Refusal::Target, Refusal::Key].map(|why| out.handle_refusal(why));
        assert_eq!(news, [true, false, true]);
        assert_eq!(out.ready(), None);
    }
}
