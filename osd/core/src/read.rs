//! A read at the primary, compare-and-write, sync, and the repair of what turns out to be damaged.
//!
//! Previous hop: `cluster/client/src/read.rs`, through `request.rs`. Next hop: `osd/blockstore/src/read.rs` of our own
//! store, or of a member that has the object if ours lags behind; `ec/read.rs` for erasure-coded objects. A copy that fails its checksum is
//! never handed out: the sectors are fetched from another member at the same version, written back, and read
//! again. The repair holds the whole object, so that versions stand still.

use buffer::Buffer;
use cluster_proto::crc::Crcs;
use cluster_proto::layout::SectorRange;
use cluster_proto::link::Millis;
use cluster_proto::shard::{ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::status::Status;
use cluster_proto::wire::{ReplyBody, RequestOp};
use cluster_proto::{PgId, Version};

use crate::op::{Kind, OpId, Stage};
use crate::osd::Osd;

impl Osd {
    pub(crate) fn read_start(&mut self, shard: &dyn ShardIndex, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Some(pg) = self.pgs.get(&op.pg) else { return };
        let Kind::Client(client_op) = &mut op.kind else { return };
        let Some(sectors) = client_op.request.op.sectors() else { return };
        let object = client_op.request.object;
        client_op.stage = Stage::Reading;
        if pg.is_coded() {
            return self.ec_read_start(shard, id);
        }
        client_op.version = pg.shown_version(shard, &object).unwrap_or(Version::NONE);
        // If nobody has the object it does not exist, which our store says as well as any.
        let from = pg.sources(&object).next().unwrap_or(pg.own());
        self.send_to_peer(shard, id, from, ShardOp::Read { object, sectors });
    }

    pub(crate) fn read_finish(
        &mut self,
        now: Millis,
        shard: &mut dyn ShardIndex,
        id: OpId,
        from: usize,
        outcome: ShardOutcome,
    ) {
        match outcome {
            ShardOutcome::Read { version, .. } if self.is_outdated(id, version) => self.read_again(id),
            ShardOutcome::Read { version, data, crcs } => self.read_answer(now, shard, id, version, data, crcs),
            other => self.read_failed(shard, id, from, other),
        }
    }

    /// Whether a copy that was read for a request does not have the version that counts.
    pub(crate) fn is_outdated(&mut self, id: OpId, version: Version) -> bool {
        self.ops.client_mut(id).is_some_and(|op| op.version != Version::NONE && op.version != version)
    }

    /// The object was recovered, and the copy we asked for dropped, while we were reading it: the client asks again.
    pub(crate) fn read_again(&mut self, id: OpId) {
        self.finish(id, Status::Retry, Version::NONE, ReplyBody::Empty);
    }

    /// Answers a read, or goes on with a compare-and-write, if nobody can have taken our place.
    pub(crate) fn read_answer(
        &mut self,
        now: Millis,
        shard: &mut dyn ShardIndex,
        id: OpId,
        version: Version,
        data: Buffer,
        crcs: Crcs,
    ) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let pg_id = op.pg;
        let Some(pg) = self.pgs.get(&pg_id) else { return };
        if !pg.has_lease(now, &self.links, self.registered) {
            return self.lease_lost(now, shard, pg_id);
        }
        let Some(op) = self.ops.client_mut(id) else { return };
        match &op.request.op {
            RequestOp::CompareAndWrite { sectors, data: both, .. } if data[..] == both[..sectors.bytes()] => {
                op.ec = None;
                self.write_start(shard, id);
            }
            RequestOp::CompareAndWrite { .. } => self.finish(id, Status::Mismatch, version, ReplyBody::Empty),
            _ => self.finish(id, Status::Ok, version, ReplyBody::Data { data, crcs }),
        }
    }

    /// We were silent for too long, or our members were: they are asked again before anything is served.
    fn lease_lost(&mut self, now: Millis, shard: &mut dyn ShardIndex, pg: PgId) {
        let registers = self.pgs.get(&pg).is_some_and(|pg| !pg.is_writable());
        if registers {
            // Below `min_size` it is our registration that counts, which takes a moment to renew.
            return self.pg_stall(now, pg);
        }
        self.notice(format!("pg {pg}: the read lease ran out, members are asked again"));
        self.begin_round(now, shard, pg);
    }

    /// A copy could not be read.
    fn read_failed(&mut self, shard: &mut dyn ShardIndex, id: OpId, from: usize, outcome: ShardOutcome) {
        let ShardOutcome::Corrupt { sectors, .. } = outcome else {
            // A device that fails is not the client's business: another member will serve, or this one again.
            let status = match outcome {
                ShardOutcome::Failed(status) if status != Status::Io => status,
                _ => Status::Retry,
            };
            return self.finish(id, status, Version::NONE, ReplyBody::Empty);
        };
        let Some(op) = self.ops.client_mut(id) else { return };
        if !op.exclusive {
            return self.lock_whole(shard, id);
        }
        match sectors.first() {
            Some(&bad) => self.fetch_from(shard, id, bad, from, 0),
            None => self.finish(id, Status::Io, Version::NONE, ReplyBody::Empty),
        }
    }

    /// Gives up what the request holds and queues it for the whole object. It begins again when it has it.
    pub(crate) fn lock_whole(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let pg = op.pg;
        let Kind::Client(client_op) = &mut op.kind else { return };
        let object = client_op.request.object;
        client_op.exclusive = true;
        client_op.stage = Stage::Blocked;
        client_op.ec = None;
        let Some(state) = self.pgs.get_mut(&pg) else { return };
        self.ready.extend(state.locks.release(object, id));
        self.enqueue(shard, id);
    }

    /// Asks the members from number `peer` on for the sectors that are damaged at `from`.
    fn fetch_from(&mut self, shard: &dyn ShardIndex, id: OpId, bad: SectorRange, from: usize, peer: usize) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Some(pg) = self.pgs.get(&op.pg) else { return };
        let Kind::Client(client_op) = &mut op.kind else { return };
        let object = client_op.request.object;
        let holders = pg.holders(&object);
        let Some(peer) = crate::op::bits(holders).find(|&p| p >= peer && p != from) else {
            return match bad.count {
                1 => self.damaged_everywhere(id, object, bad),
                // Of each sector another copy may be intact.
                _ => self.fetch_from(shard, id, SectorRange::new(bad.start, 1), from, 0),
            };
        };
        client_op.stage = Stage::Fetching { bad, from, peer };
        self.send_to_peer(shard, id, peer, ShardOp::Read { object, sectors: bad });
    }

    /// No intact copy can be had. Somebody who is absent may have one, or recovery finds one elsewhere: then the client asks again.
    pub(crate) fn damaged_everywhere(&mut self, id: OpId, object: cluster_proto::ObjectId, bad: SectorRange) {
        let Some(pg_id) = self.ops.get_mut(id).map(|op| op.pg) else { return };
        let is_missing = self.pgs.get(&pg_id).is_some_and(|pg| pg.missing.contains_key(&object));
        let hope = is_missing || !self.absent(pg_id, &self.past_intervals(pg_id)).is_empty();
        let status = if hope { Status::Retry } else { Status::Corrupt };
        if !hope {
            self.notice(format!("object {object}: sectors {bad:?} are damaged in every copy"));
        }
        self.finish(id, status, Version::NONE, ReplyBody::Empty);
    }

    /// A member's copy of the damaged sectors arrived, or it has none.
    pub(crate) fn repair_fetched(&mut self, shard: &dyn ShardIndex, id: OpId, outcome: ShardOutcome) {
        let Some(op) = self.ops.client_mut(id) else { return };
        let Stage::Fetching { bad, from, peer } = op.stage else { return };
        let object = op.request.object;
        match outcome {
            // All holders are at one version while the object is held.
            ShardOutcome::Read { version, data, crcs } => {
                op.stage = Stage::Repairing { bad };
                let repair = ShardOp::Repair { object, version, sectors: bad, data, crcs };
                self.send_to_peer(shard, id, from, repair);
            }
            _ => self.fetch_from(shard, id, bad, from, peer + 1),
        }
    }

    /// The damaged sectors are rewritten: read again.
    pub(crate) fn repair_finish(
        &mut self,
        shard: &mut dyn ShardIndex,
        id: OpId,
        bad: SectorRange,
        outcome: ShardOutcome,
    ) {
        if let ShardOutcome::Failed(status) = outcome {
            self.notice(format!("damaged sectors {bad:?} could not be rewritten: {status}"));
            return self.finish(id, Status::Retry, Version::NONE, ReplyBody::Empty);
        }
        let Some(op) = self.ops.client_mut(id) else { return };
        let object = op.request.object;
        self.stats.repaired_sectors += u64::from(bad.count);
        self.notice(format!("object {object}: repaired {} damaged sectors from another copy", bad.count));
        self.start(shard, id);
    }

    /// Every change of the PG answered before in this interval becomes durable past the members' volatile caches.
    pub(crate) fn sync_start(&mut self, shard: &dyn ShardIndex, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Some(members) = self.pgs.get(&op.pg).map(|pg| pg.acting()) else { return };
        let Kind::Client(client_op) = &mut op.kind else { return };
        client_op.stage = Stage::Committing;
        self.send_to(shard, id, members, ShardOp::Sync);
    }

    /// Fails a PG whose members may differ: everything begun waits for a new round.
    pub(crate) fn pg_fail(&mut self, now: Millis, pg: PgId, why: &str) {
        self.notice(format!("pg {pg} starts over: {why}"));
        self.pg_stall(now, pg);
    }
}
