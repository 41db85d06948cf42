//! What every front door of Blockyard has in common: the volume it serves ([`volume`]) and the shape of a protocol
//! session ([`session`]). Knows nothing of the cluster and does no I/O. [`ram`] is a volume in memory, for tests and for
//! measuring a protocol's own cost.

pub mod ram;
pub mod session;
pub mod status;
pub mod volume;

pub use session::{Bytes, Exports, INLINE_BYTES, Millis, Output, Session};
pub use status::Status;
pub use volume::{BlockDevice, Extent, VolumeEvent, VolumeInfo, VolumeOp, VolumeReply};
