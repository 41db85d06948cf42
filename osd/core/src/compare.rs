//! Compare-and-write at the primary: read, compare and write while the sectors are held.

use cluster_proto::shard::{ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::status::Status;
use cluster_proto::wire::{ReplyBody, RequestOp};

use crate::op::{OpId, Stage};
use crate::osd::Osd;

impl Osd {
    pub(crate) fn compare_start(&mut self, id: OpId) {
        let Some(op) = self.ops.client_mut(id) else { return };
        let Some(sectors) = op.request.op.sectors() else { return };
        op.stage = Stage::Reading;
        let read = ShardOp::Read { object: op.request.object, sectors };
        self.send_to_self(id, read);
    }

    pub(crate) fn compare_read(&mut self, shard: &mut dyn ShardIndex, id: OpId, outcome: ShardOutcome) {
        let ShardOutcome::Read { version, data, .. } = outcome else {
            return self.read_failed(shard, id, outcome);
        };
        let Some(op) = self.ops.client_mut(id) else { return };
        let RequestOp::CompareAndWrite { sectors, data: both, .. } = &op.request.op else { return };
        if data[..] == both[..sectors.bytes()] {
            self.write_start(shard, id);
        } else {
            self.finish(id, Status::Mismatch, version, ReplyBody::Empty);
        }
    }
}
