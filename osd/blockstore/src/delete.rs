//! Mutations without data: Zero, Delete, Collect and Drop. They must work on a full store, because they make room.

use cluster_proto::Status;
use cluster_proto::ids::{ObjectId, Version};
use cluster_proto::shard::ShardOp;

use crate::commit::Newest;
use crate::format::log::{Change, Kind, WHOLE};
use crate::reserve::{Need, Refusal};
use crate::store::Store;
use crate::write::check_origin;

impl Store {
    /// Begins a Zero, Delete, Collect or Drop.
    pub(crate) fn delete_start(&mut self, tag: u64, op: &ShardOp) -> Result<(), Refusal> {
        match op {
            ShardOp::Zero { object, version, sectors, origin, lazy } => {
                if !sectors.is_valid(cluster_proto::limits::BLOCK_SIZE_MAX) {
                    return Err(Refusal::Fail(Status::Invalid));
                }
                self.punch(tag, Change::new(Kind::Zero, *object, *version, *origin, *sectors), *lazy)
            }
            ShardOp::Delete { object, version, origin } => {
                self.punch(tag, Change::new(Kind::Delete, *object, *version, *origin, WHOLE), false)
            }
            ShardOp::Collect { object, version } => self.collect(tag, object, *version),
            ShardOp::Drop { object, version } => self.drop_start(tag, object, *version),
            _ => Err(Refusal::Fail(Status::Invalid)),
        }
    }

    fn punch(&mut self, tag: u64, change: Change, is_lazy: bool) -> Result<(), Refusal> {
        check_origin(&change.origin)?;
        let newest = self.newest(&change.object);
        if change.version <= newest.version {
            return Err(Refusal::Fail(Status::Invalid));
        }
        let entry_bytes = Change::encoded_len(0, 0, 0, 0);
        let need = Need { is_new_object: !newest.exists, is_lazy, ..Need::of_entry(entry_bytes) };
        self.admit(&need)?;
        self.begin_change(tag, change, newest, &need, buffer::Buffer::new());
        Ok(())
    }

    fn collect(&mut self, tag: u64, object: &ObjectId, version: Version) -> Result<(), Refusal> {
        let newest = self.newest(object);
        let has_effect = newest.exists && newest.deleted && newest.version == version;
        self.brief_start(tag, Change::brief(Kind::Collect, *object, version), newest, has_effect)
    }

    fn drop_start(&mut self, tag: u64, object: &ObjectId, version: Version) -> Result<(), Refusal> {
        let newest = self.settled(object)?;
        let has_effect = newest.exists && newest.version == version;
        self.brief_start(tag, Change::brief(Kind::Drop, *object, version), newest, has_effect)
    }

    /// Begins a change that is nothing but a small entry, and nothing at all if it would have no effect.
    pub(crate) fn brief_start(
        &mut self,
        tag: u64,
        change: Change,
        newest: Newest,
        has_effect: bool,
    ) -> Result<(), Refusal> {
        if !has_effect {
            // What led to that must be durable before it is reported.
            self.sync_start(tag);
            return Ok(());
        }
        let brief = change.kind.is_brief();
        let entry_bytes = if brief { Change::brief_len() } else { Change::encoded_len(0, 0, 0, 0) };
        let need = Need::of_entry(entry_bytes);
        self.admit(&need)?;
        self.begin_change(tag, change, newest, &need, buffer::Buffer::new());
        Ok(())
    }
}
