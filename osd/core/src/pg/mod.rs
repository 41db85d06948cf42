//! A placement group as one of the OSDs that work on it sees it.
//!
//! The primary goes through the states of [`State`]; the others only follow the (epoch, round) they were last
//! asked into. docs/peering.md explains why that is enough.

mod dirty;
mod lease;
mod merge;
mod object_state;
mod peering;
mod split;
mod table;

use std::collections::{BTreeMap, VecDeque};

use cluster_proto::ids::{Epoch, ObjectId, OsdId, PgId, Version};
use cluster_proto::layout::PgScope;
use cluster_proto::link::{LinkId, Millis};
use cluster_proto::locks::Locks;
use cluster_proto::map::{Interval, Member, PgMap, Scheme};
use cluster_proto::shard::{ShardIndex, ShardOp};
use cluster_proto::wire::SubRequest;

use crate::op::{OpId, PeerMask, bits};
use crate::scrub::PgScrubs;
use crate::secondary::HeldQuery;

pub(crate) use dirty::DirtyMap;
pub(crate) use merge::Owed;
pub(crate) use object_state::{Missing, Shard};
pub(crate) use peering::State;
pub(crate) use table::PgTable;

/// What an operator sees of a PG at one OSD.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PgSummary {
    /// The PG.
    pub pg: PgId,
    /// The interval.
    pub epoch: Epoch,
    /// Whether this OSD leads it.
    pub primary: bool,
    /// Whether this OSD is in the acting set.
    pub acting: bool,
    /// Name of the state.
    pub state: &'static str,
    /// Requests that wait for the PG.
    pub waiting: usize,
    /// Objects that some member of the acting set lacks. Known to the primary while active.
    pub degraded: usize,
    /// Objects of which too few shards can be found.
    pub unfound: usize,
}

/// An OSD that a primary works with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Peer {
    pub osd: OsdId,
    /// The run that the map names; none for an OSD that only may have old copies: any run will do.
    pub member: Option<Member>,
    /// The shard it serves; none if it is not in the acting set.
    pub shard: Option<usize>,
}

pub(crate) struct Pg {
    id: PgId,
    /// Among so many PGs its objects were shared out.
    count: u32,
    map: PgMap,
    pub scheme: Scheme,
    pub min_size: usize,
    /// As the primary: the acting set in the order of shards, then those that may have old copies. Otherwise empty.
    peers: Vec<Peer>,
    /// Our number in `peers`.
    own: usize,
    /// Those of `peers` that are in the acting set.
    acting: PeerMask,
    /// Places of the acting set that are filled.
    members: usize,
    pub state: State,
    /// The latest round we began (as primary) or were asked into (otherwise).
    round: u32,
    /// When we heard of the interval.
    heard: Millis,
    /// When the round began.
    round_begun: Millis,
    /// Changes of this interval.
    counter: u64,
    /// The interval's activation record is durable.
    activated: bool,
    /// The smallest number of members that a change of this interval may be on.
    record_min: usize,
    /// The record says that all members are complete.
    recorded_complete: bool,
    /// Members that the record of this interval calls complete, or may. They must not miss anything from then on.
    promised: PeerMask,
    /// A record is on its way.
    recording: bool,
    /// The last interval in which we, in this run, led the PG with a durable record.
    served: Option<Epoch>,
    /// Our registration was withdrawn: without an activation record we may not serve reads any more.
    pub unregistered: bool,
    /// Who may give us shard operations, unless we are the primary.
    led_by: Option<(LinkId, Member)>,
    /// Until then a former primary may believe to hold a lease from us.
    lease: lease::Granted,
    query: Option<HeldQuery>,
    /// A change of this round failed here: others of it that would come on top of it are refused.
    has_failed: bool,
    /// Client requests that wait until the PG serves them.
    pub waiting: VecDeque<OpId>,
    pub locks: Locks<OpId>,
    /// Changes of this PG under way in our own store, and those of the PGs it came from that were under way when it began.
    pub local_mutations: u32,
    /// Objects that not all members of the acting set have at their newest version. As the primary, while active.
    pub missing: BTreeMap<ObjectId, Missing>,
    /// Members that are about to drop copies that do not count, with the operations that tell them to. As the primary.
    pub drops: BTreeMap<OpId, usize>,
    /// Peers that have joined this round.
    answered: PeerMask,
    /// Peers whose objects were looked at in this round.
    pub listed: PeerMask,
    /// Where background recovery goes on.
    pub cursor: Option<ObjectId>,
    /// When to try failed recoveries again.
    pub retry_at: Millis,
    /// Recoveries under way.
    pub recoveries: u32,
    pub scrubs: PgScrubs,
    /// What changed here while not all were present.
    pub dirty: DirtyMap,
    /// Objects whose newest change is staged on all members and can be committed, which commits those before it, too.
    pub commits: BTreeMap<ObjectId, Version>,
}

impl Pg {
    pub fn new(scope: PgScope, map: PgMap, scheme: Scheme, min_size: usize) -> Self {
        Self {
            id: scope.pg,
            count: scope.count,
            map,
            scheme,
            min_size,
            peers: Vec::new(),
            own: 0,
            acting: 0,
            members: 0,
            state: State::Member,
            round: 0,
            heard: 0,
            round_begun: 0,
            counter: 0,
            activated: false,
            record_min: usize::MAX,
            recorded_complete: false,
            promised: 0,
            recording: false,
            served: None,
            unregistered: false,
            led_by: None,
            lease: lease::Granted::default(),
            query: None,
            has_failed: false,
            waiting: VecDeque::new(),
            locks: Locks::default(),
            local_mutations: 0,
            missing: BTreeMap::new(),
            drops: BTreeMap::new(),
            answered: 0,
            listed: 0,
            cursor: None,
            retry_at: 0,
            recoveries: 0,
            scrubs: PgScrubs::default(),
            dirty: DirtyMap::default(),
            commits: BTreeMap::new(),
        }
    }

    /// Which objects are in it.
    pub fn scope(&self) -> PgScope {
        PgScope { pg: self.id, count: self.count }
    }

    pub fn epoch(&self) -> Epoch {
        self.map.epoch
    }

    pub fn map(&self) -> &PgMap {
        &self.map
    }

    pub fn is_primary(&self) -> bool {
        !self.peers.is_empty()
    }

    pub fn is_active(&self) -> bool {
        matches!(self.state, State::Active)
    }

    /// Whether all members have every object, and nothing that does not count.
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty() && self.drops.is_empty()
    }

    /// Whether clients' changes are carried out.
    pub fn is_writable(&self) -> bool {
        self.is_active() && self.activated
    }

    /// Whether so many members are present that changes may be accepted.
    pub fn has_quorum(&self) -> bool {
        self.members >= self.min_size
    }

    pub fn is_coded(&self) -> bool {
        matches!(self.scheme, Scheme::Ec { .. })
    }

    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    pub fn own(&self) -> usize {
        self.own
    }

    /// Members of the acting set.
    pub fn acting(&self) -> PeerMask {
        self.acting
    }

    pub fn peer_of(&self, osd: OsdId) -> Option<usize> {
        self.peers.iter().position(|peer| peer.osd == osd)
    }

    /// The peer that serves a shard.
    pub fn peer_of_shard(&self, shard: usize) -> Option<usize> {
        self.peers.iter().position(|peer| peer.shard == Some(shard))
    }

    /// OSDs to which we need a connection.
    pub fn others(&self) -> impl Iterator<Item = OsdId> {
        self.peers.iter().enumerate().filter(|(number, _)| *number != self.own).map(|(_, peer)| peer.osd)
    }

    /// The version of the next change.
    pub fn next_version(&mut self) -> Version {
        self.counter += 1;
        Version::new(self.map.epoch, self.counter)
    }

    pub fn sub_request(&self, id: u64, op: ShardOp) -> SubRequest {
        SubRequest { id, pg: self.id, epoch: self.map.epoch, round: self.round, op }
    }

    /// The name an object's copy has at a peer.
    pub fn name_at(&self, object: ObjectId, peer: usize) -> ObjectId {
        let part = if self.is_coded() { self.peers[peer].shard.unwrap_or(0) as u8 } else { 0 };
        object.shard(part)
    }

    /// Members that have the newest version of an object: those to whom a change goes.
    pub fn holders(&self, object: &ObjectId) -> PeerMask {
        let stale = self.missing.get(object).map_or(0, |missing| missing.stale);
        self.acting() & !stale
    }

    /// Whether a member lacks the object that the record calls complete: it fell back within the interval.
    pub fn lets_down(&self, missing: &Missing) -> bool {
        missing.stale & self.promised != 0
    }

    /// What the record of this interval promises later ones, if there is one: earlier rounds may have accepted changes.
    pub fn promised_interval(&self) -> Option<Interval> {
        let complete: Vec<OsdId> = bits(self.promised).map(|peer| self.peers[peer].osd).collect();
        let acting = self.map.acting.iter().map(|member| member.map(|m| m.osd)).collect();
        let min_size = u8::try_from(self.record_min).unwrap_or(u8::MAX);
        (!complete.is_empty()).then_some(Interval { epoch: self.map.epoch, acting, complete, min_size })
    }

    /// Whether our own store is about to drop copies that do not count: until then it remembers requests that they took in.
    pub fn is_dropping(&self) -> bool {
        self.drops.values().any(|peer| *peer == self.own)
    }

    /// Whether an object must be copied before it can be changed: to us, who remember its requests, or to so many that the
    /// change is safe.
    pub fn needs_recovery(&self, object: &ObjectId) -> bool {
        let Some(missing) = self.missing.get(object) else { return false };
        // What is to be taken back, whatever part of the object it is, may still be remembered as applied.
        let own_is_ahead =
            missing.shards.iter().any(|s| usize::from(s.peer) == self.own && s.version > missing.version);
        self.lets_down(missing)
            || missing.is_unfound
            || own_is_ahead
            || missing.stale >> self.own & 1 == 1
            || self.holders(object).count_ones() < self.min_size as u32
    }

    /// Peers that have the newest version of an object: who can be asked for it, ourselves first.
    pub fn sources(&self, object: &ObjectId) -> impl Iterator<Item = usize> {
        let mask = self.missing.get(object).map_or(self.acting(), Missing::holders);
        let own = (mask >> self.own & 1 == 1).then_some(self.own);
        own.into_iter().chain(bits(mask & !(1 << self.own)))
    }

    /// The version a copy of an object must have to be shown, if the object exists. An OSD outside the acting set may drop its copy at any
    /// moment: what it reads then is nothing, not zeroes.
    pub fn shown_version(&self, shard: &dyn ShardIndex, object: &ObjectId) -> Option<Version> {
        if let Some(missing) = self.missing.get(object) {
            return (!missing.deleted && missing.version != Version::NONE).then_some(missing.version);
        }
        shard.head(&self.name_at(*object, self.own)).filter(|head| !head.deleted).map(|head| head.version)
    }

    /// As a member: belongs to this round from now on, and to no older one.
    pub fn join_round(&mut self, held: HeldQuery) {
        self.has_failed &= self.round == held.query.round;
        self.round = held.query.round;
        self.led_by = Some((held.link, held.from));
        self.query = Some(held);
    }

    pub fn round(&self) -> u32 {
        self.round
    }

    /// As a member: whether an operation belongs to the present round.
    pub fn accepts(&self, link: LinkId, epoch: Epoch, round: u32) -> bool {
        let is_led = self.led_by.is_some_and(|(by, _)| by == link);
        is_led && self.map.epoch == epoch && self.round == round && !self.has_failed
    }

    /// As a member: a change failed, which ends the round for us. Its primary will begin another one when it hears of it.
    pub fn leave_round(&mut self) {
        // If it was of the round before, it ended with that.
        self.has_failed = self.query.is_none();
    }

    /// Whether something waits until nothing is under way in our own store.
    pub fn waits_for_drain(&self) -> bool {
        self.query.is_some() || matches!(self.state, State::Draining)
    }

    /// The query to answer, once nothing is under way.
    pub fn take_drained_query(&mut self) -> Option<HeldQuery> {
        if self.local_mutations == 0 { self.query.take() } else { None }
    }

    /// Whether some who should have the data may miss changes: then we remember what changes.
    pub fn is_degraded(&self) -> bool {
        self.members < self.scheme.width() || !self.missing.is_empty()
    }

    pub fn summary(&self, us: OsdId) -> PgSummary {
        PgSummary {
            pg: self.id,
            epoch: self.map.epoch,
            primary: self.is_primary(),
            acting: self.map.shard_of(us).is_some(),
            state: self.state_name(),
            waiting: self.waiting.len(),
            degraded: self.missing.len(),
            unfound: self.missing.values().filter(|m| m.is_unfound).count(),
        }
    }

    fn state_name(&self) -> &'static str {
        match self.state {
            State::Active if !self.activated => "read-only",
            State::Active if !self.missing.is_empty() => "recovering",
            State::Active if self.members < self.scheme.width() => "degraded",
            _ => self.state.name(),
        }
    }
}

/// Pause before a PG that had to start over tries again. Milliseconds.
pub(crate) const STALL_MS: Millis = 500;
