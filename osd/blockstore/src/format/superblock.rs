//! The superblock: what the device is and where everything lies. Written once, in two copies.

use cluster_proto::OsdId;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::crc_after_crc;
use crate::geometry::{BLOCK, Geometry, SUPERBLOCK_COPY};

/// First bytes after the checksum.
const MAGIC: [u8; 8] = *b"BLKYARD1";
/// Version of the format that this code writes and reads.
pub const FORMAT_VERSION: u32 = 2;
/// Incompatible features that this code knows: none yet.
const INCOMPATIBLE_KNOWN: u64 = 0;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct RawSuperblock {
    crc: U32,
    version: U32,
    magic: [u8; 8],
    incompatible: U64,
    compatible: U64,
    cluster: [u8; 16],
    store: [u8; 16],
    osd: U32,
    partitions: U32,
    device_bytes: U64,
    log_offset: U64,
    log_blocks: U64,
    slots_offset: U64,
    segments_offset: U64,
    segment_bytes: U32,
    segment_count: U32,
    data_offset: U64,
    data_sectors: U64,
    objects_max: U64,
    requests_max: U64,
}

const _: () = assert!(size_of::<RawSuperblock>() == 152);

/// Validated superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Superblock {
    /// The cluster the OSD belongs to.
    pub cluster: [u8; 16],
    /// This store.
    pub store: [u8; 16],
    /// The OSD.
    pub osd: OsdId,
    /// Features that do not hinder older code.
    pub compatible: u64,
    /// Layout.
    pub geometry: Geometry,
}

/// Why a block is not a usable superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SuperblockError {
    /// Another magic or a wrong checksum.
    #[error("not a Blockyard store, or its superblock is damaged")]
    Damaged,
    /// Made by another version.
    #[error(
        "the store has format version {0}, this program knows version {FORMAT_VERSION}: use the program that made it"
    )]
    Version(u32),
    /// Uses features this program does not know.
    #[error("the store uses features ({0:#x}) that this program does not know: use a newer one")]
    Features(u64),
    /// Numbers that contradict each other.
    #[error("the superblock contradicts itself: {0}")]
    Geometry(&'static str),
}

impl Superblock {
    /// Where its two copies lie. Bytes.
    pub const OFFSETS: [u64; 2] = [0, SUPERBLOCK_COPY];
    /// Bytes of each.
    pub const LEN: usize = BLOCK as usize;

    /// The block to be written.
    pub fn encode(&self) -> [u8; BLOCK as usize] {
        let g = &self.geometry;
        let mut raw = RawSuperblock {
            crc: 0.into(),
            version: FORMAT_VERSION.into(),
            magic: MAGIC,
            incompatible: INCOMPATIBLE_KNOWN.into(),
            compatible: self.compatible.into(),
            cluster: self.cluster,
            store: self.store,
            osd: self.osd.0.into(),
            partitions: g.partitions.into(),
            device_bytes: g.device_bytes.into(),
            log_offset: g.log_offset.into(),
            log_blocks: g.log_blocks.into(),
            slots_offset: g.slots_offset.into(),
            segments_offset: g.segments_offset.into(),
            segment_bytes: g.segment_bytes.into(),
            segment_count: g.segment_count.into(),
            data_offset: g.data_offset.into(),
            data_sectors: g.data_sectors.into(),
            objects_max: g.objects_max.into(),
            requests_max: g.requests_max.into(),
        };
        let mut block = [0; BLOCK as usize];
        block[..size_of::<RawSuperblock>()].copy_from_slice(raw.as_bytes());
        raw.crc = crc_after_crc(&block).into();
        block[..4].copy_from_slice(raw.crc.as_bytes());
        block
    }

    /// Reads and judges a block.
    pub fn decode(block: &[u8]) -> Result<Superblock, SuperblockError> {
        let (raw, _) = RawSuperblock::read_from_prefix(block).map_err(|_| SuperblockError::Damaged)?;
        if raw.magic != MAGIC || raw.crc.get() != crc_after_crc(block) || raw.store == [0; 16] {
            return Err(SuperblockError::Damaged);
        }
        if raw.version.get() != FORMAT_VERSION {
            return Err(SuperblockError::Version(raw.version.get()));
        }
        let unknown = raw.incompatible.get() & !INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            return Err(SuperblockError::Features(unknown));
        }
        let geometry = raw.geometry();
        geometry.validate().map_err(SuperblockError::Geometry)?;
        Ok(Superblock {
            cluster: raw.cluster,
            store: raw.store,
            osd: OsdId(raw.osd.get()),
            compatible: raw.compatible.get(),
            geometry,
        })
    }
}

impl RawSuperblock {
    fn geometry(&self) -> Geometry {
        Geometry {
            device_bytes: self.device_bytes.get(),
            log_offset: self.log_offset.get(),
            log_blocks: self.log_blocks.get(),
            slots_offset: self.slots_offset.get(),
            partitions: self.partitions.get(),
            segments_offset: self.segments_offset.get(),
            segment_bytes: self.segment_bytes.get(),
            segment_count: self.segment_count.get(),
            data_offset: self.data_offset.get(),
            data_sectors: self.data_sectors.get(),
            objects_max: self.objects_max.get(),
            requests_max: self.requests_max.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        let geometry = Geometry::plan(64 << 20, None).expect("large enough");
        Superblock { cluster: [1; 16], store: [2; 16], osd: OsdId(3), compatible: 4, geometry }
    }

    #[test]
    fn encoding_round_trips_and_any_flipped_bit_is_seen() {
        let block = sample().encode();
        assert_eq!(Superblock::decode(&block), Ok(sample()));
        for bit in 0..size_of::<RawSuperblock>() * 8 {
            let mut bad = block;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Superblock::decode(&bad), Err(SuperblockError::Damaged), "bit {bit}");
        }
        assert_eq!(Superblock::decode(&block[..100]), Err(SuperblockError::Damaged));
    }

    #[test]
    fn newer_stores_are_named() {
        let resign = |at: usize| {
            let mut block = sample().encode();
            block[at] = 7;
            let crc = crc_after_crc(&block);
            block[..4].copy_from_slice(&crc.to_le_bytes());
            Superblock::decode(&block)
        };
        assert_eq!(resign(4), Err(SuperblockError::Version(7)));
        assert_eq!(resign(16), Err(SuperblockError::Features(7)));
    }
}
