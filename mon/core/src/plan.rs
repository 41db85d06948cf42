//! Which PG keys must be written now.

use std::collections::{BTreeMap, BTreeSet};

use cluster_proto::map::{Activation, ClusterMap, Interval, Member, PgMap, PoolConfig, Scheme, keys};
use cluster_proto::{Epoch, OsdId, PgId, PgScope, PoolId};

use crate::interval::{self, Running};
use crate::merge::{Group, Step, groups, is_part, same_osds};
use crate::placement::{preferred_primaries, targets};
use crate::problem::{Problem, ProblemCode, count, list};
use crate::split::{Split, changes_allowed, count_of, is_ready, merge_count, next_count, share};

/// A new interval of one PG.
///
/// It was decided from the PG's map and activation record as they were in the cluster map: the transaction that writes
/// it must be conditioned on the keys [`PgChange::unchanged`] being as they were then (or still absent), and must make
/// all [`PgChange::writes`] together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PgChange {
    /// The PG.
    pub pg: PgId,
    /// Its new interval.
    pub map: PgMap,
    /// Its new history, if that changes with the interval.
    pub history: Option<Vec<Interval>>,
    /// OSDs whose registration this was decided from.
    pub registered: BTreeSet<OsdId>,
    /// The PG is split with this interval.
    split: Option<Split>,
    /// PGs that become part of this one with this interval.
    merged: Vec<PgId>,
    /// PGs of which this one may have become part, so that it is not missing.
    wholes: Vec<PgId>,
}

impl PgChange {
    /// Keys that must not have changed since the map was read. Registrations are among them because a run is taken for over when its OSD
    /// is registered in another one: that must be the later one.
    pub fn unchanged(&self) -> impl Iterator<Item = String> {
        let own = [&self.pg].into_iter().chain(&self.merged);
        let own = own.flat_map(|pg| [keys::pg_map(*pg), keys::pg_activation(*pg)]);
        // Somebody else changes it, too: who gives an OSD up.
        let history = self.history.iter().map(|_| keys::pg_history(self.pg));
        let others = self.parts().iter().chain(&self.wholes).map(|pg| keys::pg_map(*pg));
        own.chain(history).chain(others).chain(self.registered.iter().map(|osd| keys::osd(*osd)))
    }

    /// PGs that come into being with this change, each with objects that were this one's.
    pub fn parts(&self) -> &[PgId] {
        self.split.as_ref().map_or(&[], |split| &split.parts)
    }

    /// PGs that cease to be with this change, because this one has their objects from then on.
    pub fn merged(&self) -> &[PgId] {
        &self.merged
    }

    fn new(pg: PgId, map: PgMap, history: Option<Vec<Interval>>, running: &Running) -> Self {
        let members = map.members().map(|(_, member)| member.osd);
        let registered =
            members.chain(map.dead.iter().map(|run| run.osd)).filter(|osd| running.alive.contains_key(osd));
        let registered = registered.collect();
        PgChange { pg, map, history, registered, split: None, merged: Vec::new(), wholes: Vec::new() }
    }

    /// Keys and their new values (`None`: delete).
    pub fn writes(&self) -> Vec<(String, Option<Vec<u8>>)> {
        let history = self.history.as_ref().map(|h| (keys::pg_history(self.pg), Some(json(h))));
        let mut writes: Vec<_> = history.into_iter().collect();
        for (part, split) in self.split.iter().flat_map(|split| split.parts.iter().map(move |part| (*part, split))) {
            writes.push((keys::pg_history(part), Some(json(&split.history))));
            writes.push((keys::pg_activation(part), Some(json(&split.record))));
        }
        // Maps come last: who hears of one must know the history.
        writes.extend([&self.pg].into_iter().chain(self.parts()).map(|pg| (keys::pg_map(*pg), Some(json(&self.map)))));
        let of_pg = [keys::pg_map, keys::pg_activation, keys::pg_history];
        writes.extend(self.merged.iter().flat_map(|pg| of_pg.map(|key| (key(*pg), None))));
        writes
    }
}

/// Bytes of a value of the schema.
fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    // Structs of integers and lists of them have no reason to fail.
    serde_json::to_vec(value).unwrap_or_default()
}

/// What to write, and what stands in the way of more.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// New intervals, in the order of their PGs. Each stands for itself: they need not be written together.
    pub changes: Vec<PgChange>,
    /// Why PGs are not created or not changed.
    pub problems: Vec<Problem>,
}

/// Decides what must change, given configuration, running OSDs and the PGs as they are.
///
/// - PGs are placed on OSDs that are in (`usable`): new ones, and others when the configuration or `usable` has changed, not more at a
///   time than the settings allow.
/// - PGs of a pool that shall have more of them are split, if they serve with all their members, a few at a time.
/// - PGs of a pool that shall have fewer are moved to the same OSDs, and those merged that have everything there, a few at a time.
/// - The PGs of a pool are created as soon as so many members of each run that it may accept writes.
/// - A PG whose members are not those that should serve it now gets the next epoch. If nobody could serve it, it stays as it is: its
///   clients wait.
///
/// After the changes are applied to the map, `plan` finds none, but for PGs that had to wait for others to move, or to be split or merged.
pub fn plan(map: &ClusterMap, running: &Running, usable: &BTreeSet<OsdId>) -> Plan {
    let mut plan = Plan::default();
    if map.cluster.is_none() {
        plan.problems.push(Problem::new(
            ProblemCode::NoCluster,
            format!("the state store has no cluster ({} is missing): start one with 'blockyard up'", keys::CLUSTER),
        ));
        return plan;
    }
    let pools: BTreeSet<_> = map.pgs.keys().map(|pg| pg.pool).collect();
    for pool in pools.iter().filter(|pool| !map.pools.contains_key(pool)) {
        plan.problems.push(Problem::new(
            ProblemCode::PoolMissing,
            format!("pool {pool} has PGs but no configuration: write {} again", keys::pool(*pool)),
        ));
    }
    let mut may_move = moves_allowed(map, running);
    for (id, pool) in &map.pools {
        let shape = Shape::of(map, *id, pool);
        check_pool(map, *id, pool, &shape, &mut plan.problems);
        let placed = shape.fits.then(|| place(map, *id, pool, &shape, usable));
        let placed = placed.and_then(|placed| placed.map_err(|problem| plan.problems.push(problem)).ok());
        let mut may_begin = changes_allowed(map, pgs_of(map, *id));
        let groups = groups(map, *id, pool, shape.merges_to);
        let merged = merge(map, running, pool, &groups, &mut may_begin, &mut plan);
        for (pg, present) in pgs_of(map, *id).filter(|(pg, _)| !merged.contains(pg)) {
            let now = count_of(present, pool);
            let next = next_count(now, pool.pg_count).filter(|next| *next > now);
            let splits = next.filter(|_| shape.is_complete && is_ready(map, running, pg, present));
            if let Some(next) = splits.filter(|_| may_begin > 0) {
                may_begin -= 1;
                split(map, running, pg, pool, (present, next), &mut plan);
                continue;
            }
            let place = placed.as_ref().and_then(|places| places.get(&pg.index));
            let wished = place.map_or(&present.target, |place| &place.target);
            let is_elsewhere = !wished.is_empty() && !same_osds(pool.scheme, wished, &present.target);
            let moves = is_elsewhere || present.target.is_empty();
            // Until all are split or merged, only what cannot stay moves, and what must be together: afterwards it may be in its place.
            let is_part = shape.merges_to.is_some_and(|count| is_part(now, count));
            let can_stay = !is_part && present.target.iter().all(|osd| usable.contains(osd));
            let waits = splits.is_some() || (shape.pg_count != Some(pool.pg_count) && can_stay);
            let stays = waits || (moves && may_move == 0);
            let target = if stays { &present.target } else { wished };
            may_move -= usize::from(moves && !stays);
            let lead = place.and_then(|place| place.lead).filter(|_| !waits);
            renew(map, running, pg, pool, (present, target, lead), &mut plan);
        }
        align(map, running, pool, &groups, &mut may_begin, &mut plan);
        if let Some(places) = placed {
            create(map, running, (*id, shape.pg_count), pool, &places, &mut plan);
        }
    }
    plan.changes.sort_by_key(|change| change.pg);
    plan
}

/// OSDs that may have data: configured, with weight, without those in `out`.
pub fn usable(map: &ClusterMap, out: &BTreeSet<OsdId>) -> BTreeSet<OsdId> {
    let with_weight = map.osd_configs.iter().filter(|(_, config)| config.effective_weight() > 0.0);
    with_weight.map(|(osd, _)| *osd).filter(|osd| !out.contains(osd)).collect()
}

/// Whether two target sets, in whatever order, are the same; none if one of them is empty.
fn same_members(a: &[OsdId], b: &[OsdId]) -> Option<bool> {
    let sorted = |set: &[OsdId]| set.iter().copied().collect::<BTreeSet<_>>();
    (!a.is_empty() && !b.is_empty()).then(|| sorted(a) == sorted(b))
}

/// How far a pool is on the way to as many PGs as it shall have.
struct Shape {
    /// How many there are, or shall be when all are created. None: some are split or merged and others not.
    pg_count: Option<u32>,
    /// To how many PGs those that are too many are merged next.
    merges_to: Option<u32>,
    /// From what there is leads a way to what shall be.
    fits: bool,
    /// There is a PG for every object.
    is_complete: bool,
}

impl Shape {
    fn of(map: &ClusterMap, id: PoolId, pool: &PoolConfig) -> Self {
        let counts: BTreeSet<u32> = pgs_of(map, id).map(|(_, present)| count_of(present, pool)).collect();
        let fits = counts.iter().all(|count| leads_to(*count, pool));
        let merges_to = merge_count(&counts, pool.pg_count);
        let (has, all) = share(pgs_of(map, id).map(|(_, present)| count_of(present, pool)));
        let is_complete = has == all;
        let pg_count = match counts.len() {
            0 => Some(pool.pg_count),
            1 => counts.first().copied(),
            _ => None,
        };
        Self { pg_count, merges_to, fits, is_complete }
    }
}

/// Whether a PG of so many is what the pool shall have, or can be split into that or merged to it.
fn leads_to(pg_count: u32, pool: &PoolConfig) -> bool {
    pg_count == pool.pg_count || next_count(pg_count, pool.pg_count).is_some()
}

/// Where a PG should be.
#[derive(Clone)]
struct Place {
    target: Vec<OsdId>,
    /// Who should lead it.
    lead: Option<OsdId>,
}

/// Places the PGs of a pool, by index. While some are split and others are not, those that there are, whatever part of the objects each has;
/// when all are split, what is out of balance then moves. Those that shall be merged are placed as one, where the first of them is.
fn place(
    map: &ClusterMap,
    id: PoolId,
    pool: &PoolConfig,
    shape: &Shape,
    usable: &BTreeSet<OsdId>,
) -> Result<BTreeMap<u32, Place>, Problem> {
    let first_of = |own: u32, index: u32| match shape.merges_to {
        Some(count) if is_part(own, count) => index % count,
        _ => index,
    };
    let firsts: BTreeMap<u32, u32> = match shape.pg_count {
        Some(pg_count) => (0..pg_count).map(|index| (index, first_of(pg_count, index))).collect(),
        None => pgs_of(map, id).map(|(pg, own)| (pg.index, first_of(count_of(own, pool), pg.index))).collect(),
    };
    let numbers: Vec<u32> = firsts.values().copied().collect::<BTreeSet<_>>().into_iter().collect();
    let renumbered = (shape.pg_count != Some(pool.pg_count)).then(|| renumbered(map, id, &numbers));
    let map = renumbered.as_ref().unwrap_or(map);
    let layout = pgs_of(map, id).map(|(pg, present)| (pg.index, present.target.clone())).collect();
    let sets = targets(map, id, usable, &layout)?;
    let leading = pgs_of(map, id).map(|(pg, present)| (pg.index, present.primary)).collect();
    let leads = preferred_primaries(pool, &sets, &leading);
    let places = sets.into_iter().enumerate().map(|(at, target)| Place { target, lead: leads.get(at).copied() });
    let places: BTreeMap<u32, Place> = numbers.into_iter().zip(places).collect();
    Ok(firsts.into_iter().filter_map(|(index, first)| Some((index, places.get(&first)?.clone()))).collect())
}

/// The cluster as if the PGs of a pool that there are were all that there shall be.
fn renumbered(map: &ClusterMap, id: PoolId, numbers: &[u32]) -> ClusterMap {
    let mut after = map.clone();
    if let Some(pool) = after.pools.get_mut(&id) {
        pool.pg_count = numbers.len() as u32;
    }
    after.pgs.retain(|pg, _| pg.pool != id);
    after.activations.retain(|pg, _| pg.pool != id);
    after.histories.retain(|pg, _| pg.pool != id);
    for (index, number) in (0..).zip(numbers) {
        let (pg, new) = (PgId { pool: id, index: *number }, PgId { pool: id, index });
        after.pgs.extend(map.pgs.get(&pg).map(|present| (new, present.clone())));
        after.activations.extend(map.activations.get(&pg).map(|record| (new, record.clone())));
        after.histories.extend(map.histories.get(&pg).map(|history| (new, history.clone())));
    }
    after
}

/// PGs that may begin to move now: those that do are less than the settings allow by so many. A PG of which nothing is lacking but a member
/// that does not run is not moving: it may be what has to move.
fn moves_allowed(map: &ClusterMap, running: &Running) -> usize {
    if map.settings.rebalance_paused {
        return 0;
    }
    let is_moving = |(pg, present): &(&PgId, &PgMap)| {
        let record = map.activations.get(pg).filter(|record| record.epoch == present.epoch);
        let gets_data =
            |osd: &OsdId, record: &Activation| running.alive.contains_key(osd) && !record.complete.contains(osd);
        record.is_none_or(|record| present.target.iter().any(|osd| gets_data(osd, record)))
    };
    (map.settings.moving_pgs_max as usize).saturating_sub(map.pgs.iter().filter(is_moving).count())
}

/// Begins a new interval of an existing PG if others should serve it than do.
fn renew(
    map: &ClusterMap,
    running: &Running,
    pg: PgId,
    pool: &PoolConfig,
    (present, target, lead): (&PgMap, &[OsdId], Option<OsdId>),
    plan: &mut Plan,
) {
    let record = map.activations.get(&pg);
    let target =
        if target.is_empty() { present.acting.iter().flatten().map(|m| m.osd).collect() } else { target.to_vec() };
    let members = interval::acting(map, running, pg, pool.scheme, &target);
    // Fewer than make up the data cannot serve it.
    if members.iter().flatten().count() < pool.scheme.copies_needed() {
        return;
    }
    let Some(primary) = interval::primary(record, Some(present), &members, lead) else { return };
    let sorted = |members: &[Option<Member>]| members.iter().flatten().copied().collect::<BTreeSet<_>>();
    let same = match pool.scheme {
        Scheme::Replicated { .. } => sorted(&members) == sorted(&present.acting),
        Scheme::Ec { .. } => members == present.acting,
    };
    let told = PgMap { pg_count: Some(count_of(present, pool)), ..present.clone() };
    if same && primary == present.primary && same_members(&target, &present.target) == Some(true) {
        // A map from before PGs could be split does not tell of how many it is one.
        if present.pg_count.is_none() {
            plan.changes.push(PgChange::new(pg, told, None, running));
        }
        return;
    }
    let Some(next) = interval::next(record, running, &told, members, primary, target) else {
        return plan.problems.push(exhausted(pg, present));
    };
    let history = past(map, pg, present.epoch, pool.width());
    plan.changes.push(PgChange::new(pg, next, history, running));
}

fn exhausted(pg: PgId, present: &PgMap) -> Problem {
    let message = format!("pg {pg} is in its last possible epoch, {}: move its data to another pool", present.epoch);
    Problem::new(ProblemCode::PgEpochsExhausted, message)
}

/// Splits a PG into those that there shall be in its place, which begin with the same members and the same past.
fn split(
    map: &ClusterMap,
    running: &Running,
    pg: PgId,
    pool: &PoolConfig,
    (present, pg_count): (&PgMap, u32),
    plan: &mut Plan,
) {
    let Some(record) = map.activations.get(&pg) else { return };
    let (acting, primary, target) = (present.acting.clone(), present.primary, present.target.clone());
    let Some(next) = interval::next(Some(record), running, present, acting, primary, target) else {
        return plan.problems.push(exhausted(pg, present));
    };
    let map_of_all = PgMap { pg_count: Some(pg_count), ..next };
    let history = past(map, pg, present.epoch, pool.width());
    let all = history.clone().or_else(|| map.histories.get(&pg).cloned()).unwrap_or_default();
    let whole = PgScope { pg, count: count_of(present, pool) };
    let parts = whole.parts(pg_count).skip(1).collect();
    let split = Some(Split { parts, history: all, record: record.clone() });
    plan.changes.push(PgChange { split, ..PgChange::new(pg, map_of_all, history, running) });
}

/// Merges what can be merged now. Returns those PGs, which need nothing else.
fn merge(
    map: &ClusterMap,
    running: &Running,
    pool: &PoolConfig,
    groups: &[Group],
    may_begin: &mut usize,
    plan: &mut Plan,
) -> BTreeSet<PgId> {
    let mut merged = BTreeSet::new();
    for group in groups {
        if *may_begin == 0 || group.parts.iter().any(|part| merged.contains(part)) {
            continue;
        }
        let (pg, others) = (group.parts[0], &group.parts[1..]);
        if let Some(Step::Merge(whole, history)) = group.step(map, running, pool) {
            let change = PgChange::new(pg, whole, Some(history), running);
            plan.changes.push(PgChange { merged: others.to_vec(), ..change });
            merged.extend(&group.parts);
            *may_begin -= 1;
        }
    }
    merged
}

/// Aligns what could be merged otherwise, and has nothing else to do.
fn align(
    map: &ClusterMap,
    running: &Running,
    pool: &PoolConfig,
    groups: &[Group],
    may_begin: &mut usize,
    plan: &mut Plan,
) {
    let changed = plan.changes.iter().flat_map(|change| [&change.pg].into_iter().chain(&change.merged));
    let mut touched: BTreeSet<PgId> = changed.copied().collect();
    for group in groups {
        if *may_begin == 0 || group.parts.iter().any(|part| touched.contains(part)) {
            continue;
        }
        if let Some(Step::Align(parts)) = group.step(map, running, pool) {
            *may_begin = may_begin.saturating_sub(parts.len());
            for (pg, next) in parts {
                let epoch = map.pgs.get(&pg).map_or(next.epoch, |present| present.epoch);
                let history = past(map, pg, epoch, pool.width());
                plan.changes.push(PgChange::new(pg, next, history, running));
                touched.insert(pg);
            }
        }
    }
}

/// The history once interval `epoch` is past: nothing new unless it may have accepted writes.
fn past(map: &ClusterMap, pg: PgId, epoch: Epoch, width: usize) -> Option<Vec<Interval>> {
    let record = map.activations.get(&pg).filter(|record| record.epoch == epoch)?;
    let before = map.histories.get(&pg).map_or(&[][..], Vec::as_slice);
    Some(interval::history(before, record, width))
}

/// Finds PGs that the pool's configuration does not describe.
fn check_pool(map: &ClusterMap, id: PoolId, pool: &PoolConfig, shape: &Shape, problems: &mut Vec<Problem>) {
    let width = pool.width();
    let is_strange = |(pg, present): &(PgId, &PgMap)| {
        let count = count_of(present, pool);
        pg.index >= count || present.acting.len() > width || !leads_to(count, pool)
    };
    let mut strange = pgs_of(map, id).filter(is_strange);
    if let Some((first, _)) = strange.next() {
        let n = 1 + strange.count();
        problems.push(Problem::new(
            ProblemCode::PoolChanged,
            format!(
                "pool {:?} was changed: {} (pg {first} first) do not fit its {} PGs of {width} copies: \
                 restore pg-count and copies in {}",
                pool.name,
                count(n, "PG"),
                pool.pg_count,
                keys::pool(id)
            ),
        ));
    }
    if shape.fits && shape.pg_count.is_none() && !shape.is_complete {
        let message = format!(
            "pool {:?} lacks maps of PGs, while others are being split or merged: restore {}",
            pool.name,
            keys::PGS
        );
        problems.push(Problem::new(ProblemCode::PoolChanged, message));
    }
}

fn pgs_of(map: &ClusterMap, pool: PoolId) -> impl Iterator<Item = (PgId, &PgMap)> {
    let all = PgId { pool, index: 0 }..=PgId { pool, index: u32::MAX };
    map.pgs.range(all).map(|(pg, present)| (*pg, present))
}

/// Creates the PGs of a pool that do not exist, if enough of their members run. While PGs are being split or merged nobody can tell which are
/// lost and which are yet to come, or have become part of others.
fn create(
    map: &ClusterMap,
    running: &Running,
    (id, pg_count): (PoolId, Option<u32>),
    pool: &PoolConfig,
    places: &BTreeMap<u32, Place>,
    plan: &mut Plan,
) {
    let Some(pg_count) = pg_count else { return };
    let (mut waiting, mut created) = (0, Vec::new());
    for (index, Place { target, .. }) in places.iter().filter(|(index, _)| **index < pg_count) {
        let index = *index;
        let pg = PgId { pool: id, index };
        if map.pgs.contains_key(&pg) {
            continue;
        }
        let members = interval::acting(map, running, pg, pool.scheme, target);
        let primary = interval::primary(map.activations.get(&pg), None, &members, target.first().copied());
        let enough = members.iter().flatten().count() >= usize::from(pool.min_size);
        let (true, Some(primary)) = (enough, primary) else {
            waiting += 1;
            continue;
        };
        // A map that was lost must not take an epoch a second time: versions would repeat.
        let before = past_epoch(map, pg);
        let history = past(map, pg, before, pool.width());
        let (dead, unfenced) = (Vec::new(), Vec::new());
        let (epoch, target) = (before.next(), target.clone());
        let next = PgMap { epoch, primary, acting: members, target, dead, unfenced, pg_count: Some(pg_count) };
        created.push(PgChange { wholes: wholes(map, pg, pg_count), ..PgChange::new(pg, next, history, running) });
    }
    // All or none: PGs are placed with regard to each other.
    if waiting == 0 {
        plan.changes.extend(created);
    } else {
        let members = places.values().flat_map(|place| &place.target);
        let down = members.filter(|osd| !running.alive.contains_key(osd)).collect::<BTreeSet<_>>();
        plan.problems.push(Problem::new(
            ProblemCode::PoolWaitsForOsds,
            format!(
                "{} of pool {:?} cannot be created because OSDs they are placed on do not run ({}): start them, or set \
                 their weight to 0",
                count(waiting, "PG"),
                pool.name,
                list(down)
            ),
        ));
    }
}

/// PGs there are that have the numbers of those of which this one can have become part.
fn wholes(map: &ClusterMap, pg: PgId, pg_count: u32) -> Vec<PgId> {
    let fewer = (1..pg_count).filter(|count| pg_count.is_multiple_of(*count));
    let wholes: BTreeSet<_> = fewer.map(|count| PgId { index: pg.index % count, ..pg }).collect();
    wholes.into_iter().filter(|whole| *whole != pg && map.pgs.contains_key(whole)).collect()
}

/// The highest epoch that other records tell of a PG without a map.
fn past_epoch(map: &ClusterMap, pg: PgId) -> Epoch {
    let activated = map.activations.get(&pg).map(|a| a.epoch);
    let past = map.histories.get(&pg).and_then(|h| h.iter().map(|i| i.epoch).max());
    activated.max(past).unwrap_or_default().min(Epoch(Epoch::MAX.0 - 1))
}
