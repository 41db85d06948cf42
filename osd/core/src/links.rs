//! Connections of an OSD: those it keeps to the members of the PGs it leads, and those that clients and primaries made.

use std::collections::BTreeMap;

use cluster_proto::ids::{ClientId, Incarnation, OsdId};
use cluster_proto::limits::{HELLO_TIMEOUT_MS, PING_TIMEOUT_MS};
use cluster_proto::link::{Accepting, LinkId, Millis, Outgoing};
use cluster_proto::map::Member;
use cluster_proto::wire::Nonce;

use crate::pg::Peer;

/// Who made a connection to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Caller {
    /// Not introduced yet.
    Unknown {
        deadline: Millis,
    },
    Client(ClientId),
    Osd(OsdId, Incarnation),
}

#[derive(Debug)]
pub(crate) struct Incoming {
    pub caller: Caller,
    /// Its introduction, as long as it is unknown.
    pub accepting: Accepting,
    pub heard: Millis,
    /// When we last said something to the other side that lets it count on us as a member of its PGs.
    pub granted: Millis,
}

#[derive(Default)]
pub(crate) struct Links {
    last: u64,
    pub incoming: BTreeMap<LinkId, Incoming>,
    pub outgoing: BTreeMap<OsdId, Outgoing>,
}

impl Links {
    pub fn fresh(&mut self) -> LinkId {
        self.last += 1;
        LinkId(self.last)
    }

    pub fn accept(&mut self, now: Millis, nonce: Nonce) -> LinkId {
        let link = self.fresh();
        let caller = Caller::Unknown { deadline: now + HELLO_TIMEOUT_MS };
        let accepting = Accepting::new(nonce);
        self.incoming.insert(link, Incoming { caller, accepting, heard: now, granted: now });
        link
    }

    /// The OSD to which we opened this connection.
    pub fn outgoing_by_link(&mut self, link: LinkId) -> Option<&mut Outgoing> {
        self.outgoing.values_mut().find(|out| out.link() == Some(link))
    }

    /// What we say on this connection now lets the other side count on us.
    pub fn grant(&mut self, link: LinkId, now: Millis) {
        if let Some(incoming) = self.incoming.get_mut(&link) {
            incoming.granted = now;
        }
    }

    /// Our introduced connection to a peer of a PG.
    pub fn ready_peer(&self, peer: &Peer) -> Option<LinkId> {
        let (link, run) = self.outgoing.get(&peer.osd)?.ready()?;
        peer.member.is_none_or(|member| member.incarnation == run).then_some(link)
    }

    /// Whether the OSD was reached, in another run.
    pub fn runs_otherwise(&self, member: Member) -> bool {
        let run = self.outgoing.get(&member.osd).and_then(|out| out.ready());
        run.is_some_and(|(_, incarnation)| incarnation != member.incarnation)
    }

    /// Incoming connections that never introduced themselves or fell silent.
    pub fn expired(&self, now: Millis) -> Vec<LinkId> {
        let is_expired = |incoming: &Incoming| match incoming.caller {
            Caller::Unknown { deadline } => deadline <= now,
            Caller::Client(_) | Caller::Osd(..) => incoming.heard + 2 * PING_TIMEOUT_MS <= now,
        };
        self.incoming.iter().filter(|(_, i)| is_expired(i)).map(|(link, _)| *link).collect()
    }
}
