//! What a turn of the reactor tells its driver, and the names it uses.

use std::io;
use std::net::SocketAddr;

use buffer::BufferMut;

use crate::Received;
use crate::slots::SlotId;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(pub(crate) SlotId);

        impl $name {
            /// Index of the slot: small and reused after the end of this one, so fit for indexing a driver's own
            /// table. Compare whole ids, not indexes, to tell an old one from its successor.
            pub fn index(self) -> usize {
                self.0.index as usize
            }
        }
    };
}

id!(
    /// A listening socket of one reactor.
    ListenerId
);
id!(
    /// A connection of one reactor. Using an id after the end of its connection is harmless and does nothing.
    ConnId
);
id!(
    /// An open disk of one reactor.
    DiskId
);

/// Who connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerAddr {
    /// A TCP peer.
    Tcp(SocketAddr),
    /// A peer on a Unix socket.
    Unix,
}

/// One thing that happened, from [`Reactor::next_event`](crate::Reactor::next_event).
#[derive(Debug)]
pub enum Event {
    /// A peer connected; receiving has begun already.
    Accepted {
        /// The socket it came in on.
        listener: ListenerId,
        /// The new connection.
        conn: ConnId,
        /// Its other end.
        peer: PeerAddr,
    },
    /// A connection asked for with `connect_*` is established; receiving has begun already.
    Connected {
        /// The connection.
        conn: ConnId,
    },
    /// Bytes arrived, in order. Drop `data` soon: it occupies one of the reactor's receive buffers.
    Received {
        /// The connection.
        conn: ConnId,
        /// The bytes, never empty.
        data: Received,
    },
    /// The connection ended: by its peer (`error` is `None`) or by a failure. Its id is dead; what was queued for
    /// sending is dropped. Not reported for connections that the driver itself closed or aborted.
    Closed {
        /// The connection.
        conn: ConnId,
        /// Why, unless the peer ended it properly.
        error: Option<io::Error>,
    },
    /// A `disk_read` ended.
    DiskRead {
        /// The disk.
        disk: DiskId,
        /// The caller's token.
        token: u64,
        /// The filled buffer. Reading past the end of a file is `UnexpectedEof`.
        result: Result<BufferMut, io::Error>,
    },
    /// A `disk_write`, `disk_flush` or `disk_discard` ended.
    DiskDone {
        /// The disk.
        disk: DiskId,
        /// The caller's token.
        token: u64,
        /// The outcome; a write that failed may have written any part of its range.
        result: Result<(), io::Error>,
    },
    /// Somebody called [`Waker::wake`](crate::Waker::wake) since the last one; several calls may share one event.
    Woken,
}
