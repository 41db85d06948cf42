//! Read leases. A primary answers reads only while each of its members has lately confirmed to follow it; a member that
//! follows another one tells the old one so, and the new one how long the old one may have missed that.

use cluster_proto::limits::{READ_LEASE_MS, READ_LEASE_WAIT_MS, REGISTRATION_LEASE_MS};
use cluster_proto::link::Millis;
use cluster_proto::map::Member;

use super::Pg;
use crate::links::Links;

/// What a member has promised to a primary that it no longer follows.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Granted {
    to: Option<Member>,
    until: Millis,
}

impl Granted {
    /// Milliseconds for which somebody may yet count on it to whom that is not `harmless`.
    pub fn left(&self, now: Millis, harmless: impl Fn(&Member) -> bool) -> u64 {
        if self.to.as_ref().is_none_or(harmless) { 0 } else { self.until.saturating_sub(now) }
    }

    /// Whether nobody can count on it any more.
    pub fn is_over(&self, now: Millis) -> bool {
        self.to.is_none() || self.until <= now
    }
}

impl Pg {
    /// As a member: the last word to our primary on its connection was at `last`. Called when we stop following it or lose it.
    pub fn lease_ends(&mut self, primary: Member, last: Millis) {
        let until = last + READ_LEASE_WAIT_MS;
        if until > self.lease.until {
            self.lease = Granted { to: Some(primary), until };
        }
    }

    /// Milliseconds for which a primary other than `asking` may yet count on us. `is_over`: whether a run is known to have
    /// ended; `last`: who may have been primary before our run, which began at `started`.
    pub fn lease_left(
        &self,
        now: Millis,
        asking: Member,
        last: &[Option<Member>],
        started: Millis,
        is_over: impl Fn(Member) -> bool,
    ) -> u64 {
        let harmless = |primary: &Member| *primary == asking || is_over(*primary);
        let given = self.lease.left(now, harmless);
        // What our previous run promised, we do not know.
        let unknown = if last.iter().flatten().all(harmless) { 0 } else { started + READ_LEASE_WAIT_MS };
        given.max(unknown.saturating_sub(now))
    }

    /// Who leads us, on which connection.
    pub fn leader(&self) -> Option<(cluster_proto::link::LinkId, Member)> {
        self.led_by
    }

    /// What our primary asked is not answered any more: it leads another interval.
    pub fn forget_query(&mut self) {
        self.query = None;
    }

    /// The connection to our primary is gone, or we follow another one.
    pub fn forget_leader(&mut self) {
        self.led_by = None;
        self.query = None;
    }

    /// As the primary: whether no other can have taken our place.
    pub fn has_lease(&self, now: Millis, links: &Links, registered: Millis) -> bool {
        if !self.activated && (self.unregistered || registered + REGISTRATION_LEASE_MS <= now) {
            return false;
        }
        // All members have answered in this round, to a question asked after it began.
        let confirmed =
            |osd| links.outgoing.get(&osd).and_then(|out| out.answered()).map(|at| at.max(self.round_begun));
        let members = self.map.members().map(|(_, member)| member.osd);
        let own = self.peers[self.own].osd;
        members.filter(|osd| *osd != own).all(|osd| confirmed(osd).is_some_and(|at| now < at + READ_LEASE_MS))
    }
}
