//! A pool gets fewer PGs: some become one again. docs/peering.md, "More and fewer PGs".
//!
//! Three steps, each of which may take long and be interrupted by anything: the plan moves the parts to the same OSDs; it *aligns* them, so that
//! all are in an interval of the same number, members and primary, as if they had just been split; then one transaction puts one PG in
//! their place.

use std::collections::BTreeMap;

use cluster_proto::map::{ClusterMap, Interval, PgMap, PoolConfig, Scheme};
use cluster_proto::{Epoch, OsdId, PgId, PgScope, PoolId};

use crate::interval::{self, Running};
use crate::split::{PARTS_MAX, count_of, is_ready, share};

/// PGs that shall become one.
pub(crate) struct Group {
    /// What they become. Its number is that of the first of them.
    whole: PgScope,
    /// All of them.
    pub parts: Vec<PgId>,
}

/// What can be done for a group now.
pub(crate) enum Step {
    /// New intervals for some of them, so that all are alike.
    Align(Vec<(PgId, PgMap)>),
    /// The first interval of the whole, and its history.
    Merge(PgMap, Vec<Interval>),
}

/// The groups of a pool whose PGs shall be merged to `count` next. Only those of which all parts are there.
pub(crate) fn groups(map: &ClusterMap, id: PoolId, pool: &PoolConfig, count: Option<u32>) -> Vec<Group> {
    let Some(count) = count else { return Vec::new() };
    let all = PgId { pool: id, index: 0 }..=PgId { pool: id, index: u32::MAX };
    let mut found: BTreeMap<PgId, Vec<PgScope>> = BTreeMap::new();
    for (pg, present) in map.pgs.range(all) {
        let part = PgScope { pg: *pg, count: count_of(present, pool) };
        if is_part(part.count, count) {
            found.entry(part.whole(count).pg).or_default().push(part);
        }
    }
    let complete = found.into_iter().filter(|(_, parts)| {
        let (has, all) = share(parts.iter().map(|part| part.count));
        has * u64::from(count) == all && (2..=PARTS_MAX as usize).contains(&parts.len())
    });
    let group = |(pg, parts): (PgId, Vec<PgScope>)| {
        let parts = parts.into_iter().map(|part| part.pg).collect();
        Group { whole: PgScope { pg, count }, parts }
    };
    complete.map(group).collect()
}

/// Whether a PG of so many becomes part of one of which there are `count`.
pub(crate) fn is_part(own: u32, count: u32) -> bool {
    own > count && own.is_multiple_of(count)
}

impl Group {
    /// What brings the group nearer to being one, if all its parts are where they shall be and have everything there.
    pub fn step(&self, map: &ClusterMap, running: &Running, pool: &PoolConfig) -> Option<Step> {
        let parts: Vec<(PgId, &PgMap)> = self.parts.iter().filter_map(|pg| Some((*pg, map.pgs.get(pg)?))).collect();
        let is_settled = |(pg, present): &(PgId, &PgMap)| is_settled(map, running, *pg, present, pool);
        if parts.len() != self.parts.len() || !parts.iter().all(is_settled) {
            return None;
        }
        let newest = parts.iter().map(|(_, present)| present.epoch).max()?;
        let (first, model) = *parts.iter().find(|(_, present)| present.epoch == newest)?;
        if parts.iter().any(|(_, present)| !same_osds(pool.scheme, &present.target, &model.target)) {
            return None;
        }
        let is_alike = |present: &PgMap| {
            (&present.acting, &present.target, present.primary) == (&model.acting, &model.target, model.primary)
        };
        let unlike = parts.iter().any(|(_, present)| present.epoch == newest && !is_alike(present));
        let epoch = if unlike { newest.next() } else { newest };
        let late: Vec<_> = parts.iter().filter(|(_, present)| present.epoch < epoch).collect();
        if epoch >= Epoch::MAX {
            return None;
        }
        let next = |pg: PgId, present: &PgMap| {
            let (acting, target) = (model.acting.clone(), model.target.clone());
            interval::next(map.activations.get(&pg), running, present, acting, model.primary, target)
        };
        if !late.is_empty() {
            let aligned =
                late.into_iter().filter_map(|(pg, present)| Some((*pg, PgMap { epoch, ..next(*pg, present)? })));
            return Some(Step::Align(aligned.collect()));
        }
        debug_assert_eq!(parts[0].0, self.whole.pg, "the first has the number of the whole");
        debug_assert_eq!(first, self.whole.pg, "all are of the same epoch");
        let whole = PgMap { pg_count: Some(self.whole.count), ..next(first, model)? };
        Some(Step::Merge(whole, vec![self.past(map)?]))
    }

    /// The last interval of all parts as that of the whole. All members were complete in it, so nothing older matters; the records differ at
    /// most in how many members each change was on.
    fn past(&self, map: &ClusterMap) -> Option<Interval> {
        let records = self.parts.iter().filter_map(|pg| map.activations.get(pg));
        let min_size = records.clone().map(|record| record.min_size).min()?;
        Some(Interval { min_size, ..records.clone().next()?.interval() })
    }
}

/// Whether a PG serves on the OSDs where it should be, all of which have everything for good.
fn is_settled(map: &ClusterMap, running: &Running, pg: PgId, present: &PgMap, pool: &PoolConfig) -> bool {
    let Some(record) = map.activations.get(&pg) else { return false };
    let acting: Vec<OsdId> = present.members().map(|(_, member)| member.osd).collect();
    is_ready(map, running, pg, present)
        && record.acting == present.acting
        && acting.len() == pool.width()
        && acting.iter().all(|osd| record.complete.contains(osd))
        && same_osds(pool.scheme, &acting, &present.target)
        && present.pg_count.is_some()
}

/// Whether two sets have the same OSDs, of an erasure-coded pool in the same order: positions are shards.
pub(crate) fn same_osds(scheme: Scheme, a: &[OsdId], b: &[OsdId]) -> bool {
    let sorted = |set: &[OsdId]| {
        let mut set = set.to_vec();
        set.sort_unstable();
        set
    };
    match scheme {
        Scheme::Replicated { .. } => sorted(a) == sorted(b),
        Scheme::Ec { .. } => a == b,
    }
}
