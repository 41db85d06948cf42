//! Cluster state store: one trait; etcd, an embedded single-node store that serves the etcd v3 API, and an in-memory one.

pub mod core;
mod error;
pub mod limits;
mod store;

pub use error::{StateError, StateErrorKind, WatchError};
pub use store::{
    Change, Compare, KeyValue, LeaseId, Snapshot, StateStore, Txn, TxnResult, Watch, WatchBatch, WatchEvent,
};

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod pb {
    tonic::include_proto!("etcdserverpb");
}
