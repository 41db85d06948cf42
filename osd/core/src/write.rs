//! A change (write, write zeroes, discard, delete) at its primary.
//!
//! Previous hop: `cluster/client/src/write.rs`, through `request.rs`. Next hop: `osd/blockstore/src/write.rs`, of our own
//! store directly and of the other members' through their `secondary.rs`. For erasure-coded objects `ec/write.rs` comes first.
//!
//! The primary gives the change its version, sends it to the members that have the object and to its own store in parallel, and
//! answers when all of them hold it durably, or, if the pool lets it be lazy, have written it: two network round trips, one device
//! latency.

use cluster_proto::ids::{ObjectId, PgId, Version};
use cluster_proto::layout::SectorRange;
use cluster_proto::link::Millis;
use cluster_proto::map::PoolConfig;
use cluster_proto::shard::{Origin, ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::status::Status;
use cluster_proto::wire::{ReplyBody, RequestOp};

use crate::op::{ClientOp, Kind, OpId, PeerMask, Stage, bits};
use crate::osd::Osd;

/// Bytes that a change needs on every member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Need {
    /// It only frees.
    Nothing,
    /// Until it has freed what it replaces.
    Briefly(u64),
    /// It may grow the object.
    ForGood(u64),
}

impl Osd {
    pub(crate) fn write_start(&mut self, shard: &dyn ShardIndex, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let pg_id = op.pg;
        let Kind::Client(client_op) = &mut op.kind else { return };
        let Some(pool) = self.map.pools.get(&pg_id.pool) else { return };
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        let object = client_op.request.object;
        let frees = matches!(client_op.request.op, RequestOp::Zero(_) | RequestOp::Delete);
        let exists = shard.head(&pg.name_at(object, pg.own())).is_some_and(|head| !head.deleted);
        if frees && !exists {
            // Nothing is stored, so nothing has to change: the range reads as zeroes already.
            return self.finish(id, Status::Ok, Version::NONE, ReplyBody::Empty);
        }
        let (whole, immediate) = (whole_object(&client_op.request.op, pool), pool.immediate_commit);
        if pg.is_coded() && !whole {
            return self.ec_write_start(shard, id);
        }
        let need = client_op.request.op.sectors().map_or(0, SectorRange::bytes) as u64;
        if !frees && !self.has_space(shard, pg_id, Need::ForGood(need)) {
            return self.finish(id, Status::NoSpace, Version::NONE, ReplyBody::Empty);
        }
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        let (version, members) = (pg.next_version(), pg.holders(&object));
        let Some(client_op) = self.ops.client_mut(id) else { return };
        let lazy = !client_op.coded && immediate.is_lazy(payload_bytes(&client_op.request.op));
        let Some(change) = change(client_op, whole, lazy, version) else { return };
        (client_op.stage, client_op.version) = (Stage::Committing, version);
        self.send_to(shard, id, members, change);
    }

    /// Hands an operation to members, each under the name the object has there; the remote ones first, so that their copy travels while ours
    /// is written.
    pub(crate) fn send_to(&mut self, shard: &dyn ShardIndex, id: OpId, members: PeerMask, change: ShardOp) {
        let Some(pg) = self.ops.get_mut(id).and_then(|op| self.pgs.get(&op.pg)) else { return };
        let (own, coded) = (pg.own(), pg.is_coded());
        let own_last = bits(members & !(1 << own)).chain(bits(members & 1 << own));
        for peer in own_last {
            let mut copy = change.clone();
            if coded && let Some(pg) = self.ops.get_mut(id).and_then(|op| self.pgs.get(&op.pg)) {
                copy.rename(|object| pg.name_at(object, peer));
            }
            self.send_to_peer(shard, id, peer, copy);
        }
    }

    /// A member, or our own store, is done with the change.
    pub(crate) fn write_step(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: OpId, outcome: ShardOutcome) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let (pg, settled) = (op.pg, op.is_settled());
        let Kind::Client(client_op) = &mut op.kind else { return };
        match outcome {
            ShardOutcome::Done => {}
            ShardOutcome::Written => client_op.unsynced = true,
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
        let pg_id = op.pg;
        let Kind::Client(client_op) = &op.kind else { return };
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        let (object, version) = (client_op.request.object, client_op.version);
        let pool = self.map.pools.get(&pg_id.pool);
        let deletes = pool.is_some_and(|pool| whole_object(&client_op.request.op, pool));
        if version != Version::NONE {
            pg.note_change(object, version, deletes);
        }
        self.finish(id, Status::Ok, version, ReplyBody::Empty);
        self.commit_if_many(shard, pg_id);
        if deletes {
            self.collect(shard, pg_id, object, version);
        }
    }

    /// All members have this tombstone: they can forget it, unless an OSD outside may yet be asked for the object. Once the PG is
    /// complete nobody else is: what others hold of before counts as garbage (`peering.rs`).
    pub(crate) fn collect(&mut self, shard: &dyn ShardIndex, pg_id: PgId, object: ObjectId, version: Version) {
        if !self.is_complete(pg_id) {
            return;
        }
        let members = self.pgs.get(&pg_id).map_or(0, |pg| pg.acting());
        self.in_background(shard, pg_id, members, ShardOp::Collect { object, version });
    }

    /// Whether every member has the room that is needed, and what is needed to free space again.
    pub(crate) fn has_space(&self, shard: &dyn ShardIndex, pg: PgId, need: Need) -> bool {
        let space = shard.space();
        let (need, reserve) = match need {
            Need::Nothing => return true,
            Need::Briefly(need) => (need, space.total / 64),
            Need::ForGood(need) => (need, space.total / 32),
        };
        let in_flight = self.held_bytes.changes as u64;
        let enough = |free: u64| free >= reserve + in_flight.max(need);
        let Some(pg) = self.pgs.get(&pg) else { return false };
        let own = self.options.id;
        let mut others = pg.map().members().map(|(_, member)| member.osd).filter(|osd| *osd != own);
        enough(space.free()) && others.all(|osd| self.free_bytes.get(&osd).is_none_or(|free| enough(*free)))
    }
}

impl crate::pg::Pg {
    /// A change is on all members that have the object.
    fn note_change(&mut self, object: ObjectId, version: Version, deletes: bool) {
        let members = self.holders(&object);
        if self.is_coded() && !deletes {
            self.commits.insert(object, version);
        }
        let Some(mut missing) = self.missing.remove(&object) else { return };
        missing.changed(members, version, deletes, |peer| self.name_at(object, peer).part);
        self.missing.insert(object, missing);
    }
}

/// What counts for a pool that lets large changes be lazy.
fn payload_bytes(op: &RequestOp) -> usize {
    match op {
        RequestOp::Write { data, .. } => data.len(),
        _ => 0,
    }
}

/// Whether the whole object is removed. A zeroed whole object is deleted, which also frees its metadata.
fn whole_object(op: &RequestOp, pool: &PoolConfig) -> bool {
    match op {
        RequestOp::Delete => true,
        RequestOp::Zero(sectors) => sectors.bytes() == pool.object_size() as usize,
        _ => false,
    }
}

/// The shard operation that carries out a request on a copy of the object.
fn change(op: &ClientOp, whole: bool, lazy: bool, version: Version) -> Option<ShardOp> {
    let object = op.request.object;
    let origin = op.origin();
    Some(match &op.request.op {
        _ if whole => ShardOp::Delete { object, version, origin },
        RequestOp::Write { sectors, data, crcs } => {
            let (sectors, data, crcs) = (*sectors, data.clone(), crcs.clone());
            ShardOp::Write { object, version, sectors, data, crcs, origin, lazy }
        }
        RequestOp::CompareAndWrite { sectors, data, crcs } => ShardOp::Write {
            object,
            version,
            sectors: *sectors,
            data: data.slice(sectors.bytes()..),
            crcs: crcs[sectors.count as usize..].into(),
            origin,
            // Its client cannot keep it: repeated, it might not match.
            lazy: false,
        },
        RequestOp::Zero(sectors) => ShardOp::Zero { object, version, sectors: *sectors, origin, lazy },
        RequestOp::Delete | RequestOp::Read(_) | RequestOp::Sync | RequestOp::Allocation(_) => return None,
    })
}

impl ClientOp {
    /// What stores remember of the request.
    pub fn origin(&self) -> Origin {
        Origin { client: self.client, seq: self.request.seq, floor: self.request.floor }
    }
}
