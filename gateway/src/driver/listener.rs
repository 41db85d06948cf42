//! Listening sockets: where initiators come in, and which protocol they are spoken to in.

use std::net::SocketAddr;

use cluster_io::{ListenerId, Reactor};
use gateway_core::{Millis, Session};

use crate::config::GatewayOptions;
use crate::error::Error;

/// A protocol that is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protocol {
    Nbd,
}

impl Protocol {
    /// A session for a connection that was accepted at `now`.
    fn session(self, now: Millis) -> Box<dyn Session> {
        match self {
            Protocol::Nbd => Box::new(nbd::Session::new(now, nbd::Limits::default())),
        }
    }
}

/// All listening sockets of a gateway.
pub(crate) struct Listeners {
    open: Vec<(ListenerId, Protocol)>,
    /// Where NBD is served over TCP, with the ports that were chosen.
    pub nbd_addresses: Vec<SocketAddr>,
}

impl Listeners {
    /// Opens them all.
    pub(crate) fn open(io: &mut Reactor, options: &GatewayOptions) -> Result<Self, Error> {
        let mut listeners = Self { open: Vec::new(), nbd_addresses: Vec::new() };
        for &address in &options.nbd_tcp {
            let id = io.listen_tcp(address)?;
            listeners.nbd_addresses.push(io.local_addr(id).unwrap_or(address));
            listeners.open.push((id, Protocol::Nbd));
        }
        for path in &options.nbd_unix {
            listeners.open.push((io.listen_unix(path)?, Protocol::Nbd));
        }
        Ok(listeners)
    }

    /// A session for a connection that came in on `listener`.
    pub(crate) fn session(&self, listener: ListenerId, now: Millis) -> Option<Box<dyn Session>> {
        let (_, protocol) = self.open.iter().find(|(id, _)| *id == listener)?;
        Some(protocol.session(now))
    }

    /// Takes no more connections.
    pub(crate) fn close(&mut self, io: &mut Reactor) {
        for (id, _) in self.open.drain(..) {
            io.close_listener(id);
        }
    }
}
