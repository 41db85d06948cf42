//! One connection, from the greeting to the close.

mod admission;
mod block_status;
mod export;
mod gather;
mod handshake;
mod info;
mod meta_context;
mod option;
mod outbox;
mod read;
mod reply;
mod slots;
mod transmission;
mod write;
mod zero;

use gateway_core::{Exports, Millis, Output, VolumeEvent, VolumeReply};

use crate::limits::Limits;
use export::Export;
use handshake::Handshake;
use outbox::Outbox;
use transmission::Transmission;

/// What the client and the server have agreed replies to look like. Each is a step up from the one before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Mode {
    Simple,
    Structured,
    Extended,
}

/// What became of the input so far.
enum Outcome {
    Continue,
    Begin(Agreement),
    Close,
}

/// The result of a successful handshake.
struct Agreement {
    export: Export,
    mode: Mode,
    base_allocation: bool,
}

// One per connection, and `Transmission` is by far the more frequent one: boxing it would add a hop to each request.
#[allow(clippy::large_enum_variant)]
enum State {
    /// Greeting sent; the client's flags or options are next (the protocol's handshake and option haggling).
    Handshake(Handshake),
    Transmission(Transmission),
    /// `Close` was given out.
    Closed,
}

/// The server side of one NBD connection.
///
/// Driven by the gateway: bytes of the socket go in through `handle_bytes`, [`Output`] comes out, replies of the volume
/// go in through `handle_reply` in any order. Requests of one connection run concurrently and are answered as they end.
/// A session attaches when the client has chosen an export with `EXPORT_NAME` or `GO`, never before.
///
/// Bytes are parsed where they lie; only headers cut by the end of a slice are gathered in 32 bytes of the session, and
/// the payload of a write is copied once, into the aligned memory that goes to the device. Beyond its bound of requests
/// in flight a session keeps parsed requests until there is room, in memory proportional to the last slice; the driver
/// stops reading while `is_saturated`.
pub struct Session {
    state: State,
    outbox: Outbox,
    limits: Limits,
}

impl Session {
    /// A connection that was accepted at `now`. The greeting is the first output.
    pub fn new(now: Millis, limits: Limits) -> Self {
        let mut outbox = Outbox::default();
        let state = State::Handshake(Handshake::new(now, &limits, &mut outbox));
        Self { state, outbox, limits }
    }

    /// Bytes of memory held for received requests and payload that are not at the volume yet.
    pub fn memory_bytes(&self) -> usize {
        match &self.state {
            State::Handshake(handshake) => handshake.memory_bytes(),
            State::Transmission(transmission) => transmission.memory_bytes(),
            State::Closed => 0,
        }
    }

    /// Requests at the volume.
    pub fn requests_in_flight(&self) -> usize {
        match &self.state {
            State::Transmission(transmission) => transmission.in_flight(),
            State::Handshake(_) | State::Closed => 0,
        }
    }

    fn enter(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Continue => {}
            Outcome::Begin(agreement) => {
                self.state = State::Transmission(Transmission::new(agreement, self.limits.clone()));
            }
            Outcome::Close => {
                self.outbox.close();
                self.state = State::Closed;
            }
        }
        debug_assert!(self.check_invariants());
    }

    fn check_invariants(&self) -> bool {
        match &self.state {
            State::Transmission(transmission) => transmission.check_invariants(),
            State::Handshake(_) | State::Closed => true,
        }
    }
}

impl gateway_core::Session for Session {
    fn handle_bytes(&mut self, now: Millis, exports: &dyn Exports, bytes: &[u8]) {
        let mut input = bytes;
        while !input.is_empty() {
            let outcome = match &mut self.state {
                State::Handshake(handshake) => handshake.handle_bytes(now, exports, &mut input, &mut self.outbox),
                State::Transmission(transmission) => transmission.handle_bytes(&mut input, &mut self.outbox),
                State::Closed => return,
            };
            self.enter(outcome);
        }
    }

    fn handle_reply(&mut self, _now: Millis, tag: u64, reply: VolumeReply) {
        if let State::Transmission(transmission) = &mut self.state {
            let outcome = transmission.handle_reply(tag, reply, &mut self.outbox);
            self.enter(outcome);
        }
    }

    fn handle_event(&mut self, _now: Millis, event: VolumeEvent) {
        if let State::Transmission(transmission) = &mut self.state {
            transmission.handle_event(event);
        }
    }

    fn handle_timeout(&mut self, now: Millis) {
        if self.poll_timeout().is_some_and(|deadline| now >= deadline) {
            self.enter(Outcome::Close);
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outbox.poll()
    }

    fn poll_timeout(&self) -> Option<Millis> {
        match &self.state {
            State::Handshake(handshake) => Some(handshake.deadline()),
            State::Transmission(_) | State::Closed => None,
        }
    }

    fn is_saturated(&self) -> bool {
        matches!(&self.state, State::Transmission(transmission) if transmission.is_saturated())
    }
}
