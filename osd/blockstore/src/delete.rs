//! Mutations without data: Zero, Delete and Collect. They must work on a full store, because they make room.

use cluster_proto::ids::{ObjectId, Version};
use cluster_proto::limits::SECTORS_PER_OBJECT_MAX;
use cluster_proto::shard::{Origin, ShardOp};
use cluster_proto::{SectorRange, Status};

use crate::format::log::{Change, Kind};
use crate::reserve::{Need, Refusal};
use crate::store::Store;
use crate::write::check_origin;

const WHOLE: SectorRange = SectorRange::new(0, SECTORS_PER_OBJECT_MAX);

impl Store {
    /// Begins a Zero, Delete or Collect.
    pub(crate) fn delete_start(&mut self, tag: u64, op: &ShardOp) -> Result<(), Refusal> {
        match op {
            ShardOp::Zero { object, version, sectors, origin } => {
                if !sectors.is_valid(cluster_proto::limits::BLOCK_SIZE_MAX) {
                    return Err(Refusal::Fail(Status::Invalid));
                }
                self.punch(tag, Change::new(Kind::Zero, *object, *version, *origin, *sectors))
            }
            ShardOp::Delete { object, version, origin } => {
                self.punch(tag, Change::new(Kind::Delete, *object, *version, *origin, WHOLE))
            }
            ShardOp::Collect { object, version } => self.collect(tag, object, *version),
            _ => Err(Refusal::Fail(Status::Invalid)),
        }
    }

    fn punch(&mut self, tag: u64, change: Change) -> Result<(), Refusal> {
        check_origin(&change.origin)?;
        let newest = self.newest(&change.object);
        if change.version <= newest.version {
            return Err(Refusal::Fail(Status::Invalid));
        }
        let need = self.need_without_data(!newest.exists);
        self.admit(&need)?;
        self.begin_change(tag, change, &need, buffer::Buffer::new());
        Ok(())
    }

    fn collect(&mut self, tag: u64, object: &ObjectId, version: Version) -> Result<(), Refusal> {
        let newest = self.newest(object);
        if !(newest.exists && newest.deleted && newest.version == version) {
            // Nothing to forget; but what led to that must be durable before it is reported.
            self.sync_start(tag);
            return Ok(());
        }
        let need = self.need_without_data(false);
        self.admit(&need)?;
        let change = Change::new(Kind::Collect, *object, version, Origin::NONE, WHOLE);
        self.begin_change(tag, change, &need, buffer::Buffer::new());
        Ok(())
    }

    fn need_without_data(&self, is_new_object: bool) -> Need {
        let entry_bytes = Change::encoded_len(0, 0, 0);
        Need { entry_bytes, sectors: 0, growth: 0, is_new_object, is_privileged: true }
    }
}
