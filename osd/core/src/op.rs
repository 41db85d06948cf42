//! Operations in progress: a slab of slots with generation-tagged ids, so that a late answer to an operation that was
//! given up finds nothing.

use cluster_proto::crc::Crcs;
use cluster_proto::ids::{ClientId, ObjectId, PgId, Version};
use cluster_proto::layout::SectorRange;
use cluster_proto::link::LinkId;
use cluster_proto::status::Status;
use cluster_proto::wire::Request;
use smallvec::SmallVec;

/// Names an operation: generation and slot. Used as the tag of local store operations and the id of sub-requests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) struct OpId(pub u64);

/// Set of members of a PG, by position in the acting set.
pub(crate) type MemberMask = u16;

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
    /// The PG does not serve at the moment.
    Waiting,
    /// An overlapping request is before it.
    Blocked,
    /// Reading our own copy.
    Reading,
    /// Our copy is damaged in `bad`: asking the member at this position for its copy.
    Fetching { bad: SectorRange, member: usize },
    /// Rewriting our damaged sectors.
    Repairing { bad: SectorRange },
    /// The change is on its way to all members.
    Committing,
}

#[derive(Debug)]
pub(crate) struct ClientOp {
    pub link: LinkId,
    pub client: ClientId,
    pub request: Request,
    pub stage: Stage,
    /// Holds the whole object for a repair.
    pub exclusive: bool,
    pub version: Version,
    pub failed: Option<Status>,
}

/// An object that is brought to the newest version on all members.
#[derive(Debug)]
pub(crate) struct Restore {
    pub object: ObjectId,
    pub version: Version,
    /// Members that hold this version and were not asked yet.
    pub sources: MemberMask,
    /// Members that do not.
    pub laggards: MemberMask,
    /// What each member holds, by position.
    pub versions: SmallVec<[Version; 4]>,
    /// The newest version cannot be read and was never acknowledged: an older one takes its place everywhere.
    pub undoes: bool,
    pub stage: RestoreStage,
}

/// How far a [`Restore`] is. Members are named by position.
#[derive(Debug)]
pub(crate) enum RestoreStage {
    /// Asking member `from` for the object.
    Fetching { from: usize },
    /// Member `from` has damaged sectors: asking others for sectors with these checksums, in whatever version.
    Salvaging { from: usize, bad: SectorRange, crcs: Crcs, asked: MemberMask },
    /// Rewriting the damaged sectors of member `from`.
    Repairing { from: usize, count: u32 },
    /// Writing the object to the members that lag behind.
    Copying,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// A client's request.
    Client(ClientOp),
    /// A primary's operation on our copy.
    Secondary { link: LinkId, id: u64 },
    /// Recovery of an object during peering.
    Restore(Restore),
    /// Forgetting a tombstone that all members have.
    Collect,
    /// Given up; only waits for what our store still does.
    Orphan,
}

#[derive(Debug)]
pub(crate) struct Op {
    pub pg: PgId,
    pub kind: Kind,
    pub local: Local,
    /// Members whose answer is awaited, ourselves excluded.
    pub remotes: MemberMask,
}

impl Op {
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
        let op = || Op { pg: PgId { pool: PoolId(1), index: 0 }, kind: Kind::Orphan, local: Local::None, remotes: 0 };
        let mut ops = Ops::default();
        let a = ops.insert(op());
        assert!(ops.remove(a).is_some());
        let b = ops.insert(op());
        assert_ne!(a, b);
        assert!(ops.get_mut(a).is_none() && ops.remove(a).is_none() && ops.get_mut(b).is_some());
        assert_eq!(ops.ids().count(), 1);
    }
}
