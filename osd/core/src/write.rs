//! A replicated change (write, write zeroes, discard, delete) at its primary.
//!
//! Previous hop: `cluster/client/src/write.rs`, through `request.rs`. Next hop: `osd/blockstore/src/write.rs`, of our own
//! store directly and of the other members' through their `secondary.rs`.
//!
//! The primary gives the change its version, sends it to the members and to its own store in parallel, and answers when
//! all of them hold it durably: two network round trips, one device latency.

use cluster_proto::ids::Version;
use cluster_proto::layout::SectorRange;
use cluster_proto::link::Millis;
use cluster_proto::map::PoolConfig;
use cluster_proto::shard::{Origin, ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::status::Status;
use cluster_proto::wire::{ReplyBody, RequestOp};

use crate::op::{ClientOp, Kind, OpId, Stage};
use crate::osd::Osd;

impl Osd {
    pub(crate) fn write_start(&mut self, shard: &dyn ShardIndex, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let pg_id = op.pg;
        let Kind::Client(client_op) = &mut op.kind else { return };
        let Some(pool) = self.map.pools.get(&pg_id.pool) else { return };
        let frees = matches!(client_op.request.op, RequestOp::Zero(_) | RequestOp::Delete);
        let exists = shard.head(&client_op.request.object).is_some_and(|head| !head.deleted);
        if frees && !exists {
            // Nothing is stored, so nothing has to change: the range reads as zeroes already.
            return self.finish(id, Status::Ok, Version::NONE, ReplyBody::Empty);
        }
        let need = client_op.request.op.sectors().map_or(0, SectorRange::bytes) as u64;
        if !frees && !self.has_space(shard, pg_id, need) {
            return self.finish(id, Status::NoSpace, Version::NONE, ReplyBody::Empty);
        }
        let Some(version) = self.pgs.get_mut(&pg_id).map(|pg| pg.next_version()) else { return };
        let Some(client_op) = self.ops.client_mut(id) else { return };
        let Some(change) = change(client_op, pool, version) else { return };
        (client_op.stage, client_op.version) = (Stage::Committing, version);
        self.send_to_all(id, change);
    }

    /// Hands a change to all members, the remote ones first, so that their copy travels while ours is written.
    pub(crate) fn send_to_all(&mut self, id: OpId, change: ShardOp) {
        let Some(pg) = self.ops.get_mut(id).and_then(|op| self.pgs.get(&op.pg)) else { return };
        let (own, count) = (pg.own_position(), pg.width());
        for member in (0..count).filter(|&member| member != own) {
            self.send_to_member(id, member, change.clone());
        }
        self.send_to_member(id, own, change);
    }

    /// A member, or our own store, is done with the change.
    pub(crate) fn write_step(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: OpId, outcome: ShardOutcome) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let (pg, settled) = (op.pg, op.is_settled());
        let Kind::Client(client_op) = &mut op.kind else { return };
        match outcome {
            ShardOutcome::Done => {}
            ShardOutcome::Failed(status) => client_op.failed = Some(status),
            _ => client_op.failed = Some(Status::Invalid),
        }
        if let Some(status) = client_op.failed {
            // The members may differ now. A new round brings them together; the request waits for it.
            let object = client_op.request.object;
            return self.pg_fail(now, pg, &format!("a change of object {object} failed on a member: {status}"));
        }
        if settled {
            self.write_finish(shard, id);
        }
    }

    fn write_finish(&mut self, shard: &dyn ShardIndex, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let pg = op.pg;
        let Kind::Client(client_op) = &op.kind else { return };
        let (object, version) = (client_op.request.object, client_op.version);
        self.finish(id, Status::Ok, version, ReplyBody::Empty);
        if shard.head(&object).is_some_and(|head| head.deleted && head.version == version) {
            self.collect(pg, object, version);
        }
    }

    /// All members have this tombstone: they can forget it, unless an OSD that is away may still hold the object.
    pub(crate) fn collect(&mut self, pg: cluster_proto::PgId, object: cluster_proto::ObjectId, version: Version) {
        if !self.is_everyone_present(pg) {
            return;
        }
        let id = self.new_op(pg, Kind::Collect);
        self.send_to_all(id, ShardOp::Collect { object, version });
    }

    /// Whether all OSDs that should serve the PG, and all that served it since it was last clean, serve it now.
    fn is_everyone_present(&self, id: cluster_proto::PgId) -> bool {
        let Some(pg) = self.pgs.get(&id) else { return false };
        let past = self.map.histories.get(&id).into_iter().flatten().flat_map(|interval| &interval.acting);
        pg.map().target.iter().chain(past).all(|osd| pg.position(*osd).is_some())
    }

    /// Whether every member has room for `need` bytes and for what is needed to free space again.
    fn has_space(&self, shard: &dyn ShardIndex, pg: cluster_proto::PgId, need: u64) -> bool {
        let space = shard.space();
        let reserve = space.total / 32;
        let in_flight = self.held_bytes.changes as u64;
        let enough = |free: u64| free >= reserve + in_flight.max(need);
        let Some(pg) = self.pgs.get(&pg) else { return false };
        enough(space.total - space.used.min(space.total))
            && pg.others().all(|osd| self.free_bytes.get(&osd).is_none_or(|free| enough(*free)))
    }
}

/// The shard operation that carries out a request. A zeroed whole object is deleted, which also frees its metadata.
fn change(op: &ClientOp, pool: &PoolConfig, version: Version) -> Option<ShardOp> {
    let object = op.request.object;
    let origin = Origin { client: op.client, seq: op.request.seq, floor: op.request.floor };
    Some(match &op.request.op {
        RequestOp::Write { sectors, data, crcs } => {
            ShardOp::Write { object, version, sectors: *sectors, data: data.clone(), crcs: crcs.clone(), origin }
        }
        RequestOp::CompareAndWrite { sectors, data, crcs } => ShardOp::Write {
            object,
            version,
            sectors: *sectors,
            data: data.slice(sectors.bytes()..),
            crcs: crcs[sectors.count as usize..].into(),
            origin,
        },
        RequestOp::Zero(sectors) if sectors.bytes() == pool.block_size as usize => {
            ShardOp::Delete { object, version, origin }
        }
        RequestOp::Zero(sectors) => ShardOp::Zero { object, version, sectors: *sectors, origin },
        RequestOp::Delete => ShardOp::Delete { object, version, origin },
        RequestOp::Read(_) | RequestOp::Sync | RequestOp::Allocation(_) => return None,
    })
}
