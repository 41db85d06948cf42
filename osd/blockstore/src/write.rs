//! Mutations with data: Write, Stage, Repair, Restore and Patch.
//!
//! Previous hop: `osd/core/src/write.rs` gives the op to every member of the acting set; the driver (`osd/src`) hands a
//! member's own share to [`crate::Store::submit`], and it begins here as soon as `reserve` has room for it.
//! Next hop: the device, through the driver: the data write and the log block go out in parallel ([`crate::Store::poll_device`]);
//! when both are done `commit` executes the change on the index and reports it.

use buffer::{Buffer, BufferMut};
use cluster_proto::crc::Crcs;
use cluster_proto::ids::{ObjectId, Version};
use cluster_proto::limits::{BLOCK_SIZE_MAX, PATCH_RANGES_MAX};
use cluster_proto::shard::{ObjectContent, Origin, ShardOp, Unreadable};
use cluster_proto::{SECTOR, SectorRange, Status};
use smallvec::SmallVec;

use crate::commit::{Newest, Pending};
use crate::device::{DeviceError, DeviceOp, Pieces};
use crate::extent::{Extent, Extents, Run};
use crate::format::log::{Change, Kind, Lsn, REQUESTS_PER_RESTORE_MAX, WHOLE, are_ranges_valid, covers};
use crate::format::mark::{Place, stored_crc};
use crate::reserve::{Need, Refusal};
use crate::store::{Job, Store};

/// Bytes that are joined into one device write.
const DATA_WRITE_BYTES_MAX: usize = 1 << 20;
/// Pieces of one device write.
const DATA_WRITE_PIECES_MAX: usize = 64;

/// Data on its way to the device, not yet handed over.
pub(crate) struct Outgoing {
    pub lsn: Lsn,
    pub run: Run,
    pub data: Buffer,
}

/// A device write of data: which entries' runs it carries.
pub(crate) struct DataWrite {
    parts: SmallVec<[(Lsn, Run); 4]>,
}

/// Floors and sequence numbers that a log entry can hold.
pub(crate) fn check_origin(origin: &Origin) -> Result<(), Refusal> {
    let distance = origin.seq.checked_sub(origin.floor);
    if distance.is_some_and(|d| d <= u64::from(u16::MAX)) { Ok(()) } else { Err(Refusal::Fail(Status::Invalid)) }
}

/// The data of a change, before it has a place.
struct Payload<'a> {
    sectors: SmallVec<[SectorRange; 1]>,
    data: &'a Buffer,
    crcs: &'a [u32],
    /// Those of the sectors that get a mark instead of data.
    unreadable: &'a [Unreadable],
    is_lazy: bool,
}

impl Payload<'_> {
    fn sector_count(&self) -> u32 {
        self.sectors.iter().map(|s| s.count).sum()
    }

    /// Whether the ranges ascend and data and checksums fit them.
    fn is_valid(&self) -> bool {
        are_ranges_valid(&self.sectors)
            && self.crcs.len() == self.sector_count() as usize
            && self.data.len() == self.crcs.len() * SECTOR
            && (self.unreadable.is_empty() || self.unreadable_at().count() == self.unreadable.len())
    }

    /// Sectors to be marked, by their place in the data. Of those that are not in order not all.
    fn unreadable_at(&self) -> impl Iterator<Item = (usize, Unreadable)> {
        let mut rest = self.unreadable.iter().copied().peekable();
        let sectors = self.sectors.iter().flat_map(|range| range.iter()).enumerate();
        sectors.filter_map(move |(at, sector)| Some((at, rest.next_if(|u| u.sector == sector)?)))
    }

    /// Data and checksums as they are stored.
    fn stored(&self, place: &Place<'_>) -> (Buffer, Crcs) {
        let mut crcs = Crcs::from_slice(self.crcs);
        if self.unreadable.is_empty() {
            let data = if self.data.is_page_aligned() { self.data.clone() } else { Buffer::copy_of(self.data) };
            return (data, crcs);
        }
        let mut data = BufferMut::copy_of(self.data);
        for (at, unreadable) in self.unreadable_at() {
            let mark = place.mark(unreadable.sector);
            data[at * SECTOR..(at + 1) * SECTOR].copy_from_slice(&mark);
            crcs[at] = stored_crc(unreadable.crc, &mark);
        }
        (data.freeze(), crcs)
    }
}

impl<'a> Payload<'a> {
    fn of(content: &'a ObjectContent) -> Payload<'a> {
        let sectors = SmallVec::from_slice(&content.extents);
        let unreadable = &content.unreadable;
        Payload { sectors, data: &content.data, crcs: &content.crcs, unreadable, is_lazy: false }
    }

    fn of_range(sectors: &SectorRange, data: &'a Buffer, crcs: &'a [u32]) -> Payload<'a> {
        Payload { sectors: SmallVec::from_slice(&[*sectors]), data, crcs, unreadable: &[], is_lazy: false }
    }
}

impl Store {
    /// Begins a mutation with data.
    pub(crate) fn write_start(&mut self, tag: u64, op: &ShardOp) -> Result<(), Refusal> {
        match op {
            ShardOp::Write { object, version, sectors, data, crcs, origin, lazy } => {
                check_origin(origin)?;
                let change = Change::new(Kind::Write, *object, *version, *origin, *sectors);
                let payload = Payload { is_lazy: *lazy, ..Payload::of_range(sectors, data, crcs) };
                self.write_payload(tag, change, &payload)
            }
            ShardOp::Stage { object, version, sectors, data, crcs, origin, rows: _ } => {
                check_origin(origin)?;
                // No sectors: only the version changes.
                let sectors = if sectors.count == 0 { SectorRange::new(0, 0) } else { *sectors };
                if sectors.count > 0 && !sectors.is_valid(BLOCK_SIZE_MAX) {
                    return Err(Refusal::Fail(Status::Invalid));
                }
                // No data: they read as zeroes afterwards.
                let ranges = if data.is_empty() { SmallVec::new() } else { SmallVec::from_slice(&[sectors]) };
                let change = Change::new(Kind::Stage, *object, *version, *origin, sectors);
                self.write_payload(
                    tag,
                    change,
                    &Payload { sectors: ranges, data, crcs, unreadable: &[], is_lazy: false },
                )
            }
            ShardOp::Patch { object, base, version, sectors, content } => {
                self.patch_start(tag, *object, (*base, *version), sectors, content)
            }
            ShardOp::Repair { object, version, sectors, data, crcs } => {
                let change = Change::new(Kind::Repair, *object, *version, Origin::NONE, *sectors);
                self.write_payload(tag, change, &Payload::of_range(sectors, data, crcs))
            }
            ShardOp::Restore { object, version, content } => self.restore_start(tag, *object, *version, content),
            _ => Err(Refusal::Fail(Status::Invalid)),
        }
    }

    fn restore_start(
        &mut self,
        tag: u64,
        object: ObjectId,
        version: Version,
        c: &ObjectContent,
    ) -> Result<(), Refusal> {
        if c.requests.len() > REQUESTS_PER_RESTORE_MAX || c.deleted && !c.extents.is_empty() {
            return Err(Refusal::Fail(Status::Invalid));
        }
        let kind = if c.deleted { Kind::RestoreDeleted } else { Kind::Restore };
        let mut change = Change::new(kind, object, version, Origin::NONE, WHOLE);
        change.requests.extend(c.requests.iter());
        self.write_payload(tag, change, &Payload::of(c))
    }

    /// Begins a Patch. That it fits the object is certain when it begins, so replay need not ask again.
    fn patch_start(
        &mut self,
        tag: u64,
        object: ObjectId,
        (base, version): (Version, Version),
        sectors: &[SectorRange],
        c: &ObjectContent,
    ) -> Result<(), Refusal> {
        let fits = sectors.len() <= PATCH_RANGES_MAX && are_ranges_valid(sectors);
        let is_inside = c.extents.iter().all(|e| e.is_valid(BLOCK_SIZE_MAX) && covers(sectors, *e));
        if !fits || !is_inside || c.deleted || c.requests.len() > REQUESTS_PER_RESTORE_MAX || version <= base {
            return Err(Refusal::Fail(Status::Invalid));
        }
        if self.settled(&object)?.version != base {
            return Err(Refusal::Fail(Status::Retry));
        }
        let mut change = Change::new(Kind::Patch, object, version, Origin::NONE, WHOLE);
        change.ranges.extend(sectors.iter());
        change.requests.extend(c.requests.iter());
        self.write_payload(tag, change, &Payload::of(c))
    }

    fn write_payload(&mut self, tag: u64, mut change: Change, payload: &Payload<'_>) -> Result<(), Refusal> {
        if !payload.is_valid() {
            return Err(Refusal::Fail(Status::Invalid));
        }
        debug_assert_eq!(cluster_proto::crc::first_mismatch(payload.data, payload.crcs), None, "unverified data");
        let newest = self.newest(&change.object);
        check_version(&change, &newest)?;
        if let Some(first) = payload.sectors.first() {
            self.index.prefetch(&change.object, first.start);
        }
        let need = self.need_of(&change, payload, !newest.exists);
        let runs = self.admit(&need)?;
        change.extents = lay_out(&payload.sectors, &runs);
        let store = self.superblock.as_ref().map(|superblock| superblock.store).unwrap_or_default();
        let place = Place { store: &store, object: &change.object, version: change.version };
        let (data, crcs) = payload.stored(&place);
        change.crcs = crcs;
        self.begin_change(tag, change, newest, &need, data);
        Ok(())
    }

    fn need_of(&self, change: &Change, payload: &Payload<'_>, is_new_object: bool) -> Need {
        let sectors = payload.sector_count();
        let is_repair = change.kind == Kind::Repair;
        let frees = sectors == 0 && change.sectors.count > 0;
        let worst = Need {
            // At worst every sector gets an extent of its own.
            entry_bytes: Change::encoded_len(
                sectors as usize,
                sectors as usize,
                change.requests.len(),
                change.ranges.len(),
            ),
            sectors,
            growth: sectors,
            is_new_object,
            is_staged: change.kind == Kind::Stage,
            is_privileged: is_repair || change.kind == Kind::RestoreDeleted || change.kind == Kind::Stage && frees,
            is_lazy: payload.is_lazy,
        };
        // By how much the object grows matters only when space is short; and what pending mutations leave of it is not known yet.
        if self.has_room(&worst) || self.commit.newest.contains_key(&change.object) {
            return worst;
        }
        let held_in = |range: &SectorRange| self.index.sectors_held(&change.object, *range);
        let held = change.replaced().iter().map(held_in).sum::<u32>().min(sectors);
        Need { growth: sectors - held, ..worst }
    }

    /// Newest version of an object, pending mutations included.
    pub(crate) fn newest(&self, object: &ObjectId) -> Newest {
        match self.commit.newest.get(object) {
            Some(newest) => *newest,
            None => Newest::of(self.index.head(object)),
        }
    }

    /// Logs an admitted change and sends its data on its way. `newest` is the object as the change finds it.
    pub(crate) fn begin_change(&mut self, tag: u64, change: Change, newest: Newest, need: &Need, data: Buffer) {
        let place = self.log_append(&change, need.is_lazy);
        let undo = if change.kind == Kind::Rollback { self.index.undo(&change.object) } else { None };
        self.commit.newest.insert(change.object, newest.after(&change, undo));
        let writes_left = self.send_data(place.lsn, &change.extents, &data);
        let pending = Pending::new(change, place, need);
        self.commit.push(Pending { tag: Some(tag), data, writes_left, ..pending });
    }

    /// Puts the data of an entry on its way; returns the number of pieces.
    pub(crate) fn send_data(&mut self, lsn: Lsn, extents: &[Extent], data: &Buffer) -> u32 {
        let mut at = 0;
        for extent in extents {
            let run = extent.run();
            let len = run.count as usize * SECTOR;
            self.outgoing.push_back(Outgoing { lsn, run, data: data.slice(at..at + len) });
            at += len;
        }
        extents.len() as u32
    }

    /// Hands outgoing data to the device, neighbours together.
    pub(crate) fn data_flow(&mut self) {
        while let Some(first) = self.outgoing.pop_front() {
            let offset = self.geometry.sector_offset(first.run.start);
            let mut write = DataWrite { parts: SmallVec::from_slice(&[(first.lsn, first.run)]) };
            let mut data = Pieces::new();
            let (mut end, mut bytes) = (first.run.end(), first.data.len());
            data.push(first.data);
            while let Some(next) = self.outgoing.front() {
                let is_neighbour = next.run.start == end && bytes + next.data.len() <= DATA_WRITE_BYTES_MAX;
                if !is_neighbour || data.len() == DATA_WRITE_PIECES_MAX {
                    break;
                }
                let Some(next) = self.outgoing.pop_front() else { break };
                (end, bytes) = (next.run.end(), bytes + next.data.len());
                write.parts.push((next.lsn, next.run));
                data.push(next.data);
            }
            self.counters.data_bytes_written += bytes as u64;
            self.counters.data_writes += 1;
            self.checkpoints.earn(bytes as u64);
            self.request(Job::Data(write), DeviceOp::Write { offset, data });
        }
    }

    pub(crate) fn data_written(&mut self, write: DataWrite, result: Result<(), DeviceError>) {
        self.counters.io_errors += u64::from(result.is_err());
        for (lsn, run) in write.parts {
            let Some(pending) = self.commit.get_mut(lsn) else { continue };
            pending.writes_left -= 1;
            if result.is_err() {
                pending.failed.push(run);
            }
            if pending.writes_left == 0 {
                self.data_finished(lsn);
            }
        }
    }
}

fn check_version(change: &Change, newest: &Newest) -> Result<(), Refusal> {
    let status = match change.kind {
        Kind::Repair if !newest.exists || newest.version != change.version => Status::Retry,
        Kind::Repair if newest.deleted => Status::Invalid,
        Kind::Repair => return Ok(()),
        _ if change.version <= newest.version => Status::Invalid,
        _ => return Ok(()),
    };
    Err(Refusal::Fail(status))
}

/// Spreads ranges of an object over runs of the data area, in order.
pub(crate) fn lay_out(sectors: &[SectorRange], runs: &[Run]) -> Extents {
    let mut extents = Extents::new();
    let mut runs = runs.iter().copied();
    let mut run = Run { start: 0, count: 0 };
    for range in sectors {
        let mut rest = *range;
        while rest.count > 0 {
            if run.count == 0 {
                let Some(next) = runs.next() else { return extents };
                run = next;
            }
            let count = rest.count.min(run.count);
            extents.push(Extent::new(SectorRange::new(rest.start, count), run.start));
            rest = SectorRange::new(rest.start + count, rest.count - count);
            run = Run { start: run.start + u64::from(count), count: run.count - count };
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_spread_over_runs_in_order() {
        let sectors = [SectorRange::new(0, 3), SectorRange::new(8, 2)];
        let runs = [Run { start: 50, count: 1 }, Run { start: 70, count: 4 }];
        let got: Vec<_> = lay_out(&sectors, &runs).iter().map(|e| (e.sectors(), e.run().start)).collect();
        let want = [(SectorRange::new(0, 1), 50), (SectorRange::new(1, 2), 70), (SectorRange::new(8, 2), 72)];
        assert_eq!(got, want);
    }
}
