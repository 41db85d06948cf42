//! Single-threaded io_uring reactor for sockets and disks, and the clock and randomness of the drivers above it.
//!
//! [`Reactor`] is one ring on one thread. A driver queues sends, reads and writes, calls [`Reactor::turn`] (one
//! `io_uring_enter`: submit everything, wait for something), and takes [`Event`]s until there are none. Sockets use
//! multishot accept and multishot receive into provided buffers; disks use plain vectored reads and writes, with
//! `O_DIRECT` where the file system lets us. Needs Linux 6.1.
//!
//! This is one of the crates with unsafe code; it is confined to the modules that talk to the kernel.

pub mod clock;
pub mod entropy;
pub mod secret;

mod block_device;
mod conn;
mod disk;
mod disk_op;
mod error;
mod event;
mod listener;
mod net;
mod op;
mod outgoing;
mod reactor;
mod receive;
mod ring;
mod slots;
mod takeover;
mod waker;

pub use buffer;

pub use block_device::{BlockDevice, Partition, reread_partitions};
pub use disk::{DiskInfo, DiskOptions};
pub use error::{Error, ErrorKind};
pub use event::{ConnId, DiskId, Event, ListenerId, PeerAddr};
pub use net::SEND_QUIET_MAX;
pub use reactor::{Counters, Reactor, ReactorConfig};
pub use receive::Received;
pub use waker::Waker;
