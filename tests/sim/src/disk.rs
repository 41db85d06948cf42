//! A disk that can lose, tear and rot.
//!
//! What a write that was not flushed leaves behind after a crash is decided per 512-byte sector: the old content, the
//! new one, in any mixture and whatever the order of the writes.

use std::collections::{BTreeMap, BTreeSet};

use crate::rng::Rng;

const PAGE: u64 = 4096;
/// Unit that a power cut leaves whole. Bytes.
const ATOMIC: usize = 512;

type Pages = BTreeMap<u64, Box<[u8; PAGE as usize]>>;

struct Written {
    offset: u64,
    data: Vec<u8>,
    token: u64,
    completed: bool,
}

/// A simulated device.
pub struct Disk {
    bytes: u64,
    write_through: bool,
    /// What a power cut leaves at least.
    durable: Pages,
    /// What reads see.
    view: Pages,
    /// Writes that are not durable yet, in the order of issue.
    volatile: Vec<Written>,
    /// Pages that cannot be read until they are written.
    bad: BTreeSet<u64>,
}

/// What is written can be read.
fn mend(bad: &mut BTreeSet<u64>, written: &Written) {
    let (first, end) = (written.offset / PAGE, (written.offset + written.data.len() as u64).div_ceil(PAGE));
    bad.retain(|page| !(first..end).contains(page));
}

fn store(pages: &mut Pages, offset: u64, data: &[u8]) {
    let mut at = offset;
    let mut rest = data;
    while !rest.is_empty() {
        let inside = (at % PAGE) as usize;
        let n = rest.len().min(PAGE as usize - inside);
        let page = pages.entry(at / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]));
        page[inside..inside + n].copy_from_slice(&rest[..n]);
        at += n as u64;
        rest = &rest[n..];
    }
}

impl Disk {
    /// An empty disk. With `write_through` a completed write is durable.
    pub fn new(bytes: u64, write_through: bool) -> Self {
        Self {
            bytes,
            write_through,
            durable: Pages::new(),
            view: Pages::new(),
            volatile: Vec::new(),
            bad: BTreeSet::new(),
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a completed write is durable.
    pub fn is_write_through(&self) -> bool {
        self.write_through
    }

    /// Writes durably, for preparing the disk.
    pub fn prepare(&mut self, offset: u64, data: &[u8]) {
        store(&mut self.durable, offset, data);
        store(&mut self.view, offset, data);
    }

    /// The page at this offset cannot be read any more, until it is written.
    pub fn break_page(&mut self, offset: u64) {
        self.bad.insert(offset / PAGE);
    }

    /// Whether all of this can be read.
    pub fn is_readable(&self, offset: u64, len: usize) -> bool {
        self.bad.range(offset / PAGE..(offset + len as u64).div_ceil(PAGE)).next().is_none()
    }

    /// Reads what has been written.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        out.fill(0);
        for (i, byte) in out.chunks_mut(PAGE as usize).enumerate() {
            if let Some(page) = self.view.get(&(offset / PAGE + i as u64)) {
                byte.copy_from_slice(&page[..byte.len()]);
            }
        }
    }

    /// A write begins.
    pub fn write_begin(&mut self, token: u64, offset: u64, data: Vec<u8>) {
        assert!(offset + data.len() as u64 <= self.bytes, "write beyond the end of the disk");
        self.volatile.push(Written { offset, data, token, completed: false });
    }

    /// A write completes.
    pub fn write_end(&mut self, token: u64) {
        let Some(at) = self.volatile.iter().position(|w| w.token == token && !w.completed) else { return };
        let written = &mut self.volatile[at];
        written.completed = true;
        store(&mut self.view, written.offset, &written.data);
        mend(&mut self.bad, written);
        if self.write_through {
            let written = self.volatile.remove(at);
            store(&mut self.durable, written.offset, &written.data);
        }
    }

    /// A write fails, after parts of it have been written.
    pub fn write_in_part(&mut self, rng: &mut Rng, token: u64, offset: u64, data: &[u8]) {
        for (i, piece) in data.chunks(ATOMIC).enumerate() {
            if rng.one_in(2) {
                self.write_begin(token, offset + (i * ATOMIC) as u64, piece.to_vec());
                self.write_end(token);
            }
        }
    }

    /// A flush begins: returns which writes it covers.
    pub fn flush_begin(&self) -> Vec<u64> {
        self.volatile.iter().filter(|w| w.completed).map(|w| w.token).collect()
    }

    /// A flush completes.
    pub fn flush_end(&mut self, covered: &[u64]) {
        let (done, rest) = std::mem::take(&mut self.volatile).into_iter().partition(|w| covered.contains(&w.token));
        self.volatile = rest;
        let done: Vec<Written> = done;
        for written in done {
            store(&mut self.durable, written.offset, &written.data);
        }
    }

    /// The power goes.
    pub fn crash(&mut self, rng: &mut Rng) {
        for written in std::mem::take(&mut self.volatile) {
            mend(&mut self.bad, &written);
            let fate = rng.below(4);
            for (i, piece) in written.data.chunks(ATOMIC).enumerate() {
                let kept = match fate {
                    0 => false,
                    1 => true,
                    _ => rng.one_in(2),
                };
                if kept {
                    store(&mut self.durable, written.offset + (i * ATOMIC) as u64, piece);
                }
            }
        }
        self.view = self.durable.clone();
    }

    /// The process is killed, but not the machine: what it wrote stays, also what was under way.
    pub fn kill(&mut self, rng: &mut Rng) {
        for written in &mut self.volatile {
            if !written.completed && rng.one_in(2) {
                written.completed = true;
                mend(&mut self.bad, written);
                store(&mut self.view, written.offset, &written.data);
                if self.write_through {
                    store(&mut self.durable, written.offset, &written.data);
                }
            }
        }
        self.volatile.retain(|w| w.completed && !self.write_through);
    }

    /// Flips a bit of a random written page at or above `from`. Returns the page's offset.
    pub fn rot(&mut self, rng: &mut Rng, from: u64) -> Option<u64> {
        let pages: Vec<u64> = self.durable.range(from / PAGE..).map(|(page, _)| *page).collect();
        let page = *rng.pick(&pages)?;
        let (byte, bit) = (rng.below(PAGE), rng.below(8));
        self.flip(page * PAGE + byte, bit as u8);
        Some(page * PAGE)
    }

    /// Flips a bit of a byte, if it was written.
    pub fn flip(&mut self, at: u64, bit: u8) {
        for pages in [&mut self.durable, &mut self.view] {
            if let Some(content) = pages.get_mut(&(at / PAGE)) {
                content[(at % PAGE) as usize] ^= 1 << bit;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flushed_writes_surely_survive_a_crash() {
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let mut disk = Disk::new(1 << 20, false);
            disk.write_begin(1, 0, vec![1; 4096]);
            disk.write_end(1);
            let covered = disk.flush_begin();
            disk.write_begin(2, 4096, vec![2; 4096]);
            disk.write_end(2);
            disk.flush_end(&covered);
            disk.crash(&mut rng);
            let mut page = [0; 4096];
            disk.read(0, &mut page);
            assert_eq!(page, [1; 4096]);
            disk.read(4096, &mut page);
            assert!(page.chunks(ATOMIC).all(|c| c.iter().all(|b| *b == c[0]) && (c[0] == 0 || c[0] == 2)));
        }
    }
}
