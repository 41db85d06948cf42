//! A PG becomes several, because its pool gets more PGs. docs/peering.md, "More and fewer PGs".
//!
//! In the interval in which that is so, each part begins as a copy of what the PG was: with its members, its history, the leases it had
//! given, and all changes still under way. From then on it goes its own way, like after any other change of the interval.

use cluster_proto::PgId;
use cluster_proto::layout::PgScope;
use cluster_proto::shard::ShardIndex;

use super::Pg;
use crate::op::Local;
use crate::osd::Osd;

impl Pg {
    /// What is known of the objects that another PG has from now on. It waits for its own map.
    fn split_off(&mut self, part: PgScope) -> Pg {
        let mut pg = Pg::new(part, self.map.clone(), self.scheme, self.min_size);
        (pg.heard, pg.unregistered) = (self.heard, self.unregistered);
        (pg.lease, pg.served) = (self.lease, self.served);
        pg.dirty = self.dirty.split_off(|object| part.contains(object));
        pg.scrubs = self.scrubs.split_off();
        pg
    }
}

impl Osd {
    /// The PG has fewer objects from now on: nothing of it is under way but in our own store. Makes the PGs that get the others, which
    /// wait for their maps.
    pub(crate) fn pg_split(&mut self, id: PgId, scope: PgScope) -> Vec<PgId> {
        let Some(before) = self.pgs.get(&id).map(Pg::scope).filter(|before| *before != scope) else {
            return Vec::new();
        };
        debug_assert!(before.includes(scope), "pg {id} gets objects: it is merged");
        // Also if it leads the next interval: a part may have another primary, which must know of the lease.
        let epoch = self.map.pgs.get(&id).map(|map| map.epoch).unwrap_or_default();
        self.depose_leader(id, None, epoch);
        self.send_away(id, scope);
        let parts: Vec<PgId> = before.parts(scope.count).skip(1).collect();
        for part in &parts {
            let part = PgScope { pg: *part, count: scope.count };
            let Some(pg) = self.pgs.get_mut(&id) else { break };
            let split = pg.split_off(part);
            if self.pgs.contains_key(&part.pg) {
                debug_assert!(false, "pg {} was known before pg {id} was split", part.pg);
                continue;
            }
            self.pgs.insert(part.pg, split);
            self.inherit_mutations(part.pg);
        }
        if let Some(pg) = self.pgs.get_mut(&id) {
            pg.count = scope.count;
        }
        parts
    }

    /// A PG that is new here, or has other objects than before, waits for the changes that are under way in our store: its objects may be
    /// among what they change, because they were another PG's when those were begun.
    pub(crate) fn inherit_mutations(&mut self, id: PgId) {
        self.inherited.values_mut().for_each(|waiting| waiting.retain(|waiting| *waiting != id));
        let under_way = self.ops.ids().filter(|(_, op)| op.local == Local::Mutation && op.pg.pool == id.pool);
        let (mut own, mut others) = (0, Vec::new());
        for (op, state) in under_way {
            if state.pg == id { own += 1 } else { others.push(op) }
        }
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        pg.local_mutations = own + others.len() as u32;
        for op in others {
            self.inherited.entry(op).or_default().push(id);
        }
    }

    /// Takes up the parts of a PG whose maps came before its own.
    pub(crate) fn update_parts(
        &mut self,
        now: cluster_proto::link::Millis,
        shard: &mut dyn ShardIndex,
        parts: &[PgId],
    ) {
        for part in parts {
            if self.map.pgs.contains_key(part) {
                self.pg_update(now, shard, *part);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use cluster_proto::Uuid;
    use cluster_proto::ids::{Incarnation, OsdId, PoolId};
    use cluster_proto::limits::READ_LEASE_WAIT_MS;
    use cluster_proto::map::{Member, PoolConfig, keys};
    use cluster_proto::shard::ShardOutcome;

    use super::*;
    use crate::op::{Kind, Op};
    use crate::osd::OsdOptions;
    use crate::testing::Empty;

    pub(in crate::pg) fn member(osd: u32) -> Member {
        Member { osd: OsdId(osd), incarnation: Incarnation(u64::from(osd)) }
    }

    pub(in crate::pg) fn pg(index: u32) -> PgId {
        PgId { pool: PoolId(1), index }
    }

    /// OSD 2, as a member of PG 1 of 2, which OSD 1 leads.
    pub(in crate::pg) fn member_of_one() -> (Osd, Empty) {
        let id = OsdId(2);
        let options = OsdOptions {
            id,
            cluster: Uuid::from_u128(1),
            incarnation: Incarnation(2),
            started: 0,
            started_unix: 0,
            credentials: None,
            slow_operation_ms: 1_000,
        };
        let (mut osd, mut shard) = (Osd::new(options), Empty::default());
        let pool = PoolConfig { pg_count: 2, ..PoolConfig::replicated("default", 2) };
        osd.handle_map(0, &mut shard, &keys::pool(PoolId(1)), Some(&serde_json::to_vec(&pool).unwrap())).unwrap();
        hear(&mut osd, &mut shard, 1, (1, 2), 1);
        (osd, shard)
    }

    /// The map of PG `index` of `count` arrives: `primary` leads it.
    pub(in crate::pg) fn hear(osd: &mut Osd, shard: &mut Empty, index: u32, (epoch, count): (u32, u32), primary: u32) {
        let (first, second) = (serde_json::to_string(&member(1)).unwrap(), serde_json::to_string(&member(2)).unwrap());
        let value = format!(
            r#"{{"epoch":{epoch},"primary":{primary},"acting":[{first},{second}],"target":[1,2],"pg-count":{count}}}"#
        );
        osd.handle_map(10_000, shard, &keys::pg_map(pg(index)), Some(value.as_bytes())).unwrap();
        osd.check_invariants();
    }

    pub(in crate::pg) fn known(osd: &Osd) -> Vec<(u32, u32)> {
        osd.pgs.values().map(|pg| (pg.scope().pg.index, pg.scope().count)).collect()
    }

    #[test]
    fn a_part_waits_for_what_was_begun_and_knows_what_was_promised() {
        let (mut osd, mut shard) = member_of_one();
        let op = osd.ops.insert(Op { local: Local::Mutation, ..Op::new(0, pg(1), Kind::Orphan) });
        let whole = osd.pgs.get_mut(&pg(1)).unwrap();
        whole.local_mutations = 1;
        whole.lease_ends(member(1), 9_000);
        // The part's map comes first: it is not taken up while an older map gives its objects to another PG.
        hear(&mut osd, &mut shard, 3, (2, 4), 2);
        assert_eq!(known(&osd), [(1, 2)]);
        hear(&mut osd, &mut shard, 1, (2, 4), 1);
        assert_eq!((known(&osd), shard.pg_count), (vec![(1, 4), (3, 4)], 4));
        let left = |osd: &Osd, asking| osd.lease_left(10_000, pg(3), member(asking));
        assert_eq!((left(&osd, 2), left(&osd, 1)), (9_000 + READ_LEASE_WAIT_MS - 10_000, 0));
        let waits = |osd: &Osd| [1, 3].map(|index| osd.pgs[&pg(index)].local_mutations);
        assert_eq!((waits(&osd), osd.pgs[&pg(3)].state.name()), ([1, 1], "peering"), "we lead it, and wait");
        assert!(matches!(osd.pgs[&pg(3)].state, super::super::State::Draining));
        osd.handle_local(10_001, &mut shard, op.0, ShardOutcome::Done);
        assert_eq!((waits(&osd), osd.inherited.len()), ([0, 0], 0));
        assert!(matches!(osd.pgs[&pg(3)].state, super::super::State::Querying(_)));
    }

    #[test]
    fn a_map_that_is_late_takes_nothing_from_parts() {
        let (mut osd, mut shard) = member_of_one();
        // Nothing was known of PG 0 of 2 when its part was heard of; its old map is of no use any more.
        hear(&mut osd, &mut shard, 2, (5, 4), 1);
        hear(&mut osd, &mut shard, 0, (4, 2), 1);
        assert_eq!(known(&osd), [(1, 2), (2, 4)]);
        hear(&mut osd, &mut shard, 0, (5, 4), 1);
        assert_eq!(known(&osd), [(0, 4), (1, 2), (2, 4)]);
    }

    #[test]
    fn two_splits_may_be_heard_of_at_once() {
        let (mut osd, mut shard) = member_of_one();
        osd.pgs.get_mut(&pg(1)).unwrap().lease_ends(member(1), 9_000);
        hear(&mut osd, &mut shard, 1, (3, 8), 1);
        assert_eq!(known(&osd), [(1, 8), (3, 8), (5, 8), (7, 8)]);
        // One of the first two parts was not split again.
        hear(&mut osd, &mut shard, 3, (2, 4), 2);
        assert_eq!(known(&osd), [(1, 8), (3, 4), (5, 8)]);
        hear(&mut osd, &mut shard, 5, (3, 8), 2);
        hear(&mut osd, &mut shard, 3, (3, 8), 1);
        hear(&mut osd, &mut shard, 7, (3, 8), 2);
        assert_eq!(known(&osd), [(1, 8), (3, 8), (5, 8), (7, 8)]);
        assert!(osd.lease_left(10_000, pg(7), member(2)) > 0 && osd.lease_left(10_000, pg(5), member(2)) > 0);
    }
}
