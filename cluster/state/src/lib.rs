//! Cluster state store: one trait; etcd, an embedded single-node store that serves the etcd v3 API, and an in-memory one.

mod convert;
pub mod core;
mod embedded;
mod error;
pub mod limits;
mod mirror;
mod server;
mod store;

pub use embedded::EmbeddedStore;
pub use error::{StateError, StateErrorKind, WatchError};
pub use mirror::{Mirror, MirrorEvent, watch_forever};
pub use server::serve_etcd;
pub use store::{
    Change, Compare, KeyValue, LeaseId, Snapshot, StateStore, Txn, TxnResult, Watch, WatchBatch, WatchEvent,
};

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod pb {
    tonic::include_proto!("etcdserverpb");
}
