//! A pool gets more PGs: each of those there are is split, in one transaction that stands for itself. docs/peering.md, "More PGs".

use cluster_proto::PgId;
use cluster_proto::limits::PG_COUNT_MAX;
use cluster_proto::map::{Activation, ClusterMap, Interval, PgMap, PoolConfig};

use crate::interval::Running;

/// PGs that one becomes in a step, at most: what is written of them has to fit one transaction.
const PARTS_MAX: u32 = 32;
/// PGs of a pool that may be about to begin anew at a time, so that not all of its clients pause at once.
const AT_ONCE: usize = 16;

/// What a PG hands on to those that get some of its objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Split {
    /// Those PGs; the PG itself goes on too.
    pub parts: Vec<PgId>,
    /// All its past intervals.
    pub history: Vec<Interval>,
    /// Its last activation record.
    pub record: Activation,
}

/// How many PGs there are next, on the way from `count` to `wished`. None: they are as many, or there is no way.
pub(crate) fn next_count(count: u32, wished: u32) -> Option<u32> {
    let step = |count: u32| {
        let factor = if wished.is_multiple_of(count) { wished / count } else { 1 };
        (2..=PARTS_MAX.min(factor)).rev().find(|step| factor.is_multiple_of(*step)).map(|step| count * step)
    };
    let first = step(count)?;
    let mut last = first;
    while let Some(next) = step(last) {
        last = next;
    }
    (last == wished).then_some(first)
}

/// Whether the number of PGs of a pool that has `count` can be changed to `wished`.
///
/// # Errors
/// Why not, and what is possible.
pub fn check_pg_count(count: u32, wished: u32) -> Result<(), String> {
    let possible = format!("give a multiple of {count}, up to {PG_COUNT_MAX}, such as {}", count.saturating_mul(2));
    if wished == count {
        return Err(format!("it has {count} already"));
    }
    if wished < count {
        return Err(format!("it has {count}, and PGs can be split but not brought together: {possible}"));
    }
    if wished > PG_COUNT_MAX || !wished.is_multiple_of(count) {
        return Err(format!("PGs are split into equal parts: {possible}"));
    }
    let reachable = next_count(count, wished).is_some();
    let why = || format!("{} has a prime factor above {PARTS_MAX}: {possible}", wished / count);
    reachable.then_some(()).ok_or_else(why)
}

/// Of how many PGs a PG is one.
pub(crate) fn count_of(present: &PgMap, pool: &PoolConfig) -> u32 {
    present.pg_count.unwrap_or(pool.pg_count)
}

/// Whether the PG serves with all its members: a PG is not split before, so that those which have a problem do not become many.
pub(crate) fn is_ready(map: &ClusterMap, running: &Running, pg: PgId, present: &PgMap) -> bool {
    let is_recorded = map.activations.get(&pg).is_some_and(|record| record.epoch == present.epoch);
    is_recorded && present.members().all(|(_, member)| running.member(member.osd) == Some(member))
}

/// PGs of a pool that may be split now. One at least: others may be stuck for other reasons.
pub(crate) fn splits_allowed<'a>(map: &ClusterMap, pgs: impl Iterator<Item = (PgId, &'a PgMap)>) -> usize {
    let is_new = |(pg, present): &(PgId, &PgMap)| map.activations.get(pg).is_none_or(|r| r.epoch != present.epoch);
    AT_ONCE.saturating_sub(pgs.filter(is_new).count()).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_steps_are_taken_in_small_ones() {
        assert_eq!(next_count(64, 64), None);
        assert_eq!(next_count(64, 128), Some(128));
        assert_eq!(next_count(1, 65_536), Some(32));
        assert_eq!(next_count(8, 8 * 31 * 31), Some(8 * 31));
        for no in [63, 100, 32, 64 * 37] {
            assert_eq!(next_count(64, no), None, "{no}");
        }
    }

    #[test]
    fn what_cannot_be_is_told_with_what_can() {
        assert_eq!(check_pg_count(64, 192), Ok(()));
        let refused = |wished| check_pg_count(64, wished).unwrap_err();
        assert!(refused(64).contains("already"));
        assert!(refused(32).contains("not brought together: give a multiple of 64"));
        assert!(refused(100).contains("equal parts: give a multiple of 64, up to 65536, such as 128"));
        assert!(refused(131_072).contains("up to 65536"));
        assert!(refused(64 * 37).contains("37 has a prime factor above 32"));
    }
}
