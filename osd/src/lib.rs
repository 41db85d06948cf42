//! The OSD daemon: the thin driver that turns [`osd_core::Osd`], [`blockstore::Store`] and
//! [`cluster_io::Reactor`] into a running OSD.
//!
//! - [`divide`] makes partitions for several OSDs of one drive;
//! - [`prepare()`] makes an empty store of a file or block device;
//! - [`spawn`] runs an OSD on it: one thread, `osd-N`, for the data path (`shard`), and one tokio task for its place in
//!   the cluster (`control`: registration, cluster state, activation records, statistics);
//! - [`OsdHandle`] stops it and tells how it is.
//!
//! The thread and the task meet only in bounded channels, and the thread never waits for the task: when the state store
//! is away, I/O goes on.

mod activations;
mod command;
mod connections;
mod content;
mod control;
pub mod device;
mod divide;
mod error;
mod handle;
mod identity;
mod live;
mod metrics;
mod opening;
mod options;
mod prepare;
mod shard;

pub use divide::{Divided, divide};
pub use error::{Error, ErrorKind};
pub use handle::{End, OsdHandle, spawn};
pub use identity::{Identity, identify};
pub use live::Live;
pub use metrics::to_prometheus;
pub use options::{DurabilityOption, OsdOptions};
pub use osd_core::{ByClass, Latencies, OP_CLASSES, OpClass};
pub use prepare::{PrepareOptions, Prepared, prepare};
