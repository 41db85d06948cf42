//! The second half of opening: read the log, verify its tail, and mark the recovery so that what was cut off stays so.

use std::collections::BTreeMap;

use buffer::BufferMut;
use cluster_proto::crc::crc32c;
use cluster_proto::{SECTOR, SectorRange};

use super::{OpenError, OpenRead, Step};
use crate::allocator::Allocator;
use crate::commit::{Commit, execute, execute_requests};
use crate::device::DeviceError;
use crate::format::checkpoint::SlotHeader;
use crate::format::log::Lsn;
use crate::format::mark::Place;
use crate::geometry::BLOCK;
use crate::index::partition_of;
use crate::log::append::{LogTail, lookahead_blocks};
use crate::log::replay::{EntryFate, Replay, ReplayFrom, TailEntry};
use crate::store::{Store, StoreState};

/// Blocks of one read of the log.
const CHUNK_BLOCKS: u64 = 64;
/// Reads of the log at the same time.
const CHUNKS_MAX: usize = 4;
/// Reads of data at the same time, when verifying.
const VERIFY_READS_MAX: u32 = 32;

pub(super) struct LogStep {
    replay: Replay,
    /// Block at which the ring has been read completely.
    limit: u64,
    next_read: u64,
    in_flight: usize,
    chunks: BTreeMap<u64, BufferMut>,
    checkpoint_lsn_max: Lsn,
}

pub(super) struct VerifyStep {
    replay: Replay,
    tail: Vec<TailEntry>,
    /// Next entry to be looked at.
    next: usize,
    in_flight: u32,
    first_bad: Option<Bad>,
    checkpoint_lsn_max: Lsn,
}

/// An entry with which the log may end.
#[derive(Clone, Copy)]
struct Bad {
    entry: usize,
    /// Its data is not what it should be, or (the error) nobody can tell.
    unreadable: Option<DeviceError>,
}

pub(super) enum RecoverStep {
    /// What was read may still be in the device's volatile cache.
    Flush { ticket: u64 },
    /// A full log must be trimmed before it can take the mark.
    Trim,
    /// The first block of the new generation is on its way.
    Mark { seq: u64 },
}

impl Store {
    pub(super) fn replay_start(&mut self, headers: &[SlotHeader]) {
        let Some(superblock) = self.superblock else { return };
        let from: Vec<_> =
            headers.iter().map(|h| ReplayFrom { seq: h.replay_seq, lsn: h.lsn, generation: h.generation }).collect();
        let g = &self.geometry;
        let replay = Replay::new(superblock.store, g.data_sectors, &from, lookahead_blocks(g.log_blocks));
        let step = LogStep {
            next_read: replay.next_seq(),
            limit: replay.next_seq() + g.log_blocks,
            replay,
            in_flight: 0,
            chunks: BTreeMap::new(),
            checkpoint_lsn_max: headers.iter().map(|h| h.lsn).max().unwrap_or_default(),
        };
        self.open_enter(Step::Log(step));
        self.log_read_more();
    }

    fn log_read_more(&mut self) {
        loop {
            let Some(opening) = &mut self.opening else { return };
            let Step::Log(step) = &mut opening.step else { return };
            if step.in_flight + step.chunks.len() >= CHUNKS_MAX || step.next_read == step.limit {
                return;
            }
            let seq = step.next_read;
            let blocks = self.geometry.log_blocks;
            let count = CHUNK_BLOCKS.min(step.limit - seq).min(blocks - seq % blocks);
            step.next_read += count;
            step.in_flight += 1;
            self.open_read(OpenRead::Log { seq }, self.geometry.log_block_offset(seq), count * BLOCK);
        }
    }

    pub(super) fn log_chunk_done(&mut self, seq: u64, read: BufferMut) {
        let Some(opening) = &mut self.opening else { return };
        let Step::Log(step) = &mut opening.step else { return };
        step.in_flight -= 1;
        step.chunks.insert(seq, read);
        while let Some(next) = self.next_log_chunk() {
            if let Err(damage) = self.feed_chunk(&next) {
                return self.fail(damage);
            }
        }
        self.log_read_more();
        self.verify_start_when_read();
    }

    fn next_log_chunk(&mut self) -> Option<BufferMut> {
        let Step::Log(step) = &mut self.opening.as_mut()?.step else { return None };
        if step.replay.is_done() {
            return None;
        }
        step.chunks.remove(&step.replay.next_seq())
    }

    fn feed_chunk(&mut self, chunk: &[u8]) -> Result<(), OpenError> {
        for block in chunk.chunks_exact(BLOCK as usize) {
            let Some(opening) = &mut self.opening else { return Ok(()) };
            let Step::Log(step) = &mut opening.step else { return Ok(()) };
            if step.replay.is_done() {
                return Ok(());
            }
            step.replay.feed(block)?;
            if step.replay.next_seq() == step.limit {
                step.replay.finish();
            }
            while let Some(entry) = self.pop_confirmed() {
                self.replay_entry(&entry);
            }
        }
        Ok(())
    }

    fn pop_confirmed(&mut self) -> Option<TailEntry> {
        let Step::Log(step) = &mut self.opening.as_mut()?.step else { return None };
        step.replay.pop_confirmed()
    }

    /// Executes an entry where its checkpoints do not have it yet.
    fn replay_entry(&mut self, entry: &TailEntry) {
        let change = &entry.change;
        if entry.cancelled || change.kind.is_about_entry() {
            return;
        }
        self.counters.replayed += 1;
        let partition = partition_of(&change.object, self.geometry.partitions);
        if entry.lsn > self.checkpoint_lsn(partition) {
            execute(&mut self.index, entry.lsn, change);
        }
        if entry.lsn > self.checkpoint_lsn(self.geometry.partitions) {
            execute_requests(&mut self.requests, entry.lsn, change);
        }
    }

    fn verify_start_when_read(&mut self) {
        let Some(opening) = &mut self.opening else { return };
        let Step::Log(step) = &mut opening.step else { return };
        // Reads in flight behind the end are waited for, so that they do not arrive in the next step.
        if !step.replay.is_done() || step.in_flight > 0 {
            return;
        }
        let checkpoint_lsn_max = step.checkpoint_lsn_max;
        let placeholder = Step::Recover(RecoverStep::Trim);
        let Step::Log(mut step) = std::mem::replace(&mut opening.step, placeholder) else { return };
        let tail = std::mem::take(step.replay.tail()).into();
        let replay = step.replay;
        let step = VerifyStep { replay, tail, next: 0, in_flight: 0, first_bad: None, checkpoint_lsn_max };
        self.open_enter(Step::Verify(step));
        self.verify_more();
    }

    /// What is to be done with a tail entry, before its data is looked at.
    fn fate(&self, entry: &TailEntry) -> EntryFate {
        let partition = partition_of(&entry.change.object, self.geometry.partitions);
        if entry.cancelled {
            EntryFate::Cancelled
        } else if entry.lsn <= self.checkpoint_lsn(partition) {
            EntryFate::Checkpointed
        } else if entry.change.kind.is_about_entry() || entry.change.extents.is_empty() {
            EntryFate::Verified
        } else if entry.relocated {
            EntryFate::Relocated
        } else {
            EntryFate::DataMismatch
        }
    }

    fn verify_more(&mut self) {
        loop {
            let Some(opening) = &self.opening else { return };
            let Step::Verify(step) = &opening.step else { return };
            let end = step.first_bad.map_or(step.tail.len(), |bad| bad.entry);
            if step.next >= end {
                if step.in_flight == 0 {
                    self.verify_finish();
                }
                return;
            }
            if step.in_flight >= VERIFY_READS_MAX {
                return;
            }
            let at = step.next;
            let entry = &step.tail[at];
            // Presumed bad until its data says otherwise.
            let must_read = matches!(self.fate(entry), EntryFate::DataMismatch | EntryFate::Relocated);
            let runs: Vec<_> =
                if must_read { entry.change.extents.iter().map(|e| e.run()).collect() } else { Vec::new() };
            if let Some(opening) = &mut self.opening
                && let Step::Verify(step) = &mut opening.step
            {
                step.next += 1;
                step.in_flight += runs.len() as u32;
            }
            for (extent, run) in runs.into_iter().enumerate() {
                let offset = self.geometry.sector_offset(run.start);
                self.open_read(OpenRead::Data { entry: at, extent }, offset, u64::from(run.count) * BLOCK);
            }
        }
    }

    pub(super) fn verify_done(&mut self, entry: usize, extent: usize, read: Result<BufferMut, DeviceError>) {
        let Some(opening) = &mut self.opening else { return };
        let Step::Verify(step) = &mut opening.step else { return };
        step.in_flight -= 1;
        let change = &step.tail[entry].change;
        let store = self.superblock.map(|superblock| superblock.store).unwrap_or_default();
        let place = Place { store: &store, object: &change.object, version: change.version };
        let counts = change.extents.iter().map(|e| e.sectors().count as usize);
        let before: usize = counts.take(extent).sum();
        let sectors = change.extents.get(extent).map_or(SectorRange::new(0, 0), |extent| extent.sectors());
        let crcs = &change.crcs[before..before + sectors.count as usize];
        let is_good = |read: &BufferMut| {
            let mut all = sectors.iter().zip(read.chunks_exact(SECTOR)).zip(crcs);
            let is_there =
                |((sector, bytes), crc): ((u32, &[u8]), &u32)| crc32c(bytes) == *crc || place.is_mark(sector, bytes);
            read.len() == sectors.bytes() && all.all(is_there)
        };
        if !read.as_ref().is_ok_and(is_good) {
            // Of one entry, a part that surely is not there counts more than one that cannot be read.
            let found = Bad { entry, unreadable: read.err() };
            let place = |bad: &Bad| (bad.entry, bad.unreadable.is_some());
            step.first_bad = step.first_bad.into_iter().chain([found]).min_by_key(place);
        }
        self.verify_more();
    }

    fn verify_finish(&mut self) {
        let Some(mut opening) = self.opening.take() else { return };
        let placeholder = Step::Recover(RecoverStep::Trim);
        let Step::Verify(step) = std::mem::replace(&mut opening.step, placeholder) else { return };
        self.opening = Some(opening);
        if let Some(Bad { entry, unreadable: Some(error) }) = step.first_bad {
            return self.fail(OpenError::Unreadable { lsn: step.tail[entry].lsn.0, error });
        }
        let kept = step.first_bad.map_or(step.tail.len(), |bad| bad.entry);
        let cut = step.tail.len() - kept;
        let end = Lsn(step.replay.end_lsn().0 - cut as u64);
        if let Err(damage) = step.replay.check_end(end, step.checkpoint_lsn_max) {
            return self.fail(damage.into());
        }
        step.tail[..kept].iter().for_each(|entry| self.replay_entry(entry));
        self.counters.cut = cut as u64 + u64::from(step.replay.is_truncated());
        if let Err(error) = self.build_free_map() {
            return self.fail(error);
        }
        self.recover_start(&step.replay, end);
    }

    fn build_free_map(&mut self) -> Result<(), OpenError> {
        let used = self.index.objects().flat_map(|(_, view, undo)| {
            let kept = undo.into_iter().flat_map(|undo| undo.extents.iter().copied());
            view.extents().chain(kept).map(|extent| extent.run())
        });
        let allocator = Allocator::without(self.geometry.data_sectors, used);
        self.allocator = allocator.map_err(|run| OpenError::SectorOwnedTwice(run.start))?;
        for partition in 0..self.geometry.partitions {
            self.checkpoints.set_accounted(partition, self.index.partition_bytes(partition));
        }
        Ok(())
    }

    fn recover_start(&mut self, replay: &Replay, end: Lsn) {
        let Some(superblock) = self.superblock else { return };
        let (start, next) = (self.checkpoints.replay_seq(), replay.end_seq());
        let generation = replay.generation_max() + 1;
        self.log = LogTail::new(&self.geometry, superblock.store, generation, start, next, end.next());
        self.commit = Commit::after(end, next);
        self.commit.recorded = replay.durable_lsn();
        let ticket = self.flushes.ticket();
        self.open_enter(Step::Recover(RecoverStep::Flush { ticket }));
    }

    /// Moves the last steps of opening on.
    pub(crate) fn open_pump(&mut self) {
        let Some(opening) = &self.opening else { return };
        let Step::Recover(step) = &opening.step else { return };
        match *step {
            RecoverStep::Flush { ticket } if self.flushes.is_done(ticket) => {
                self.open_enter(Step::Recover(RecoverStep::Trim));
                self.checkpoint_pump();
                self.open_pump();
            }
            RecoverStep::Trim if !self.checkpoint_is_busy() && !self.is_log_tight() => self.recover_mark(),
            RecoverStep::Mark { seq } if self.commit.durable_seq > seq => {
                self.opening = None;
                self.state = StoreState::Running;
            }
            _ => {}
        }
    }

    fn recover_mark(&mut self) {
        if self.log.free() < 2 {
            return self.fail(OpenError::LogFull);
        }
        let seq = self.log.next_seq();
        self.log_mark(true);
        self.open_enter(Step::Recover(RecoverStep::Mark { seq }));
    }
}
