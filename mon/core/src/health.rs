//! How the cluster is: the state of each PG and OSD, sums, and what is wrong. One judgement for `blockyard status`, for
//! metrics, and for whoever waits until everything is served.

use std::collections::{BTreeMap, BTreeSet};

use cluster_proto::map::{ClusterMap, OsdStats, PgMap, PgScrub, PoolConfig};
use cluster_proto::{OsdId, PgId, PoolId};
use serde::Serialize;

use crate::fullness::fullness_problems;
use crate::interval::Running;
use crate::plan::{plan, usable};
use crate::problem::{Problem, ProblemCode, count, list};
use crate::split::{count_of, share};

/// What a PG does, as the cluster state shows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PgState {
    /// Serves, and all data is where it should be.
    Active,
    /// Serves, but some member is absent or lacks data.
    Degraded,
    /// Its members run, the primary has not activated the interval yet.
    Peering,
    /// Fewer members run than may accept writes: reads may be served, writes wait.
    Offline,
    /// The pool's configuration asks for it, but it is not created yet.
    Creating,
}

/// State of a PG that has a map.
pub fn pg_state(map: &ClusterMap, pg: PgId, present: &PgMap) -> PgState {
    let pool = map.pools.get(&pg.pool);
    let runs = |m: &cluster_proto::map::Member| map.osds.get(&m.osd).is_some_and(|o| o.incarnation == m.incarnation);
    let running = present.members().filter(|(_, member)| runs(member)).count();
    let record = map.activations.get(&pg).filter(|a| a.epoch == present.epoch && a.acting == present.acting);
    let Some(pool) = pool.filter(|pool| running >= usize::from(pool.min_size)) else { return PgState::Offline };
    match record {
        _ if running < present.members().count() => PgState::Peering,
        None => PgState::Peering,
        Some(record) => {
            let complete = present.target.iter().all(|osd| record.complete.contains(osd));
            if complete && running == pool.width() { PgState::Active } else { PgState::Degraded }
        }
    }
}

/// PGs by state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PgCounts {
    /// All that should exist.
    pub total: usize,
    /// In [`PgState::Active`].
    pub active: usize,
    /// In [`PgState::Degraded`].
    pub degraded: usize,
    /// In [`PgState::Peering`].
    pub peering: usize,
    /// In [`PgState::Offline`].
    pub offline: usize,
    /// In [`PgState::Creating`].
    pub creating: usize,
}

impl PgCounts {
    /// Counts the PGs of one pool.
    pub fn of_pool(map: &ClusterMap, id: PoolId, config: Option<&PoolConfig>) -> Self {
        let mut counts = PgCounts::default();
        let all = || PgId { pool: id, index: 0 }..=PgId { pool: id, index: u32::MAX };
        for (pg, present) in map.pgs.range(all()) {
            counts.add(pg_state(map, *pg, present), 1);
        }
        // Each of n PGs has an n-th of the objects, however many there shall be.
        let missing = config.map_or(0, |pool| {
            let (has, all) = share(map.pgs.range(all()).map(|(_, present)| count_of(present, pool)));
            (all.saturating_sub(has) * u64::from(pool.pg_count)).div_ceil(all)
        });
        counts.add(PgState::Creating, missing as usize);
        counts
    }

    fn add(&mut self, state: PgState, n: usize) {
        self.total += n;
        match state {
            PgState::Active => self.active += n,
            PgState::Degraded => self.degraded += n,
            PgState::Peering => self.peering += n,
            PgState::Offline => self.offline += n,
            PgState::Creating => self.creating += n,
        }
    }

    fn sum(self, other: PgCounts) -> PgCounts {
        PgCounts {
            total: self.total + other.total,
            active: self.active + other.active,
            degraded: self.degraded + other.degraded,
            peering: self.peering + other.peering,
            offline: self.offline + other.offline,
            creating: self.creating + other.creating,
        }
    }

    /// Whether every PG serves.
    pub fn is_all_active(&self) -> bool {
        self.active + self.degraded == self.total
    }
}

/// Judgement in one word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing is wrong.
    Ok,
    /// All data is served, something needs attention.
    Warning,
    /// Some data is not served.
    Error,
}

/// OSDs in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OsdCounts {
    /// Configured or running.
    pub total: usize,
    /// Running.
    pub up: usize,
    /// Configured with weight: they get data.
    #[serde(rename = "in")]
    pub within: usize,
}

/// Health of a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Health {
    /// The worst of the problems.
    pub verdict: Verdict,
    /// What is wrong; errors first.
    pub problems: Vec<Problem>,
    /// PGs of all pools.
    pub pgs: PgCounts,
    /// OSDs.
    pub osds: OsdCounts,
}

/// Judges a cluster by its map, with what was scrubbed, and the statistics of its OSDs.
pub fn health(map: &ClusterMap, stats: &BTreeMap<OsdId, OsdStats>) -> Health {
    let mut pools: BTreeMap<PoolId, Option<&PoolConfig>> = map.pgs.keys().map(|pg| (pg.pool, None)).collect();
    pools.extend(map.pools.iter().map(|(id, pool)| (*id, Some(pool))));
    let counts = pools.iter().map(|(id, pool)| PgCounts::of_pool(map, *id, *pool));
    let pgs = counts.fold(PgCounts::default(), PgCounts::sum);
    let mut problems = plan(map, &Running::registered(map), &usable(map, &BTreeSet::new())).problems;
    judge_osds(map, &mut problems);
    judge_pgs(&pgs, &mut problems);
    judge_scrubs(map, &mut problems);
    for (osd, stats) in stats {
        judge_stats(*osd, stats, &mut problems);
    }
    problems.extend(fullness_problems(&map.settings, stats));
    problems.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.code.cmp(&b.code)));
    let verdict = match problems.first().map(|p| p.severity) {
        None => Verdict::Ok,
        Some(crate::Severity::Warning) => Verdict::Warning,
        Some(crate::Severity::Error) => Verdict::Error,
    };
    Health { verdict, problems, pgs, osds: count_osds(map) }
}

fn count_osds(map: &ClusterMap) -> OsdCounts {
    let unconfigured = map.osds.keys().filter(|osd| !map.osd_configs.contains_key(osd)).count();
    OsdCounts {
        total: map.osd_configs.len() + unconfigured,
        up: map.osds.len(),
        within: map.osd_configs.values().filter(|config| config.weight > 0.0).count(),
    }
}

fn judge_osds(map: &ClusterMap, problems: &mut Vec<Problem>) {
    let down: Vec<_> = map.osd_configs.keys().filter(|osd| !map.osds.contains_key(osd)).collect();
    if !down.is_empty() {
        let message = format!("{} down ({}): start them again", count(down.len(), "OSD"), list(down));
        problems.push(Problem::new(ProblemCode::OsdDown, message));
    }
    let strange: Vec<_> = map.osds.keys().filter(|osd| !map.osd_configs.contains_key(osd)).collect();
    if !strange.is_empty() {
        let message = format!(
            "{} without configuration ({}) get no data: set their weight with 'blockyard config set osd/ID'",
            count(strange.len(), "running OSD"),
            list(strange)
        );
        problems.push(Problem::new(ProblemCode::OsdNotConfigured, message));
    }
}

fn judge_pgs(pgs: &PgCounts, problems: &mut Vec<Problem>) {
    if pgs.offline > 0 {
        let message = format!(
            "{} of {} cannot accept writes because too few of their members run: start OSDs; clients wait",
            count(pgs.offline, "PG"),
            pgs.total
        );
        problems.push(Problem::new(ProblemCode::PgOffline, message));
    }
    if pgs.degraded > 0 {
        let message = format!(
            "{} of {} have less redundancy than they should until members are back or data is copied",
            count(pgs.degraded, "PG"),
            pgs.total
        );
        problems.push(Problem::new(ProblemCode::PgDegraded, message));
    }
    if pgs.peering > 0 {
        let message =
            format!("{} of {} are about to serve: reads and writes there wait", count(pgs.peering, "PG"), pgs.total);
        problems.push(Problem::new(ProblemCode::PgPeering, message));
    }
}

/// What the last scrub of each PG left: known if the map has been told what was scrubbed.
fn judge_scrubs(map: &ClusterMap, problems: &mut Vec<Problem>) {
    let left = |(pg, done): (&PgId, &PgScrub)| (done.unrepaired > 0 && map.pgs.contains_key(pg)).then_some(*pg);
    let damaged: Vec<PgId> = map.scrubbed.iter().filter_map(left).collect();
    if !damaged.is_empty() {
        let message = format!(
            "{} with damage that the last scrub could not repair, or copies that differ ({}): see 'blockyard pg describe' \
             and what the primary's log says; write what cannot be read anew, from a backup, take an OSD with a wrong copy \
             out, and scrub again with 'blockyard pg repair'",
            count(damaged.len(), "PG"),
            list(damaged)
        );
        problems.push(Problem::new(ProblemCode::ScrubUnrepaired, message));
    }
}

fn judge_stats(osd: OsdId, stats: &OsdStats, problems: &mut Vec<Problem>) {
    if stats.crc_errors > 0 {
        let message = format!(
            "osd {osd} found {} whose data did not match its checksum since it started and repaired {}: if the number \
             grows, replace its device",
            count(stats.crc_errors as usize, "sector"),
            stats.repaired_sectors
        );
        problems.push(Problem::new(ProblemCode::CrcErrors, message));
    }
    if stats.lost_sectors > 0 {
        let message = format!(
            "osd {osd} copied objects since it started of which nobody could read {}: its log names them; write what was \
             there anew, from a backup",
            count(stats.lost_sectors as usize, "sector")
        );
        problems.push(Problem::new(ProblemCode::SectorsLost, message));
    }
    if stats.io_errors > 0 {
        let message = format!(
            "osd {osd} had {} since it started: look at the system log and replace its device",
            count(stats.io_errors as usize, "device error")
        );
        problems.push(Problem::new(ProblemCode::IoErrors, message));
    }
}
