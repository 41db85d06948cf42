//! A read at the primary, and the repair of what turns out to be damaged.
//!
//! Previous hop: `cluster/client/src/read.rs`, through `request.rs`. Next hop: `osd/blockstore/src/read.rs` of our own
//! store. A copy that fails its checksum is never handed out: the sectors are fetched from another member at the same
//! version, written back here, and read again. The repair holds the whole object, so that versions stand still.

use cluster_proto::layout::SectorRange;
use cluster_proto::link::Millis;
use cluster_proto::shard::{ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::status::Status;
use cluster_proto::wire::{ReplyBody, RequestOp};
use cluster_proto::{PgId, Version};

use crate::op::{Kind, OpId, Stage};
use crate::osd::Osd;

impl Osd {
    pub(crate) fn read_start(&mut self, id: OpId) {
        let Some(op) = self.ops.client_mut(id) else { return };
        let RequestOp::Read(sectors) = op.request.op else { return };
        op.stage = Stage::Reading;
        let read = ShardOp::Read { object: op.request.object, sectors };
        self.send_to_self(id, read);
    }

    pub(crate) fn send_to_self(&mut self, id: OpId, op: ShardOp) {
        let own = self.ops.get_mut(id).and_then(|op| self.pgs.get(&op.pg)).map(|pg| pg.own_position());
        if let Some(own) = own {
            self.send_to_member(id, own, op);
        }
    }

    pub(crate) fn read_finish(&mut self, shard: &mut dyn ShardIndex, id: OpId, outcome: ShardOutcome) {
        match outcome {
            ShardOutcome::Read { version, data, crcs } => {
                self.finish(id, Status::Ok, version, ReplyBody::Data { data, crcs });
            }
            other => self.read_failed(shard, id, other),
        }
    }

    /// Our copy could not be read.
    pub(crate) fn read_failed(&mut self, shard: &mut dyn ShardIndex, id: OpId, outcome: ShardOutcome) {
        let ShardOutcome::Corrupt { sectors, .. } = outcome else {
            let status = if let ShardOutcome::Failed(status) = outcome { status } else { Status::Io };
            return self.finish(id, status, Version::NONE, ReplyBody::Empty);
        };
        let Some(op) = self.ops.client_mut(id) else { return };
        if !op.exclusive {
            return self.lock_whole(shard, id);
        }
        match sectors.first() {
            Some(&bad) => self.fetch_from(id, bad, 0),
            None => self.finish(id, Status::Io, Version::NONE, ReplyBody::Empty),
        }
    }

    /// Gives up what the request holds and queues it for the whole object. It begins again when it has it.
    fn lock_whole(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let pg = op.pg;
        let Kind::Client(client_op) = &mut op.kind else { return };
        let object = client_op.request.object;
        client_op.exclusive = true;
        client_op.stage = Stage::Blocked;
        let Some(state) = self.pgs.get_mut(&pg) else { return };
        self.ready.extend(state.locks.release(object, id));
        self.enqueue(shard, id);
    }

    /// Asks the members from position `member` on for the sectors that are damaged here.
    fn fetch_from(&mut self, id: OpId, bad: SectorRange, mut member: usize) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Some(pg) = self.pgs.get(&op.pg) else { return };
        if pg.is_self(member) {
            member += 1;
        }
        let width = pg.width();
        let Kind::Client(client_op) = &mut op.kind else { return };
        let object = client_op.request.object;
        if member >= width {
            self.notice(format!("object {object}: sectors {bad:?} are damaged in every copy"));
            return self.finish(id, Status::Corrupt, Version::NONE, ReplyBody::Empty);
        }
        client_op.stage = Stage::Fetching { bad, member };
        self.send_to_member(id, member, ShardOp::Read { object, sectors: bad });
    }

    /// A member's copy of the damaged sectors arrived, or it has none.
    pub(crate) fn repair_fetched(&mut self, shard: &dyn ShardIndex, id: OpId, outcome: ShardOutcome) {
        let Some(op) = self.ops.client_mut(id) else { return };
        let Stage::Fetching { bad, member } = op.stage else { return };
        let object = op.request.object;
        let own = shard.head(&object).map_or(Version::NONE, |head| head.version);
        match outcome {
            ShardOutcome::Read { version, data, crcs } if version == own => {
                op.stage = Stage::Repairing { bad };
                let repair = ShardOp::Repair { object, version, sectors: bad, data, crcs };
                self.send_to_self(id, repair);
            }
            _ => self.fetch_from(id, bad, member + 1),
        }
    }

    /// Our damaged sectors are rewritten: read again.
    pub(crate) fn repair_finish(
        &mut self,
        shard: &mut dyn ShardIndex,
        id: OpId,
        bad: SectorRange,
        outcome: ShardOutcome,
    ) {
        if let ShardOutcome::Failed(status) = outcome {
            return self.finish(id, status, Version::NONE, ReplyBody::Empty);
        }
        let Some(op) = self.ops.client_mut(id) else { return };
        let object = op.request.object;
        self.stats.repaired_sectors += u64::from(bad.count);
        self.notice(format!("object {object}: repaired {} damaged sectors from another copy", bad.count));
        self.start(shard, id);
    }

    /// Fails a PG whose members may differ: everything begun waits for a new round.
    pub(crate) fn pg_fail(&mut self, now: Millis, pg: PgId, why: &str) {
        self.notice(format!("pg {pg} starts over: {why}"));
        self.pg_stall(now, pg);
    }
}
