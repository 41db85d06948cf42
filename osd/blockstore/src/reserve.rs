//! Admission: space is promised before an operation begins, so that whatever has begun can be finished, and so that what
//! frees space (delete, zero, collect) or heals (repair) still works when nothing else does.

use cluster_proto::Status;
use cluster_proto::shard::{ShardOp, ShardOutcome};

use crate::extent::Runs;
use crate::format::checkpoint::{OBJECT_BYTES_MAX, SECTOR_BYTES_MAX};
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
}

impl Reserved {
    pub fn give_back(&mut self, growth: u32, metadata: u64, is_new_object: bool) {
        self.growth -= u64::from(growth);
        self.metadata -= metadata;
        self.objects -= u64::from(is_new_object);
    }
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
    /// May use what is kept back for operations that free or heal.
    pub is_privileged: bool,
}

impl Need {
    pub fn metadata(&self) -> u64 {
        u64::from(self.growth) * SECTOR_BYTES_MAX + u64::from(self.is_new_object) * OBJECT_BYTES_MAX
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
        self.admit_growth(need)?;
        self.admit_metadata(need)?;
        let runs = self.admit_sectors(need)?;
        self.reserved.sectors += u64::from(need.sectors);
        self.reserved.growth += u64::from(need.growth);
        self.reserved.metadata += need.metadata();
        self.reserved.objects += u64::from(need.is_new_object);
        Ok(runs)
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

    fn admit_growth(&self, need: &Need) -> Result<(), Refusal> {
        let usable = self.geometry.data_sectors - self.counters.bad_sectors.min(self.geometry.data_sectors);
        let kept = if need.is_privileged { 0 } else { self.sectors_kept_back() };
        let wanted = self.index.sector_count() + self.reserved.growth + u64::from(need.growth);
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
        let result = match op {
            ShardOp::Write { .. } | ShardOp::Repair { .. } | ShardOp::Restore { .. } => self.write_start(tag, op),
            ShardOp::Zero { .. } | ShardOp::Delete { .. } | ShardOp::Collect { .. } => self.delete_start(tag, op),
            ShardOp::Sync => {
                self.sync_start(tag);
                Ok(())
            }
            ShardOp::Read { .. } | ShardOp::Fetch { .. } => Err(Refusal::Fail(Status::Invalid)),
        };
        match result {
            Ok(()) => None,
            Err(Refusal::Wait(wait)) => Some(wait),
            Err(Refusal::Fail(status)) => {
                self.finish(tag, ShardOutcome::Failed(status));
                None
            }
        }
    }
}
