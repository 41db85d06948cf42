//! Where a byte of an image lives: sectors, objects and placement groups.

use crate::ids::{LayerId, ObjectId, PgId, PoolId};

/// Unit of allocation, of checksums and of I/O between Blockyard's parts. Bytes.
pub const SECTOR: usize = 4096;

/// A run of 4 KiB sectors inside one object. Half-open: `start .. start + count`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SectorRange {
    /// First sector, 0-based within the object.
    pub start: u32,
    /// Number of sectors.
    pub count: u32,
}

impl SectorRange {
    /// `count` sectors from `start`.
    pub const fn new(start: u32, count: u32) -> Self {
        Self { start, count }
    }

    /// One past the last sector.
    pub const fn end(self) -> u32 {
        self.start + self.count
    }

    /// Length in bytes.
    pub const fn bytes(self) -> usize {
        self.count as usize * SECTOR
    }

    /// Whether the ranges share a sector.
    pub const fn overlaps(self, other: SectorRange) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Whether `other` lies inside this range.
    pub const fn contains(self, other: SectorRange) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// Whether the range is not empty and lies inside an object of `block_size` bytes. Never overflows.
    pub const fn is_valid(self, block_size: u32) -> bool {
        let sectors = block_size / SECTOR as u32;
        self.count > 0 && self.start < sectors && self.count <= sectors - self.start
    }

    /// The sectors.
    pub fn iter(self) -> std::ops::Range<u32> {
        self.start..self.end()
    }
}

/// Mixes a lineage id into a well-spread 64-bit value (the finaliser of SplitMix64, Steele et al. 2014).
pub const fn mix(lineage: LayerId) -> u64 {
    let mut z = lineage.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// PG of an object: images spread independently, one image walks all PGs evenly, and every layer of a chain keeps
/// the same object in the same PG (design, section 3).
pub const fn pg_index(lineage: LayerId, object_index: u32, pg_count: u32) -> u32 {
    (mix(lineage).wrapping_add(object_index as u64) % pg_count as u64) as u32
}

impl ObjectId {
    /// The PG the object belongs to in a pool of `pg_count` PGs.
    pub const fn pg(&self, pg_count: u32) -> PgId {
        PgId { pool: self.pool, index: pg_index(self.lineage, self.index, pg_count) }
    }
}

/// A PG and the number of PGs among which its objects were shared out: which objects are in it. The PGs of a pool may differ in that
/// number while some of them are split and others not yet; each object is in one all the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PgScope {
    /// The PG.
    pub pg: PgId,
    /// As if the pool had so many PGs; above the PG's index.
    pub count: u32,
}

impl PgScope {
    /// Whether an object is in the PG.
    pub fn contains(&self, object: &ObjectId) -> bool {
        object.pg(self.count) == self.pg
    }

    /// The PGs that this one becomes, itself first, when there are `count` PGs: a multiple of what it has now.
    pub fn parts(&self, count: u32) -> impl Iterator<Item = PgId> + use<> {
        let (pool, first, step) = (self.pg.pool, self.pg.index, self.count.max(1));
        (first..count).step_by(step as usize).map(move |index| PgId { pool, index })
    }

    /// Whether an object may be in both PGs. Of two maps of which that is so, the one with the higher epoch is the later one.
    pub fn intersects(&self, other: PgScope) -> bool {
        let step = common_factor(self.count.into(), other.count.into()).max(1);
        self.pg.pool == other.pg.pool && u64::from(self.pg.index.abs_diff(other.pg.index)).is_multiple_of(step)
    }

    /// The PG of which there are `count`, a divisor of this one's number, that has the objects of this one and others.
    pub fn whole(&self, count: u32) -> PgScope {
        PgScope { pg: PgId { pool: self.pg.pool, index: self.pg.index % count.max(1) }, count }
    }

    /// Whether a PG, of which there are `count`, was part of this one.
    pub fn includes(&self, part: PgScope) -> bool {
        self.pg.pool == part.pg.pool
            && part.count.is_multiple_of(self.count)
            && part.pg.index % self.count == self.pg.index
    }
}

/// The greatest common divisor; with 0, the other number.
pub const fn common_factor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A stretch of a request that lies in one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Object index within the layer.
    pub index: u32,
    /// Byte offset within the object.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
    /// Byte offset within the request.
    pub request_offset: u64,
}

/// Cuts the byte range `offset .. offset + len` of an image at object boundaries.
pub fn pieces(offset: u64, len: u64, block_size: u32) -> impl Iterator<Item = Piece> {
    let block = u64::from(block_size);
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = offset + done;
        let inside = at % block;
        let n = (block - inside).min(len - done);
        let piece = Piece { index: (at / block) as u32, offset: inside as u32, len: n as u32, request_offset: done };
        done += n;
        Some(piece)
    })
}

/// What identifies the objects of one image: used to build [`ObjectId`]s.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerRef {
    /// The pool.
    pub pool: PoolId,
    /// First ancestor.
    pub lineage: LayerId,
    /// The layer.
    pub layer: LayerId,
}

impl LayerRef {
    /// Object number `index` of the layer.
    pub const fn object(self, index: u32) -> ObjectId {
        ObjectId { pool: self.pool, lineage: self.lineage, layer: self.layer, index, part: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_request_exactly() {
        let block = 1 << 17;
        let got: Vec<_> = pieces(block as u64 - 512, 1024 + block as u64, block).collect();
        assert_eq!(got.len(), 3);
        assert_eq!((got[0].index, got[0].offset, got[0].len), (0, block - 512, 512));
        assert_eq!((got[1].index, got[1].offset, got[1].len, got[1].request_offset), (1, 0, block, 512));
        assert_eq!((got[2].index, got[2].len), (2, 512));
        assert_eq!(pieces(5, 0, block).count(), 0);
    }

    #[test]
    fn an_image_walks_all_pgs_evenly_and_images_start_apart() {
        let mut seen = [0; 64];
        for index in 0..640 {
            seen[pg_index(LayerId(9), index, 64) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| n == 10));
        let starts: std::collections::BTreeSet<_> = (1..100).map(|l| pg_index(LayerId(l), 0, 64)).collect();
        assert!(starts.len() > 40);
    }

    #[test]
    fn the_parts_of_a_pg_share_its_objects_out() {
        let pool = PoolId(1);
        let whole = PgScope { pg: PgId { pool, index: 3 }, count: 4 };
        let parts: Vec<_> = whole.parts(12).map(|pg| PgScope { pg, count: 12 }).collect();
        assert_eq!(parts.iter().map(|part| part.pg.index).collect::<Vec<_>>(), [3, 7, 11]);
        assert!(parts.iter().all(|part| whole.includes(*part) && !part.includes(whole)));
        assert!(parts.iter().all(|part| part.whole(4) == whole && whole.intersects(*part) && part.intersects(whole)));
        assert!(!parts[0].intersects(parts[1]));
        let other = |index, count| PgScope { pg: PgId { pool, index }, count };
        let shared = |a: PgScope, b: PgScope| (0..60).any(|n| n % a.count == a.pg.index && n % b.count == b.pg.index);
        for (index, count) in (1..=6).flat_map(|count| (0..count).map(move |index| (index, count))) {
            assert_eq!(whole.intersects(other(index, count)), shared(whole, other(index, count)), "{index} of {count}");
        }
        assert!(!whole.intersects(PgScope { pg: PgId { pool: PoolId(2), index: 3 }, count: 4 }));
        assert!(!whole.includes(PgScope { pg: PgId { pool, index: 2 }, count: 12 }));
        let mut inside = 0;
        for (lineage, index) in (1..40).flat_map(|lineage| (0..40).map(move |index| (lineage, index))) {
            let object = LayerRef { pool, lineage: LayerId(lineage), layer: LayerId(lineage) }.object(index);
            let holders = parts.iter().filter(|part| part.contains(&object)).count();
            assert_eq!(holders, usize::from(whole.contains(&object)));
            inside += holders;
        }
        assert!(inside > 300, "{inside} of 1560 objects");
    }

    #[test]
    fn ranges_from_outside_are_judged_without_overflow() {
        assert!(SectorRange::new(0, 256).is_valid(1 << 20));
        assert!(!SectorRange::new(1, 256).is_valid(1 << 20));
        assert!(!SectorRange::new(u32::MAX, u32::MAX).is_valid(1 << 20));
        assert!(!SectorRange::new(0, 0).is_valid(1 << 20));
    }
}
