//! The writing end of the log: entries are collected in the open block; a block is sealed when it is full or when the
//! device is ready for it, so that ops submitted together share blocks.

use std::collections::VecDeque;

use buffer::{Buffer, BufferMut};

use crate::device::Pieces;
use crate::format::log::{BlockHead, Change, ENTRY_BYTES_MAX, Lsn, PAYLOAD_MAX};
use crate::geometry::{BLOCK, Geometry};

const HEAD: usize = BLOCK as usize - PAYLOAD_MAX;
/// Blocks of one device write.
const BLOCKS_PER_WRITE: usize = 64;
/// Blocks sealed but not written, beyond the entry that is being appended.
const WINDOW_BLOCKS_MAX: u64 = 128;

struct OpenBlock {
    buffer: BufferMut,
    len: usize,
    first_entry: Option<u16>,
    first_lsn: Lsn,
}

struct UnwrittenBlock {
    written: bool,
    durable_lsn: Lsn,
}

/// Where an entry went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its number.
    pub lsn: Lsn,
    /// Block in which it starts.
    pub first: u64,
    /// Block in which it ends.
    pub last: u64,
}

/// Blocks to be written with one device write.
#[derive(Clone, Debug)]
pub struct BlockWrite {
    /// Number of the first.
    pub seq: u64,
    /// The blocks.
    pub data: Pieces,
}

/// The tail of the ring.
pub struct LogTail {
    store: [u8; 16],
    generation: u32,
    blocks: u64,
    /// Oldest block that a checkpoint on the device still needs.
    start_seq: u64,
    /// Number of the open block.
    next_seq: u64,
    next_lsn: Lsn,
    open: Option<OpenBlock>,
    sealed: VecDeque<(u64, Buffer)>,
    /// Blocks from `written_seq` up to `next_seq`.
    unwritten: VecDeque<UnwrittenBlock>,
    written_seq: u64,
    written_durable: Lsn,
    in_flight: u32,
    scratch: Vec<u8>,
}

/// Blocks the largest entry of a ring may take.
fn entry_blocks_max(blocks: u64) -> u64 {
    (blocks / 8).clamp(4, (ENTRY_BYTES_MAX / PAYLOAD_MAX) as u64 + 2)
}

fn window_blocks(blocks: u64) -> u64 {
    (blocks / 4).min(WINDOW_BLOCKS_MAX)
}

/// Blocks behind the end of the log that may hold blocks written ahead of a missing one.
pub fn lookahead_blocks(blocks: u64) -> u64 {
    (window_blocks(blocks) + entry_blocks_max(blocks) + 2).min(blocks - 1)
}

impl LogTail {
    /// A tail that goes on at block `next_seq` with entry `next_lsn`.
    pub fn new(
        g: &Geometry,
        store: [u8; 16],
        generation: u32,
        start_seq: u64,
        next_seq: u64,
        next_lsn: Lsn,
    ) -> LogTail {
        LogTail {
            store,
            generation,
            blocks: g.log_blocks,
            start_seq,
            next_seq,
            next_lsn,
            open: None,
            sealed: VecDeque::new(),
            unwritten: VecDeque::new(),
            written_seq: next_seq,
            written_durable: Lsn(0),
            in_flight: 0,
            scratch: Vec::new(),
        }
    }

    /// Generation of the blocks written.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Number the next entry gets.
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// Block in which the next entry will start.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Blocks in use.
    pub fn used(&self) -> u64 {
        self.next_seq - self.start_seq + u64::from(self.open.is_some())
    }

    /// Blocks of the ring.
    pub fn capacity(&self) -> u64 {
        self.blocks
    }

    /// Blocks that may still be written before a checkpoint frees more.
    pub fn free(&self) -> u64 {
        self.blocks - self.used()
    }

    /// Blocks that only entries may use which free something or resolve a failure.
    pub fn reserve(&self) -> u64 {
        (self.blocks / 8).clamp(8, 256)
    }

    /// Bytes of the largest entry that this ring takes.
    pub fn entry_bytes_max(&self) -> usize {
        ((entry_blocks_max(self.blocks) - 2) as usize * PAYLOAD_MAX).min(ENTRY_BYTES_MAX)
    }

    /// Whether so many blocks wait for the device that no more entries should be added.
    pub fn is_window_full(&self) -> bool {
        self.next_seq - self.written_seq >= window_blocks(self.blocks)
    }

    /// Whether entries wait in the open block.
    pub fn has_open_entries(&self) -> bool {
        self.open.is_some()
    }

    /// Whether a block is sealed or being written.
    pub fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// All blocks below this are written.
    pub fn written_seq(&self) -> u64 {
        self.written_seq
    }

    /// The durable LSN that the newest of the written blocks records.
    pub fn written_durable(&self) -> Lsn {
        self.written_durable
    }

    /// Frees the blocks below `seq`.
    pub fn trim(&mut self, seq: u64) {
        debug_assert!(seq >= self.start_seq && seq <= self.next_seq);
        self.start_seq = seq;
    }

    /// Appends an entry. `durable` goes into blocks that become full.
    pub fn append(&mut self, change: &Change, durable: Lsn) -> Place {
        let lsn = self.next_lsn;
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        change.encode(lsn, &mut scratch);
        let first = self.next_seq;
        let mut last = first;
        let mut rest = scratch.as_slice();
        let mut is_start = true;
        while !rest.is_empty() {
            last = self.next_seq;
            rest = self.fill_block(rest, is_start, durable);
            is_start = false;
        }
        self.scratch = scratch;
        Place { lsn, first, last }
    }

    fn fill_block<'a>(&mut self, bytes: &'a [u8], is_start: bool, durable: Lsn) -> &'a [u8] {
        let next_lsn = self.next_lsn;
        let open = self.open.get_or_insert_with(|| OpenBlock {
            buffer: BufferMut::for_overwrite(BLOCK as usize),
            len: 0,
            first_entry: None,
            first_lsn: next_lsn,
        });
        if is_start {
            if open.first_entry.is_none() {
                (open.first_entry, open.first_lsn) = (Some(open.len as u16), next_lsn);
            }
            self.next_lsn = next_lsn.next();
        }
        let count = bytes.len().min(PAYLOAD_MAX - open.len);
        let at = HEAD + open.len;
        open.buffer[at..at + count].copy_from_slice(&bytes[..count]);
        open.len += count;
        if open.len == PAYLOAD_MAX {
            self.seal(durable);
        }
        &bytes[count..]
    }

    /// Ends the open block, if there is one.
    pub fn seal(&mut self, durable: Lsn) {
        if let Some(open) = self.open.take() {
            self.seal_block(open, durable, false);
        }
    }

    /// Adds a block with nothing but the durable LSN.
    pub fn mark(&mut self, durable: Lsn, is_generation_start: bool) {
        debug_assert!(self.open.is_none() && self.free() > 0);
        let buffer = BufferMut::for_overwrite(BLOCK as usize);
        let open = OpenBlock { buffer, len: 0, first_entry: None, first_lsn: self.next_lsn };
        self.seal_block(open, durable, is_generation_start);
    }

    fn seal_block(&mut self, mut open: OpenBlock, durable_lsn: Lsn, is_generation_start: bool) {
        open.buffer[HEAD + open.len..].fill(0);
        let first_lsn = if open.first_entry.is_some() { open.first_lsn } else { self.next_lsn };
        let head = BlockHead {
            seq: self.next_seq,
            generation: self.generation,
            payload_len: open.len as u16,
            first_entry: open.first_entry,
            first_lsn,
            durable_lsn,
            is_generation_start,
        };
        head.seal(&self.store, &mut open.buffer);
        self.sealed.push_back((self.next_seq, open.buffer.freeze()));
        self.unwritten.push_back(UnwrittenBlock { written: false, durable_lsn });
        self.next_seq += 1;
        debug_assert!(self.next_seq - self.start_seq <= self.blocks, "the ring overtakes itself");
    }

    /// Whether the open block should go out now: at once if the device is idle, else when it is worth a write.
    pub fn is_seal_due(&self) -> bool {
        let Some(open) = &self.open else { return false };
        match self.in_flight {
            0 => true,
            1 => open.len >= PAYLOAD_MAX / 2,
            _ => false,
        }
    }

    /// Sealed blocks that go out with one write.
    pub fn next_write(&mut self) -> Option<BlockWrite> {
        let (seq, first) = self.sealed.pop_front()?;
        let mut data = Pieces::new();
        data.push(first);
        while data.len() < BLOCKS_PER_WRITE && !(seq + data.len() as u64).is_multiple_of(self.blocks) {
            let Some((_, block)) = self.sealed.pop_front() else { break };
            data.push(block);
        }
        self.in_flight += 1;
        Some(BlockWrite { seq, data })
    }

    /// Blocks are written.
    pub fn handle_written(&mut self, seq: u64, count: u64) {
        self.in_flight -= 1;
        for at in seq - self.written_seq..seq - self.written_seq + count {
            self.unwritten[at as usize].written = true;
        }
        while self.unwritten.front().is_some_and(|b| b.written) {
            if let Some(block) = self.unwritten.pop_front() {
                self.written_durable = block.durable_lsn;
                self.written_seq += 1;
            }
        }
    }
}
