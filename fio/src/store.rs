//! The store of an OSD as a target, without the OSD: what a device costs with our format, and nothing else. No network, no
//! versions of others, no locks.
//!
//! Next hop of a write: `osd/blockstore/src/write.rs`.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blockstore::{Durability, Store, StoreConfig, StoreState};
use buffer::Buffer;
use cluster_client::{ImageOp, ImageReply};
use cluster_io::{DiskId, DiskOptions, Event, Reactor, ReactorConfig};
use cluster_proto::crc::sector_crcs;
use cluster_proto::layout::{LayerRef, Piece, SECTOR, pieces};
use cluster_proto::limits::BLOCK_SIZE_DEFAULT;
use cluster_proto::shard::{Origin, ShardOp, ShardOutcome};
use cluster_proto::{LayerId, OsdId, PoolId, SectorRange, Status, Uuid, Version};
use osd::device;
use slab::Slab;

use crate::error::Error;
use crate::target::{Reply, Target};

/// The cluster that stores of this engine belong to, so that no OSD's store is ever overwritten: "blockyard fio".
const CLUSTER: Uuid = Uuid::from_bytes(*b"blockyard fio\0\0\0");
const OSD: OsdId = OsdId(1);
const LAYER: LayerRef = LayerRef { pool: PoolId(1), lineage: LayerId(1), layer: LayerId(1) };
/// What a new file gets beyond what is used, for the log and checkpoints. Bytes.
const EXTRA: u64 = 512 << 20;
/// How often a store without work is told so.
const BEAT: Duration = Duration::from_millis(100);
/// How long opening and closing may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that can be used. Nothing is looked at: the file may not exist yet.
pub(crate) fn look(path: &Path, size: u64) -> Result<u64, Error> {
    if path.is_dir() {
        return Err(Error::new(format!("{} is a directory: name a file or a block device", path.display())));
    }
    Ok(size)
}

/// An operation that is several operations of the store.
struct Task {
    tag: u64,
    /// Operations of the store without an outcome.
    left: usize,
    failed: Option<Status>,
    /// Results of a read, in order.
    found: Vec<Buffer>,
    is_read: bool,
}

/// An open store.
pub(crate) struct StoreTarget {
    io: Reactor,
    disk: DiskId,
    store: Store,
    size: u64,
    version: Version,
    /// The store's tag of an operation is the task's place and, above it, the number of the piece.
    tasks: Slab<Task>,
    replies: VecDeque<Reply>,
    next_beat: Instant,
    is_busy: bool,
}

impl StoreTarget {
    /// Opens the store on a file or block device; makes one if there is none.
    ///
    /// # Errors
    /// There is something else on it, or it is in use, or too small, or there is no io_uring.
    pub fn open(path: &Path, size: u64) -> Result<Self, Error> {
        prepare(path, size)?;
        let mut io = Reactor::new(ReactorConfig::default())?;
        let how = DiskOptions { create_bytes: None, direct: true, exclusive: true };
        let (disk, info) = io.open_disk(path, how)?;
        let durability = if info.flush_needed { Durability::Flush } else { Durability::WriteThrough };
        let store = Store::open(StoreConfig { durability, ..StoreConfig::default() }, info.bytes);
        // Above whatever an earlier run wrote: it took more than a microsecond for each change.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let version = Version(u64::try_from(now.as_micros()).unwrap_or_default());
        let next_beat = io.now();
        let (tasks, replies) = (Slab::new(), VecDeque::new());
        let mut target = Self { io, disk, store, size, version, tasks, replies, next_beat, is_busy: false };
        match target.turn_until(|store| !matches!(store.state(), StoreState::Opening | StoreState::Replaying))? {
            StoreState::Running => Ok(target),
            StoreState::Failed(why) => Err(failed(path, &why.to_string())),
            _ => Err(failed(path, "it takes too long")),
        }
    }

    fn turn_until(&mut self, is_done: impl Fn(&Store) -> bool) -> Result<StoreState, Error> {
        let end = Instant::now() + PATIENCE;
        while !is_done(&self.store) && Instant::now() < end {
            self.turn(Instant::now() + BEAT)?;
        }
        Ok(self.store.state())
    }

    /// Hands over what the store wants of its device, and takes its outcomes, until it has nothing more to say.
    fn settle(&mut self) {
        loop {
            if let Some((tag, outcome)) = self.store.poll_outcome() {
                self.handle_outcome(tag, outcome);
            } else if let Some(request) = self.store.poll_device() {
                device::submit(&mut self.io, self.disk, request);
            } else {
                return;
            }
        }
    }

    fn handle_outcome(&mut self, tag: u64, outcome: ShardOutcome) {
        let (place, number) = ((tag & u64::from(u32::MAX)) as usize, (tag >> 32) as usize);
        let Some(task) = self.tasks.get_mut(place) else { return };
        match outcome {
            ShardOutcome::Done | ShardOutcome::Written => {}
            ShardOutcome::Read { data, .. } => {
                if let Some(found) = task.found.get_mut(number) {
                    *found = data;
                }
            }
            ShardOutcome::Failed(status) => task.failed = Some(status),
            ShardOutcome::Corrupt { .. } => task.failed = Some(Status::Corrupt),
            ShardOutcome::Fetched { .. } | ShardOutcome::Verified { .. } => task.failed = Some(Status::Io),
        }
        task.left -= 1;
        if task.left == 0 {
            let Task { tag, failed, found, is_read, .. } = self.tasks.remove(place);
            let done = if is_read { ImageReply::Data(found) } else { ImageReply::Done };
            self.replies.push_back((tag, failed.map_or(Ok(done), Err)));
        }
    }

    /// The store's operation for the part of an operation that lies in one object.
    fn cut(&mut self, op: &ImageOp, piece: Piece) -> ShardOp {
        let object = LAYER.object(piece.index);
        let sectors = SectorRange::new(piece.offset / SECTOR as u32, piece.len / SECTOR as u32);
        self.version.0 += 1;
        let (version, origin) = (self.version, Origin::NONE);
        match op {
            ImageOp::Write { data, .. } => {
                let at = piece.request_offset as usize;
                let data = data.slice(at..at + piece.len as usize);
                let crcs = sector_crcs(&data);
                ShardOp::Write { object, version, sectors, data, crcs, origin, lazy: false }
            }
            ImageOp::Discard { .. } => ShardOp::Zero { object, version, sectors, origin, lazy: false },
            _ => ShardOp::Read { object, sectors },
        }
    }

    fn beat(&mut self) {
        self.next_beat = self.io.now() + BEAT;
        if !self.is_busy && self.tasks.is_empty() {
            self.store.handle_idle();
        }
        self.is_busy = false;
    }
}

fn failed(path: &Path, why: &str) -> Error {
    Error::new(format!("cannot open the store on {}: {why}", path.display()))
}

/// Makes a store where there is none yet.
fn prepare(path: &Path, size: u64) -> Result<(), Error> {
    match osd::identify(path) {
        Ok(found) if found.cluster == CLUSTER => return Ok(()),
        Ok(found) => {
            let text = format!(
                "{} is the store of OSD {} of a cluster: fio would destroy its data",
                path.display(),
                found.osd
            );
            return Err(Error::new(text));
        }
        // Whatever else is on it is not overwritten.
        Err(_) => {}
    }
    let bytes = Some(size.saturating_add(size / 4).saturating_add(EXTRA));
    let options = osd::PrepareOptions { path: path.to_owned(), bytes, id: OSD, cluster: CLUSTER, force: false };
    osd::prepare(&options)?;
    Ok(())
}

/// First byte and length of what the engine submits.
fn range_of(op: &ImageOp) -> (u64, u64) {
    match op {
        ImageOp::Read { offset, len } | ImageOp::Discard { offset, len } => (*offset, *len),
        ImageOp::Write { offset, data } => (*offset, data.len() as u64),
        _ => (0, 0),
    }
}

impl Target for StoreTarget {
    fn size(&self) -> u64 {
        self.size
    }

    fn unit(&self) -> u64 {
        SECTOR as u64
    }

    fn submit(&mut self, tag: u64, op: ImageOp) {
        self.is_busy = true;
        let (offset, len) = range_of(&op);
        let cut: Vec<_> = pieces(offset, len, BLOCK_SIZE_DEFAULT).collect();
        let is_read = matches!(op, ImageOp::Read { .. });
        let found = if is_read { vec![Buffer::new(); cut.len()] } else { Vec::new() };
        let place = self.tasks.insert(Task { tag, left: cut.len().max(1), failed: None, found, is_read });
        if cut.is_empty() {
            return self.store.submit(place as u64, ShardOp::Sync);
        }
        for (number, piece) in cut.into_iter().enumerate() {
            let op = self.cut(&op, piece);
            self.store.submit(place as u64 | (number as u64) << 32, op);
        }
    }

    fn poll_reply(&mut self) -> Option<Reply> {
        self.replies.pop_front()
    }

    fn turn(&mut self, until: Instant) -> Result<(), Error> {
        self.settle();
        let until = if self.replies.is_empty() { until.min(self.next_beat) } else { self.io.now() };
        self.io.turn(Some(until))?;
        while let Some(event) = self.io.next_event() {
            match event {
                Event::DiskRead { token, result, .. } => self.store.handle_device(token, device::read_result(result)),
                Event::DiskDone { token, result, .. } => self.store.handle_device(token, device::done_result(result)),
                _ => {}
            }
        }
        if self.next_beat <= self.io.now() {
            self.beat();
        }
        while let Some((tag, outcome)) = self.store.poll_outcome() {
            self.handle_outcome(tag, outcome);
        }
        Ok(())
    }

    fn close(mut self: Box<Self>) -> Result<(), Error> {
        self.store.begin_close();
        match self.turn_until(|store| matches!(store.state(), StoreState::Closed | StoreState::Failed(_)))? {
            StoreState::Closed => Ok(()),
            _ => Err(Error::new("the store could not be closed in good order; its next start will verify its tail")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 64 << 20;

    fn run(target: &mut StoreTarget, op: ImageOp) -> Result<ImageReply, Status> {
        target.submit(7, op);
        for _ in 0..1000 {
            if let Some((tag, reply)) = target.poll_reply() {
                assert_eq!(tag, 7);
                return reply;
            }
            target.turn(Instant::now() + BEAT).unwrap();
        }
        panic!("no answer");
    }

    fn read(target: &mut StoreTarget, offset: u64, len: u64) -> Vec<u8> {
        match run(target, ImageOp::Read { offset, len }) {
            Ok(ImageReply::Data(pieces)) => pieces.iter().flat_map(|piece| piece.to_vec()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_written_across_objects_is_there_also_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let mut target = StoreTarget::open(&path, SIZE).unwrap();
        let begin = (3 << 20) - 8192;
        let data: Vec<u8> = (0..(2 << 20) + 16384).map(|i: u32| (i / 4096 + i) as u8).collect();
        let write = |offset, data: &[u8]| ImageOp::Write { offset, data: Buffer::copy_of(data) };
        assert_eq!(run(&mut target, write(begin, &data)), Ok(ImageReply::Done));
        assert_eq!(run(&mut target, ImageOp::Flush), Ok(ImageReply::Done));
        assert!(read(&mut target, begin, data.len() as u64) == data);
        assert_eq!(run(&mut target, ImageOp::Discard { offset: begin, len: 16384 }), Ok(ImageReply::Done));
        Box::new(target).close().unwrap();

        let mut target = StoreTarget::open(&path, SIZE).unwrap();
        let found = read(&mut target, begin, data.len() as u64);
        assert!(found[..16384].iter().all(|byte| *byte == 0) && found[16384..] == data[16384..]);
        assert_eq!(run(&mut target, write(begin, &data[..4096])), Ok(ImageReply::Done), "its versions go on");
        assert!(read(&mut target, begin, 4096) == data[..4096]);
        assert!(StoreTarget::open(&path, SIZE).is_err_and(|e| e.to_string().contains("another process")));
    }

    #[test]
    fn what_is_not_its_own_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("osd");
        let cluster = Uuid::from_bytes([7; 16]);
        let options =
            osd::PrepareOptions { path: path.clone(), bytes: Some(1 << 30), id: OsdId(3), cluster, force: false };
        osd::prepare(&options).unwrap();
        assert!(StoreTarget::open(&path, SIZE).is_err_and(|e| e.to_string().contains("store of OSD 3")));
        std::fs::write(&path, b"somebody's data").unwrap();
        assert!(StoreTarget::open(&path, SIZE).is_err_and(|e| e.to_string().contains("data")));
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's data");
        assert!(look(folder.path(), SIZE).is_err());
    }
}
