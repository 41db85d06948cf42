//! PGs become one, because their pool gets fewer PGs. docs/peering.md, "More and fewer PGs".
//!
//! Of two PGs that can have an object in common the one with the later epoch has it: every step from one to the other, in either direction,
//! begins an interval above all it comes from. So whoever hears of a PG gives up all older ones that it meets, whatever happened in
//! between. What was promised for those is kept here, by objects, and counts for every PG that has some of them later.

use cluster_proto::layout::PgScope;
use cluster_proto::link::Millis;
use cluster_proto::map::Member;
use cluster_proto::{Epoch, PgId};

use super::Pg;
use super::lease::Granted;
use crate::osd::Osd;

/// A read lease that a primary may hold of a PG that is no more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owed {
    scope: PgScope,
    lease: Granted,
}

impl Osd {
    /// PGs that are known here and can have objects in common with this one.
    pub(crate) fn rivals(&self, scope: PgScope) -> Vec<PgId> {
        let pool = scope.pg.pool;
        let all = PgId { pool, index: 0 }..=PgId { pool, index: u32::MAX };
        let others = self.pgs.range(all).filter(|(id, pg)| **id != scope.pg && pg.scope().intersects(scope));
        others.map(|(id, _)| *id).collect()
    }

    /// Whether a PG's map is to be taken up, in spite of these. Not if it is older than theirs. Nor if it is a part of one that was split, before
    /// the map of that comes: both are in the state store at once, but need not arrive so.
    pub(crate) fn yields(&self, rivals: &[PgId], scope: PgScope, epoch: Epoch) -> bool {
        rivals.iter().all(|rival| {
            let is_whole = |pg: &Pg| pg.scope().includes(scope) && self.map.pgs.contains_key(rival);
            self.pgs.get(rival).is_none_or(|pg| pg.epoch() < epoch && !is_whole(pg))
        })
    }

    /// The PG has other objects from now on than before, those of older PGs among them, which are no more. Returns PGs of which we have
    /// heard and that could not be taken up because of those.
    pub(crate) fn pg_merge(
        &mut self,
        now: Millis,
        id: PgId,
        scope: PgScope,
        epoch: Epoch,
        rivals: &[PgId],
    ) -> Vec<PgId> {
        let Some(before) = self.pgs.get(&id).map(Pg::scope).filter(|before| *before != scope || !rivals.is_empty())
        else {
            return Vec::new();
        };
        if !scope.includes(before) {
            // Some of its objects are another PG's now, which may have another primary.
            self.depose_leader(id, None, epoch);
            self.send_away(id, scope);
            self.owe(now, id);
        }
        let Some(pg) = self.pgs.get_mut(&id) else { return Vec::new() };
        pg.count = scope.count;
        let _ = pg.dirty.split_off(|object| !scope.contains(object));
        pg.scrubs.merged();
        let split: Vec<PgScope> = rivals.iter().filter_map(|rival| Some(self.pgs.get(rival)?.scope())).collect();
        let split: Vec<PgScope> = split.into_iter().filter(|rival| !scope.includes(*rival)).collect();
        for rival in rivals {
            self.retire(now, *rival, scope, epoch);
        }
        self.inherit_mutations(id);
        // Others may have waited for those of which not all objects are here now.
        let pool = PgId { index: 0, ..id }..=PgId { index: u32::MAX, ..id };
        let others = self.map.pgs.range(pool).filter(|(other, _)| !split.is_empty() && !self.pgs.contains_key(other));
        let others = others.filter_map(|(other, _)| self.map.scope(*other));
        others.filter(|other| split.iter().any(|part| part.intersects(*other))).map(|other| other.pg).collect()
    }

    /// A PG is no more: `whole` has its objects now, or some of them. Its primary is told, as are clients whose requests wait.
    fn retire(&mut self, now: Millis, id: PgId, whole: PgScope, epoch: Epoch) {
        self.take_back(id, false);
        self.depose_leader(id, None, epoch);
        self.owe(now, id);
        let Some(part) = self.pgs.remove(&id) else { return };
        self.inherited.values_mut().for_each(|waiting| waiting.retain(|waiting| *waiting != id));
        if let Some(pg) = self.pgs.get_mut(&whole.pg).filter(|_| whole.includes(part.scope())) {
            pg.dirty.join(part.dirty);
        }
    }

    /// Remembers what was promised for a PG's objects, whichever PG has them next.
    fn owe(&mut self, now: Millis, id: PgId) {
        let Some(pg) = self.pgs.get(&id) else { return };
        let owed = Owed { scope: pg.scope(), lease: pg.lease };
        self.owed.retain(|owed| !owed.lease.is_over(now));
        if !owed.lease.is_over(now) {
            self.owed.push(owed);
        }
    }

    /// Milliseconds for which a primary of PGs that are no more, and had objects of this one, may yet count on us.
    pub(crate) fn owed_ms(&self, now: Millis, scope: PgScope, harmless: impl Fn(&Member) -> bool) -> u64 {
        let met = self.owed.iter().filter(|owed| owed.scope.intersects(scope));
        met.map(|owed| owed.lease.left(now, &harmless)).max().unwrap_or(0)
    }

    /// Whether a PG is here whose records are not to be forgotten, although they are gone from the state store: the PG was merged into
    /// another, of which we may hear later. If there is such a PG again, its records come before its map.
    pub(crate) fn outlives(&self, pg: PgId) -> bool {
        self.pgs.contains_key(&pg) && self.map.pools.contains_key(&pg.pool)
    }
}

#[cfg(test)]
mod tests {
    use cluster_proto::limits::READ_LEASE_WAIT_MS;
    use cluster_proto::map::keys;
    use cluster_proto::shard::ShardOutcome;

    use super::super::State;
    use super::super::split::tests::{hear, known, member, member_of_one, pg};
    use super::*;
    use crate::op::{Kind, Local, Op};
    use crate::testing::Empty;

    /// The map of a PG is removed, and its records.
    fn hear_end(osd: &mut Osd, shard: &mut Empty, index: u32) {
        for key in [keys::pg_activation(pg(index)), keys::pg_history(pg(index)), keys::pg_map(pg(index))] {
            osd.handle_map(10_000, shard, &key, None).unwrap();
            osd.check_invariants();
        }
    }

    /// OSD 2, as a member of PGs 1 and 3 of 4, which OSD 1 leads. A change of PG 3 is under way, and it was promised to follow OSD 1.
    fn member_of_two() -> (Osd, Empty, u64) {
        let (mut osd, mut shard) = member_of_one();
        hear(&mut osd, &mut shard, 1, (2, 4), 1);
        hear(&mut osd, &mut shard, 3, (2, 4), 1);
        let op = osd.ops.insert(Op { local: Local::Mutation, ..Op::new(0, pg(3), Kind::Orphan) });
        let part = osd.pgs.get_mut(&pg(3)).unwrap();
        part.local_mutations = 1;
        part.lease_ends(member(1), 9_000);
        osd.check_invariants();
        (osd, shard, op.0)
    }

    #[test]
    fn the_whole_waits_for_what_was_begun_and_knows_what_was_promised() {
        for removal_comes_first in [false, true] {
            let (mut osd, mut shard, op) = member_of_two();
            if removal_comes_first {
                hear_end(&mut osd, &mut shard, 3);
                assert_eq!(known(&osd), [(1, 4), (3, 4)], "what was promised is not over with it");
            }
            hear(&mut osd, &mut shard, 1, (3, 2), 2);
            assert_eq!(known(&osd), [(1, 2)]);
            hear_end(&mut osd, &mut shard, 3);
            let left = |osd: &Osd, asking| osd.lease_left(10_000, pg(1), member(asking));
            assert_eq!((left(&osd, 2), left(&osd, 1)), (9_000 + READ_LEASE_WAIT_MS - 10_000, 0));
            assert_eq!(osd.pgs[&pg(1)].local_mutations, 1);
            assert!(matches!(osd.pgs[&pg(1)].state, State::Draining), "we lead it, and wait");
            osd.handle_local(10_001, &mut shard, op, ShardOutcome::Done);
            assert!(matches!(osd.pgs[&pg(1)].state, State::Querying(_)));
            // A map that was long on its way.
            hear(&mut osd, &mut shard, 3, (2, 4), 1);
            assert_eq!(known(&osd), [(1, 2)]);
            // It is split again: what is owed goes with the objects.
            hear(&mut osd, &mut shard, 1, (4, 4), 2);
            hear(&mut osd, &mut shard, 3, (4, 4), 2);
            assert_eq!(known(&osd), [(1, 4), (3, 4)]);
            let left = [1, 3].map(|index| osd.lease_left(10_000, pg(index), member(2)));
            assert_eq!(left, [0, 9_000 + READ_LEASE_WAIT_MS - 10_000]);
        }
    }

    #[test]
    fn who_missed_what_was_between_gives_up_all_that_is_older() {
        let (mut osd, mut shard, op) = member_of_two();
        hear(&mut osd, &mut shard, 0, (2, 4), 1);
        // They were merged to one, and that was split into three.
        hear_end(&mut osd, &mut shard, 3);
        hear(&mut osd, &mut shard, 0, (5, 3), 1);
        assert_eq!(known(&osd), [(0, 3)], "3 of 4 and 1 of 4 have objects in common with it");
        hear(&mut osd, &mut shard, 1, (5, 3), 2);
        hear(&mut osd, &mut shard, 2, (5, 3), 2);
        assert_eq!(known(&osd), [(0, 3), (1, 3), (2, 3)]);
        let left = [0, 1, 2].map(|index| osd.lease_left(10_000, pg(index), member(2)) > 0);
        assert_eq!(left, [true; 3], "each has objects that were in 3 of 4");
        assert!(osd.pgs.values().all(|pg| pg.local_mutations == 1));
        osd.handle_local(10_001, &mut shard, op, ShardOutcome::Done);
        assert!(osd.pgs.values().all(|pg| pg.local_mutations == 0));
        osd.check_invariants();
    }

    #[test]
    fn a_map_that_is_gone_ends_nothing_but_service() {
        let (mut osd, mut shard, _) = member_of_two();
        hear(&mut osd, &mut shard, 3, (3, 4), 2);
        let record = br#"{"epoch":2,"acting":[{"osd":1,"incarnation":1},{"osd":2,"incarnation":2}],"complete":[1,2],"min-size":1}"#;
        osd.handle_map(10_000, &mut shard, &keys::pg_activation(pg(3)), Some(record)).unwrap();
        hear_end(&mut osd, &mut shard, 3);
        assert!(matches!(osd.pgs[&pg(3)].state, State::Unmapped));
        assert_eq!(osd.past_intervals(pg(3)).len(), 0, "nothing can be judged");
        assert!(osd.map.activations.contains_key(&pg(3)), "but nothing is forgotten");
        osd.begin_round(10_000, &mut shard, pg(3));
        assert!(matches!(osd.pgs[&pg(3)].state, State::Unmapped));
        // Somebody had removed it by mistake.
        hear(&mut osd, &mut shard, 3, (3, 4), 2);
        assert!(matches!(osd.pgs[&pg(3)].state, State::Draining));
        assert_eq!(osd.past_intervals(pg(3)).len(), 1);
        hear_end(&mut osd, &mut shard, 3);
        osd.handle_map(10_000, &mut shard, &keys::pool(pg(3).pool), None).unwrap();
        assert!(!osd.pgs.contains_key(&pg(3)), "with its pool it is gone");
    }
}
