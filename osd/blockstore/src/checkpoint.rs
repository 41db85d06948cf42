//! Writing checkpoints: one partition at a time, in the background, so that the log can be trimmed.
//!
//! Content goes to free segments, then (after a flush) the header to the older slot, then (after a flush) the segments of
//! the previous content are free. The log is trimmed to the oldest block that any partition's newest header asks for.
//!
//! Pace: writing data earns credit, a twelfth of its bytes; a checkpoint begins when the credit covers it and the log is
//! worth trimming, or regardless of credit when the log is getting full. So checkpoints cost what they cost evenly.

use buffer::BufferMut;

use crate::allocator::Allocator;
use crate::device::{DeviceError, DeviceOp, Pieces};
use crate::extent::Run;
use crate::format::checkpoint::SlotHeader;
use crate::format::log::Lsn;
use crate::geometry::{BLOCK, Geometry};
use crate::store::{Job, Store, StoreState};

/// Bytes of data that earn one byte of checkpoint.
const DATA_PER_CHECKPOINT: u64 = 12;
/// Bytes written at once.
const CHUNK_BYTES_MAX: u64 = 512 << 10;
/// Tries of one write.
const ATTEMPTS_MAX: u32 = 3;
/// A log shorter than this is not trimmed for its own sake. Blocks.
const LOG_WORTH_TRIMMING: u64 = 4096;

/// What the newest slot of a pair holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct PairState {
    pub header: Option<SlotHeader>,
    /// Bytes accounted for its present content in memory.
    memory: u64,
}

impl PairState {
    fn replay_seq(&self) -> u64 {
        self.header.as_ref().map_or(0, |h| h.replay_seq)
    }

    fn disk(&self) -> u64 {
        self.header.as_ref().map_or(0, |h| h.content_len)
    }

    fn accounted(&self) -> u64 {
        self.memory.max(self.disk())
    }
}

enum Stage {
    Content { next: u64 },
    ContentFlush { ticket: u64 },
    Header,
    HeaderFlush { ticket: u64 },
}

struct CheckpointJob {
    header: SlotHeader,
    content: buffer::Buffer,
    stage: Stage,
}

/// A device write of a checkpoint.
pub(crate) struct CheckpointIo {
    /// Bytes of content from `from` on; `None` for the header.
    content: Option<(u64, u64)>,
    attempts: u32,
}

/// Checkpoints of all partitions.
#[derive(Default)]
pub(crate) struct Checkpoints {
    pairs: Vec<PairState>,
    segments: Option<Allocator>,
    accounted: u64,
    job: Option<CheckpointJob>,
    credit: u64,
    /// The pair whose checkpoint is oldest.
    oldest: u32,
}

impl Checkpoints {
    /// Takes over what opening found. `None` if two checkpoints claim one segment.
    pub fn load(g: &Geometry, headers: Vec<SlotHeader>) -> Option<Checkpoints> {
        let mut segments = Allocator::new(g.segment_count.into());
        let claims = headers.iter().flat_map(|h| &h.segments);
        if !claims.into_iter().all(|&s| segments.take(Run { start: s.into(), count: 1 })) {
            return None;
        }
        let mut own = Checkpoints { segments: Some(segments), ..Checkpoints::default() };
        own.pairs = headers.into_iter().map(|h| PairState { header: Some(h), memory: 0 }).collect();
        own.accounted = own.pairs.iter().map(PairState::accounted).sum();
        own.set_accounted(g.partitions, g.requests_bytes_max());
        own.find_oldest();
        Some(own)
    }

    /// Notes how large a pair's checkpoint would be now, at worst.
    pub fn set_accounted(&mut self, pair: u32, bytes: u64) {
        let Some(own) = self.pairs.get_mut(pair as usize) else { return };
        self.accounted -= own.accounted();
        own.memory = bytes;
        self.accounted += own.accounted();
    }

    /// Sum over all pairs of the larger of its checkpoint on disk and in memory. Bytes.
    pub fn accounted(&self) -> u64 {
        self.accounted
    }

    /// Whether no pair has more on disk than it would need now.
    pub fn is_compact(&self) -> bool {
        self.job.is_none() && self.pairs.iter().all(|p| p.disk() <= p.memory)
    }

    /// Data was written.
    pub fn earn(&mut self, bytes: u64) {
        self.credit += bytes / DATA_PER_CHECKPOINT;
    }

    /// Oldest log block that a checkpoint on the device needs.
    pub fn replay_seq(&self) -> u64 {
        self.pairs.iter().map(PairState::replay_seq).min().unwrap_or(0)
    }

    /// Newest headers of all pairs.
    pub fn headers(&self) -> impl Iterator<Item = &SlotHeader> {
        self.pairs.iter().filter_map(|p| p.header.as_ref())
    }

    fn find_oldest(&mut self) {
        let oldest = self.pairs.iter().enumerate().min_by_key(|(_, p)| p.replay_seq());
        self.oldest = oldest.map_or(0, |(at, _)| at as u32);
    }

    /// The pair that has shrunk most since its checkpoint.
    fn most_shrunken(&self) -> Option<u32> {
        let shrunken = self.pairs.iter().enumerate().filter(|(_, p)| p.disk() > p.memory);
        shrunken.max_by_key(|(_, p)| p.disk() - p.memory).map(|(at, _)| at as u32)
    }
}

impl Store {
    /// Begins the next checkpoint if one is due, and moves the present one on.
    pub(crate) fn checkpoint_pump(&mut self) {
        if !matches!(self.state, StoreState::Running | StoreState::Replaying) {
            return;
        }
        if self.checkpoints.job.is_none()
            && let Some(pair) = self.checkpoint_due()
        {
            self.checkpoint_start(pair);
        }
        self.checkpoint_flushed();
    }

    fn checkpoint_due(&self) -> Option<u32> {
        let c = &self.checkpoints;
        let used = self.log.used();
        if self.state == StoreState::Replaying {
            return self.is_log_tight().then_some(c.oldest);
        }
        if self.waiting == Some(crate::reserve::Wait::Metadata) {
            return c.most_shrunken();
        }
        let oldest = c.pairs.get(c.oldest as usize)?;
        if oldest.replay_seq() >= self.commit.replay_seq(self.log.next_seq()) {
            return None;
        }
        let usable = self.log.capacity() - self.log.reserve();
        let is_forced = used > usable / 4 * 3 || self.waiting == Some(crate::reserve::Wait::Log);
        let is_paid = c.credit >= oldest.memory + 2 * BLOCK && used > (usable / 4).min(LOG_WORTH_TRIMMING);
        (is_forced || is_paid).then_some(c.oldest)
    }

    /// Whether a recovery must make room in the log before it may add to it.
    pub(crate) fn is_log_tight(&self) -> bool {
        self.log.free() <= self.log.reserve() / 2
            && self.checkpoints.replay_seq() < self.commit.replay_seq(self.log.next_seq())
    }

    fn checkpoint_start(&mut self, pair: u32) {
        let is_objects = pair < self.geometry.partitions;
        let content = if is_objects { self.index.encode(pair) } else { self.requests.encode() };
        let count = (content.len() as u64).div_ceil(self.geometry.segment_bytes.into()) as u32;
        let serial = self.checkpoints.pairs[pair as usize].header.as_ref().map_or(0, |h| h.serial + 1);
        let Some(segments) = self.allocate_segments(count) else {
            debug_assert!(false, "admission keeps room for every checkpoint");
            return self.fail(crate::open::OpenError::CheckpointArea);
        };
        let header = SlotHeader {
            pair,
            serial,
            // The content's flush makes it durable before the header is written.
            lsn: self.commit.executed,
            replay_seq: self.commit.replay_seq(self.log.next_seq()),
            generation: self.log.generation(),
            content_len: content.len() as u64,
            content_crc: cluster_proto::crc::crc32c(&content),
            segments,
        };
        let mut padded = BufferMut::for_overwrite(content.len().next_multiple_of(BLOCK as usize));
        padded[..content.len()].copy_from_slice(&content);
        padded[content.len()..].fill(0);
        let stage = Stage::Content { next: 0 };
        self.checkpoints.credit = self.checkpoints.credit.saturating_sub(padded.len() as u64 + BLOCK);
        self.checkpoints.job = Some(CheckpointJob { header, content: padded.freeze(), stage });
        self.checkpoint_next();
    }

    fn allocate_segments(&mut self, count: u32) -> Option<Vec<u32>> {
        if count == 0 {
            return Some(Vec::new());
        }
        let runs = self.checkpoints.segments.as_mut()?.allocate(count)?;
        Some(runs.iter().flat_map(|r| r.start..r.end()).map(|s| s as u32).collect())
    }

    /// Issues the next write of the present checkpoint.
    fn checkpoint_next(&mut self) {
        let Some(job) = &mut self.checkpoints.job else { return };
        if let Stage::Content { next } = job.stage {
            if next < job.content.len() as u64 {
                let len = chunk_len(&self.geometry, &job.header.segments, next).min(job.content.len() as u64 - next);
                return self.checkpoint_write(CheckpointIo { content: Some((next, len)), attempts: 1 });
            }
            job.stage = Stage::ContentFlush { ticket: self.flushes.ticket() };
            self.checkpoint_flushed();
        }
    }

    fn checkpoint_write(&mut self, io: CheckpointIo) {
        let Some(job) = &self.checkpoints.job else { return };
        let (offset, data) = match io.content {
            Some((from, len)) => {
                let segment_bytes = u64::from(self.geometry.segment_bytes);
                let segment = job.header.segments[(from / segment_bytes) as usize];
                let data = job.content.slice(from as usize..(from + len) as usize);
                (self.geometry.segment_offset(segment) + from % segment_bytes, data)
            }
            None => {
                let Some(superblock) = &self.superblock else { return };
                let block = job.header.encode(&superblock.store);
                (self.geometry.slot_offset(job.header.pair, job.header.serial % 2), buffer::Buffer::copy_of(&block))
            }
        };
        self.counters.checkpoint_bytes_written += data.len() as u64;
        let data = Pieces::from_iter([data]);
        self.request(Job::Checkpoint(io), DeviceOp::Write { offset, data });
    }

    pub(crate) fn checkpoint_written(&mut self, io: CheckpointIo, result: Result<(), DeviceError>) {
        if let Err(error) = result {
            self.counters.io_errors += 1;
            if io.attempts >= ATTEMPTS_MAX {
                return self.fail_io("writing a checkpoint", error);
            }
            return self.checkpoint_write(CheckpointIo { attempts: io.attempts + 1, ..io });
        }
        let Some(job) = &mut self.checkpoints.job else { return };
        job.stage = match io.content {
            Some((from, len)) => Stage::Content { next: from + len },
            None => Stage::HeaderFlush { ticket: self.flushes.ticket() },
        };
        self.checkpoint_next();
    }

    /// Goes on where a flush was waited for.
    fn checkpoint_flushed(&mut self) {
        let Some(job) = &mut self.checkpoints.job else { return };
        match job.stage {
            Stage::ContentFlush { ticket } if self.flushes.is_done(ticket) => {
                job.stage = Stage::Header;
                self.checkpoint_write(CheckpointIo { content: None, attempts: 1 });
            }
            Stage::HeaderFlush { ticket } if self.flushes.is_done(ticket) => self.checkpoint_finish(),
            _ => {}
        }
    }

    fn checkpoint_finish(&mut self) {
        let c = &mut self.checkpoints;
        let Some(job) = c.job.take() else { return };
        let pair = &mut c.pairs[job.header.pair as usize];
        c.accounted -= pair.accounted();
        let old = pair.header.replace(job.header);
        c.accounted += pair.accounted();
        if let (Some(old), Some(segments)) = (old, &mut c.segments) {
            old.segments.iter().for_each(|&s| segments.release(Run { start: s.into(), count: 1 }));
        }
        c.find_oldest();
        self.log.trim(self.checkpoints.replay_seq());
        self.counters.checkpoints += 1;
        self.pump_queue();
        self.checkpoint_pump();
    }

    /// Whether a checkpoint is being written.
    pub(crate) fn checkpoint_is_busy(&self) -> bool {
        self.checkpoints.job.is_some()
    }

    /// LSN of the newest checkpoint of a pair.
    pub(crate) fn checkpoint_lsn(&self, pair: u32) -> Lsn {
        self.checkpoints.pairs.get(pair as usize).and_then(|p| p.header.as_ref()).map_or(Lsn(0), |h| h.lsn)
    }
}

/// Bytes from `from` on that lie in neighbouring segments and make one write.
fn chunk_len(g: &Geometry, segments: &[u32], from: u64) -> u64 {
    let segment_bytes = u64::from(g.segment_bytes);
    let first = (from / segment_bytes) as usize;
    let neighbours = segments[first..].windows(2).take_while(|w| w[1] == w[0] + 1).count() as u64;
    ((neighbours + 1) * segment_bytes - from % segment_bytes).min(CHUNK_BYTES_MAX)
}
