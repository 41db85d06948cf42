//! Sync: waits until what was submitted before it is durable, and has it flushed, lazy changes too.

use cluster_proto::shard::ShardOutcome;

use crate::store::Store;

impl Store {
    /// Completes `tag` when everything begun so far is durable.
    pub(crate) fn sync_start(&mut self, tag: u64) {
        let last = self.log.next_lsn().previous();
        if self.commit.durable >= last {
            self.finish(tag, ShardOutcome::Done);
        } else {
            self.commit.barriers.push_back((last, tag));
        }
    }
}
