//! Placement: which OSDs should serve which PG.
//!
//! Three steps, each deterministic: equal input gives equal output.
//!
//! 1. **Quotas** (`quota`): how many PGs of the pool each OSD serves, in proportion to its weight as far as the pool's rules allow.
//! 2. **Sets.** A new pool: a linear program shares the PGs out to sampled sets of failure domains (`combinations`), which are then
//!    unfolded to OSDs (`initial`). An existing one: the last clean layout. In both cases exchanges (`layout`) make every OSD serve
//!    exactly its quota, moving as few shards as the quotas ask for, and never the position of a member that stays.
//! 3. **Primaries** (`primaries`): each OSD leads its share of the PGs that it serves.
//!
//! The rules of a pool make the legal sets those of a laminar matroid, for which quotas that fit the rules in sum can always be met
//! in whole PGs; so there is no second program for changes, and nothing is lost to rounding (docs/decisions/0004).

use std::collections::{BTreeMap, BTreeSet};

use cluster_proto::map::{ClusterMap, PoolConfig, Scheme};
use cluster_proto::{OsdId, PgId, PoolId};

mod candidates;
mod combinations;
mod initial;
mod layout;
mod primaries;
mod quota;

use candidates::Candidates;
use layout::Layout;

use crate::problem::{Problem, ProblemCode, count};

/// The target set of every PG of a pool, by shard.
///
/// `usable` are the OSDs that may get data at all ("in": they run, or have not been down for long). `last_clean` has the sets in which
/// all data was where it should be, by PG index; it may lack PGs, and then those are placed anew.
///
/// - All sets have the pool's width and obey its rules; each OSD serves its share by weight to within the rounding to whole PGs.
/// - A member that stays keeps its position, except that in replicated pools the first place, that of the preferred primary, is given
///   to OSDs in turn. In erasure-coded pools positions are shards: see [`preferred_primaries`].
/// - `targets` of its own result is that result: nothing moves without a reason.
/// - What moves goes, where there is a choice, to OSDs that have data of the PG from past intervals (`map.histories`,
///   `map.activations`): an OSD that comes back while its PGs are still being copied elsewhere gets the same ones again.
///
/// Time: for 500 OSDs and 4,096 PGs under a second for a new pool, some milliseconds for one that stays (`cargo run --release -p mon-core
/// --example placement`). A caller that plans often should remember the result as long as `usable`, the configuration and `last_clean`
/// do not change.
///
/// # Errors
/// The rules cannot be met with these OSDs, or there is no such pool. PGs should then stay where they are.
pub fn targets(
    map: &ClusterMap,
    pool: PoolId,
    usable: &BTreeSet<OsdId>,
    last_clean: &BTreeMap<u32, Vec<OsdId>>,
) -> Result<Vec<Vec<OsdId>>, Problem> {
    let Some(config) = map.pools.get(&pool) else {
        return Err(Problem::new(ProblemCode::PoolMissing, format!("pool {pool} is not configured")));
    };
    let candidates = candidates(map, config, usable)?;
    Placing { map, usable, pool, config, candidates: &candidates }.targets(last_clean)
}

/// [`targets`] of all pools. `last_clean` has the PGs of all of them.
pub fn all_targets(
    map: &ClusterMap,
    usable: &BTreeSet<OsdId>,
    last_clean: &BTreeMap<PgId, Vec<OsdId>>,
) -> BTreeMap<PoolId, Result<Vec<Vec<OsdId>>, Problem>> {
    let of_pool = |pool: PoolId| {
        let range = PgId { pool, index: 0 }..=PgId { pool, index: u32::MAX };
        last_clean.range(range).map(|(pg, set)| (pg.index, set.clone())).collect()
    };
    map.pools.keys().map(|pool| (*pool, targets(map, *pool, usable, &of_pool(*pool)))).collect()
}

/// Who should lead each PG if all members of its target set run. In replicated pools the first of the set; in erasure-coded ones, where
/// positions are shards, a member chosen so that each OSD leads its share of the PGs that it serves. `present`: who leads now, by PG
/// index; that is changed in as few PGs as the shares allow.
pub fn preferred_primaries(pool: &PoolConfig, targets: &[Vec<OsdId>], present: &BTreeMap<u32, OsdId>) -> Vec<OsdId> {
    if let Scheme::Replicated { .. } = pool.scheme {
        return targets.iter().filter_map(|set| set.first().copied()).collect();
    }
    let osds: Vec<OsdId> = targets.iter().flatten().copied().collect::<BTreeSet<_>>().into_iter().collect();
    let index = |osd: &OsdId| osds.binary_search(osd).unwrap_or_default();
    let members: Vec<Vec<usize>> = targets.iter().map(|set| set.iter().map(index).collect()).collect();
    let leads_now = |(pg, set): (u32, &Vec<OsdId>)| present.get(&pg).filter(|osd| set.contains(osd)).map(index);
    let now: Vec<_> = (0..).zip(targets).map(leads_now).collect();
    let leads = primaries::primaries(&members, &now, osds.len(), pool.width());
    leads.into_iter().map(|lead| osds[lead]).collect()
}

/// The ideal share of each OSD that may serve the pool, in PGs, before rounding to whole ones.
///
/// # Errors
/// As [`targets`].
pub fn ideal_shares(map: &ClusterMap, pool: PoolId, usable: &BTreeSet<OsdId>) -> Result<BTreeMap<OsdId, f64>, Problem> {
    let Some(config) = map.pools.get(&pool) else {
        return Err(Problem::new(ProblemCode::PoolMissing, format!("pool {pool} is not configured")));
    };
    let candidates = candidates(map, config, usable)?;
    let shares = quota::ideal(&candidates, config.pg_count, config.width());
    Ok(candidates.ids.iter().copied().zip(shares).collect())
}

/// The OSDs for a pool, if there are enough of them.
fn candidates(map: &ClusterMap, pool: &PoolConfig, usable: &BTreeSet<OsdId>) -> Result<Candidates, Problem> {
    let refuse = |why: String| Problem::new(ProblemCode::PoolTooFewOsds, format!("pool {:?}: {why}", pool.name));
    let found = Candidates::of_pool(map, pool, usable).map_err(refuse)?;
    let (width, rank) = (pool.width(), found.rank(pool.width()));
    if rank >= width {
        return Ok(found);
    }
    if pool.placement.fall_back_to_osds && found.len() >= width {
        return Ok(found.without_domains());
    }
    Err(refuse(too_few(pool, &found, rank)))
}

/// Why a pool cannot be placed, and what to do.
fn too_few(pool: &PoolConfig, found: &Candidates, rank: usize) -> String {
    let rules = &pool.placement;
    let mut which = String::new();
    if let Some(root) = &rules.root {
        which += &format!(" in {root:?}");
    }
    if !rules.tags.is_empty() {
        which += &format!(" tagged {}", rules.tags.join(", "));
    }
    let members = match pool.scheme {
        Scheme::Replicated { .. } => {
            if pool.width() == 1 {
                "1 copy".into()
            } else {
                format!("{} copies", pool.width())
            }
        }
        Scheme::Ec { .. } => count(pool.width(), "shard"),
    };
    let has = format!("it keeps {members} but only {} with weight{which} can be used", count(found.len(), "OSD"));
    if found.len() < pool.width() {
        return format!("{has}: add OSDs or create a pool with fewer copies");
    }
    let domain = &rules.failure_domain;
    format!(
        "it keeps {members}, but of {} with weight{which} its rules (failure domain {domain:?}{}) allow {rank} together: add {domain}s, \
         relax the rules, or set fall-back-to-osds",
        count(found.len(), "OSD"),
        rules.max_per_level.iter().map(|(level, max)| format!(", at most {max} per {level}")).collect::<String>(),
    )
}

/// By how many PGs the targets of other pools give each OSD less than its share there.
fn owed(map: &ClusterMap, pool: PoolId, candidates: &Candidates, usable: &BTreeSet<OsdId>) -> Vec<f64> {
    let mut owed = vec![0.0; candidates.len()];
    for (id, other) in map.pools.iter().filter(|(id, _)| **id != pool) {
        let sets = map.pgs.range(PgId { pool: *id, index: 0 }..=PgId { pool: *id, index: u32::MAX });
        let mut served: BTreeMap<OsdId, u32> = BTreeMap::new();
        let mut seen = 0;
        for (_, present) in sets {
            seen += 1;
            present.target.iter().for_each(|osd| *served.entry(*osd).or_default() += 1);
        }
        if seen < other.pg_count {
            continue;
        }
        let Ok(shares) = ideal_shares(map, *id, usable) else { continue };
        for (owed, osd) in owed.iter_mut().zip(&candidates.ids) {
            let share = shares.get(osd).copied().unwrap_or_default();
            // More than one PG is not rounding: the other pool is about to change.
            *owed += (share - f64::from(served.get(osd).copied().unwrap_or_default())).clamp(-1.0, 1.0);
        }
    }
    owed
}

/// For each PG the candidates that served it in intervals which are not over and done with, so that they have data of it.
fn holders(map: &ClusterMap, pool: PoolId, config: &PoolConfig, candidates: &Candidates) -> Vec<Vec<u32>> {
    let of_pg = |index| {
        let pg = PgId { pool, index };
        let past = map.histories.get(&pg).into_iter().flatten().flat_map(|interval| interval.osds());
        let present = map.activations.get(&pg).into_iter().flat_map(|record| record.acting.iter().flatten());
        past.chain(present.map(|member| member.osd)).filter_map(|osd| candidates.index(osd)).collect()
    };
    (0..config.pg_count).map(of_pg).collect()
}

/// One pool being placed.
struct Placing<'a> {
    map: &'a ClusterMap,
    usable: &'a BTreeSet<OsdId>,
    pool: PoolId,
    config: &'a PoolConfig,
    candidates: &'a Candidates,
}

impl Placing<'_> {
    fn targets(&self, last_clean: &BTreeMap<u32, Vec<OsdId>>) -> Result<Vec<Vec<OsdId>>, Problem> {
        let (pgs, width) = (self.config.pg_count, self.config.width());
        let present: Vec<_> = (0..pgs).map(|pg| self.known(last_clean.get(&pg))).collect();
        let quota = self.quota(&present);
        let holders = holders(self.map, self.pool, self.config, self.candidates);
        let seed = u64::from(self.pool.0);
        let is_new = present.iter().flatten().all(Option::is_none);
        let scatter = self.config.placement.scatter_width;
        let start =
            if is_new { initial::sets(self.candidates, &quota, pgs, width, scatter, seed) } else { present.clone() };
        let mut layout = Layout::new(self.candidates, &start, &holders, quota, seed);
        if !layout.settle() {
            // Not reachable: quotas within the limits can always be met.
            debug_assert!(false, "quotas of pool {} cannot be met", self.pool);
            let message = format!("pool {:?}: no layout meets its rules", self.config.name);
            return Err(Problem::new(ProblemCode::PoolTooFewOsds, message));
        }
        let mut sets = layout.into_sets();
        if let Scheme::Replicated { .. } = self.config.scheme {
            self.lead(&mut sets, &present);
        }
        let named = |set: Vec<u32>| set.into_iter().map(|osd| self.candidates.ids[osd as usize]).collect();
        Ok(sets.into_iter().map(named).collect())
    }

    /// Members of a set that can still serve, at their positions.
    fn known(&self, set: Option<&Vec<OsdId>>) -> Vec<Option<u32>> {
        let mut known = vec![None; self.config.width()];
        for (known, osd) in known.iter_mut().zip(set.into_iter().flatten()) {
            *known = self.candidates.index(*osd);
        }
        known
    }

    fn quota(&self, present: &[Vec<Option<u32>>]) -> Vec<u32> {
        let (pgs, width) = (self.config.pg_count, self.config.width());
        let mut served = vec![0; self.candidates.len()];
        present.iter().flatten().flatten().for_each(|osd| served[*osd as usize] += 1);
        let ideal = quota::ideal(self.candidates, pgs, width);
        let present = served.iter().any(|n| *n > 0).then_some(&served[..]);
        let seed = u64::from(self.pool.0);
        let whole = |owed: &[f64]| {
            quota::whole(&quota::Wanted { candidates: self.candidates, ideal: &ideal, pgs, width, present, owed, seed })
        };
        let quota = whole(&vec![0.0; self.candidates.len()]);
        if present == Some(&quota[..]) {
            // What is near enough stays, whatever other pools do: no need to look at them.
            return quota;
        }
        whole(&owed(self.map, self.pool, self.candidates, self.usable))
    }

    /// Puts the preferred primary of each set first.
    fn lead(&self, sets: &mut [Vec<u32>], present: &[Vec<Option<u32>>]) {
        let members: Vec<Vec<usize>> = sets.iter().map(|set| set.iter().map(|osd| *osd as usize).collect()).collect();
        let now = |(set, present): (&Vec<u32>, &Vec<Option<u32>>)| {
            let first = present.first().copied().flatten()?;
            (set.first() == Some(&first)).then_some(first as usize)
        };
        let now: Vec<_> = sets.iter().zip(present).map(now).collect();
        let leads = primaries::primaries(&members, &now, self.candidates.len(), self.config.width());
        for (set, lead) in sets.iter_mut().zip(leads) {
            if let Some(at) = set.iter().position(|osd| *osd as usize == lead) {
                set.swap(0, at);
            }
        }
    }
}
