//! Requests that are at the volume.

use gateway_core::VolumeOp;

use crate::wire::request::{Command, Request};

/// What is to happen when the volume has answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// The reply of the volume ends the request.
    Last,
    /// A durable trim: the discard is under way, a flush comes next.
    Trimming,
}

/// A request at the volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) request: Request,
    pub(super) progress: Progress,
}

impl Slot {
    /// Payload that the request moves. Bytes.
    fn payload_bytes(&self) -> u64 {
        payload_bytes(&self.request)
    }
}

pub(super) fn payload_bytes(request: &Request) -> u64 {
    match request.command {
        Command::Read | Command::Write => request.len,
        _ => 0,
    }
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    slot: Option<Slot>,
}

/// A slab; the tag of a request is its index and the generation of the entry, so a stray tag finds nothing.
#[derive(Debug, Default)]
pub(super) struct Slots {
    entries: Vec<Entry>,
    free: Vec<u32>,
    bytes: u64,
}

impl Slots {
    pub(super) fn count(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Payload of the requests at the volume. Bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keeps the slot and names it.
    pub(super) fn insert(&mut self, slot: Slot) -> u64 {
        self.bytes += slot.payload_bytes();
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { generation: 0, slot: None });
            (self.entries.len() - 1) as u32
        });
        let entry = &mut self.entries[index as usize];
        debug_assert!(entry.slot.is_none());
        entry.slot = Some(slot);
        u64::from(entry.generation) << 32 | u64::from(index)
    }

    pub(super) fn remove(&mut self, tag: u64) -> Option<Slot> {
        let index = tag as u32;
        let entry = self.entries.get_mut(index as usize)?;
        if entry.generation != (tag >> 32) as u32 {
            return None;
        }
        let slot = entry.slot.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(index);
        self.bytes -= slot.payload_bytes();
        Some(slot)
    }

    pub(super) fn check_invariants(&self) -> bool {
        let used = self.entries.iter().filter_map(|entry| entry.slot.as_ref());
        let (count, bytes) = used.fold((0, 0), |(count, bytes), slot| (count + 1, bytes + slot.payload_bytes()));
        count == self.count() && bytes == self.bytes
    }
}

/// What a request asks of the volume.
pub(super) type Operation = (VolumeOp, Progress);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::flags::CommandFlags;

    fn slot(cookie: u64, len: u64) -> Slot {
        let request = Request { command: Command::Read, flags: CommandFlags::NONE, cookie, offset: 0, len };
        Slot { request, progress: Progress::Last }
    }

    #[test]
    fn a_tag_is_good_once() {
        let mut slots = Slots::default();
        let first = slots.insert(slot(1, 10));
        let second = slots.insert(slot(2, 5));
        assert_eq!((slots.count(), slots.bytes()), (2, 15));
        assert_eq!(slots.remove(first).map(|s| s.request.cookie), Some(1));
        assert!(slots.remove(first).is_none(), "twice");
        let third = slots.insert(slot(3, 1));
        assert_ne!(third, first, "the entry is reused under another name");
        assert!(slots.remove(first).is_none() && slots.remove(77).is_none());
        assert_eq!(slots.remove(second).map(|s| s.request.cookie), Some(2));
        assert!(slots.check_invariants());
        assert_eq!((slots.count(), slots.bytes()), (1, 1));
    }
}
