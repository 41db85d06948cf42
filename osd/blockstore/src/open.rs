//! Opening: superblock, newest checkpoint of every partition, then the log ([`log_tail`]). Every step reads several pieces
//! at once and moves on when the last has arrived.

mod log_tail;

use buffer::BufferMut;
use cluster_proto::crc::crc32c;

use crate::checkpoint::Checkpoints;
use crate::device::{DeviceError, DeviceOp};
use crate::format::checkpoint::{ContentReader, Senseless, SlotHeader};
use crate::format::superblock::{Superblock, SuperblockError};
use crate::geometry::{BLOCK, FRONT_BYTES, SUPERBLOCK_COPY};
use crate::index::Index;
use crate::log::replay::LogDamage;
use crate::requests::Requests;
use crate::store::{Job, Store, StoreState};
use log_tail::{LogStep, RecoverStep, VerifyStep};

/// Checkpoints loaded at the same time.
const LOADS_MAX: u32 = 8;
/// Bytes of one read of a checkpoint.
const LOAD_BYTES_MAX: u64 = 4 << 20;

/// Why a store cannot be opened, or cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither superblock copy is usable.
    #[error("{0}")]
    Superblock(#[from] SuperblockError),
    /// The device has shrunk.
    #[error("the device has {device_bytes} bytes, but the store was made for {formatted_bytes}: restore its size")]
    DeviceTooSmall {
        /// Size now.
        device_bytes: u64,
        /// Size when it was formatted.
        formatted_bytes: u64,
    },
    /// No slot of a partition is usable.
    #[error("checkpoint {0} is damaged: remove this OSD and let the cluster restore its data elsewhere")]
    Checkpoint(u32),
    /// Two checkpoints claim the same segment.
    #[error("two checkpoints claim the same segment: remove this OSD and let the cluster restore its data elsewhere")]
    Segments,
    /// The log has lost something that was durable.
    #[error("{0}: remove this OSD and let the cluster restore its data elsewhere")]
    Log(#[from] LogDamage),
    /// Data of one of the last entries of the log cannot be read.
    #[error(
        "the data of log entry {lsn} cannot be read ({error}), so nobody can tell whether it is one that was acknowledged: \
         start again; if that does not help, remove this OSD and let the cluster restore its data elsewhere"
    )]
    Unreadable {
        /// Number of the entry.
        lsn: u64,
        /// What the device said.
        error: DeviceError,
    },
    /// Two objects claim one sector.
    #[error("sector {0} belongs to two objects: remove this OSD and let the cluster restore its data elsewhere")]
    SectorOwnedTwice(u64),
    /// The device failed where nothing can be done about it.
    #[error("{during}: {error}")]
    Device {
        /// What was being done.
        during: &'static str,
        /// What the device said.
        error: DeviceError,
    },
    /// No log block is left for what had a place reserved.
    #[error("the log is full")]
    LogFull,
    /// No segment is left for a checkpoint that had a place reserved.
    #[error("the checkpoint area is full")]
    CheckpointArea,
    /// A completion does not fit its request.
    #[error("the driver completed a request with the wrong kind of result")]
    Driver,
}

/// Why opening reads something.
pub(crate) enum OpenRead {
    Superblock(usize),
    Headers { from: usize },
    Content { pair: u32, from: u64, len: u64 },
    Log { seq: u64 },
    Data { entry: usize, extent: usize },
}

/// Opening in progress.
pub(crate) struct Opening {
    step: Step,
}

enum Step {
    Superblocks { left: u32, found: [Result<Superblock, SuperblockError>; 2] },
    Headers { bytes: Vec<u8>, left: u32 },
    Contents(ContentsStep),
    Log(LogStep),
    Verify(VerifyStep),
    Recover(RecoverStep),
}

struct ContentsStep {
    headers: Vec<SlotHeader>,
    /// Next pair to be read.
    next: u32,
    loads: Vec<Load>,
}

struct Load {
    pair: u32,
    bytes: Vec<u8>,
    left: u32,
}

impl Store {
    pub(crate) fn open_start(&mut self) {
        if self.device_bytes < FRONT_BYTES {
            let (device_bytes, formatted_bytes) = (self.device_bytes, FRONT_BYTES);
            return self.fail(OpenError::DeviceTooSmall { device_bytes, formatted_bytes });
        }
        let found = [Err(SuperblockError::Damaged), Err(SuperblockError::Damaged)];
        self.opening = Some(Box::new(Opening { step: Step::Superblocks { left: 2, found } }));
        for (copy, offset) in [0, SUPERBLOCK_COPY].into_iter().enumerate() {
            self.open_read(OpenRead::Superblock(copy), offset, BLOCK);
        }
    }

    fn open_read(&mut self, read: OpenRead, offset: u64, len: u64) {
        self.request(Job::Open(read), DeviceOp::Read { offset, len: len as usize });
    }

    pub(crate) fn open_read_done(&mut self, read: OpenRead, result: Result<BufferMut, DeviceError>) {
        let Some(opening) = &mut self.opening else { return };
        match (read, &mut opening.step, result) {
            (OpenRead::Superblock(copy), Step::Superblocks { left, found }, result) => {
                *left -= 1;
                // One copy may be unreadable.
                found[copy] = result.map_err(|_| SuperblockError::Damaged).and_then(|b| Superblock::decode(&b));
                if *left == 0 {
                    let found = *found;
                    self.open_superblock(found);
                }
            }
            (OpenRead::Data { entry, extent }, Step::Verify(_), result) => self.verify_done(entry, extent, result),
            (_, _, Err(error)) => self.fail_io("opening the store", error),
            (OpenRead::Headers { from }, Step::Headers { bytes, left }, Ok(read)) => {
                bytes[from..from + read.len()].copy_from_slice(&read);
                *left -= 1;
                if *left == 0 {
                    let bytes = std::mem::take(bytes);
                    self.open_headers(&bytes);
                }
            }
            (OpenRead::Content { pair, from, len }, Step::Contents(step), Ok(read)) => {
                if let Some(at) = step.take_part(pair, from, len, &read) {
                    let load = step.loads.swap_remove(at);
                    self.open_content(load);
                }
            }
            (OpenRead::Log { seq }, Step::Log(_), Ok(read)) => self.log_chunk_done(seq, read),
            _ => self.fail(OpenError::Driver),
        }
    }

    fn open_superblock(&mut self, found: [Result<Superblock, SuperblockError>; 2]) {
        let superblock = match found {
            [Ok(first), _] => first,
            [_, Ok(second)] => second,
            [Err(SuperblockError::Damaged), Err(error)] | [Err(error), _] => return self.fail(error.into()),
        };
        let g = superblock.geometry;
        if self.device_bytes < g.device_bytes {
            let (device_bytes, formatted_bytes) = (self.device_bytes, g.device_bytes);
            return self.fail(OpenError::DeviceTooSmall { device_bytes, formatted_bytes });
        }
        self.superblock = Some(superblock);
        self.geometry = g;
        self.index = Index::new(g.partitions);
        self.requests = Requests::new(g.clients_max(), g.requests_max);
        let total = (2 * u64::from(g.slot_pairs()) * BLOCK) as usize;
        let chunk = (1 << 20).min(total);
        let left = total.div_ceil(chunk) as u32;
        self.open_enter(Step::Headers { bytes: vec![0; total], left });
        for from in (0..total).step_by(chunk) {
            let len = chunk.min(total - from) as u64;
            self.open_read(OpenRead::Headers { from }, g.slots_offset + from as u64, len);
        }
    }

    fn open_enter(&mut self, step: Step) {
        if let Some(opening) = &mut self.opening {
            opening.step = step;
        }
    }

    fn open_headers(&mut self, bytes: &[u8]) {
        let Some(superblock) = self.superblock else { return };
        let mut headers = Vec::new();
        for (pair, both) in bytes.chunks_exact(2 * BLOCK as usize).enumerate() {
            match newest_slot(both, &superblock, pair as u32) {
                Some(header) => headers.push(header),
                None => return self.fail(OpenError::Checkpoint(pair as u32)),
            }
        }
        self.open_enter(Step::Contents(ContentsStep { headers, next: 0, loads: Vec::new() }));
        self.open_next_contents();
    }

    /// Keeps several checkpoints loading; when all are loaded, goes on with the log.
    fn open_next_contents(&mut self) {
        loop {
            let Some(opening) = &mut self.opening else { return };
            let Step::Contents(step) = &mut opening.step else { return };
            if step.next as usize == step.headers.len() {
                if step.loads.is_empty() {
                    let headers = std::mem::take(&mut step.headers);
                    self.open_loaded(headers);
                }
                return;
            }
            if step.loads.len() as u32 == LOADS_MAX {
                return;
            }
            let header = &step.headers[step.next as usize];
            step.next += 1;
            if header.content_len == 0 {
                continue;
            }
            let pair = header.pair;
            let parts = parts_of(header, &self.geometry);
            let len = header.content_len.next_multiple_of(BLOCK) as usize;
            step.loads.push(Load { pair, bytes: vec![0; len], left: parts.len() as u32 });
            for (from, offset, len) in parts {
                self.open_read(OpenRead::Content { pair, from, len }, offset, len);
            }
        }
    }

    fn open_content(&mut self, load: Load) {
        let Some(opening) = &self.opening else { return };
        let Step::Contents(step) = &opening.step else { return };
        let header = &step.headers[load.pair as usize];
        let content = &load.bytes[..header.content_len as usize];
        let pair = load.pair;
        let is_intact = crc32c(content) == header.content_crc;
        if !is_intact || self.load_content(pair, content).is_err() {
            return self.fail(OpenError::Checkpoint(pair));
        }
        self.open_next_contents();
    }

    fn load_content(&mut self, pair: u32, content: &[u8]) -> Result<(), Senseless> {
        let mut reader = ContentReader::new(content).ok_or(Senseless)?;
        if pair < self.geometry.partitions {
            self.index.reserve(pair, reader.objects_left());
            while let Some(object) = reader.object()? {
                self.index.load(pair, &object, self.geometry.data_sectors)?;
            }
            while let Some(undo) = reader.undo()? {
                self.index.load_undo(pair, &undo, self.geometry.data_sectors)?;
            }
            return Ok(());
        }
        while let Some(client) = reader.client()? {
            self.requests.load_client(client);
        }
        while let Some(request) = reader.request()? {
            self.requests.load_request(request);
        }
        Ok(())
    }

    fn open_loaded(&mut self, headers: Vec<SlotHeader>) {
        let Some(checkpoints) = Checkpoints::load(&self.geometry, headers.clone()) else {
            return self.fail(OpenError::Segments);
        };
        self.checkpoints = checkpoints;
        self.state = StoreState::Replaying;
        self.replay_start(&headers);
    }
}

impl ContentsStep {
    /// Takes a part in; returns the place of the load that it completes.
    fn take_part(&mut self, pair: u32, from: u64, len: u64, read: &[u8]) -> Option<usize> {
        let at = self.loads.iter().position(|l| l.pair == pair)?;
        let load = &mut self.loads[at];
        if read.len() as u64 == len {
            load.bytes[from as usize..(from + len) as usize].copy_from_slice(read);
        }
        load.left -= 1;
        (load.left == 0).then_some(at)
    }
}

/// The newer of the usable headers of a pair.
pub(crate) fn newest_slot(both: &[u8], superblock: &Superblock, pair: u32) -> Option<SlotHeader> {
    let segments = superblock.geometry.segment_count;
    let slots = both.chunks_exact(BLOCK as usize).enumerate();
    slots
        .filter_map(|(slot, block)| {
            SlotHeader::decode(block, &superblock.store, pair, slot as u64, superblock.geometry.segment_bytes)
        })
        .filter(|h| h.segments.iter().all(|&s| s < segments))
        .max_by_key(|h| h.serial)
}

/// How content is read: (offset in the content, offset on the device, length), neighbouring segments together.
pub(crate) fn parts_of(header: &SlotHeader, g: &crate::geometry::Geometry) -> Vec<(u64, u64, u64)> {
    let segment_bytes = u64::from(g.segment_bytes);
    let total = header.content_len.next_multiple_of(BLOCK);
    let mut parts: Vec<(u64, u64, u64)> = Vec::new();
    for (at, &segment) in header.segments.iter().enumerate() {
        let from = at as u64 * segment_bytes;
        if from >= total {
            break;
        }
        let (offset, len) = (g.segment_offset(segment), segment_bytes.min(total - from));
        match parts.last_mut() {
            Some(last) if last.1 + last.2 == offset && last.2 + len <= LOAD_BYTES_MAX => last.2 += len,
            _ => parts.push((from, offset, len)),
        }
    }
    parts
}
