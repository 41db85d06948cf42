//! Sectors that nobody can read any more, until somebody writes them.

use blockstore::{DeviceOp, DeviceResult};
use buffer::BufferMut;
use cluster_client::{ImageOp, ImageReply};
use cluster_proto::map::keys;
use cluster_proto::shard::{Buckets, ShardIndex, ShardOp};
use cluster_proto::{ObjectId, PgId, PgScope, PoolId, SectorRange, Status};

use crate::nodes::OsdNode;
use crate::scrubs::TAG;
use crate::workload::{Kind, Record, fill};
use crate::world::World;

impl World {
    /// Some sectors of an object rot in all copies (shards), or in many.
    pub(crate) fn spoil_everywhere(&mut self) {
        let Some(object) = self.any_object() else { return };
        let everywhere = self.rng.one_in(2);
        // Most of what is written is at the ends of objects.
        let sectors = self.shape.block / cluster_proto::SECTOR as u64;
        let first = if self.rng.one_in(2) { self.rng.below(4) } else { self.rng.below(sectors) } as u32;
        let count = self.rng.range(1, 4) as u32;
        self.note(|| format!("sectors {first}+{count} of {object} rot, everywhere: {everywhere}"));
        self.spoilt.insert(object.index);
        for (osd, copy) in self.copies_of(&object) {
            for sector in first..first + count {
                if everywhere || self.rng.below(3) > 0 {
                    self.spoil_sector(osd, copy, sector);
                }
            }
        }
        self.give_up_lost();
    }

    /// Where nobody can say whether a lost disk has what others cannot read, an operator has to: it has not.
    pub(crate) fn give_up_lost(&mut self) {
        let lost: Vec<_> = self.osds.iter().filter(|osd| osd.is_lost).map(|osd| osd.id).collect();
        if !self.spoilt.is_empty() {
            lost.into_iter().for_each(|osd| self.control.delete(&keys::osd_config(osd)));
            self.state_changed();
        }
    }

    fn any_object(&mut self) -> Option<ObjectId> {
        let all: Vec<ObjectId> =
            (0..self.osds.len()).flat_map(|osd| self.objects_on(osd)).map(ObjectId::whole).collect();
        self.rng.pick(&all).copied()
    }

    fn copies_of(&self, object: &ObjectId) -> Vec<(usize, ObjectId)> {
        let of_osd = |osd| self.objects_on(osd).map(move |copy| (osd, copy));
        (0..self.osds.len()).flat_map(of_osd).filter(|(_, copy)| copy.whole() == *object).collect()
    }

    /// Objects, or shards of them, in an OSD's store. Not while it opens, nor while it has entries that a start would verify: what rots of those looks
    /// like a torn write (see [`Self::rot`]).
    fn objects_on(&self, osd: usize) -> impl Iterator<Item = ObjectId> + use<> {
        let store = self.osds[osd].run.as_ref().map(|run| &run.store).filter(|store| store.is_running());
        let store = store.filter(|store| store.stats().unrecorded_entries == 0);
        let pgs = (0..self.pg_count).map(|index| PgId { pool: PoolId(1), index });
        let scopes = pgs.map(|pg| PgScope { pg, count: self.pg_count });
        let heads: Vec<_> =
            scopes.flat_map(|scope| store.map(|s| s.list(scope, &Buckets::ALL)).unwrap_or_default()).collect();
        heads.into_iter().filter(|head| !head.deleted).map(|head| head.object)
    }

    /// A bit flips where this sector lies on the disk, or the disk cannot read it any more.
    fn spoil_sector(&mut self, osd: usize, object: ObjectId, sector: u32) {
        let (byte, breaks) = (self.rng.below(cluster_proto::SECTOR as u64), self.rng.one_in(2));
        let Some(run) = &mut self.osds[osd].run else { return };
        run.store.submit(TAG, ShardOp::Read { object, sectors: SectorRange::new(sector, 1) });
        loop {
            let OsdNode { run: Some(run), disk, .. } = &mut self.osds[osd] else { return };
            if let Some((tag, _)) = run.store.poll_outcome() {
                assert_eq!(tag, TAG, "nothing else was waiting");
                return;
            }
            let request = run.store.poll_device().expect("a read ends, or asks the disk");
            let DeviceOp::Read { offset, len } = request.op else {
                self.device_begin(osd, request);
                continue;
            };
            match breaks {
                true => disk.break_page(offset),
                false => disk.flip(offset + byte, 3),
            }
            let mut out = BufferMut::for_overwrite(len);
            disk.read(offset, &mut out);
            run.store.handle_device(request.token, DeviceResult::Read(Ok(out)));
        }
    }

    /// Whether an operation failed because nothing that it needs could be read.
    pub(crate) fn is_excused(&self, record: &Record, reply: &Result<ImageReply, Status>) -> bool {
        let end = (record.offset + record.len.max(1)).div_ceil(self.shape.block) as u32;
        let mut objects = (record.offset / self.shape.block) as u32..end;
        matches!(reply, Err(Status::Corrupt))
            && (self.reads_failed || objects.any(|index| self.spoilt.contains(&index)))
    }

    /// What cannot be read can be written, and read then.
    pub(crate) fn write_what_is_spoilt(&mut self) {
        for index in std::mem::take(&mut self.spoilt) {
            let offset = u64::from(index) * self.shape.block;
            let len = self.shape.block.min(self.shape.size.saturating_sub(offset));
            if !len.is_multiple_of(cluster_proto::SECTOR as u64) {
                // Of the last sector a part only can be written, which needs the rest.
                let (first, end) = (index, index + 1);
                self.submit(0, Record::new(Kind::Zero, offset, len), ImageOp::DeleteObjects { first, end });
            } else if len > 0 {
                let op = self.records.len() as u64 + 1;
                let data = fill(op, offset, len);
                self.submit(0, Record::new(Kind::Write, offset, len), ImageOp::Write { offset, data });
            }
        }
    }
}
