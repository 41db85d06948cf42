//! Removes copies that nobody needs any more: of PGs that are complete elsewhere, and shards of numbers we no longer serve.

use std::collections::BTreeSet;

use cluster_proto::shard::{Buckets, ObjectHead, ShardIndex, ShardOp};
use cluster_proto::{ObjectId, PgId, PgScope};

use crate::op::{Kind, Local};
use crate::osd::{Osd, Output};

/// Removals under way at once, of all PGs together.
const AT_ONCE: usize = 512;

/// PGs of which we may have leftovers.
#[derive(Default)]
pub(crate) struct Purge {
    pgs: BTreeSet<PgId>,
}

impl Osd {
    /// The map, or the activation record, of a PG has changed.
    pub(crate) fn note_leftovers(&mut self, shard: &dyn ShardIndex, id: PgId) {
        let known_pool = self.map.pools.contains_key(&id.pool);
        let Some(scope) = self.map.scope(id) else { return };
        let leads = self.pgs.get(&id).is_some_and(|pg| pg.is_writable() && pg.is_whole());
        if known_pool && leads && self.is_complete(id) {
            // A delete that is under way may be here and not yet on all members: it is collected when it is.
            let under_way = |object: &ObjectId| self.pgs.get(&id).is_none_or(|pg| pg.locks.is_held(&object.whole()));
            let tombstones: Vec<_> = shard.tombstones(scope).into_iter().filter(|t| !under_way(&t.object)).collect();
            for tombstone in tombstones {
                self.collect(shard, id, tombstone.object.whole(), tombstone.version);
            }
        }
        if known_pool && self.is_complete(id) && shard.digests(scope) != [0; 256] {
            self.purge.pgs.insert(id);
        }
    }

    /// Whether everything of the PG is on all the OSDs where it should be, for good: the record says so, and what the next
    /// interval must know begins with it.
    pub(crate) fn is_complete(&self, id: PgId) -> bool {
        let (Some(map), Some(record)) = (self.map.pgs.get(&id), self.map.activations.get(&id)) else { return false };
        let has_all = map.members().map(|(_, m)| m.osd).all(|osd| record.complete.contains(&osd));
        let as_planned =
            map.target.len() == map.acting.len() && map.target.iter().all(|osd| map.shard_of(*osd).is_some());
        record.epoch == map.epoch && record.acting == map.acting && has_all && as_planned
    }

    /// Whether a copy is not ours to keep.
    fn is_leftover(&self, id: PgId, head: &ObjectHead) -> bool {
        let coded = self.pgs.get(&id).is_some_and(|pg| pg.is_coded());
        let serves = self.map.pgs.get(&id).and_then(|map| map.shard_of(self.options.id));
        serves.is_none_or(|part| coded && part != usize::from(head.object.part))
    }

    /// PGs that have some of this one's objects since a later interval: what is said of this one does not hold for those, which we may serve.
    fn later(&self, id: PgId, scope: PgScope) -> Vec<PgScope> {
        let epoch = self.map.pgs.get(&id).map(|map| map.epoch);
        let pool = PgId { index: 0, ..id }..=PgId { index: u32::MAX, ..id };
        let later = self.map.pgs.range(pool).filter(|(other, map)| **other != id && Some(map.epoch) > epoch);
        later.filter_map(|(other, _)| self.map.scope(*other)).filter(|other| other.intersects(scope)).collect()
    }

    /// Removes some leftovers.
    pub(crate) fn poll_purge(&mut self, shard: &mut dyn ShardIndex) {
        let Some(id) = self.purge.pgs.first().copied() else { return };
        let busy = self.ops.ids().any(|(_, op)| op.pg == id && matches!(op.kind, Kind::Background));
        if busy {
            return;
        }
        let scope = self.map.scope(id).filter(|_| self.is_complete(id));
        let heads = scope.map_or_else(Vec::new, |scope| shard.list(scope, &Buckets::ALL));
        let later = scope.filter(|_| !heads.is_empty()).map_or_else(Vec::new, |scope| self.later(id, scope));
        let is_ours = |head: &ObjectHead| !later.iter().any(|other| other.contains(&head.object));
        let leftovers = heads.into_iter().filter(|head| is_ours(head) && self.is_leftover(id, head));
        let leftovers: Vec<_> = leftovers.take(AT_ONCE).collect();
        if leftovers.is_empty() {
            self.purge.pgs.remove(&id);
        }
        for head in leftovers {
            let op = self.new_op(id, Kind::Background);
            let drop = ShardOp::Drop { object: head.object, version: head.version };
            if let Some(op) = self.ops.get_mut(op) {
                op.local = Local::Mutation;
            }
            if let Some(pg) = self.pgs.get_mut(&id) {
                pg.local_mutations += 1;
            }
            self.outputs.push_back(Output::Local { tag: op.0, op: drop });
        }
    }
}
