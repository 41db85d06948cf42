//! How the primary brings the OSDs of a PG together at the start of an interval, and whenever a round is broken.
//!
//! | state | waits for | then |
//! |---|---|---|
//! | `Draining` | changes under way in our own store, and that lazy ones are durable | `Querying` |
//! | `Querying` | digests of every member, in this run of it, and of so many former members that nothing acknowledged can be missed | equal: `Leasing`; else `Listing` |
//! | `Listing` | heads in the differing buckets | `Leasing` |
//! | `Leasing` | the end of read leases that a former primary may hold | `Activating`; below `min_size` `Active` |
//! | `Activating` | the activation record in the state store | `Active` |
//! | `Active` | | client requests are served, objects recovered |
//! | `Stalled` | a short time, after a failure | `Draining`, next round |

use std::collections::{BTreeMap, BTreeSet};

use cluster_proto::ids::{Epoch, ObjectId, OsdId, PgId, Version};
use cluster_proto::limits::{PG_HEADS_MAX, REGISTRATION_LEASE_WAIT_MS};
use cluster_proto::link::{Millis, Outgoing};
use cluster_proto::map::{Activation, Interval, Member, Scheme};
use cluster_proto::shard::{Buckets, Digests, ObjectHead, ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::wire::{Message, PeerInfo, PeerList, PeerObjects, PeerQuery};

use super::object_state::{self, Missing};
use super::{Peer, Pg, STALL_MS};
use crate::op::{Kind, OpId, PeerMask, bits};
use crate::osd::{Osd, Output};

/// A former member that is registered is waited for so long, if its copies are not needed to be sure. Milliseconds.
const FORMER_WAIT_MS: Millis = 500;

/// Where a PG stands.
pub(crate) enum State {
    /// We are not the primary.
    Member,
    Draining,
    Querying(Querying),
    Listing(Listing),
    Leasing {
        until: Millis,
    },
    Activating,
    Active,
    Stalled {
        until: Millis,
    },
    /// The state store has no map of the PG any more: another PG has its objects, or will have. We will hear.
    Unmapped,
}

impl State {
    pub fn name(&self) -> &'static str {
        match self {
            State::Member => "member",
            State::Querying(querying) if querying.incomplete => "incomplete",
            State::Draining | State::Querying(_) | State::Listing(_) => "peering",
            State::Leasing { .. } => "leasing",
            State::Activating => "activating",
            State::Active => "active",
            State::Stalled { .. } => "stalled",
            State::Unmapped => "unmapped",
        }
    }
}

pub(crate) struct Querying {
    asked: PeerMask,
    digests: Vec<Option<Box<Digests>>>,
    /// Which parts of objects each peer holds.
    parts: Vec<u32>,
    /// For so long a former primary may hold leases, as far as we heard.
    lease_ms: u64,
    /// Too few former members answered to know what was acknowledged.
    incomplete: bool,
}

pub(crate) struct Listing {
    heads: Vec<Vec<ObjectHead>>,
    asked: PeerMask,
    complete: PeerMask,
    lease_until: Millis,
}

impl Pg {
    /// What is asked of the members of the present round.
    pub(crate) fn query_message(&self) -> PeerQuery {
        PeerQuery { pg: self.id, epoch: self.map.epoch, round: self.round }
    }

    /// Whether an answer belongs to the present round.
    fn is_present(&self, query: &PeerQuery) -> bool {
        self.is_primary() && *query == self.query_message()
    }

    /// A new interval begins. `former`: OSDs that may have copies without being members.
    fn begin_interval(&mut self, map: cluster_proto::map::PgMap, us: Member, former: impl Iterator<Item = OsdId>) {
        self.map = map;
        self.state = State::Member;
        (self.counter, self.activated, self.recorded_complete, self.recording) = (0, false, false, false);
        self.unregistered = false;
        self.record_min = usize::MAX;
        self.promised = 0;
        self.missing.clear();
        self.commits.clear();
        // As another member we take the rounds of the new primary from the beginning.
        self.round = 0;
        self.peers.clear();
        (self.own, self.acting) = (0, 0);
        self.members = self.map.members().count();
        if self.map.primary() != Some(us) {
            self.scrubs.lost();
            return;
        }
        let members = self.map.members();
        self.peers = members.map(|(shard, m)| Peer { osd: m.osd, member: Some(m), shard: Some(shard) }).collect();
        self.acting = (1 << self.peers.len()) - 1;
        for osd in former {
            if self.peers.len() < PeerMask::BITS as usize && self.peer_of(osd).is_none() {
                self.peers.push(Peer { osd, member: None, shard: None });
            }
        }
        self.own = self.peer_of(us.osd).unwrap_or(0);
    }

    fn record(&self, complete: Vec<OsdId>) -> Activation {
        Activation { epoch: self.map.epoch, acting: self.map.acting.clone(), complete, min_size: self.record_min as u8 }
    }

    /// Members of the acting set that have every object, and nothing that does not count: of a member that is complete everything does.
    fn complete_members(&self) -> Vec<OsdId> {
        let stale = self.missing.values().fold(0, |mask, missing| mask | missing.stale);
        let stale = self.drops.values().fold(stale, |mask, peer| mask | 1 << peer);
        let unfound = self.missing.values().any(|missing| missing.is_unfound);
        let complete = if unfound { 0 } else { self.acting() & !stale };
        bits(complete).map(|peer| self.peers[peer].osd).collect()
    }
}

/// Copies that do not count: made before an interval in which all members came to have everything, of OSDs that were not among them, and
/// newer than what the others have. Such objects were deleted and forgotten since, or the change was never acknowledged.
struct Garbage {
    clean: Interval,
}

impl Garbage {
    fn of(past: &[Interval], width: usize) -> Option<Self> {
        let full = |interval: &&Interval| {
            interval.osds().count() == width && interval.osds().all(|osd| interval.complete.contains(&osd))
        };
        past.iter().filter(full).max_by_key(|interval| interval.epoch).map(|clean| Garbage { clean: clean.clone() })
    }

    /// Takes garbage out of the lists of peers; returns what members of the acting set have to drop.
    fn take(&self, peers: &[Peer], heads: &mut [Vec<ObjectHead>], scheme: Scheme) -> Vec<(usize, ObjectHead)> {
        let mut newest: BTreeMap<ObjectId, Version> = BTreeMap::new();
        for (peer, list) in peers.iter().zip(&*heads) {
            for head in list.iter().filter(|head| !self.is_old(peer.osd, head, scheme)) {
                let version = newest.entry(head.object.whole()).or_default();
                *version = head.version.max(*version);
            }
        }
        let mut drops = Vec::new();
        for (number, (peer, list)) in peers.iter().zip(heads).enumerate() {
            list.retain(|head| {
                let counts = newest.get(&head.object.whole()).is_some_and(|version| head.version <= *version);
                let is_garbage = !counts && self.is_old(peer.osd, head, scheme);
                if is_garbage && peer.shard.is_some() {
                    drops.push((number, *head));
                }
                !is_garbage
            });
        }
        drops
    }

    fn is_old(&self, osd: OsdId, head: &ObjectHead, scheme: Scheme) -> bool {
        let served = self.clean.acting.iter().position(|member| *member == Some(osd));
        let kept = match scheme {
            Scheme::Replicated { .. } => served.is_some(),
            Scheme::Ec { .. } => served == Some(usize::from(head.object.part)),
        };
        !kept && head.version.epoch() < self.clean.epoch
    }
}

impl Osd {
    /// Intervals that may have accepted writes and of which the present one must know all.
    pub(crate) fn past_intervals(&self, id: PgId) -> Vec<Interval> {
        let epoch = self.map.pgs.get(&id).map_or(Epoch(0), |map| map.epoch);
        let mut past = self.map.histories.get(&id).cloned().unwrap_or_default();
        past.retain(|interval| interval.epoch < epoch);
        if let Some(last) = self.map.activations.get(&id).filter(|last| last.epoch < epoch)
            && past.iter().all(|interval| interval.epoch < last.epoch)
        {
            past.push(last.interval());
        }
        past
    }

    /// The map of a PG, or of its pool, has changed.
    pub(crate) fn pg_update(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: PgId) {
        let config = self.map.pools.get(&id.pool);
        let map = self.map.pgs.get(&id).cloned();
        let Some((scheme, min_size)) = config.map(|config| (config.scheme, usize::from(config.min_size))) else {
            return self.pg_forget(id);
        };
        let (Some(map), Some(scope)) = (map, self.map.scope(id)) else { return self.pg_unmapped(id) };
        shard.set_pool(id.pool, scope.count);
        let us = Member { osd: self.options.id, incarnation: self.options.incarnation };
        let leads = map.primary() == Some(us);
        let acts = map.members().any(|(_, member)| member == us);
        let before = self.pgs.get(&id).map(|pg| (pg.epoch(), pg.scope()));
        if before.is_some_and(|(epoch, _)| epoch >= map.epoch) {
            return self.pg_settings(now, shard, id, min_size);
        }
        let rivals = if before.is_some_and(|(_, before)| before == scope) { Vec::new() } else { self.rivals(scope) };
        if !self.yields(&rivals, scope, map.epoch) {
            return;
        }
        if before.is_none() {
            if rivals.is_empty() && !acts && !self.early_queries.contains_key(&id) {
                return;
            }
            self.pgs.insert(id, Pg::new(scope, map.clone(), scheme, min_size));
            self.inherit_mutations(id);
        } else {
            self.take_back(id, leads);
        }
        let is_split = before.is_some_and(|(_, before)| before.includes(scope));
        let parts = if is_split { self.pg_split(id, scope) } else { Vec::new() };
        let freed = if is_split { Vec::new() } else { self.pg_merge(now, id, scope, map.epoch, &rivals) };
        self.depose_leader(id, map.primary(), map.epoch);
        let former: BTreeSet<OsdId> =
            self.past_intervals(id).iter().flat_map(|i| i.osds().collect::<Vec<_>>()).collect();
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        (pg.scheme, pg.min_size, pg.heard) = (scheme, min_size, now);
        pg.begin_interval(map, us, former.into_iter());
        for osd in pg.others().collect::<Vec<_>>() {
            self.links.outgoing.entry(osd).or_insert_with(|| Outgoing::new(osd));
        }
        self.poll_links(now, shard);
        if leads {
            self.begin_round(now, shard, id);
        } else {
            self.recheck_early_query(now, shard, id);
        }
        self.update_parts(now, shard, &parts);
        self.update_parts(now, shard, &freed);
    }

    /// What may change within an interval: how many members must have a change, and what is recorded of it.
    fn pg_settings(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: PgId, min_size: usize) {
        let recorded = self.map.activations.get(&id);
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        let all = recorded.filter(|r| r.epoch == pg.map.epoch).map_or(0, |record| record.complete.len());
        // While a primary that recovers follows changes it must not begin anew: it would not know of those under way.
        if all == pg.scheme.width() && !pg.is_degraded() {
            pg.dirty.clear();
        }
        if std::mem::replace(&mut pg.min_size, min_size) != min_size && pg.is_primary() {
            pg.activated = false;
            self.begin_round(now, shard, id);
        } else if matches!(pg.state, State::Unmapped) {
            self.begin_round(now, shard, id);
        }
    }

    /// The PG's map is gone, but not its pool: it was merged into another, unless somebody removed the map by mistake. What we promised
    /// and what is under way is not over with that, so the PG stays until we hear who has its objects now. It serves nothing any more: what
    /// we would have to know for that may be gone too.
    fn pg_unmapped(&mut self, id: PgId) {
        if self.pgs.get(&id).is_some_and(Pg::is_primary) {
            self.take_back(id, false);
            if let Some(pg) = self.pgs.get_mut(&id) {
                pg.round += 1;
                pg.state = State::Unmapped;
            }
        }
    }

    /// The PG, or its pool, is gone.
    fn pg_forget(&mut self, id: PgId) {
        if self.pgs.contains_key(&id) {
            self.take_back(id, false);
            self.pgs.remove(&id);
            self.inherited.values_mut().for_each(|parts| parts.retain(|part| *part != id));
        }
    }

    /// Everything begun waits, and the members are asked anew.
    pub(crate) fn begin_round(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: PgId) {
        self.take_back(id, true);
        let is_mapped = self.map.pgs.contains_key(&id);
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        pg.round += 1;
        if !is_mapped {
            pg.state = State::Unmapped;
            return;
        }
        pg.round_begun = now;
        pg.state = State::Draining;
        self.sync_before_peering(id);
        self.peering_drained(now, shard, id);
    }

    fn pgs_led_with(&self, osd: OsdId) -> Vec<PgId> {
        let led = self.pgs.iter().filter(|(_, pg)| pg.is_primary() && pg.others().any(|other| other == osd));
        led.map(|(id, _)| *id).collect()
    }

    /// An OSD cannot be reached: the PGs we lead with it start over, with it or in another interval. An OSD outside the acting
    /// set that only offers copies is done without.
    pub(crate) fn peer_lost(&mut self, now: Millis, shard: &mut dyn ShardIndex, osd: OsdId) {
        for id in self.pgs_led_with(osd) {
            let Some(pg) = self.pgs.get_mut(&id) else { continue };
            let number = pg.peer_of(osd).unwrap_or(0);
            let only_offers = pg.peers[number].shard.is_none();
            let offers_something = pg.missing.values().any(|m| m.shards.iter().any(|s| usize::from(s.peer) == number));
            if let State::Querying(querying) = &mut pg.state
                && only_offers
            {
                querying.digests[number] = None;
                querying.asked &= !(1 << number);
            } else if !only_offers || offers_something || !pg.is_active() {
                self.begin_round(now, shard, id);
            }
        }
    }

    /// An OSD introduced itself: ask it into the rounds that wait for it.
    pub(crate) fn peer_ready(&mut self, now: Millis, shard: &mut dyn ShardIndex, osd: OsdId) {
        for id in self.pgs_led_with(osd) {
            let Some(pg) = self.pgs.get(&id) else { continue };
            let has_unfound = pg.is_active() && pg.missing.values().any(|m| m.is_unfound || m.failed);
            if has_unfound {
                // Perhaps it has what we miss.
                self.begin_round(now, shard, id);
            } else {
                self.ask_peers(id);
            }
        }
    }

    /// Goes on when nothing of the PG is under way in our store.
    pub(crate) fn peering_drained(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: PgId) {
        let us = Member { osd: self.options.id, incarnation: self.options.incarnation };
        let lease_ms = self.lease_left(now, id, us);
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        if !matches!(pg.state, State::Draining) || pg.local_mutations > 0 {
            return;
        }
        let mut digests: Vec<_> = pg.peers.iter().map(|_| None).collect();
        digests[pg.own] = Some(Box::new(shard.digests(pg.scope())));
        let mut parts = vec![0; pg.peers.len()];
        parts[pg.own] = shard.parts(pg.scope());
        pg.state = State::Querying(Querying { asked: 1 << pg.own, digests, parts, lease_ms, incomplete: false });
        self.ask_peers(id);
        self.compare_digests(now, shard, id);
    }

    fn ask_peers(&mut self, id: PgId) {
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        let query = pg.query_message();
        let State::Querying(querying) = &mut pg.state else { return };
        for (number, peer) in pg.peers.iter().enumerate() {
            let Some(link) = self.links.ready_peer(peer).filter(|_| querying.asked >> number & 1 == 0) else {
                continue;
            };
            querying.asked |= 1 << number;
            self.outputs.push_back(Output::Send { link, message: Message::PeerQuery(query) });
        }
    }

    pub(crate) fn handle_peer_info(&mut self, now: Millis, shard: &mut dyn ShardIndex, osd: OsdId, info: PeerInfo) {
        let Some(pg) = self.pgs.get_mut(&info.query.pg).filter(|pg| pg.is_present(&info.query)) else { return };
        let Some(number) = pg.peer_of(osd) else { return };
        if let State::Querying(querying) = &mut pg.state {
            querying.digests[number] = Some(info.digests);
            querying.parts[number] = info.parts;
            querying.lease_ms = querying.lease_ms.max(info.lease_ms.into());
            self.compare_digests(now, shard, info.query.pg);
        } else if pg.is_active() {
            self.scrub_compared(now, shard, info.query.pg, number, &info);
        }
    }

    /// Goes on once enough have answered.
    pub(crate) fn compare_digests(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: PgId) {
        let past = self.past_intervals(id);
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        let (acting, waited) = (pg.acting(), now >= pg.round_begun + FORMER_WAIT_MS);
        let (needed, coded) = (pg.scheme.copies_needed(), pg.is_coded());
        let State::Querying(querying) = &mut pg.state else { return };
        let answered = querying.digests.iter().enumerate().fold(0, |mask, (n, d)| mask | u64::from(d.is_some()) << n);
        if acting & !answered != 0 {
            return;
        }
        let covers = |mask: PeerMask| {
            let has = |osd| pg.peers.iter().position(|p| p.osd == osd).is_some_and(|n| mask >> n & 1 == 1);
            past.iter().all(|interval| interval.is_covered(needed, has))
        };
        let own = querying.digests[pg.own].clone().unwrap_or_else(|| Box::new([0; 256]));
        let differing = |mask: PeerMask| {
            let digests = bits(mask).filter_map(|number| querying.digests[number].as_ref());
            digests.fold(Buckets::default(), |set, other| set.union(Buckets::differing(&own, other)))
        };
        // Digests are those of whole objects: they tell nothing of one who holds other parts than it should.
        let fits = |number: usize| match pg.peers[number].shard {
            Some(shard) => querying.parts[number] & !(1 << shard) == 0,
            None => querying.parts[number].count_ones() <= 1,
        };
        let all_fit = |mask: PeerMask| !coded || bits(mask).all(fits);
        // Those who serve the PG know everything, and have it: nobody else need be asked.
        let enough = covers(acting) && differing(acting).is_empty() && all_fit(acting);
        let asked = if enough { acting } else { answered };
        let registered = |number: usize| self.map.osds.contains_key(&pg.peers[number].osd);
        let expected = bits(!answered & ((1u64 << (pg.peers.len() - 1) << 1).wrapping_sub(1))).any(registered);
        if !enough {
            let incomplete = !covers(asked);
            if incomplete || (expected && !waited) {
                querying.incomplete = incomplete;
                return;
            }
        }
        let lease_until = now + querying.lease_ms;
        let buckets = if all_fit(asked) { differing(asked) } else { Buckets::ALL };
        pg.missing.clear();
        (pg.listed, pg.answered) = (asked, answered);
        let staged = if coded { shard.staged(pg.scope()) } else { Vec::new() };
        if buckets.is_empty() {
            self.keep_staged(id, &staged);
            return self.enter_leasing(now, shard, id, lease_until);
        }
        let mut heads = vec![Vec::new(); pg.peers.len()];
        heads[pg.own] = shard.list(pg.scope(), &buckets);
        let list = PeerList { query: pg.query_message(), buckets };
        let complete = 1 << pg.own;
        pg.state = State::Listing(Listing { heads, asked, complete, lease_until });
        let others: Vec<Peer> = bits(asked & !complete).map(|number| pg.peers[number]).collect();
        self.keep_staged(id, &staged);
        for peer in others {
            if let Some(link) = self.links.ready_peer(&peer) {
                self.send(link, Message::PeerList(list));
            }
        }
    }

    /// Changes that are staged on all members alike need only be committed.
    fn keep_staged(&mut self, id: PgId, staged: &[ObjectHead]) {
        if let Some(pg) = self.pgs.get_mut(&id) {
            pg.commits = staged.iter().map(|head| (head.object.whole(), head.version)).collect();
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
        let garbage = Garbage::of(&self.past_intervals(id), self.pgs.get(&id).map_or(0, |pg| pg.scheme.width()));
        let Some(pg) = self.pgs.get_mut(&id).filter(|pg| pg.is_present(&objects.query)) else { return };
        let Some(number) = pg.peer_of(osd) else { return };
        let State::Listing(listing) = &mut pg.state else { return };
        if listing.complete >> number & 1 == 1 {
            return;
        }
        if listing.heads[number].len() + objects.heads.len() > PG_HEADS_MAX {
            let why =
                format!("osd {osd} lists more than {PG_HEADS_MAX} objects of it: more PGs have fewer objects each");
            return self.pg_fail(now, id, &why);
        }
        listing.heads[number].extend(objects.heads);
        if !objects.more {
            listing.complete |= 1 << number;
        }
        if listing.complete & listing.asked == listing.asked {
            let (mut heads, until) = (std::mem::take(&mut listing.heads), listing.lease_until);
            let drops = garbage.map_or_else(Vec::new, |garbage| garbage.take(&pg.peers, &mut heads, pg.scheme));
            let (coded, needed) = (pg.is_coded(), pg.scheme.copies_needed());
            for (object, shards) in object_state::collect(&heads) {
                if let Some(missing) = Missing::judge(&pg.peers, coded, needed, shards) {
                    pg.missing.insert(object, missing);
                }
            }
            let missing = &pg.missing;
            pg.commits.retain(|object, _| !missing.contains_key(object));
            for (peer, head) in drops {
                let op = self.new_op(id, Kind::Drop);
                if let Some(pg) = self.pgs.get_mut(&id) {
                    pg.drops.insert(op, peer);
                }
                self.send_to_peer(shard, op, peer, ShardOp::Drop { object: head.object, version: head.version });
            }
            self.enter_leasing(now, shard, id, until);
        }
    }

    /// A member has dropped a copy that does not count. If it could not, the copy would count as soon as the member does: the round begins anew.
    pub(crate) fn dropped(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: OpId, outcome: &ShardOutcome) {
        let Some(op) = self.ops.remove(id) else { return };
        if *outcome != ShardOutcome::Done {
            return self.pg_fail(now, op.pg, "a member could not drop a copy that does not count");
        }
        if let Some(pg) = self.pgs.get_mut(&op.pg) {
            pg.drops.remove(&id);
            let is_whole = pg.is_whole();
            let goes_on = pg.is_active() && !pg.is_dropping();
            let waiting = if goes_on { std::mem::take(&mut pg.waiting) } else { Default::default() };
            waiting.into_iter().for_each(|id| self.enqueue(shard, id));
            if is_whole {
                self.became_complete(shard, op.pg);
            }
        }
    }

    /// Waits until nobody else can serve reads.
    fn enter_leasing(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: PgId, until: Millis) {
        let nobody_counts = self.nobody_counts_on_leases(id);
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        let until = if nobody_counts { now } else { until };
        let unfenced = if pg.map.unfenced.is_empty() { 0 } else { pg.heard + REGISTRATION_LEASE_WAIT_MS };
        pg.state = State::Leasing { until: until.max(unfenced) };
        self.leases_ended(now, shard, id);
    }

    /// Whether nobody else can believe to hold leases. Whoever led before the last recorded interval was waited out when that began;
    /// it was led by one of its members: by us, by one that follows us now, or by one whose run is over.
    fn nobody_counts_on_leases(&self, id: PgId) -> bool {
        let (Some(record), Some(pg)) = (self.map.activations.get(&id), self.pgs.get(&id)) else { return false };
        let follows = |run: Member| {
            let answered = pg.peer_of(run.osd).is_some_and(|number| pg.answered >> number & 1 == 1);
            let present = self.links.outgoing.get(&run.osd).and_then(|out| out.ready()).map(|(_, run)| run);
            answered && present == Some(run.incarnation)
        };
        let us = Member { osd: self.options.id, incarnation: self.options.incarnation };
        let mut members = record.acting.iter().flatten();
        pg.served == Some(record.epoch) || members.all(|run| *run == us || follows(*run) || self.is_over(id, *run))
    }

    pub(crate) fn leases_ended(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: PgId) {
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        if !matches!(pg.state, State::Leasing { until } if until <= now) {
            return;
        }
        if pg.activated || !pg.has_quorum() {
            return self.enter_active(now, shard, id);
        }
        pg.state = State::Activating;
        self.record_activation(id);
    }

    /// Makes the interval, and who is complete in it, known.
    fn record_activation(&mut self, id: PgId) {
        let Some(pg) = self.pgs.get_mut(&id).filter(|pg| !pg.recording) else { return };
        let complete = pg.complete_members();
        pg.record_min = pg.record_min.min(pg.min_size);
        pg.recording = true;
        pg.promised |= complete.iter().filter_map(|osd| pg.peer_of(*osd)).fold(0, |mask, peer| mask | 1 << peer);
        pg.recorded_complete = complete.len() == pg.members;
        let record = pg.record(complete);
        self.outputs.push_back(Output::Activate { pg: id, record });
    }

    pub(crate) fn pg_activated(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: PgId, epoch: Epoch, ok: bool) {
        let Some(pg) = self.pgs.get_mut(&id).filter(|pg| pg.map.epoch == epoch) else { return };
        pg.recording = false;
        if !ok {
            // The PG has a newer epoch, of which we will hear.
            pg.recorded_complete = false;
            return;
        }
        pg.activated = true;
        if matches!(pg.state, State::Activating) {
            self.enter_active(now, shard, id);
        }
    }

    fn enter_active(&mut self, now: Millis, shard: &mut dyn ShardIndex, id: PgId) {
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        pg.state = State::Active;
        if pg.activated {
            pg.served = Some(pg.map.epoch);
        }
        (pg.cursor, pg.recoveries) = (None, 0);
        let waiting = std::mem::take(&mut pg.waiting);
        for op in waiting {
            self.enqueue(shard, op);
        }
        self.recover(now, id);
        self.became_complete(shard, id);
    }

    /// If nothing is missing any more: says so, and forgets what was kept for members that were away.
    pub(crate) fn became_complete(&mut self, shard: &mut dyn ShardIndex, id: PgId) {
        let Some(pg) = self.pgs.get_mut(&id).filter(|pg| pg.is_writable() && pg.is_whole()) else { return };
        if pg.members == pg.scheme.width() {
            pg.dirty.clear();
        }
        if !pg.recorded_complete {
            return self.record_activation(id);
        }
        self.note_leftovers(shard, id);
    }

    /// Something failed on a member: pause, then start over.
    pub(crate) fn pg_stall(&mut self, now: Millis, id: PgId) {
        self.take_back(id, true);
        if let Some(pg) = self.pgs.get_mut(&id).filter(|pg| pg.is_primary()) {
            pg.round += 1;
            pg.state = State::Stalled { until: now + STALL_MS };
        }
    }

    /// What only waits for time to pass.
    pub(crate) fn poll_pgs(&mut self, now: Millis, shard: &mut dyn ShardIndex) {
        let ids: Vec<_> = self.pgs.iter().filter(|(_, pg)| pg.is_primary()).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(pg) = self.pgs.get(&id) else { continue };
            match &pg.state {
                State::Stalled { until } if *until <= now => self.begin_round(now, shard, id),
                State::Querying(_) => self.compare_digests(now, shard, id),
                State::Leasing { .. } => self.leases_ended(now, shard, id),
                State::Active if self.has_unasked_source(id) => self.begin_round(now, shard, id),
                State::Active => {
                    self.commit_staged(shard, id);
                    self.recover(now, id);
                    self.became_complete_later(shard, id);
                }
                _ => {}
            }
        }
    }

    /// Whether an object cannot be recovered, and an OSD can be asked that could not be when the round looked for copies.
    fn has_unasked_source(&self, id: PgId) -> bool {
        let Some(pg) = self.pgs.get(&id) else { return false };
        let unasked =
            |(number, peer): (usize, &Peer)| pg.listed >> number & 1 == 0 && self.links.ready_peer(peer).is_some();
        pg.missing.values().any(|m| m.failed || m.is_unfound) && pg.peers.iter().enumerate().any(unasked)
    }

    /// Catches up with a record that could not be written while another was on its way.
    fn became_complete_later(&mut self, shard: &mut dyn ShardIndex, id: PgId) {
        if self.pgs.get(&id).is_some_and(|pg| !pg.recorded_complete && !pg.recording) {
            self.became_complete(shard, id);
        }
    }

    /// OSDs that should work with us and that we cannot reach.
    pub(crate) fn unreachable(&self) -> BTreeSet<Member> {
        let mut found = BTreeSet::new();
        for pg in self.pgs.values().filter(|pg| pg.is_primary()) {
            for peer in pg.peers.iter().filter(|peer| peer.osd != self.options.id) {
                let Some(member) = peer.member else { continue };
                let out = self.links.outgoing.get(&peer.osd);
                if out.is_some_and(|out| out.has_failed()) || self.links.runs_otherwise(member) {
                    found.insert(member);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use cluster_proto::LayerId;
    use cluster_proto::ids::ClientId;
    use cluster_proto::layout::SectorRange;
    use cluster_proto::link::LinkId;
    use cluster_proto::status::Status;
    use cluster_proto::wire::{Request, RequestOp};

    use super::super::split::tests::{hear, member_of_one, pg};
    use super::*;
    use crate::latency::OpClass;
    use crate::op::{Local, Op};

    #[test]
    fn what_is_garbage_is_known_though_a_member_was_given_up() {
        let both = vec![OsdId(1), OsdId(2)];
        let acting = both.iter().copied().map(Some).collect();
        let clean = Interval { epoch: Epoch(3), acting, complete: both, min_size: 1 };
        let garbage = Garbage::of(&[clean.without(OsdId(1), 1)], 2).expect("it is clean");
        let object = ObjectId { pool: pg(1).pool, lineage: LayerId(1), layer: LayerId(1), index: 0, part: 0 };
        let head = ObjectHead { object, version: Version::new(Epoch(2), 1), deleted: false, staged_over: None };
        let is_old = |osd| garbage.is_old(OsdId(osd), &head, Scheme::Replicated { copies: 2 });
        assert!(is_old(3) && is_old(1) && !is_old(2));
    }

    #[test]
    fn what_is_queued_behind_a_change_that_failed_is_not_carried_out() {
        let (mut osd, mut shard) = member_of_one();
        hear(&mut osd, &mut shard, 1, (2, 2), 2);
        while osd.poll_output().is_some() {}
        let change = |class| Op { class, local: Local::Mutation, ..Op::new(0, pg(1), Kind::Orphan) };
        let [failed, behind] = [(); 2].map(|()| osd.ops.insert(change(OpClass::Write)));
        let other = osd.ops.insert(change(OpClass::Other));
        osd.pgs.get_mut(&pg(1)).unwrap().local_mutations = 3;
        for op in [behind, other] {
            osd.outputs.push_back(Output::Local { tag: op.0, op: ShardOp::Sync });
        }
        osd.handle_local(10_001, &mut shard, failed.0, ShardOutcome::Failed(Status::NoSpace));
        let left: Vec<_> = std::iter::from_fn(|| osd.poll_output()).collect();
        let is_other = |output: &Output| matches!(output, Output::Local { tag, .. } if *tag == other.0);
        assert_eq!(left.iter().filter(|output| matches!(output, Output::Local { .. })).count(), 1, "{left:?}");
        assert!(left.iter().any(is_other), "what is no change of a client goes on");
        assert!(osd.ops.get_mut(behind).is_none(), "it has ended");
        assert_eq!(osd.pgs[&pg(1)].local_mutations, 1);
    }

    #[test]
    fn changes_wait_until_our_own_store_has_dropped_what_does_not_count() {
        let (mut osd, mut shard) = member_of_one();
        hear(&mut osd, &mut shard, 1, (2, 2), 2);
        let drops: Vec<OpId> = (0..3).map(|_| osd.new_op(pg(1), Kind::Drop)).collect();
        let led = osd.pgs.get_mut(&pg(1)).unwrap();
        (led.state, led.activated) = (State::Active, true);
        // Two are ours, one is of another member.
        let other = 1 - led.own;
        led.drops = drops.iter().copied().zip([led.own, other, led.own]).collect();
        led.local_mutations = 2;
        for own in [drops[0], drops[2]] {
            osd.ops.get_mut(own).unwrap().local = Local::Mutation;
        }
        let named = |index| ObjectId { pool: pg(1).pool, lineage: LayerId(1), layer: LayerId(1), index, part: 0 };
        let object = (0..).map(named).find(|object| osd.pgs[&pg(1)].scope().contains(object)).unwrap();
        // Nothing is stored there: it is answered as soon as it is begun.
        let op = RequestOp::Zero(SectorRange::new(0, 1));
        let request = Request { seq: 1, floor: 1, epoch: Epoch(2), only_in_epoch: false, pg: 1, object, op };
        osd.handle_request(&mut shard, LinkId(9), ClientId(7), request);
        let state = |osd: &Osd| (osd.pgs[&pg(1)].waiting.len(), osd.held_requests());
        assert_eq!(state(&osd), (1, 1));
        osd.handle_local(10_001, &mut shard, drops[0].0, ShardOutcome::Done);
        assert_eq!(state(&osd), (1, 1), "there is another");
        osd.handle_local(10_002, &mut shard, drops[2].0, ShardOutcome::Done);
        assert_eq!(state(&osd), (0, 0), "what others drop is not remembered here");
        osd.check_invariants();
    }
}
