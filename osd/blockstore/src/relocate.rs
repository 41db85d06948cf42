//! What happens when data cannot be written: the sectors are taken out of use, the data goes elsewhere, and a Relocate
//! entry tells replay where; if that does not work either, a Cancel entry takes the mutation back and it fails with `Io`.
//! The mutation keeps its place in the order: nothing behind it is reported before it is resolved. What is behind it of the same object fails
//! with it: an object that has a later change but not this one would have the right version and the wrong content.

use cluster_proto::ids::ObjectId;
use cluster_proto::shard::{ShardOp, ShardOutcome};
use cluster_proto::{SectorRange, Status};

use crate::commit::Pending;
use crate::extent::{Extent, Run, Runs};
use crate::format::log::{Change, Kind, Lsn};
use crate::reserve::Need;
use crate::store::Store;
use crate::write::lay_out;

/// Places tried for one mutation.
const ATTEMPTS_MAX: u32 = 3;
/// Free log blocks below which a mutation is cancelled rather than relocated: a Cancel entry is short.
const RELOCATE_BLOCKS_MIN: u64 = 8;

impl Store {
    /// All device writes of an entry's data have ended.
    pub(crate) fn data_finished(&mut self, lsn: Lsn) {
        let Some(pending) = self.commit.get_mut(lsn) else { return };
        if pending.cancelled {
            self.set_aside(lsn);
        } else if !pending.failed.is_empty() {
            self.relocate(lsn);
        } else if pending.attempts > 0 {
            let (kind, extents) = (Kind::Relocate, pending.change.extents.clone());
            pending.data = buffer::Buffer::new();
            self.resolve(lsn, kind, &extents);
        } else {
            pending.data = buffer::Buffer::new();
        }
    }

    fn relocate(&mut self, lsn: Lsn) {
        let log_has_room = self.log.free() >= RELOCATE_BLOCKS_MIN;
        self.set_aside(lsn);
        let Some(pending) = self.commit.get_mut(lsn) else { return };
        pending.attempts += 1;
        let (attempts, sectors) = (pending.attempts, pending.change.crcs.len() as u32);
        let runs = if attempts < ATTEMPTS_MAX && log_has_room { self.allocator.allocate(sectors) } else { None };
        match runs {
            Some(runs) => self.rewrite(lsn, &runs),
            None => self.cancel(lsn),
        }
    }

    /// Sends the data to another place.
    fn rewrite(&mut self, lsn: Lsn, runs: &[Run]) {
        self.reserved.sectors += runs.iter().map(|r| u64::from(r.count)).sum::<u64>();
        let Some(pending) = self.commit.get_mut(lsn) else { return };
        let sectors: Vec<SectorRange> = pending.change.extents.iter().map(|e| e.sectors()).collect();
        pending.change.extents = lay_out(&sectors, runs);
        let (extents, data) = (pending.change.extents.clone(), pending.data.clone());
        let writes_left = self.send_data(lsn, &extents, &data);
        if let Some(pending) = self.commit.get_mut(lsn) {
            pending.writes_left = writes_left;
        }
    }

    /// The extents of a mutation, all written or failed, are not used.
    fn set_aside(&mut self, lsn: Lsn) {
        let Some(pending) = self.commit.get_mut(lsn) else { return };
        let bad = abandon(pending);
        self.counters.bad_sectors += bad;
        self.reserved.sectors -= bad;
    }

    /// Takes a mutation back, and the changes of the same object behind it. The last one first: a crash that leaves only some of these entries leaves
    /// a prefix of the mutations, too, as replay ends at one whose data is not there.
    fn cancel(&mut self, first: Lsn) {
        let Some(object) = self.commit.get_mut(first).map(|pending| pending.change.object) else { return };
        for lsn in self.commit.followers(first, &object).into_iter().rev() {
            let Some(pending) = self.commit.get_mut(lsn) else { continue };
            pending.cancelled = true;
            pending.data = buffer::Buffer::new();
            let (tag, is_written) = (pending.tag, pending.writes_left == 0);
            if lsn != first && is_written {
                self.set_aside(lsn);
            }
            if let Some(tag) = tag {
                self.failing.insert(tag, object);
            }
            self.resolve(lsn, Kind::Cancel, &[]);
        }
        self.refuse_queued(&object);
    }

    /// A mutation fails before it has begun, and the changes of the object behind it.
    #[cold]
    pub(crate) fn refuse(&mut self, tag: u64, op: &ShardOp, status: Status) {
        self.finish(tag, ShardOutcome::Failed(status));
        if let Some(object) = follows_others(op) {
            self.failing.insert(tag, *object);
            self.refuse_queued(object);
        }
    }

    fn refuse_queued(&mut self, object: &ObjectId) {
        let is_of = |op: &ShardOp| follows_others(op) == Some(object);
        let refused: Vec<u64> = self.queue.iter().filter(|(_, op)| is_of(op)).map(|(tag, _)| *tag).collect();
        self.queue.retain(|(_, op)| !is_of(op));
        for tag in refused {
            self.failing.insert(tag, *object);
            self.finish(tag, ShardOutcome::Failed(Status::Retry));
        }
    }

    /// Whether this is a change of an object of which an earlier one has failed whose outcome was not taken yet.
    #[inline]
    pub(crate) fn must_refuse(&self, op: &ShardOp) -> bool {
        !self.failing.is_empty() && self.is_failing(op)
    }

    #[cold]
    fn is_failing(&self, op: &ShardOp) -> bool {
        follows_others(op).is_some_and(|object| self.failing.values().any(|failing| failing == object))
    }

    /// Logs an entry about entry `lsn`, which from now on waits for that one's block too.
    fn resolve(&mut self, lsn: Lsn, kind: Kind, extents: &[Extent]) {
        if self.log.free() < RELOCATE_BLOCKS_MIN / 2 {
            return self.fail_log_full();
        }
        let Some(target) = self.commit.get_mut(lsn) else { return };
        let (object, origin) = (target.change.object, cluster_proto::shard::Origin::NONE);
        let version = cluster_proto::Version(lsn.0);
        let sectors = if kind.is_brief() { SectorRange::new(0, 0) } else { target.change.sectors };
        let mut change = Change::new(kind, object, version, origin, sectors);
        change.extents.extend_from_slice(extents);
        let place = self.log_append(&change, false);
        if let Some(target) = self.commit.get_mut(lsn) {
            target.place.last = place.last;
        }
        self.commit.resolutions.push_back((lsn, place.lsn));
        self.commit.push(Pending::new(change, place, &Need::of_entry(0)));
    }
}

/// The object of a change that takes for granted what was submitted before it. Other mutations name the version that they are about, or
/// replace the whole object.
fn follows_others(op: &ShardOp) -> Option<&ObjectId> {
    use ShardOp::{Delete, Stage, Write, Zero};
    op.object().filter(|_| matches!(op, Write { .. } | Zero { .. } | Delete { .. } | Stage { .. }))
}

/// Splits the extents of a failed try into good runs, which are set aside, and bad ones, whose sectors are returned.
fn abandon(pending: &mut Pending) -> u64 {
    let failed = std::mem::replace(&mut pending.failed, Runs::new());
    for extent in &pending.change.extents {
        if !failed.contains(&extent.run()) {
            pending.abandoned.push(extent.run());
        }
    }
    failed.iter().map(|r| u64::from(r.count)).sum()
}
