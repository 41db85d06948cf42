//! One connection: its phase, and what of it is with the kernel.

use std::os::fd::{AsRawFd, RawFd};

use socket2::{SockAddr, Socket};

use crate::outgoing::Outgoing;

/// Where a connection stands.
///
/// `Connecting -> Open -> Draining -> Lingering -> Ended`, and from each of them directly to `Ended`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// A connect is in flight.
    Connecting,
    /// Bytes flow.
    Open,
    /// The driver closed it; what was queued is still being sent. Input is discarded.
    Draining,
    /// All is sent and the peer was told so. Input is discarded until the peer ends its side, so that the kernel
    /// does not answer late input with a reset that would destroy what the peer has not read yet.
    Lingering,
    /// Over. The slot lives on until its operations are completed and its `Closed` event is delivered.
    Ended,
}

/// A connection's slot. It owns the socket and all memory its operations refer to.
pub(crate) struct Conn {
    /// `None` only if there was none to be had.
    pub(crate) socket: Option<Socket>,
    pub(crate) phase: Phase,
    /// The driver wants no more events: it closed the connection or has been told of its end.
    pub(crate) deaf: bool,
    /// The driver asked to receive no more for now.
    pub(crate) paused: bool,
    /// The peer ended its side.
    pub(crate) end_of_input: bool,
    /// A multishot receive is in flight.
    pub(crate) receiving: bool,
    /// Waits for a free receive buffer.
    pub(crate) starved: bool,
    /// A send is in flight.
    pub(crate) sending: bool,
    /// Its bytes.
    pub(crate) sending_bytes: usize,
    /// The last send found the socket full: the next one has to wait.
    pub(crate) blocked: bool,
    /// Has output and is in the list of those to be submitted before the next wait.
    pub(crate) dirty: bool,
    pub(crate) outgoing: Outgoing,
    /// The target of a connect, kept for the kernel while `Some`.
    pub(crate) target: Option<Box<SockAddr>>,
}

impl Conn {
    pub(crate) fn new(socket: Option<Socket>, phase: Phase) -> Self {
        Self {
            socket,
            phase,
            deaf: false,
            paused: false,
            end_of_input: false,
            receiving: false,
            starved: false,
            sending: false,
            sending_bytes: 0,
            blocked: false,
            dirty: false,
            outgoing: Outgoing::default(),
            target: None,
        }
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket.as_ref().map_or(-1, |s| s.as_raw_fd())
    }

    /// Whether the kernel may still refer to this slot.
    pub(crate) fn is_in_flight(&self) -> bool {
        self.receiving || self.sending || self.target.is_some()
    }

    /// Whether a receive should be in flight.
    pub(crate) fn wants_input(&self) -> bool {
        let flowing = match self.phase {
            Phase::Open => !self.paused,
            Phase::Draining | Phase::Lingering => true,
            Phase::Connecting | Phase::Ended => false,
        };
        flowing && !self.end_of_input
    }

    pub(crate) fn can_send(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Draining)
    }
}
