//! What every front door of Blockyard has in common: the volume it serves ([`volume`]) and the shape of a protocol
//! session ([`session`]). Knows nothing of the cluster and does no I/O.

pub mod session;
pub mod status;
pub mod volume;

pub use session::{Exports, Millis, Output, Session};
pub use status::Status;
pub use volume::{BlockDevice, Extent, VolumeEvent, VolumeInfo, VolumeOp, VolumeReply};
