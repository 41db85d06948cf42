//! What a connection has yet to send: one batch with the kernel, one that collects meanwhile.
//!
//! Small pieces are copied into one byte buffer, large buffers are queued by reference. (An iovec per message was
//! measured to be clearly worse than copying small ones together.) Both batches keep their memory for reuse.

use std::mem;

use buffer::Buffer;

use crate::op::{Header, iovec_of};

/// Buffers up to this many bytes are copied into the byte buffer.
pub(crate) const COPY_MAX: usize = 8 << 10;
/// Bytes handed to the kernel in one operation; more follow in the next, so that progress becomes visible.
const SEND_MAX: usize = 1 << 20;
/// Pieces of one operation (the kernel's limit is 1024).
const PIECES_MAX: usize = 256;
/// Capacity of a byte buffer that is kept for reuse.
const KEEP_BYTES_MAX: usize = 1 << 20;

struct Large {
    /// Length of the byte buffer when this was queued: those bytes go first.
    after: usize,
    data: Buffer,
}

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    large: Vec<Large>,
    large_len: usize,
}

impl Batch {
    fn len(&self) -> usize {
        self.bytes.len() + self.large_len
    }

    fn clear(&mut self) {
        if self.bytes.capacity() > KEEP_BYTES_MAX {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.large.clear();
        self.large_len = 0;
    }

    /// The content in sending order.
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let ends = self.large.iter().map(|l| l.after).chain([self.bytes.len()]);
        let starts = [0].into_iter().chain(self.large.iter().map(|l| l.after));
        let data = self.large.iter().map(|l| &l.data[..]).chain([&[][..]]);
        starts.zip(ends).zip(data).flat_map(|((start, end), data)| [&self.bytes[start..end], data])
    }

    fn fill_list(&self, mut skip: usize, list: &mut Vec<libc::iovec>) {
        let mut room = SEND_MAX;
        list.clear();
        for piece in self.pieces() {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            let piece = &piece[skipped..];
            let piece = &piece[..piece.len().min(room)];
            if !piece.is_empty() {
                list.push(iovec_of(piece));
                room -= piece.len();
            }
            if room == 0 || list.len() == PIECES_MAX {
                break;
            }
        }
    }
}

/// The outgoing side of a connection.
#[derive(Default)]
pub(crate) struct Outgoing {
    pending: Batch,
    /// Not touched while a send operation is in flight, except by [`Outgoing::advance`] at its completion.
    flying: Batch,
    sent: usize,
    pub(crate) list: Vec<libc::iovec>,
    pub(crate) header: Header,
}

impl Outgoing {
    /// Bytes queued and not yet taken by the kernel.
    pub(crate) fn len(&self) -> usize {
        self.pending.len() + self.flying.len() - self.sent
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.pending.bytes
    }

    pub(crate) fn push_buffer(&mut self, data: Buffer) {
        if data.len() <= COPY_MAX {
            self.pending.bytes.extend_from_slice(&data);
        } else {
            self.pending.large_len += data.len();
            self.pending.large.push(Large { after: self.pending.bytes.len(), data });
        }
    }

    /// Fills `list` with what to send next; its bytes. Not while a send is in flight.
    pub(crate) fn prepare(&mut self) -> usize {
        if self.flying.len() == self.sent {
            self.flying.clear();
            self.sent = 0;
            mem::swap(&mut self.pending, &mut self.flying);
        }
        self.flying.fill_list(self.sent, &mut self.list);
        debug_assert_eq!(self.list.is_empty(), self.len() == 0);
        self.list.iter().map(|v| v.iov_len).sum()
    }

    /// The kernel took `count` bytes.
    pub(crate) fn advance(&mut self, count: usize) {
        self.sent += count;
        assert!(self.sent <= self.flying.len(), "{} sent of {}", self.sent, self.flying.len());
        if self.sent == self.flying.len() {
            self.flying.clear();
            self.sent = 0;
        }
    }

    /// Forgets what has not been handed to the kernel.
    pub(crate) fn discard_pending(&mut self) {
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(out: &mut Outgoing, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while out.len() > 0 {
            let count = out.prepare().min(step);
            let content: Vec<u8> = out.flying.pieces().flatten().copied().collect();
            all.extend_from_slice(&content[out.sent..out.sent + count]);
            out.advance(count);
        }
        all
    }

    #[test]
    fn order_is_kept_whatever_the_size_and_the_progress() {
        for step in [61, 777, 8 << 10, usize::MAX] {
            let mut out = Outgoing::default();
            let mut expected = Vec::new();
            for (i, len) in [3, 0, COPY_MAX, COPY_MAX + 1, 20_000, 1, 9_000].into_iter().enumerate() {
                let data = vec![i as u8 + 1; len];
                out.push_buffer(Buffer::copy_of(&data));
                out.bytes_mut().extend_from_slice(&[200 + i as u8; 5]);
                expected.extend_from_slice(&data);
                expected.extend_from_slice(&[200 + i as u8; 5]);
            }
            assert_eq!(out.len(), expected.len());
            assert_eq!(drain(&mut out, step), expected);
        }
    }

    #[test]
    fn one_operation_is_bounded_in_bytes_and_pieces() {
        let mut out = Outgoing::default();
        (0..1000).for_each(|_| out.push_buffer(Buffer::zeroed(COPY_MAX + 1)));
        assert!(out.prepare() <= SEND_MAX);
        assert!(out.list.len() <= PIECES_MAX);
        out.discard_pending();
        assert_eq!(out.len(), 1000 * (COPY_MAX + 1), "what flies is kept until its completion");
    }

    #[test]
    fn what_comes_while_a_batch_flies_goes_out_together() {
        let mut out = Outgoing::default();
        out.bytes_mut().extend_from_slice(b"first");
        out.prepare();
        (0..100).for_each(|_| out.bytes_mut().extend_from_slice(b"more "));
        out.advance(5);
        out.prepare();
        assert_eq!((out.list.len(), out.list[0].iov_len), (1, 500));
    }
}
