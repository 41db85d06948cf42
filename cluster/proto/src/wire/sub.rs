//! A primary's operation on a member's shard, and the answer.

use buffer::Buffer;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::DecodeError;
use super::codec::{Reader, put};
use super::frame::Payload;
use crate::crc::Crcs;
use crate::ids::{ClientId, Epoch, LayerId, ObjectId, PgId, PoolId, Version};
use crate::layout::{SECTOR, SectorRange};
use crate::limits::{
    BLOCK_SIZE_MAX, PATCH_RANGES_MAX, SECTORS_PER_OBJECT_MAX, SHARDS_MAX, WIRE_BODY_MAX, WIRE_REQUESTS_MAX,
};
use crate::shard::{AppliedRequest, ObjectContent, Origin, ShardOp, ShardOutcome, Sums, Unreadable};
use crate::status::Status;

/// An operation on the receiver's shard. Accepted only in the PG's current epoch and peering round.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubRequest {
    /// Comes back with the answer.
    pub id: u64,
    /// The PG.
    pub pg: PgId,
    /// The interval.
    pub epoch: Epoch,
    /// The peering round within the interval.
    pub round: u32,
    /// What to do.
    pub op: ShardOp,
}

/// The member's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubReply {
    /// The request's.
    pub id: u64,
    /// How it ended.
    pub outcome: ShardOutcome,
    /// Bytes free in the member's store, for the primary's admission.
    pub free_bytes: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSub {
    op: u8,
    deleted: u8,
    part: u8,
    lazy: u8,
    pool: U32,
    pg: U32,
    epoch: U32,
    round: U32,
    index: U32,
    lineage: U64,
    layer: U64,
    start: U32,
    count: U32,
    version: U64,
    client: U64,
    seq: U64,
    floor: U64,
    base: U64,
    extents: U32,
    requests: U32,
    ranges: U32,
    sums: U32,
    unreadable: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSubReply {
    kind: u8,
    deleted: u8,
    status: U16,
    extents: U32,
    version: U64,
    free_bytes: U64,
    requests: U32,
    sums: U32,
    unreadable: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRange {
    start: U32,
    count: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawUnreadable {
    sector: U32,
    crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawApplied {
    client: U64,
    seq: U64,
    version: U64,
}

const _: () = assert!(size_of::<RawSub>() == 108 && size_of::<RawSubReply>() == 36);

fn put_ranges(out: &mut Vec<u8>, ranges: &[SectorRange]) {
    for range in ranges {
        put(out, &RawRange { start: range.start.into(), count: range.count.into() });
    }
}

fn put_requests(out: &mut Vec<u8>, requests: &[AppliedRequest]) {
    for request in requests {
        put(
            out,
            &RawApplied { client: request.client.0.into(), seq: request.seq.into(), version: request.version.0.into() },
        );
    }
}

/// What a message has of an object's content besides its data.
fn put_content(out: &mut Vec<u8>, content: &ObjectContent) {
    put_ranges(out, &content.extents);
    put_requests(out, travelling(&content.requests));
    for Unreadable { sector, crc } in &content.unreadable {
        put(out, &RawUnreadable { sector: (*sector).into(), crc: (*crc).into() });
    }
}

/// How many extents, requests and unreadable sectors of an object follow.
struct Counts(u32, u32, u32);

impl RawRange {
    /// The range, if it lies inside the largest object.
    fn checked(&self, r: &Reader<'_>) -> Result<SectorRange, DecodeError> {
        let range = SectorRange::new(self.start.get(), self.count.get());
        if range.is_valid(BLOCK_SIZE_MAX) { Ok(range) } else { Err(r.error("extent")) }
    }
}

/// Ascending, disjoint, inside the largest object; at most `max`.
fn read_ranges(r: &mut Reader<'_>, count: u32, max: usize) -> Result<Vec<SectorRange>, DecodeError> {
    let raw = r.list::<RawRange>(count, max, "extents")?;
    let mut end = 0;
    let mut ranges = Vec::with_capacity(raw.len());
    for range in raw {
        let range = range.checked(r)?;
        if range.start < end {
            return Err(r.error("extent"));
        }
        end = range.end();
        ranges.push(range);
    }
    Ok(ranges)
}

fn read_content(
    r: &mut Reader<'_>,
    deleted: bool,
    counts: Counts,
    data: Buffer,
    crcs: Crcs,
) -> Result<Box<ObjectContent>, DecodeError> {
    let extents = read_ranges(r, counts.0, EXTENTS_MAX)?;
    let sectors: u32 = extents.iter().map(|e| e.count).sum();
    if data.len() != sectors as usize * SECTOR || (deleted && !extents.is_empty()) {
        return Err(r.error("content of object"));
    }
    let requests = r
        .list::<RawApplied>(counts.1, WIRE_REQUESTS_MAX, "requests")?
        .iter()
        .map(|a| AppliedRequest {
            client: ClientId(a.client.get()),
            seq: a.seq.get(),
            version: Version(a.version.get()),
        })
        .collect();
    let unreadable = read_unreadable(r, counts.2, &extents)?;
    Ok(Box::new(ObjectContent { deleted, extents, data, crcs, unreadable, requests }))
}

/// Ascending, in the extents.
fn read_unreadable(r: &mut Reader<'_>, count: u32, extents: &[SectorRange]) -> Result<Vec<Unreadable>, DecodeError> {
    let raw = r.list::<RawUnreadable>(count, EXTENTS_MAX, "unreadable sectors")?;
    let all: Vec<_> = raw.iter().map(|u| Unreadable { sector: u.sector.get(), crc: u.crc.get() }).collect();
    let mut sectors = extents.iter().flat_map(|extent| extent.iter());
    match all.iter().all(|u| sectors.any(|sector| sector == u.sector)) {
        true => Ok(all),
        false => Err(r.error("unreadable sector")),
    }
}

fn code(op: &ShardOp) -> u8 {
    match op {
        ShardOp::Read { .. } => 1,
        ShardOp::Fetch { .. } => 2,
        ShardOp::Write { .. } => 3,
        ShardOp::Zero { .. } => 4,
        ShardOp::Delete { .. } => 5,
        ShardOp::Collect { .. } => 6,
        ShardOp::Restore { .. } => 7,
        ShardOp::Repair { .. } => 8,
        ShardOp::Sync => 9,
        ShardOp::FetchPart { .. } => 10,
        ShardOp::Patch { .. } => 11,
        ShardOp::Stage { .. } => 12,
        ShardOp::Commit { .. } => 13,
        ShardOp::Rollback { .. } => 14,
        ShardOp::Drop { .. } => 15,
        ShardOp::Verify { .. } => 16,
    }
}

/// Extents of one object, and ranges of damage in it.
const EXTENTS_MAX: usize = SECTORS_PER_OBJECT_MAX as usize;
/// Sums of one object.
const SUMS_MAX: usize = SECTORS_PER_OBJECT_MAX as usize * Sums::Planes.per_sector();

const _: () = {
    let most = size_of::<RawSubReply>() + EXTENTS_MAX * size_of::<RawRange>() + SUMS_MAX * size_of::<U32>();
    assert!(most <= WIRE_BODY_MAX, "what is told of the largest object is one message");
};

fn sums_code(sums: Sums) -> u32 {
    match sums {
        Sums::None => 0,
        Sums::Whole => 1,
        Sums::Planes => 2,
    }
}

fn sums_of(code: u32) -> Option<Sums> {
    [Sums::None, Sums::Whole, Sums::Planes].into_iter().find(|sums| sums_code(*sums) == code)
}

/// The newest remembered requests of an object, as many as travel.
fn travelling(requests: &[AppliedRequest]) -> &[AppliedRequest] {
    &requests[requests.len().saturating_sub(WIRE_REQUESTS_MAX)..]
}

impl SubRequest {
    pub(super) fn put(&self, out: &mut Vec<u8>) -> Payload<'_> {
        let (sectors, version, origin) = match &self.op {
            ShardOp::Read { sectors, .. } => (*sectors, Version::NONE, Origin::NONE),
            ShardOp::Write { sectors, version, origin, .. }
            | ShardOp::Stage { sectors, version, origin, .. }
            | ShardOp::Zero { sectors, version, origin, .. } => (*sectors, *version, *origin),
            ShardOp::Delete { version, origin, .. } => (SectorRange::new(0, 0), *version, *origin),
            ShardOp::Repair { sectors, version, .. } => (*sectors, *version, Origin::NONE),
            ShardOp::Restore { version, .. }
            | ShardOp::Patch { version, .. }
            | ShardOp::Commit { version, .. }
            | ShardOp::Rollback { version, .. }
            | ShardOp::Drop { version, .. }
            | ShardOp::Collect { version, .. } => (SectorRange::new(0, 0), *version, Origin::NONE),
            ShardOp::Fetch { .. } | ShardOp::FetchPart { .. } | ShardOp::Verify { .. } | ShardOp::Sync => {
                (SectorRange::new(0, 0), Version::NONE, Origin::NONE)
            }
        };
        let object = self.op.object().copied().unwrap_or(ObjectId {
            pool: self.pg.pool,
            lineage: LayerId(0),
            layer: LayerId(0),
            index: 0,
            part: 0,
        });
        let content = match &self.op {
            ShardOp::Restore { content, .. } | ShardOp::Patch { content, .. } => Some(content),
            _ => None,
        };
        let (base, ranges): (_, &[SectorRange]) = match &self.op {
            ShardOp::Patch { base, sectors, .. } => (*base, sectors),
            ShardOp::FetchPart { sectors, .. } => (Version::NONE, sectors),
            ShardOp::Stage { rows, .. } => (Version::NONE, std::slice::from_ref(rows)),
            _ => (Version::NONE, &[]),
        };
        debug_assert!(ranges.len() <= PATCH_RANGES_MAX);
        let sums = if let ShardOp::Verify { sums, .. } = &self.op { sums_code(*sums) } else { 0 };
        put(
            out,
            &RawSub {
                op: code(&self.op),
                deleted: content.is_some_and(|c| c.deleted).into(),
                part: object.part,
                lazy: self.op.is_lazy().into(),
                pool: self.pg.pool.0.into(),
                pg: self.pg.index.into(),
                epoch: self.epoch.0.into(),
                round: self.round.into(),
                index: object.index.into(),
                lineage: object.lineage.0.into(),
                layer: object.layer.0.into(),
                start: sectors.start.into(),
                count: sectors.count.into(),
                version: version.0.into(),
                client: origin.client.0.into(),
                seq: origin.seq.into(),
                floor: origin.floor.into(),
                base: base.0.into(),
                extents: content.map_or(0, |c| c.extents.len() as u32).into(),
                requests: content.map_or(0, |c| travelling(&c.requests).len() as u32).into(),
                ranges: (ranges.len() as u32).into(),
                sums: sums.into(),
                unreadable: content.map_or(0, |c| c.unreadable.len() as u32).into(),
            },
        );
        put_ranges(out, ranges);
        if let Some(content) = content {
            put_content(out, content);
        }
        match &self.op {
            ShardOp::Write { data, crcs, .. }
            | ShardOp::Stage { data, crcs, .. }
            | ShardOp::Repair { data, crcs, .. } => Some((data, crcs)),
            ShardOp::Restore { content, .. } | ShardOp::Patch { content, .. } => Some((&content.data, &content.crcs)),
            _ => None,
        }
    }

    pub(super) fn read(id: u64, r: &mut Reader<'_>, data: Buffer, crcs: Crcs) -> Result<Self, DecodeError> {
        let raw: &RawSub = r.take("shard operation")?;
        let pool = PoolId(raw.pool.get());
        let object = ObjectId {
            pool,
            lineage: LayerId(raw.lineage.get()),
            layer: LayerId(raw.layer.get()),
            index: raw.index.get(),
            part: raw.part,
        };
        if usize::from(object.part) >= SHARDS_MAX {
            return Err(r.error("shard number"));
        }
        let version = Version(raw.version.get());
        let sectors = SectorRange::new(raw.start.get(), raw.count.get());
        let origin = Origin { client: ClientId(raw.client.get()), seq: raw.seq.get(), floor: raw.floor.get() };
        let lazy = raw.lazy != 0;
        if matches!(raw.op, 1 | 3 | 4 | 8) && !sectors.is_valid(BLOCK_SIZE_MAX) {
            return Err(r.error("sector range"));
        }
        if raw.op == 12 && sectors.count != 0 && !sectors.is_valid(BLOCK_SIZE_MAX) {
            return Err(r.error("sector range"));
        }
        let expected = if matches!(raw.op, 3 | 8 | 12) { sectors.bytes() } else { 0 };
        let may_lack = raw.op == 12 && data.is_empty();
        if !matches!(raw.op, 7 | 11) && data.len() != expected && !may_lack {
            return Err(r.error("payload length"));
        }
        let op = match raw.op {
            1 => ShardOp::Read { object, sectors },
            2 => ShardOp::Fetch { object },
            3 => ShardOp::Write { object, version, sectors, data, crcs, origin, lazy },
            4 => ShardOp::Zero { object, version, sectors, origin, lazy },
            5 => ShardOp::Delete { object, version, origin },
            6 => ShardOp::Collect { object, version },
            7 => {
                let counts = Counts(raw.extents.get(), raw.requests.get(), raw.unreadable.get());
                let content = read_content(r, raw.deleted != 0, counts, data, crcs)?;
                ShardOp::Restore { object, version, content }
            }
            8 => ShardOp::Repair { object, version, sectors, data, crcs },
            9 => ShardOp::Sync,
            10 => ShardOp::FetchPart { object, sectors: read_ranges(r, raw.ranges.get(), PATCH_RANGES_MAX)? },
            11 => {
                let sectors = read_ranges(r, raw.ranges.get(), PATCH_RANGES_MAX)?;
                let counts = Counts(raw.extents.get(), raw.requests.get(), raw.unreadable.get());
                let content = read_content(r, false, counts, data, crcs)?;
                let inside = |extent: &SectorRange| sectors.iter().any(|range| range.contains(*extent));
                if !content.extents.iter().all(inside) {
                    return Err(r.error("extent outside the patch"));
                }
                ShardOp::Patch { object, base: Version(raw.base.get()), version, sectors, content }
            }
            12 => {
                if raw.ranges.get() != 1 {
                    return Err(r.error("rows of a change"));
                }
                let rows = r.take::<RawRange>("rows of a change")?.checked(r)?;
                ShardOp::Stage { object, version, sectors, rows, data, crcs, origin }
            }
            13 => ShardOp::Commit { object, version },
            14 => ShardOp::Rollback { object, version },
            15 => ShardOp::Drop { object, version },
            16 => {
                let sums = sums_of(raw.sums.get()).ok_or_else(|| r.error("kind of sums"))?;
                ShardOp::Verify { object, sums }
            }
            _ => return Err(r.error("shard operation code")),
        };
        let pg = PgId { pool, index: raw.pg.get() };
        Ok(SubRequest { id, pg, epoch: Epoch(raw.epoch.get()), round: raw.round.get(), op })
    }
}

impl SubReply {
    pub(super) fn put(&self, out: &mut Vec<u8>) -> Payload<'_> {
        let mut raw = RawSubReply {
            kind: 0,
            deleted: 0,
            status: 0.into(),
            extents: 0.into(),
            version: 0.into(),
            free_bytes: self.free_bytes.into(),
            requests: 0.into(),
            sums: 0.into(),
            unreadable: 0.into(),
        };
        match &self.outcome {
            ShardOutcome::Done => {}
            ShardOutcome::Written => raw.kind = 5,
            ShardOutcome::Verified { version, extents, kind, sums } => {
                (raw.kind, raw.version) = (6, version.0.into());
                raw.extents = (extents.len() as u32).into();
                raw.sums = sums_code(*kind).into();
                put(out, &raw);
                put_ranges(out, extents);
                sums.iter().for_each(|sum| put(out, &U32::new(*sum)));
                return None;
            }
            ShardOutcome::Read { version, data, crcs } => {
                (raw.kind, raw.version) = (1, version.0.into());
                put(out, &raw);
                return Some((data, crcs));
            }
            ShardOutcome::Fetched { version, content } => {
                (raw.kind, raw.version) = (2, version.0.into());
                raw.deleted = content.deleted.into();
                raw.extents = (content.extents.len() as u32).into();
                raw.requests = (travelling(&content.requests).len() as u32).into();
                raw.unreadable = (content.unreadable.len() as u32).into();
                put(out, &raw);
                put_content(out, content);
                return Some((&content.data, &content.crcs));
            }
            ShardOutcome::Corrupt { version, sectors, crcs } => {
                (raw.kind, raw.version) = (3, version.0.into());
                raw.extents = (sectors.len() as u32).into();
                put(out, &raw);
                put_ranges(out, sectors);
                for crc in crcs {
                    put(out, &U32::new(*crc));
                }
                return None;
            }
            ShardOutcome::Failed(status) => (raw.kind, raw.status) = (4, (*status as u16).into()),
        }
        put(out, &raw);
        None
    }

    pub(super) fn read(id: u64, r: &mut Reader<'_>, data: Buffer, crcs: Crcs) -> Result<Self, DecodeError> {
        let raw: &RawSubReply = r.take("shard outcome")?;
        let version = Version(raw.version.get());
        let outcome = match raw.kind {
            0 => ShardOutcome::Done,
            1 => ShardOutcome::Read { version, data, crcs },
            2 => {
                let counts = Counts(raw.extents.get(), raw.requests.get(), raw.unreadable.get());
                let content = read_content(r, raw.deleted != 0, counts, data, crcs)?;
                ShardOutcome::Fetched { version, content }
            }
            3 => {
                let sectors = read_ranges(r, raw.extents.get(), EXTENTS_MAX)?;
                let count = sectors.iter().map(|s| s.count).sum();
                let crcs = r.list::<U32>(count, SECTORS_PER_OBJECT_MAX as usize, "checksums")?;
                let crcs = crcs.iter().map(|crc| crc.get()).collect();
                ShardOutcome::Corrupt { version, sectors: sectors.into(), crcs }
            }
            4 => ShardOutcome::Failed(Status::from_u16(raw.status.get()).ok_or_else(|| r.error("status"))?),
            5 => ShardOutcome::Written,
            6 => {
                let kind = sums_of(raw.sums.get()).ok_or_else(|| r.error("kind of sums"))?;
                let extents = read_ranges(r, raw.extents.get(), EXTENTS_MAX)?;
                let count = extents.iter().map(|e| e.count as usize).sum::<usize>() * kind.per_sector();
                let sums = r.list::<U32>(count as u32, SUMS_MAX, "sums")?;
                let sums = sums.iter().map(|sum| sum.get()).collect();
                ShardOutcome::Verified { version, extents, kind, sums }
            }
            _ => return Err(r.error("shard outcome kind")),
        };
        Ok(SubReply { id, outcome, free_bytes: raw.free_bytes.get() })
    }
}
