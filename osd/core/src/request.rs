//! A client's request from its arrival to its answer.
//!
//! Previous hop: `cluster/client/src/{write,read}.rs`, over the wire. Next hop: `write.rs`, `read.rs`, `compare.rs` and
//! `sync.rs` here.
//!
//! A request waits twice: until its PG is active, and until no overlapping request is before it on its object. It is
//! known by (client, number) as long as it is held, so that a copy that arrives on a new connection is answered as
//! well.

use std::collections::VecDeque;

use cluster_proto::ids::{ClientId, ObjectId};
use cluster_proto::layout::{PgScope, SectorRange};
use cluster_proto::limits::{CLIENT_WINDOW, OSD_REQUEST_BYTES_MAX, OSD_REQUESTS_MAX};
use cluster_proto::link::{LinkId, Millis};
use cluster_proto::locks::{Access, Hold};
use cluster_proto::shard::{Allocation, RequestState, ShardIndex, ShardOutcome};
use cluster_proto::status::Status;
use cluster_proto::wire::{Message, Reply, ReplyBody, Request, RequestOp};
use cluster_proto::{Epoch, PgId, Version};
use smallvec::smallvec;

use crate::latency::OpClass;
use crate::op::{ClientOp, Kind, Local, OpId, Stage};
use crate::osd::Osd;
use crate::slow::{Cause, Trace};

/// Bytes that held requests keep in memory.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct HeldBytes {
    /// Payloads of changes: also what they may need on the devices.
    pub changes: usize,
    /// What reads are going to return.
    pub reads: usize,
}

impl HeldBytes {
    fn of(op: &RequestOp) -> HeldBytes {
        match op {
            RequestOp::Write { data, .. } | RequestOp::CompareAndWrite { data, .. } => {
                HeldBytes { changes: data.len(), reads: 0 }
            }
            RequestOp::Read(sectors) => HeldBytes { changes: 0, reads: sectors.bytes() },
            _ => HeldBytes::default(),
        }
    }

    fn add(&mut self, op: &RequestOp) {
        let of = Self::of(op);
        self.changes += of.changes;
        self.reads += of.reads;
    }

    fn remove(&mut self, op: &RequestOp) {
        let of = Self::of(op);
        self.changes -= of.changes;
        self.reads -= of.reads;
    }

    /// Whether one more request is too much.
    fn is_full_for(self, op: &RequestOp) -> bool {
        let of = Self::of(op);
        self.changes + of.changes > OSD_REQUEST_BYTES_MAX || self.reads + of.reads > OSD_REQUEST_BYTES_MAX
    }
}

impl Osd {
    pub(crate) fn handle_request(
        &mut self,
        shard: &mut dyn ShardIndex,
        link: LinkId,
        client: ClientId,
        request: Request,
    ) {
        if let Some(&id) = self.held.get(&(client, request.seq)) {
            if let Some(op) = self.ops.client_mut(id).filter(|op| !op.links.contains(&link)) {
                op.links.push(link);
            }
            return;
        }
        let pg = PgId { pool: request.object.pool, index: request.pg };
        if let Err(status) = self.judge(pg, &request) {
            self.send(link, Message::Reply(Reply::status(request.seq, status)));
            return;
        }
        self.held_bytes.add(&request.op);
        let key = (client, request.seq);
        let op = ClientOp {
            links: smallvec![link],
            client,
            request,
            stage: Stage::Waiting,
            exclusive: false,
            version: Version::NONE,
            failed: None,
            unsynced: false,
            ec: None,
            trace: Trace::new(self.now_us),
            coded: self.pgs.get(&pg).is_some_and(|pg| pg.is_coded()),
        };
        let id = self.new_op(pg, Kind::Client(op));
        self.held.insert(key, id);
        self.enqueue(shard, id);
    }

    /// Whether the request is ours to serve and keeps the rules.
    ///
    /// While a PG is split, clients hear of it sooner or later than we do: who knows another interval than we is to try again.
    fn judge(&self, pg: PgId, request: &Request) -> Result<(), Status> {
        let pool = self.map.pools.get(&pg.pool).ok_or(Status::Retry)?;
        let state = self.pgs.get(&pg).filter(|state| state.is_primary()).ok_or(Status::Retry)?;
        if request.epoch > state.epoch() {
            return Err(Status::Retry);
        }
        let by_object = !matches!(request.op, RequestOp::Sync);
        if by_object && !state.scope().contains(&request.object) {
            return Err(if request.epoch == state.epoch() { Status::Invalid } else { Status::Retry });
        }
        let whole = matches!(request.op, RequestOp::Delete);
        if !whole && request.op.sectors().is_some_and(|sectors| !sectors.is_valid(pool.object_size())) {
            return Err(Status::Invalid);
        }
        if request.floor > request.seq || request.seq - request.floor > CLIENT_WINDOW {
            return Err(Status::Invalid);
        }
        let held = self.held.len() >= OSD_REQUESTS_MAX;
        if held || self.held_bytes.is_full_for(&request.op) {
            return Err(Status::Busy);
        }
        Ok(())
    }

    /// Starts a request, or lets it wait for its PG or its object.
    pub(crate) fn enqueue(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let pg_id = op.pg;
        let Kind::Client(client_op) = &mut op.kind else { return };
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        let changes = client_op.request.op.is_mutation();
        let serves = if changes { pg.is_writable() && !pg.is_dropping() } else { pg.is_active() };
        if !serves {
            client_op.stage = Stage::Waiting;
            client_op.trace.enter(self.now_us, Cause::Pg);
            pg.waiting.push_back(id);
            return;
        }
        if let Some(hold) = hold_of(client_op, id)
            && !pg.locks.acquire(client_op.request.object, hold)
        {
            client_op.stage = Stage::Blocked;
            client_op.trace.enter(self.now_us, Cause::Blocked);
            return;
        }
        self.start(shard, id);
    }

    /// The PG is active and no overlapping request is before this one.
    pub(crate) fn start(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        if self.is_of_past_epoch(id) {
            return self.finish(id, Status::Retry, Version::NONE, ReplyBody::Empty);
        }
        if self.waits_for_recovery(shard, id) {
            return;
        }
        let lazy_since = if self.lazy_seen { self.epoch_of(id) } else { None };
        let Some(op) = self.ops.client_mut(id) else { return };
        op.trace.enter(self.now_us, Cause::Stores);
        if op.request.op.is_mutation() && !op.exclusive {
            match shard.request(op.client, op.request.seq) {
                RequestState::Unknown => {}
                RequestState::Applied(version) => {
                    // What was here when the interval began was made durable then, by all members.
                    op.unsynced = lazy_since == Some(version.epoch());
                    return self.finish(id, Status::Ok, version, ReplyBody::Empty);
                }
                // The client has its answer: a copy of the request that was long on its way. An answer cannot hurt.
                RequestState::BelowFloor => {
                    return self.finish(id, Status::Ok, Version::NONE, ReplyBody::Empty);
                }
            }
        }
        match op.request.op {
            RequestOp::Read(_) | RequestOp::CompareAndWrite { .. } => self.read_start(shard, id),
            RequestOp::Allocation(sectors) => self.allocation(shard, id, sectors),
            RequestOp::Write { .. } | RequestOp::Zero(_) | RequestOp::Delete => self.write_start(shard, id),
            RequestOp::Sync => self.sync_start(shard, id),
        }
    }

    /// The present epoch of an operation's PG.
    fn epoch_of(&mut self, id: OpId) -> Option<Epoch> {
        let pg = self.ops.get_mut(id)?.pg;
        self.pgs.get(&pg).map(|pg| pg.epoch())
    }

    /// Whether a request was meant for an earlier interval only: its client has to repeat others first.
    fn is_of_past_epoch(&mut self, id: OpId) -> bool {
        let only_in = self.ops.client_mut(id).filter(|op| op.request.only_in_epoch).map(|op| op.request.epoch);
        only_in.is_some_and(|epoch| self.epoch_of(id) != Some(epoch))
    }

    /// Which sectors hold data, as far as we can tell at once.
    fn allocation(&mut self, shard: &dyn ShardIndex, id: OpId, sectors: SectorRange) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Some(pg) = self.pgs.get(&op.pg) else { return };
        let Kind::Client(client_op) = &op.kind else { return };
        let object = pg.name_at(client_op.request.object, pg.own());
        let head = shard.head(&object).filter(|_| !pg.missing.contains_key(&object.whole()));
        let exact = head.is_some() && !pg.is_coded();
        let exists = pg.missing.get(&object.whole()).map_or(head, |_| None).is_some_and(|head| !head.deleted);
        let runs = if exact {
            shard.allocation(&object, sectors)
        } else {
            let data = exists || pg.missing.contains_key(&object.whole());
            vec![Allocation { count: sectors.count, data }]
        };
        self.finish(id, Status::Ok, head.map_or(Version::NONE, |head| head.version), ReplyBody::Allocation(runs));
    }

    /// Below `min_size`, lets a read wait of what may not have been acknowledged: it might not be found again.
    fn waits_for_quorum(&mut self, shard: &dyn ShardIndex, id: OpId, pg_id: PgId, object: ObjectId) -> bool {
        let past = self.past_intervals(pg_id);
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return false };
        let version = shard.head(&pg.name_at(object, pg.own())).map_or(Version::NONE, |head| head.version);
        if !pg.missing.contains_key(&object) && pg.is_settled(version, &past) {
            return false;
        }
        let Some(client_op) = self.ops.client_mut(id) else { return false };
        if hold_of(client_op, id).is_some() {
            self.ready.extend(pg.locks.release(object, id));
        }
        (client_op.stage, client_op.exclusive, client_op.ec) = (Stage::Waiting, false, None);
        client_op.trace.enter(self.now_us, Cause::Pg);
        pg.waiting.push_back(id);
        true
    }

    /// Lets a change wait whose object must be copied to members first. It gives up what it holds meanwhile.
    fn waits_for_recovery(&mut self, shard: &dyn ShardIndex, id: OpId) -> bool {
        let Some(op) = self.ops.get_mut(id) else { return false };
        let pg_id = op.pg;
        let object = match &op.kind {
            Kind::Client(client_op) if client_op.request.op.sectors().is_some() => client_op.request.object,
            _ => return false,
        };
        let Some(pg) = self.pgs.get(&pg_id) else { return false };
        if !pg.is_writable() {
            return self.waits_for_quorum(shard, id, pg_id, object);
        }
        if !pg.missing.contains_key(&object) {
            return false;
        }
        let past = self.past_intervals(pg_id);
        let (Some(pg), Some(op)) = (self.pgs.get_mut(&pg_id), self.ops.get_mut(id)) else { return false };
        let Kind::Client(client_op) = &mut op.kind else { return false };
        let changes = client_op.request.op.is_mutation() && pg.needs_recovery(&object);
        let hidden = !pg.is_safe_to_show(&object, &past);
        if !(changes || hidden || client_op.exclusive) {
            return false;
        }
        if hold_of(client_op, id).is_some() {
            self.ready.extend(pg.locks.release(object, id));
        }
        (client_op.stage, client_op.exclusive, client_op.ec) = (Stage::Recovering, false, None);
        client_op.trace.enter(self.now_us, Cause::Recovery);
        if let Some(missing) = pg.missing.get_mut(&object) {
            missing.waiting.push(id);
        }
        self.recover_now(pg_id, object);
        true
    }

    /// A step of a client's request ended, here or at a member.
    pub(crate) fn client_step(
        &mut self,
        now: Millis,
        shard: &mut dyn ShardIndex,
        id: OpId,
        from: usize,
        outcome: ShardOutcome,
    ) {
        let Some(op) = self.ops.client_mut(id) else { return };
        match op.stage {
            Stage::Reading if op.ec.is_some() => self.ec_read_step(now, shard, id, from, outcome),
            Stage::Reading => self.read_finish(now, shard, id, from, outcome),
            Stage::Fetching { .. } => self.repair_fetched(shard, id, outcome),
            Stage::Repairing { bad } => self.repair_finish(shard, id, bad, outcome),
            Stage::Committing => self.write_step(now, shard, id, outcome),
            Stage::Waiting | Stage::Blocked | Stage::Recovering => {
                debug_assert!(false, "nothing was asked for this request yet");
            }
        }
    }

    /// Answers and forgets a request, and starts what waited behind it.
    pub(crate) fn finish(&mut self, id: OpId, status: Status, version: Version, body: ReplyBody) {
        let Some(op) = self.ops.remove(id) else { return };
        debug_assert!(op.is_settled(), "answered while a step is still running");
        let Kind::Client(client_op) = op.kind else { return };
        self.count(&client_op, status);
        self.measure(op.pg, &client_op);
        self.held.remove(&(client_op.client, client_op.request.seq));
        self.held_bytes.remove(&client_op.request.op);
        let unsynced = client_op.unsynced && status == Status::Ok;
        self.reply(&client_op.links, Reply { seq: client_op.request.seq, status, version, unsynced, body });
        if let Some(state) = self.pgs.get_mut(&op.pg)
            && hold_of(&client_op, id).is_some()
        {
            self.ready.extend(state.locks.release(client_op.request.object, id));
        }
    }

    fn reply(&mut self, links: &[LinkId], reply: Reply) {
        let Some((last, others)) = links.split_last() else { return };
        for link in others {
            self.send(*link, Message::Reply(reply.clone()));
        }
        self.send(*last, Message::Reply(reply));
    }

    /// Starts what was unlocked during the present input. Not done on the spot: a long queue of requests that end at
    /// once would otherwise become a deep recursion.
    pub(crate) fn start_ready(&mut self, shard: &mut dyn ShardIndex) {
        while let Some(id) = self.ready.pop_front() {
            match self.ops.get_mut(id).map(|op| &op.kind) {
                Some(Kind::Recovery(_)) => self.recovery_start(shard, id),
                Some(Kind::Scrub(_)) => self.scrub_start(shard, id),
                _ => self.start(shard, id),
            }
        }
    }

    fn measure(&mut self, pg: PgId, op: &ClientOp) {
        let took = op.trace.took(self.now_us);
        self.latencies.client[OpClass::of_request(&op.request.op) as usize].add(took);
        if self.slow.is_slow(took) {
            self.slow_request(pg, op);
        }
    }

    fn count(&mut self, op: &ClientOp, status: Status) {
        if status != Status::Ok {
            return;
        }
        let bytes = op.request.op.sectors().map_or(0, SectorRange::bytes) as u64;
        match op.request.op {
            RequestOp::Read(_) => {
                self.stats.reads += 1;
                self.stats.read_bytes += bytes;
            }
            RequestOp::Write { .. } | RequestOp::CompareAndWrite { .. } => {
                self.stats.writes += 1;
                self.stats.write_bytes += bytes;
            }
            RequestOp::Zero(_) | RequestOp::Delete => self.stats.writes += 1,
            RequestOp::Allocation(_) | RequestOp::Sync => {}
        }
    }

    /// The connection is gone: requests that have not begun will be sent again on a new one, if the client lives.
    pub(crate) fn drop_unstarted(&mut self, link: LinkId) {
        let mut ids: Vec<_> = Vec::new();
        for (id, op) in self.ops.iter_mut() {
            if let Kind::Client(c) = &mut op.kind {
                c.links.retain(|other| *other != link);
                if c.links.is_empty() && c.stage == Stage::Waiting {
                    ids.push((id, op.pg));
                }
            }
        }
        for (id, pg) in ids {
            if let Some(state) = self.pgs.get_mut(&pg) {
                state.waiting.retain(|waiting| *waiting != id);
            }
            self.forget(id);
        }
    }

    /// Removes a request without an answer. It must hold no lock and have no step running.
    fn forget(&mut self, id: OpId) {
        if let Some(op) = self.ops.remove(id)
            && let Kind::Client(client_op) = op.kind
        {
            self.held.remove(&(client_op.client, client_op.request.seq));
            self.held_bytes.remove(&client_op.request.op);
        }
    }

    /// Takes back every request of a PG that has begun, because its round is over. With a next round they wait for it,
    /// in the order in which clients numbered them; otherwise the clients are told to ask elsewhere.
    pub(crate) fn take_back(&mut self, pg: PgId, stays_primary: bool) {
        let mut begun: Vec<(u64, ClientId, OpId)> = Vec::new();
        let mut others = Vec::new();
        for (id, op) in self.ops.ids().filter(|(_, op)| op.pg == pg) {
            match &op.kind {
                Kind::Client(c) => begun.push((c.request.seq, c.client, id)),
                Kind::Recovery(_) | Kind::Scrub(_) | Kind::Drop | Kind::Background => others.push(id),
                Kind::Secondary { .. } | Kind::Orphan => {}
            }
        }
        let ops = &mut self.ops;
        self.ready.retain(|id| ops.get_mut(*id).is_some_and(|op| op.pg != pg));
        begun.sort_unstable();
        for id in others {
            self.recovery_dropped(id);
            self.scrub_dropped(id);
            self.orphan(id);
        }
        let mut waiting = Vec::with_capacity(begun.len());
        for (_, _, id) in begun {
            if stays_primary {
                waiting.push(self.restart(pg, id));
            } else if let Some(op) = self.ops.client_mut(id) {
                let (links, seq) = (std::mem::take(&mut op.links), op.request.seq);
                self.reply(&links, Reply::status(seq, Status::Retry));
                let fresh = self.restart_orphan(pg, id);
                self.forget(fresh);
            }
        }
        if let Some(state) = self.pgs.get_mut(&pg) {
            state.locks.clear();
            state.waiting = waiting.into();
            state.recoveries = 0;
            state.drops.clear();
            state.scrubs.round_ended();
            for missing in state.missing.values_mut() {
                missing.waiting.clear();
                missing.running = None;
            }
        }
    }

    /// Of the requests that wait for a PG, those whose objects are another one's from now on are to be sent there; so are those for
    /// all of its objects.
    pub(crate) fn send_away(&mut self, pg: PgId, scope: PgScope) {
        let Some(state) = self.pgs.get_mut(&pg) else { return };
        let (mut stay, mut go) = (VecDeque::new(), Vec::new());
        for id in std::mem::take(&mut state.waiting) {
            let op = self.ops.client_mut(id).map(|op| &op.request);
            let stays = op.is_some_and(|op| !matches!(op.op, RequestOp::Sync) && scope.contains(&op.object));
            if stays { stay.push_back(id) } else { go.push(id) }
        }
        state.waiting = stay;
        for id in go {
            let Some(op) = self.ops.client_mut(id) else { continue };
            let (links, seq) = (std::mem::take(&mut op.links), op.request.seq);
            self.reply(&links, Reply::status(seq, Status::Retry));
            self.forget(id);
        }
    }

    /// Gives a request a fresh slot in its first stage, so that late answers to its steps find nothing.
    fn restart(&mut self, pg: PgId, id: OpId) -> OpId {
        if self.ops.get_mut(id).is_some_and(|op| op.is_settled()) {
            if let Some(op) = self.ops.client_mut(id) {
                (op.stage, op.exclusive, op.failed, op.ec) = (Stage::Waiting, false, None, None);
                op.trace.enter(self.now_us, Cause::Pg);
                op.unsynced = false;
            }
            return id;
        }
        self.restart_orphan(pg, id)
    }

    /// Moves the request to a new slot; what the store still does for it stays behind in the old one.
    fn restart_orphan(&mut self, pg: PgId, id: OpId) -> OpId {
        let Some(op) = self.ops.get_mut(id) else { return id };
        let Kind::Client(mut client_op) = std::mem::replace(&mut op.kind, Kind::Orphan) else { return id };
        op.remotes = 0;
        if op.local == Local::None {
            self.ops.remove(id);
        }
        (client_op.stage, client_op.exclusive, client_op.failed) = (Stage::Waiting, false, None);
        (client_op.ec, client_op.unsynced) = (None, false);
        client_op.trace.enter(self.now_us, Cause::Pg);
        let key = (client_op.client, client_op.request.seq);
        let fresh = self.new_op(pg, Kind::Client(client_op));
        self.held.insert(key, fresh);
        fresh
    }

    /// Gives up an operation of the cluster's own.
    pub(crate) fn orphan(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        op.kind = Kind::Orphan;
        op.remotes = 0;
        if op.local == Local::None {
            self.ops.remove(id);
        }
    }
}

/// What a request locks: reads only wait, changes hold their sectors, a repair holds the object. In an erasure-coded object
/// neighbouring sectors share parity, so a change holds the object.
pub(crate) fn hold_of(op: &ClientOp, id: OpId) -> Option<Hold<OpId>> {
    let all = SectorRange::new(0, cluster_proto::limits::SECTORS_PER_OBJECT_MAX);
    let changes = op.exclusive || op.request.op.is_mutation();
    let sectors = op.request.op.sectors()?;
    let sectors = if op.exclusive || (changes && op.coded) { all } else { sectors };
    Some(Hold { op: id, sectors, access: if changes { Access::Change } else { Access::Read } })
}
