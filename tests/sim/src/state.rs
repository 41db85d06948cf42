//! The world's control plane: registrations with leases, activation records, reports, the monitor with its probes. All of it may be
//! slow or silent.

use std::net::SocketAddr;

use cluster_proto::map::{Activation, Member, OsdState, Suspicion, keys};
use cluster_proto::{Incarnation, OsdId};
use mon_core::liveness::Probe;

use crate::control::json;
use crate::net::{Micros, NodeId};
use crate::world::{Event, World};

/// The monitor as a node of the network, for its probes.
const MONITOR: NodeId = NodeId(900);
/// How often an OSD asks for its registration.
const RENEW_EVERY: Micros = 1_000_000;
/// How long a registration lasts without that.
const LEASE: Micros = 5_000_000;
/// How long a probe waits.
const PROBE_TIMEOUT: Micros = 500_000;

impl World {
    pub(crate) fn state_delay(&mut self) -> Micros {
        let base = self.state_silent_until.saturating_sub(self.now);
        base + self.rng.range(100, 30_000)
    }

    /// If the store does not answer now: when it will.
    fn postponed(&mut self) -> Option<Micros> {
        (self.state_silent_until > self.now).then(|| self.state_delay())
    }

    /// If an OSD cannot reach the store now: when it will.
    fn postponed_for(&mut self, osd: usize) -> Option<Micros> {
        let cut = self.osds[osd].state_cut_until.saturating_sub(self.now);
        match self.postponed() {
            Some(delay) => Some(delay.max(cut)),
            None => (cut > 0).then_some(cut),
        }
    }

    pub(crate) fn state_changed(&mut self) {
        let osds = self.osds.iter().map(|osd| (osd.node(), osd.life, osd.state_cut_until));
        let clients = self.clients.iter().map(|client| (client.node, client.life, 0));
        let nodes: Vec<_> = osds.chain(clients).collect();
        for (node, life, cut) in nodes {
            let delay = self.state_delay().max(cut.saturating_sub(self.now));
            self.after(delay, Event::State { node, life });
        }
        let delay = self.state_delay();
        self.after(delay, Event::Plan);
    }

    fn registered(&self, osd: usize) -> Option<OsdState> {
        serde_json::from_slice(self.control.get(&keys::osd(OsdId(osd as u32 + 1)))?).ok()
    }

    /// An OSD's question for its registration arrives at the store. It was asked at `asked`, on the OSD's clock.
    pub(crate) fn register(&mut self, osd: usize, life: u32, asked: u64) {
        if self.osds[osd].life != life {
            return;
        }
        if let Some(delay) = self.postponed_for(osd) {
            return self.after(delay, Event::Register { osd, life, asked });
        }
        let Some(run) = &self.osds[osd].run else { return };
        let incarnation = run.incarnation;
        self.osds[osd].lease_until = self.now + LEASE;
        self.at(self.now + LEASE, Event::Lapse { osd, incarnation });
        let found = self.registered(osd).is_some_and(|state| state.incarnation == incarnation);
        if !found {
            let address = SocketAddr::from(([127, 0, 0, 1], osd as u16 + 1));
            let state = OsdState { address, incarnation, started: 0 };
            self.control.put(&keys::osd(OsdId(osd as u32 + 1)), json(&state));
            self.state_changed();
        }
        let delay = self.state_delay();
        self.after(delay, Event::Registered { osd, life, asked, found });
    }

    pub(crate) fn registered_answer(&mut self, osd: usize, life: u32, asked: u64, found: bool) {
        if self.osds[osd].life != life {
            return;
        }
        if let Some(core) = self.osds[osd].run.as_mut().and_then(|run| run.core.as_mut()) {
            if found { core.handle_registered(asked) } else { core.handle_unregistered() }
        }
        let asked = self.millis_of(osd) + RENEW_EVERY / 1000;
        let delay = RENEW_EVERY + self.rng.range(100, 20_000);
        self.after(delay, Event::Register { osd, life, asked });
        self.pump_osd(osd);
    }

    pub(crate) fn lapse(&mut self, osd: usize, incarnation: Incarnation) {
        if let Some(delay) = self.postponed() {
            return self.after(delay, Event::Lapse { osd, incarnation });
        }
        let mine = self.registered(osd).is_some_and(|state| state.incarnation == incarnation);
        if mine && self.osds[osd].lease_until <= self.now {
            self.note(|| format!("the lease of osd {} ends", osd + 1));
            self.withdraw(osd);
        }
    }

    fn withdraw(&mut self, osd: usize) {
        self.control.delete(&keys::osd(OsdId(osd as u32 + 1)));
        self.control.delete(&keys::suspicion(OsdId(osd as u32 + 1)));
        self.state_changed();
    }

    /// An OSD's latest report of others arrives.
    pub(crate) fn suspect(&mut self, osd: usize, life: u32) {
        if self.osds[osd].life != life {
            return;
        }
        if let Some(delay) = self.postponed_for(osd) {
            return self.after(delay, Event::Suspect { osd, life });
        }
        let Some(run) = &self.osds[osd].run else { return };
        let key = keys::suspicion(OsdId(osd as u32 + 1));
        let (incarnation, suspects) = (run.incarnation, run.suspects.clone());
        self.note(|| format!("osd {} cannot reach {suspects:?}", osd + 1));
        match suspects.is_empty() {
            true => self.control.delete(&key),
            false => self.control.put(&key, json(&Suspicion { incarnation, suspects })),
        }
        self.state_changed();
    }

    pub(crate) fn activate(&mut self, osd: usize, life: u32, pg: cluster_proto::PgId, record: Activation) {
        if self.osds[osd].life != life {
            // The record may have been on its way when the process died.
            if self.rng.one_in(2) && self.control.activate(pg, &record) {
                self.state_changed();
            }
            return;
        }
        if let Some(delay) = self.postponed_for(osd) {
            return self.after(delay, Event::Activate { osd, life, pg, record });
        }
        let (epoch, ok) = (record.epoch, self.control.activate(pg, &record));
        if ok {
            self.state_changed();
        }
        let delay = self.rng.range(100, 10_000);
        self.after(delay, Event::Activated { osd, life, pg, epoch, ok });
    }

    /// The monitor looks at everything.
    pub(crate) fn plan(&mut self) {
        if let Some(delay) = self.postponed() {
            return self.after(delay, Event::Plan);
        }
        let now = self.now / 1000;
        for run in self.control.look(now) {
            let osd = run.osd.0 as usize - 1;
            if self.registered(osd).is_some_and(|state| state.incarnation == run.incarnation) {
                self.note(|| format!("monitor withdraws osd {}", osd + 1));
                self.withdraw(osd);
            }
        }
        for (run, _) in self.control.liveness.poll(now) {
            self.probe(run);
        }
        let lost: Vec<OsdId> = self.osds.iter().filter(|osd| osd.is_lost).map(|osd| osd.id).collect();
        for osd in lost {
            if self.control.give_up(osd) {
                self.note(|| format!("osd {osd} is given up"));
                self.state_changed();
            }
        }
        let (changes, merges) = self.control.plan();
        self.merges += merges;
        for change in &changes {
            self.note(|| format!("monitor: {change}"));
        }
        if !changes.is_empty() {
            self.state_changed();
        }
        if let Some(at) = self.control.liveness.poll_timeout(now)
            && self.next_look <= self.now
        {
            self.next_look = at * 1000;
            self.at(at * 1000, Event::Plan);
        }
    }

    fn probe(&mut self, run: Member) {
        let osd = run.osd.0 as usize - 1;
        let node = &self.osds[osd];
        let arrives = self.net.arrival(MONITOR, node.node(), self.now, 100).max(node.frozen_until);
        let arrives = self.net.arrival(node.node(), MONITOR, arrives, 100);
        let found = match &node.run {
            _ if arrives > self.now + PROBE_TIMEOUT => Probe::Silent,
            // A machine without power does not refuse.
            None if self.rng.one_in(4) => Probe::Silent,
            Some(run) if run.core.is_some() => Probe::Alive(run.incarnation),
            _ => Probe::Refused,
        };
        let delay = if found == Probe::Silent { PROBE_TIMEOUT } else { arrives - self.now + 100 };
        self.after(delay, Event::Probed { run, found });
    }

    pub(crate) fn probed(&mut self, run: Member, found: Probe) {
        self.note(|| format!("probe of {run:?}: {found:?}"));
        let now = self.now / 1000;
        self.control.liveness.handle_probe(now, run, found);
        self.after(100, Event::Plan);
    }
}
