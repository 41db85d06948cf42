//! The session contract: one connection of any protocol as a pure state machine. Bytes in, bytes out, requests out,
//! completions in, one timer. The connection driver is written once, in the gateway.

use std::sync::Arc;

use buffer::Buffer;
use smallvec::SmallVec;

use crate::volume::{VolumeEvent, VolumeInfo, VolumeOp, VolumeReply};

/// Milliseconds on the driver's monotonic clock.
pub type Millis = u64;

/// Bytes of a message that a session puts together without allocating: room for the header of a reply in every protocol
/// here (NBD extended chunk 40, iSCSI basic header with digest 52, NVMe/TCP response 24).
pub const INLINE_BYTES: usize = 64;

/// A small piece of a message, held inline up to [`INLINE_BYTES`].
pub type Bytes = SmallVec<[u8; INLINE_BYTES]>;

/// The exports a session may see, as the driver knows them now.
pub trait Exports {
    /// Looks one up by its exact name. The empty name means the default export.
    fn find(&self, name: &str) -> Option<Arc<VolumeInfo>>;
    /// Names, sorted.
    fn names(&self) -> Vec<String>;
}

/// What a session asks of its driver. Drained after every input, in order.
#[derive(Debug)]
pub enum Output {
    /// Bytes to send that were put together for this message: headers and short replies, inline and so without an
    /// allocation. The driver copies them into its send buffer (see lessons: small pieces are coalesced, not gathered).
    Bytes(Bytes),
    /// Payload to send as it is.
    Payload(Buffer),
    /// Attach to this export; its [`VolumeInfo`] has just been looked up. A session attaches at most once.
    Attach(String),
    /// A request to the attached volume. The answer comes through `handle_reply`.
    Request {
        /// Chosen by the session, distinct among its requests in flight.
        tag: u64,
        /// What to do.
        op: VolumeOp,
    },
    /// Send what is queued, then close. `handle_*` is not called any more.
    Close,
}

/// One connection. `handle_*` feed it, `poll_*` drain it.
pub trait Session {
    /// Bytes arrived. All are consumed; incomplete messages are kept inside, within fixed bounds. What a session keeps
    /// beyond its bound of requests in flight is in proportion to `bytes`, so drivers feed slices of bounded length
    /// (some 100 KiB) and ask [`Session::is_saturated`] before they read more.
    fn handle_bytes(&mut self, now: Millis, exports: &dyn Exports, bytes: &[u8]);
    /// A request ended.
    fn handle_reply(&mut self, now: Millis, tag: u64, reply: VolumeReply);
    /// The attached volume changed.
    fn handle_event(&mut self, now: Millis, event: VolumeEvent);
    /// The time `poll_timeout` named has come.
    fn handle_timeout(&mut self, now: Millis);
    /// Next thing to do.
    fn poll_output(&mut self) -> Option<Output>;
    /// When to call `handle_timeout`, if at all.
    fn poll_timeout(&self) -> Option<Millis>;
    /// Whether the driver should stop reading from the socket for now (too many requests in flight).
    fn is_saturated(&self) -> bool;
}
