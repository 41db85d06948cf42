//! Stores without space: something else takes it up and gives it back.

use buffer::Buffer;
use cluster_proto::crc::sector_crcs;
use cluster_proto::layout::{SECTOR, SectorRange};
use cluster_proto::shard::{ObjectContent, Origin, ShardIndex, ShardOp};
use cluster_proto::{LayerId, ObjectId, PoolId, Version};

use crate::world::World;

/// Operations that fill and empty a store have this tag. They may fail.
pub(crate) const TAG: u64 = u64::MAX - 1;
/// Sectors of one object that takes up space.
const PIECE: u64 = 64;
/// A pool that no node knows.
const POOL: PoolId = PoolId(99);

impl World {
    /// Takes up all but a few sectors of a store: as clients may, or also what is kept back for recovery.
    pub(crate) fn fill(&mut self, osd: usize) {
        let until = self.now + self.rng.range(100_000, 5_000_000);
        let (left, to_the_last) = (self.rng.below(32), self.rng.one_in(2));
        // What cannot be written is not used again until the process ends: nearly all of the disk would be.
        let fails = self.osds[osd].failing_until > self.now;
        let Some(run) = &mut self.osds[osd].run else { return };
        if fails || !run.store.is_running() {
            return;
        }
        self.osds[osd].full_until = until;
        self.note(|| format!("osd {} is full until {until}, to the last sectors: {to_the_last}", osd + 1));
        let Some(run) = &mut self.osds[osd].run else { return };
        let mut wanted = (run.store.space().free() / SECTOR as u64).saturating_sub(left);
        while wanted > 0 {
            let count = wanted.min(PIECE);
            wanted -= count;
            self.stamp += 1;
            let object =
                ObjectId { pool: POOL, lineage: LayerId(1), layer: LayerId(1), index: self.stamp as u32, part: 0 };
            let (version, sectors) = (Version(1), SectorRange::new(0, count as u32));
            let data = Buffer::copy_of(&vec![0x55; sectors.bytes()]);
            let crcs = sector_crcs(&data);
            self.osds[osd].filler.push(object);
            let Some(run) = &mut self.osds[osd].run else { return };
            let op = if to_the_last {
                let content = ObjectContent { extents: vec![sectors], data, crcs, ..ObjectContent::default() };
                ShardOp::Restore { object, version, content: content.into() }
            } else {
                ShardOp::Write { object, version, sectors, data, crcs, origin: Origin::NONE, lazy: false }
            };
            run.store.submit(TAG, op);
        }
        self.pump_osd(osd);
    }

    /// Gives back what [`fill`](Self::fill) took up, if its time is over.
    pub(crate) fn empty(&mut self, osd: usize) {
        let node = &mut self.osds[osd];
        let Some(run) = &mut node.run else { return };
        if self.now < node.full_until || node.filler.is_empty() || !run.store.is_running() {
            return;
        }
        for &object in &node.filler {
            let Some(head) = run.store.head(&object) else { continue };
            let op = match head.deleted {
                false => ShardOp::Delete { object, version: Version(head.version.0 + 1), origin: Origin::NONE },
                true => ShardOp::Collect { object, version: head.version },
            };
            run.store.submit(TAG, op);
        }
        self.pump_osd(osd);
    }
}
