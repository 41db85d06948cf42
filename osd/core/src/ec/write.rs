//! Changes of erasure-coded objects.
//!
//! Previous hop: `write.rs`. Next hop: `osd/blockstore/src/write.rs` of the members, as staged changes.
//!
//! The primary reads what the new parity needs of the rows it touches, and sends every member a staged change: new data, new parity, or only
//! the new version. What becomes zeroes is given up: those changes carry no data, and their commits free space. What the parity needs is
//! the rest of the data, nothing for full rows; or, if that is less to read, the old parity and the old data where it changes. When all have
//! it durably it can be kept whatever happens, and the client is answered; commits follow later, together, or with the next change of the
//! object.

use buffer::{Buffer, BufferMut};
use cluster_proto::SECTOR;
use cluster_proto::crc::{Crcs, ZERO_SECTOR_CRC, sector_crcs};
use cluster_proto::ids::{ObjectId, Version};
use cluster_proto::layout::SectorRange;
use cluster_proto::link::Millis;
use cluster_proto::shard::{ShardIndex, ShardOp};
use cluster_proto::status::Status;
use cluster_proto::wire::{ReplyBody, RequestOp};
use erasure::Code;

use super::layout::{rows, stretches, touched};
use super::{EcOp, Purpose, ShardRead};
use crate::op::{ClientOp, Kind, OpId, Stage, bits};
use crate::osd::Osd;
use crate::pg::Pg;
use crate::write::Need;

/// Objects whose commits are collected before they go out without waiting for the next tick. Most changes are committed by the next change
/// of their object.
const COMMITS_AT_ONCE: usize = 256;

impl Osd {
    /// Reads what the parity needs.
    pub(crate) fn ec_write_start(&mut self, shard: &dyn ShardIndex, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let pg_id = op.pg;
        let Some(pg) = self.pgs.get(&pg_id) else { return };
        let Kind::Client(client_op) = &op.kind else { return };
        let Some(sectors) = client_op.request.op.sectors() else { return };
        let (data, object) = (pg.scheme.copies_needed(), client_op.request.object);
        let rows = rows(sectors, data);
        let need = match &client_op.request.op {
            // Only parity, which for whole rows goes as well; and that only until the commit.
            RequestOp::Zero(_) if is_whole(rows, sectors, data) => Need::Nothing,
            RequestOp::Zero(_) => Need::Briefly(rows.bytes() as u64),
            _ => Need::ForGood((sectors.bytes() / data + SECTOR) as u64),
        };
        if !self.has_space(shard, pg_id, need) {
            return self.finish(id, Status::NoSpace, Version::NONE, ReplyBody::Empty);
        }
        let Some(pg) = self.pgs.get(&pg_id) else { return };
        let exists =
            pg.missing.contains_key(&object) || shard.head(&pg.name_at(object, pg.own())).is_some_and(|h| !h.deleted);
        let parts = touched(sectors, data);
        let plan = match exists {
            true => plan_reads(pg, &object, rows, &parts),
            false => Some(EcOp::new(Purpose::Write, rows, Vec::new(), false)),
        };
        match plan {
            Some(plan) if plan.reads.is_empty() => self.ec_stage(shard, id, &plan),
            plan => self.ec_gather(shard, id, plan),
        }
    }

    /// What the parity needs is there.
    pub(super) fn ec_write_ready(&mut self, _now: Millis, shard: &mut dyn ShardIndex, id: OpId, mut plan: EcOp) {
        let Some(pg) = self.ops.get_mut(id).and_then(|op| self.pgs.get(&op.pg)) else { return };
        let scheme = pg.scheme;
        if plan.rebuilds {
            let has = |part: &u8| plan.reads.iter().any(|read| read.part == *part);
            let lacking: Vec<u8> = (0..scheme.copies_needed() as u8).filter(|part| !has(part)).collect();
            let computed = self.compute(scheme, &plan, &lacking);
            plan.reads.extend(computed);
        }
        self.ec_stage(shard, id, &plan);
    }

    /// Sends the change to the members.
    fn ec_stage(&mut self, shard: &dyn ShardIndex, id: OpId, plan: &EcOp) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Some(pg) = self.pgs.get_mut(&op.pg) else { return };
        let Kind::Client(client_op) = &mut op.kind else { return };
        let Some(sectors) = client_op.request.op.sectors() else { return };
        let Some(code) = self.code.get(pg.scheme) else { return };
        let (object, origin) = (client_op.request.object, client_op.origin());
        let version = pg.next_version();
        (client_op.stage, client_op.version) = (Stage::Committing, version);
        let changes = match client_op.request.op {
            RequestOp::Zero(_) if is_whole(plan.rows, sectors, code.data()) => {
                vec![(plan.rows, Buffer::default(), Crcs::new()); pg.scheme.width()]
            }
            RequestOp::Zero(_) => with_holes(shards_of(client_op, sectors, &code, plan)),
            _ => shards_of(client_op, sectors, &code, plan),
        };
        let (own, members) = (pg.own(), pg.holders(&object));
        let own_last = bits(members & !(1 << own)).chain(bits(members & 1 << own));
        let shards: Vec<_> = own_last.map(|peer| (peer, pg.name_at(object, peer))).collect();
        for (peer, object) in shards {
            let (sectors, data, crcs) = changes[usize::from(object.part)].clone();
            self.send_to_peer(
                shard,
                id,
                peer,
                ShardOp::Stage { object, version, sectors, rows: plan.rows, data, crcs, origin },
            );
        }
    }

    /// Sends commits if enough have come together.
    pub(crate) fn commit_if_many(&mut self, shard: &dyn ShardIndex, pg: cluster_proto::PgId) {
        if self.pgs.get(&pg).is_some_and(|pg| pg.commits.len() >= COMMITS_AT_ONCE) {
            self.commit_staged(shard, pg);
        }
    }
}

/// The reads that the new parity of an object needs: the fewer of two ways.
fn plan_reads(pg: &Pg, object: &ObjectId, rows: SectorRange, touched: &[Option<SectorRange>]) -> Option<EcOp> {
    let rest: Vec<_> = touched.iter().map(|touched| (*touched != Some(rows)).then_some(rows)).collect();
    let parity = pg.scheme.width() - touched.len();
    let old = touched.iter().map(|touched| touched.map(|_| rows));
    let old: Vec<_> = old.chain(std::iter::repeat_n(Some(rows), parity)).collect();
    let count = |parts: &[Option<SectorRange>]| parts.iter().flatten().count();
    if count(&old) < count(&rest)
        && let Some(plan) = EcOp::plan(pg, object, Purpose::Delta, rows, &old).filter(|plan| !plan.rebuilds)
    {
        return Some(plan);
    }
    EcOp::plan(pg, object, Purpose::Write, rows, &rest)
}

/// Whether a range of an object is all that its rows have.
fn is_whole(rows: SectorRange, range: SectorRange, data: usize) -> bool {
    rows.count as usize * data == range.count as usize
}

/// Sectors of a shard with what they get: no data if it is not touched.
type Change = (SectorRange, Buffer, Crcs);

/// What each shard gets, parity last.
fn shards_of(op: &ClientOp, range: SectorRange, code: &Code, plan: &EcOp) -> Vec<Change> {
    let fresh = new_data(op, range, code.data());
    let parity = if plan.purpose == Purpose::Delta { updated(code, plan, &fresh) } else { encoded(code, plan, &fresh) };
    let none = || (SectorRange::new(0, 0), Buffer::default(), Crcs::new());
    let mut changes: Vec<Change> = fresh.into_iter().map(|part| part.unwrap_or_else(none)).collect();
    changes.extend(parity.into_iter().map(|buffer| {
        let crcs = sector_crcs(&buffer);
        (plan.rows, buffer.freeze(), crcs)
    }));
    changes
}

/// The same, but shards that get nothing but zeroes get holes.
fn with_holes(mut changes: Vec<Change>) -> Vec<Change> {
    for (_, data, crcs) in &mut changes {
        if data.iter().all(|byte| *byte == 0) {
            (*data, *crcs) = (Buffer::default(), Crcs::new());
        }
    }
    changes
}

/// The parity of whole rows.
fn encoded(code: &Code, plan: &EcOp, fresh: &[Fresh]) -> Vec<BufferMut> {
    let full: Vec<Buffer> = fresh.iter().enumerate().map(|(part, fresh)| whole_rows(plan, part, fresh)).collect();
    let mut parity: Vec<BufferMut> = (0..code.parity()).map(|_| BufferMut::for_overwrite(plan.rows.bytes())).collect();
    let inputs: Vec<&[u8]> = full.iter().map(|buffer| &buffer[..]).collect();
    let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(|buffer| &mut buffer[..]).collect();
    code.encode(&inputs, &mut outputs);
    parity
}

/// The old parity, changed as the data changes.
fn updated(code: &Code, plan: &EcOp, fresh: &[Fresh]) -> Vec<BufferMut> {
    let old =
        |part: usize| plan.of_part(part as u8).and_then(|read| read.got.as_ref()).map_or(&[][..], |(data, _)| data);
    let mut parity: Vec<BufferMut> =
        (0..code.parity()).map(|number| BufferMut::copy_of(old(code.data() + number))).collect();
    for (part, fresh) in fresh.iter().enumerate() {
        let Some((sectors, data, _)) = fresh else { continue };
        let first = (sectors.start - plan.rows.start) as usize * SECTOR;
        let changed = first..first + data.len();
        let mut delta = BufferMut::copy_of(data);
        delta.iter_mut().zip(&old(part)[changed.clone()]).for_each(|(new, old)| *new ^= old);
        for (number, parity) in parity.iter_mut().enumerate() {
            code.update(part, &delta, number, &mut parity[changed.clone()]);
        }
    }
    parity
}

/// What a data shard gets: none if the change does not touch it.
type Fresh = Option<(SectorRange, Buffer, Crcs)>;

/// What each data shard gets.
fn new_data(op: &ClientOp, range: SectorRange, data: usize) -> Vec<Fresh> {
    let count = range.count as usize;
    let (bytes, crcs): (Buffer, Crcs) = match &op.request.op {
        RequestOp::Write { data, crcs, .. } => (data.clone(), crcs.clone()),
        RequestOp::CompareAndWrite { data, crcs, .. } => (data.slice(range.bytes()..), crcs[count..].into()),
        _ => (Buffer::zeroed(range.bytes()), Crcs::from_elem(ZERO_SECTOR_CRC, count)),
    };
    let at = |offset: u32, sectors: u32| {
        let (first, count) = (offset as usize, sectors as usize);
        (first * SECTOR..(first + count) * SECTOR, first..first + count)
    };
    let mut parts: Vec<Fresh> = Vec::with_capacity(data);
    for (part, touched) in touched(range, data).into_iter().enumerate() {
        let Some(sectors) = touched else {
            parts.push(None);
            continue;
        };
        let pieces: Vec<_> = stretches(range, data).filter(|stretch| stretch.part == part).collect();
        if let [only] = pieces[..] {
            let (of_bytes, of_crcs) = at(only.offset, only.sectors.count);
            parts.push(Some((sectors, bytes.slice(of_bytes), crcs[of_crcs].into())));
            continue;
        }
        let mut out = BufferMut::for_overwrite(sectors.bytes());
        let mut all = Crcs::with_capacity(sectors.count as usize);
        for piece in pieces {
            let (of_bytes, of_crcs) = at(piece.offset, piece.sectors.count);
            let to = (piece.sectors.start - sectors.start) as usize * SECTOR;
            out[to..to + piece.sectors.bytes()].copy_from_slice(&bytes[of_bytes]);
            all.extend_from_slice(&crcs[of_crcs]);
        }
        parts.push(Some((sectors, out.freeze(), all)));
    }
    parts
}

/// All rows of a data shard: what was there, with what is new.
fn whole_rows(plan: &EcOp, part: usize, fresh: &Fresh) -> Buffer {
    let old = plan.reads.iter().find(|read| usize::from(read.part) == part);
    let old = old.and_then(|read: &ShardRead| read.got.as_ref()).map(|(data, _)| data);
    match (fresh, old) {
        (Some((sectors, data, _)), _) if *sectors == plan.rows => data.clone(),
        (None, Some(old)) => old.clone(),
        (None, None) => Buffer::zeroed(plan.rows.bytes()),
        (Some((sectors, data, _)), old) => {
            let mut out = match old {
                Some(old) => BufferMut::copy_of(old),
                None => BufferMut::zeroed(plan.rows.bytes()),
            };
            let at = (sectors.start - plan.rows.start) as usize * SECTOR;
            out[at..at + data.len()].copy_from_slice(data);
            out.freeze()
        }
    }
}
