//! Reads of erasure-coded objects: from the data shards, or, where one cannot be read, computed from others.
//!
//! Previous hop: `read.rs`. Next hop: `osd/blockstore/src/read.rs` of the members. Damage is repaired as in replicated pools: the
//! request takes the whole object, the damaged sectors are computed from other shards and written back, and it begins again.

use buffer::{Buffer, BufferMut};
use cluster_proto::SECTOR;
use cluster_proto::crc::{Crcs, sector_crcs};
use cluster_proto::ids::{ObjectId, Version};
use cluster_proto::layout::SectorRange;
use cluster_proto::link::Millis;
use cluster_proto::shard::{ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::status::Status;
use cluster_proto::wire::ReplyBody;

use super::layout::{rows, stretches, touched};
use super::{EcOp, Purpose, ShardRead};
use crate::op::{Kind, OpId, PeerMask, Stage};
use crate::osd::Osd;
use crate::pg::Pg;

impl EcOp {
    pub(crate) fn new(purpose: Purpose, rows: SectorRange, reads: Vec<ShardRead>, rebuilds: bool) -> Self {
        let (version, damage, useless) = (Version::NONE, None, Vec::new());
        Self { purpose, rows, reads, rebuilds, version, damage, useless, failed: false, outdated: false }
    }

    /// Reads of these parts of data shards, or of what they can be computed from. None: too few shards can be read.
    pub fn plan(
        pg: &Pg,
        object: &ObjectId,
        purpose: Purpose,
        rows: SectorRange,
        parts: &[Option<SectorRange>],
    ) -> Option<EcOp> {
        let read = |part: u8, peer, sectors| ShardRead { part, peer, sectors, got: None };
        let direct = parts.iter().enumerate().filter_map(|(part, sectors)| Some((part as u8, (*sectors)?)));
        let direct = direct.map(|(part, sectors)| {
            let peer = pg.peer_with(object, part)?;
            Some(read(part, peer, sectors))
        });
        // One read at a time per peer: one that has several parts for now is asked for one of them.
        let peers = |reads: &[ShardRead]| reads.iter().fold(PeerMask::default(), |mask, read| mask | 1 << read.peer);
        let direct = direct.collect::<Option<Vec<_>>>();
        if let Some(reads) = direct.filter(|reads| peers(reads).count_ones() as usize == reads.len()) {
            return Some(EcOp::new(purpose, rows, reads, false));
        }
        let shards = pg.enough_shards(object, &[])?;
        let reads = shards.into_iter().map(|(part, peer)| read(part, peer, rows)).collect();
        Some(EcOp::new(purpose, rows, reads, true))
    }

    /// The sectors of a data shard that were read or can be computed.
    pub fn of_part(&self, part: u8) -> Option<&ShardRead> {
        self.reads.iter().find(|read| read.part == part)
    }
}

impl Osd {
    pub(crate) fn ec_read_start(&mut self, shard: &dyn ShardIndex, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Some(pg) = self.pgs.get(&op.pg) else { return };
        let Kind::Client(client_op) = &op.kind else { return };
        let Some(sectors) = client_op.request.op.sectors() else { return };
        let data = pg.scheme.copies_needed();
        let object = client_op.request.object;
        let plan = EcOp::plan(pg, &object, Purpose::Read, rows(sectors, data), &touched(sectors, data));
        self.ec_gather(shard, id, plan);
    }

    /// Asks for the shards of a plan.
    pub(crate) fn ec_gather(&mut self, shard: &dyn ShardIndex, id: OpId, plan: Option<EcOp>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let (Some(pg), Kind::Client(client_op)) = (self.pgs.get(&op.pg), &mut op.kind) else { return };
        let (object, own) = (client_op.request.object, pg.own());
        let shown = pg.shown_version(shard, &object);
        let Some(plan) = plan else {
            // Peering found enough: somebody was lost since, and the round is about to end.
            return self.finish(id, Status::Retry, Version::NONE, ReplyBody::Empty);
        };
        client_op.stage = Stage::Reading;
        client_op.version = shown.unwrap_or(Version::NONE);
        let asks: Vec<_> = plan.reads.iter().map(|read| (read.part, read.peer, read.sectors)).collect();
        client_op.ec = Some(Box::new(plan));
        let (ours, others): (Vec<_>, Vec<_>) = asks.into_iter().partition(|(_, peer, _)| *peer == own);
        for (part, peer, sectors) in others.into_iter().chain(ours) {
            self.send_to_peer(shard, id, peer, ShardOp::Read { object: object.shard(part), sectors });
        }
    }

    /// A shard arrived, or cannot be read.
    pub(crate) fn ec_read_step(
        &mut self,
        now: Millis,
        shard: &mut dyn ShardIndex,
        id: OpId,
        from: usize,
        outcome: ShardOutcome,
    ) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let settled = op.is_settled();
        let Kind::Client(client_op) = &mut op.kind else { return };
        let wanted = client_op.version;
        let Some(ec) = &mut client_op.ec else { return };
        let Some(read) = ec.reads.iter_mut().find(|read| read.peer == from && read.got.is_none()) else { return };
        match outcome {
            ShardOutcome::Read { version, data, crcs } => {
                ec.version = ec.version.max(version);
                ec.outdated |= wanted != Version::NONE && version != wanted;
                read.got = Some((data, crcs));
            }
            ShardOutcome::Corrupt { sectors, .. } if !sectors.is_empty() => {
                ec.damage.get_or_insert((read.part, from, sectors[0]));
            }
            _ => ec.failed = true,
        }
        if settled {
            self.ec_read_done(now, shard, id);
        }
    }

    fn ec_read_done(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: OpId) {
        let Some(client_op) = self.ops.client_mut(id) else { return };
        let Some(ec) = client_op.ec.take() else { return };
        if let Some(damage) = ec.damage {
            return self.ec_damaged(shard, id, &ec, damage);
        }
        if ec.failed {
            let pg = self.ops.get_mut(id).map(|op| op.pg);
            return pg.map_or((), |pg| self.pg_fail(now, pg, "a shard could not be read"));
        }
        if ec.outdated {
            return self.read_again(id);
        }
        match ec.purpose {
            Purpose::Read => self.ec_read_finish(now, shard, id, &ec),
            Purpose::Write | Purpose::Delta => self.ec_write_ready(now, shard, id, *ec),
            Purpose::Repair { part, peer } => self.ec_repair(shard, id, &ec, part, peer),
        }
    }

    fn ec_read_finish(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: OpId, ec: &EcOp) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Some(pg) = self.pgs.get(&op.pg) else { return };
        let Kind::Client(client_op) = &op.kind else { return };
        let Some(sectors) = client_op.request.op.sectors() else { return };
        let (scheme, data) = (pg.scheme, pg.scheme.copies_needed());
        let parts = touched(sectors, data);
        let lacking: Vec<u8> =
            (0..data as u8).filter(|p| parts[usize::from(*p)].is_some() && ec.of_part(*p).is_none()).collect();
        let computed = self.compute(scheme, ec, &lacking);
        let all: Vec<&ShardRead> = ec.reads.iter().chain(&computed).collect();
        let Some((data, crcs)) = assemble(sectors, data, &all) else {
            debug_assert!(false, "the plan covers what was asked for");
            return self.finish(id, Status::Io, Version::NONE, ReplyBody::Empty);
        };
        self.read_answer(now, shard, id, ec.version, data, crcs);
    }

    /// Computes all rows of some shards from those that were read.
    pub(crate) fn compute(&mut self, scheme: cluster_proto::map::Scheme, ec: &EcOp, wanted: &[u8]) -> Vec<ShardRead> {
        let Some(code) = self.code.get(scheme).filter(|_| !wanted.is_empty()) else { return Vec::new() };
        let present: Vec<(usize, &[u8])> =
            ec.reads.iter().filter_map(|read| Some((usize::from(read.part), &read.got.as_ref()?.0[..]))).collect();
        let mut out: Vec<BufferMut> = wanted.iter().map(|_| BufferMut::for_overwrite(ec.rows.bytes())).collect();
        let mut slices: Vec<&mut [u8]> = out.iter_mut().map(|buffer| &mut buffer[..]).collect();
        let numbers: Vec<usize> = wanted.iter().map(|part| usize::from(*part)).collect();
        if code.reconstruct(&present, &numbers, &mut slices).is_err() {
            debug_assert!(false, "as many different shards as the code needs");
            return Vec::new();
        }
        let shards = wanted.iter().zip(out).map(|(part, buffer)| {
            let crcs = sector_crcs(&buffer);
            ShardRead { part: *part, peer: usize::MAX, sectors: ec.rows, got: Some((buffer.freeze(), crcs)) }
        });
        shards.collect()
    }

    /// A shard is damaged: it is computed from the others, once nobody changes the object.
    fn ec_damaged(&mut self, shard: &mut dyn ShardIndex, id: OpId, ec: &EcOp, damage: (u8, usize, SectorRange)) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Some(pg) = self.pgs.get(&op.pg) else { return };
        let Kind::Client(client_op) = &op.kind else { return };
        if !client_op.exclusive {
            return self.lock_whole(shard, id);
        }
        let (part, peer, bad) = damage;
        let object = client_op.request.object;
        let (target, target_peer, mut rows) = match ec.purpose {
            Purpose::Repair { part: first, peer } => (first, peer, ec.rows),
            _ => (part, peer, bad),
        };
        let mut useless = ec.useless.clone();
        useless.push((part, peer));
        let mut shards = pg.enough_shards(&object, &useless);
        if shards.is_none() && rows.count > 1 {
            // Of each row others may be damaged: one at a time.
            (rows, useless) = (SectorRange::new(rows.start, 1), vec![(target, target_peer)]);
            shards = pg.enough_shards(&object, &useless);
        }
        let Some(shards) = shards else {
            return self.damaged_everywhere(id, object, bad);
        };
        let read = |(part, peer)| ShardRead { part, peer, sectors: rows, got: None };
        let purpose = Purpose::Repair { part: target, peer: target_peer };
        let plan = EcOp::new(purpose, rows, shards.into_iter().map(read).collect(), true);
        self.ec_gather(shard, id, Some(EcOp { useless, ..plan }));
    }

    /// Rewrites the damaged sectors of a shard.
    fn ec_repair(&mut self, shard: &dyn ShardIndex, id: OpId, ec: &EcOp, part: u8, peer: usize) {
        let Some(scheme) = self.ops.get_mut(id).and_then(|op| self.pgs.get(&op.pg)).map(|pg| pg.scheme) else { return };
        let computed = self.compute(scheme, ec, &[part]);
        let Some((data, crcs)) = computed.into_iter().next().and_then(|shard| shard.got) else { return };
        let Some(client_op) = self.ops.client_mut(id) else { return };
        client_op.stage = Stage::Repairing { bad: ec.rows };
        let object = client_op.request.object.shard(part);
        let repair = ShardOp::Repair { object, version: ec.version, sectors: ec.rows, data, crcs };
        self.send_to_peer(shard, id, peer, repair);
    }
}

/// The sectors of an object from those of its shards. Without copying if they lie together.
fn assemble(sectors: SectorRange, data: usize, shards: &[&ShardRead]) -> Option<(Buffer, Crcs)> {
    let of = |part: usize| shards.iter().find(|shard| usize::from(shard.part) == part);
    let mut pieces = stretches(sectors, data);
    let first = pieces.next()?;
    if pieces.next().is_none() {
        return of(first.part)?.slice(first.sectors);
    }
    let mut out = BufferMut::for_overwrite(sectors.bytes());
    let mut all = Crcs::with_capacity(sectors.count as usize);
    for piece in stretches(sectors, data) {
        let (bytes, crcs) = of(piece.part)?.slice(piece.sectors)?;
        let at = piece.offset as usize * SECTOR;
        out[at..at + bytes.len()].copy_from_slice(&bytes);
        all.extend_from_slice(&crcs);
    }
    Some((out.freeze(), all))
}
