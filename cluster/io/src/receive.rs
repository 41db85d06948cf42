//! The provided-buffer ring: memory into which the kernel receives, lent to the driver one buffer per event.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use crate::ring::Ring;
use crate::{Error, ErrorKind};

const GROUP: u16 = 0;
const PAGE: usize = 4096;

/// Receive buffers shared by all connections of a reactor, and the ring through which they go to the kernel.
pub(crate) struct Pool {
    /// `count` ring entries, then (page-aligned) `count` buffers of `buffer_bytes`.
    memory: NonNull<u8>,
    layout: Layout,
    buffers_at: usize,
    buffer_bytes: usize,
    count: u16,
    tail: Cell<u16>,
    /// Buffers that the driver (or the event queue) holds now.
    lent: Cell<u16>,
}

impl Pool {
    /// A pool of `count` (a power of two up to 32768) buffers, handed to the kernel.
    pub(crate) fn register(ring: &Ring, count: u16, buffer_bytes: u32) -> Result<Rc<Self>, Error> {
        assert!(count.is_power_of_two() && buffer_bytes > 0, "receive buffers: {count} x {buffer_bytes} bytes");
        let buffers_at = (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(PAGE);
        let bytes = buffers_at + usize::from(count) * buffer_bytes as usize;
        let layout = Layout::from_size_align(bytes, PAGE).expect("receive memory fits the address space");
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        let pool = Rc::new(Self {
            memory,
            layout,
            buffers_at,
            buffer_bytes: buffer_bytes as usize,
            count,
            tail: Cell::new(0),
            lent: Cell::new(0),
        });
        // SAFETY: `memory` is page-aligned, holds `count` entries, and outlives the registration: the reactor
        // unregisters it before it gives up its handle.
        unsafe { ring.uring().submitter().register_buf_ring_with_flags(pool.memory.as_ptr() as u64, count, GROUP, 0) }
            .map_err(|e| {
                Error::new(ErrorKind::Unavailable, "cannot register receive buffers with io_uring", Some(e))
            })?;
        (0..count).for_each(|id| pool.give(id));
        Ok(pool)
    }

    /// Takes the buffers back from the kernel. All receives have ended.
    pub(crate) fn unregister(&self, ring: &Ring) {
        let ended = ring.uring().submitter().unregister_buf_ring(GROUP);
        debug_assert!(ended.is_ok(), "{ended:?}");
    }

    pub(crate) fn group(&self) -> u16 {
        GROUP
    }

    /// Buffers that are with the kernel, as far as is known here.
    pub(crate) fn free(&self) -> usize {
        usize::from(self.count - self.lent.get())
    }

    /// The kernel filled `len` bytes of buffer `id`.
    pub(crate) fn take(self: &Rc<Self>, id: u16, len: usize) -> Received {
        assert!(id < self.count && len <= self.buffer_bytes, "buffer {id} with {len} bytes");
        self.lent.set(self.lent.get() + 1);
        Received { pool: Rc::clone(self), id, len: len as u32 }
    }

    fn buffer(&self, id: u16) -> NonNull<u8> {
        debug_assert!(id < self.count);
        // SAFETY: `id < count`, so the offset lies inside the allocation.
        unsafe { self.memory.add(self.buffers_at + usize::from(id) * self.buffer_bytes) }
    }

    /// Gives buffer `id` to the kernel.
    fn give(&self, id: u16) {
        let tail = self.tail.get();
        let entries = self.memory.cast::<BufRingEntry>();
        let slot = usize::from(tail & (self.count - 1));
        // SAFETY: `slot < count` entries; the kernel does not read this one before the tail below passes it.
        // Entry 0 shares its last two bytes with the tail, which the setters leave alone.
        let entry = unsafe { entries.add(slot).as_mut() };
        entry.set_addr(self.buffer(id).as_ptr() as u64);
        entry.set_len(self.buffer_bytes as u32);
        entry.set_bid(id);
        self.tail.set(tail.wrapping_add(1));
        // SAFETY: the tail lies inside entry 0, aligned; only this thread writes it and the kernel reads it, so it
        // is accessed atomically.
        let shared = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(entries.as_ptr()).cast_mut()) };
        shared.store(self.tail.get(), Ordering::Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; unregistered, and no `Received` is left because each holds an `Rc`.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

/// Bytes that arrived on a connection, in one of the reactor's receive buffers.
///
/// Dropping it gives the buffer back to the kernel. While a driver holds all buffers, no connection receives.
pub struct Received {
    pool: Rc<Pool>,
    id: u16,
    len: u32,
}

impl Deref for Received {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the kernel initialised `len` bytes (and the memory was zeroed before), and does not touch the
        // buffer again until `drop` gives it back.
        unsafe { std::slice::from_raw_parts(self.pool.buffer(self.id).as_ptr(), self.len as usize) }
    }
}

impl AsRef<[u8]> for Received {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.pool.lent.set(self.pool.lent.get() - 1);
        self.pool.give(self.id);
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Received({} bytes)", self.len)
    }
}
