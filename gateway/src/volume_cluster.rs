//! Volume operations in the words of the client core, and its answers in the words of a volume.
//!
//! Everything acknowledged is durable on every member of the PG, so `fua` asks for nothing more and a flush waits for
//! nothing; that holds for all connections to an image, of this and every other gateway. In lazy pools a flush makes durable what this
//! gateway answered on any connection, and a change with `fua` is flushed before it is answered (`driver/completion.rs`).

use cluster_client::{Extent as ImageExtent, ImageOp, ImageReply};
use cluster_proto::Status as ClusterStatus;
use gateway_core::{Extent, Status, VolumeOp, VolumeReply};

/// The operation on the image.
pub(crate) fn image_op(op: VolumeOp) -> ImageOp {
    match op {
        VolumeOp::Read { offset, len } => ImageOp::Read { offset, len: len.into() },
        VolumeOp::Write { offset, data, fua: _ } => ImageOp::Write { offset, data },
        VolumeOp::Flush => ImageOp::Flush,
        VolumeOp::Discard { offset, len } => ImageOp::Discard { offset, len },
        VolumeOp::WriteZeroes { offset, len, may_unmap, fua: _ } => {
            ImageOp::WriteZeroes { offset, len, keep_allocated: !may_unmap }
        }
        VolumeOp::CompareAndWrite { offset, compare, data } => ImageOp::CompareAndWrite { offset, compare, data },
        VolumeOp::BlockStatus { offset, len } => ImageOp::Allocation { offset, len },
    }
}

/// The answer of the volume.
pub(crate) fn volume_reply(result: Result<ImageReply, ClusterStatus>) -> VolumeReply {
    let extent = |extent: ImageExtent| Extent { len: extent.len, data: extent.data };
    match result {
        Ok(ImageReply::Done) => VolumeReply::Done,
        Ok(ImageReply::Data(pieces)) => VolumeReply::Data(pieces),
        Ok(ImageReply::Extents(extents)) => VolumeReply::Extents(extents.into_iter().map(extent).collect()),
        Err(status) => VolumeReply::Failed(volume_status(status)),
    }
}

/// The outcome in the house's words. The transient ones never leave the client core.
fn volume_status(status: ClusterStatus) -> Status {
    match status {
        ClusterStatus::NotFound => Status::Gone,
        ClusterStatus::ReadOnly => Status::ReadOnly,
        ClusterStatus::Mismatch => Status::Mismatch,
        ClusterStatus::Corrupt => Status::Medium,
        ClusterStatus::Invalid => Status::Invalid,
        ClusterStatus::Ok
        | ClusterStatus::Io
        | ClusterStatus::Retry
        | ClusterStatus::Busy
        | ClusterStatus::NoSpace
        | ClusterStatus::BadPayload => Status::Failed,
    }
}

/// Whether the operation is to be durable when it is answered.
pub(crate) fn is_fua(op: &VolumeOp) -> bool {
    matches!(op, VolumeOp::Write { fua: true, .. } | VolumeOp::WriteZeroes { fua: true, .. })
}

/// Whether the operation changes the volume.
pub(crate) fn is_write(op: &VolumeOp) -> bool {
    match op {
        VolumeOp::Read { .. } | VolumeOp::Flush | VolumeOp::BlockStatus { .. } => false,
        VolumeOp::Write { .. }
        | VolumeOp::Discard { .. }
        | VolumeOp::WriteZeroes { .. }
        | VolumeOp::CompareAndWrite { .. } => true,
    }
}

/// Payload that the operation carries to the cluster. Bytes.
pub(crate) fn payload_bytes(op: &VolumeOp) -> usize {
    match op {
        VolumeOp::Write { data, .. } => data.len(),
        VolumeOp::CompareAndWrite { data, .. } => 2 * data.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_keep_their_space_unless_the_client_allows() {
        let zero = |may_unmap| image_op(VolumeOp::WriteZeroes { offset: 1, len: 2, may_unmap, fua: true });
        assert_eq!(zero(false), ImageOp::WriteZeroes { offset: 1, len: 2, keep_allocated: true });
        assert_eq!(zero(true), ImageOp::WriteZeroes { offset: 1, len: 2, keep_allocated: false });
    }

    #[test]
    fn what_the_cluster_says_is_said_in_the_houses_words() {
        let said = |status| volume_reply(Err(status));
        assert_eq!(said(ClusterStatus::NotFound), VolumeReply::Failed(Status::Gone));
        assert_eq!(said(ClusterStatus::Corrupt), VolumeReply::Failed(Status::Medium));
        assert_eq!(said(ClusterStatus::Io), VolumeReply::Failed(Status::Failed));
        assert_eq!(said(ClusterStatus::Mismatch), VolumeReply::Failed(Status::Mismatch));
    }
}
