//! How the primary brings the members of a PG together at the start of an interval, and whenever a round is broken.
//!
//! | state | waits for | then |
//! |---|---|---|
//! | `Draining` | changes under way in our own store | `Querying` |
//! | `Querying` | digests of every member, in this run of it | equal: `Activating`; else `Listing` |
//! | `Listing` | heads in the differing buckets, of every member | `Recovering` |
//! | `Recovering` | the newest version of each differing object on every member | `Activating` |
//! | `Activating` | the activation record in the state store | `Active` |
//! | `Active` | | client requests are served |
//! | `Stalled` | a short time, after a failure | `Draining`, next round |

use std::collections::{BTreeMap, VecDeque};

use cluster_proto::ids::{Epoch, ObjectId, OsdId, PgId, Version};
use cluster_proto::link::{Millis, Outgoing};
use cluster_proto::shard::{Buckets, Digests, ObjectHead, ShardIndex};
use cluster_proto::wire::{Message, PeerInfo, PeerList, PeerObjects, PeerQuery};
use smallvec::{SmallVec, smallvec};

use super::{Pg, STALL_MS};
use crate::op::{MemberMask, OpId, Restore, RestoreStage};
use crate::osd::{Osd, Output};

/// Where a PG stands.
pub(crate) enum State {
    /// We are not the primary.
    Member,
    Draining,
    Querying(Querying),
    Listing(Listing),
    Recovering(Recovering),
    Activating,
    Active,
    Stalled {
        until: Millis,
    },
}

impl State {
    pub fn name(&self) -> &'static str {
        match self {
            State::Member => "member",
            State::Draining | State::Querying(_) | State::Listing(_) => "peering",
            State::Recovering(_) => "recovering",
            State::Activating => "activating",
            State::Active => "active",
            State::Stalled { .. } => "stalled",
        }
    }
}

pub(crate) struct Querying {
    asked: MemberMask,
    digests: Vec<Option<Box<Digests>>>,
}

pub(crate) struct Listing {
    heads: Vec<Vec<ObjectHead>>,
    complete: MemberMask,
}

pub(crate) struct Recovering {
    pub queue: VecDeque<Restore>,
    pub running: Vec<OpId>,
}

impl Pg {
    fn query_message(&self) -> PeerQuery {
        PeerQuery { pg: self.id, epoch: self.map.epoch, round: self.round }
    }

    fn all_members(&self) -> MemberMask {
        ((1u32 << self.width()) - 1) as MemberMask
    }

    /// Whether an answer belongs to the present round.
    fn is_present(&self, query: &PeerQuery) -> bool {
        self.is_primary() && *query == self.query_message()
    }
}

impl Osd {
    /// The map of a PG, or of its pool, has changed.
    pub(crate) fn pg_update(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: PgId) {
        let known_pool = self.map.pools.contains_key(&id.pool);
        let map = self.map.pgs.get(&id).filter(|_| known_pool).cloned();
        let own = map.as_ref().and_then(|map| {
            let us =
                |m: &cluster_proto::map::Member| m.osd == self.options.id && m.incarnation == self.options.incarnation;
            map.acting.iter().position(us)
        });
        let (Some(map), Some(own)) = (map, own) else {
            // Not (yet) a member in this run. A former primary sends its clients elsewhere.
            if self.pgs.contains_key(&id) {
                self.take_back(id, false);
                self.pgs.remove(&id);
            }
            return;
        };
        let drop_clients = own != 0;
        match self.pgs.get(&id) {
            Some(pg) if pg.epoch() >= map.epoch => return,
            Some(_) => self.take_back(id, !drop_clients),
            None => {
                let mut pg = Pg::new(id, map.clone(), own);
                // A PG that left and came back finds its own changes still under way.
                let mutations = self.ops.ids().filter(|(_, op)| op.pg == id && op.local == crate::op::Local::Mutation);
                pg.local_mutations = mutations.count() as u32;
                self.pgs.insert(id, pg);
            }
        }
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        pg.begin_interval(map, own);
        let others: Vec<_> = if own == 0 { pg.others().collect() } else { Vec::new() };
        for osd in others {
            self.links.outgoing.entry(osd).or_insert_with(|| Outgoing::new(osd));
        }
        self.poll_links(now, shard);
        if own == 0 {
            self.begin_round(shard, id);
        } else {
            self.recheck_early_query(shard, id);
        }
    }

    /// Everything begun waits, and the members are asked anew.
    fn begin_round(&mut self, shard: &mut dyn ShardIndex, id: PgId) {
        self.take_back(id, true);
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        pg.round += 1;
        pg.state = State::Draining;
        self.peering_drained(shard, id);
    }

    /// A member cannot be reached: the PGs we lead with it start over when it is back.
    pub(crate) fn peer_lost(&mut self, shard: &mut dyn ShardIndex, osd: OsdId) {
        let hit: Vec<_> = self
            .pgs
            .iter()
            .filter(|(_, pg)| pg.is_primary() && pg.others().any(|o| o == osd))
            .map(|(id, _)| *id)
            .collect();
        for id in hit {
            self.begin_round(shard, id);
        }
    }

    /// A member introduced itself: ask it into the rounds that wait for it.
    pub(crate) fn peer_ready(&mut self, osd: OsdId) {
        let hit: Vec<_> = self
            .pgs
            .iter()
            .filter(|(_, pg)| pg.is_primary() && pg.others().any(|o| o == osd))
            .map(|(id, _)| *id)
            .collect();
        for id in hit {
            self.ask_members(id);
        }
    }

    /// Goes on when nothing of the PG is under way in our store.
    pub(crate) fn peering_drained(&mut self, shard: &mut dyn ShardIndex, id: PgId) {
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        if !matches!(pg.state, State::Draining) || pg.local_mutations > 0 {
            return;
        }
        let mut digests: Vec<_> = (0..pg.width()).map(|_| None).collect();
        digests[pg.own] = Some(Box::new(shard.digests(id)));
        pg.state = State::Querying(Querying { asked: 1 << pg.own, digests });
        self.ask_members(id);
        self.compare_digests(shard, id);
    }

    fn ask_members(&mut self, id: PgId) {
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        let query = pg.query_message();
        let members = pg.map.acting.clone();
        let State::Querying(querying) = &mut pg.state else { return };
        for (position, member) in members.iter().enumerate() {
            if querying.asked & 1 << position != 0 {
                continue;
            }
            if let Some(link) = self.links.ready(member.osd, member.incarnation) {
                querying.asked |= 1 << position;
                self.outputs.push_back(Output::Send { link, message: Message::PeerQuery(query) });
            }
        }
    }

    pub(crate) fn handle_peer_info(&mut self, shard: &mut dyn ShardIndex, osd: OsdId, info: PeerInfo) {
        let Some(pg) = self.pgs.get_mut(&info.query.pg).filter(|pg| pg.is_present(&info.query)) else { return };
        let Some(position) = pg.position(osd) else { return };
        if let State::Querying(querying) = &mut pg.state {
            querying.digests[position] = Some(info.digests);
            self.compare_digests(shard, info.query.pg);
        }
    }

    fn compare_digests(&mut self, shard: &mut dyn ShardIndex, id: PgId) {
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        let State::Querying(querying) = &pg.state else { return };
        let Some(all) = querying.digests.iter().map(Option::as_ref).collect::<Option<Vec<_>>>() else { return };
        let own = all[pg.own];
        let buckets = all.iter().fold(Buckets::default(), |set, other| set.union(Buckets::differing(own, other)));
        if buckets.is_empty() {
            return self.activate(shard, id);
        }
        let mut heads = vec![Vec::new(); pg.width()];
        heads[pg.own] = shard.list(id, &buckets);
        let list = PeerList { query: pg.query_message(), buckets };
        let members = pg.map.acting.clone();
        let own = pg.own;
        pg.state = State::Listing(Listing { heads, complete: 1 << own });
        for (_, member) in members.iter().enumerate().filter(|(position, _)| *position != own) {
            if let Some(link) = self.links.ready(member.osd, member.incarnation) {
                self.send(link, Message::PeerList(list));
            }
        }
    }

    pub(crate) fn handle_peer_objects(
        &mut self,
        now: Millis,
        shard: &mut dyn ShardIndex,
        osd: OsdId,
        objects: PeerObjects,
    ) {
        let id = objects.query.pg;
        let Some(pg) = self.pgs.get_mut(&id).filter(|pg| pg.is_present(&objects.query)) else { return };
        let Some(position) = pg.position(osd) else { return };
        let all = pg.all_members();
        let State::Listing(listing) = &mut pg.state else { return };
        listing.heads[position].extend(objects.heads);
        if !objects.more {
            listing.complete |= 1 << position;
        }
        if listing.complete == all {
            let queue = differing_objects(&listing.heads);
            pg.state = State::Recovering(Recovering { queue, running: Vec::new() });
            self.recover(now, shard, id);
        }
    }

    /// All members hold the same: make the interval known before it serves.
    pub(crate) fn activate(&mut self, shard: &mut dyn ShardIndex, id: PgId) {
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        if pg.activated {
            return self.enter_active(shard, id);
        }
        pg.state = State::Activating;
        let (epoch, acting) = (pg.map.epoch, pg.map.acting.clone());
        self.outputs.push_back(Output::Activate { pg: id, epoch, acting });
    }

    pub(crate) fn pg_activated(&mut self, shard: &mut dyn ShardIndex, id: PgId, epoch: Epoch, ok: bool) {
        let Some(pg) = self.pgs.get_mut(&id).filter(|pg| pg.map.epoch == epoch && ok) else { return };
        pg.activated = true;
        if matches!(pg.state, State::Activating) {
            self.enter_active(shard, id);
        }
    }

    fn enter_active(&mut self, shard: &mut dyn ShardIndex, id: PgId) {
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        pg.state = State::Active;
        let waiting = std::mem::take(&mut pg.waiting);
        for tombstone in shard.tombstones(id) {
            self.collect(id, tombstone.object, tombstone.version);
        }
        for op in waiting {
            self.enqueue(shard, op);
        }
    }

    /// Something failed on a member: pause, then start over.
    pub(crate) fn pg_stall(&mut self, now: Millis, id: PgId) {
        self.take_back(id, true);
        if let Some(pg) = self.pgs.get_mut(&id) {
            pg.round += 1;
            pg.state = State::Stalled { until: now + STALL_MS };
        }
    }

    pub(crate) fn retry_stalled(&mut self, now: Millis, shard: &mut dyn ShardIndex) {
        let due = |pg: &Pg| matches!(pg.state, State::Stalled { until } if until <= now);
        let ids: Vec<_> = self.pgs.iter().filter(|(_, pg)| due(pg)).map(|(id, _)| *id).collect();
        for id in ids {
            self.begin_round(shard, id);
        }
    }
}

/// What must be copied where, from each member's heads: the newest version wins. It includes every acknowledged change,
/// because those are on all members, and every older one, because members apply changes in order.
fn differing_objects(heads: &[Vec<ObjectHead>]) -> VecDeque<Restore> {
    let mut versions: BTreeMap<ObjectId, SmallVec<[Version; 4]>> = BTreeMap::new();
    for (position, list) in heads.iter().enumerate() {
        for head in list {
            let of_members = versions.entry(head.object).or_insert_with(|| smallvec![Version::NONE; heads.len()]);
            of_members[position] = head.version;
        }
    }
    versions.into_iter().filter_map(|(object, versions)| Restore::newest(object, versions)).collect()
}

impl Restore {
    /// Brings the newest version to all members, if some lack it.
    fn newest(object: ObjectId, versions: SmallVec<[Version; 4]>) -> Option<Restore> {
        let version = versions.iter().copied().max()?;
        let holding = |wanted: bool| {
            let positions = versions.iter().enumerate().filter(|(_, v)| (**v == version) == wanted);
            positions.fold(0, |mask, (position, _)| mask | 1 << position)
        };
        let (sources, laggards) = (holding(true), holding(false));
        let stage = RestoreStage::Fetching { from: 0 };
        (laggards != 0).then(|| Restore { object, version, sources, laggards, versions, undoes: false, stage })
    }

    /// The newest version cannot be read anywhere. Not all members have it, so it was never acknowledged, nor read: the
    /// next older one, possibly "does not exist", takes its place. False if all members have the same.
    pub(crate) fn undo_newest(&mut self) -> bool {
        let newest = self.version;
        let Some(older) = self.versions.iter().copied().filter(|v| *v < newest).max() else { return false };
        let holds = self.versions.iter().enumerate().filter(|(_, v)| **v == older);
        self.sources = holds.fold(0, |mask, (position, _)| mask | 1 << position);
        self.laggards = ((1u32 << self.versions.len()) - 1) as MemberMask;
        self.version = older;
        self.undoes = true;
        true
    }
}
