//! The one trait through which all code sees the cluster state, and its vocabulary.

use async_trait::async_trait;

use crate::error::{StateError, WatchError};

/// A lease: keys that are bound to it are deleted when nobody keeps it alive for its time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// One key with its value and where in the store's history it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, at most [`crate::limits::KEY_BYTES_MAX`] bytes.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Revision that created the key (after its last deletion).
    pub create_revision: i64,
    /// Revision of the last write.
    pub mod_revision: i64,
    /// Writes since the creation; 1 for a fresh key.
    pub version: i64,
    /// The lease that the key is bound to, 0 for none.
    pub lease: i64,
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key exists.
    Exists(String),
    /// The key was last written in `revision`; 0 = it does not exist.
    ModRevision {
        /// The key.
        key: String,
        /// The expected [`KeyValue::mod_revision`].
        revision: i64,
    },
    /// The key was created in `revision`; 0 = it does not exist. Holds as long as the key is not deleted.
    CreateRevision {
        /// The key.
        key: String,
        /// The expected [`KeyValue::create_revision`].
        revision: i64,
    },
    /// The key exists and has this value.
    Value {
        /// The key.
        key: String,
        /// The expected value.
        value: Vec<u8>,
    },
}

/// A change made by a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes a key. Without a lease the key becomes permanent, whatever it was bound to before.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// Binds the key to a lease.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; nothing happens if there is none.
    Delete {
        /// The key.
        key: String,
    },
    /// Deletes all keys that begin with `prefix`.
    DeletePrefix {
        /// The prefix; empty means every key of the store.
        prefix: String,
    },
}

/// Changes that are made together, in one revision, if all conditions hold. A transaction must not change one key
/// twice (a put under a deleted prefix counts as such): that is refused as `Invalid`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions; none = always.
    pub when: Vec<Compare>,
    /// The changes.
    pub then: Vec<Change>,
    /// Keys to read, in the same revision, if a condition does not hold.
    pub or_read: Vec<String>,
}

impl Txn {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    pub fn when(mut self, compare: Compare) -> Self {
        self.when.push(compare);
        self
    }

    /// Adds a put without a lease.
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.then.push(Change::Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Adds a put that is bound to `lease`.
    pub fn put_leased(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>, lease: LeaseId) -> Self {
        self.then.push(Change::Put { key: key.into(), value: value.into(), lease: Some(lease) });
        self
    }

    /// Adds a deletion.
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.then.push(Change::Delete { key: key.into() });
        self
    }

    /// Adds the deletion of all keys under `prefix`.
    pub fn delete_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.then.push(Change::DeletePrefix { prefix: prefix.into() });
        self
    }

    /// Adds a key to read if a condition does not hold.
    pub fn or_read(mut self, key: impl Into<String>) -> Self {
        self.or_read.push(key.into());
        self
    }
}

/// The outcome of a transaction that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnResult {
    /// Whether the conditions held, and so the changes were made.
    pub succeeded: bool,
    /// The store's revision afterwards: that of the changes, if there were any.
    pub revision: i64,
    /// If the conditions did not hold: what [`Txn::or_read`] asked for, in its order. Else empty.
    pub read: Vec<Option<KeyValue>>,
}

/// All keys under a prefix at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision. A watch that continues from here starts at `revision + 1`.
    pub revision: i64,
    /// The keys in ascending order.
    pub entries: Vec<KeyValue>,
}

/// One change seen by a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// A key was written; this is its new state.
    Put(KeyValue),
    /// A key was deleted, or its lease ended.
    Delete {
        /// The key.
        key: String,
        /// The revision that deleted it.
        revision: i64,
    },
}

impl WatchEvent {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            WatchEvent::Put(entry) => &entry.key,
            WatchEvent::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> i64 {
        match self {
            WatchEvent::Put(entry) => entry.mod_revision,
            WatchEvent::Delete { revision, .. } => *revision,
        }
    }
}

/// All events under the watched prefix of one or more whole revisions, in order; never a part of a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// The last revision that the batch covers. The next batch begins later.
    pub revision: i64,
    /// The events, never empty, revisions ascending.
    pub events: Vec<WatchEvent>,
}

/// Where a [`Watch`] gets its batches from.
#[async_trait]
pub(crate) trait WatchSource: Send {
    /// Must not lose anything when the future is dropped before it is ready.
    async fn next(&mut self) -> Result<WatchBatch, WatchError>;
}

/// A running watch. Dropping it ends it.
pub struct Watch {
    source: Box<dyn WatchSource>,
    store_revision: i64,
}

impl Watch {
    pub(crate) fn new(store_revision: i64, source: impl WatchSource + 'static) -> Self {
        Self { source: Box::new(source), store_revision }
    }

    /// The store's revision when the watch began.
    pub fn store_revision(&self) -> i64 {
        self.store_revision
    }

    /// The next batch, as soon as there is one. Cancel-safe: nothing is lost if the future is dropped (`select!`).
    ///
    /// # Errors
    /// After any error the watch is over: [`WatchError`] tells how to continue. [`crate::Mirror`] does so by itself.
    pub async fn next(&mut self) -> Result<WatchBatch, WatchError> {
        self.source.next().await
    }
}

/// The cluster state: keys with values, changed in transactions that are numbered by revisions.
///
/// Reads are linearizable, and what was read or acknowledged is durable. All methods may be called concurrently.
#[async_trait]
pub trait StateStore: Send + Sync {
    /// One key.
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StateError>;

    /// All keys under `prefix` (empty = all) at one revision. Keys that are no UTF-8 are left out.
    async fn range(&self, prefix: &str) -> Result<Snapshot, StateError>;

    /// Carries out a transaction.
    ///
    /// # Errors
    /// [`crate::StateErrorKind::Unknown`] means that the changes may have been made; with every other error they were not.
    async fn txn(&self, txn: Txn) -> Result<TxnResult, StateError>;

    /// Events under `prefix` from `from_revision` (at least 1) on, that one included.
    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Watch, StateError>;

    /// A new lease of `ttl_s` seconds ([`crate::limits::LEASE_TTL_S_MIN`] to [`crate::limits::LEASE_TTL_S_MAX`]; etcd may
    /// grant a longer time than asked for).
    async fn lease_grant(&self, ttl_s: u32) -> Result<LeaseId, StateError>;

    /// Gives the lease its full time again. `false`: it has ended, and its keys are deleted.
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<bool, StateError>;

    /// Ends the lease and deletes its keys. A lease that has already ended is no error.
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StateError>;

    /// Lets the store forget the history before `revision`; watches that still need it end as compacted. etcd keeps all
    /// history until it is told, so the monitor does this from time to time; an embedded store bounds its history itself.
    /// Forgetting again what is forgotten is no error.
    async fn compact(&self, revision: i64) -> Result<(), StateError>;

    /// Where the store is, for messages: a directory or endpoints.
    fn location(&self) -> String;
}
