//! An open image.

use std::ops::Range;
use std::sync::Arc;

use buffer::Buffer;
use cluster_client::{Extent, ImageId, ImageOp, ImageReply};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::client::{Client, join, strange};
use crate::error::{Error, ErrorKind};
use crate::metadata::ImageInfo;
use crate::shard::Command;
use crate::watch::follow;

/// Longest read or write. Bytes.
pub const TRANSFER_MAX: u64 = 64 << 20;

/// What may change of an open image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageState {
    /// Bytes.
    pub size: u64,
    /// It was removed, or is being removed: every operation fails from now on.
    pub removed: bool,
}

/// An open image: a virtual disk. A cheap handle; clones share one opening, which ends with the last of them.
///
/// Offsets and lengths are bytes, of any alignment; multiples of 4096 avoid a read before the write. Operations may be under
/// way from many tasks at once: overlapping changes through one [`Client`] take effect in the order in which they were
/// first polled, everything else in any order. Dropping the future of an operation is safe: what was begun is still carried
/// out, or partly so.
///
/// Operations wait while the cluster heals or is full. They fail with `Removed`, `Invalid` (not inside the image, or longer
/// than [`TRANSFER_MAX`]), `ReadOnly`, `Corrupt`, `Io` or `Closed`.
#[derive(Clone)]
pub struct Image {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    id: ImageId,
    info: ImageInfo,
    state: watch::Receiver<ImageState>,
    follower: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.follower.abort();
        self.client.command(Command::Close(self.id));
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({})", self.inner.info.path())
    }
}

impl Image {
    pub(crate) async fn open(client: &Client, info: ImageInfo) -> Result<Image, Error> {
        let id = client.open_raw(info.options()).await?;
        let (tell, state) = watch::channel(ImageState { size: info.meta.size, removed: false });
        let commands = client.commands().clone();
        // The client core is told first, then whoever waits.
        let follower = tokio::spawn(follow(client.state().clone(), info.layer, info.meta.size, move |state| {
            commands.send(if state.removed { Command::SetRemoved(id) } else { Command::SetSize(id, state.size) });
            tell.send_replace(state);
        }));
        Ok(Image { inner: Arc::new(Inner { client: client.clone(), id, info, state, follower }) })
    }

    /// The image as it was when it was opened.
    pub fn info(&self) -> &ImageInfo {
        &self.inner.info
    }

    /// Its size now. Bytes.
    pub fn size(&self) -> u64 {
        self.inner.state.borrow().size
    }

    /// Bytes of one of its objects: a power of two. Requests of this size and alignment are the cheapest per byte.
    pub fn block_size(&self) -> u32 {
        self.inner.info.pool_config.block_size
    }

    /// Whether it was removed, or is being removed.
    pub fn is_removed(&self) -> bool {
        self.inner.state.borrow().removed
    }

    /// Tells of changes of size, and of the end. Changes are noticed only while the state store can be reached.
    pub fn resized(&self) -> watch::Receiver<ImageState> {
        self.inner.state.clone()
    }

    /// Reads `len` bytes. What was never written reads as zeroes.
    ///
    /// # Errors
    /// See [`Image`].
    pub async fn read_at(&self, offset: u64, len: usize) -> Result<Buffer, Error> {
        Ok(join(self.read_pieces_at(offset, len).await?, len))
    }

    /// Reads `len` bytes without copying them together: consecutive pieces, one per object.
    ///
    /// # Errors
    /// See [`Image`].
    pub async fn read_pieces_at(&self, offset: u64, len: usize) -> Result<Vec<Buffer>, Error> {
        let bytes = len as u64;
        let what = || format!("read {len} bytes at {offset} of image {}", self.inner.info.path());
        limit(bytes, what)?;
        match self.run(bytes, ImageOp::Read { offset, len: bytes }, what).await? {
            ImageReply::Data(pieces) => Ok(pieces),
            _ => Err(strange(what)),
        }
    }

    /// Writes. Durable when it returns. Atomic per 4 KiB sector; all whole sectors that lie in one object are atomic
    /// together.
    ///
    /// # Errors
    /// See [`Image`].
    pub async fn write_at(&self, offset: u64, data: Buffer) -> Result<(), Error> {
        let len = data.len();
        let what = || format!("write {len} bytes at {offset} of image {}", self.inner.info.path());
        limit(len as u64, what)?;
        self.change(len as u64, ImageOp::Write { offset, data }, what).await
    }

    /// Makes a range of any length read as zeroes. The space is given back, unless `keep_allocated`: then zeroes are
    /// stored.
    ///
    /// # Errors
    /// See [`Image`].
    pub async fn write_zeroes(&self, offset: u64, len: u64, keep_allocated: bool) -> Result<(), Error> {
        let what = || format!("clear {len} bytes at {offset} of image {}", self.inner.info.path());
        let moved = if keep_allocated { len.min(TRANSFER_MAX) } else { 0 };
        self.change(moved, ImageOp::WriteZeroes { offset, len, keep_allocated }, what).await
    }

    /// Gives back the space of the whole 4 KiB sectors in a range of any length; they read as zeroes afterwards.
    ///
    /// # Errors
    /// See [`Image`].
    pub async fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        let what = || format!("discard {len} bytes at {offset} of image {}", self.inner.info.path());
        self.change(0, ImageOp::Discard { offset, len }, what).await
    }

    /// Writes `data` if the range holds exactly `compare`, atomically. Both have the same length, 1 byte to 64 KiB, and the
    /// range lies in one object (see [`Image::block_size`]).
    ///
    /// # Errors
    /// `Mismatch` if the content is another; nothing was written then. See [`Image`].
    pub async fn compare_and_write(&self, offset: u64, compare: Buffer, data: Buffer) -> Result<(), Error> {
        let len = data.len();
        let what = || format!("compare and write {len} bytes at {offset} of image {}", self.inner.info.path());
        limit(len as u64, what)?;
        self.change(len as u64, ImageOp::CompareAndWrite { offset, compare, data }, what).await
    }

    /// Makes everything that was acknowledged before durable. (It is already, in the pools there are today.)
    ///
    /// # Errors
    /// See [`Image`].
    pub async fn flush(&self) -> Result<(), Error> {
        self.change(0, ImageOp::Flush, || format!("flush image {}", self.inner.info.path())).await
    }

    /// Which parts of a range hold data: consecutive extents that cover it exactly. What holds none reads as zeroes.
    ///
    /// # Errors
    /// See [`Image`].
    pub async fn allocation(&self, offset: u64, len: u64) -> Result<Vec<Extent>, Error> {
        let what = || format!("look at {len} bytes at {offset} of image {}", self.inner.info.path());
        let mut extents: Vec<Extent> = Vec::new();
        let mut done = 0;
        while done < len {
            let op = ImageOp::Allocation { offset: offset + done, len: len - done };
            let ImageReply::Extents(found) = self.run(0, op, what).await? else { return Err(strange(what)) };
            let covered: u64 = found.iter().map(|extent| extent.len).sum();
            if covered == 0 {
                return Err(strange(what));
            }
            done += covered;
            for extent in found {
                match extents.last_mut() {
                    Some(last) if last.data == extent.data => last.len += extent.len,
                    _ => extents.push(extent),
                }
            }
        }
        Ok(extents)
    }

    /// Deletes whole objects by their numbers (byte offset divided by [`Image::block_size`]), also behind the image's end.
    /// They read as zeroes afterwards.
    ///
    /// # Errors
    /// See [`Image`].
    pub async fn delete_objects(&self, objects: Range<u32>) -> Result<(), Error> {
        self.inner.client.delete_range(self.inner.id, objects, |_, _| {}).await
    }

    async fn run(&self, bytes: u64, op: ImageOp, what: impl FnOnce() -> String) -> Result<ImageReply, Error> {
        self.inner.client.run(self.inner.id, bytes, op, what).await
    }

    async fn change(&self, bytes: u64, op: ImageOp, what: impl FnOnce() -> String) -> Result<(), Error> {
        self.run(bytes, op, what).await.map(drop)
    }
}

fn limit(bytes: u64, what: impl FnOnce() -> String) -> Result<(), Error> {
    if bytes <= TRANSFER_MAX {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, format!("cannot {}: at most {TRANSFER_MAX} bytes at once", what())))
}
