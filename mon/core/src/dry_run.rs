//! What a change of the configuration would move, before anybody makes it.

use std::collections::{BTreeMap, BTreeSet};

use cluster_proto::map::{ClusterMap, OsdStats, PoolConfig, Scheme};
use cluster_proto::{OsdId, PgId, PoolId};
use serde::Serialize;

use crate::fullness::{Fullness, fill};
use crate::placement::all_targets;
use crate::problem::{Problem, ProblemCode};

/// Shards and bytes that move.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Moves {
    /// Copies or shards of PGs.
    pub shards: u64,
    /// What they hold. Bytes.
    pub bytes: u64,
}

impl Moves {
    fn add(&mut self, bytes: u64) {
        self.shards += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What happens to one OSD.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OsdMoves {
    /// What it gets.
    pub gains: Moves,
    /// What it gives away.
    pub loses: Moves,
    /// Share of its space in use now, 0 to 1; none if it has not told its size.
    pub fill_now: Option<f64>,
    /// The same when all has moved.
    pub fill_then: Option<f64>,
}

/// What a change of the configuration would move.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DryRun {
    /// All that moves.
    pub total: Moves,
    /// By pool; those of which nothing moves too.
    pub pools: BTreeMap<PoolId, Moves>,
    /// By OSD; those that are configured, and those that hold something now.
    pub osds: BTreeMap<OsdId, OsdMoves>,
    /// OSDs that would be nearly full or full, and pools that could not be placed: these stay as they are.
    pub problems: Vec<Problem>,
}

/// Tells what would move if `after` were the configuration, from where all data is now, `last_clean`. `shard_bytes`: what one member of
/// a PG holds (in replicated pools a whole copy); PGs that are not listed hold nothing. `usable` as in [`crate::placement::targets`], after
/// the change. PGs that `last_clean` does not list are new: nothing moves to them.
pub fn dry_run(
    after: &ClusterMap,
    usable: &BTreeSet<OsdId>,
    last_clean: &BTreeMap<PgId, Vec<OsdId>>,
    shard_bytes: &BTreeMap<PgId, u64>,
    stats: &BTreeMap<OsdId, OsdStats>,
) -> DryRun {
    let mut run = DryRun::default();
    let holders = last_clean.values().flatten().copied();
    for osd in after.osd_configs.keys().copied().chain(holders) {
        run.osds.entry(osd).or_default();
    }
    for (pool, targets) in all_targets(after, usable, last_clean) {
        run.pools.insert(pool, Moves::default());
        let (Some(config), Ok(targets)) = (after.pools.get(&pool), &targets) else {
            run.problems.extend(targets.err());
            continue;
        };
        for (index, target) in (0..).zip(targets) {
            let pg = PgId { pool, index };
            let Some(present) = last_clean.get(&pg) else { continue };
            run.move_pg(config, pg, present, target, shard_bytes.get(&pg).copied().unwrap_or(0));
        }
    }
    run.project(after, stats);
    run
}

impl DryRun {
    fn move_pg(&mut self, pool: &PoolConfig, pg: PgId, present: &[OsdId], target: &[OsdId], bytes: u64) {
        // A shard is at home at its position, a copy anywhere.
        let has = |set: &[OsdId], at: usize, osd: &OsdId| match pool.scheme {
            Scheme::Replicated { .. } => set.contains(osd),
            Scheme::Ec { .. } => set.get(at) == Some(osd),
        };
        for (_, osd) in target.iter().enumerate().filter(|(at, osd)| !has(present, *at, osd)) {
            self.osds.entry(*osd).or_default().gains.add(bytes);
            self.pools.entry(pg.pool).or_default().add(bytes);
            self.total.add(bytes);
        }
        for (_, osd) in present.iter().enumerate().filter(|(at, osd)| !has(target, *at, osd)) {
            self.osds.entry(*osd).or_default().loses.add(bytes);
        }
    }

    /// Works out how full OSDs will be.
    fn project(&mut self, after: &ClusterMap, stats: &BTreeMap<OsdId, OsdStats>) {
        for (osd, moves) in &mut self.osds {
            let Some(stats) = stats.get(osd) else { continue };
            moves.fill_now = fill(stats);
            let used = stats.space.used.saturating_add(moves.gains.bytes).saturating_sub(moves.loses.bytes);
            moves.fill_then = moves.fill_now.map(|_| used as f64 / stats.space.total as f64);
            let (Some(now), Some(then)) = (moves.fill_now, moves.fill_then) else { continue };
            let code = match Fullness::of(&after.settings, then) {
                Fullness::Roomy => continue,
                Fullness::NearFull => ProblemCode::OsdNearlyFull,
                Fullness::Full => ProblemCode::OsdFull,
            };
            let message = format!("osd {osd} would be {:.1}% full, from {:.1}% now", then * 100.0, now * 100.0);
            self.problems.push(Problem::new(code, message));
        }
    }
}
