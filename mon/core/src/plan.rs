//! Which PG keys must be written now.

use std::collections::BTreeSet;

use cluster_proto::map::{ClusterMap, Interval, Member, PgMap, PoolConfig, keys};
use cluster_proto::{Epoch, Incarnation, OsdId, PgId, PoolId};

use crate::placement::place;
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
}

impl PgChange {
    /// Keys that must not have changed since the map was read.
    pub fn unchanged(&self) -> [String; 2] {
        [keys::pg_map(self.pg), keys::pg_activation(self.pg)]
    }

    /// Keys and their new values (`None`: delete).
    pub fn writes(&self) -> Vec<(String, Option<Vec<u8>>)> {
        let history = self.history.as_ref().map(|h| (keys::pg_history(self.pg), Some(json(h))));
        std::iter::once((keys::pg_map(self.pg), Some(json(&self.map)))).chain(history).collect()
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
/// - PGs of a pool that do not exist yet are placed on the configured OSDs with weight, and created in epoch 1 as soon
///   as all their members run.
/// - A PG whose members all run, one of them in another incarnation than recorded, gets the next epoch.
/// - A PG of which a member does not run stays as it is: its clients wait.
///
/// After the changes are applied to the map, `plan` finds none.
pub fn plan(map: &ClusterMap) -> Plan {
    let mut plan = Plan::default();
    if map.cluster.is_none() {
        plan.problems.push(Problem::new(
            ProblemCode::NoCluster,
            format!("the state store has no cluster ({} is missing): start one with 'blockyard up'", keys::CLUSTER),
        ));
        return plan;
    }
    for (pg, present) in &map.pgs {
        renew(map, *pg, present, &mut plan);
    }
    let pools: BTreeSet<_> = map.pgs.keys().map(|pg| pg.pool).collect();
    for pool in pools.iter().filter(|pool| !map.pools.contains_key(pool)) {
        plan.problems.push(Problem::new(
            ProblemCode::PoolMissing,
            format!("pool {pool} has PGs but no configuration: write {} again", keys::pool(*pool)),
        ));
    }
    for (id, pool) in &map.pools {
        check_pool(map, *id, pool, &mut plan.problems);
        let existing = pgs_of(map, *id).filter(|(pg, _)| pg.index < pool.pg_count).count();
        if existing < pool.pg_count as usize {
            create(map, *id, pool, &mut plan);
        }
    }
    plan.changes.sort_by_key(|change| change.pg);
    plan
}

/// Runs of all these OSDs; `None` if one of them does not run.
fn running(map: &ClusterMap, osds: &[OsdId]) -> Option<Vec<Member>> {
    osds.iter().map(|osd| map.osds.get(osd).map(|state| member(*osd, state.incarnation))).collect()
}

fn member(osd: OsdId, incarnation: Incarnation) -> Member {
    Member { osd, incarnation }
}

/// Begins a new interval of an existing PG if a member was restarted.
fn renew(map: &ClusterMap, pg: PgId, present: &PgMap, plan: &mut Plan) {
    let target =
        if present.target.is_empty() { present.acting.iter().map(|m| m.osd).collect() } else { present.target.clone() };
    let Some(acting) = running(map, &target) else { return };
    if acting == present.acting {
        return;
    }
    if present.epoch >= Epoch::MAX {
        plan.problems.push(Problem::new(
            ProblemCode::PgEpochsExhausted,
            format!("pg {pg} is in its last possible epoch, {}: move its data to another pool", present.epoch),
        ));
        return;
    }
    let next = PgMap { epoch: present.epoch.next(), acting, target };
    let history = history(map, pg, present.epoch, &next.target);
    plan.changes.push(PgChange { pg, map: next, history });
}

/// The history once interval `epoch` is past: nothing new unless that interval accepted writes. If it did, and all members
/// of the target set were in it, the activation found or made them equal: then everything older is on all of them, and
/// only this interval matters to the next peering.
fn history(map: &ClusterMap, pg: PgId, epoch: Epoch, target: &[OsdId]) -> Option<Vec<Interval>> {
    let activation = map.activations.get(&pg).filter(|a| a.epoch == epoch)?;
    let interval = Interval { epoch, acting: activation.acting.iter().map(|m| m.osd).collect() };
    let mut history = map.histories.get(&pg).cloned().unwrap_or_default();
    if target.iter().all(|osd| interval.acting.contains(osd)) {
        history.clear();
    } else {
        history.retain(|past| past.epoch < epoch);
    }
    history.push(interval);
    Some(history)
}

/// Finds PGs that the pool's configuration does not describe.
fn check_pool(map: &ClusterMap, id: PoolId, pool: &PoolConfig, problems: &mut Vec<Problem>) {
    let width = pool.width();
    let mut strange = pgs_of(map, id).filter(|(pg, m)| pg.index >= pool.pg_count || m.acting.len() != width);
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

/// Creates the PGs of a pool that do not exist and whose members run.
fn create(map: &ClusterMap, id: PoolId, pool: &PoolConfig, plan: &mut Plan) {
    let osds: Vec<_> = map.osd_configs.iter().map(|(osd, config)| (*osd, config.weight)).collect();
    let Some(placed) = place(&osds, pool.width(), pool.pg_count) else {
        let usable = osds.iter().filter(|(_, weight)| *weight > 0.0).count();
        plan.problems.push(Problem::new(
            ProblemCode::PoolTooFewOsds,
            format!(
                "pool {:?} keeps {} but only {} with weight: add OSDs or create a pool with fewer copies",
                pool.name,
                if pool.width() == 1 { "1 copy".into() } else { format!("{} copies", pool.width()) },
                if usable == 1 { "1 OSD exists".into() } else { format!("{usable} OSDs exist") },
            ),
        ));
        return;
    };
    let mut waiting = 0;
    for (index, target) in (0..).zip(placed) {
        let pg = PgId { pool: id, index };
        if map.pgs.contains_key(&pg) {
            continue;
        }
        match running(map, &target) {
            Some(acting) => {
                // A map that was lost must not take an epoch a second time: versions would repeat.
                let past = past_epoch(map, pg);
                let history = history(map, pg, past, &target);
                plan.changes.push(PgChange { pg, map: PgMap { epoch: past.next(), acting, target }, history });
            }
            None => waiting += 1,
        }
    }
    if waiting > 0 {
        let down = osds.iter().filter(|(osd, weight)| *weight > 0.0 && !map.osds.contains_key(osd));
        plan.problems.push(Problem::new(
            ProblemCode::PoolWaitsForOsds,
            format!(
                "{} of pool {:?} cannot be created because OSDs they are placed on do not run ({}): start them, or set \
                 their weight to 0",
                count(waiting, "PG"),
                pool.name,
                list(down.map(|(osd, _)| osd))
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
