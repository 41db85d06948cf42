//! How long operations take, by where and of which kind. Counted with the one reading of the clock that a turn of the driver has.

use cluster_proto::latency::Histogram;
use cluster_proto::shard::ShardOp;
use cluster_proto::wire::RequestOp;

/// A kind of operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OpClass {
    /// Reads of clients.
    #[default]
    Read,
    /// Changes by clients.
    Write,
    /// Syncs.
    Sync,
    /// What the cluster does on its own account: recovery, scrub, repair, commits, removal of leftovers.
    Other,
}

/// All kinds, in the order of [`ByClass`].
pub const OP_CLASSES: [OpClass; 4] = [OpClass::Read, OpClass::Write, OpClass::Sync, OpClass::Other];

impl OpClass {
    /// Its name, for labels.
    pub fn name(self) -> &'static str {
        match self {
            OpClass::Read => "read",
            OpClass::Write => "write",
            OpClass::Sync => "sync",
            OpClass::Other => "other",
        }
    }

    pub(crate) fn of(op: &ShardOp) -> Self {
        match op {
            ShardOp::Read { .. } => OpClass::Read,
            ShardOp::Write { .. } | ShardOp::Zero { .. } | ShardOp::Delete { .. } | ShardOp::Stage { .. } => {
                OpClass::Write
            }
            ShardOp::Sync => OpClass::Sync,
            _ => OpClass::Other,
        }
    }

    pub(crate) fn of_request(op: &RequestOp) -> Self {
        match op {
            RequestOp::Read(_) | RequestOp::Allocation(_) => OpClass::Read,
            RequestOp::Sync => OpClass::Sync,
            _ => OpClass::Write,
        }
    }
}

/// A histogram for each of [`OP_CLASSES`].
pub type ByClass = [Histogram; OP_CLASSES.len()];

/// Latencies since the OSD's start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Latencies {
    /// Clients' requests at this primary, from arrival to answer, whatever the answer; also those that waited for the PG.
    pub client: ByClass,
    /// This primary's operations at other members, from question to answer.
    pub member: ByClass,
    /// Operations at the own store, for clients, for primaries and of its own.
    pub store: ByClass,
}

impl Latencies {
    /// Where operations took place, as labels say it, with the histograms.
    pub fn places(&self) -> [(&'static str, &ByClass); 3] {
        [("client", &self.client), ("member", &self.member), ("store", &self.store)]
    }
}
