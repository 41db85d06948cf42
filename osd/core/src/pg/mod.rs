//! A placement group as one of its members sees it.
//!
//! The primary goes through the states of [`State`]; the other members only follow the (epoch, round) they were last
//! asked into. docs/peering.md explains why that is enough.

mod peering;
mod recovery;

use std::collections::VecDeque;

use cluster_proto::ids::{Epoch, OsdId, PgId, Version};
use cluster_proto::link::{LinkId, Millis};
use cluster_proto::locks::Locks;
use cluster_proto::map::{Member, PgMap};
use cluster_proto::shard::ShardOp;
use cluster_proto::wire::SubRequest;

use crate::op::OpId;
use crate::secondary::HeldQuery;

pub(crate) use peering::State;

/// What an operator sees of a PG at one member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PgSummary {
    /// The PG.
    pub pg: PgId,
    /// The interval.
    pub epoch: Epoch,
    /// Whether this OSD leads it.
    pub primary: bool,
    /// Name of the state.
    pub state: &'static str,
    /// Requests that wait for the PG.
    pub waiting: usize,
}

pub(crate) struct Pg {
    id: PgId,
    map: PgMap,
    own: usize,
    pub state: State,
    /// The latest round we began (as primary) or were asked into (as another member).
    round: u32,
    /// Changes of this interval.
    counter: u64,
    /// The interval's activation record is durable.
    activated: bool,
    /// Who may give us shard operations, as a member that is not the primary.
    led_by: Option<LinkId>,
    query: Option<HeldQuery>,
    /// Client requests that wait until the PG is active.
    pub waiting: VecDeque<OpId>,
    pub locks: Locks<OpId>,
    /// Changes of this PG under way in our own store.
    pub local_mutations: u32,
}

impl Pg {
    pub fn new(id: PgId, map: PgMap, own: usize) -> Self {
        Self {
            id,
            map,
            own,
            state: State::Member,
            round: 0,
            counter: 0,
            activated: false,
            led_by: None,
            query: None,
            waiting: VecDeque::new(),
            locks: Locks::default(),
            local_mutations: 0,
        }
    }

    pub fn epoch(&self) -> Epoch {
        self.map.epoch
    }

    pub fn map(&self) -> &PgMap {
        &self.map
    }

    pub fn is_primary(&self) -> bool {
        self.own == 0
    }

    pub fn is_active(&self) -> bool {
        matches!(self.state, State::Active)
    }

    pub fn width(&self) -> usize {
        self.map.acting.len()
    }

    pub fn member(&self, position: usize) -> Member {
        self.map.acting[position]
    }

    pub fn own_position(&self) -> usize {
        self.own
    }

    pub fn is_self(&self, position: usize) -> bool {
        position == self.own
    }

    pub fn position(&self, osd: OsdId) -> Option<usize> {
        self.map.acting.iter().position(|member| member.osd == osd)
    }

    /// The other members.
    pub fn others(&self) -> impl Iterator<Item = OsdId> {
        self.map.acting.iter().enumerate().filter(|(i, _)| *i != self.own).map(|(_, member)| member.osd)
    }

    /// The version of the next change.
    pub fn next_version(&mut self) -> Version {
        self.counter += 1;
        Version::new(self.map.epoch, self.counter)
    }

    pub fn sub_request(&self, id: u64, op: ShardOp) -> SubRequest {
        SubRequest { id, pg: self.id, epoch: self.map.epoch, round: self.round, op }
    }

    /// A new interval begins.
    pub fn begin_interval(&mut self, map: PgMap, own: usize) {
        self.map = map;
        self.own = own;
        self.state = State::Member;
        (self.counter, self.activated) = (0, false);
        (self.led_by, self.query) = (None, None);
        // As another member we take the rounds of the new primary from the beginning.
        self.round = 0;
    }

    /// As a member: belongs to this round from now on, and to no older one.
    pub fn join_round(&mut self, held: HeldQuery) {
        if held.query.round >= self.round && !self.is_primary() {
            self.round = held.query.round;
            self.led_by = Some(held.link);
            self.query = Some(held);
        }
    }

    /// As a member: whether an operation belongs to the present round.
    pub fn accepts(&self, link: LinkId, epoch: Epoch, round: u32) -> bool {
        self.led_by == Some(link) && self.map.epoch == epoch && self.round == round
    }

    /// The query to answer, once nothing is under way.
    pub fn take_drained_query(&mut self) -> Option<HeldQuery> {
        if self.local_mutations == 0 { self.query.take() } else { None }
    }

    pub fn summary(&self) -> PgSummary {
        PgSummary {
            pg: self.id,
            epoch: self.map.epoch,
            primary: self.is_primary(),
            state: self.state.name(),
            waiting: self.waiting.len(),
        }
    }
}

/// Pause before a PG that had to start over tries again. Milliseconds.
pub(crate) const STALL_MS: Millis = 500;
