//! What an OSD does for the primary of a PG: digests and lists while peering, shard operations while active.
//!
//! Previous hop: `write.rs` or `read.rs` of the primary, over the wire. Next hop: `osd/blockstore/src/{write,read}.rs`.
//!
//! An OSD belongs to one (epoch, round) of a PG at a time, the latest it was asked into, whether it is in the acting set or only
//! may have old copies. Operations of any other are refused: that is what makes a deposed primary, or one that lost its
//! connection for a moment, harmless.

use std::collections::BTreeMap;

use cluster_proto::limits::EARLY_QUERIES_MAX;
use cluster_proto::link::{LinkId, Millis};
use cluster_proto::map::Member;
use cluster_proto::shard::{Buckets, ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::status::Status;
use cluster_proto::wire::{Deposed, Message, PeerInfo, PeerList, PeerObjects, PeerQuery, SubReply, SubRequest};
use cluster_proto::{Epoch, PgId, PgScope, limits};

use crate::latency::OpClass;
use crate::op::{Kind, Local, Op, OpId};
use crate::osd::{Osd, Output};

/// A primary's query that waits until this OSD is ready to answer it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldQuery {
    pub link: LinkId,
    pub from: Member,
    pub query: PeerQuery,
}

impl Osd {
    pub(crate) fn handle_sub_request(&mut self, shard: &mut dyn ShardIndex, link: LinkId, request: SubRequest) {
        let accepted = self.pgs.get_mut(&request.pg).filter(|pg| pg.accepts(link, request.epoch, request.round));
        let Some(pg) = accepted else {
            let outcome = ShardOutcome::Failed(Status::Retry);
            return self.sub_reply(shard, link, request.id, outcome);
        };
        let mutation = request.op.is_mutation();
        pg.local_mutations += u32::from(mutation);
        self.lazy_seen |= request.op.is_lazy();
        let degraded = pg.is_degraded();
        pg.dirty.follow(&request.op, degraded, |object| shard.head(object).map(|h| h.version).unwrap_or_default());
        let local = if mutation { Local::Mutation } else { Local::Read };
        let kind = Kind::Secondary { link, id: request.id };
        let op = Op { local, class: OpClass::of(&request.op), ..Op::new(self.now_us, request.pg, kind) };
        let id = self.ops.insert(op);
        self.outputs.push_back(Output::Local { tag: id.0, op: request.op });
    }

    pub(crate) fn secondary_finish(&mut self, shard: &mut dyn ShardIndex, id: OpId, outcome: ShardOutcome) {
        let Some(op) = self.ops.remove(id) else { return };
        let took = self.now_us - op.began_us;
        if self.slow.is_slow(took) {
            self.slow_secondary(op.pg, op.class, took);
        }
        if op.class == OpClass::Write
            && let ShardOutcome::Failed(_) = outcome
            && let Some(pg) = self.pgs.get_mut(&op.pg)
        {
            pg.leave_round();
        }
        if let Kind::Secondary { link, id } = op.kind {
            self.sub_reply(shard, link, id, outcome);
        }
    }

    fn sub_reply(&mut self, shard: &dyn ShardIndex, link: LinkId, id: u64, outcome: ShardOutcome) {
        self.send(link, Message::SubReply(SubReply { id, outcome, free_bytes: shard.space().free() }));
    }

    /// A primary begins a round. If our map is behind, the query waits for it.
    pub(crate) fn handle_query(
        &mut self,
        now: Millis,
        shard: &mut dyn ShardIndex,
        link: LinkId,
        from: Member,
        query: PeerQuery,
    ) {
        let held = HeldQuery { link, from, query };
        let map = self.map.pgs.get(&query.pg).filter(|_| self.map.pools.contains_key(&query.pg.pool));
        let known = map.is_some_and(|map| map.epoch >= query.epoch);
        if !known {
            return self.hold_query(held);
        }
        if !self.pgs.contains_key(&query.pg) {
            // We are not a member, but may have old copies.
            self.hold_query(held);
            return self.pg_update(now, shard, query.pg);
        }
        let Some(pg) = self.pgs.get_mut(&query.pg) else { return };
        let is_new = query.round >= pg.round() && !pg.is_primary();
        // An older epoch: its primary will learn of the newer one from the state store.
        if query.epoch == pg.epoch() && pg.map().primary() == Some(from) && is_new {
            pg.join_round(held);
            self.sync_before_peering(query.pg);
            self.answer_query(now, shard, query.pg);
        }
    }

    /// What peering sees of our store must be durable, because others come to rely on our having it. Counts as a change that the round
    /// waits for.
    pub(crate) fn sync_before_peering(&mut self, id: PgId) {
        let Some(pg) = self.pgs.get_mut(&id).filter(|_| self.lazy_seen) else { return };
        pg.local_mutations += 1;
        let op = self.ops.insert(Op { local: Local::Mutation, ..Op::new(self.now_us, id, Kind::Background) });
        self.outputs.push_back(Output::Local { tag: op.0, op: ShardOp::Sync });
    }

    /// Keeps the latest query of a PG until we know as much as its sender. PGs that do not exist can be named without end: whoever
    /// has named most is sent away when there are too many.
    fn hold_query(&mut self, held: HeldQuery) {
        if self.early_queries.len() >= EARLY_QUERIES_MAX && !self.early_queries.contains_key(&held.query.pg) {
            let greedy = self.greediest(held.link);
            self.notice(format!("refused a connection that asks into more PGs than there can be: {greedy:?}"));
            self.outputs.push_back(Output::Close(greedy));
            self.forget_caller(greedy);
            if greedy == held.link {
                return;
            }
        }
        let latest = |query: &PeerQuery| (query.epoch, query.round);
        let before = self.early_queries.entry(held.query.pg).or_insert(held);
        if latest(&held.query) >= latest(&before.query) {
            *before = held;
        }
    }

    /// The connection with the most early queries.
    fn greediest(&self, fallback: LinkId) -> LinkId {
        let mut counts: BTreeMap<LinkId, usize> = BTreeMap::new();
        self.early_queries.values().for_each(|held| *counts.entry(held.link).or_default() += 1);
        counts.into_iter().max_by_key(|(_, count)| *count).map_or(fallback, |(link, _)| link)
    }

    /// A connection that somebody made to us is gone, or about to go: nothing that came on it counts any more.
    pub(crate) fn forget_caller(&mut self, link: LinkId) {
        let Some(incoming) = self.links.incoming.remove(&link) else { return };
        self.early_queries.retain(|_, held| held.link != link);
        self.leader_lost(link, incoming.granted);
        self.drop_unstarted(link);
    }

    /// Our map of the PG has changed: perhaps a query was waiting for that.
    pub(crate) fn recheck_early_query(&mut self, now: Millis, shard: &mut dyn ShardIndex, pg: PgId) {
        if let Some(held) = self.early_queries.remove(&pg) {
            self.handle_query(now, shard, held.link, held.from, held.query);
        }
    }

    /// Answers the round's query once nothing of the PG is under way in our store: the digests must show all of it.
    pub(crate) fn answer_query(&mut self, now: Millis, shard: &mut dyn ShardIndex, pg_id: PgId) {
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        let scope = pg.scope();
        let Some(held) = pg.take_drained_query() else { return };
        let lease_ms = self.lease_left(now, pg_id, held.from) as u32;
        let digests = Box::new(shard.digests(scope));
        self.links.grant(held.link, now);
        let parts = shard.parts(scope);
        let info = PeerInfo { query: held.query, digests, free_bytes: shard.space().free(), lease_ms, parts };
        self.send(held.link, Message::PeerInfo(info));
    }

    pub(crate) fn handle_list(&mut self, shard: &mut dyn ShardIndex, link: LinkId, list: &PeerList) {
        let query = list.query;
        let accepted = self.pgs.get(&query.pg).filter(|pg| pg.accepts(link, query.epoch, query.round));
        let Some(scope) = accepted.map(|pg| pg.scope()) else { return };
        for objects in heads_in_messages(shard, scope, query, &list.buckets) {
            self.send(link, Message::PeerObjects(objects));
        }
    }

    /// We are about to follow another primary, or none, in interval `epoch`: the one before must not count on us any longer.
    pub(crate) fn depose_leader(&mut self, pg_id: PgId, next: Option<Member>, epoch: Epoch) {
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        let Some((link, leader)) = pg.leader() else { return };
        if Some(leader) == next {
            // It goes on counting on us for the interval before, until it hears of this one.
            return pg.forget_query();
        }
        pg.forget_leader();
        if let Some(incoming) = self.links.incoming.get(&link) {
            pg.lease_ends(leader, incoming.granted);
            self.send(link, Message::Deposed(Deposed { pg: pg_id, epoch }));
        }
    }

    /// A primary's connection is gone, on which we last gave it our word at `granted`.
    pub(crate) fn leader_lost(&mut self, link: LinkId, granted: Millis) {
        for pg in self.pgs.values_mut() {
            if let Some((_, leader)) = pg.leader().filter(|(by, _)| *by == link) {
                pg.lease_ends(leader, granted);
                pg.forget_leader();
            }
        }
    }

    /// A member follows a newer epoch than we lead.
    pub(crate) fn handle_deposed(&mut self, now: Millis, shard: &mut dyn ShardIndex, deposed: &Deposed) {
        let is_ours = self.pgs.get(&deposed.pg).is_some_and(|pg| pg.is_primary() && pg.epoch() < deposed.epoch);
        if is_ours {
            // Nobody will join this round: the PG serves nothing until we hear of the newer epoch.
            self.begin_round(now, shard, deposed.pg);
        }
    }

    /// A change of our store ended: perhaps a round was waiting for that.
    pub(crate) fn local_mutation_ended(&mut self, now: Millis, shard: &mut dyn ShardIndex, pg_id: PgId) {
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        debug_assert!(pg.local_mutations > 0);
        pg.local_mutations -= 1;
        if pg.local_mutations == 0 && pg.waits_for_drain() {
            self.answer_query(now, shard, pg_id);
            self.peering_drained(now, shard, pg_id);
        }
    }
}

fn heads_in_messages(shard: &dyn ShardIndex, scope: PgScope, query: PeerQuery, buckets: &Buckets) -> Vec<PeerObjects> {
    let heads = shard.list(scope, buckets);
    let count = heads.len().div_ceil(limits::WIRE_HEADS_MAX).max(1);
    (0..count)
        .map(|i| {
            let from = i * limits::WIRE_HEADS_MAX;
            let to = heads.len().min(from + limits::WIRE_HEADS_MAX);
            PeerObjects { query, more: i + 1 < count, heads: heads[from..to].to_vec() }
        })
        .collect()
}
