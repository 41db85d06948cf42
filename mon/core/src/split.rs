//! A pool gets more PGs: each of those there are is split, in one transaction that stands for itself. docs/peering.md, "More and fewer
//! PGs". How it gets fewer is in `merge.rs`.

use std::collections::{BTreeMap, BTreeSet};

use cluster_proto::PgId;
use cluster_proto::layout::common_factor;
use cluster_proto::limits::PG_COUNT_MAX;
use cluster_proto::map::{Activation, ClusterMap, Interval, PgMap, PoolConfig};

use crate::interval::Running;

/// PGs that one becomes, or that become one, in a step, at most: what is written of them has to fit one transaction.
pub(crate) const PARTS_MAX: u32 = 32;
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

/// How many PGs there are next, on the way from `count` to `wished`: more or fewer. None: they are as many, or there is no way.
pub(crate) fn next_count(count: u32, wished: u32) -> Option<u32> {
    match count <= wished {
        true if wished.is_multiple_of(count) => first_step(wished / count).map(|step| count * step),
        false if count.is_multiple_of(wished) => first_step(count / wished).map(|step| count / step),
        _ => None,
    }
}

/// How many PGs those with the fewest objects are merged to next, if there are PGs of so many kinds and more than the `wished`. It has to do with
/// all kinds: each is made of PGs of this one, or has such as its parts, so that each PG can become part of one of these, or need not.
pub(crate) fn merge_count(counts: &BTreeSet<u32>, wished: u32) -> Option<u32> {
    let most = counts.last().copied().filter(|most| *most > wished)?;
    let steps = (2..=PARTS_MAX).rev().filter(|step| most.is_multiple_of(*step)).map(|step| most / step);
    let fits = |next: u32| {
        let mut counts = counts.iter();
        counts.all(|count| count.is_multiple_of(next) || next.is_multiple_of(*count))
    };
    steps
        .into_iter()
        .find(|next| fits(*next) && (*next == wished || next_count(*next, wished).is_some_and(|n| n < *next)))
}

/// By what a number is multiplied first, if it is to become `factor` times as much in steps that are not too large. None: that is no change,
/// or cannot be.
fn first_step(factor: u32) -> Option<u32> {
    let step = |factor: u32| (2..=PARTS_MAX.min(factor)).rev().find(|step| factor.is_multiple_of(*step));
    let first = step(factor)?;
    let mut left = factor / first;
    while let Some(next) = step(left) {
        left /= next;
    }
    (left == 1).then_some(first)
}

/// Whether the number of PGs of a pool that has `count` can be changed to `wished`.
///
/// # Errors
/// Why not, and what is possible.
pub fn check_pg_count(count: u32, wished: u32) -> Result<(), String> {
    let more = format!("give a multiple of {count}, up to {PG_COUNT_MAX}, such as {}", count.saturating_mul(2));
    let fewer = (2..=PARTS_MAX).find(|part| count.is_multiple_of(*part));
    let fewer =
        fewer.map_or(String::new(), |part| format!(", or a number that divides {count}, such as {}", count / part));
    let possible = more + &fewer;
    if wished == count {
        return Err(format!("it has {count} already"));
    }
    let divides = wished > 0 && (wished.is_multiple_of(count) || count.is_multiple_of(wished));
    if wished > PG_COUNT_MAX || !divides {
        return Err(format!("PGs are split into equal parts, and equally many are merged: {possible}"));
    }
    let reachable = next_count(count, wished).is_some();
    let why = || format!("{} has a prime factor above {PARTS_MAX}: {possible}", wished.max(count) / wished.min(count));
    reachable.then_some(()).ok_or_else(why)
}

/// The share of a pool's objects that PGs have, each of which is one of so many: a numerator and a denominator. If the numbers have nothing
/// to do with each other: none.
pub(crate) fn share(counts: impl Iterator<Item = u32>) -> (u64, u64) {
    let mut of: BTreeMap<u32, u64> = BTreeMap::new();
    counts.for_each(|count| *of.entry(count.max(1)).or_default() += 1);
    let with = |all: u64, count: u64| all / common_factor(all, count) * count;
    let all =
        of.keys().try_fold(1, |all, count| Some(with(all, (*count).into())).filter(|all| *all <= u32::MAX.into()));
    all.map_or((0, 1), |all| (of.iter().map(|(count, n)| n * (all / u64::from(*count))).sum(), all))
}

/// Of how many PGs a PG is one.
pub(crate) fn count_of(present: &PgMap, pool: &PoolConfig) -> u32 {
    present.pg_count.unwrap_or(pool.pg_count)
}

/// Whether the PG serves with all its members: a PG is not split before, so that those which have a problem do not become many, nor merged.
pub(crate) fn is_ready(map: &ClusterMap, running: &Running, pg: PgId, present: &PgMap) -> bool {
    let is_recorded = map.activations.get(&pg).is_some_and(|record| record.epoch == present.epoch);
    is_recorded && present.members().all(|(_, member)| running.member(member.osd) == Some(member))
}

/// PGs of a pool that may be split or merged now. One at least: others may be stuck for other reasons.
pub(crate) fn changes_allowed<'a>(map: &ClusterMap, pgs: impl Iterator<Item = (PgId, &'a PgMap)>) -> usize {
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
        for no in [63, 100, 40, 64 * 37] {
            assert_eq!(next_count(64, no), None, "{no}");
        }
        assert_eq!(next_count(65_536, 1), Some(2_048));
        assert_eq!(next_count(8 * 31 * 31, 8), Some(8 * 31));
        assert_eq!((next_count(64, 16), next_count(64 * 37, 64), next_count(12, 8)), (Some(16), None, None));
    }

    #[test]
    fn what_cannot_be_is_told_with_what_can() {
        assert_eq!(check_pg_count(64, 192), Ok(()));
        let refused = |wished| check_pg_count(64, wished).unwrap_err();
        assert!(refused(64).contains("already"));
        assert_eq!((check_pg_count(64, 32), check_pg_count(64, 1)), (Ok(()), Ok(())));
        let possible = "give a multiple of 64, up to 65536, such as 128, or a number that divides 64, such as 32";
        assert!([100, 48, 0].iter().all(|wished| refused(*wished).ends_with(possible)), "{}", refused(48));
        assert!(
            check_pg_count(37, 1)
                .unwrap_err()
                .ends_with("prime factor above 32: give a multiple of 37, up to 65536, such as 74")
        );
        assert!(refused(131_072).contains("up to 65536"));
        assert!(refused(64 * 37).contains("37 has a prime factor above 32"));
    }

    #[test]
    fn a_step_of_merges_has_to_do_with_all_there_is() {
        let next = |counts: &[u32], wished| merge_count(&counts.iter().copied().collect(), wished);
        assert_eq!((next(&[48], 1), next(&[24, 48], 1), next(&[3, 48], 1)), (Some(2), Some(2), Some(3)));
        assert_eq!(
            (next(&[4, 16], 8), next(&[8, 16], 8), next(&[2, 4], 8), next(&[], 8)),
            (Some(8), Some(8), None, None)
        );
        assert_eq!((next(&[64], 64), next(&[65_536], 1), next(&[64 * 37], 64)), (None, Some(2_048), None));
        assert_eq!(next(&[4, 6], 2), Some(2));
    }

    #[test]
    fn shares_add_up() {
        assert_eq!(share([4, 4, 8, 8, 12, 12, 12].into_iter()), (24, 24));
        assert_eq!(share([2, 6].into_iter()), (4, 6));
        assert_eq!(share(std::iter::empty()), (0, 1));
        assert_eq!(share([65_535, 65_536, 65_533].into_iter()), (0, 1), "too much to be told");
    }
}
