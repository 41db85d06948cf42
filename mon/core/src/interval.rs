//! The next interval of a PG: who serves it now, given who should and who runs.
//!
//! The members of the target set that run serve; places of others are filled with OSDs that served the PG before and may have its data.
//! Whether such a set knows enough to serve is not decided here: its primary finds out (docs/peering.md).

use std::collections::BTreeMap;

use cluster_proto::map::{Activation, ClusterMap, DEAD_MAX, Interval, Member, PgMap, Scheme};
use cluster_proto::{Epoch, Incarnation, OsdId, PgId};

/// Past intervals that a PG remembers; more are folded into the last.
const INTERVALS_MAX: usize = 32;

/// OSDs as the monitor sees them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Running {
    /// OSDs that can serve, in this run.
    pub alive: BTreeMap<OsdId, Incarnation>,
    /// Runs that are known to be over.
    pub dead: Vec<Member>,
}

impl Running {
    /// Everybody who is registered.
    pub fn registered(map: &ClusterMap) -> Self {
        Running { alive: map.osds.iter().map(|(osd, state)| (*osd, state.incarnation)).collect(), dead: Vec::new() }
    }

    /// An OSD's present run.
    pub fn member(&self, osd: OsdId) -> Option<Member> {
        self.alive.get(&osd).map(|incarnation| Member { osd, incarnation: *incarnation })
    }

    fn is_over(&self, run: Member) -> bool {
        self.dead.contains(&run) || self.alive.get(&run.osd).is_some_and(|now| *now != run.incarnation)
    }
}

/// Who should serve a PG now, by shard.
pub(crate) fn acting(
    map: &ClusterMap,
    running: &Running,
    pg: PgId,
    scheme: Scheme,
    target: &[OsdId],
) -> Vec<Option<Member>> {
    let former = former(map, pg, scheme.width());
    let mut members: Vec<Option<Member>> = target.iter().map(|osd| running.member(*osd)).collect();
    let free = |members: &[Option<Member>], osd: OsdId| members.iter().flatten().all(|m| m.osd != osd);
    match scheme {
        Scheme::Replicated { copies } => {
            members.retain(Option::is_some);
            for osd in former.iter().flat_map(Interval::osds) {
                if members.len() < usize::from(copies)
                    && free(&members, osd)
                    && let Some(member) = running.member(osd)
                {
                    members.push(Some(member));
                }
            }
        }
        Scheme::Ec { .. } => {
            members.resize(scheme.width(), None);
            for interval in &former {
                for (shard, osd) in interval.acting.iter().enumerate().take(scheme.width()) {
                    if members[shard].is_none()
                        && let Some(osd) = osd.filter(|osd| free(&members, *osd))
                    {
                        members[shard] = running.member(osd);
                    }
                }
            }
        }
    }
    members
}

/// The intervals in which a PG was served and which the next one has to look back to, latest first.
fn former(map: &ClusterMap, pg: PgId, width: usize) -> Vec<Interval> {
    let before = map.histories.get(&pg).map_or(&[][..], Vec::as_slice);
    let mut past = match map.activations.get(&pg) {
        Some(record) if before.iter().all(|interval| interval.epoch < record.epoch) => history(before, record, width),
        _ => before.to_vec(),
    };
    past.sort_by_key(|interval| std::cmp::Reverse(interval.epoch));
    past
}

/// Who should lead: whoever does, as long as it has everything; `preferred`, if it has.
pub(crate) fn primary(
    record: Option<&Activation>,
    present: Option<&PgMap>,
    members: &[Option<Member>],
    preferred: Option<OsdId>,
) -> Option<OsdId> {
    let acting: Vec<Member> = members.iter().flatten().copied().collect();
    let serves = |osd: &OsdId| acting.iter().any(|member| member.osd == *osd);
    let complete: Vec<OsdId> = record.map(|r| r.complete.clone()).unwrap_or_default();
    let knows: Vec<OsdId> = complete.iter().copied().filter(serves).collect();
    let clean = present.zip(record).is_some_and(|(present, record)| {
        record.epoch == present.epoch && present.members().all(|(_, m)| record.complete.contains(&m.osd))
    });
    let preferred = preferred.filter(serves);
    let leads = present.and_then(PgMap::primary).filter(|member| acting.contains(member)).map(|member| member.osd);
    if record.is_none() {
        return preferred.or(acting.first().map(|member| member.osd));
    }
    let stays = present.is_some_and(|present| {
        present.members().all(|(_, m)| acting.contains(&m)) && present.members().count() == acting.len()
    });
    let keeps = leads.filter(|osd| stays || knows.contains(osd));
    let wishes = preferred.filter(|osd| knows.contains(osd));
    let best = if clean { wishes.or(keeps) } else { keeps.or(wishes) };
    let served = record.into_iter().flat_map(|r| r.interval().osds().collect::<Vec<_>>()).find(|osd| serves(osd));
    best.or(knows.first().copied()).or(leads).or(served).or(acting.first().map(|member| member.osd))
}

/// The interval after the present one: the next epoch, what is known of runs before. None if the epochs are used up.
pub(crate) fn next(
    record: Option<&Activation>,
    running: &Running,
    present: &PgMap,
    acting: Vec<Option<Member>>,
    primary: OsdId,
    target: Vec<OsdId>,
) -> Option<PgMap> {
    if present.epoch >= Epoch::MAX {
        return None;
    }
    let recorded = record.filter(|record| record.epoch == present.epoch);
    let mut unfenced: Vec<Member> = match recorded {
        Some(_) => Vec::new(),
        None => present.unfenced.iter().copied().chain(present.primary()).collect(),
    };
    let mut before: Vec<Member> = present.members().map(|(_, member)| member).collect();
    before.extend(record.into_iter().flat_map(|r| r.acting.iter().flatten().copied()));
    // Earlier runs matter to nobody: whoever led them was waited out when the last recorded interval began.
    let is_over = |run: &Member| running.is_over(*run) || present.dead.contains(run);
    let mut dead: Vec<Member> = before.into_iter().chain(unfenced.iter().copied()).filter(is_over).collect();
    dead.sort_unstable();
    dead.dedup();
    dead.truncate(DEAD_MAX);
    unfenced.sort_unstable();
    unfenced.dedup();
    unfenced.retain(|member| !dead.contains(member) && !acting.contains(&Some(*member)));
    unfenced.truncate(DEAD_MAX);
    let pg_count = present.pg_count;
    Some(PgMap { epoch: present.epoch.next(), primary, acting, target, dead, unfenced, pg_count })
}

/// The history once the interval of this record is past. If all who should have the PG's data were complete in it, nothing older
/// matters.
pub(crate) fn history(before: &[Interval], record: &Activation, width: usize) -> Vec<Interval> {
    let mut last = record.interval();
    let clean = last.osds().count() == width && last.osds().all(|osd| last.complete.contains(&osd));
    let mut history: Vec<Interval> = before.iter().filter(|past| past.epoch < record.epoch).cloned().collect();
    if clean {
        history.clear();
    } else if history.len() >= INTERVALS_MAX && !last.complete.is_empty() {
        // Its complete members have everything older too, if only they count.
        history.clear();
        last.min_size = 0;
    }
    history.push(last);
    history
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(osd: u32, run: u64) -> Member {
        Member { osd: OsdId(osd), incarnation: Incarnation(run) }
    }

    fn record(epoch: u32, members: &[u32], complete: &[u32]) -> Activation {
        Activation {
            epoch: Epoch(epoch),
            acting: members.iter().map(|&n| Some(member(n, 1))).collect(),
            complete: complete.iter().map(|&n| OsdId(n)).collect(),
            min_size: 2,
        }
    }

    fn pg_map(epoch: u32, members: &[u32]) -> PgMap {
        PgMap {
            epoch: Epoch(epoch),
            primary: OsdId(members[0]),
            acting: members.iter().map(|&n| Some(member(n, 1))).collect(),
            target: members.iter().map(|&n| OsdId(n)).collect(),
            dead: Vec::new(),
            unfenced: Vec::new(),
            pg_count: None,
        }
    }

    fn running(runs: &[(u32, u64)]) -> Running {
        Running { alive: runs.iter().map(|&(osd, run)| (OsdId(osd), Incarnation(run))).collect(), dead: Vec::new() }
    }

    fn members(runs: &[(u32, u64)]) -> Vec<Option<Member>> {
        runs.iter().map(|&(osd, run)| Some(member(osd, run))).collect()
    }

    #[test]
    fn a_complete_primary_is_kept_until_all_is_clean() {
        let acting = members(&[(1, 2), (2, 1), (3, 1)]);
        let present = pg_map(5, &[2, 3]);
        let degraded = record(5, &[2, 3], &[2, 3]);
        assert_eq!(primary(Some(&degraded), Some(&pg_map(4, &[1, 2])), &acting, Some(OsdId(1))), Some(OsdId(2)));
        assert_eq!(
            primary(Some(&degraded), Some(&present), &acting, Some(OsdId(3))),
            Some(OsdId(3)),
            "clean: may move"
        );
        let recovering = record(5, &[2, 3], &[2]);
        assert_eq!(primary(Some(&recovering), Some(&present), &acting, Some(OsdId(3))), Some(OsdId(2)));
        let incomplete = record(5, &[2, 3], &[3]);
        let same = members(&[(2, 1), (3, 1)]);
        assert_eq!(primary(Some(&incomplete), Some(&present), &same, None), Some(OsdId(2)), "it catches up");
        assert_eq!(primary(Some(&incomplete), Some(&present), &acting, None), Some(OsdId(3)));
        assert_eq!(primary(None, None, &acting, Some(OsdId(3))), Some(OsdId(3)));
    }

    #[test]
    fn primaries_without_record_are_waited_out_unless_their_run_is_over() {
        let present = pg_map(5, &[1, 2]);
        let next_of = |record: Option<&Activation>, runs: &[(u32, u64)]| {
            let acting = members(&[(2, 1)]);
            next(record, &running(runs), &present, acting, OsdId(2), vec![OsdId(1), OsdId(2)]).unwrap()
        };
        let old = record(4, &[1, 2], &[1, 2]);
        assert_eq!(next_of(Some(&old), &[(2, 1)]).unfenced, [member(1, 1)]);
        let restarted = next_of(Some(&old), &[(1, 2), (2, 1)]);
        assert_eq!((restarted.unfenced, restarted.dead), (vec![], vec![member(1, 1)]));
        assert!(next_of(Some(&record(5, &[1, 2], &[1, 2])), &[(2, 1)]).unfenced.is_empty(), "its members know");
    }

    #[test]
    fn history_begins_anew_when_all_were_complete() {
        let before = history(&[], &record(1, &[1, 2, 3], &[1, 2]), 3);
        assert_eq!(before.len(), 1);
        assert_eq!(history(&before, &record(2, &[1, 2], &[1, 2]), 3).len(), 2, "one is absent");
        assert_eq!(history(&before, &record(2, &[1, 2, 3], &[1, 2, 3]), 3).len(), 1);
        let mut long = before;
        for epoch in 2..200 {
            long = history(&long, &record(epoch, &[1, 2], &[1]), 3);
            assert!(long.len() <= INTERVALS_MAX + 1);
        }
    }
}
