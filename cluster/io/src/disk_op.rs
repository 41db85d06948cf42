//! Operations on disks, from the request over short transfers to the event.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use buffer::{Buffer, BufferMut};
use smallvec::SmallVec;

use crate::Error;
use crate::disk::{Disk, DiskInfo, DiskOptions};
use crate::event::{DiskId, Event};
use crate::op::{self, Span, iovec_of};
use crate::reactor::Core;
use crate::ring::Completion;
use crate::slots::{SlotId, Slots};

/// Pieces of one vectored write (the kernel's limit); more are continued.
const PIECES_MAX: usize = 1024;
/// The longest transfer with a file in memory that is done at once instead of by the kernel's threads, for which it would wait at the file's lock. Bytes.
const AT_ONCE_MAX: usize = 1 << 20;
/// After so many bytes of them, other events have their turn. Bytes.
const AT_ONCE_PER_TURN: usize = 4 << 20;
/// Boxes kept for reuse.
const SPARE_MAX: usize = 1024;

enum Work {
    Read(BufferMut),
    Write(SmallVec<[Buffer; 4]>),
    Flush,
    Discard { len: u64 },
}

impl Work {
    fn len(&self) -> usize {
        match self {
            Work::Read(buffer) => buffer.len(),
            Work::Write(data) => data.iter().map(|b| b.len()).sum(),
            Work::Flush | Work::Discard { .. } => 0,
        }
    }
}

/// One operation with all that the kernel refers to. Boxed, so that it stays in place when the slots grow.
struct DiskOp {
    disk: DiskId,
    token: u64,
    offset: u64,
    work: Work,
    /// Bytes transferred so far.
    done: usize,
    list: Vec<libc::iovec>,
}

impl DiskOp {
    /// Does what is left of a read or write with a system call of its own; how much it did. Bytes.
    fn transfer(&mut self, fd: RawFd) -> io::Result<usize> {
        let at = (self.offset + self.done as u64) as i64;
        let count = match &mut self.work {
            Work::Read(buffer) => {
                let rest = &mut buffer[self.done..];
                // SAFETY: the memory is writable and ours.
                unsafe { libc::pread(fd, rest.as_mut_ptr().cast(), rest.len(), at) }
            }
            Work::Write(data) => {
                fill_list(data, self.done, &mut self.list);
                // SAFETY: the list describes buffers that this operation owns.
                unsafe { libc::pwritev(fd, self.list.as_ptr(), self.list.len() as i32, at) }
            }
            Work::Flush | Work::Discard { .. } => 0,
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    fn finish(&mut self, result: io::Result<()>) -> Event {
        let (disk, token) = (self.disk, self.token);
        match std::mem::replace(&mut self.work, Work::Flush) {
            Work::Read(buffer) => Event::DiskRead { disk, token, result: result.map(|()| buffer) },
            Work::Write(_) | Work::Flush | Work::Discard { .. } => Event::DiskDone { disk, token, result },
        }
    }
}

/// All disks of a reactor and what is in flight on them.
#[derive(Default)]
pub(crate) struct Disks {
    disks: Slots<Disk>,
    #[expect(clippy::vec_box, reason = "the kernel holds pointers into operations")]
    spare: Vec<Box<DiskOp>>,
    ops: Slots<Box<DiskOp>>,
    /// Transfers with files in memory, to be done in this turn.
    at_once: VecDeque<SlotId>,
    /// How many were done.
    transfers: u64,
}

impl Disks {
    pub(crate) fn open(&mut self, path: &Path, options: &DiskOptions) -> Result<(DiskId, DiskInfo), Error> {
        let (disk, info) = crate::disk::open(path, options)?;
        Ok((DiskId(self.disks.insert(disk)), info))
    }

    pub(crate) fn is_open(&self, disk: DiskId) -> bool {
        self.disks.get(disk.0).is_some_and(|d| !d.closed)
    }

    pub(crate) fn close(&mut self, disk: DiskId) {
        if let Some(d) = self.disks.get_mut(disk.0) {
            d.closed = true;
        }
        self.release(disk);
    }

    fn release(&mut self, disk: DiskId) {
        if self.disks.get(disk.0).is_some_and(|d| d.closed && d.in_flight == 0) {
            self.disks.remove(disk.0);
        }
    }

    pub(crate) fn read(&mut self, core: &mut Core, disk: DiskId, token: u64, offset: u64, buffer: BufferMut) {
        self.start(core, disk, token, offset, Work::Read(buffer));
    }

    pub(crate) fn write(
        &mut self,
        core: &mut Core,
        disk: DiskId,
        token: u64,
        offset: u64,
        data: SmallVec<[Buffer; 4]>,
    ) {
        self.start(core, disk, token, offset, Work::Write(data));
    }

    pub(crate) fn flush(&mut self, core: &mut Core, disk: DiskId, token: u64) {
        self.start(core, disk, token, 0, Work::Flush);
    }

    pub(crate) fn discard(&mut self, core: &mut Core, disk: DiskId, token: u64, offset: u64, len: u64) {
        self.start(core, disk, token, offset, Work::Discard { len });
    }

    fn start(&mut self, core: &mut Core, disk: DiskId, token: u64, offset: u64, work: Work) {
        assert!(self.is_open(disk), "an operation on {disk:?}, which is closed");
        let nothing = match &work {
            Work::Flush => false,
            Work::Discard { len } => *len == 0,
            transfer => transfer.len() == 0,
        };
        let op = self.fresh(disk, token, offset, work);
        let id = self.ops.insert(op);
        if let Some(d) = self.disks.get_mut(disk.0) {
            d.in_flight += 1;
        }
        if nothing { self.finish(core, id, Ok(())) } else { self.submit(core, id) }
    }

    fn fresh(&mut self, disk: DiskId, token: u64, offset: u64, work: Work) -> Box<DiskOp> {
        let Some(mut op) = self.spare.pop() else {
            return Box::new(DiskOp { disk, token, offset, work, done: 0, list: Vec::new() });
        };
        *op = DiskOp { disk, token, offset, work, done: 0, list: std::mem::take(&mut op.list) };
        op
    }

    /// Hands the rest of an operation to the kernel.
    fn submit(&mut self, core: &mut Core, id: SlotId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Some(disk) = self.disks.get(op.disk.0) else { return };
        let (ring, fd) = (&mut core.ring, disk.fd());
        let at = op.offset + op.done as u64;
        let rest = op.work.len() - op.done;
        if disk.in_memory && (1..=AT_ONCE_MAX).contains(&rest) {
            return self.at_once.push_back(id);
        }
        match &mut op.work {
            Work::Read(buffer) => {
                let rest = &mut buffer[op.done..];
                let span = Span { start: rest.as_mut_ptr(), len: rest.len() };
                // SAFETY: the slot keeps the buffer, untouched, until `handle` sees the completion.
                unsafe { op::disk_read(ring, id, fd, at, span) }
            }
            Work::Write(data) => {
                fill_list(data, op.done, &mut op.list);
                // SAFETY: the slot keeps the buffers and the list, unchanged, until `handle` sees the completion;
                // buffers are immutable and the box keeps the operation in place.
                unsafe { op::disk_write(ring, id, fd, at, &op.list) }
            }
            Work::Flush => op::disk_flush(ring, id, fd),
            Work::Discard { len } if disk.punch_only => op::disk_punch(ring, id, fd, op.offset, *len),
            Work::Discard { len } => op::device_discard(ring, id, fd, op.offset, *len),
        }
    }

    /// Whether [`Disks::transfer_at_once`] has something to do.
    pub(crate) fn has_at_once(&self) -> bool {
        !self.at_once.is_empty()
    }

    /// System calls for transfers with files in memory.
    pub(crate) fn transfers(&self) -> u64 {
        self.transfers
    }

    /// Does the transfers with files in memory. After the ring was entered, so that what others wait for is on its way.
    pub(crate) fn transfer_at_once(&mut self, core: &mut Core) {
        let mut done = 0;
        while done < AT_ONCE_PER_TURN
            && let Some(id) = self.at_once.pop_front()
        {
            let Some(op) = self.ops.get_mut(id) else { continue };
            let Some(disk) = self.disks.get(op.disk.0) else { continue };
            let outcome = op.transfer(disk.fd());
            self.transfers += 1;
            done += *outcome.as_ref().unwrap_or(&0);
            self.handle_outcome(core, id, outcome);
        }
    }

    pub(crate) fn handle(&mut self, core: &mut Core, completion: Completion) {
        self.handle_outcome(core, completion.key.slot, completion.outcome());
    }

    fn handle_outcome(&mut self, core: &mut Core, id: SlotId, outcome: io::Result<usize>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        match (outcome, &op.work) {
            (Err(e), _) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => self.submit(core, id),
            (Err(e), Work::Discard { .. }) => self.discard_failed(core, id, e),
            (Err(e), _) => self.finish(core, id, Err(e)),
            (Ok(count), Work::Read(_) | Work::Write(_)) => self.transferred(core, id, count),
            (Ok(_), Work::Flush | Work::Discard { .. }) => self.finish(core, id, Ok(())),
        }
    }

    fn transferred(&mut self, core: &mut Core, id: SlotId, count: usize) {
        let Some(op) = self.ops.get_mut(id) else { return };
        op.done += count;
        let len = op.work.len();
        assert!(op.done <= len, "{} of {len} bytes transferred", op.done);
        if op.done == len {
            self.finish(core, id, Ok(()));
        } else if count > 0 {
            self.submit(core, id);
        } else {
            let kind = match op.work {
                Work::Read(_) => io::ErrorKind::UnexpectedEof,
                _ => io::ErrorKind::WriteZero,
            };
            self.finish(core, id, Err(kind.into()));
        }
    }

    /// A device may know only one of the two ways; what knows none keeps its data, which is allowed.
    fn discard_failed(&mut self, core: &mut Core, id: SlotId, error: io::Error) {
        let Some(disk) = self.ops.get(id).and_then(|op| self.disks.get_mut(op.disk.0)) else { return };
        match error.raw_os_error() {
            Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS) if !disk.punch_only => {
                debug_assert!(disk.is_block_device);
                disk.punch_only = true;
                self.submit(core, id);
            }
            Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS) => self.finish(core, id, Ok(())),
            _ => self.finish(core, id, Err(error)),
        }
    }

    fn finish(&mut self, core: &mut Core, id: SlotId, result: io::Result<()>) {
        let Some(mut op) = self.ops.remove(id) else { return };
        let event = op.finish(result);
        let disk = op.disk;
        if self.spare.len() < SPARE_MAX {
            self.spare.push(op);
        }
        if let Some(d) = self.disks.get_mut(disk.0) {
            d.in_flight -= 1;
        }
        if self.is_open(disk) {
            core.events.push_back(event);
        }
        self.release(disk);
    }
}

fn fill_list(data: &[Buffer], mut skip: usize, list: &mut Vec<libc::iovec>) {
    list.clear();
    for buffer in data {
        let skipped = skip.min(buffer.len());
        skip -= skipped;
        if skipped < buffer.len() {
            list.push(iovec_of(&buffer[skipped..]));
        }
        if list.len() == PIECES_MAX {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_write_continues_inside_a_piece() {
        let data = [Buffer::zeroed(10), Buffer::new(), Buffer::zeroed(20), Buffer::zeroed(5)];
        let mut list = Vec::new();
        let mut lens = |skip| {
            fill_list(&data, skip, &mut list);
            list.iter().map(|v| v.iov_len).collect::<Vec<_>>()
        };
        assert_eq!(lens(0), [10, 20, 5]);
        assert_eq!(lens(10), [20, 5]);
        assert_eq!(lens(17), [13, 5]);
        assert_eq!(lens(34), [1]);
    }
}
