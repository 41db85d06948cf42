//! The store inside an OSD: redirect-on-write data area, append-only metadata log, partitioned checkpoints.
//!
//! [`Store`] is a pure state machine: it does no I/O, knows no clock and has no threads. The driver hands in operations
//! ([`Store::submit`]) and completions ([`Store::handle_device`]) and takes out device requests
//! ([`Store::poll_device`]) and outcomes ([`Store::poll_outcome`]). docs/disk.md draws the bytes, states the invariants and
//! the reasons; `tests/crash_points.rs` attacks them.
//!
//! The promise, in one sentence: after any crash the store is in the state after *some prefix* of the mutating operations
//! submitted to it, and that prefix contains every operation that was reported done.

mod allocator;
mod arena;
mod checkpoint;
mod commit;
mod delete;
mod device;
mod digest;
mod extent;
mod flush;
pub mod format;
mod geometry;
mod index;
pub mod inspect;
mod layer;
mod list;
mod log;
mod open;
mod prefetch;
mod quarantine;
mod read;
mod relocate;
mod requests;
mod reserve;
mod stage;
mod stats;
mod store;
mod sync;
mod write;

pub use device::{DeviceError, DeviceOp, DeviceRequest, DeviceResult, Pieces};
pub use format::log::Lsn;
pub use format::superblock::{Superblock, SuperblockError};
pub use format::{FormatError, FormatOptions, FormatWrite, format};
pub use geometry::Geometry;
pub use log::replay::{BlockFound, EntryFate, LogDamage};
pub use open::OpenError;
pub use stats::StoreStats;
pub use store::{Durability, Store, StoreConfig, StoreState};
