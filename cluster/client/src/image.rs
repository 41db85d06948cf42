//! Open images.

use cluster_proto::{LayerRef, Status};

use crate::client::Client;
use crate::op::{ImageOp, Task};

/// An open image of a client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct ImageId(pub(crate) u64);

/// What the client must know of an image to open it; the driver looks it up in the cluster state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageOptions {
    /// Pool and layer.
    pub layer: LayerRef,
    /// Bytes.
    pub size: u64,
    /// Object size of the pool. Bytes.
    pub block_size: u32,
    /// Refuse writes.
    pub read_only: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Image {
    pub options: ImageOptions,
    pub removed: bool,
}

/// First byte and length of an operation; none for those without a byte range.
fn range_of(op: &ImageOp) -> Option<(u64, u64)> {
    match op {
        ImageOp::Read { offset, len }
        | ImageOp::WriteZeroes { offset, len, .. }
        | ImageOp::Discard { offset, len }
        | ImageOp::Allocation { offset, len } => Some((*offset, *len)),
        ImageOp::Write { offset, data } | ImageOp::CompareAndWrite { offset, data, .. } => {
            Some((*offset, data.len() as u64))
        }
        ImageOp::Flush | ImageOp::DeleteObjects { .. } => None,
    }
}

impl Image {
    /// Whether an operation may begin.
    fn judge(&self, op: &ImageOp) -> Result<(), Status> {
        if self.removed {
            return Err(Status::NotFound);
        }
        let writes = !matches!(op, ImageOp::Read { .. } | ImageOp::Allocation { .. } | ImageOp::Flush);
        if writes && self.options.read_only {
            return Err(Status::ReadOnly);
        }
        let inside = |(offset, len): (u64, u64)| offset.checked_add(len).is_some_and(|end| end <= self.options.size);
        if !range_of(op).is_none_or(inside) {
            return Err(Status::Invalid);
        }
        match op {
            ImageOp::CompareAndWrite { offset, compare, data } => {
                let block = u64::from(self.options.block_size);
                let one_object = offset / block == (offset + data.len().max(1) as u64 - 1) / block;
                let fits = data.len() <= cluster_proto::limits::COMPARE_AND_WRITE_MAX && compare.len() == data.len();
                if one_object && fits && !data.is_empty() { Ok(()) } else { Err(Status::Invalid) }
            }
            _ => Ok(()),
        }
    }
}

impl Client {
    /// Opens an image. Until its pool and PGs are known its operations wait.
    pub fn open(&mut self, options: ImageOptions) -> ImageId {
        ImageId(self.images.insert(Image { options, removed: false }))
    }

    /// Options of an open image.
    pub fn image(&self, image: ImageId) -> Option<&ImageOptions> {
        self.images.get(image.0).map(|image| &image.options)
    }

    /// The image has a new size. Operations under way are not touched.
    pub fn set_size(&mut self, image: ImageId, size: u64) {
        if let Some(image) = self.images.get_mut(image.0) {
            image.options.size = size;
        }
    }

    /// The image was removed from the cluster: new operations fail with [`Status::NotFound`].
    pub fn set_removed(&mut self, image: ImageId) {
        if let Some(image) = self.images.get_mut(image.0) {
            image.removed = true;
        }
    }

    /// Closes an image. What its operations have under way goes on, nothing more of them is begun; each is answered all
    /// the same, by [`Status::NotFound`] if it was cut short or not. What is not durable yet is synced: [`Client::unsynced`].
    pub fn close(&mut self, image: ImageId) {
        self.images.remove(image.0);
        self.sync();
    }

    /// Starts an operation; its answer carries `tag`.
    pub fn submit(&mut self, image: ImageId, tag: u64, op: ImageOp) {
        let judged = match self.images.get(image.0) {
            Some(state) => state.judge(&op),
            None => Err(Status::NotFound),
        };
        if let Err(status) = judged {
            self.replies.push_back((image, tag, Err(status)));
            return;
        }
        // What was answered is durable on every member, but for what is kept.
        if matches!(op, ImageOp::Flush) {
            return self.flush_start(image, tag);
        }
        let task = Task { image, tag, op, cursor: 0, pending: 0, failed: None, found: Vec::new() };
        let id = self.tasks.insert(task);
        self.cut(id);
    }
}
