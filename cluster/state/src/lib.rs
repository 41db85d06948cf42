//! Cluster state store: one trait; etcd, an embedded single-node store that serves the etcd v3 API, and an in-memory one.
//!
//! | store | for | made by |
//! |---|---|---|
//! | [`EmbeddedStore`] | `blockyard up`: durable in one file, offered to other processes by [`serve_etcd`] | [`EmbeddedStore::open`] |
//! | [`EmbeddedStore`] | tests | [`EmbeddedStore::in_memory`] |
//! | [`EtcdStore`] | an etcd cluster, or the embedded store of another process | [`connect`], [`EtcdStore::new`] |
//! | [`core::StateCore`] | the simulator: the same state machine without threads, files and clock | [`core::StateCore::new`] |
//!
//! Whoever follows a part of the state uses a [`Mirror`]. Moving from one store to another is [`export`] and [`import`].

mod connect;
mod convert;
pub mod core;
mod dump;
mod embedded;
mod error;
mod etcd;
pub mod limits;
mod mirror;
mod server;
mod store;

pub use connect::connect;
pub use dump::{export, import};
pub use embedded::EmbeddedStore;
pub use error::{StateError, StateErrorKind, WatchError};
pub use etcd::{ClientIdentity, Credentials, EtcdConfig, EtcdStore};
pub use mirror::{Mirror, MirrorEvent, watch_forever};
pub use server::serve_etcd;
pub use store::{
    Change, Compare, KeyValue, LeaseId, Snapshot, StateStore, Txn, TxnResult, Watch, WatchBatch, WatchEvent,
};

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod pb {
    tonic::include_proto!("etcdserverpb");
}
