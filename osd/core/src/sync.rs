//! Sync at the primary: every change answered before becomes durable past the members' volatile caches. With stores that
//! answer only what is durable there is nothing to wait for but their word.

use cluster_proto::shard::ShardOp;

use crate::op::{OpId, Stage};
use crate::osd::Osd;

impl Osd {
    pub(crate) fn sync_start(&mut self, id: OpId) {
        let Some(op) = self.ops.client_mut(id) else { return };
        op.stage = Stage::Committing;
        self.send_to_all(id, ShardOp::Sync);
    }
}
