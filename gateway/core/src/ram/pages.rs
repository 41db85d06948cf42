//! The content: a sparse map of 4 KiB pages. A page that is not in the map is a hole and reads as zeroes.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::volume::Extent;

const PAGE: u64 = buffer::PAGE as u64;

type Page = Box<[u8; buffer::PAGE]>;

#[derive(Debug, Default)]
pub(super) struct Pages {
    map: BTreeMap<u64, Page>,
}

fn zero_page() -> Page {
    Box::new([0; buffer::PAGE])
}

/// The parts of pages that `offset..offset + len` touches: page index, range in the page.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let page = at / PAGE;
        let stop = end.min((page + 1) * PAGE);
        let part = (at % PAGE) as usize..(stop - page * PAGE) as usize;
        at = stop;
        Some((page, part))
    })
}

impl Pages {
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        let mut rest = out;
        for (index, part) in parts(offset, rest.len() as u64) {
            let (piece, tail) = rest.split_at_mut(part.len());
            match self.map.get(&index) {
                Some(page) => piece.copy_from_slice(&page[part]),
                None => piece.fill(0),
            }
            rest = tail;
        }
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (index, part) in parts(offset, bytes.len() as u64) {
            let (piece, tail) = rest.split_at(part.len());
            self.map.entry(index).or_insert_with(zero_page)[part].copy_from_slice(piece);
            rest = tail;
        }
    }

    /// Drops the whole pages inside the range.
    pub(super) fn discard(&mut self, offset: u64, len: u64) {
        let first = offset.div_ceil(PAGE);
        let end = (offset + len) / PAGE;
        if first < end {
            self.remove(first..end);
        }
    }

    pub(super) fn zero(&mut self, offset: u64, len: u64, may_unmap: bool) {
        if may_unmap {
            self.discard(offset, len);
        }
        for (index, part) in edges(offset, len, !may_unmap) {
            match self.map.get_mut(&index) {
                Some(page) => page[part].fill(0),
                None if may_unmap => {}
                None => drop(self.map.insert(index, zero_page())),
            }
        }
    }

    pub(super) fn truncate(&mut self, size: u64) {
        self.remove(size.div_ceil(PAGE)..u64::MAX);
        if let Some(page) = self.map.get_mut(&(size / PAGE)) {
            page[(size % PAGE) as usize..].fill(0);
        }
    }

    pub(super) fn extents(&self, offset: u64, len: u64) -> Vec<Extent> {
        let end = offset + len;
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        while at < end {
            let (data, stop) = self.run(at / PAGE);
            let stop = end.min(stop.saturating_mul(PAGE));
            extents.push(Extent { len: stop - at, data });
            at = stop;
        }
        extents
    }

    /// Whether page `index` is there, and the first page where that is different.
    fn run(&self, index: u64) -> (bool, u64) {
        let mut present = self.map.range(index..).map(|(&i, _)| i);
        match present.next() {
            Some(first) if first == index => {
                let end = present.zip(index + 1..).take_while(|(found, want)| found == want).count();
                (true, index + 1 + end as u64)
            }
            Some(first) => (false, first),
            None => (false, u64::MAX),
        }
    }

    fn remove(&mut self, range: Range<u64>) {
        let mut tail = self.map.split_off(&range.start);
        let mut keep = tail.split_off(&range.end);
        self.map.append(&mut keep);
    }
}

/// The page parts that zeroing must write: all of them, or only the partial ones at the ends.
fn edges(offset: u64, len: u64, all: bool) -> impl Iterator<Item = (u64, Range<usize>)> {
    let inner = if all { 0..0 } else { offset.div_ceil(PAGE)..(offset + len) / PAGE };
    let (head, tail) = if inner.is_empty() {
        ((offset, len), (0, 0))
    } else {
        let (start, end) = (inner.start * PAGE, inner.end * PAGE);
        ((offset, start - offset), (end, offset + len - end))
    };
    parts(head.0, head.1).chain(parts(tail.0, tail.1))
}
