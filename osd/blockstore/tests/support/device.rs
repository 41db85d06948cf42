//! A simulated device: what is on the medium, and writes that a power cut may lose, tear or reorder.

use std::collections::HashMap;
use std::rc::Rc;

use blockstore::{DeviceError, DeviceOp, DeviceResult, Durability, FormatWrite};
use buffer::BufferMut;

pub const SECTOR: usize = 4096;
/// Smallest unit that the medium writes atomically. Bytes.
pub const ATOM: usize = 512;

/// Sparse bytes; absent blocks read as garbage, as an old device would.
#[derive(Clone, Default)]
pub struct Medium {
    /// Shared between copies of a device: crash tests make thousands.
    pub blocks: HashMap<u64, Rc<[u8; SECTOR]>>,
    pub fill: u8,
}

impl Medium {
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        for (i, chunk) in out.chunks_mut(SECTOR).enumerate() {
            match self.blocks.get(&(offset / SECTOR as u64 + i as u64)) {
                Some(block) => chunk.copy_from_slice(&block[..chunk.len()]),
                None => chunk.fill(self.fill),
            }
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (i, chunk) in data.chunks(ATOM).enumerate() {
            self.write_atom(offset + (i * ATOM) as u64, chunk);
        }
    }

    pub fn write_atom(&mut self, at: u64, data: &[u8]) {
        let fill = self.fill;
        let block = self.blocks.entry(at / SECTOR as u64).or_insert_with(|| Rc::new([fill; SECTOR]));
        let from = at as usize % SECTOR;
        Rc::make_mut(block)[from..from + data.len()].copy_from_slice(data);
    }

    pub fn flip(&mut self, at: u64) {
        let fill = self.fill;
        let block = self.blocks.entry(at / SECTOR as u64).or_insert_with(|| Rc::new([fill; SECTOR]));
        Rc::make_mut(block)[at as usize % SECTOR] ^= 0x10;
    }
}

/// A write that is not yet safe.
#[derive(Clone)]
pub struct Unsafe {
    pub id: u64,
    pub offset: u64,
    pub data: Vec<u8>,
    pub completed: bool,
}

impl Unsafe {
    pub fn atoms(&self) -> usize {
        self.data.len() / ATOM
    }
}

/// What became of one unsafe write in a power cut.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    Lost,
    Kept,
    /// Only these atoms.
    Torn(Vec<bool>),
}

/// The device: a medium, and a cache in front of it.
#[derive(Clone)]
pub struct Device {
    pub medium: Medium,
    pub cache: Vec<Unsafe>,
    pub durability: Durability,
    pub bytes: u64,
    next: u64,
    /// Device writes and flushes issued so far: the clock of crash points.
    pub steps: u64,
    pub bad_ranges: Vec<std::ops::Range<u64>>,
    pub discarded: Vec<std::ops::Range<u64>>,
    /// Writes by id, of the last power cut: for reports.
    pub writes: u64,
}

impl Device {
    pub fn new(bytes: u64, durability: Durability) -> Device {
        let medium = Medium { fill: 0xa5, ..Medium::default() };
        Device {
            medium,
            cache: Vec::new(),
            durability,
            bytes,
            next: 0,
            steps: 0,
            bad_ranges: Vec::new(),
            discarded: Vec::new(),
            writes: 0,
        }
    }

    pub fn format(&mut self, writes: &[FormatWrite]) {
        writes.iter().for_each(|w| self.medium.write(w.offset, &w.data));
    }

    /// Takes a write in; it is visible to reads at once and unsafe until flushed (or completed, if write-through).
    pub fn submit(&mut self, op: &DeviceOp) -> u64 {
        self.next += 1;
        if let DeviceOp::Write { offset, data } = op {
            self.steps += 1;
            self.writes += 1;
            assert_eq!(offset % SECTOR as u64, 0);
            assert!(data.iter().all(|d| d.is_page_aligned() && d.len() % SECTOR == 0 && !d.is_empty()));
            let data: Vec<u8> = data.iter().flat_map(|d| d.iter().copied()).collect();
            assert!(offset + data.len() as u64 <= self.bytes, "a write beyond the device");
            self.cache.push(Unsafe { id: self.next, offset: *offset, data, completed: false });
        }
        if *op == DeviceOp::Flush {
            self.steps += 1;
        }
        self.next
    }

    fn is_bad(&self, offset: u64, len: u64) -> bool {
        self.bad_ranges.iter().any(|r| r.start < offset + len && offset < r.end)
    }

    /// Completes what `submit` took in. `flushed`: the writes that had completed when the flush was issued.
    pub fn complete(&mut self, id: u64, op: &DeviceOp, flushed: &[u64]) -> DeviceResult {
        match op {
            DeviceOp::Read { offset, len } => {
                assert!(offset + *len as u64 <= self.bytes, "a read beyond the device");
                if self.is_bad(*offset, *len as u64) {
                    return DeviceResult::Read(Err(DeviceError(5)));
                }
                let mut out = BufferMut::for_overwrite(*len);
                self.read(*offset, &mut out);
                DeviceResult::Read(Ok(out))
            }
            DeviceOp::Write { offset, data } => {
                let len: usize = data.iter().map(|d| d.len()).sum();
                if self.is_bad(*offset, len as u64) {
                    self.cache.retain(|w| w.id != id);
                    return DeviceResult::Done(Err(DeviceError(5)));
                }
                self.write_completed(id);
                DeviceResult::Done(Ok(()))
            }
            DeviceOp::Flush => {
                self.settle(|w| flushed.contains(&w.id));
                DeviceResult::Done(Ok(()))
            }
            DeviceOp::Discard { offset, len } => {
                // The worst a drive may do.
                let garbage = vec![0xdd; *len as usize];
                self.medium.write(*offset, &garbage);
                self.discarded.push(*offset..*offset + *len);
                self.cache.iter().for_each(|w| {
                    let end = w.offset + w.data.len() as u64;
                    assert!(!(w.offset < offset + len && *offset < end), "discard of bytes being written");
                });
                DeviceResult::Done(Ok(()))
            }
        }
    }

    fn write_completed(&mut self, id: u64) {
        if let Some(write) = self.cache.iter_mut().find(|w| w.id == id) {
            write.completed = true;
        }
        if self.durability == Durability::WriteThrough {
            self.settle(|w| w.id == id);
        }
    }

    /// Ids of writes that a flush issued now would cover.
    pub fn completed(&self) -> Vec<u64> {
        self.cache.iter().filter(|w| w.completed).map(|w| w.id).collect()
    }

    fn settle(&mut self, is_safe: impl Fn(&Unsafe) -> bool) {
        let cache = std::mem::take(&mut self.cache);
        for write in cache {
            if is_safe(&write) {
                self.medium.write(write.offset, &write.data);
            } else {
                self.cache.push(write);
            }
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        self.medium.read(offset, out);
        let end = offset + out.len() as u64;
        for w in &self.cache {
            let w_end = w.offset + w.data.len() as u64;
            let (from, to) = (w.offset.max(offset), w_end.min(end));
            if from < to {
                out[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&w.data[(from - w.offset) as usize..(to - w.offset) as usize]);
            }
        }
    }

    /// The device after a power cut in which the unsafe writes met these fates.
    pub fn after_cut(&self, fates: &[Fate]) -> Device {
        let mut device = Device::new(self.bytes, self.durability);
        device.medium = self.medium.clone();
        for (write, fate) in self.cache.iter().zip(fates) {
            match fate {
                Fate::Lost => {}
                Fate::Kept => device.medium.write(write.offset, &write.data),
                Fate::Torn(atoms) => {
                    for (i, _) in atoms.iter().enumerate().filter(|(_, kept)| **kept) {
                        let data = &write.data[i * ATOM..(i + 1) * ATOM];
                        device.medium.write_atom(write.offset + (i * ATOM) as u64, data);
                    }
                }
            }
        }
        device
    }

    /// The device after the process was killed but the power stayed: what was submitted arrives.
    pub fn after_kill(&self) -> Device {
        let mut device = self.clone();
        device.bad_ranges.clear();
        device.cache.iter_mut().for_each(|w| w.completed = true);
        if device.durability == Durability::WriteThrough {
            device.settle(|_| true);
        }
        device
    }
}
