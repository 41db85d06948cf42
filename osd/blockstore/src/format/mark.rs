//! Sectors of which is known that nobody can read them: a mark is stored in place of the data, with a checksum that does not match it
//! (docs/disk.md section 12). To a read such a sector is damaged like any other.

use cluster_proto::SECTOR;
use cluster_proto::crc::crc32c;
use cluster_proto::ids::{ObjectId, Version};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes, Unaligned};

const MAGIC: [u8; 8] = *b"BYNODATA";

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct RawMark {
    magic: [u8; 8],
    store: [u8; 16],
    lineage: U64,
    layer: U64,
    version: U64,
    pool: U32,
    index: U32,
    sector: U32,
    part: U32,
}

/// Where a mark stands: no other change of no other store writes the same one, so that a mark that is found was written by the change that is
/// looked at.
pub struct Place<'a> {
    /// Id of the store.
    pub store: &'a [u8; 16],
    /// The object.
    pub object: &'a ObjectId,
    /// Version that the change makes.
    pub version: Version,
}

impl Place<'_> {
    /// The mark that takes the place of a sector's data.
    pub fn mark(&self, sector: u32) -> [u8; SECTOR] {
        let raw = RawMark {
            magic: MAGIC,
            store: *self.store,
            lineage: self.object.lineage.0.into(),
            layer: self.object.layer.0.into(),
            version: self.version.0.into(),
            pool: self.object.pool.0.into(),
            index: self.object.index.into(),
            sector: sector.into(),
            part: u32::from(self.object.part).into(),
        };
        let mut mark = [0; SECTOR];
        mark[..size_of::<RawMark>()].copy_from_slice(raw.as_bytes());
        mark
    }

    /// Whether these bytes, which do not match their checksum, are the mark.
    pub fn is_mark(&self, sector: u32, bytes: &[u8]) -> bool {
        bytes == self.mark(sector)
    }
}

/// Whether these bytes, which do not match their checksum, are a mark that some change left in this sector.
pub fn is_any_mark(store: &[u8; 16], object: &ObjectId, sector: u32, bytes: &[u8]) -> bool {
    let at = std::mem::offset_of!(RawMark, version);
    let version = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    Place { store, object, version: Version(version) }.is_mark(sector, bytes)
}

/// The checksum that is stored with a mark: that of the data if it is known, but never the mark's own.
pub fn stored_crc(wanted: u32, mark: &[u8]) -> u32 {
    if crc32c(mark) == wanted { !wanted } else { wanted }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::ids::{LayerId, PoolId};

    #[test]
    fn a_mark_belongs_to_one_change_of_one_sector() {
        let object = ObjectId { pool: PoolId(1), lineage: LayerId(2), layer: LayerId(3), index: 4, part: 5 };
        let place = Place { store: &[7; 16], object: &object, version: Version(8) };
        let mark = place.mark(9);
        assert!(place.is_mark(9, &mark));
        assert!(!place.is_mark(10, &mark));
        assert!(!Place { version: Version(9), ..place }.is_mark(9, &mark));
        assert!(!Place { store: &[8; 16], ..place }.is_mark(9, &mark));
        assert!(!Place { object: &object.shard(6), ..place }.is_mark(9, &mark));
        assert!(is_any_mark(&[7; 16], &object, 9, &mark));
        assert!(!is_any_mark(&[7; 16], &object, 8, &mark) && !is_any_mark(&[7; 16], &object, 9, &[]));
        let own = crc32c(&mark);
        assert_eq!((stored_crc(own, &mark), stored_crc(own ^ 1, &mark)), (!own, own ^ 1));
    }
}
