//! Where everything lies on the device, and how much of it there can be.

use cluster_proto::SECTOR;
use cluster_proto::limits::CLIENTS_REMEMBERED_MAX;

use crate::format::checkpoint::{
    CLIENT_BYTES, OBJECT_BYTES_MAX, REQUEST_BYTES_MAX, SECTOR_BYTES_MAX, SEGMENTS_MAX, UNDO_BYTES_MAX,
};

/// Bytes of one block: log blocks, slot headers, superblocks. Equal to a sector.
pub const BLOCK: u64 = SECTOR as u64;
/// Bytes before the log: two superblock copies and room for more.
pub const FRONT_BYTES: u64 = 64 << 10;
/// Byte offset of the second superblock copy.
pub const SUPERBLOCK_COPY: u64 = FRONT_BYTES - BLOCK;
/// Blocks of the smallest log.
pub const LOG_BLOCKS_MIN: u64 = 32;
/// Blocks of the log unless told otherwise: a 64th of the device between these bounds.
const LOG_BLOCKS_DEFAULT: (u64, u64) = (256, 1 << 20);
/// Partitions at most.
pub const PARTITIONS_MAX: u32 = 256;
/// Partitions at least.
const PARTITIONS_MIN: u32 = 4;
/// Sectors of data per partition that are aimed at.
const SECTORS_PER_PARTITION: u64 = 1 << 17;
/// Sectors of data of the smallest store.
const DATA_SECTORS_MIN: u64 = 64;
/// Largest data area that an extent can address. Sectors.
const DATA_SECTORS_MAX: u64 = 1 << 44;
/// Bounds of the number of objects that may have a staged change.
const STAGED_MAX: u64 = 64 << 10;
const STAGED_MIN: u64 = 64;

/// Layout of one store. Fixed when it is formatted. All offsets in bytes of the device, multiples of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Geometry {
    /// Size of the device when it was formatted. Bytes.
    pub device_bytes: u64,
    /// Start of the log ring.
    pub log_offset: u64,
    /// Blocks of the log ring.
    pub log_blocks: u64,
    /// Start of the slot headers: two blocks per partition, then two for the requests.
    pub slots_offset: u64,
    /// Partitions of the objects. One more slot pair holds the remembered requests.
    pub partitions: u32,
    /// Start of the checkpoint segments.
    pub segments_offset: u64,
    /// Size of one segment. Bytes.
    pub segment_bytes: u32,
    /// Number of segments.
    pub segment_count: u32,
    /// Start of the data area.
    pub data_offset: u64,
    /// Size of the data area. Sectors.
    pub data_sectors: u64,
    /// Objects, tombstones included, that fit.
    pub objects_max: u64,
    /// Requests that are remembered.
    pub requests_max: u64,
}

impl Geometry {
    /// Plans a store for a device. `None` if the device is too small.
    pub fn plan(device_bytes: u64, log_bytes: Option<u64>) -> Option<Geometry> {
        let blocks = device_bytes / BLOCK;
        let (low, high) = LOG_BLOCKS_DEFAULT;
        let log_blocks = log_bytes.map_or((blocks / 64).clamp(low, high), |b| (b / BLOCK).max(LOG_BLOCKS_MIN));
        let left = blocks.checked_sub(FRONT_BYTES / BLOCK + log_blocks)?.min(DATA_SECTORS_MAX - 1);
        let mut g =
            Geometry { device_bytes, log_offset: FRONT_BYTES, log_blocks, data_sectors: left, ..Self::default() };
        g.plan_checkpoints();
        let used = (g.segments_offset - g.slots_offset) / BLOCK
            + u64::from(g.segment_count) * u64::from(g.segment_bytes) / BLOCK;
        g.data_sectors = left.checked_sub(used).filter(|&n| n >= DATA_SECTORS_MIN)?;
        g.data_offset = g.segments_offset + u64::from(g.segment_count) * u64::from(g.segment_bytes);
        Some(g)
    }

    /// Sizes the checkpoint area for the worst case of `data_sectors`, as estimated so far: twice the accounted bytes,
    /// so that any partition can be rewritten while all others are at their largest (docs/disk.md, "Room").
    fn plan_checkpoints(&mut self) {
        let sectors = self.data_sectors;
        let wanted = (sectors / SECTORS_PER_PARTITION).next_power_of_two();
        self.partitions = wanted.clamp(PARTITIONS_MIN.into(), PARTITIONS_MAX.into()) as u32;
        self.objects_max = (sectors / 4).clamp(64, 1 << 31);
        self.requests_max = (sectors / 16).clamp(256, 512 << 10);
        let bytes = self.metadata_bytes_max();
        let segment = bytes.div_ceil(SEGMENTS_MAX as u64 - 8).next_multiple_of(BLOCK);
        self.segment_bytes = segment.min(1 << 30) as u32;
        self.segment_count = self.segment_count_needed() as u32;
        self.slots_offset = self.log_offset + self.log_blocks * BLOCK;
        self.segments_offset = self.slots_offset + 2 * u64::from(self.slot_pairs()) * BLOCK;
    }

    fn segment_count_needed(&self) -> u64 {
        let bytes = self.metadata_bytes_max();
        2 * (bytes.div_ceil(u64::from(self.segment_bytes)) + u64::from(self.slot_pairs()))
    }

    /// Slot pairs: one per partition and one for the remembered requests.
    pub fn slot_pairs(&self) -> u32 {
        self.partitions + 1
    }

    /// Clients whose requests are remembered.
    pub fn clients_max(&self) -> u64 {
        (CLIENTS_REMEMBERED_MAX as u64).min(self.requests_max)
    }

    /// Objects that may have a staged change. More than all requests under way of an OSD, so that in practice only
    /// changes that are never committed can get there.
    pub fn staged_max(&self) -> u64 {
        (self.objects_max / 4).clamp(STAGED_MIN, STAGED_MAX)
    }

    /// Accounted bytes of all checkpoints at their largest: the bound that admission keeps. A sector counts once, because
    /// it is either part of an object or kept for a rollback.
    pub fn metadata_bytes_max(&self) -> u64 {
        let objects = self.objects_max * OBJECT_BYTES_MAX + self.staged_max() * UNDO_BYTES_MAX;
        self.data_sectors * SECTOR_BYTES_MAX + objects + self.requests_bytes_max()
    }

    /// Accounted bytes of the checkpoint of remembered requests at its largest.
    pub fn requests_bytes_max(&self) -> u64 {
        self.requests_max * REQUEST_BYTES_MAX + self.clients_max() * CLIENT_BYTES
    }

    /// Byte offset of the log block numbered `seq`.
    pub fn log_block_offset(&self, seq: u64) -> u64 {
        self.log_offset + seq % self.log_blocks * BLOCK
    }

    /// Byte offset of the header of slot `slot` (0 or 1) of a pair.
    pub fn slot_offset(&self, pair: u32, slot: u64) -> u64 {
        self.slots_offset + (2 * u64::from(pair) + slot) * BLOCK
    }

    /// Byte offset of a segment.
    pub fn segment_offset(&self, segment: u32) -> u64 {
        self.segments_offset + u64::from(segment) * u64::from(self.segment_bytes)
    }

    /// Byte offset of a sector of the data area.
    pub fn sector_offset(&self, sector: u64) -> u64 {
        self.data_offset + sector * BLOCK
    }

    /// Whether numbers read from a disk make sense together: every area inside the device, none overlapping, and
    /// nothing that would overflow later. Says what is wrong.
    pub fn validate(&self) -> Result<(), &'static str> {
        let log_end = end_of(self.log_offset, self.log_blocks, BLOCK).ok_or("the log's size overflows")?;
        let pairs = 2 * (u64::from(self.partitions) + 1);
        let slots_end = end_of(self.slots_offset, pairs, BLOCK).ok_or("the slots' size overflows")?;
        let segments_end = end_of(self.segments_offset, self.segment_count.into(), self.segment_bytes.into())
            .ok_or("the segments' size overflows")?;
        let data_end = end_of(self.data_offset, self.data_sectors, BLOCK).ok_or("the data area's size overflows")?;
        let offsets = [self.log_offset, self.slots_offset, self.segments_offset, self.data_offset];
        let checks = [
            (offsets.iter().all(|o| o % BLOCK == 0), "an area is not aligned"),
            (self.log_offset >= FRONT_BYTES, "the log overlaps the superblocks"),
            (log_end <= self.slots_offset, "the log overlaps the slots"),
            (slots_end <= self.segments_offset, "the slots overlap the segments"),
            (segments_end <= self.data_offset, "the segments overlap the data area"),
            (data_end <= self.device_bytes, "the data area exceeds the device"),
            (self.log_blocks >= LOG_BLOCKS_MIN && self.log_blocks < 1 << 40, "the log's size"),
            ((1..=PARTITIONS_MAX).contains(&self.partitions), "the number of partitions"),
            (self.segment_bytes > 0 && u64::from(self.segment_bytes) % BLOCK == 0, "the segments' size"),
            (self.data_sectors > 0 && self.data_sectors < DATA_SECTORS_MAX, "the data area's size"),
            (self.objects_max < 1 << 32 && self.requests_max < 1 << 32, "a limit"),
        ];
        if let Some((_, why)) = checks.iter().find(|(good, _)| !good) {
            return Err(why);
        }
        if u64::from(self.segment_count) < self.segment_count_needed() {
            return Err("too few segments for the worst case");
        }
        Ok(())
    }
}

fn end_of(offset: u64, count: u64, size: u64) -> Option<u64> {
    offset.checked_add(count.checked_mul(size)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_valid_and_frugal_at_every_size() {
        for mib in [1, 2, 3, 5, 16, 64, 100, 1000, 4096, 65_536, 1 << 20, 16 << 20] {
            let log = (mib < 64).then_some(128 << 10);
            let g = Geometry::plan(mib << 20, log).unwrap_or_else(|| panic!("{mib} MiB"));
            assert_eq!(g.validate(), Ok(()), "{mib} MiB: {g:?}");
            let overhead = 1.0 - (g.data_sectors * BLOCK) as f64 / g.device_bytes as f64;
            assert!(mib < 64 || overhead < 0.035, "{mib} MiB: overhead {overhead}");
            let per_slot = g.metadata_bytes_max().div_ceil(g.segment_bytes.into());
            assert!(per_slot < SEGMENTS_MAX as u64, "one partition may hold everything");
        }
        assert_eq!(Geometry::plan(256 << 10, None), None);
        assert_eq!(Geometry::plan(0, None), None);
    }

    #[test]
    fn damaged_numbers_are_refused() {
        let good = Geometry::plan(64 << 20, None).expect("large enough");
        for bad in [
            Geometry { data_sectors: u64::MAX / 2, ..good },
            Geometry { log_blocks: 0, ..good },
            Geometry { partitions: 0, ..good },
            Geometry { segment_bytes: 0, ..good },
            Geometry { data_offset: good.data_offset + 1, ..good },
            Geometry { device_bytes: good.device_bytes - BLOCK * 64, ..good },
            Geometry { objects_max: 1 << 31, ..good },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
