//! Bringing mutations to the medium in order: what is pending, what is written, what is durable, what is recorded.
//!
//! Entry n is *written* when its data and its log blocks, and those of all before it, are on the device; *durable* when a
//! flush that began after that has completed (at once on a write-through device); *executed* on the index, and reported,
//! when it is durable, or, if it is lazy, when it is written and all before it are executed. A durable LSN is *recorded* when a
//! log block that carries it is itself durable. So recorded <= durable <= executed <= written.

use std::collections::VecDeque;

use buffer::Buffer;
use cluster_proto::Status;
use cluster_proto::ids::{ObjectId, Version};
use cluster_proto::shard::{ObjectHead, ShardOutcome};
use rustc_hash::FxHashMap;

use crate::device::{DeviceError, DeviceOp};
use crate::extent::{Run, Runs};
use crate::format::log::{Change, Kind, Lsn};
use crate::geometry::BLOCK;
use crate::index::{Effect, Index, Undo, partition_of};
use crate::log::append::{BlockWrite, Place};
use crate::open::OpenError;
use crate::requests::Requests;
use crate::reserve::{Need, Promise};
use crate::store::{Job, Store, StoreState};

/// Tries of one log write.
const LOG_ATTEMPTS_MAX: u32 = 3;

/// A mutation between submission and execution.
pub(crate) struct Pending {
    /// Of the caller; none for entries about entries.
    pub tag: Option<u64>,
    pub change: Change,
    /// Kept until it is written, in case it must be written elsewhere.
    pub data: Buffer,
    /// Device writes not completed.
    pub writes_left: u32,
    /// Places at which writing failed so far.
    pub attempts: u32,
    /// Runs of the current extents to which writing failed.
    pub failed: Runs,
    /// Runs of earlier extents that are good but not used.
    pub abandoned: Runs,
    pub cancelled: bool,
    /// Need not be durable to be executed.
    pub is_lazy: bool,
    pub place: Place,
    /// The space promised at admission.
    pub promise: Promise,
}

impl Pending {
    /// An entry with nothing to write and nobody to tell.
    pub fn new(change: Change, place: Place, need: &Need) -> Pending {
        Pending {
            tag: None,
            change,
            data: Buffer::new(),
            writes_left: 0,
            attempts: 0,
            failed: Runs::new(),
            abandoned: Runs::new(),
            cancelled: false,
            is_lazy: need.is_lazy,
            place,
            promise: need.promise(),
        }
    }
}

/// Head of an object with all its pending mutations.
#[derive(Clone, Copy)]
pub(crate) struct Newest {
    pub version: Version,
    pub deleted: bool,
    pub exists: bool,
    /// Mutations pending.
    pub pending: u32,
}

impl Newest {
    /// The head of an object without pending mutations.
    pub fn of(head: Option<ObjectHead>) -> Newest {
        match head {
            Some(head) => Newest { version: head.version, deleted: head.deleted, exists: true, pending: 0 },
            None => Newest { version: Version::NONE, deleted: false, exists: false, pending: 0 },
        }
    }

    /// The head after one more change. `undo`: what the staged change replaced.
    pub fn after(self, change: &Change, undo: Option<&Undo>) -> Newest {
        let own = match change.kind {
            Kind::Commit | Kind::Repair | Kind::Relocate | Kind::Cancel => self,
            Kind::Collect | Kind::Drop => Newest::of(None),
            Kind::Rollback => undo.map_or(self, |undo| Newest::of(undo.head(change.object))),
            Kind::Delete | Kind::RestoreDeleted => {
                Newest { version: change.version, deleted: true, exists: true, pending: 0 }
            }
            Kind::Write | Kind::Zero | Kind::Restore | Kind::Patch | Kind::Stage => {
                Newest { version: change.version, deleted: false, exists: true, pending: 0 }
            }
        };
        Newest { pending: self.pending + 1, ..own }
    }
}

/// Freed runs remembered for being discarded; of more, the oldest are forgotten.
const UNUSED_MAX: usize = 16 << 10;
/// Runs discarded in one quiet moment.
const DISCARDS_AT_ONCE: usize = 64;

/// What a flush makes durable when it completes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlushCover {
    pub written: Lsn,
    pub recorded: Lsn,
    pub seq: u64,
}

/// Order of pending mutations.
#[derive(Default)]
pub(crate) struct Commit {
    pending: VecDeque<Pending>,
    pub written: Lsn,
    pub executed: Lsn,
    pub durable: Lsn,
    pub recorded: Lsn,
    /// Log blocks below this are durable.
    pub durable_seq: u64,
    /// The last lazy entry.
    pub last_lazy: Lsn,
    /// The last block that only says what is durable.
    pub mark_seq: u64,
    pub newest: FxHashMap<ObjectId, Newest>,
    /// (n, m): entry n is resolved by entry m, see `announced`.
    pub resolutions: VecDeque<(Lsn, Lsn)>,
    /// Completed when everything up to the LSN is durable.
    pub barriers: VecDeque<(Lsn, u64)>,
}

impl Commit {
    /// Nothing pending after `lsn`.
    pub fn after(lsn: Lsn, seq: u64) -> Commit {
        Commit { written: lsn, executed: lsn, durable: lsn, durable_seq: seq, ..Commit::default() }
    }

    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.barriers.is_empty()
    }

    pub fn push(&mut self, pending: Pending) {
        self.pending.push_back(pending);
    }

    pub fn get_mut(&mut self, lsn: Lsn) -> Option<&mut Pending> {
        let at = lsn.0.checked_sub(self.executed.0 + 1)?;
        self.pending.get_mut(at as usize)
    }

    /// `first`, and the changes of its object behind it that take it for granted and are not taken back yet.
    pub fn followers(&self, first: Lsn, object: &ObjectId) -> Vec<Lsn> {
        let lsns = (self.executed.0 + 1..).map(Lsn);
        let of_it = |(lsn, pending): &(Lsn, &Pending)| {
            let follows = matches!(pending.change.kind, Kind::Write | Kind::Zero | Kind::Delete | Kind::Stage);
            *lsn == first || (*lsn > first && follows && pending.change.object == *object && !pending.cancelled)
        };
        lsns.zip(&self.pending).filter(of_it).map(|(lsn, _)| lsn).collect()
    }

    /// Block from which a checkpoint of the present state of the index needs the log.
    pub fn replay_seq(&self, next_seq: u64) -> u64 {
        self.pending.front().map_or(next_seq, |p| p.place.first)
    }

    pub fn drain_tags(&mut self) -> Vec<u64> {
        let mut tags: Vec<u64> = self.pending.drain(..).filter_map(|p| p.tag).collect();
        tags.extend(self.barriers.drain(..).map(|(_, tag)| tag));
        tags
    }

    /// The durable LSN that log blocks may carry. An entry that a later one resolves counts only together with that
    /// one, because replay executes entries up to the recorded LSN without looking further.
    pub fn announced(&self) -> Lsn {
        let unresolved = self.resolutions.iter().filter(|(_, m)| *m > self.durable).map(|(n, _)| n.previous());
        unresolved.min().map_or(self.durable, |n| n.min(self.durable))
    }

    fn advance_written(&mut self, log_written_seq: u64) {
        while let Some(next) = self.get_mut(self.written.next()) {
            if next.writes_left > 0 || !next.failed.is_empty() || next.place.last >= log_written_seq {
                return;
            }
            self.written = self.written.next();
        }
    }
}

/// Executes an entry on the memory state; the only place that does, in operation and in replay.
pub(crate) fn execute(index: &mut Index, lsn: Lsn, change: &Change) -> Effect {
    debug_assert!(lsn > Lsn(0));
    index.apply(change)
}

/// Remembers the requests of an entry.
pub(crate) fn execute_requests(requests: &mut Requests, lsn: Lsn, change: &Change) {
    match change.kind {
        Kind::Write | Kind::Zero | Kind::Delete | Kind::Stage => {
            requests.apply(&change.origin, change.version, change.object, lsn);
        }
        Kind::Restore | Kind::RestoreDeleted | Kind::Patch => {
            requests.apply_restored(&change.requests, change.object, lsn);
        }
        Kind::Rollback => requests.forget(&change.origin, change.version, change.object),
        // Who becomes a member again is told what then made the object what it is.
        Kind::Drop => requests.forget_object(&change.object),
        Kind::Collect | Kind::Repair | Kind::Relocate | Kind::Cancel | Kind::Commit => {}
    }
}

impl Store {
    /// Appends an entry to the log.
    pub(crate) fn log_append(&mut self, change: &Change, is_lazy: bool) -> Place {
        let place = self.log.append(change, self.commit.announced());
        self.counters.entries += 1;
        if is_lazy {
            self.commit.last_lazy = place.lsn;
        }
        place
    }

    /// Appends a block that says what is durable, and has it made durable.
    pub(crate) fn log_mark(&mut self, is_generation_start: bool) {
        self.commit.mark_seq = self.log.next_seq();
        self.log.mark(self.commit.announced(), is_generation_start);
    }

    /// Seals what is due and hands sealed blocks to the device.
    pub(crate) fn log_flow(&mut self) {
        if self.log.is_seal_due() {
            self.log.seal(self.commit.announced());
        }
        let is_worth = self.commit.announced() > self.commit.recorded;
        // If all there is to record is executed but not durable, it is flushed first.
        let is_settled = is_worth || self.commit.durable >= self.commit.executed;
        if self.mark_wanted && is_settled && !self.log.has_open_entries() && !self.log.has_unwritten() {
            self.mark_wanted = false;
            if is_worth && self.log.free() > 1 {
                self.log_mark(false);
            }
        }
        while let Some(write) = self.log.next_write() {
            self.log_write(write, 1);
        }
    }

    fn log_write(&mut self, write: BlockWrite, attempts: u32) {
        let op = DeviceOp::Write { offset: self.geometry.log_block_offset(write.seq), data: write.data.clone() };
        self.counters.log_bytes_written += write.data.len() as u64 * BLOCK;
        self.counters.log_writes += 1;
        self.request(Job::Log { write, attempts }, op);
    }

    pub(crate) fn log_written(&mut self, write: BlockWrite, attempts: u32, result: Result<(), DeviceError>) {
        match result {
            Ok(()) => self.log.handle_written(write.seq, write.data.len() as u64),
            Err(error) => {
                self.counters.io_errors += 1;
                if attempts >= LOG_ATTEMPTS_MAX {
                    return self.fail_io("writing the log", error);
                }
                self.log_write(write, attempts + 1);
            }
        }
    }

    /// Starts a flush if something waits for one.
    pub(crate) fn flush_flow(&mut self) {
        let cover = FlushCover {
            written: self.commit.written,
            recorded: self.log.written_durable(),
            seq: self.log.written_seq(),
        };
        let has_news = cover.written > self.commit.durable || cover.seq > self.commit.durable_seq;
        let is_asked = has_news && self.is_flush_due();
        if self.flushes.can_start() && (is_asked || self.flushes.is_wanted()) {
            self.flushes.start();
            self.counters.flushes += 1;
            self.request(Job::Flush(cover), DeviceOp::Flush);
        }
    }

    /// Whether somebody waits for what is written to become durable. Lazy entries alone wait for nobody.
    fn is_flush_due(&self) -> bool {
        let c = &self.commit;
        let is_marked = (c.durable_seq..self.log.written_seq()).contains(&c.mark_seq);
        let is_synced = c.barriers.front().is_some_and(|&(lsn, _)| lsn <= c.written);
        let is_recorded = self.mark_wanted && c.announced() <= c.recorded;
        c.last_lazy <= c.durable || c.executed < c.written || is_marked || is_synced || is_recorded
    }

    pub(crate) fn flushed(&mut self, cover: FlushCover, result: Result<(), DeviceError>) {
        if let Err(error) = result {
            self.counters.io_errors += 1;
            // After a failed flush nobody knows what is durable, and a second one would lie.
            return self.fail_io("flushing", error);
        }
        self.flushes.complete();
        self.make_durable(cover);
    }

    /// Looks how far everything is written, and on a write-through device calls it durable.
    pub(crate) fn commit_advance(&mut self) {
        self.commit.advance_written(self.log.written_seq());
        if !self.flushes.is_needed() {
            let seq = self.log.written_seq();
            let (written, recorded) = (self.commit.written, self.log.written_durable());
            self.make_durable(FlushCover { written, recorded, seq });
        }
        self.execute_lazy();
    }

    fn make_durable(&mut self, cover: FlushCover) {
        self.commit.durable_seq = self.commit.durable_seq.max(cover.seq);
        self.commit.durable = self.commit.durable.max(cover.written.min(self.commit.executed));
        self.finish_barriers();
        while self.commit.executed < cover.written {
            let Some(pending) = self.commit.pending.pop_front() else { break };
            self.commit.executed = self.commit.executed.next();
            self.commit.durable = self.commit.executed;
            self.execute_pending(pending, ShardOutcome::Done);
            self.finish_barriers();
        }
        self.commit.recorded = self.commit.recorded.max(cover.recorded);
        let durable = self.commit.durable;
        self.commit.resolutions.retain(|&(_, m)| m > durable);
    }

    /// Executes lazy entries that are written, up to the first that is not lazy.
    fn execute_lazy(&mut self) {
        while self.commit.executed < self.commit.written && self.commit.pending.front().is_some_and(|next| next.is_lazy)
        {
            let Some(pending) = self.commit.pending.pop_front() else { return };
            self.commit.executed = self.commit.executed.next();
            self.execute_pending(pending, ShardOutcome::Written);
        }
    }

    fn execute_pending(&mut self, mut pending: Pending, mut outcome: ShardOutcome) {
        let lsn = self.commit.executed;
        let partition = partition_of(&pending.change.object, self.geometry.partitions);
        let mut freed = std::mem::take(&mut pending.abandoned);
        self.reserved.sectors -= freed.iter().map(|r| u64::from(r.count)).sum::<u64>();
        if pending.cancelled {
            // Its good sectors are among the abandoned ones.
            outcome = ShardOutcome::Failed(Status::Io);
        } else {
            let sectors: u64 = pending.change.extents.iter().map(|e| u64::from(e.run().count)).sum();
            if !pending.change.kind.is_about_entry() {
                self.reserved.sectors -= sectors;
            }
            let effect = self.execute_promised(lsn, &pending, partition);
            execute_requests(&mut self.requests, lsn, &pending.change);
            freed.extend(effect.freed);
            if effect.refused {
                outcome = ShardOutcome::Failed(Status::Retry);
            }
        }
        freed.iter().for_each(|run| self.allocator.prefetch(*run));
        self.quarantine.add(lsn, self.reads.next_number(), freed);
        self.reserved.give_back(&pending.promise);
        self.checkpoints.set_accounted(partition, self.index.partition_bytes(partition));
        self.forget_newest(&pending.change);
        if let Some(tag) = pending.tag {
            self.finish(tag, outcome);
        }
    }

    /// Executes an entry; it must not take more than was promised to it.
    fn execute_promised(&mut self, lsn: Lsn, pending: &Pending, partition: u32) -> Effect {
        let (sectors, bytes) = (self.index.claimed_count(), self.index.partition_bytes(partition));
        let effect = execute(&mut self.index, lsn, &pending.change);
        debug_assert!(self.index.claimed_count() <= sectors + u64::from(pending.promise.growth));
        debug_assert!(self.index.partition_bytes(partition) <= bytes + pending.promise.metadata);
        effect
    }

    fn forget_newest(&mut self, change: &Change) {
        if change.kind.is_about_entry() {
            return;
        }
        if let std::collections::hash_map::Entry::Occupied(mut entry) = self.commit.newest.entry(change.object) {
            entry.get_mut().pending -= 1;
            if entry.get().pending == 0 {
                entry.remove();
            }
        }
    }

    fn finish_barriers(&mut self) {
        while self.commit.barriers.front().is_some_and(|&(lsn, _)| lsn <= self.commit.durable) {
            if let Some((_, tag)) = self.commit.barriers.pop_front() {
                self.finish(tag, ShardOutcome::Done);
            }
        }
    }

    /// Gives back what nobody can need any more.
    pub(crate) fn release_quarantine(&mut self) {
        if self.state != StoreState::Running {
            return;
        }
        let (recorded, oldest) = (self.commit.recorded, self.reads.oldest_number());
        while let Some(runs) = self.quarantine.pop(recorded, oldest) {
            runs.into_iter().for_each(|run| self.release(run));
        }
    }

    fn release(&mut self, run: Run) {
        self.allocator.release(run);
        let least = self.config.discard_sectors_min;
        if least != 0 && run.count >= least {
            if self.unused.len() == UNUSED_MAX {
                self.unused.pop_front();
            }
            self.unused.push_back(run);
        }
    }

    pub(crate) fn discard_some(&mut self) {
        for _ in 0..DISCARDS_AT_ONCE {
            let Some(run) = self.unused.pop_front() else { return };
            if !self.allocator.take(run) {
                continue;
            }
            self.discards += u64::from(run.count);
            let (offset, len) = (self.geometry.sector_offset(run.start), u64::from(run.count) * BLOCK);
            self.request(Job::Discard(run), DeviceOp::Discard { offset, len });
        }
    }

    pub(crate) fn discarded(&mut self, run: Run) {
        self.discards -= u64::from(run.count);
        self.allocator.release(run);
    }

    /// The entry could not be appended although space was reserved for it.
    pub(crate) fn fail_log_full(&mut self) {
        self.fail(OpenError::LogFull);
    }
}
