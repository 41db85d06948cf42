//! Staged changes: Commit and Rollback. A Stage itself begins like a Write, see [`crate::write`].
//!
//! All that they need was promised when the change was staged: sectors they only free, checkpoints they only make smaller,
//! and their entries wait for nothing but a checkpoint of another partition.

use cluster_proto::ids::{ObjectId, Version};
use cluster_proto::shard::Origin;

use crate::commit::Newest;
use crate::format::log::{Change, Kind, WHOLE};
use crate::reserve::{Refusal, Wait};
use crate::store::Store;

impl Store {
    /// Begins a Commit.
    pub(crate) fn stage_commit(&mut self, tag: u64, object: &ObjectId, version: Version) -> Result<(), Refusal> {
        let newest = self.newest(object);
        // A pending change commits it too, but may yet fail.
        let durable = self.index.head(object).is_some_and(|h| h.version == version && h.staged_over.is_some());
        let pending = newest.pending > 0 && newest.exists && newest.version == version;
        self.brief_start(tag, Change::brief(Kind::Commit, *object, version), newest, durable || pending)
    }

    /// Begins a Rollback. The entry says which request is to be forgotten, so it must be certain what it will take back.
    pub(crate) fn stage_rollback(&mut self, tag: u64, object: &ObjectId, version: Version) -> Result<(), Refusal> {
        let newest = self.settled(object)?;
        let undo = self.index.undo(object).filter(|_| newest.version == version);
        let origin = undo.map_or(Origin::NONE, |u| Origin { client: u.client, seq: u.seq, floor: u.seq });
        let has_effect = undo.is_some();
        self.brief_start(tag, Change::new(Kind::Rollback, *object, version, origin, WHOLE), newest, has_effect)
    }

    /// Head of an object for which nothing is pending; until then, waits.
    pub(crate) fn settled(&self, object: &ObjectId) -> Result<Newest, Refusal> {
        let newest = self.newest(object);
        if newest.pending > 0 { Err(Refusal::Wait(Wait::Object)) } else { Ok(newest) }
    }
}
