//! Where sectors of an object lie in the data area: packed extents and the editing of extent lists.

use cluster_proto::SectorRange;
use cluster_proto::limits::SECTORS_PER_OBJECT_MAX;
use smallvec::SmallVec;

const SECTOR_BITS: u32 = 10;
const SECTOR_MASK: u64 = (1 << SECTOR_BITS) - 1;

const _: () = assert!(SECTORS_PER_OBJECT_MAX == 1 << SECTOR_BITS);

/// Sectors of the data area, `start .. start + count`. Sector 0 is the first of the data area.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Run {
    /// First sector of the data area.
    pub start: u64,
    /// Number of sectors, at least 1.
    pub count: u32,
}

impl Run {
    /// One past the last sector.
    pub fn end(self) -> u64 {
        self.start + u64::from(self.count)
    }
}

/// A few runs, inline for small writes.
pub type Runs = SmallVec<[Run; 2]>;

/// Sectors of an object that lie together in the data area, in one word, in memory as on disk:
/// bits 0-9 count - 1, bits 10-19 first sector of the object, bits 20-63 first sector of the data area (64 PiB).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Extent(u64);

impl Extent {
    /// `sectors` of the object, stored from sector `at` of the data area.
    pub fn new(sectors: SectorRange, at: u64) -> Extent {
        debug_assert!(sectors.count > 0 && sectors.end() <= SECTORS_PER_OBJECT_MAX && at < 1 << 44);
        Extent(at << (2 * SECTOR_BITS) | u64::from(sectors.start) << SECTOR_BITS | u64::from(sectors.count - 1))
    }

    /// From its stored form; any word decodes, [`Extent::is_valid`] judges it.
    pub const fn from_raw(raw: u64) -> Extent {
        Extent(raw)
    }

    /// The stored form.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Sectors of the object.
    pub const fn sectors(self) -> SectorRange {
        SectorRange::new((self.0 >> SECTOR_BITS & SECTOR_MASK) as u32, (self.0 & SECTOR_MASK) as u32 + 1)
    }

    /// Sectors of the data area.
    pub const fn run(self) -> Run {
        Run { start: self.0 >> (2 * SECTOR_BITS), count: (self.0 & SECTOR_MASK) as u32 + 1 }
    }

    /// Whether it lies inside the largest object and inside a data area of `data_sectors`.
    pub fn is_valid(self, data_sectors: u64) -> bool {
        self.sectors().end() <= SECTORS_PER_OBJECT_MAX && self.run().end() <= data_sectors
    }

    /// The part of it that lies in `range`.
    pub fn part(self, range: SectorRange) -> Option<Extent> {
        let own = self.sectors();
        let start = own.start.max(range.start);
        let end = own.end().min(range.end());
        (start < end)
            .then(|| Extent::new(SectorRange::new(start, end - start), self.run().start + u64::from(start - own.start)))
    }

    /// Whether `next` goes on where this ends, in the object and on the device.
    pub fn is_followed_by(self, next: Extent) -> bool {
        self.sectors().end() == next.sectors().start && self.run().end() == next.run().start
    }

    fn joined(self, next: Extent) -> Extent {
        let own = self.sectors();
        Extent::new(SectorRange::new(own.start, own.count + next.sectors().count), self.run().start)
    }
}

impl std::fmt::Debug for Extent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (s, r) = (self.sectors(), self.run());
        write!(f, "{}+{}@{}", s.start, s.count, r.start)
    }
}

/// Extents of a log entry, inline for small writes.
pub type Extents = SmallVec<[Extent; 2]>;

/// Whether extents ascend, are disjoint and lie inside the data area.
pub fn are_valid(extents: &[Extent], data_sectors: u64) -> bool {
    let mut end = 0;
    extents.iter().all(|e| {
        let fits = e.sectors().start >= end && e.is_valid(data_sectors);
        end = e.sectors().end();
        fits
    })
}

/// Sectors that extents hold.
pub fn sector_count(extents: &[Extent]) -> u32 {
    extents.iter().map(|e| e.sectors().count).sum()
}

/// About where `sector` is among `count` extents that hold `held` sectors: exactly there when none is missing and all
/// extents are of equal length, as in an object that broke up into single sectors.
pub fn guess(count: usize, held: usize, sector: u32) -> usize {
    (sector as usize * count / held.max(1)).min(count.saturating_sub(1))
}

/// Where `sector` of an object is among its `count` ascending extents, which hold `held` sectors: the number of the first extent that ends
/// behind it, and how many sectors those before it hold. Looks from the guess outwards, because memory elsewhere is far.
pub fn seek(count: usize, held: usize, sector: u32, extent: impl Fn(usize) -> SectorRange) -> (usize, usize) {
    let is_behind = |i: usize| extent(i).end() > sector;
    let (mut from, mut to, mut step) = (0, count, 1);
    let first = guess(count, held, sector);
    if count > 0 && is_behind(first) {
        to = first;
        while from < to {
            let probe = to.saturating_sub(step);
            if !is_behind(probe) {
                from = probe + 1;
                break;
            }
            (to, step) = (probe, 2 * step);
        }
    } else if count > 0 {
        from = first + 1;
        while from + step <= to {
            let probe = from + step - 1;
            if is_behind(probe) {
                to = probe;
                break;
            }
            (from, step) = (probe + 1, 2 * step);
        }
    }
    while from < to {
        let middle = from.midpoint(to);
        if is_behind(middle) { to = middle } else { from = middle + 1 }
    }
    let is_dense = count > 0 && extent(count - 1).end() as usize == held;
    let before = match from {
        0 => 0,
        // Without holes, as many as there are sectors.
        n if is_dense => extent(n - 1).end() as usize,
        n => (0..n).map(|i| extent(i).count as usize).sum(),
    };
    (from, before)
}

/// An object's extents with one checksum per sector held: the editable form of what the arena packs.
#[derive(Default, Debug, Clone, PartialEq)]
pub struct ExtentList {
    /// Ascending, disjoint.
    pub extents: Vec<Extent>,
    /// One per sector, in the order of `extents`.
    pub crcs: Vec<u32>,
}

impl ExtentList {
    /// Forgets everything, keeping memory.
    pub fn clear(&mut self) {
        self.extents.clear();
        self.crcs.clear();
    }

    /// Appends an extent that lies behind all others, joining it to the last one where possible.
    pub fn push(&mut self, extent: Extent, crcs: &[u32]) {
        debug_assert_eq!(extent.sectors().count as usize, crcs.len());
        match self.extents.last_mut() {
            Some(last) if last.is_followed_by(extent) => *last = last.joined(extent),
            _ => self.extents.push(extent),
        }
        self.crcs.extend_from_slice(crcs);
    }

    /// The extents that `range` touches, and how many sectors lie before them.
    fn touched(&self, range: SectorRange) -> (&[Extent], usize) {
        let (first, before) = seek(self.extents.len(), self.crcs.len(), range.start, |i| self.extents[i].sectors());
        let rest = &self.extents[first..];
        (&rest[..rest.partition_point(|e| e.sectors().start < range.end())], before)
    }

    /// Appends the parts of `old` that lie in `range`. Only the first and the last may be cut, and only the first may join.
    fn push_parts(&mut self, old: &ExtentList, range: SectorRange) {
        let (touched, mut at) = old.touched(range);
        let (cut, whole) = touched.split_at(touched.len().min(1));
        let (whole, last) = whole.split_at(whole.len().saturating_sub(1));
        for extent in cut {
            at += self.push_part(old, *extent, at, range);
        }
        let count = sector_count(whole) as usize;
        self.extents.extend_from_slice(whole);
        self.crcs.extend_from_slice(&old.crcs[at..at + count]);
        for extent in last {
            self.push_part(old, *extent, at + count, range);
        }
    }

    /// Appends the part of an extent of `old` that lies in `range`. Its checksums begin at `at`; returns how many they are.
    fn push_part(&mut self, old: &ExtentList, extent: Extent, at: usize, range: SectorRange) -> usize {
        if let Some(part) = extent.part(range) {
            let first = at + (part.sectors().start - extent.sectors().start) as usize;
            self.push(part, &old.crcs[first..first + part.sectors().count as usize]);
        }
        extent.sectors().count as usize
    }

    /// Makes this the content of `old` with `ranges` (ascending, disjoint) replaced by `new`, whose extents lie in them;
    /// what they do not cover becomes a hole. Returns the runs that are no longer used.
    pub fn replaced(&mut self, old: &ExtentList, ranges: &[SectorRange], new: &[Extent], crcs: &[u32]) -> Runs {
        self.clear();
        let mut freed = Runs::new();
        let mut new = new.iter().copied().peekable();
        let (mut kept, mut at) = (0, 0);
        for range in ranges {
            self.push_parts(old, SectorRange::new(kept, range.start.saturating_sub(kept)));
            while let Some(extent) = new.next_if(|e| e.sectors().start < range.end()) {
                let count = extent.sectors().count as usize;
                self.push(extent, &crcs[at..at + count]);
                at += count;
            }
            freed.extend(old.touched(*range).0.iter().filter_map(|e| e.part(*range)).map(Extent::run));
            kept = range.end();
        }
        self.push_parts(old, SectorRange::new(kept, SECTORS_PER_OBJECT_MAX - kept));
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u32, count: u32, at: u64) -> Extent {
        Extent::new(SectorRange::new(start, count), at)
    }

    #[test]
    fn packing_keeps_every_field() {
        let e = extent(1023, 1, (1 << 44) - 1);
        assert_eq!(e.sectors(), SectorRange::new(1023, 1));
        assert_eq!(e.run(), Run { start: (1 << 44) - 1, count: 1 });
        let whole = extent(0, 1024, 5);
        assert_eq!((whole.sectors().count, whole.run().end()), (1024, 1029));
        assert!(!Extent::from_raw(u64::MAX).is_valid(u64::MAX), "sectors beyond the object");
        assert!(!whole.is_valid(1028));
    }

    #[test]
    fn replacing_the_middle_splits_and_frees() {
        let mut old = ExtentList::default();
        old.push(extent(0, 8, 100), &[0, 1, 2, 3, 4, 5, 6, 7]);
        let mut new = ExtentList::default();
        let freed = new.replaced(&old, &[SectorRange::new(2, 3)], &[extent(2, 3, 50)], &[72, 73, 74]);
        assert_eq!(new.extents, [extent(0, 2, 100), extent(2, 3, 50), extent(5, 3, 105)]);
        assert_eq!(new.crcs, [0, 1, 72, 73, 74, 5, 6, 7]);
        assert_eq!(freed.as_slice(), [Run { start: 102, count: 3 }]);
    }

    #[test]
    fn neighbours_join_and_punches_leave_holes() {
        let mut list = ExtentList::default();
        list.push(extent(4, 2, 10), &[1, 2]);
        list.push(extent(6, 2, 12), &[3, 4]);
        assert_eq!(list.extents, [extent(4, 4, 10)]);
        let mut punched = ExtentList::default();
        let freed = punched.replaced(&list, &[SectorRange::new(0, 5)], &[], &[]);
        assert_eq!(punched.extents, [extent(5, 3, 11)]);
        assert_eq!((punched.crcs.as_slice(), freed[0].start), ([2, 3, 4].as_slice(), 10));
    }

    #[test]
    fn a_sector_is_found_wherever_the_guess_is() {
        let mut seed = 1u64;
        let mut random = |below: u32| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as u32 % below
        };
        for round in 0..400 {
            let (mut extents, mut at) = (Vec::new(), 0);
            for _ in 0..random(60) {
                at += if round % 3 == 0 { 0 } else { random(4) * random(20) };
                let len = if round % 2 == 0 { 1 } else { 1 + random(30) };
                extents.push(SectorRange::new(at, len));
                at += len;
            }
            let held: u32 = extents.iter().map(|e| e.count).sum();
            for sector in 0..at + 3 {
                let number = extents.iter().take_while(|e| e.end() <= sector).count();
                let before: u32 = extents[..number].iter().map(|e| e.count).sum();
                let found = seek(extents.len(), held as usize, sector, |i| extents[i]);
                assert_eq!(found, (number, before as usize), "{sector} in {extents:?}");
            }
        }
    }

    #[test]
    fn several_ranges_are_replaced_at_once() {
        let mut old = ExtentList::default();
        old.push(extent(0, 10, 100), &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let mut new = ExtentList::default();
        let ranges = [SectorRange::new(1, 1), SectorRange::new(2, 2), SectorRange::new(7, 5)];
        // The first extent goes on from one range to the next; the last leaves holes around it.
        let freed = new.replaced(&old, &ranges, &[extent(1, 2, 50), extent(8, 1, 60)], &[71, 72, 78]);
        assert_eq!(new.extents, [extent(0, 1, 100), extent(1, 2, 50), extent(4, 3, 104), extent(8, 1, 60)]);
        assert_eq!(new.crcs, [0, 71, 72, 4, 5, 6, 78]);
        assert_eq!(freed.iter().map(|r| (r.start, r.count)).collect::<Vec<_>>(), [(101, 1), (102, 2), (107, 3)]);
        let freed = new.replaced(&old, &[], &[], &[]);
        assert!(new == old && freed.is_empty());
    }
}
