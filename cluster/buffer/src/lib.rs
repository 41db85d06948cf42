//! Page-aligned, pooled, reference-counted byte buffers.
//!
//! The payload of a write is received once into a [`BufferMut`], frozen into a [`Buffer`], and that same memory is
//! handed to the device (which wants 4 KiB alignment for `O_DIRECT`) and to every peer's socket. Cloning or slicing
//! a `Buffer` copies a pointer, never bytes. When the last handle is dropped the memory, together with its
//! reference count, goes back to a free list of the dropping thread, so the steady state allocates nothing.
//!
//! The crate has no unsafe code: alignment comes from [`Page`], a `#[repr(align(4096))]` array.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Alignment of every buffer's first byte, and the unit of its capacity. Bytes.
pub const PAGE: usize = 4096;

/// Free buffers of one size class that a thread keeps; more are returned to the allocator.
const FREE_PER_CLASS_MAX: usize = 256;
/// Bytes of one size class that a thread keeps free.
const FREE_BYTES_PER_CLASS_MAX: usize = 32 << 20;
/// Size classes are powers of two pages: 4 KiB, 8 KiB, ... 8 MiB. Larger buffers are not pooled.
const CLASSES: usize = 12;

/// One aligned page of memory.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

const ZERO_PAGE: Page = Page([0; PAGE]);

struct Memory {
    pages: Vec<Page>,
}

thread_local! {
    static POOL: RefCell<[Vec<Arc<Memory>>; CLASSES]> = const { RefCell::new([const { Vec::new() }; CLASSES]) };
}

fn class_of(pages: usize) -> usize {
    pages.max(1).next_power_of_two().trailing_zeros() as usize
}

fn acquire(len: usize) -> Arc<Memory> {
    let pages = len.div_ceil(PAGE).max(1);
    let class = class_of(pages);
    if class >= CLASSES {
        return Arc::new(Memory { pages: vec![ZERO_PAGE; pages] });
    }
    POOL.try_with(|pool| pool.borrow_mut()[class].pop())
        .ok()
        .flatten()
        .unwrap_or_else(|| Arc::new(Memory { pages: vec![ZERO_PAGE; 1 << class] }))
}

fn release(mut memory: Arc<Memory>) {
    // Only the last handle may recycle: a shared buffer is still being read somewhere.
    let Some(inner) = Arc::get_mut(&mut memory) else { return };
    let pages = inner.pages.len();
    let class = class_of(pages);
    if class >= CLASSES || pages != 1 << class {
        return;
    }
    let keep = FREE_PER_CLASS_MAX.min((FREE_BYTES_PER_CLASS_MAX / (pages * PAGE)).max(1));
    // A thread that is ending has no pool any more; then the memory is simply freed.
    let _ = POOL.try_with(|pool| {
        let free = &mut pool.borrow_mut()[class];
        if free.len() < keep {
            free.push(memory);
        }
    });
}

/// A writable buffer with one owner. Its first byte is 4 KiB-aligned and its capacity is whole pages.
pub struct BufferMut {
    memory: Option<Arc<Memory>>,
    len: usize,
}

impl BufferMut {
    /// A buffer of `len` bytes whose content is *unspecified* (old pool content): for callers that overwrite it all.
    pub fn for_overwrite(len: usize) -> Self {
        Self { memory: Some(acquire(len)), len }
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::for_overwrite(len);
        buffer.fill(0);
        buffer
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::for_overwrite(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Ends writing; the bytes can be shared from here on.
    pub fn freeze(mut self) -> Buffer {
        let len = self.len;
        Buffer { memory: self.memory.take(), start: 0, len }
    }
}

impl Deref for BufferMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.memory {
            Some(memory) => &memory.pages.as_slice().as_bytes()[..self.len],
            None => &[],
        }
    }
}

impl DerefMut for BufferMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        match self.memory.as_mut().and_then(Arc::get_mut) {
            Some(memory) => &mut memory.pages.as_mut_slice().as_mut_bytes()[..len],
            None => &mut [],
        }
    }
}

impl Drop for BufferMut {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            release(memory);
        }
    }
}

impl fmt::Debug for BufferMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferMut({} bytes)", self.len)
    }
}

/// Immutable bytes, shared by reference count. Slicing keeps the whole underlying buffer alive.
#[derive(Clone, Default)]
pub struct Buffer {
    // Taken only by Drop and `try_into_mut`.
    memory: Option<Arc<Memory>>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// The empty buffer.
    pub const fn new() -> Self {
        Self { memory: None, start: 0, len: 0 }
    }

    /// A copy of `bytes` in aligned memory.
    pub fn copy_of(bytes: &[u8]) -> Self {
        BufferMut::copy_of(bytes).freeze()
    }

    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        BufferMut::zeroed(len).freeze()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the first byte is 4 KiB-aligned, as `O_DIRECT` wants it.
    pub fn is_page_aligned(&self) -> bool {
        self.start.is_multiple_of(PAGE)
    }

    /// A view of part of the bytes; shares the memory.
    ///
    /// # Panics
    /// If the range does not lie inside the buffer.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Buffer {
        let start = match range.start_bound() {
            Bound::Included(&n) => n,
            Bound::Excluded(&n) => n + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&n) => n + 1,
            Bound::Excluded(&n) => n,
            Bound::Unbounded => self.len,
        };
        assert!(start <= end && end <= self.len, "slice {start}..{end} of a buffer of {} bytes", self.len);
        Buffer { memory: self.memory.clone(), start: self.start + start, len: end - start }
    }

    /// The buffer as writable memory without a copy, if this is its only handle and it was not sliced at the front;
    /// otherwise the buffer itself.
    pub fn try_into_mut(mut self) -> Result<BufferMut, Buffer> {
        let unique = self.start == 0 && self.memory.as_mut().is_some_and(|m| Arc::get_mut(m).is_some());
        if unique { Ok(BufferMut { memory: self.memory.take(), len: self.len }) } else { Err(self) }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.memory {
            Some(memory) => &memory.pages.as_slice().as_bytes()[self.start..self.start + self.len],
            None => &[],
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            release(memory);
        }
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_recycled() {
        let mut a = BufferMut::for_overwrite(5000);
        assert_eq!(a.as_ptr() as usize % PAGE, 0);
        a.fill(7);
        let first = a.as_ptr();
        drop(a);
        let b = BufferMut::for_overwrite(8192);
        assert_eq!(b.as_ptr(), first, "the same size class is reused");
    }

    #[test]
    fn a_shared_buffer_is_not_recycled_until_its_last_handle() {
        let a = Buffer::copy_of(&[1; 4096]);
        let tail = a.slice(4000..);
        let at = a.as_ptr();
        drop(a);
        let other = BufferMut::zeroed(4096);
        assert_ne!(other.as_ptr(), at);
        assert_eq!(&tail[..], &[1; 96]);
        drop(tail);
        assert_eq!(BufferMut::for_overwrite(1).as_ptr(), at);
    }

    #[test]
    fn only_a_sole_owner_becomes_writable_again() {
        let a = Buffer::copy_of(b"abc");
        let b = a.clone();
        let a = a.try_into_mut().expect_err("two handles");
        drop(b);
        let mut a = a.try_into_mut().expect("one handle");
        a[0] = b'x';
        assert_eq!(&a.freeze()[..], b"xbc");
    }

    #[test]
    fn huge_and_empty_buffers_work() {
        let big = Buffer::zeroed((PAGE << CLASSES) + 1);
        assert_eq!(big.len(), (PAGE << CLASSES) + 1);
        assert!(Buffer::new().is_empty());
        assert!(Buffer::copy_of(&[]).is_empty());
    }
}
