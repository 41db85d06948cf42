//! The store's central struct: who drives it, and how one input becomes outputs.

use std::collections::VecDeque;

use cluster_proto::Status;
use cluster_proto::ids::ObjectId;
use cluster_proto::shard::{ShardOp, ShardOutcome};
use rustc_hash::FxHashMap;

use crate::allocator::Allocator;
use crate::checkpoint::{CheckpointIo, Checkpoints};
use crate::commit::{Commit, FlushCover};
use crate::device::{DeviceError, DeviceOp, DeviceRequest, DeviceResult, Slab};
use crate::extent::Run;
use crate::flush::Flushes;
use crate::format::log::{Lsn, WHOLE};
use crate::format::superblock::Superblock;
use crate::geometry::Geometry;
use crate::index::Index;
use crate::log::append::{BlockWrite, LogTail};
use crate::open::{OpenError, OpenRead, Opening};
use crate::quarantine::Quarantine;
use crate::read::Reads;
use crate::requests::Requests;
use crate::reserve::{Reserved, Wait};
use crate::stats::Counters;
use crate::write::{DataWrite, Outgoing};

/// Mutations that may wait inside for log or space; more are answered `Busy`.
const QUEUE_MAX: usize = 64 << 10;

/// What a completed write of the device means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// It is durable: no volatile cache, or one that is protected.
    WriteThrough,
    /// It is durable after a flush; there is one per group commit.
    Flush,
}

/// How a store behaves. Not part of the format: it may change from one start to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreConfig {
    /// Memory for index, free map and remembered requests, above which new objects are refused with `NoSpace`. Bytes.
    pub memory_bytes_max: u64,
    /// What the device promises.
    pub durability: Durability,
    /// Freed runs of at least so many sectors are discarded on the device if they stay free; 0 = never.
    pub discard_sectors_min: u32,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig { memory_bytes_max: 1 << 30, durability: Durability::Flush, discard_sectors_min: 0 }
    }
}

/// Life of a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreState {
    /// Reading superblock and checkpoints.
    Opening,
    /// Reading and verifying the log, then marking the recovery.
    Replaying,
    /// Serving.
    Running,
    /// Cannot serve; says why. Everything submitted fails with `Io`.
    Failed(OpenError),
    /// Closed cleanly.
    Closed,
}

/// Why the device was asked for something.
pub(crate) enum Job {
    Data(DataWrite),
    Log { write: BlockWrite, attempts: u32 },
    Flush(FlushCover),
    Read { read: u64, piece: usize },
    Discard(Run),
    Checkpoint(CheckpointIo),
    Open(OpenRead),
}

/// The store of one OSD.
///
/// One thread owns it. After any call, drain [`Store::poll_device`] and [`Store::poll_outcome`]; give every completion
/// back through [`Store::handle_device`]. Group commit needs no call of its own: mutations submitted before `poll_device` is
/// drained share log blocks and device writes. `handle_idle` after about 100 ms without work lets go of freed space.
///
/// The parts know each other only through this struct: `write`, `delete`, `stage`, `read` and `sync` take operations in;
/// `reserve` decides whether one may start; `log` and `commit` bring it to the medium in order; `index` holds what is
/// durable; `checkpoint` keeps the log short; `open` brings everything back.
pub struct Store {
    pub(crate) config: StoreConfig,
    pub(crate) device_bytes: u64,
    pub(crate) state: StoreState,
    pub(crate) closing: bool,
    pub(crate) superblock: Option<Superblock>,
    pub(crate) geometry: Geometry,
    pub(crate) opening: Option<Box<Opening>>,
    pub(crate) jobs: Slab<Job>,
    pub(crate) out: VecDeque<DeviceRequest>,
    pub(crate) index: Index,
    pub(crate) requests: Requests,
    pub(crate) allocator: Allocator,
    pub(crate) quarantine: Quarantine,
    pub(crate) reserved: Reserved,
    pub(crate) log: LogTail,
    pub(crate) commit: Commit,
    pub(crate) outgoing: VecDeque<Outgoing>,
    pub(crate) queue: VecDeque<(u64, ShardOp)>,
    pub(crate) waiting: Option<Wait>,
    pub(crate) reads: Reads,
    pub(crate) flushes: Flushes,
    pub(crate) checkpoints: Checkpoints,
    /// Freed runs that may be worth discarding, if they are still free.
    pub(crate) unused: VecDeque<Run>,
    pub(crate) discards: u64,
    pub(crate) mark_wanted: bool,
    pub(crate) outcomes: VecDeque<(u64, ShardOutcome)>,
    /// Mutations that have failed, or will, and whose outcome was not taken yet: until then changes of their objects fail, too.
    pub(crate) failing: FxHashMap<u64, ObjectId>,
    pub(crate) counters: Counters,
}

impl Store {
    /// Starts opening the store on a device of `device_bytes`. The first device requests are there at once.
    pub fn open(config: StoreConfig, device_bytes: u64) -> Store {
        let geometry = Geometry { log_blocks: crate::geometry::LOG_BLOCKS_MIN, partitions: 1, ..Geometry::default() };
        let mut store = Store {
            config,
            device_bytes,
            state: StoreState::Opening,
            closing: false,
            superblock: None,
            geometry,
            opening: None,
            jobs: Slab::new(),
            out: VecDeque::new(),
            index: Index::new(1),
            requests: Requests::new(0, 0),
            allocator: Allocator::new(0),
            quarantine: Quarantine::default(),
            reserved: Reserved::default(),
            log: LogTail::new(&geometry, [0; 16], 0, 0, 0, Lsn(1)),
            commit: Commit::default(),
            outgoing: VecDeque::new(),
            queue: VecDeque::new(),
            waiting: None,
            reads: Reads::new(),
            flushes: Flushes::new(config.durability == Durability::Flush),
            checkpoints: Checkpoints::default(),
            unused: VecDeque::new(),
            discards: 0,
            mark_wanted: false,
            outcomes: VecDeque::new(),
            failing: FxHashMap::default(),
            counters: Counters::default(),
        };
        store.open_start();
        store
    }

    /// Where the store is in its life.
    pub fn state(&self) -> StoreState {
        self.state.clone()
    }

    /// What the device promises.
    pub fn durability(&self) -> Durability {
        self.config.durability
    }

    /// Whether operations are accepted.
    pub fn is_running(&self) -> bool {
        self.state == StoreState::Running && !self.closing
    }

    /// The superblock, as soon as it is read: cluster, OSD and layout.
    pub fn superblock(&self) -> Option<&Superblock> {
        self.superblock.as_ref()
    }

    /// Takes an operation; its outcome comes with the same tag. Before the store runs and while it closes the outcome
    /// is `Failed(Retry)`, after a failure `Failed(Io)`.
    pub fn submit(&mut self, tag: u64, op: ShardOp) {
        if !self.is_running() {
            let failed = matches!(self.state, StoreState::Failed(_));
            return self.finish(tag, ShardOutcome::Failed(if failed { Status::Io } else { Status::Retry }));
        }
        if self.must_refuse(&op) {
            return self.refuse(tag, &op, Status::Retry);
        }
        match op {
            ShardOp::Read { object, sectors } => self.read_start(tag, object, sectors),
            ShardOp::Fetch { object } => self.fetch_start(tag, object, &[WHOLE]),
            ShardOp::FetchPart { object, sectors } => self.fetch_start(tag, object, &sectors),
            ShardOp::Verify { object, sums } => self.verify_start(tag, object, sums),
            op if self.queue.len() >= QUEUE_MAX => {
                debug_assert!(op.is_mutation() || op == ShardOp::Sync);
                self.refuse(tag, &op, Status::Busy);
            }
            op => {
                self.queue.push_back((tag, op));
                // Something in front waits already: it goes on when what it waits for happens.
                if self.waiting.is_none() {
                    self.pump_queue();
                    // What it waits for may be a checkpoint, and nothing else may be under way that would begin it.
                    if self.waiting.is_some() {
                        self.checkpoint_pump();
                    }
                }
            }
        }
        debug_assert!(self.check_invariants());
    }

    /// The device has completed a request. A token that is not outstanding is ignored.
    pub fn handle_device(&mut self, token: u64, result: DeviceResult) {
        let Some(job) = self.jobs.remove(token) else { return };
        if matches!(self.state, StoreState::Failed(_)) {
            return;
        }
        match (job, result) {
            (Job::Read { read, piece }, DeviceResult::Read(result)) => self.read_piece_done(read, piece, result),
            (Job::Open(read), DeviceResult::Read(result)) => self.open_read_done(read, result),
            (Job::Data(write), DeviceResult::Done(result)) => self.data_written(write, result),
            (Job::Log { write, attempts }, DeviceResult::Done(result)) => self.log_written(write, attempts, result),
            (Job::Flush(cover), DeviceResult::Done(result)) => self.flushed(cover, result),
            (Job::Discard(run), DeviceResult::Done(_)) => self.discarded(run),
            (Job::Checkpoint(io), DeviceResult::Done(result)) => self.checkpoint_written(io, result),
            (_, _) => self.fail(OpenError::Driver),
        }
        self.settle();
    }

    /// Called by the driver when it has had nothing to do for a while: records what is durable, so that freed space
    /// can be used again and the next start verifies nothing.
    pub fn handle_idle(&mut self) {
        if self.state == StoreState::Running {
            self.mark_wanted = true;
            self.settle();
        }
    }

    /// There is little to do: lets the device know of some space that has stayed free. To be called now and then, also under load; a store
    /// takes up freed space soon when it is busy, so that discarding it at once would be in vain.
    pub fn discard_unused(&mut self) {
        if self.state == StoreState::Running {
            self.discard_some();
        }
    }

    /// Stops accepting operations; when everything submitted is done and recorded, the state becomes `Closed`.
    pub fn begin_close(&mut self) {
        self.closing = true;
        self.settle();
    }

    /// The next request for the device.
    pub fn poll_device(&mut self) -> Option<DeviceRequest> {
        if self.out.is_empty() {
            self.fill_output();
        }
        self.out.pop_front()
    }

    /// The next outcome, with the tag of its operation.
    pub fn poll_outcome(&mut self) -> Option<(u64, ShardOutcome)> {
        let (tag, outcome) = self.outcomes.pop_front()?;
        if !self.failing.is_empty() {
            self.failing.remove(&tag);
        }
        Some((tag, outcome))
    }

    pub(crate) fn finish(&mut self, tag: u64, outcome: ShardOutcome) {
        self.outcomes.push_back((tag, outcome));
    }

    pub(crate) fn request(&mut self, job: Job, op: DeviceOp) {
        let token = self.jobs.insert(job);
        self.out.push_back(DeviceRequest { token, op });
    }

    /// Lets everything go on that may have become possible.
    pub(crate) fn settle(&mut self) {
        self.commit_advance();
        self.release_quarantine();
        self.pump_queue();
        self.checkpoint_pump();
        self.open_pump();
        self.close_pump();
        debug_assert!(self.check_invariants());
    }

    /// Turns what was submitted since the last time into as few device requests as possible.
    fn fill_output(&mut self) {
        if matches!(self.state, StoreState::Failed(_) | StoreState::Closed) {
            return;
        }
        self.data_flow();
        self.log_flow();
        self.flush_flow();
    }

    fn close_pump(&mut self) {
        if !self.closing || self.state != StoreState::Running || !self.is_quiet() {
            return;
        }
        if self.commit.recorded < self.commit.executed {
            self.mark_wanted = true;
        } else if self.jobs.len() == 0 && self.out.is_empty() {
            self.state = StoreState::Closed;
        }
    }

    fn is_quiet(&self) -> bool {
        self.queue.is_empty() && self.commit.is_idle() && self.outgoing.is_empty() && !self.log.has_unwritten()
    }

    /// Ends serving: nothing is acknowledged any more.
    pub(crate) fn fail(&mut self, why: OpenError) {
        if matches!(self.state, StoreState::Failed(_)) {
            return;
        }
        self.state = StoreState::Failed(why);
        self.opening = None;
        self.out.clear();
        self.outgoing.clear();
        let mut tags = self.commit.drain_tags();
        tags.extend(self.queue.drain(..).map(|(tag, _)| tag));
        tags.extend(self.reads.drain_tags());
        for tag in tags {
            self.finish(tag, ShardOutcome::Failed(Status::Io));
        }
    }

    /// A failure that ends the store.
    pub(crate) fn fail_io(&mut self, during: &'static str, error: DeviceError) {
        self.fail(OpenError::Device { during, error });
    }

    /// Asserts what must always hold. Cheap enough for every input.
    pub fn check_invariants(&self) -> bool {
        if self.state != StoreState::Running {
            return true;
        }
        let c = &self.commit;
        let order = [c.recorded, c.durable, c.executed, c.written];
        assert!(order.is_sorted(), "recorded, durable, executed, written: {order:?}");
        assert_eq!(
            c.executed.0 + c.pending_count() as u64 + 1,
            self.log.next_lsn().0,
            "every entry is executed or pending"
        );
        assert!(self.log.used() <= self.log.capacity());
        assert!(self.index.staged_count() + self.reserved.staged <= self.geometry.staged_max());
        let accounted = self.index.sector_count()
            + self.index.kept_count()
            + self.allocator.free_count()
            + self.quarantine.sectors()
            + self.reserved.sectors
            + self.discards
            + self.counters.bad_sectors;
        assert_eq!(accounted, self.geometry.data_sectors, "every sector is in exactly one place");
        true
    }
}
