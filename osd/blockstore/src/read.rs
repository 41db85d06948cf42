//! Reads: an object's sectors are looked up in the index, read run by run and verified before anything is handed out.
//!
//! Previous hop: `osd/core/src/read.rs`. Next hop: the device, through the driver.

use std::collections::VecDeque;

use buffer::BufferMut;
use cluster_proto::crc::{Crcs, ZERO_SECTOR_CRC, crc32c};
use cluster_proto::ids::{ObjectId, Version};
use cluster_proto::limits::{BLOCK_SIZE_MAX, PATCH_RANGES_MAX};
use cluster_proto::planes::{planes, remainder};
use cluster_proto::shard::{ObjectContent, ShardOutcome, Sums, Unreadable};
use cluster_proto::{SECTOR, SectorRange, Status};
use smallvec::SmallVec;

use crate::device::{DeviceError, DeviceOp, Slab};
use crate::extent::{Extent, Run};
use crate::format::log::{WHOLE, are_ranges_valid};
use crate::store::{Job, Store};

/// One device read: sectors of the object that lie together on the device and in the result.
struct Piece {
    sectors: SectorRange,
    run: Run,
    /// First sector of the result.
    at: usize,
}

/// What a read is for.
enum Wanted {
    Sectors,
    /// The content to complete with the data.
    Object(ObjectContent),
    /// Only whether the data is intact, and its sums: it is let go as soon as it is verified.
    Sums(Summed),
}

/// What a verified object is summed up to.
struct Summed {
    kind: Sums,
    extents: Vec<SectorRange>,
    /// By sector, in the order of the checksums.
    sums: Vec<u32>,
}

impl Summed {
    /// Takes sectors in, the first of which is `at`, with their stored checksums: if they do not match, nothing is told.
    fn add(&mut self, at: usize, bytes: &[u8], crcs: &[u32]) {
        let per = self.kind.per_sector();
        if per == 0 {
            return;
        }
        let sectors = bytes.chunks_exact(SECTOR).zip(crcs);
        for (sums, (sector, crc)) in self.sums[at * per..].chunks_exact_mut(per).zip(sectors) {
            match self.kind {
                Sums::None => {}
                Sums::Whole => sums[0] = remainder(*crc),
                Sums::Planes => sums.copy_from_slice(&planes(sector)),
            }
        }
    }
}

struct ReadOp {
    tag: u64,
    number: u64,
    version: Version,
    wanted: Wanted,
    data: BufferMut,
    crcs: Crcs,
    pieces: SmallVec<[Piece; 2]>,
    left: usize,
    bad: SmallVec<[SectorRange; 2]>,
}

/// Reads in progress.
pub(crate) struct Reads {
    ops: Slab<ReadOp>,
    /// For reads from `oldest` on: whether they have ended. Reads are numbered so that freed sectors can wait for them.
    ended: VecDeque<bool>,
    oldest: u64,
}

impl Reads {
    pub fn new() -> Reads {
        Reads { ops: Slab::new(), ended: VecDeque::new(), oldest: 0 }
    }

    /// Number the next read gets.
    pub fn next_number(&self) -> u64 {
        self.oldest + self.ended.len() as u64
    }

    /// Number of the oldest read in progress; if there is none, of the next.
    pub fn oldest_number(&self) -> u64 {
        self.oldest
    }

    fn end(&mut self, number: u64) {
        self.ended[(number - self.oldest) as usize] = true;
        while self.ended.front() == Some(&true) {
            self.ended.pop_front();
            self.oldest += 1;
        }
    }

    pub fn drain_tags(&mut self) -> Vec<u64> {
        self.oldest = self.next_number();
        self.ended.clear();
        self.ops.drain().into_iter().map(|op| op.tag).collect()
    }
}

/// Collects what a read must fetch.
#[derive(Default)]
struct Plan {
    pieces: SmallVec<[Piece; 2]>,
}

impl Plan {
    fn add(&mut self, extent: Extent, at: usize) {
        let (sectors, run) = (extent.sectors(), extent.run());
        if let Some(last) = self.pieces.last_mut() {
            let is_neighbour = last.run.end() == run.start && last.sectors.end() == sectors.start;
            if is_neighbour && last.at + last.sectors.count as usize == at {
                last.sectors.count += sectors.count;
                last.run.count += run.count;
                return;
            }
        }
        self.pieces.push(Piece { sectors, run, at });
    }
}

impl Store {
    /// Begins reading sectors.
    pub(crate) fn read_start(&mut self, tag: u64, object: ObjectId, sectors: SectorRange) {
        if !sectors.is_valid(BLOCK_SIZE_MAX) {
            return self.finish(tag, ShardOutcome::Failed(Status::Invalid));
        }
        let mut crcs = Crcs::from_elem(ZERO_SECTOR_CRC, sectors.count as usize);
        let mut plan = Plan::default();
        let mut version = Version::NONE;
        if let Some(view) = self.index.object(&object) {
            version = view.version;
            for (extent, part) in view.parts(sectors) {
                let at = (extent.sectors().start - sectors.start) as usize;
                crcs[at..at + part.len()].copy_from_slice(part);
                plan.add(extent, at);
            }
        }
        self.read_plan(tag, version, Wanted::Sectors, crcs, plan);
    }

    /// Begins reading what of an object lies in some ranges, with its head and its remembered requests.
    pub(crate) fn fetch_start(&mut self, tag: u64, object: ObjectId, ranges: &[SectorRange]) {
        if ranges.len() > PATCH_RANGES_MAX || !are_ranges_valid(ranges) {
            return self.finish(tag, ShardOutcome::Failed(Status::Invalid));
        }
        let mut content = ObjectContent { requests: self.requests.of_object(&object), ..ObjectContent::default() };
        let mut plan = Plan::default();
        let mut crcs = Crcs::new();
        let mut version = Version::NONE;
        if let Some(view) = self.index.object(&object) {
            version = view.version;
            content.deleted = view.deleted;
            for (extent, part) in ranges.iter().flat_map(|range| view.parts(*range)) {
                plan.add(extent, crcs.len());
                crcs.extend_from_slice(part);
                join(&mut content.extents, extent.sectors());
            }
        }
        self.read_plan(tag, version, Wanted::Object(content), crcs, plan);
    }

    /// Begins reading everything stored of an object, to see whether it is intact, and for its sums.
    pub(crate) fn verify_start(&mut self, tag: u64, object: ObjectId, kind: Sums) {
        let mut plan = Plan::default();
        let mut crcs = Crcs::new();
        let mut extents = Vec::new();
        let mut version = Version::NONE;
        if let Some(view) = self.index.object(&object) {
            version = view.version;
            for (extent, part) in view.parts(WHOLE) {
                plan.add(extent, crcs.len());
                crcs.extend_from_slice(part);
                join(&mut extents, extent.sectors());
            }
        }
        let sums = vec![0; crcs.len() * kind.per_sector()];
        self.read_plan(tag, version, Wanted::Sums(Summed { kind, extents, sums }), crcs, plan);
    }

    fn read_plan(&mut self, tag: u64, version: Version, wanted: Wanted, crcs: Crcs, plan: Plan) {
        let len = crcs.len() * SECTOR;
        let read: usize = plan.pieces.iter().map(|p| p.run.count as usize * SECTOR).sum();
        // Everything in one piece: the device's buffer becomes the result. Otherwise pieces are gathered.
        let data = match plan.pieces.len() {
            _ if matches!(wanted, Wanted::Sums(_)) => BufferMut::for_overwrite(0),
            1 if read == len => BufferMut::for_overwrite(0),
            _ if read == len => BufferMut::for_overwrite(len),
            _ => BufferMut::zeroed(len),
        };
        let number = self.reads.next_number();
        let left = plan.pieces.len();
        let op = ReadOp { tag, number, version, wanted, data, crcs, pieces: plan.pieces, left, bad: SmallVec::new() };
        if left == 0 {
            let outcome = outcome_of(op);
            return self.finish(tag, outcome);
        }
        self.reads.ended.push_back(false);
        let runs: SmallVec<[Run; 2]> = op.pieces.iter().map(|p| p.run).collect();
        let read = self.reads.ops.insert(op);
        for (piece, run) in runs.into_iter().enumerate() {
            self.read_piece(read, piece, run);
        }
    }

    /// A device read has ended.
    pub(crate) fn read_piece_done(&mut self, read: u64, piece: usize, result: Result<BufferMut, DeviceError>) {
        let Some(op) = self.reads.ops.get_mut(read) else { return };
        let &Piece { sectors, at, .. } = &op.pieces[piece];
        let len = sectors.bytes();
        match result {
            Ok(bytes) if bytes.len() == len => {
                let expected = &op.crcs[at..at + sectors.count as usize];
                let before = op.bad.len();
                verify(&bytes, expected, sectors, &mut op.bad);
                self.counters.crc_errors += op.bad[before..].iter().map(|b| u64::from(b.count)).sum::<u64>();
                if let Wanted::Sums(summed) = &mut op.wanted {
                    summed.add(at, &bytes, expected);
                } else if op.data.is_empty() {
                    op.data = bytes;
                } else {
                    op.data[at * SECTOR..at * SECTOR + len].copy_from_slice(&bytes);
                }
            }
            // One sector that cannot be read fails the whole: which is it?
            _ if sectors.count > 1 => {
                self.counters.io_errors += 1;
                return self.read_in_halves(read, piece);
            }
            // What cannot be read is damaged too: another copy will replace it.
            _ => {
                self.counters.io_errors += 1;
                op.bad.push(sectors);
            }
        }
        op.left -= 1;
        if op.left == 0 {
            self.read_finish(read);
        }
    }

    /// Reads a piece that could not be read as two.
    fn read_in_halves(&mut self, read: u64, piece: usize) {
        let Some(op) = self.reads.ops.get_mut(read) else { return };
        if op.data.is_empty() && !matches!(op.wanted, Wanted::Sums(_)) {
            op.data = BufferMut::zeroed(op.crcs.len() * SECTOR);
        }
        let whole = &mut op.pieces[piece];
        let half = whole.sectors.count / 2;
        let second = Piece {
            sectors: SectorRange::new(whole.sectors.start + half, whole.sectors.count - half),
            run: Run { start: whole.run.start + u64::from(half), count: whole.run.count - half },
            at: whole.at + half as usize,
        };
        (whole.sectors.count, whole.run.count) = (half, half);
        let runs = [(piece, whole.run), (op.pieces.len(), second.run)];
        op.pieces.push(second);
        op.left += 1;
        runs.into_iter().for_each(|(piece, run)| self.read_piece(read, piece, run));
    }

    fn read_piece(&mut self, read: u64, piece: usize, run: Run) {
        let len = run.count as usize * SECTOR;
        self.counters.reads += 1;
        self.counters.read_bytes += len as u64;
        let op = DeviceOp::Read { offset: self.geometry.sector_offset(run.start), len };
        self.request(Job::Read { read, piece }, op);
    }

    fn read_finish(&mut self, read: u64) {
        let Some(op) = self.reads.ops.remove(read) else { return };
        self.reads.end(op.number);
        let tag = op.tag;
        self.finish(tag, outcome_of(op));
    }
}

/// Adds a range behind the others, or to the last of them.
fn join(ranges: &mut Vec<SectorRange>, next: SectorRange) {
    match ranges.last_mut() {
        Some(last) if last.end() == next.start => last.count += next.count,
        _ => ranges.push(next),
    }
}

/// Adds the runs of sectors that do not match their checksums.
fn verify(bytes: &[u8], crcs: &[u32], sectors: SectorRange, bad: &mut SmallVec<[SectorRange; 2]>) {
    let is_fresh = bad.len();
    for (i, (sector, &crc)) in bytes.chunks_exact(SECTOR).zip(crcs).enumerate() {
        if crc32c(sector) == crc {
            continue;
        }
        let at = sectors.start + i as u32;
        match bad[is_fresh..].last_mut() {
            Some(last) if last.end() == at => last.count += 1,
            _ => bad.push(SectorRange::new(at, 1)),
        }
    }
}

/// The checksums of sectors that lie in one of the pieces.
fn stored_crcs<'a>(pieces: &[Piece], crcs: &'a [u32], sectors: SectorRange) -> &'a [u32] {
    let Some(piece) = pieces.iter().find(|piece| piece.sectors.contains(sectors)) else { return &[] };
    let at = piece.at + (sectors.start - piece.sectors.start) as usize;
    &crcs[at..at + sectors.count as usize]
}

/// Takes what could not be read out of a result, and tells what it was.
fn take_unreadable(op: &mut ReadOp) -> Vec<Unreadable> {
    if op.bad.is_empty() {
        return Vec::new();
    }
    let len = op.crcs.len() * SECTOR;
    if op.data.len() < len {
        op.data = BufferMut::zeroed(len);
    }
    op.bad.sort_unstable();
    let mut unreadable = Vec::new();
    for sector in op.bad.iter().flat_map(|bad| bad.iter()) {
        let Some(piece) = op.pieces.iter().find(|piece| piece.sectors.contains(SectorRange::new(sector, 1))) else {
            continue;
        };
        let at = piece.at + (sector - piece.sectors.start) as usize;
        op.data[at * SECTOR..(at + 1) * SECTOR].fill(0);
        let crc = std::mem::replace(&mut op.crcs[at], ZERO_SECTOR_CRC);
        unreadable.push(Unreadable { sector, crc });
    }
    unreadable
}

fn outcome_of(mut op: ReadOp) -> ShardOutcome {
    if let Wanted::Object(content) = &mut op.wanted {
        let content = std::mem::take(content);
        let unreadable = take_unreadable(&mut op);
        let content = ObjectContent { data: op.data.freeze(), crcs: op.crcs, unreadable, ..content };
        return ShardOutcome::Fetched { version: op.version, content: Box::new(content) };
    }
    if !op.bad.is_empty() {
        let mut sectors = op.bad;
        sectors.sort_unstable();
        let crcs = sectors.iter().flat_map(|bad| stored_crcs(&op.pieces, &op.crcs, *bad)).copied().collect();
        return ShardOutcome::Corrupt { version: op.version, sectors, crcs };
    }
    match op.wanted {
        Wanted::Sums(Summed { kind, extents, sums }) if kind != Sums::None => {
            ShardOutcome::Verified { version: op.version, extents, kind, sums }
        }
        Wanted::Sums(_) => ShardOutcome::Done,
        _ => ShardOutcome::Read { version: op.version, data: op.data.freeze(), crcs: op.crcs },
    }
}
