//! Which OSDs run, judged from what they register, what others report of them, and what probes find.
//!
//! - A registration says that an OSD runs, until somebody whose PGs need it cannot reach it. Then the monitor asks itself: a refused
//!   connection proves that the run is over; silence, twice, is as good as that for placement, but proves nothing; an answer means
//!   that the network between the two is broken. If that lasts, the one with more broken paths loses: it serves no PG for a while.
//! - A registration that vanished means little by itself: after an outage of the state store all may have. An OSD that answers
//!   probes is given time to register again.
//!
//! The driver makes the probes of [`Liveness::poll`] and reports them with [`Liveness::handle_probe`]; it deletes the registrations that
//! [`Liveness::poll_withdrawn`] names, if they are still those of that run, before it writes a plan without them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use cluster_proto::Incarnation;
use cluster_proto::OsdId;
use cluster_proto::map::{ClusterMap, Member, OsdState};

use crate::interval::Running;

/// Milliseconds on the driver's monotonic clock.
pub type Millis = u64;

/// Pause between probes of one OSD. Milliseconds.
const PROBE_EVERY_MS: Millis = 250;
/// Probes without an answer after which an OSD counts as down.
const SILENT_MAX: u32 = 2;
/// Broken paths between OSDs that run are acted upon after so long. Milliseconds.
const BROKEN_MS: Millis = 1_000;
/// An OSD that lost its place for a broken path, or did not answer, gets it back after so long at the earliest. Milliseconds.
const BAN_MS: Millis = 5_000;
/// An OSD that answers but is not registered counts as running for so long. Milliseconds.
const UNREGISTERED_MS: Millis = 15_000;
/// Runs known to be over that are remembered.
const DEAD_MAX: usize = 256;

/// What a probe found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    /// The OSD answered, in this run.
    Alive(Incarnation),
    /// Nobody listens at its address.
    Refused,
    /// No answer in time.
    Silent,
}

/// Why an OSD that is, or was, registered may not serve.
#[derive(Clone, Copy, Debug)]
struct Ban {
    until: Millis,
    /// It must have answered a probe by then.
    answered: bool,
}

#[derive(Debug)]
struct Watched {
    run: Member,
    state: OsdState,
    next_probe: Millis,
    probing: bool,
    silent: u32,
}

/// The monitor's judgement of who runs. Forgets nothing that matters when it is made anew: a new leader starts from the registrations.
#[derive(Default, Debug)]
pub struct Liveness {
    /// OSDs that are looked at closely: reported, banned, or no longer registered.
    watched: BTreeMap<OsdId, Watched>,
    bans: BTreeMap<OsdId, Ban>,
    /// OSDs that ran lately and are not registered now, since when.
    vanished: BTreeMap<OsdId, Millis>,
    last: BTreeMap<OsdId, OsdState>,
    /// Reports between OSDs that both run: reporter, reported, since when.
    broken: BTreeMap<(OsdId, OsdId), Millis>,
    dead: Vec<Member>,
    withdrawn: BTreeSet<Member>,
}

impl Liveness {
    /// The cluster state, or the time, has changed.
    pub fn handle_map(&mut self, now: Millis, map: &ClusterMap) {
        self.follow_registrations(now, map);
        let reports = reports(map);
        self.broken.retain(|(by, of), _| reports.iter().any(|(r, s)| r == by && s.osd == *of));
        for (by, of) in &reports {
            self.broken.entry((*by, of.osd)).or_insert(now);
        }
        let wanted: BTreeSet<OsdId> = reports
            .iter()
            .map(|(_, suspect)| suspect.osd)
            .chain(self.bans.keys().copied())
            .chain(self.vanished.keys().copied())
            .collect();
        self.watched.retain(|osd, _| wanted.contains(osd));
        for osd in wanted {
            let Some(state) = map.osds.get(&osd).or_else(|| self.last.get(&osd)) else { continue };
            let run = Member { osd, incarnation: state.incarnation };
            if self.watched.get(&osd).is_none_or(|watched| watched.run != run) {
                let watched = Watched { run, state: state.clone(), next_probe: now, probing: false, silent: 0 };
                self.watched.insert(osd, watched);
            }
        }
        self.judge_broken(now, map);
        self.lift_bans(now);
    }

    fn follow_registrations(&mut self, now: Millis, map: &ClusterMap) {
        for (osd, before) in &self.last {
            match map.osds.get(osd) {
                None => {
                    self.vanished.entry(*osd).or_insert(now);
                }
                Some(state) if state.incarnation != before.incarnation => {
                    self.dead.push(Member { osd: *osd, incarnation: before.incarnation });
                    self.bans.remove(osd);
                }
                Some(_) => {}
            }
        }
        for (osd, state) in &map.osds {
            self.vanished.remove(osd);
            self.last.insert(*osd, state.clone());
        }
        let given_up: Vec<OsdId> =
            self.vanished.iter().filter(|(_, since)| **since + UNREGISTERED_MS <= now).map(|(osd, _)| *osd).collect();
        for osd in given_up {
            self.vanished.remove(&osd);
            self.last.remove(&osd);
        }
        let excess = self.dead.len().saturating_sub(DEAD_MAX);
        self.dead.drain(..excess);
    }

    /// Probes to make now, each with the address and the run that is asked about.
    pub fn poll(&mut self, now: Millis) -> Vec<(Member, SocketAddr)> {
        let due = self.watched.values_mut().filter(|watched| !watched.probing && watched.next_probe <= now);
        due.map(|watched| {
            watched.probing = true;
            (watched.run, watched.state.address)
        })
        .collect()
    }

    /// When to call [`Liveness::handle_map`] and [`Liveness::poll`] again, if nothing happens before.
    pub fn poll_timeout(&self, now: Millis) -> Option<Millis> {
        let idle = self.watched.is_empty() && self.bans.is_empty() && self.broken.is_empty();
        (!idle).then_some(now + PROBE_EVERY_MS)
    }

    /// Registrations to delete, if they are still those of these runs.
    pub fn poll_withdrawn(&mut self) -> Vec<Member> {
        std::mem::take(&mut self.withdrawn).into_iter().collect()
    }

    /// A probe ended.
    pub fn handle_probe(&mut self, now: Millis, run: Member, found: Probe) {
        let Some(watched) = self.watched.get_mut(&run.osd).filter(|watched| watched.run == run) else { return };
        watched.probing = false;
        watched.next_probe = now + PROBE_EVERY_MS;
        match found {
            Probe::Alive(incarnation) if incarnation == run.incarnation => {
                watched.silent = 0;
                if let Some(ban) = self.bans.get_mut(&run.osd) {
                    ban.answered = true;
                }
            }
            Probe::Alive(_) | Probe::Refused => self.bury(run),
            Probe::Silent => {
                watched.silent += 1;
                if watched.silent >= SILENT_MAX && self.last.contains_key(&run.osd) {
                    self.ban(now, run);
                }
            }
        }
    }

    /// The run is over, for sure.
    fn bury(&mut self, run: Member) {
        if !self.dead.contains(&run) {
            self.dead.push(run);
        }
        self.withdrawn.insert(run);
        // Nothing more is to be learnt of it. While it is registered, that it is dead keeps it from serving.
        self.vanished.remove(&run.osd);
        self.last.remove(&run.osd);
        self.bans.remove(&run.osd);
    }

    fn ban(&mut self, now: Millis, run: Member) {
        self.bans.insert(run.osd, Ban { until: now + BAN_MS, answered: false });
        self.withdrawn.insert(run);
    }

    /// Paths between OSDs that run are broken: whoever has most of them loses its place; of two with as many, the one that is
    /// complained about.
    fn judge_broken(&mut self, now: Millis, map: &ClusterMap) {
        let runs = |osd: &OsdId| map.osds.contains_key(osd) && !self.bans.contains_key(osd);
        let mut edges: BTreeSet<(OsdId, OsdId)> = self
            .broken
            .iter()
            .filter(|((by, of), since)| **since + BROKEN_MS <= now && runs(by) && runs(of))
            .map(|(edge, _)| *edge)
            .collect();
        let mut losers = Vec::new();
        while !edges.is_empty() {
            let mut counts: BTreeMap<OsdId, (usize, usize)> = BTreeMap::new();
            for (by, of) in &edges {
                counts.entry(*by).or_default().0 += 1;
                let of = counts.entry(*of).or_default();
                (of.0, of.1) = (of.0 + 1, of.1 + 1);
            }
            let Some((loser, _)) = counts.into_iter().max_by_key(|(osd, count)| (*count, std::cmp::Reverse(*osd)))
            else {
                break;
            };
            edges.retain(|(by, of)| *by != loser && *of != loser);
            losers.push(loser);
        }
        for osd in losers {
            if let Some(state) = map.osds.get(&osd) {
                self.ban(now, Member { osd, incarnation: state.incarnation });
            }
        }
    }

    /// Ends the bans of those that answered, and of those that are neither registered nor waited for any more: if they come back, they
    /// register first.
    fn lift_bans(&mut self, now: Millis) {
        self.bans.retain(|osd, ban| ban.until > now || !ban.answered && self.last.contains_key(osd));
    }

    /// Who can serve.
    pub fn running(&self, map: &ClusterMap) -> Running {
        let is_dead = |osd: OsdId, incarnation| self.dead.contains(&Member { osd, incarnation });
        let registered = map.osds.iter();
        let waited_for = self.last.iter().filter(|(osd, _)| self.vanished.contains_key(osd));
        let alive = registered
            .chain(waited_for)
            .filter(|(osd, state)| !self.bans.contains_key(osd) && !is_dead(**osd, state.incarnation))
            .map(|(osd, state)| (*osd, state.incarnation))
            .collect();
        Running { alive, dead: self.dead.clone() }
    }
}

/// Reports of OSDs about others that count: both in the run that is registered.
fn reports(map: &ClusterMap) -> Vec<(OsdId, Member)> {
    let is_present = |run: &Member| map.osds.get(&run.osd).is_some_and(|state| state.incarnation == run.incarnation);
    let of =
        map.suspicions.iter().filter(|(by, report)| is_present(&Member { osd: **by, incarnation: report.incarnation }));
    of.flat_map(|(by, report)| report.suspects.iter().filter(|run| is_present(run)).map(|run| (*by, *run))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::map::Suspicion;

    fn map(osds: &[(u32, u64)], reports: &[(u32, &[u32])]) -> ClusterMap {
        let mut map = ClusterMap::default();
        let run = |osd: u32| osds.iter().find(|(n, _)| *n == osd).map_or(1, |(_, run)| *run);
        for &(osd, run) in osds {
            let address = format!("127.0.0.1:{osd}").parse().unwrap();
            map.osds.insert(OsdId(osd), OsdState { address, incarnation: Incarnation(run), started: 0 });
        }
        for (by, of) in reports {
            let suspects = of.iter().map(|&n| Member { osd: OsdId(n), incarnation: Incarnation(run(n)) }).collect();
            map.suspicions.insert(OsdId(*by), Suspicion { incarnation: Incarnation(run(*by)), suspects });
        }
        map
    }

    fn member(osd: u32, run: u64) -> Member {
        Member { osd: OsdId(osd), incarnation: Incarnation(run) }
    }

    fn alive(liveness: &Liveness, map: &ClusterMap) -> Vec<u32> {
        liveness.running(map).alive.keys().map(|osd| osd.0).collect()
    }

    fn probed(liveness: &mut Liveness, now: Millis) -> Vec<u32> {
        liveness.poll(now).iter().map(|(run, _)| run.osd.0).collect()
    }

    #[test]
    fn a_refused_connection_proves_death() {
        let mut liveness = Liveness::default();
        let map = map(&[(1, 1), (2, 1), (3, 1)], &[(1, &[3])]);
        liveness.handle_map(0, &map);
        assert_eq!(alive(&liveness, &map), [1, 2, 3]);
        assert_eq!(probed(&mut liveness, 0), [3]);
        liveness.handle_probe(1, member(3, 1), Probe::Refused);
        assert_eq!(alive(&liveness, &map), [1, 2]);
        assert_eq!(liveness.running(&map).dead, [member(3, 1)]);
        assert_eq!(liveness.poll_withdrawn(), [member(3, 1)]);
    }

    #[test]
    fn silence_bans_and_an_answer_ends_the_ban() {
        let mut liveness = Liveness::default();
        let map = map(&[(1, 1), (2, 1)], &[(1, &[2])]);
        for now in [0, 1_000] {
            liveness.handle_map(now, &map);
            assert_eq!(probed(&mut liveness, now), [2]);
            liveness.handle_probe(now + 500, member(2, 1), Probe::Silent);
        }
        assert_eq!(alive(&liveness, &map), [1]);
        assert!(liveness.running(&map).dead.is_empty(), "it may yet live");
        let calm = self::map(&[(1, 1), (2, 1)], &[]);
        liveness.handle_map(20_000, &calm);
        assert_eq!(alive(&liveness, &calm), [1], "not before it answers");
        assert_eq!(probed(&mut liveness, 20_000), [2]);
        liveness.handle_probe(20_001, member(2, 1), Probe::Alive(Incarnation(1)));
        liveness.handle_map(20_002, &calm);
        assert_eq!(alive(&liveness, &calm), [1, 2]);
    }

    #[test]
    fn who_is_gone_for_good_is_not_probed_for_ever() {
        for found in [Probe::Refused, Probe::Silent] {
            let mut liveness = Liveness::default();
            liveness.handle_map(0, &map(&[(1, 1), (2, 1)], &[(1, &[2])]));
            let without = map(&[(1, 1)], &[]);
            let (mut now, mut probes) = (0, 0);
            while now < UNREGISTERED_MS + 2 * BAN_MS {
                for (run, _) in liveness.poll(now) {
                    probes += 1;
                    liveness.handle_probe(now, run, found);
                }
                now = liveness.poll_timeout(now).unwrap_or(now + 1_000);
                liveness.handle_map(now, &without);
            }
            assert_eq!(alive(&liveness, &without), [1], "{found:?}");
            assert_eq!(liveness.poll_timeout(now), None, "{found:?}");
            assert!(probes >= 1, "{found:?}");
            let back = map(&[(1, 1), (2, 2)], &[]);
            liveness.handle_map(now, &back);
            assert_eq!(alive(&liveness, &back), [1, 2], "{found:?}");
        }
    }

    #[test]
    fn the_one_with_most_broken_paths_loses() {
        let mut liveness = Liveness::default();
        let map = map(&[(1, 1), (2, 1), (3, 1)], &[(1, &[2, 3]), (2, &[1])]);
        let answer_all = |liveness: &mut Liveness, now| {
            for (run, _) in liveness.poll(now) {
                liveness.handle_probe(now, run, Probe::Alive(run.incarnation));
            }
        };
        liveness.handle_map(0, &map);
        answer_all(&mut liveness, 0);
        assert_eq!(alive(&liveness, &map), [1, 2, 3]);
        liveness.handle_map(1_000, &map);
        assert_eq!(alive(&liveness, &map), [2, 3]);
    }

    #[test]
    fn a_lost_registration_is_waited_for_while_the_osd_answers() {
        let mut liveness = Liveness::default();
        liveness.handle_map(0, &map(&[(1, 1), (2, 1)], &[]));
        let without = map(&[(2, 1)], &[]);
        liveness.handle_map(10, &without);
        assert_eq!(alive(&liveness, &without), [1, 2]);
        assert_eq!(probed(&mut liveness, 10), [1]);
        liveness.handle_probe(11, member(1, 1), Probe::Refused);
        assert_eq!(alive(&liveness, &without), [2]);
        liveness.handle_map(20, &map(&[(1, 2), (2, 1)], &[]));
        assert_eq!(alive(&liveness, &map(&[(1, 2), (2, 1)], &[])), [1, 2], "a new run");
    }
}
