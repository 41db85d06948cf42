//! Which sectors of which objects changed here while members were away: what is enough to bring those up to date
//! again.
//!
//! An entry says: our copy, at whatever version it is now, differs from our copy at version `base` in these sectors only.
//! It is begun when a PG is degraded and followed through every change of our store, so it stays true whoever leads the PG.
//! Of an erasure-coded object it says so of all shards: changes name the rows in which any of them differs. (A change that is taken
//! back leaves its rows in the list; that does no harm.)

use std::collections::BTreeMap;

use cluster_proto::ids::{ObjectId, Version};
use cluster_proto::layout::SectorRange;
use cluster_proto::limits::PATCH_RANGES_MAX;
use cluster_proto::shard::ShardOp;

/// Objects remembered per PG. What does not fit is copied whole.
const OBJECTS_MAX: usize = 16 << 10;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Dirty {
    base: Version,
    /// Ascending, disjoint, not touching; none: too many to tell.
    ranges: Option<Vec<SectorRange>>,
}

#[derive(Default)]
pub(crate) struct DirtyMap {
    objects: BTreeMap<ObjectId, Dirty>,
    /// No more objects are taken up until all are forgotten.
    is_full: bool,
}

impl DirtyMap {
    pub fn clear(&mut self) {
        self.objects.clear();
        self.is_full = false;
    }

    /// Gives away what belongs to another PG now.
    pub fn split_off(&mut self, is_theirs: impl Fn(&ObjectId) -> bool) -> DirtyMap {
        let all = std::mem::take(&mut self.objects);
        let (theirs, ours) = all.into_iter().partition(|(object, _)| is_theirs(object));
        self.objects = ours;
        DirtyMap { objects: theirs, is_full: self.is_full }
    }

    /// Takes back what was given away.
    pub fn join(&mut self, part: DirtyMap) {
        self.objects.extend(part.objects);
        self.is_full |= part.is_full;
    }

    /// What lies between version `base` of the object and our copy of it, if we know.
    pub fn since(&self, object: &ObjectId, base: Version) -> Option<&[SectorRange]> {
        let dirty = self.objects.get(object).filter(|dirty| dirty.base == base)?;
        dirty.ranges.as_deref()
    }

    /// A change is about to be submitted to our store, in which the object has version `present` (its last durable one). With
    /// `begin`, objects are taken up that were not followed yet: from the first change of an interval on, so that nothing
    /// unknown is under way.
    pub fn follow(&mut self, op: &ShardOp, begin: bool, present: impl FnOnce(&ObjectId) -> Version) {
        let Some(named) = op.object() else { return };
        let object = &named.whole();
        let changed: Option<&[SectorRange]> = match op {
            ShardOp::Write { sectors, .. } | ShardOp::Zero { sectors, .. } => Some(std::slice::from_ref(sectors)),
            ShardOp::Patch { sectors, .. } => Some(sectors),
            ShardOp::Stage { rows, .. } => Some(std::slice::from_ref(rows)),
            ShardOp::Delete { .. } | ShardOp::Restore { .. } | ShardOp::Drop { .. } | ShardOp::Collect { .. } => None,
            _ => return,
        };
        if let Some(dirty) = self.objects.get_mut(object) {
            return dirty.add(changed);
        }
        if !begin || self.is_full {
            return;
        }
        self.is_full = self.objects.len() + 1 >= OBJECTS_MAX;
        let base = present(named);
        let ranges = (base != Version::NONE).then(Vec::new);
        let mut dirty = Dirty { base, ranges };
        dirty.add(changed);
        self.objects.insert(*object, dirty);
    }
}

impl Dirty {
    fn add(&mut self, changed: Option<&[SectorRange]>) {
        let (Some(ranges), Some(changed)) = (&mut self.ranges, changed) else {
            self.ranges = None;
            return;
        };
        for range in changed {
            insert(ranges, *range);
        }
        if ranges.len() > PATCH_RANGES_MAX {
            self.ranges = None;
        }
    }
}

/// Adds a range to an ascending list of ranges that do not touch.
fn insert(ranges: &mut Vec<SectorRange>, new: SectorRange) {
    let from = ranges.partition_point(|range| range.end() < new.start);
    let to = ranges.partition_point(|range| range.start <= new.end());
    let joined = ranges[from..to].iter().fold(new, |all, range| {
        let start = all.start.min(range.start);
        SectorRange::new(start, all.end().max(range.end()) - start)
    });
    ranges.splice(from..to, [joined]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::ids::{Epoch, LayerId, PoolId};
    use cluster_proto::shard::Origin;

    fn object() -> ObjectId {
        ObjectId { pool: PoolId(1), lineage: LayerId(1), layer: LayerId(1), index: 0, part: 0 }
    }

    fn zero(start: u32, count: u32) -> ShardOp {
        let version = Version::new(Epoch(2), u64::from(start) + 1);
        ShardOp::Zero {
            object: object(),
            version,
            sectors: SectorRange::new(start, count),
            origin: Origin::NONE,
            lazy: false,
        }
    }

    #[test]
    fn ranges_join() {
        let mut ranges = Vec::new();
        for (start, count) in [(4, 2), (0, 1), (8, 1), (6, 2), (2, 1)] {
            insert(&mut ranges, SectorRange::new(start, count));
        }
        assert_eq!(ranges, [SectorRange::new(0, 1), SectorRange::new(2, 1), SectorRange::new(4, 5)]);
        insert(&mut ranges, SectorRange::new(0, 20));
        assert_eq!(ranges, [SectorRange::new(0, 20)]);
    }

    #[test]
    fn a_part_takes_what_is_its_own() {
        let base = Version::new(Epoch(1), 9);
        let other = ObjectId { index: 1, ..object() };
        let mut dirty = DirtyMap::default();
        dirty.follow(&zero(3, 1), true, |_| base);
        let ShardOp::Zero { version, sectors, origin, .. } = zero(5, 1) else { unreachable!("it is what it is") };
        dirty.follow(&ShardOp::Zero { object: other, version, sectors, origin, lazy: false }, true, |_| base);
        let mut part = dirty.split_off(|object| object.index == 1);
        assert_eq!(dirty.since(&object(), base), Some(&[SectorRange::new(3, 1)][..]));
        assert_eq!(part.since(&other, base), Some(&[SectorRange::new(5, 1)][..]));
        assert_eq!((dirty.since(&other, base), part.since(&object(), base)), (None, None));
        part.follow(&zero(9, 1), true, |_| base);
        assert_eq!(part.since(&object(), base), Some(&[SectorRange::new(9, 1)][..]));
    }

    #[test]
    fn of_shards_the_rows_that_change_in_any_count() {
        let base = Version::new(Epoch(1), 9);
        let mut dirty = DirtyMap::default();
        let stage = ShardOp::Stage {
            object: object().shard(2),
            version: Version::new(Epoch(2), 1),
            sectors: SectorRange::new(0, 0),
            rows: SectorRange::new(4, 3),
            data: Default::default(),
            crcs: Default::default(),
            origin: Origin::NONE,
        };
        dirty.follow(&stage, true, |named| if named.part == 2 { base } else { Version::NONE });
        assert_eq!(dirty.since(&object(), base), Some(&[SectorRange::new(4, 3)][..]));
    }

    #[test]
    fn only_the_version_it_began_with_counts() {
        let base = Version::new(Epoch(1), 9);
        let mut dirty = DirtyMap::default();
        dirty.follow(&zero(1, 1), false, |_| base);
        assert_eq!(dirty.since(&object(), base), None, "not followed");
        dirty.follow(&zero(3, 1), true, |_| base);
        dirty.follow(&zero(7, 2), true, |_| Version::new(Epoch(2), 4));
        assert_eq!(dirty.since(&object(), base), Some(&[SectorRange::new(3, 1), SectorRange::new(7, 2)][..]));
        assert_eq!(dirty.since(&object(), Version::new(Epoch(2), 4)), None);
        let restore = ShardOp::Restore { object: object(), version: base, content: Default::default() };
        dirty.follow(&restore, true, |_| base);
        assert_eq!(dirty.since(&object(), base), None, "what a copy changed is not known");
        dirty.clear();
        for i in 0..=PATCH_RANGES_MAX as u32 {
            dirty.follow(&zero(2 * i, 1), true, |_| base);
        }
        assert_eq!(dirty.since(&object(), base), None, "too many to tell");
    }
}
