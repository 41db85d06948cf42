//! What a member does for the primary of a PG: digests and lists while peering, shard operations while active.
//!
//! Previous hop: `write.rs` or `read.rs` of the primary, over the wire. Next hop: `osd/blockstore/src/{write,read}.rs`.
//!
//! A member belongs to one (epoch, round) of a PG at a time, the latest it was asked into. Operations of any other are
//! refused: that is what makes a deposed primary, or one that lost its connection for a moment, harmless.

use cluster_proto::link::LinkId;
use cluster_proto::map::Member;
use cluster_proto::shard::{Buckets, ShardIndex, ShardOutcome};
use cluster_proto::status::Status;
use cluster_proto::wire::{Message, PeerInfo, PeerList, PeerObjects, PeerQuery, SubReply, SubRequest};
use cluster_proto::{PgId, limits};

use crate::op::{Kind, Local, Op, OpId};
use crate::osd::{Osd, Output};

/// A primary's query that waits until this member is ready to answer it.
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
        let local = if mutation { Local::Mutation } else { Local::Read };
        let kind = Kind::Secondary { link, id: request.id };
        let id = self.ops.insert(Op { pg: request.pg, kind, local, remotes: 0 });
        self.outputs.push_back(Output::Local { tag: id.0, op: request.op });
    }

    pub(crate) fn secondary_finish(&mut self, shard: &mut dyn ShardIndex, id: OpId, outcome: ShardOutcome) {
        let Some(op) = self.ops.remove(id) else { return };
        if let Kind::Secondary { link, id } = op.kind {
            self.sub_reply(shard, link, id, outcome);
        }
    }

    fn sub_reply(&mut self, shard: &dyn ShardIndex, link: LinkId, id: u64, outcome: ShardOutcome) {
        let space = shard.space();
        let free_bytes = space.total.saturating_sub(space.used);
        self.send(link, Message::SubReply(SubReply { id, outcome, free_bytes }));
    }

    /// A primary begins a round. If our map is behind, the query waits for it.
    pub(crate) fn handle_query(&mut self, shard: &mut dyn ShardIndex, link: LinkId, from: Member, query: PeerQuery) {
        let known_pool = self.map.pools.contains_key(&query.pg.pool);
        let Some(pg) = self.pgs.get_mut(&query.pg).filter(|_| known_pool) else {
            self.early_queries.insert(query.pg, HeldQuery { link, from, query });
            return;
        };
        if query.epoch > pg.epoch() {
            self.early_queries.insert(query.pg, HeldQuery { link, from, query });
        } else if query.epoch == pg.epoch() && pg.map().primary() == Some(from) {
            pg.join_round(HeldQuery { link, from, query });
            self.answer_query(shard, query.pg);
        }
        // An older epoch: its primary will learn of the newer one from the state store.
    }

    /// Our map of the PG has changed: perhaps a query was waiting for that.
    pub(crate) fn recheck_early_query(&mut self, shard: &mut dyn ShardIndex, pg: PgId) {
        if let Some(held) = self.early_queries.remove(&pg) {
            self.handle_query(shard, held.link, held.from, held.query);
        }
    }

    /// Answers the round's query once nothing of the PG is under way in our store: the digests must show all of it.
    pub(crate) fn answer_query(&mut self, shard: &mut dyn ShardIndex, pg_id: PgId) {
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        let Some(held) = pg.take_drained_query() else { return };
        let digests = Box::new(shard.digests(pg_id));
        let space = shard.space();
        let free_bytes = space.total.saturating_sub(space.used);
        self.send(held.link, Message::PeerInfo(PeerInfo { query: held.query, digests, free_bytes }));
    }

    pub(crate) fn handle_list(&mut self, shard: &mut dyn ShardIndex, link: LinkId, list: &PeerList) {
        let query = list.query;
        let accepted = self.pgs.get(&query.pg).is_some_and(|pg| pg.accepts(link, query.epoch, query.round));
        if !accepted {
            return;
        }
        for objects in heads_in_messages(shard, query, &list.buckets) {
            self.send(link, Message::PeerObjects(objects));
        }
    }

    /// A change of our store ended: perhaps a round was waiting for that.
    pub(crate) fn local_mutation_ended(&mut self, shard: &mut dyn ShardIndex, pg_id: PgId) {
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        debug_assert!(pg.local_mutations > 0);
        pg.local_mutations -= 1;
        if pg.local_mutations == 0 && !pg.is_active() {
            self.answer_query(shard, pg_id);
            self.peering_drained(shard, pg_id);
        }
    }
}

fn heads_in_messages(shard: &dyn ShardIndex, query: PeerQuery, buckets: &Buckets) -> Vec<PeerObjects> {
    let heads = shard.list(query.pg, buckets);
    let count = heads.len().div_ceil(limits::WIRE_HEADS_MAX).max(1);
    (0..count)
        .map(|i| {
            let from = i * limits::WIRE_HEADS_MAX;
            let to = heads.len().min(from + limits::WIRE_HEADS_MAX);
            PeerObjects { query, more: i + 1 < count, heads: heads[from..to].to_vec() }
        })
        .collect()
}
