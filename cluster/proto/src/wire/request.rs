//! A client's request to the primary of a PG, and the answer.

use buffer::Buffer;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::DecodeError;
use super::codec::{Reader, put};
use super::frame::Payload;
use crate::crc::Crcs;
use crate::ids::{Epoch, LayerId, ObjectId, PoolId, Version};
use crate::layout::{SECTOR, SectorRange};
use crate::limits::{BLOCK_SIZE_MAX, COMPARE_AND_WRITE_MAX, SECTORS_PER_OBJECT_MAX};
use crate::shard::Allocation;
use crate::status::Status;

/// A client's request. A request that is sent again keeps its `seq`, so that it takes effect once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Number of the request within the client, from 1.
    pub seq: u64,
    /// The client has the answer of every request below this number.
    pub floor: u64,
    /// Epoch of the PG as the client knows it.
    pub epoch: Epoch,
    /// Serve it in exactly this epoch, else answer [`Status::Retry`]: the client has changes of the PG that are not synced, and must
    /// repeat them first in another.
    pub only_in_epoch: bool,
    /// PG of the object as the client computed it.
    pub pg: u32,
    /// The object.
    pub object: ObjectId,
    /// What to do with it.
    pub op: RequestOp,
}

/// What a client can ask of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RequestOp {
    /// Reads sectors.
    Read(SectorRange),
    /// Writes sectors, atomically.
    Write {
        /// Where.
        sectors: SectorRange,
        /// What.
        data: Buffer,
        /// One per sector, computed by the client.
        crcs: Crcs,
    },
    /// Makes sectors read as zeroes and frees their space (write zeroes, discard).
    Zero(SectorRange),
    /// Writes the second half of `data` if the sectors hold the first half.
    CompareAndWrite {
        /// Where. At most [`COMPARE_AND_WRITE_MAX`] bytes.
        sectors: SectorRange,
        /// What is expected, then what to write.
        data: Buffer,
        /// One per sector of `data`.
        crcs: Crcs,
    },
    /// Removes the object.
    Delete,
    /// Makes every change of the PG answered before durable past the devices' volatile caches.
    Sync,
    /// Asks which sectors hold data.
    Allocation(SectorRange),
}

impl RequestOp {
    /// Whether the request changes the object.
    pub fn is_mutation(&self) -> bool {
        matches!(
            self,
            RequestOp::Write { .. } | RequestOp::Zero(_) | RequestOp::CompareAndWrite { .. } | RequestOp::Delete
        )
    }

    /// The sectors concerned; for a delete all there can be, for a sync none.
    pub fn sectors(&self) -> Option<SectorRange> {
        match self {
            RequestOp::Read(sectors)
            | RequestOp::Zero(sectors)
            | RequestOp::Allocation(sectors)
            | RequestOp::Write { sectors, .. }
            | RequestOp::CompareAndWrite { sectors, .. } => Some(*sectors),
            RequestOp::Delete => Some(SectorRange::new(0, SECTORS_PER_OBJECT_MAX)),
            RequestOp::Sync => None,
        }
    }

    fn code(&self) -> u8 {
        match self {
            RequestOp::Read(_) => 1,
            RequestOp::Write { .. } => 2,
            RequestOp::Zero(_) => 3,
            RequestOp::CompareAndWrite { .. } => 4,
            RequestOp::Delete => 5,
            RequestOp::Sync => 6,
            RequestOp::Allocation(_) => 7,
        }
    }
}

/// The primary's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// The request's number.
    pub seq: u64,
    /// How it ended.
    pub status: Status,
    /// Version of the object that was read or made; none where that means nothing.
    pub version: Version,
    /// The change took effect, but a loss of power may take it back until a sync: the client keeps it, and repeats it in the next interval.
    pub unsynced: bool,
    /// What was asked for.
    pub body: ReplyBody,
}

/// What an answer carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReplyBody {
    /// Nothing.
    Empty,
    /// Data read.
    Data {
        /// All sectors asked for.
        data: Buffer,
        /// One per sector.
        crcs: Crcs,
    },
    /// Runs of sectors that do or do not hold data, covering the range asked for.
    Allocation(Vec<Allocation>),
}

/// Flag of a request.
const ONLY_IN_EPOCH: u8 = 1;
/// Flag of an answer.
const UNSYNCED: u8 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRequest {
    op: u8,
    flags: u8,
    reserved: [u8; 2],
    pool: U32,
    pg: U32,
    epoch: U32,
    lineage: U64,
    layer: U64,
    index: U32,
    start: U32,
    count: U32,
    reserved2: U32,
    floor: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawReply {
    status: U16,
    kind: u8,
    flags: u8,
    count: U32,
    version: U64,
}

/// A run: `count`, and whether it holds data.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawAllocation {
    count: U32,
    data: U32,
}

const _: () = assert!(size_of::<RawRequest>() == 56 && size_of::<RawReply>() == 16);

impl Request {
    pub(super) fn put(&self, out: &mut Vec<u8>) -> Payload<'_> {
        let sectors = match &self.op {
            RequestOp::Delete | RequestOp::Sync => SectorRange::new(0, 0),
            op => op.sectors().unwrap_or(SectorRange::new(0, 0)),
        };
        put(
            out,
            &RawRequest {
                op: self.op.code(),
                flags: u8::from(self.only_in_epoch) * ONLY_IN_EPOCH,
                reserved: [0; 2],
                pool: self.object.pool.0.into(),
                pg: self.pg.into(),
                epoch: self.epoch.0.into(),
                lineage: self.object.lineage.0.into(),
                layer: self.object.layer.0.into(),
                index: self.object.index.into(),
                start: sectors.start.into(),
                count: sectors.count.into(),
                reserved2: 0.into(),
                floor: self.floor.into(),
            },
        );
        match &self.op {
            RequestOp::Write { data, crcs, .. } | RequestOp::CompareAndWrite { data, crcs, .. } => Some((data, crcs)),
            _ => None,
        }
    }

    pub(super) fn read(id: u64, r: &mut Reader<'_>, data: Buffer, crcs: Crcs) -> Result<Self, DecodeError> {
        let raw: &RawRequest = r.take("request")?;
        let sectors = SectorRange::new(raw.start.get(), raw.count.get());
        let payload_sectors = match raw.op {
            2 => sectors.count as usize,
            4 => sectors.count as usize * 2,
            _ => 0,
        };
        if data.len() != payload_sectors * SECTOR {
            return Err(r.error("payload length"));
        }
        if !matches!(raw.op, 5 | 6) && !sectors.is_valid(BLOCK_SIZE_MAX) {
            return Err(r.error("sector range"));
        }
        if raw.op == 4 && sectors.bytes() > COMPARE_AND_WRITE_MAX {
            return Err(r.error("length of compare-and-write"));
        }
        let op = match raw.op {
            1 => RequestOp::Read(sectors),
            2 => RequestOp::Write { sectors, data, crcs },
            3 => RequestOp::Zero(sectors),
            4 => RequestOp::CompareAndWrite { sectors, data, crcs },
            5 => RequestOp::Delete,
            6 => RequestOp::Sync,
            7 => RequestOp::Allocation(sectors),
            _ => return Err(r.error("request code")),
        };
        Ok(Request {
            seq: id,
            floor: raw.floor.get(),
            epoch: Epoch(raw.epoch.get()),
            only_in_epoch: raw.flags & ONLY_IN_EPOCH != 0,
            pg: raw.pg.get(),
            object: ObjectId {
                pool: PoolId(raw.pool.get()),
                lineage: LayerId(raw.lineage.get()),
                layer: LayerId(raw.layer.get()),
                index: raw.index.get(),
                part: 0,
            },
            op,
        })
    }
}

impl Reply {
    /// An answer that carries only a status.
    pub fn status(seq: u64, status: Status) -> Reply {
        Reply { seq, status, version: Version::NONE, unsynced: false, body: ReplyBody::Empty }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) -> Payload<'_> {
        let (kind, count) = match &self.body {
            ReplyBody::Empty => (0, 0),
            ReplyBody::Data { .. } => (1, 0),
            ReplyBody::Allocation(runs) => (2, runs.len() as u32),
        };
        put(
            out,
            &RawReply {
                status: (self.status as u16).into(),
                kind,
                flags: u8::from(self.unsynced) * UNSYNCED,
                count: count.into(),
                version: self.version.0.into(),
            },
        );
        match &self.body {
            ReplyBody::Data { data, crcs } => return Some((data, crcs)),
            ReplyBody::Allocation(runs) => {
                for run in runs {
                    put(out, &RawAllocation { count: run.count.into(), data: u32::from(run.data).into() });
                }
            }
            ReplyBody::Empty => {}
        }
        None
    }

    pub(super) fn read(id: u64, r: &mut Reader<'_>, data: Buffer, crcs: Crcs) -> Result<Self, DecodeError> {
        let raw: &RawReply = r.take("reply")?;
        let status = Status::from_u16(raw.status.get()).ok_or_else(|| r.error("status"))?;
        let body = match raw.kind {
            0 => ReplyBody::Empty,
            1 => ReplyBody::Data { data, crcs },
            2 => {
                let runs = r.list::<RawAllocation>(raw.count.get(), SECTORS_PER_OBJECT_MAX as usize, "allocation")?;
                ReplyBody::Allocation(
                    runs.iter().map(|run| Allocation { count: run.count.get(), data: run.data.get() != 0 }).collect(),
                )
            }
            _ => return Err(r.error("reply kind")),
        };
        Ok(Reply { seq: id, status, version: Version(raw.version.get()), unsynced: raw.flags & UNSYNCED != 0, body })
    }
}
