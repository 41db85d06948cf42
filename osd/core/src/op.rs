//! Operations in progress: a slab of slots with generation-tagged ids, so that a late answer to an operation that was
//! given up finds nothing.

use cluster_proto::ids::{ClientId, PgId, Version};
use cluster_proto::layout::SectorRange;
use cluster_proto::link::LinkId;
use cluster_proto::status::Status;
use cluster_proto::wire::Request;
use smallvec::SmallVec;

use crate::ec::EcOp;
use crate::latency::OpClass;
use crate::recovery::Recovery;
use crate::scrub::Scrub;
use crate::slow::{Answerer, Trace};

/// Names an operation: generation and slot. Used as the tag of local store operations and the id of sub-requests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) struct OpId(pub u64);

/// Set of the peers of a PG, by their number in it ([`crate::pg::Pg::peers`]).
pub(crate) type PeerMask = u64;

/// The numbers in a mask, ascending.
pub(crate) fn bits(mut mask: PeerMask) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = (mask != 0).then_some(mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(lowest)
    })
}

/// What an operation has running in our own store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Local {
    None,
    Read,
    Mutation,
}

/// How far a client's request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// The PG does not serve it at the moment.
    Waiting,
    /// An overlapping request is before it.
    Blocked,
    /// Its object is copied to members that lack it first.
    Recovering,
    /// Reading the copy of one member, or shards.
    Reading,
    /// The copy read is damaged in `bad`: asking this peer for its copy.
    Fetching { bad: SectorRange, from: usize, peer: usize },
    /// Rewriting the damaged sectors of peer `from`.
    Repairing { bad: SectorRange },
    /// The change is on its way to the members.
    Committing,
}

#[derive(Debug)]
pub(crate) struct ClientOp {
    /// Connections on which copies of the request came. The answer goes to all: a copy on a connection that the client has given up
    /// may arrive after the one on its new connection.
    pub links: SmallVec<[LinkId; 1]>,
    pub client: ClientId,
    pub request: Request,
    pub stage: Stage,
    /// Holds the whole object for a repair.
    pub exclusive: bool,
    /// Of a change: the version it makes. Of a read: the one copies must have ([`crate::pg::Pg::shown_version`]), or none.
    pub version: Version,
    pub failed: Option<Status>,
    /// Of a change: some member has it only in its device's volatile cache.
    pub unsynced: bool,
    /// Its pool is erasure-coded.
    pub coded: bool,
    /// What reads and writes of an erasure-coded object have gathered.
    pub ec: Option<Box<EcOp>>,
    /// Where its time goes.
    pub trace: Trace,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "slots are made for clients' requests, which are the most")]
pub(crate) enum Kind {
    /// A client's request.
    Client(ClientOp),
    /// A primary's operation on our shard.
    Secondary { link: LinkId, id: u64 },
    /// Brings an object to the members that lack it.
    Recovery(Box<Recovery>),
    /// Verifies an object on all members.
    Scrub(Box<Scrub>),
    /// A member drops a copy that does not count.
    Drop,
    /// Something of the cluster's own whose outcome does not matter.
    Background,
    /// Given up; only waits for what our store still does.
    Orphan,
}

#[derive(Debug)]
pub(crate) struct Op {
    pub pg: PgId,
    pub kind: Kind,
    pub local: Local,
    /// Peers whose answer is awaited, ourselves excluded.
    pub remotes: PeerMask,
    /// Since when we have it, of a client's request its copy in this slot. Microseconds, like the next.
    pub began_us: u64,
    /// When stores were asked last.
    pub asked_us: u64,
    /// What they were asked for.
    pub class: OpClass,
}

impl Op {
    pub fn new(now_us: u64, pg: PgId, kind: Kind) -> Self {
        let (began_us, asked_us) = (now_us, now_us);
        Self { pg, kind, local: Local::None, remotes: 0, began_us, asked_us, class: OpClass::Other }
    }

    /// A store answered.
    pub fn answered(&mut self, by: Answerer, took_us: u64) {
        if let Kind::Client(client_op) = &mut self.kind {
            client_op.trace.answered(by, took_us);
        }
    }

    pub fn is_settled(&self) -> bool {
        self.local == Local::None && self.remotes == 0
    }
}

#[derive(Default)]
pub(crate) struct Ops {
    slots: Vec<(u32, Option<Op>)>,
    free: Vec<u32>,
}

impl Ops {
    pub fn insert(&mut self, op: Op) -> OpId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((1, None));
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.1 = Some(op);
        OpId(u64::from(slot.0) << 32 | u64::from(index))
    }

    pub fn get_mut(&mut self, id: OpId) -> Option<&mut Op> {
        let (generation, op) = self.slots.get_mut((id.0 & 0xffff_ffff) as usize)?;
        if u64::from(*generation) == id.0 >> 32 { op.as_mut() } else { None }
    }

    /// The client request in this slot.
    pub fn client_mut(&mut self, id: OpId) -> Option<&mut ClientOp> {
        match self.get_mut(id) {
            Some(Op { kind: Kind::Client(op), .. }) => Some(op),
            _ => None,
        }
    }

    pub fn remove(&mut self, id: OpId) -> Option<Op> {
        let index = (id.0 & 0xffff_ffff) as usize;
        let (generation, op) = self.slots.get_mut(index)?;
        if u64::from(*generation) != id.0 >> 32 {
            return None;
        }
        let taken = op.take()?;
        *generation = generation.wrapping_add(1).max(1);
        self.free.push(index as u32);
        Some(taken)
    }

    /// All operations, in slot order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (OpId, &mut Op)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, (generation, op))| {
            op.as_mut().map(|op| (OpId(u64::from(*generation) << 32 | index as u64), op))
        })
    }

    /// Ids of all operations, in slot order.
    pub fn ids(&self) -> impl Iterator<Item = (OpId, &Op)> {
        self.slots.iter().enumerate().filter_map(|(index, (generation, op))| {
            op.as_ref().map(|op| (OpId(u64::from(*generation) << 32 | index as u64), op))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::ids::PoolId;

    #[test]
    fn a_late_answer_finds_nothing() {
        let op = || Op::new(0, PgId { pool: PoolId(1), index: 0 }, Kind::Orphan);
        let mut ops = Ops::default();
        let a = ops.insert(op());
        assert!(ops.remove(a).is_some());
        let b = ops.insert(op());
        assert_ne!(a, b);
        assert!(ops.get_mut(a).is_none() && ops.remove(a).is_none() && ops.get_mut(b).is_some());
        assert_eq!(ops.ids().count(), 1);
    }
}
