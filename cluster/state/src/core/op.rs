//! Requests to the state machine, and its answers: the meaning of etcd's KV messages, already validated in form.

use prost::bytes::Bytes;

use super::key_range::KeyRange;

/// One key with its value and history. Cloning copies pointers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Revision that created the key.
    pub create_revision: i64,
    /// Revision of the last write.
    pub mod_revision: i64,
    /// Writes since the creation.
    pub version: i64,
    /// Lease, 0 for none.
    pub lease: i64,
}

impl Entry {
    /// Memory that the entry stands for in all limits. Bytes.
    pub(super) fn weight(&self) -> usize {
        self.key.len() + self.value.len() + 128
    }
}

/// What the results of a range are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortTarget {
    /// The key.
    #[default]
    Key,
    /// The version.
    Version,
    /// The creation.
    CreateRevision,
    /// The last write.
    ModRevision,
    /// The value.
    Value,
}

/// Reads keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeOp {
    /// Which keys.
    pub keys: KeyRange,
    /// At which revision; 0 = now.
    pub revision: i64,
    /// At most so many results; 0 = all.
    pub limit: usize,
    /// Sort order, if not by ascending key.
    pub sort_by: SortTarget,
    /// Largest first.
    pub descending: bool,
    /// Leaves the values out.
    pub keys_only: bool,
    /// Counts only.
    pub count_only: bool,
    /// Inclusive bounds of [`Entry::mod_revision`]; 0 = no bound.
    pub mod_revisions: (i64, i64),
    /// Inclusive bounds of [`Entry::create_revision`]; 0 = no bound.
    pub create_revisions: (i64, i64),
}

impl RangeOp {
    /// All of `keys`, as they are now.
    pub fn new(keys: KeyRange) -> Self {
        Self {
            keys,
            revision: 0,
            limit: 0,
            sort_by: SortTarget::Key,
            descending: false,
            keys_only: false,
            count_only: false,
            mod_revisions: (0, 0),
            create_revisions: (0, 0),
        }
    }
}

/// Writes a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutOp {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The lease to bind the key to, 0 for none.
    pub lease: i64,
    /// Asks for the entry that is replaced.
    pub prev_kv: bool,
    /// Keeps the present value.
    pub ignore_value: bool,
    /// Keeps the present lease.
    pub ignore_lease: bool,
}

/// Deletes keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteOp {
    /// Which keys.
    pub keys: KeyRange,
    /// Asks for the deleted entries.
    pub prev_kv: bool,
}

/// What a compare looks at, and the value to compare with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareTarget {
    /// The version; 0 if there is no such key.
    Version(i64),
    /// The revision of creation; 0 if there is no such key.
    CreateRevision(i64),
    /// The revision of the last write; 0 if there is no such key.
    ModRevision(i64),
    /// The lease.
    Lease(i64),
    /// The value; never true if there is no such key.
    Value(Bytes),
}

/// How an entry has to relate to the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The same.
    Equal,
    /// Not the same.
    NotEqual,
    /// The entry's is larger.
    Greater,
    /// The entry's is smaller.
    Less,
}

/// A condition on every key of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompareOp {
    /// Which keys.
    pub keys: KeyRange,
    /// What of them.
    pub target: CompareTarget,
    /// How it has to relate.
    pub relation: Relation,
}

/// Conditions, and what to do if they hold or do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnOp {
    /// The conditions; all have to hold.
    pub compare: Vec<CompareOp>,
    /// Done if they hold.
    pub success: Vec<Op>,
    /// Done if not.
    pub failure: Vec<Op>,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads.
    Range(RangeOp),
    /// Writes.
    Put(PutOp),
    /// Deletes.
    Delete(DeleteOp),
    /// Decides.
    Txn(TxnOp),
}

/// The answer to an [`Op`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// To a range.
    Range {
        /// The entries, sorted and limited.
        entries: Vec<Entry>,
        /// Whether the limit left some out.
        more: bool,
        /// How many keys the range has without the limit.
        count: usize,
    },
    /// To a put.
    Put {
        /// The replaced entry, if asked for.
        prev: Option<Entry>,
    },
    /// To a delete.
    Delete {
        /// How many keys were deleted.
        deleted: usize,
        /// They, if asked for.
        prev: Vec<Entry>,
    },
    /// To a transaction.
    Txn {
        /// Whether the conditions held.
        succeeded: bool,
        /// The answers of the branch taken.
        results: Vec<OpResult>,
    },
}

/// Why the state machine refused a request. The texts are etcd's, because clients recognise them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoreError {
    /// A key is empty.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// A key is longer than [`crate::limits::KEY_BYTES_MAX`], or the request larger than
    /// [`crate::limits::REQUEST_BYTES_MAX`].
    #[error("etcdserver: request is too large")]
    TooLarge,
    /// More than [`crate::limits::TXN_OPS_MAX`] operations, or nested too deep.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// One transaction changes a key twice.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// The present value or lease shall be kept, but there is no such key.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// A value together with `ignore_value`.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// A lease together with `ignore_lease`.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// There is no such lease.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// The wanted id of a new lease is taken.
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    /// The time to live of a lease is out of range.
    #[error("etcdserver: too large lease TTL")]
    LeaseTtl,
    /// More than [`crate::limits::LEASES_MAX`] leases.
    #[error("etcdserver: too many leases")]
    TooManyLeases,
    /// The wanted revision is no longer known; this is the oldest that a watch can start from.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted(i64),
    /// The wanted revision does not exist yet.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// All keys and values together would exceed [`crate::limits::STORE_BYTES_MAX`].
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
}
