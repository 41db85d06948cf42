//! Placement groups: who serves them, since when.

use serde::{Deserialize, Serialize};

use super::SchemaError;
use crate::ids::{Epoch, Incarnation, OsdId};
use crate::limits::{PG_COUNT_MAX, SHARDS_MAX};

/// A member of a PG's acting set: one run of an OSD. A restarted OSD is a new member, and the interval ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Member {
    /// The OSD.
    pub osd: OsdId,
    /// Its run.
    pub incarnation: Incarnation,
}

/// The present interval of a PG.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PgMap {
    /// Number of the interval.
    pub epoch: Epoch,
    /// Who leads it: one of `acting`.
    pub primary: OsdId,
    /// OSDs that serve the PG now, by shard: in an erasure-coded pool the position is the number of the shard, `null` if
    /// nobody serves it; in a replicated pool the order means nothing.
    pub acting: Vec<Option<Member>>,
    /// OSDs that should serve it, by shard.
    pub target: Vec<OsdId>,
    /// Runs of OSDs that are known to be over, so that nobody needs to wait for what they may still believe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dead: Vec<Member>,
    /// Primaries of earlier intervals that may serve reads below `min_size` for as long as they believe to be registered
    /// ([`crate::limits::REGISTRATION_LEASE_MS`]), and that are not known to be over. The registration of each was withdrawn
    /// before this map was written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfenced: Vec<Member>,
    /// Among so many PGs the pool's objects were shared out when this one got its own ([`crate::PgScope`]). The pool's
    /// [`pg_count`](super::PoolConfig::pg_count) is what it shall become. None (in maps written by monitors that did not split PGs): that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pg_count: Option<u32>,
}

/// Runs that a [`PgMap`] may call dead.
pub const DEAD_MAX: usize = 3 * SHARDS_MAX;

impl PgMap {
    /// The primary.
    pub fn primary(&self) -> Option<Member> {
        self.members().map(|(_, member)| member).find(|member| member.osd == self.primary)
    }

    /// Members with the shards they serve.
    pub fn members(&self) -> impl Iterator<Item = (usize, Member)> {
        self.acting.iter().enumerate().filter_map(|(shard, member)| Some((shard, (*member)?)))
    }

    /// The shard that an OSD serves.
    pub fn shard_of(&self, osd: OsdId) -> Option<usize> {
        self.members().find(|(_, member)| member.osd == osd).map(|(shard, _)| shard)
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<(), SchemaError> {
        let epoch = self.epoch;
        SchemaError::check((1..=Epoch::MAX.0).contains(&epoch.0), || format!("epoch {epoch} is out of range"))?;
        for (name, len) in [("acting", self.acting.len()), ("target", self.target.len())] {
            SchemaError::check((1..=SHARDS_MAX).contains(&len), || {
                format!("{name} lists {len} OSDs: give 1 to {SHARDS_MAX}")
            })?;
        }
        SchemaError::check(self.pg_count.is_none_or(|count| (1..=PG_COUNT_MAX).contains(&count)), || {
            format!("pg-count is {}: give 1 to {PG_COUNT_MAX}", self.pg_count.unwrap_or(0))
        })?;
        for runs in [&self.dead, &self.unfenced] {
            SchemaError::check(runs.len() <= DEAD_MAX, || format!("more than {DEAD_MAX} earlier runs"))?;
        }
        let distinct = |mut ids: Vec<OsdId>| {
            let count = ids.len();
            ids.sort_unstable();
            ids.dedup();
            ids.len() == count
        };
        SchemaError::check(distinct(self.members().map(|(_, m)| m.osd).collect()), || "an OSD is listed twice".into())?;
        SchemaError::check(distinct(self.target.clone()), || "an OSD is listed twice in the target".into())?;
        SchemaError::check(self.primary().is_some(), || format!("the primary, OSD {}, is not acting", self.primary))
    }
}

/// Written by a primary before its interval accepts writes, and again in the same interval when more members are complete.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Activation {
    /// The interval.
    pub epoch: Epoch,
    /// Its members, by shard.
    pub acting: Vec<Option<Member>>,
    /// Members that have every object: all that is acknowledged in this interval is on each of them.
    pub complete: Vec<OsdId>,
    /// Everything acknowledged in this interval is on so many members at least.
    pub min_size: u8,
}

impl Activation {
    /// The record of this interval as a past one.
    pub fn interval(&self) -> Interval {
        Interval {
            epoch: self.epoch,
            acting: self.acting.iter().map(|member| member.map(|m| m.osd)).collect(),
            complete: self.complete.clone(),
            min_size: self.min_size,
        }
    }
}

/// Stands in past intervals for OSDs that were given up. OSDs are numbered from 1.
const GIVEN_UP: OsdId = OsdId(0);

/// A past interval that may have accepted writes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Interval {
    /// Number of the interval.
    pub epoch: Epoch,
    /// OSDs that served it, by shard.
    pub acting: Vec<Option<OsdId>>,
    /// Those on which everything acknowledged in it was.
    pub complete: Vec<OsdId>,
    /// On so many of them at least was each acknowledged change.
    pub min_size: u8,
}

impl Interval {
    /// OSDs that served it.
    pub fn osds(&self) -> impl Iterator<Item = OsdId> {
        self.acting.iter().filter_map(|osd| *osd)
    }

    /// The same without those that were given up.
    pub fn osds_left(&self) -> impl Iterator<Item = OsdId> {
        self.osds().filter(|osd| *osd != GIVEN_UP)
    }

    /// Whether those of its members that `has` holds are sure to have, together, `copies` copies (shards, in an erasure-coded pool) of every
    /// change that was acknowledged in it.
    pub fn is_covered(&self, copies: usize, has: impl Fn(OsdId) -> bool) -> bool {
        let width = self.osds().count();
        let reached = self.osds().filter(|osd| has(*osd)).count();
        let complete = self.osds().filter(|osd| self.complete.contains(osd) && has(*osd)).count();
        // An acknowledged change is missing on at most `width - min_size` members.
        complete >= copies || reached + usize::from(self.min_size) >= width + copies
    }

    /// The interval after an OSD was given up: what only that had of what was acknowledged is lost, but what others have is still to be
    /// found, if need be by asking all of them. Its place stays, so that a clean interval still tells what is garbage, but is nobody's.
    /// `copies` as in [`Self::is_covered`].
    pub fn without(&self, osd: OsdId, copies: usize) -> Interval {
        let mut left = self.clone();
        let places = left.acting.iter_mut().flatten().chain(&mut left.complete);
        places.filter(|place| **place == osd).for_each(|place| *place = GIVEN_UP);
        if left.acting != self.acting {
            let given_up = left.osds().filter(|place| *place == GIVEN_UP).count();
            left.min_size = left.min_size.max(u8::try_from(copies + given_up).unwrap_or(u8::MAX));
        }
        left
    }

    /// Past intervals after an OSD was given up. None if in no interval so many of the others had everything that the data can be made from
    /// them.
    pub fn all_without(past: &[Interval], osd: OsdId, copies: usize) -> Option<Vec<Interval>> {
        // All stay, those too of which nobody is left: else the record of the last one would count again.
        let left: Vec<Interval> = past.iter().map(|interval| interval.without(osd, copies)).collect();
        left.iter().any(|interval| interval.is_kept(copies)).then_some(left)
    }

    fn is_kept(&self, copies: usize) -> bool {
        self.complete.iter().filter(|osd| **osd != GIVEN_UP).count() >= copies
    }
}

/// What an OSD reports of other OSDs that it should work with and cannot reach. Bound to the OSD's lease.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Suspicion {
    /// The reporter's run.
    pub incarnation: Incarnation,
    /// The runs it cannot reach.
    pub suspects: Vec<Member>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(acting: &[u32], complete: &[u32], min_size: u8) -> Interval {
        Interval {
            epoch: Epoch(1),
            acting: acting.iter().map(|&n| (n > 0).then_some(OsdId(n))).collect(),
            complete: complete.iter().map(|&n| OsdId(n)).collect(),
            min_size,
        }
    }

    fn covered(interval: &Interval, copies: usize, has: &[u32]) -> bool {
        interval.is_covered(copies, |osd| has.contains(&osd.0))
    }

    #[test]
    fn one_complete_copy_covers_an_interval_and_so_do_enough_incomplete_ones() {
        let interval = interval(&[1, 2, 3], &[1, 2], 2);
        assert!(covered(&interval, 1, &[1]) && covered(&interval, 1, &[2]));
        assert!(!covered(&interval, 1, &[3]), "a change may be on 1 and 2 only");
        assert!(covered(&interval, 1, &[2, 3]) && !covered(&interval, 1, &[4, 5]));
    }

    #[test]
    fn a_coded_interval_needs_as_many_shards_as_there_are_data_shards() {
        let interval = interval(&[1, 2, 0, 4], &[1, 2], 3);
        assert!(covered(&interval, 2, &[1, 2]));
        assert!(!covered(&interval, 2, &[1]));
        assert!(covered(&interval, 2, &[1, 4]), "three of three hold each change");
    }

    #[test]
    fn of_what_an_osd_took_alone_nothing_is_waited_for_once_it_is_given_up() {
        // 3 was away, 1 had everything: what 2 has, which may be some of it, is still wanted.
        let alone = interval(&[1, 2], &[1], 1);
        assert!(!covered(&alone, 1, &[2]));
        assert!(covered(&alone.without(OsdId(1), 1), 1, &[2]) && !covered(&alone.without(OsdId(1), 1), 1, &[]));
        // Every change was on two of three: on one of the two that are left.
        let three = interval(&[1, 2, 3], &[1], 2).without(OsdId(1), 1);
        assert!(!covered(&three, 1, &[2]) && !covered(&three, 1, &[3]) && covered(&three, 1, &[2, 3]));
        assert!(covered(&interval(&[1, 2, 3], &[1, 2], 2).without(OsdId(1), 1), 1, &[2]), "who had everything has it");
        // Coded: more than two of three shards are not needed, and two shards are.
        let coded = interval(&[1, 2, 3], &[1], 3).without(OsdId(1), 2);
        assert!(covered(&coded, 2, &[2, 3]) && !covered(&coded, 2, &[2]));
        let stranger = interval(&[1, 2], &[1], 1);
        assert_eq!(stranger.without(OsdId(7), 1), stranger);
        let two = interval(&[1, 2, 3], &[1, 2, 3], 2).without(OsdId(1), 1).without(OsdId(2), 1);
        assert!(covered(&two, 1, &[3]) && !covered(&two, 1, &[1, 2]));
        assert_eq!(
            Interval::all_without(&[two.clone(), alone.clone()], OsdId(3), 1),
            Some(vec![two.without(OsdId(3), 1), alone.clone()])
        );
        assert_eq!(
            Interval::all_without(&[alone.clone(), two.without(OsdId(3), 1)], OsdId(1), 1),
            None,
            "2 has not all"
        );
        assert_eq!(two.osds().count(), 3, "it was clean, whoever was given up");
    }
}
