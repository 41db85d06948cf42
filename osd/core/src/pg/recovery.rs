//! Copies objects that differ to the members that lag behind, before the PG is active.

use cluster_proto::ids::PgId;
use cluster_proto::link::Millis;
use cluster_proto::shard::{ObjectContent, ShardIndex, ShardOp, ShardOutcome};

use super::peering::State;
use crate::op::{Kind, MemberMask, OpId};
use crate::osd::Osd;

/// Objects copied at the same time in one PG.
const COPIES_AT_ONCE: usize = 4;

impl Osd {
    /// Keeps the copies going; activates the PG after the last.
    pub(crate) fn recover(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: PgId) {
        loop {
            let Some(pg) = self.pgs.get_mut(&id) else { return };
            let State::Recovering(recovering) = &mut pg.state else { return };
            if recovering.running.len() >= COPIES_AT_ONCE {
                return;
            }
            let Some(restore) = recovering.queue.pop_front() else {
                if recovering.running.is_empty() {
                    self.activate(shard, id);
                }
                return;
            };
            let op = self.new_op(id, Kind::Restore(restore));
            if let Some(pg) = self.pgs.get_mut(&id)
                && let State::Recovering(recovering) = &mut pg.state
            {
                recovering.running.push(op);
            }
            self.fetch_object(now, id, op);
        }
    }

    /// Asks the next member that has the object; ourselves first, if we do.
    fn fetch_object(&mut self, now: Millis, pg_id: PgId, id: OpId) {
        let Some(own) = self.pgs.get(&pg_id).map(|pg| pg.own_position()) else { return };
        let Some(op) = self.ops.get_mut(id) else { return };
        let Kind::Restore(restore) = &mut op.kind else { return };
        let object = restore.object;
        if restore.sources == 0 {
            return self.pg_fail(now, pg_id, &format!("no member can read object {object}"));
        }
        let from = if restore.sources & 1 << own != 0 { own } else { restore.sources.trailing_zeros() as usize };
        restore.sources &= !(1 << from);
        self.send_to_member(id, from, ShardOp::Fetch { object });
    }

    pub(crate) fn restore_step(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: OpId, outcome: ShardOutcome) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let (pg, settled) = (op.pg, op.is_settled());
        let Kind::Restore(restore) = &mut op.kind else { return };
        match outcome {
            ShardOutcome::Fetched { version, content } if !restore.copying && version == restore.version => {
                restore.copying = true;
                let laggards = restore.laggards;
                self.copy_to(id, laggards, content);
            }
            ShardOutcome::Done if restore.copying => {
                if settled {
                    self.restore_finish(now, shard, pg, id);
                }
            }
            _ if !restore.copying => self.fetch_object(now, pg, id),
            other => self.pg_fail(now, pg, &format!("a copy could not be written: {other:?}")),
        }
    }

    fn copy_to(&mut self, id: OpId, laggards: MemberMask, content: ObjectContent) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Kind::Restore(restore) = &op.kind else { return };
        let (object, version) = (restore.object, restore.version);
        for member in (0..MemberMask::BITS as usize).filter(|m| laggards & 1 << m != 0) {
            self.send_to_member(id, member, ShardOp::Restore { object, version, content: content.clone() });
        }
    }

    fn restore_finish(&mut self, now: Millis, shard: &mut dyn ShardIndex, pg_id: PgId, id: OpId) {
        self.ops.remove(id);
        self.stats.recovered_objects += 1;
        if let Some(pg) = self.pgs.get_mut(&pg_id)
            && let State::Recovering(recovering) = &mut pg.state
        {
            recovering.running.retain(|running| *running != id);
        }
        self.recover(now, shard, pg_id);
    }
}
