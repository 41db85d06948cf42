//! Copies objects that differ to the members that lag behind, before the PG is active.

use buffer::Buffer;
use cluster_proto::crc::Crcs;
use cluster_proto::ids::{PgId, Version};
use cluster_proto::limits::WIRE_REQUESTS_MAX;
use cluster_proto::link::Millis;
use cluster_proto::shard::{AppliedRequest, ObjectContent, ShardIndex, ShardOp, ShardOutcome};

use super::peering::State;
use crate::op::{Kind, MemberMask, OpId, RestoreStage};
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
            if !restore.undo_newest() {
                return self.pg_fail(now, pg_id, &format!("no member can read object {object}"));
            }
            if restore.version == Version::NONE {
                let content = ObjectContent { deleted: true, ..ObjectContent::default() };
                return self.undo(id, content);
            }
        }
        let from = if restore.sources & 1 << own != 0 { own } else { restore.sources.trailing_zeros() as usize };
        restore.sources &= !(1 << from);
        restore.stage = RestoreStage::Fetching { from };
        self.send_to_member(id, from, ShardOp::Fetch { object });
    }

    pub(crate) fn restore_step(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: OpId, outcome: ShardOutcome) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let (pg, settled) = (op.pg, op.is_settled());
        let Kind::Restore(restore) = &mut op.kind else { return };
        match (&restore.stage, outcome) {
            (RestoreStage::Fetching { .. }, ShardOutcome::Fetched { version, content })
                if version == restore.version =>
            {
                if restore.undoes {
                    return self.undo(id, content);
                }
                let laggards = restore.laggards;
                self.copy_to(id, version, laggards, content);
            }
            (&RestoreStage::Fetching { from }, ShardOutcome::Corrupt { version, sectors, crcs })
                if version == restore.version && !sectors.is_empty() =>
            {
                let bad = sectors[0];
                let crcs = crcs[..(bad.count as usize).min(crcs.len())].into();
                restore.stage = RestoreStage::Salvaging { from, bad, crcs, asked: 1 << from };
                self.salvage(now, pg, id);
            }
            (RestoreStage::Salvaging { crcs: wanted, .. }, ShardOutcome::Read { data, crcs, .. })
                if *wanted == crcs =>
            {
                self.repair_source(id, data, crcs);
            }
            (RestoreStage::Salvaging { .. }, _) => self.salvage(now, pg, id),
            (&RestoreStage::Repairing { from, count }, ShardOutcome::Done) => {
                restore.stage = RestoreStage::Fetching { from };
                let object = restore.object;
                self.stats.repaired_sectors += u64::from(count);
                self.notice(format!("object {object}: repaired {count} damaged sectors from another copy"));
                self.send_to_member(id, from, ShardOp::Fetch { object });
            }
            (RestoreStage::Fetching { .. } | RestoreStage::Repairing { .. }, _) => self.fetch_object(now, pg, id),
            (RestoreStage::Copying, ShardOutcome::Done) => {
                if settled {
                    self.restore_finish(now, shard, pg, id);
                }
            }
            (RestoreStage::Copying, other) => {
                self.pg_fail(now, pg, &format!("a copy could not be written: {other:?}"));
            }
        }
    }

    /// The newest version is on a member with damaged sectors. Older versions may still have the same content there: asks
    /// the next member for it, or gives this source up.
    fn salvage(&mut self, now: Millis, pg_id: PgId, id: OpId) {
        let Some(width) = self.pgs.get(&pg_id).map(|pg| pg.width()) else { return };
        let Some(op) = self.ops.get_mut(id) else { return };
        let Kind::Restore(restore) = &mut op.kind else { return };
        let object = restore.object;
        let RestoreStage::Salvaging { bad, asked, .. } = &mut restore.stage else { return };
        let Some(next) = (0..width).find(|member| *asked & 1 << member == 0) else {
            return self.fetch_object(now, pg_id, id);
        };
        *asked |= 1 << next;
        let read = ShardOp::Read { object, sectors: *bad };
        self.send_to_member(id, next, read);
    }

    fn repair_source(&mut self, id: OpId, data: Buffer, crcs: Crcs) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Kind::Restore(restore) = &mut op.kind else { return };
        let RestoreStage::Salvaging { from, bad, .. } = restore.stage else { return };
        restore.stage = RestoreStage::Repairing { from, count: bad.count };
        let (object, version) = (restore.object, restore.version);
        self.send_to_member(id, from, ShardOp::Repair { object, version, sectors: bad, data, crcs });
    }

    /// Puts the content of an older version on all members as a new one, together with a mark that the requests that made
    /// the lost version have not taken effect: their clients will send them again.
    fn undo(&mut self, id: OpId, mut content: ObjectContent) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Some(pg) = self.pgs.get_mut(&op.pg) else { return };
        let Kind::Restore(restore) = &op.kind else { return };
        content.requests.truncate(WIRE_REQUESTS_MAX - 1);
        content.requests.push(AppliedRequest::undone_above(restore.version));
        let (object, laggards, version) = (restore.object, restore.laggards, pg.next_version());
        self.copy_to(id, version, laggards, content);
        self.notice(format!("object {object}: an unacknowledged change is damaged and was undone"));
    }

    fn copy_to(&mut self, id: OpId, version: Version, laggards: MemberMask, content: ObjectContent) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Kind::Restore(restore) = &mut op.kind else { return };
        restore.stage = RestoreStage::Copying;
        let object = restore.object;
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
