//! Operations: how their completions are named, and how each is described to the kernel.
//!
//! Every function here turns owned, stable state (a connection's or disk operation's slot) into a submission entry;
//! the slots keep that state until the completion, which is what makes the raw pointers sound.
#![allow(unsafe_code)]

use std::os::fd::RawFd;

use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types};
use socket2::SockAddr;

use crate::ring::Ring;
use crate::slots::{GENERATION_MASK, SlotId};

/// What completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Cancel,
    Wake,
    Accept,
    Connect,
    Receive,
    /// A send that may wait for the peer; always completes.
    Send,
    /// A send that never waits; completes only if it did not take everything. See [`send_now`].
    SendNow,
    Disk,
}

const KINDS: [Kind; 8] =
    [Kind::Cancel, Kind::Wake, Kind::Accept, Kind::Connect, Kind::Receive, Kind::Send, Kind::SendNow, Kind::Disk];

/// The kernel's `user_data`: kind (4 bits), generation (28 bits), index (32 bits). A slot is reused only after the
/// final completions of its operations, and then under a new generation, so a key is unique among all that live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) slot: SlotId,
}

impl Key {
    /// A key for operations that belong to no slot.
    pub(crate) const fn plain(kind: Kind) -> Self {
        Self { kind, slot: SlotId { index: 0, generation: 0 } }
    }

    pub(crate) fn new(kind: Kind, slot: SlotId) -> Self {
        Self { kind, slot }
    }

    pub(crate) fn encode(self) -> u64 {
        debug_assert!(self.slot.generation <= GENERATION_MASK);
        (self.kind as u64) << 60 | u64::from(self.slot.generation) << 32 | u64::from(self.slot.index)
    }

    pub(crate) fn decode(raw: u64) -> Self {
        let generation = (raw >> 32) as u32 & GENERATION_MASK;
        Self { kind: KINDS[(raw >> 60) as usize % KINDS.len()], slot: SlotId { index: raw as u32, generation } }
    }
}

/// Bytes per disk transfer at most; longer ones continue where the first ended.
const TRANSFER_MAX: usize = 1 << 30;

/// Memory that the kernel reads or writes: a raw view of a part of a buffer that an operation's slot owns.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) start: *mut u8,
    pub(crate) len: usize,
}

impl Span {
    fn len_u32(self) -> u32 {
        self.len.min(TRANSFER_MAX) as u32
    }
}

/// A vectored send's header and its list, kept with the connection.
pub(crate) struct Header {
    message: Box<libc::msghdr>,
}

impl Default for Header {
    fn default() -> Self {
        // SAFETY: all-zero is the empty message header (null pointers, zero lengths) on every libc.
        Self { message: Box::new(unsafe { std::mem::zeroed() }) }
    }
}

/// An iovec over `bytes`. The kernel only reads through it when it is used for sending or writing.
pub(crate) fn iovec_of(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

/// # Safety
/// What the entry points to outlives the operation (see the module's text).
unsafe fn push(ring: &mut Ring, kind: Kind, slot: SlotId, entry: Entry) {
    // SAFETY: forwarded to the caller.
    unsafe { ring.push(Key::new(kind, slot), entry) }
}

pub(crate) fn accept(ring: &mut Ring, slot: SlotId, fd: RawFd) {
    let entry = opcode::AcceptMulti::new(types::Fd(fd)).flags(libc::SOCK_CLOEXEC).build();
    // SAFETY: a multishot accept carries no pointers.
    unsafe { push(ring, Kind::Accept, slot, entry) }
}

/// # Safety
/// `address` stays where it is until the completion.
pub(crate) unsafe fn connect(ring: &mut Ring, slot: SlotId, fd: RawFd, address: &SockAddr) {
    let entry = opcode::Connect::new(types::Fd(fd), address.as_ptr().cast(), address.len()).build();
    // SAFETY: the caller keeps the address in place.
    unsafe { push(ring, Kind::Connect, slot, entry) }
}

pub(crate) fn receive(ring: &mut Ring, slot: SlotId, fd: RawFd, group: u16) {
    let entry = opcode::RecvMulti::new(types::Fd(fd), group).build();
    // SAFETY: no pointers; the kernel writes into the registered buffers of `group` only.
    unsafe { push(ring, Kind::Receive, slot, entry) }
}

/// Sends what `list` describes.
///
/// With `now`, the kernel takes what it can while the operation is submitted, and posts a completion only if that was
/// not everything (a short count or `EAGAIN`): `MSG_WAITALL` makes a short send a failure, `MSG_DONTWAIT` keeps it
/// from waiting, and successes are skipped. So the common small send neither needs a completion nor wakes the turn that
/// submitted it, which would cost every reply a second system call. Without `now`, it waits for the peer and always completes.
///
/// # Safety
/// `header`, `list` and the memory that `list` describes stay in place and unchanged until the completion; with `now`,
/// until [`Ring::is_settled`] after the next enter.
pub(crate) unsafe fn send(
    ring: &mut Ring,
    slot: SlotId,
    fd: RawFd,
    header: &mut Header,
    list: &mut [libc::iovec],
    now: bool,
) {
    let wait = if now { libc::MSG_DONTWAIT } else { 0 };
    let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL | wait;
    let entry = match list {
        [one] => {
            let span = Span { start: one.iov_base.cast(), len: one.iov_len };
            opcode::Send::new(types::Fd(fd), span.start, span.len_u32()).flags(flags).build()
        }
        _ => {
            header.message.msg_iov = list.as_mut_ptr();
            header.message.msg_iovlen = list.len() as _;
            opcode::SendMsg::new(types::Fd(fd), &raw const *header.message).flags(flags as u32).build()
        }
    };
    let (kind, entry) = if now { (Kind::SendNow, entry.flags(Flags::SKIP_SUCCESS)) } else { (Kind::Send, entry) };
    // SAFETY: the caller keeps header, list and memory.
    unsafe { push(ring, kind, slot, entry) }
}

/// # Safety
/// `count` stays in place and is not accessed until the completion.
pub(crate) unsafe fn read_eventfd(ring: &mut Ring, fd: RawFd, count: *mut u64) {
    let entry = opcode::Read::new(types::Fd(fd), count.cast(), size_of::<u64>() as u32).build();
    // SAFETY: the caller keeps `count`.
    unsafe { ring.push(Key::plain(Kind::Wake), entry) }
}

/// # Safety
/// The memory of `span` is writable, stays in place and is not accessed until the completion.
pub(crate) unsafe fn disk_read(ring: &mut Ring, slot: SlotId, fd: RawFd, offset: u64, span: Span) {
    let entry = opcode::Read::new(types::Fd(fd), span.start, span.len_u32()).offset(offset).build();
    // SAFETY: the caller keeps the memory.
    unsafe { push(ring, Kind::Disk, slot, entry) }
}

/// # Safety
/// `list` and the memory that it describes stay in place and unchanged until the completion.
pub(crate) unsafe fn disk_write(ring: &mut Ring, slot: SlotId, fd: RawFd, offset: u64, list: &[libc::iovec]) {
    let fd = types::Fd(fd);
    let entry = match list {
        [one] => {
            let span = Span { start: one.iov_base.cast(), len: one.iov_len };
            opcode::Write::new(fd, span.start, span.len_u32()).offset(offset).build()
        }
        _ => opcode::Writev::new(fd, list.as_ptr(), list.len() as u32).offset(offset).build(),
    };
    // SAFETY: the caller keeps list and memory.
    unsafe { push(ring, Kind::Disk, slot, entry) }
}

pub(crate) fn disk_flush(ring: &mut Ring, slot: SlotId, fd: RawFd) {
    let entry = opcode::Fsync::new(types::Fd(fd)).flags(types::FsyncFlags::DATASYNC).build();
    // SAFETY: fsync carries no pointers.
    unsafe { push(ring, Kind::Disk, slot, entry) }
}

pub(crate) fn disk_punch(ring: &mut Ring, slot: SlotId, fd: RawFd, offset: u64, len: u64) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let entry = opcode::Fallocate::new(types::Fd(fd), len).offset(offset).mode(mode).build();
    // SAFETY: fallocate carries no pointers.
    unsafe { push(ring, Kind::Disk, slot, entry) }
}

/// `BLOCK_URING_CMD_DISCARD` of linux/blkdev.h (`_IO(0x12, 0)`), Linux 6.12 and later.
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;

pub(crate) fn device_discard(ring: &mut Ring, slot: SlotId, fd: RawFd, offset: u64, len: u64) {
    let mut command = [0u8; 16];
    command[..8].copy_from_slice(&len.to_ne_bytes());
    let entry = opcode::UringCmd16::new(types::Fd(fd), BLOCK_URING_CMD_DISCARD).cmd(command).addr(Some(offset)).build();
    // SAFETY: the two numbers are a byte range of the device, not memory.
    unsafe { push(ring, Kind::Disk, slot, entry) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_the_kernel() {
        for kind in KINDS {
            let key = Key::new(kind, SlotId { index: u32::MAX, generation: GENERATION_MASK });
            assert_eq!(Key::decode(key.encode()), key);
            let key = Key::new(kind, SlotId { index: 0, generation: 1 });
            assert_eq!(Key::decode(key.encode()), key);
        }
    }
}
