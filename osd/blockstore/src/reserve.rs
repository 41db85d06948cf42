//! Admission: space is promised before an operation begins, so that whatever has begun can be finished, and so that what
//! frees space (delete, zero, collect) or heals (repair) still works when nothing else does.

use cluster_proto::Status;
use cluster_proto::shard::ShardOp;

use crate::extent::Runs;
use crate::format::checkpoint::{OBJECT_BYTES_MAX, SECTOR_BYTES_MAX, UNDO_BYTES_MAX};
use crate::format::log::PAYLOAD_MAX;
use crate::store::{Store, StoreState};

/// What the first waiting mutation waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    /// Free log blocks: a checkpoint.
    Log,
    /// Log blocks on their way to the device.
    Window,
    /// Free sectors: the end of quarantines, or pending mutations.
    Sectors,
    /// Room for checkpoints: one of a partition that has shrunk.
    Metadata,
    /// That nothing is pending for its object: then what it finds is what it will meet.
    Object,
}

/// Why a mutation does not begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    Wait(Wait),
    Fail(Status),
}

/// Promised to pending mutations.
#[derive(Default)]
pub(crate) struct Reserved {
    /// Sectors taken from the free map that the index does not hold yet.
    pub sectors: u64,
    /// Sectors by which objects will grow, at most.
    pub growth: u64,
    /// Accounted checkpoint bytes, at most.
    pub metadata: u64,
    /// New objects, at most.
    pub objects: u64,
    /// Objects that will have a staged change, at most.
    pub staged: u64,
}

impl Reserved {
    fn take(&mut self, promise: &Promise) {
        self.growth += u64::from(promise.growth);
        self.metadata += promise.metadata;
        self.objects += u64::from(promise.is_new_object);
        self.staged += u64::from(promise.is_staged);
    }

    pub fn give_back(&mut self, promise: &Promise) {
        self.growth -= u64::from(promise.growth);
        self.metadata -= promise.metadata;
        self.objects -= u64::from(promise.is_new_object);
        self.staged -= u64::from(promise.is_staged);
    }
}

/// What was promised to one pending mutation, apart from its sectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promise {
    pub growth: u32,
    pub metadata: u64,
    is_new_object: bool,
    is_staged: bool,
}

/// What a mutation needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    pub entry_bytes: usize,
    /// Sectors to be written.
    pub sectors: u32,
    /// Sectors by which the object grows.
    pub growth: u32,
    pub is_new_object: bool,
    /// What it replaces is kept: with it, all is promised that a commit or a rollback will need.
    pub is_staged: bool,
    /// May use what is kept back for operations that free or heal.
    pub is_privileged: bool,
    /// May be reported before it is durable.
    pub is_lazy: bool,
}

impl Need {
    /// An entry with no data.
    pub fn of_entry(entry_bytes: usize) -> Need {
        let (sectors, growth) = (0, 0);
        Need {
            entry_bytes,
            sectors,
            growth,
            is_new_object: false,
            is_staged: false,
            is_privileged: true,
            is_lazy: false,
        }
    }

    fn metadata(&self) -> u64 {
        // A staged write grows the checkpoint by all its sectors, since what they replace stays there.
        let sectors = if self.is_staged { self.sectors } else { self.growth };
        let heads = u64::from(self.is_new_object) * OBJECT_BYTES_MAX + u64::from(self.is_staged) * UNDO_BYTES_MAX;
        u64::from(sectors) * SECTOR_BYTES_MAX + heads
    }

    pub fn promise(&self) -> Promise {
        let Need { growth, is_new_object, is_staged, .. } = *self;
        Promise { growth, metadata: self.metadata(), is_new_object, is_staged }
    }
}

impl Store {
    /// Sectors that only privileged operations may use up: enough to redirect the largest write, on a store that is
    /// large enough for that.
    fn sectors_kept_back(&self) -> u64 {
        (self.geometry.data_sectors / 16).min(4096)
    }

    /// Decides whether a mutation may begin, and if so takes its sectors.
    pub(crate) fn admit(&mut self, need: &Need) -> Result<Runs, Refusal> {
        self.admit_log(need)?;
        self.admit_objects(need)?;
        self.admit_staged(need)?;
        self.admit_growth(need)?;
        self.admit_metadata(need)?;
        let runs = self.admit_sectors(need)?;
        self.reserved.sectors += u64::from(need.sectors);
        self.reserved.take(&need.promise());
        Ok(runs)
    }

    /// Whether neither data nor metadata would be short.
    pub(crate) fn has_room(&self, need: &Need) -> bool {
        self.admit_growth(need).is_ok() && self.admit_metadata(need).is_ok()
    }

    fn admit_log(&self, need: &Need) -> Result<(), Refusal> {
        if need.entry_bytes > self.log.entry_bytes_max() {
            return Err(Refusal::Fail(Status::Invalid));
        }
        let blocks = (need.entry_bytes / PAYLOAD_MAX) as u64 + 2;
        if self.log.free() < self.log.reserve() + blocks {
            return Err(Refusal::Wait(Wait::Log));
        }
        if self.log.is_window_full() {
            return Err(Refusal::Wait(Wait::Window));
        }
        Ok(())
    }

    fn admit_objects(&self, need: &Need) -> Result<(), Refusal> {
        if !need.is_new_object {
            return Ok(());
        }
        let most = self.geometry.objects_max;
        let objects_max = if need.is_privileged { most } else { most - most / 16 };
        let memory = self.config.memory_bytes_max;
        let memory_max = if need.is_privileged { memory.saturating_add(memory / 16) } else { memory };
        if self.index.object_count() + self.reserved.objects >= objects_max || self.memory_bytes() > memory_max {
            return Err(Refusal::Fail(Status::NoSpace));
        }
        Ok(())
    }

    /// Waiting would not help: the commits that make room may be behind this in the queue.
    fn admit_staged(&self, need: &Need) -> Result<(), Refusal> {
        let staged = self.index.staged_count() + self.reserved.staged;
        let memory_max = self.config.memory_bytes_max.saturating_add(self.config.memory_bytes_max / 16);
        if need.is_staged && staged >= self.geometry.staged_max() {
            return Err(Refusal::Fail(Status::Busy));
        }
        if need.is_staged && self.memory_bytes() > memory_max {
            return Err(Refusal::Fail(Status::NoSpace));
        }
        Ok(())
    }

    fn admit_growth(&self, need: &Need) -> Result<(), Refusal> {
        let usable = self.geometry.data_sectors - self.counters.bad_sectors.min(self.geometry.data_sectors);
        let kept = if need.is_privileged { 0 } else { self.sectors_kept_back() };
        let wanted = self.index.claimed_count() + self.reserved.growth + u64::from(need.growth);
        if need.growth == 0 || wanted + kept <= usable {
            return Ok(());
        }
        // Pending mutations are counted at their worst; the truth is known when they are through.
        let is_certain = self.commit.pending_count() == 0;
        Err(if is_certain { Refusal::Fail(Status::NoSpace) } else { Refusal::Wait(Wait::Sectors) })
    }

    fn admit_metadata(&self, need: &Need) -> Result<(), Refusal> {
        let wanted = self.checkpoints.accounted() + self.reserved.metadata + need.metadata();
        if need.metadata() == 0 || wanted <= self.geometry.metadata_bytes_max() {
            return Ok(());
        }
        let is_certain = self.commit.pending_count() == 0 && self.checkpoints.is_compact();
        Err(if is_certain { Refusal::Fail(Status::NoSpace) } else { Refusal::Wait(Wait::Metadata) })
    }

    fn admit_sectors(&mut self, need: &Need) -> Result<Runs, Refusal> {
        if need.sectors == 0 {
            return Ok(Runs::new());
        }
        if let Some(runs) = self.allocator.allocate(need.sectors) {
            return Ok(runs);
        }
        let will_free = self.commit.pending_count() > 0 || self.quarantine.sectors() > 0 || self.discards > 0;
        Err(if will_free { Refusal::Wait(Wait::Sectors) } else { Refusal::Fail(Status::NoSpace) })
    }

    /// Begins as many waiting mutations as possible, in order.
    pub(crate) fn pump_queue(&mut self) {
        if self.state != StoreState::Running {
            return;
        }
        self.waiting = None;
        while let Some((tag, op)) = self.queue.pop_front() {
            if let Some(wait) = self.begin(tag, &op) {
                self.queue.push_front((tag, op));
                self.waiting = Some(wait);
                // What it waits for may need a push: a record of what is durable. A checkpoint comes by itself.
                self.mark_wanted |= wait == Wait::Sectors;
                return;
            }
        }
    }

    /// Begins one mutation or sync, or says what it must wait for.
    fn begin(&mut self, tag: u64, op: &ShardOp) -> Option<Wait> {
        if self.must_refuse(op) {
            self.refuse(tag, op, Status::Retry);
            return None;
        }
        let result = match op {
            ShardOp::Write { .. }
            | ShardOp::Repair { .. }
            | ShardOp::Restore { .. }
            | ShardOp::Patch { .. }
            | ShardOp::Stage { .. } => self.write_start(tag, op),
            ShardOp::Zero { .. } | ShardOp::Delete { .. } | ShardOp::Collect { .. } | ShardOp::Drop { .. } => {
                self.delete_start(tag, op)
            }
            ShardOp::Commit { object, version } => self.stage_commit(tag, object, *version),
            ShardOp::Rollback { object, version } => self.stage_rollback(tag, object, *version),
            ShardOp::Sync => {
                self.sync_start(tag);
                Ok(())
            }
            ShardOp::Read { .. } | ShardOp::Fetch { .. } | ShardOp::FetchPart { .. } | ShardOp::Verify { .. } => {
                Err(Refusal::Fail(Status::Invalid))
            }
        };
        match result {
            Ok(()) => None,
            Err(Refusal::Wait(wait)) => Some(wait),
            Err(Refusal::Fail(status)) => {
                self.refuse(tag, op, status);
                None
            }
        }
    }
}
