//! A volume in memory: the peer of every protocol's conformance tests, and the way to measure a protocol without a
//! cluster behind it.
//!
//! A [`RamVolume`] is one attachment. Clones share the content and the script, but have their own replies and events,
//! as two connections to one export have. An operation takes effect in [`BlockDevice::submit`]; only its *reply* is
//! delayed, held or reordered as [`Delivery`] says, so what a test reads does not depend on the script.

mod delivery;
mod exports;
mod pages;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use buffer::{Buffer, BufferMut};

pub use delivery::Delivery;
pub use exports::RamExports;

use crate::status::Status;
use crate::volume::{BlockDevice, VolumeEvent, VolumeInfo, VolumeOp, VolumeReply};
use delivery::Replies;
use pages::Pages;

#[derive(Debug)]
struct Shared {
    info: VolumeInfo,
    removed: bool,
    pages: Pages,
    /// The next operations fail with these, without effect.
    failures: Vec<Status>,
    /// Operations that touch the range fail.
    bad: Vec<(Range<u64>, Status)>,
    /// Replies to reads are cut into pieces of at most this many bytes, as at object boundaries.
    read_piece: usize,
    submitted: u64,
}

/// A disk in memory. See the [module](self).
#[derive(Debug)]
pub struct RamVolume {
    shared: Arc<Mutex<Shared>>,
    replies: Replies,
    size_seen: u64,
    removed_seen: bool,
}

impl Clone for RamVolume {
    /// Another attachment to the same disk, with in-order delivery.
    fn clone(&self) -> Self {
        let shared = self.lock();
        let (size_seen, removed_seen) = (shared.info.size, shared.removed);
        drop(shared);
        Self { shared: Arc::clone(&self.shared), replies: Replies::default(), size_seen, removed_seen }
    }
}

impl RamVolume {
    /// An empty disk that describes itself as `info`.
    pub fn new(info: VolumeInfo) -> Self {
        let size_seen = info.size;
        let shared = Shared {
            info,
            removed: false,
            pages: Pages::default(),
            failures: Vec::new(),
            bad: Vec::new(),
            read_piece: usize::MAX,
            submitted: 0,
        };
        let shared = Arc::new(Mutex::new(shared));
        Self { shared, replies: Replies::default(), size_seen, removed_seen: false }
    }

    /// An empty writable disk of `size` bytes with ordinary block sizes: 4 KiB preferred, 1 MiB optimal, at most 32 MiB.
    pub fn with_size(name: &str, size: u64) -> Self {
        Self::new(VolumeInfo {
            name: name.to_owned(),
            description: format!("RAM disk {name}"),
            size,
            read_only: false,
            preferred_block: 4096,
            optimal_io: 1 << 20,
            max_transfer: 32 << 20,
        })
    }

    /// How this attachment's replies come back from now on.
    pub fn set_delivery(&mut self, delivery: Delivery) {
        self.replies.set_delivery(delivery);
    }

    /// Tags of replies that wait for [`RamVolume::release`], in order of submission.
    pub fn held(&self) -> Vec<u64> {
        self.replies.held()
    }

    /// Lets a held reply go. False if there is none with this tag.
    pub fn release(&mut self, tag: u64) -> bool {
        self.replies.release(tag)
    }

    /// The next operation on the disk fails like this and changes nothing. Several calls queue up.
    pub fn fail_next(&self, status: Status) {
        self.lock().failures.push(status);
    }

    /// Every operation that touches a byte of `range` fails like this from now on.
    pub fn fail_range(&self, range: Range<u64>, status: Status) {
        self.lock().bad.push((range, status));
    }

    /// Cuts replies to reads into pieces of at most `bytes` (at least 1), as a volume of several objects does.
    pub fn set_read_piece(&self, bytes: usize) {
        self.lock().read_piece = bytes.max(1);
    }

    /// Changes the size; what lies behind the new end is lost. Every attachment gets an event.
    pub fn resize(&self, size: u64) {
        let mut shared = self.lock();
        shared.info.size = size;
        shared.pages.truncate(size);
    }

    /// Removes the disk: operations fail with [`Status::Gone`] and every attachment gets an event.
    pub fn remove(&self) {
        self.lock().removed = true;
    }

    /// Operations submitted so far through all attachments.
    pub fn submitted(&self) -> u64 {
        self.lock().submitted
    }

    /// A copy of part of the content, past any script.
    ///
    /// # Panics
    /// If the range does not lie inside the disk.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let shared = self.lock();
        assert!(offset.checked_add(len as u64).is_some_and(|end| end <= shared.info.size), "peek past the end");
        let mut bytes = vec![0; len];
        shared.pages.read(offset, &mut bytes);
        bytes
    }

    // A panicking test thread leaves the content usable: every operation writes whole values.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockDevice for RamVolume {
    fn info(&self) -> VolumeInfo {
        self.lock().info.clone()
    }

    fn submit(&mut self, tag: u64, op: VolumeOp) {
        let reply = self.lock().execute(op).unwrap_or_else(VolumeReply::Failed);
        self.replies.push(tag, reply);
    }

    fn poll_reply(&mut self) -> Option<(u64, VolumeReply)> {
        self.replies.poll()
    }

    fn poll_event(&mut self) -> Option<VolumeEvent> {
        let (size, removed) = {
            let shared = self.lock();
            (shared.info.size, shared.removed)
        };
        if removed != self.removed_seen {
            self.removed_seen = removed;
            return Some(VolumeEvent::Removed);
        }
        (size != self.size_seen).then(|| {
            self.size_seen = size;
            VolumeEvent::Resized(size)
        })
    }
}

/// First byte and length of what an operation touches. Flush touches nothing.
fn range_of(op: &VolumeOp) -> (u64, u64) {
    match op {
        VolumeOp::Read { offset, len } => (*offset, u64::from(*len)),
        VolumeOp::Write { offset, data, .. } | VolumeOp::CompareAndWrite { offset, data, .. } => {
            (*offset, data.len() as u64)
        }
        VolumeOp::Discard { offset, len }
        | VolumeOp::WriteZeroes { offset, len, .. }
        | VolumeOp::BlockStatus { offset, len } => (*offset, *len),
        VolumeOp::Flush => (0, 0),
    }
}

fn is_write(op: &VolumeOp) -> bool {
    !matches!(op, VolumeOp::Read { .. } | VolumeOp::Flush | VolumeOp::BlockStatus { .. })
}

impl Shared {
    fn execute(&mut self, op: VolumeOp) -> Result<VolumeReply, Status> {
        self.submitted += 1;
        self.admit(&op)?;
        match op {
            VolumeOp::Read { offset, len } => return Ok(VolumeReply::Data(self.read(offset, len as usize))),
            VolumeOp::Write { offset, data, .. } => self.pages.write(offset, &data),
            VolumeOp::Flush => {}
            VolumeOp::Discard { offset, len } => self.pages.discard(offset, len),
            VolumeOp::WriteZeroes { offset, len, may_unmap, .. } => self.pages.zero(offset, len, may_unmap),
            VolumeOp::CompareAndWrite { offset, compare, data } => self.compare_and_write(offset, &compare, &data)?,
            VolumeOp::BlockStatus { offset, len } => return Ok(VolumeReply::Extents(self.pages.extents(offset, len))),
        }
        Ok(VolumeReply::Done)
    }

    fn admit(&mut self, op: &VolumeOp) -> Result<(), Status> {
        let (offset, len) = range_of(op);
        if self.removed {
            return Err(Status::Gone);
        }
        if !self.failures.is_empty() {
            return Err(self.failures.remove(0));
        }
        if self.info.read_only && is_write(op) {
            return Err(Status::ReadOnly);
        }
        let end = offset.checked_add(len).filter(|&end| end <= self.info.size).ok_or(Status::Invalid)?;
        match self.bad.iter().find(|(bad, _)| len > 0 && offset < bad.end && bad.start < end) {
            Some((_, status)) => Err(*status),
            None => Ok(()),
        }
    }

    fn read(&self, offset: u64, len: usize) -> Vec<Buffer> {
        let piece = |done: usize| {
            let mut buffer = BufferMut::for_overwrite(self.read_piece.min(len - done));
            self.pages.read(offset + done as u64, &mut buffer);
            buffer.freeze()
        };
        let mut pieces = Vec::with_capacity(1);
        let mut done = 0;
        while done < len {
            pieces.push(piece(done));
            done += self.read_piece.min(len - done);
        }
        pieces
    }

    fn compare_and_write(&mut self, offset: u64, compare: &[u8], data: &[u8]) -> Result<(), Status> {
        if compare.len() != data.len() {
            return Err(Status::Invalid);
        }
        let mut current = vec![0; compare.len()];
        self.pages.read(offset, &mut current);
        if current != compare {
            return Err(Status::Mismatch);
        }
        self.pages.write(offset, data);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
