//! The log's bytes: blocks of 4 KiB and the entries that run through them as one stream.

use buffer::BufferMut;
use cluster_proto::SectorRange;
use cluster_proto::crc::{Crcs, crc32c};
use cluster_proto::ids::{ClientId, LayerId, ObjectId, PoolId, Version};
use cluster_proto::limits::{BLOCK_SIZE_MAX, PATCH_RANGES_MAX, SECTORS_PER_OBJECT_MAX, SHARDS_MAX, WIRE_REQUESTS_MAX};
use cluster_proto::shard::{AppliedRequest, Origin};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::crc_after_crc;
use crate::extent::{self, Extent, Extents};
use crate::geometry::BLOCK;

const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"BYLG");
/// Set in the first block written after a recovery.
const FLAG_GENERATION_START: u32 = 1;
/// `first_entry` of a block in which no entry starts.
const NO_ENTRY: u16 = u16::MAX;
/// Bytes of entries in one block.
pub const PAYLOAD_MAX: usize = BLOCK as usize - size_of::<RawBlock>();
/// Largest entry. Bytes.
pub const ENTRY_BYTES_MAX: usize = 40 << 10;
/// Requests that one restored object brings along at most.
pub const REQUESTS_PER_RESTORE_MAX: usize = WIRE_REQUESTS_MAX;

/// Number of an entry in the order of submission; the first is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, serde::Serialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The one after.
    pub fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }

    /// The one before; of 0, 0.
    pub fn previous(self) -> Lsn {
        Lsn(self.0.saturating_sub(1))
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct RawBlock {
    crc: U32,
    magic: U32,
    store: [u8; 16],
    seq: U64,
    generation: U32,
    payload_len: U16,
    first_entry: U16,
    first_lsn: U64,
    durable_lsn: U64,
    flags: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<RawBlock>() == 64);

/// Validated head of a log block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct BlockHead {
    /// Number of the block; it lies at `seq % log_blocks`.
    pub seq: u64,
    /// Rises with every recovery.
    pub generation: u32,
    /// Bytes of entries.
    pub payload_len: u16,
    /// Where in the payload the first entry starts that starts in this block.
    pub first_entry: Option<u16>,
    /// LSN of that entry; if none, of the next one to be written.
    pub first_lsn: Lsn,
    /// Everything up to here was durable when the block was written.
    pub durable_lsn: Lsn,
    /// First block of a generation: entries of older generations from `first_lsn` on are void.
    pub is_generation_start: bool,
}

impl BlockHead {
    /// Completes a block whose payload is in place behind the head.
    pub fn seal(&self, store: &[u8; 16], block: &mut BufferMut) {
        let raw = RawBlock {
            crc: 0.into(),
            magic: BLOCK_MAGIC.into(),
            store: *store,
            seq: self.seq.into(),
            generation: self.generation.into(),
            payload_len: self.payload_len.into(),
            first_entry: self.first_entry.unwrap_or(NO_ENTRY).into(),
            first_lsn: self.first_lsn.0.into(),
            durable_lsn: self.durable_lsn.0.into(),
            flags: u32::from(self.is_generation_start).into(),
            reserved: 0.into(),
        };
        block[..size_of::<RawBlock>()].copy_from_slice(raw.as_bytes());
        let crc = crc_after_crc(block);
        block[..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a block; `None` for anything that is not an intact log block of this store.
    pub fn decode<'a>(store: &[u8; 16], block: &'a [u8]) -> Option<(BlockHead, &'a [u8])> {
        let (raw, payload) = RawBlock::read_from_prefix(block).ok()?;
        if raw.magic != BLOCK_MAGIC || raw.store != *store || block.len() != BLOCK as usize {
            return None;
        }
        if raw.crc.get() != crc_after_crc(block) {
            return None;
        }
        let first_entry = Some(raw.first_entry.get()).filter(|&n| n != NO_ENTRY);
        let payload = payload.get(..usize::from(raw.payload_len.get()))?;
        if first_entry.is_some_and(|n| usize::from(n) >= payload.len()) {
            return None;
        }
        let head = BlockHead {
            seq: raw.seq.get(),
            generation: raw.generation.get(),
            payload_len: raw.payload_len.get(),
            first_entry,
            first_lsn: Lsn(raw.first_lsn.get()),
            durable_lsn: Lsn(raw.durable_lsn.get()),
            is_generation_start: raw.flags.get() & FLAG_GENERATION_START != 0,
        };
        Some((head, payload))
    }
}

/// What an entry does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[repr(u8)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Sectors written.
    Write = 1,
    /// Sectors made zero.
    Zero = 2,
    /// Object replaced by a tombstone.
    Delete = 3,
    /// Tombstone forgotten.
    Collect = 4,
    /// Object replaced by a copy.
    Restore = 5,
    /// Object replaced by a copy that is a tombstone.
    RestoreDeleted = 6,
    /// Damaged sectors rewritten.
    Repair = 7,
    /// The data of an earlier entry lies elsewhere.
    Relocate = 8,
    /// An earlier entry has no effect.
    Cancel = 9,
    /// Several ranges of sectors replaced.
    Patch = 10,
    /// Sectors written; what they replace is kept.
    Stage = 11,
    /// What a staged change replaced is given up.
    Commit = 12,
    /// What a staged change replaced takes its place again.
    Rollback = 13,
    /// Object forgotten without a tombstone.
    Drop = 14,
}

impl Kind {
    fn from_u8(n: u8) -> Option<Kind> {
        use Kind::*;
        [Write, Zero, Delete, Collect, Restore, RestoreDeleted, Repair]
            .into_iter()
            .chain([Relocate, Cancel, Patch, Stage, Commit, Rollback, Drop])
            .find(|&kind| kind as u8 == n)
    }

    /// Whether the entry is nothing but its head: no origin, no sectors, no data.
    pub fn is_brief(self) -> bool {
        matches!(self, Kind::Collect | Kind::Cancel | Kind::Commit | Kind::Drop)
    }

    /// Whether the entry names another entry instead of an object's version.
    pub fn is_about_entry(self) -> bool {
        matches!(self, Kind::Relocate | Kind::Cancel)
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct RawEntry {
    crc: U32,
    len_words: U16,
    kind: u8,
    part: u8,
    lsn: U64,
    pool: U32,
    index: U32,
    lineage: U64,
    layer: U64,
    version: U64,
}

/// Second part of the head of entries that are not brief.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, zerocopy::Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntryBody {
    client: U64,
    seq: U64,
    /// `seq - floor`; of a patch, which has no origin, its number of ranges.
    floor_distance: U16,
    extent_count: U16,
    sector_start: U16,
    sector_count: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, zerocopy::Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRange {
    start: U16,
    count: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, zerocopy::Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntryRequest {
    client: U64,
    seq: U64,
    version: U64,
}

const ENTRY_BRIEF: usize = size_of::<RawEntry>();
const ENTRY_HEAD: usize = ENTRY_BRIEF + size_of::<RawEntryBody>();
const _: () = assert!(ENTRY_BRIEF == 48, "a commit takes 48 bytes");
const _: () = assert!(ENTRY_HEAD == 72 && ENTRY_HEAD + 8 + 8 == 88, "a 4 KiB write takes 88 bytes");
const _: () = assert!(size_of::<RawRange>() == 4);
const _: () = assert!(ENTRY_BYTES_MAX / 8 <= u16::MAX as usize);
const _: () = assert!(
    ENTRY_HEAD
        + PATCH_RANGES_MAX * size_of::<RawRange>()
        + SECTORS_PER_OBJECT_MAX as usize * 12
        + REQUESTS_PER_RESTORE_MAX * size_of::<RawEntryRequest>()
        <= ENTRY_BYTES_MAX
);

/// A change of the store, as the log records it and as the index executes it.
#[derive(Clone, PartialEq, Debug)]
pub struct Change {
    /// What it does.
    pub kind: Kind,
    /// To which object.
    pub object: ObjectId,
    /// The version it makes (Repair, Collect, Commit, Rollback, Drop: that it requires). Of a kind about an entry: the
    /// other entry's LSN.
    pub version: Version,
    /// Who asked. Of a Rollback: who asked for what is taken back; the floor means nothing then.
    pub origin: Origin,
    /// Sectors concerned; everything for kinds that concern whole objects, and for patches. None for brief kinds.
    pub sectors: SectorRange,
    /// Sectors that a patch replaces, ascending and disjoint. Empty for all other kinds.
    pub ranges: Vec<SectorRange>,
    /// Where data lies.
    pub extents: Extents,
    /// Checksums of the data. None for Relocate, which keeps those of the entry it is about.
    pub crcs: Crcs,
    /// Requests that a restored object brings along.
    pub requests: Vec<AppliedRequest>,
}

impl Change {
    /// A change with no data.
    pub fn new(kind: Kind, object: ObjectId, version: Version, origin: Origin, sectors: SectorRange) -> Change {
        let (extents, crcs) = (Extents::new(), Crcs::new());
        Change { kind, object, version, origin, sectors, ranges: Vec::new(), extents, crcs, requests: Vec::new() }
    }

    /// A change whose entry is nothing but a head.
    pub fn brief(kind: Kind, object: ObjectId, version: Version) -> Change {
        debug_assert!(kind.is_brief());
        Change::new(kind, object, version, Origin::NONE, NOTHING)
    }

    /// The sectors whose content it replaces.
    pub fn replaced(&self) -> &[SectorRange] {
        match self.kind {
            Kind::Patch => &self.ranges,
            Kind::Restore => &[WHOLE],
            _ => std::slice::from_ref(&self.sectors),
        }
    }

    /// The LSN that a kind about an entry is about.
    pub fn target(&self) -> Lsn {
        debug_assert!(self.kind.is_about_entry());
        Lsn(self.version.0)
    }

    /// Bytes of an entry that is not brief.
    pub fn encoded_len(extents: usize, crcs: usize, requests: usize, ranges: usize) -> usize {
        let words = |count: usize| (4 * count).next_multiple_of(8);
        ENTRY_HEAD + 8 * extents + size_of::<RawEntryRequest>() * requests + words(crcs) + words(ranges)
    }

    /// Bytes of a brief entry.
    pub const fn brief_len() -> usize {
        ENTRY_BRIEF
    }

    fn len(&self) -> usize {
        if self.kind.is_brief() {
            return ENTRY_BRIEF;
        }
        Self::encoded_len(self.extents.len(), self.crcs.len(), self.requests.len(), self.ranges.len())
    }

    /// Appends the entry to `out`.
    pub fn encode(&self, lsn: Lsn, out: &mut Vec<u8>) {
        let (start, len) = (out.len(), self.len());
        debug_assert!(len <= ENTRY_BYTES_MAX);
        out.extend_from_slice(self.raw_head(lsn, len).as_bytes());
        if !self.kind.is_brief() {
            self.encode_body(out);
        }
        out.resize(start + len, 0);
        let crc = crc32c(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.raw_body().as_bytes());
        self.extents.iter().for_each(|e| out.extend_from_slice(&e.raw().to_le_bytes()));
        for r in &self.requests {
            let raw = RawEntryRequest { client: r.client.0.into(), seq: r.seq.into(), version: r.version.0.into() };
            out.extend_from_slice(raw.as_bytes());
        }
        for r in &self.ranges {
            let raw = RawRange { start: (r.start as u16).into(), count: (r.count as u16).into() };
            out.extend_from_slice(raw.as_bytes());
        }
        // An odd number of ranges is followed by four bytes of padding.
        out.resize(out.len() + self.ranges.len() % 2 * size_of::<RawRange>(), 0);
        self.crcs.iter().for_each(|crc| out.extend_from_slice(&crc.to_le_bytes()));
    }

    fn raw_head(&self, lsn: Lsn, len: usize) -> RawEntry {
        RawEntry {
            crc: 0.into(),
            len_words: ((len / 8) as u16).into(),
            kind: self.kind as u8,
            part: self.object.part,
            lsn: lsn.0.into(),
            pool: self.object.pool.0.into(),
            index: self.object.index.into(),
            lineage: self.object.lineage.0.into(),
            layer: self.object.layer.0.into(),
            version: self.version.0.into(),
        }
    }

    fn raw_body(&self) -> RawEntryBody {
        let distance = (self.origin.seq - self.origin.floor) as u16;
        debug_assert!(self.kind != Kind::Patch || distance == 0 && self.ranges.len() <= PATCH_RANGES_MAX);
        RawEntryBody {
            client: self.origin.client.0.into(),
            seq: self.origin.seq.into(),
            floor_distance: (distance + self.ranges.len() as u16).into(),
            extent_count: (self.extents.len() as u16).into(),
            sector_start: (self.sectors.start as u16).into(),
            sector_count: (self.sectors.count as u16).into(),
        }
    }

    /// Length of the entry that starts with `head`, once enough of it is there to know. `Some(0)` for garbage.
    pub fn len_of(head: &[u8]) -> Option<usize> {
        let (raw, _) = RawEntry::read_from_prefix(head).ok()?;
        let len = usize::from(raw.len_words.get()) * 8;
        Some(if (ENTRY_BRIEF..=ENTRY_BYTES_MAX).contains(&len) { len } else { 0 })
    }

    /// Reads an entry of exactly the bytes given. `None` if it is damaged or senseless.
    pub fn decode(bytes: &[u8], data_sectors: u64) -> Option<(Lsn, Change)> {
        let (raw, rest) = RawEntry::read_from_prefix(bytes).ok()?;
        if raw.crc.get() != crc_after_crc(bytes) || raw.part >= SHARDS_MAX as u8 {
            return None;
        }
        let kind = Kind::from_u8(raw.kind)?;
        let mut change = Change::new(kind, raw.object(), Version(raw.version.get()), Origin::NONE, NOTHING);
        if kind.is_brief() {
            rest.is_empty().then_some(())?;
        } else {
            change.decode_body(rest, data_sectors)?;
        }
        Some((Lsn(raw.lsn.get()), change))
    }

    fn decode_body(&mut self, rest: &[u8], data_sectors: u64) -> Option<()> {
        let mut rest = rest;
        let body = take::<RawEntryBody>(&mut rest, 1)?[0];
        let extents: &[U64] = take(&mut rest, usize::from(body.extent_count.get()))?;
        self.extents = extents.iter().map(|e| Extent::from_raw(e.get())).collect();
        extent::are_valid(&self.extents, data_sectors).then_some(())?;
        let is_patch = self.kind == Kind::Patch;
        let range_count = if is_patch { usize::from(body.floor_distance.get()) } else { 0 };
        let crc_count = if self.kind == Kind::Relocate { 0 } else { extent::sector_count(&self.extents) as usize };
        let behind = (4 * crc_count).next_multiple_of(8) + (4 * range_count).next_multiple_of(8);
        let request_bytes = rest.len().checked_sub(behind)?;
        let requests: &[RawEntryRequest] = take(&mut rest, request_bytes / size_of::<RawEntryRequest>())?;
        self.requests = requests.iter().map(RawEntryRequest::value).collect();
        let ranges: &[RawRange] = take(&mut rest, range_count)?;
        self.ranges = ranges.iter().map(|r| SectorRange::new(r.start.get().into(), r.count.get().into())).collect();
        take::<RawRange>(&mut rest, range_count % 2)?;
        let crcs: &[U32] = take(&mut rest, crc_count)?;
        self.crcs = crcs.iter().map(|c| c.get()).collect();
        self.sectors = SectorRange::new(body.sector_start.get().into(), body.sector_count.get().into());
        self.origin = if is_patch { Origin::NONE } else { body.origin() };
        self.is_sensible().then_some(())
    }

    /// Whether sectors lie in the largest object, and extents in the sectors.
    fn is_sensible(&self) -> bool {
        let ranges = are_ranges_valid(&self.ranges) && self.ranges.len() <= PATCH_RANGES_MAX;
        let inside = |e: &Extent| match self.kind {
            Kind::Patch => covers(&self.ranges, e.sectors()),
            _ => self.sectors.contains(e.sectors()),
        };
        ranges && self.sectors.end() <= SECTORS_PER_OBJECT_MAX && self.extents.iter().all(inside)
    }
}

/// Sectors of a change that has none.
const NOTHING: SectorRange = SectorRange::new(0, 0);
/// Sectors of a change that concerns the whole object.
pub const WHOLE: SectorRange = SectorRange::new(0, SECTORS_PER_OBJECT_MAX);

/// Whether ranges ascend, are disjoint, not empty and lie inside the largest object.
pub fn are_ranges_valid(ranges: &[SectorRange]) -> bool {
    let mut end = 0;
    ranges.iter().all(|r| {
        let fits = r.is_valid(BLOCK_SIZE_MAX) && r.start >= end;
        end = if fits { r.end() } else { u32::MAX };
        fits
    })
}

/// Whether ascending ranges together hold all of `sectors`, which may go on from one to its neighbour.
pub fn covers(ranges: &[SectorRange], sectors: SectorRange) -> bool {
    let mut at = sectors.start;
    for range in ranges {
        if range.start <= at && at < range.end() {
            at = range.end();
        }
    }
    at >= sectors.end()
}

impl RawEntry {
    fn object(&self) -> ObjectId {
        ObjectId {
            pool: PoolId(self.pool.get()),
            lineage: LayerId(self.lineage.get()),
            layer: LayerId(self.layer.get()),
            index: self.index.get(),
            part: self.part,
        }
    }
}

impl RawEntryBody {
    fn origin(&self) -> Origin {
        let seq = self.seq.get();
        let floor = seq.saturating_sub(self.floor_distance.get().into());
        Origin { client: ClientId(self.client.get()), seq, floor }
    }
}

impl RawEntryRequest {
    fn value(&self) -> AppliedRequest {
        AppliedRequest {
            client: ClientId(self.client.get()),
            seq: self.seq.get(),
            version: Version(self.version.get()),
        }
    }
}

/// Takes `count` structures off the front of `bytes`.
pub(super) fn take<'a, T>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [T]>
where
    T: FromBytes + Immutable + KnownLayout + zerocopy::Unaligned,
{
    let (items, rest) = <[T]>::ref_from_prefix_with_elems(bytes, count).ok()?;
    *bytes = rest;
    Some(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: ObjectId = ObjectId { pool: PoolId(1), lineage: LayerId(2), layer: LayerId(3), index: 4, part: 5 };

    fn sample() -> Change {
        let origin = Origin { client: ClientId(9), seq: 100, floor: 90 };
        let mut change = Change::new(Kind::Restore, OBJECT, Version(77), origin, SectorRange::new(0, 1024));
        change.extents.push(Extent::new(SectorRange::new(3, 2), 60));
        change.extents.push(Extent::new(SectorRange::new(9, 1), 10));
        change.crcs.extend([1, 2, 3]);
        change.requests.push(AppliedRequest { client: ClientId(5), seq: 6, version: Version(7) });
        change
    }

    fn patch() -> Change {
        let ranges = vec![SectorRange::new(3, 1), SectorRange::new(4, 3), SectorRange::new(9, 2)];
        Change { kind: Kind::Patch, origin: Origin::NONE, ranges, ..sample() }
    }

    #[test]
    fn entries_round_trip_and_damage_is_seen() {
        for (sample, ranges) in [(sample(), 0), (patch(), 3)] {
            let mut bytes = Vec::new();
            sample.encode(Lsn(12), &mut bytes);
            assert_eq!(bytes.len(), Change::encoded_len(2, 3, 1, ranges));
            assert_eq!(Change::len_of(&bytes), Some(bytes.len()));
            assert_eq!(Change::decode(&bytes, 62), Some((Lsn(12), sample)));
            assert_eq!(Change::decode(&bytes, 61), None, "an extent beyond the data area");
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Change::decode(&bytes, 62), None, "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn brief_entries_are_brief() {
        for kind in [Kind::Commit, Kind::Drop, Kind::Collect, Kind::Cancel] {
            let change = Change::brief(kind, OBJECT, Version(77));
            let mut bytes = Vec::new();
            change.encode(Lsn(12), &mut bytes);
            assert_eq!((bytes.len(), Change::len_of(&bytes)), (48, Some(48)));
            assert_eq!(Change::decode(&bytes, 62), Some((Lsn(12), change)));
        }
    }

    #[test]
    fn a_patch_whose_data_lies_elsewhere_is_senseless() {
        for ranges in [
            vec![SectorRange::new(3, 2)],
            vec![SectorRange::new(9, 1), SectorRange::new(3, 2)],
            vec![SectorRange::new(3, 2), SectorRange::new(4, 6)],
            vec![SectorRange::new(3, 2), SectorRange::new(9, 1), SectorRange::new(1023, 2)],
        ] {
            let mut bytes = Vec::new();
            Change { ranges, ..patch() }.encode(Lsn(12), &mut bytes);
            assert_eq!(Change::decode(&bytes, 62), None);
        }
    }

    #[test]
    fn every_truncation_and_every_resigned_byte_is_survived() {
        for sample in [sample(), patch(), Change::brief(Kind::Commit, OBJECT, Version(1))] {
            let mut bytes = Vec::new();
            sample.encode(Lsn(12), &mut bytes);
            for len in 0..bytes.len() {
                _ = Change::decode(&bytes[..len], 62);
                _ = Change::len_of(&bytes[..len]);
            }
            for at in 4..bytes.len() {
                for value in [0, 1, 127, 255] {
                    let mut bad = bytes.clone();
                    bad[at] = value;
                    let crc = crc_after_crc(&bad);
                    bad[..4].copy_from_slice(&crc.to_le_bytes());
                    if let Some((_, change)) = Change::decode(&bad, 62) {
                        assert!(extent::are_valid(&change.extents, 62) && are_ranges_valid(&change.ranges));
                    }
                }
            }
        }
    }

    #[test]
    fn a_block_is_ours_only_if_store_and_checksum_say_so() {
        let head = BlockHead {
            seq: 5,
            generation: 2,
            payload_len: 88,
            first_entry: Some(8),
            first_lsn: Lsn(40),
            durable_lsn: Lsn(39),
            is_generation_start: false,
        };
        let mut block = BufferMut::zeroed(BLOCK as usize);
        head.seal(&[7; 16], &mut block);
        let (got, payload) = BlockHead::decode(&[7; 16], &block).expect("intact");
        assert_eq!((got, payload.len()), (head, 88));
        assert!(BlockHead::decode(&[8; 16], &block).is_none());
        block[4000] ^= 1;
        assert!(BlockHead::decode(&[7; 16], &block).is_none());
    }
}
