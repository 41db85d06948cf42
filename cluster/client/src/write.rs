//! Operations on images become parts on objects.
//!
//! Previous hop: a front door (`nbd/src/session/write.rs`), the fio engine or an application. Next hop: `request.rs`
//! here, then `osd/core/src/write.rs` of the primary.
//!
//! Checksums are computed here, once, over the caller's memory; from here to the platter they travel with the data.

use buffer::Buffer;
use cluster_proto::Status;
use cluster_proto::crc::sector_crcs;
use cluster_proto::layout::{LayerRef, Piece, SECTOR, SectorRange, pieces};
use cluster_proto::wire::RequestOp;

use crate::client::Client;
use crate::image::ImageOptions;
use crate::op::{ImageOp, ImageReply, TaskId};
use crate::request::Role;

/// Parts of one task under way at a time.
const PARTS_AT_ONCE: u32 = 64;
/// Objects that one allocation query looks at.
pub(crate) const ALLOCATION_OBJECTS: u64 = 64;

/// A byte range of an object, cut at sector boundaries: a partial sector, whole sectors, a partial sector.
struct Cut {
    head: Option<(u32, u32)>,
    middle: Option<(u32, u32)>,
    tail: Option<(u32, u32)>,
}

fn cut_at_sectors(offset: u32, len: u32) -> Cut {
    let sector = SECTOR as u32;
    let end = offset + len;
    let (first, last) = (offset.next_multiple_of(sector), end / sector * sector);
    if first > last {
        return Cut { head: Some((offset, len)), middle: None, tail: None };
    }
    let part = |from: u32, to: u32| (to > from).then_some((from, to - from));
    Cut { head: part(offset, first), middle: part(first, last), tail: part(last, end) }
}

fn sectors((offset, len): (u32, u32)) -> SectorRange {
    SectorRange::new(offset / SECTOR as u32, len / SECTOR as u32)
}

/// A part of a stripe, whole stripes, a part of a stripe: of an erasure-coded object whole stripes give back all their space, parity too,
/// while parts need new parity.
fn cut_at_stripes(range: SectorRange, stripe: u32) -> impl Iterator<Item = SectorRange> {
    let (first, last) = (range.start.next_multiple_of(stripe), range.end() / stripe * stripe);
    let (first, last) = if first < last { (first, last) } else { (range.end(), range.end()) };
    let parts = [(range.start, first), (first, last), (last, range.end())];
    parts.into_iter().filter(|(from, to)| from < to).map(|(from, to)| SectorRange::new(from, to - from))
}

impl Client {
    /// Goes on with every task that waited for room.
    pub(crate) fn cut_more(&mut self) {
        for _ in 0..self.uncut.len() {
            if !self.window.has_room() {
                return;
            }
            if let Some(task) = self.uncut.pop_front() {
                self.cut(task);
            }
        }
    }

    /// Cuts as many parts off a task as may be under way; answers it when nothing is left.
    pub(crate) fn cut(&mut self, id: TaskId) {
        loop {
            let Some(task) = self.tasks.get(id) else { return };
            let Some(image) = self.images.get(task.image.0).map(|image| image.options) else {
                return self.abandon(id);
            };
            let Some((cursor, end)) = self.rest(id, &image) else {
                if task.pending == 0 {
                    self.finish_task(id);
                }
                return;
            };
            if task.pending >= PARTS_AT_ONCE {
                return;
            }
            let changes = !matches!(task.op, ImageOp::Read { .. } | ImageOp::Allocation { .. });
            if !self.window.has_room() || changes && self.unsynced.is_full() {
                self.uncut.push_back(id);
                return;
            }
            self.cut_one(id, &image, cursor, end);
        }
    }

    /// The image was closed under the task: what is under way ends, the rest is not begun.
    fn abandon(&mut self, id: TaskId) {
        if self.tasks.get(id).is_some_and(|task| task.pending == 0)
            && let Some(task) = self.tasks.remove(id)
        {
            self.replies.push_back((task.image, task.tag, Err(Status::NotFound)));
        }
    }

    /// What is not cut yet: absolute bytes, or objects for a deletion.
    fn rest(&self, id: TaskId, image: &ImageOptions) -> Option<(u64, u64)> {
        let task = self.tasks.get(id)?;
        if task.failed.is_some() {
            return None;
        }
        let (start, end) = match &task.op {
            ImageOp::Read { offset, len }
            | ImageOp::WriteZeroes { offset, len, .. }
            | ImageOp::Discard { offset, len } => (*offset, offset + len),
            ImageOp::Write { offset, data } | ImageOp::CompareAndWrite { offset, data, .. } => {
                (*offset, offset + data.len() as u64)
            }
            ImageOp::Allocation { offset, len } => {
                let block = u64::from(image.block_size);
                (*offset, (offset + len).min((offset / block + ALLOCATION_OBJECTS) * block))
            }
            ImageOp::DeleteObjects { first, end } => (u64::from(*first), u64::from(*end)),
            ImageOp::Flush => return None,
        };
        (start + task.cursor < end).then_some((start + task.cursor, end))
    }

    /// Makes the parts for the next object.
    fn cut_one(&mut self, id: TaskId, image: &ImageOptions, cursor: u64, end: u64) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        if let ImageOp::DeleteObjects { .. } = task.op {
            task.cursor += 1;
            let object = image.layer.object(cursor as u32);
            return self.start_part(id, object, Role::Change, RequestOp::Delete);
        }
        let Some(piece) = pieces(cursor, end - cursor, image.block_size).next() else { return };
        let done = task.cursor as usize;
        task.cursor += u64::from(piece.len);
        let op = task.op.clone();
        match op {
            ImageOp::Read { .. } => self.cut_read(id, image.layer, piece),
            ImageOp::Allocation { .. } => self.cut_allocation(id, image.layer, piece),
            ImageOp::Write { data, .. } => {
                let data = data.slice(done..done + piece.len as usize);
                self.cut_write(id, image.layer, piece, &data);
            }
            ImageOp::CompareAndWrite { compare, data, .. } => {
                self.cut_compare(id, image.layer, piece, &compare, &data);
            }
            ImageOp::WriteZeroes { keep_allocated: true, .. } => {
                self.cut_write(id, image.layer, piece, &Buffer::zeroed(piece.len as usize));
            }
            ImageOp::WriteZeroes { .. } => self.cut_zero(id, image, piece, true),
            ImageOp::Discard { .. } => self.cut_zero(id, image, piece, false),
            ImageOp::Flush | ImageOp::DeleteObjects { .. } => {}
        }
    }

    fn cut_write(&mut self, id: TaskId, layer: LayerRef, piece: Piece, data: &Buffer) {
        let object = layer.object(piece.index);
        let cut = cut_at_sectors(piece.offset, piece.len);
        let at = |(from, len): (u32, u32)| {
            let start = (from - piece.offset) as usize;
            data.slice(start..start + len as usize)
        };
        if let Some(range) = cut.middle {
            let data = at(range);
            let crcs = sector_crcs(&data);
            self.start_part(id, object, Role::Change, RequestOp::Write { sectors: sectors(range), data, crcs });
        }
        for range in [cut.head, cut.tail].into_iter().flatten() {
            self.start_patch(id, object, range.0, None, at(range));
        }
    }

    /// Zeroes a piece and gives the space back. Partial sectors are patched with zeroes, or left alone by a discard.
    fn cut_zero(&mut self, id: TaskId, image: &ImageOptions, piece: Piece, patch_ends: bool) {
        let object = image.layer.object(piece.index);
        let start = u64::from(piece.index) * u64::from(image.block_size) + u64::from(piece.offset);
        // What lies beyond the image's end belongs to it: an object that is zeroed up to there is zeroed whole.
        let to_end = start + u64::from(piece.len) == image.size;
        let len = if to_end { image.block_size - piece.offset } else { piece.len };
        let cut = cut_at_sectors(piece.offset, len);
        let stripe = self.map.pools.get(&image.layer.pool).map_or(1, |pool| pool.scheme.stripe_sectors());
        for range in cut.middle.into_iter().flat_map(|range| cut_at_stripes(sectors(range), stripe)) {
            self.start_part(id, object, Role::Change, RequestOp::Zero(range));
        }
        for range in [cut.head, cut.tail].into_iter().flatten().filter(|_| patch_ends) {
            self.start_patch(id, object, range.0, None, Buffer::zeroed(range.1 as usize));
        }
    }

    fn cut_compare(&mut self, id: TaskId, layer: LayerRef, piece: Piece, compare: &Buffer, data: &Buffer) {
        let object = layer.object(piece.index);
        let whole = (piece.offset as usize).is_multiple_of(SECTOR) && (piece.len as usize).is_multiple_of(SECTOR);
        if !whole {
            return self.start_patch(id, object, piece.offset, Some(compare.clone()), data.clone());
        }
        let request = compare_and_write(sectors((piece.offset, piece.len)), compare, data);
        self.start_part(id, object, Role::Change, request);
    }

    /// Answers a task all of whose parts are done.
    fn finish_task(&mut self, id: TaskId) {
        let Some(task) = self.tasks.remove(id) else { return };
        let reply = match (task.failed, &task.op) {
            (Some(status), _) => Err(status),
            (None, ImageOp::Read { .. }) => Ok(ImageReply::Data(crate::read::data_of(task.found))),
            (None, ImageOp::Allocation { offset, len }) => {
                Ok(ImageReply::Extents(crate::read::extents_of(task.found, *offset, *len)))
            }
            (None, _) => Ok(ImageReply::Done),
        };
        self.replies.push_back((task.image, task.tag, reply));
    }
}

/// The request that writes `data` over `compare`; both are whole sectors.
pub(crate) fn compare_and_write(sectors: SectorRange, compare: &[u8], data: &[u8]) -> RequestOp {
    let mut both = buffer::BufferMut::for_overwrite(compare.len() + data.len());
    both[..compare.len()].copy_from_slice(compare);
    both[compare.len()..].copy_from_slice(data);
    let data = both.freeze();
    let crcs = sector_crcs(&data);
    RequestOp::CompareAndWrite { sectors, data, crcs }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_at_stripes() {
        let show = |start, count| {
            let cut = cut_at_stripes(SectorRange::new(start, count), 8);
            cut.map(|range| (range.start, range.count)).collect::<Vec<_>>()
        };
        assert_eq!(show(0, 32), [(0, 32)]);
        assert_eq!(show(3, 20), [(3, 5), (8, 8), (16, 7)]);
        assert_eq!(show(3, 13), [(3, 5), (8, 8)]);
        assert_eq!(show(8, 9), [(8, 8), (16, 1)]);
        assert_eq!(show(5, 7), [(5, 7)]);
        assert_eq!(cut_at_stripes(SectorRange::new(5, 7), 1).collect::<Vec<_>>(), [SectorRange::new(5, 7)]);
    }

    #[test]
    fn cuts_at_sectors() {
        let show = |offset, len| {
            let cut = cut_at_sectors(offset, len);
            (cut.head, cut.middle, cut.tail)
        };
        assert_eq!(show(0, 4096), (None, Some((0, 4096)), None));
        assert_eq!(show(512, 512), (Some((512, 512)), None, None));
        assert_eq!(show(512, 8192), (Some((512, 3584)), Some((4096, 4096)), Some((8192, 512))));
        assert_eq!(show(4000, 200), (Some((4000, 96)), None, Some((4096, 104))));
        assert_eq!(show(4096, 100), (None, None, Some((4096, 100))));
    }
}
