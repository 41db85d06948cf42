//! The gateway daemon: the thin driver that puts images of the cluster behind standard block protocols.
//!
//! [`spawn`] runs one gateway: one thread, `gateway`, on whose reactor initiator sockets and OSD sockets meet with no hop
//! between them, and tasks on the caller's tokio runtime that follow the cluster state and keep the gateway registered.
//! They meet only in bounded channels, and the thread never waits for a task: when the state store is away, I/O goes on.
//!
//! - `driver/` moves bytes and completions between sockets, protocol sessions ([`gateway_core::Session`]) and the client
//!   core. It knows no protocol; a listener says which session its connections get.
//! - `volume_cluster` says volume operations in the words of the client core.
//! - `catalog` decides what is exported (below); `directory` is what the thread knows of it.
//!
//! # What is exported
//!
//! Every image, without being asked: those of the pool `default` under their own name, others as `pool/name`; and the
//! entries under `export/` in the cluster state, which win over an image of the same name. The default export (an empty name)
//! is the export called `default`, else the only one there is, else `demo`. New images appear, removed ones vanish (open
//! connections to them get errors), new sizes are known, all within moments of the change. NBD has no message to tell a client
//! of a new size: new connections see it, and old ones may use it.
//!
//! Any number of gateways may export one image at once, and a client may use any number of connections: a gateway keeps no
//! data, and what it acknowledged is durable.

mod catalog;
mod config;
mod control;
mod directory;
mod driver;
mod error;
mod handle;
mod metrics;
mod volume_cluster;

pub use config::GatewayOptions;
pub use error::{Error, ErrorKind};
pub use handle::{End, GatewayHandle, spawn};
pub use metrics::{ExportStats, GatewayStats, OP_KINDS, OpKind, OpStats};
