//! Which PG keys must be written now.

use std::collections::BTreeSet;

use cluster_proto::map::{ClusterMap, Interval, Member, PgMap, PoolConfig, Scheme, keys};
use cluster_proto::{Epoch, OsdId, PgId, PoolId};

use crate::interval::{self, Running};
use crate::placement::{preferred_primaries, targets};
use crate::problem::{Problem, ProblemCode, count, list};

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
}

impl PgChange {
    /// Keys that must not have changed since the map was read. Registrations are among them because a run is taken for over when its OSD
    /// is registered in another one: that must be the later one.
    pub fn unchanged(&self) -> impl Iterator<Item = String> {
        let own = [keys::pg_map(self.pg), keys::pg_activation(self.pg)];
        own.into_iter().chain(self.registered.iter().map(|osd| keys::osd(*osd)))
    }

    fn new(pg: PgId, map: PgMap, history: Option<Vec<Interval>>, running: &Running) -> Self {
        let members = map.members().map(|(_, member)| member.osd);
        let registered =
            members.chain(map.dead.iter().map(|run| run.osd)).filter(|osd| running.alive.contains_key(osd));
        let registered = registered.collect();
        PgChange { pg, map, history, registered }
    }

    /// Keys and their new values (`None`: delete).
    pub fn writes(&self) -> Vec<(String, Option<Vec<u8>>)> {
        let history = self.history.as_ref().map(|h| (keys::pg_history(self.pg), Some(json(h))));
        // The map comes last: who hears of it must know the history.
        history.into_iter().chain([(keys::pg_map(self.pg), Some(json(&self.map)))]).collect()
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
/// - The PGs of a pool are created as soon as so many members of each run that it may accept writes.
/// - A PG whose members are not those that should serve it now gets the next epoch. If nobody could serve it, it stays as it is: its
///   clients wait.
///
/// After the changes are applied to the map, `plan` finds none, but for PGs that had to wait for others to move.
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
    let mut may_move = moves_allowed(map);
    for (id, pool) in &map.pools {
        check_pool(map, *id, pool, &mut plan.problems);
        let layout = pgs_of(map, *id).map(|(pg, present)| (pg.index, present.target.clone())).collect();
        let placed = targets(map, *id, usable, &layout).map_err(|problem| plan.problems.push(problem)).ok();
        let leading = pgs_of(map, *id).map(|(pg, present)| (pg.index, present.primary)).collect();
        let leads = placed.as_ref().map(|sets| preferred_primaries(pool, sets, &leading));
        for (pg, present) in pgs_of(map, *id).filter(|(pg, _)| pg.index < pool.pg_count) {
            let index = pg.index as usize;
            let wished = placed.as_ref().and_then(|sets| sets.get(index)).unwrap_or(&present.target);
            let moves = same_members(wished, &present.target) == Some(false) || present.target.is_empty();
            let target = if moves && may_move == 0 { &present.target } else { wished };
            may_move -= usize::from(moves && may_move > 0);
            let lead = leads.as_ref().and_then(|leads| leads.get(index)).copied();
            renew(map, running, pg, pool, (present, target, lead), &mut plan);
        }
        let existing = pgs_of(map, *id).filter(|(pg, _)| pg.index < pool.pg_count).count();
        if let Some(placed) = placed
            && existing < pool.pg_count as usize
        {
            create(map, running, *id, pool, &placed, &mut plan);
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

/// PGs that may begin to move now.
fn moves_allowed(map: &ClusterMap) -> usize {
    if map.settings.rebalance_paused {
        return 0;
    }
    let is_moving = |(pg, present): &(&PgId, &PgMap)| {
        let record = map.activations.get(pg).filter(|record| record.epoch == present.epoch);
        record.is_none_or(|record| present.target.iter().any(|osd| !record.complete.contains(osd)))
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
    if same && primary == present.primary && same_members(&target, &present.target) == Some(true) {
        return;
    }
    let Some(next) = interval::next(record, running, present, members, primary, target) else {
        plan.problems.push(Problem::new(
            ProblemCode::PgEpochsExhausted,
            format!("pg {pg} is in its last possible epoch, {}: move its data to another pool", present.epoch),
        ));
        return;
    };
    let history = past(map, pg, present.epoch, pool.width());
    plan.changes.push(PgChange::new(pg, next, history, running));
}

/// The history once interval `epoch` is past: nothing new unless it may have accepted writes.
fn past(map: &ClusterMap, pg: PgId, epoch: Epoch, width: usize) -> Option<Vec<Interval>> {
    let record = map.activations.get(&pg).filter(|record| record.epoch == epoch)?;
    let before = map.histories.get(&pg).map_or(&[][..], Vec::as_slice);
    Some(interval::history(before, record, width))
}

/// Finds PGs that the pool's configuration does not describe.
fn check_pool(map: &ClusterMap, id: PoolId, pool: &PoolConfig, problems: &mut Vec<Problem>) {
    let width = pool.width();
    let mut strange = pgs_of(map, id).filter(|(pg, m)| pg.index >= pool.pg_count || m.acting.len() > width);
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
}

fn pgs_of(map: &ClusterMap, pool: PoolId) -> impl Iterator<Item = (PgId, &PgMap)> {
    let all = PgId { pool, index: 0 }..=PgId { pool, index: u32::MAX };
    map.pgs.range(all).map(|(pg, present)| (*pg, present))
}

/// Creates the PGs of a pool that do not exist, if enough of their members run.
fn create(map: &ClusterMap, running: &Running, id: PoolId, pool: &PoolConfig, placed: &[Vec<OsdId>], plan: &mut Plan) {
    let (mut waiting, mut created) = (0, Vec::new());
    for (index, target) in (0..).zip(placed) {
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
        let next = PgMap { epoch: before.next(), primary, acting: members, target: target.clone(), dead, unfenced };
        created.push(PgChange::new(pg, next, history, running));
    }
    // All or none: PGs are placed with regard to each other.
    if waiting == 0 {
        plan.changes.extend(created);
    } else {
        let down = placed.iter().flatten().filter(|osd| !running.alive.contains_key(osd)).collect::<BTreeSet<_>>();
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

/// The highest epoch that other records tell of a PG without a map.
fn past_epoch(map: &ClusterMap, pg: PgId) -> Epoch {
    let activated = map.activations.get(&pg).map(|a| a.epoch);
    let past = map.histories.get(&pg).and_then(|h| h.iter().map(|i| i.epoch).max());
    activated.max(past).unwrap_or_default().min(Epoch(Epoch::MAX.0 - 1))
}
