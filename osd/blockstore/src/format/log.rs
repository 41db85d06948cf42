//! The log's bytes: blocks of 4 KiB and the entries that run through them as one stream.

use buffer::BufferMut;
use cluster_proto::SectorRange;
use cluster_proto::crc::{Crcs, crc32c};
use cluster_proto::ids::{ClientId, LayerId, ObjectId, PoolId, Version};
use cluster_proto::limits::{SECTORS_PER_OBJECT_MAX, WIRE_REQUESTS_MAX};
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
}

impl Kind {
    fn from_u8(n: u8) -> Option<Kind> {
        use Kind::*;
        [Write, Zero, Delete, Collect, Restore, RestoreDeleted, Repair, Relocate, Cancel]
            .into_iter()
            .find(|&kind| kind as u8 == n)
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
    reserved: u8,
    lsn: U64,
    pool: U32,
    index: U32,
    lineage: U64,
    layer: U64,
    version: U64,
    client: U64,
    seq: U64,
    floor_distance: U16,
    extent_count: U16,
    sector_start: U16,
    sector_count: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, zerocopy::Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntryRequest {
    client: U64,
    seq: U64,
    version: U64,
}

const ENTRY_HEAD: usize = size_of::<RawEntry>();
const _: () = assert!(ENTRY_HEAD == 72 && ENTRY_HEAD + 8 + 8 == 88, "a 4 KiB write takes 88 bytes");
const _: () = assert!(ENTRY_BYTES_MAX / 8 <= u16::MAX as usize);
const _: () = assert!(
    ENTRY_HEAD + SECTORS_PER_OBJECT_MAX as usize * 12 + REQUESTS_PER_RESTORE_MAX * size_of::<RawEntryRequest>()
        <= ENTRY_BYTES_MAX
);

/// A change of the store, as the log records it and as the index executes it.
#[derive(Clone, PartialEq, Debug)]
pub struct Change {
    /// What it does.
    pub kind: Kind,
    /// To which object.
    pub object: ObjectId,
    /// The version it makes (Repair, Collect: that it requires). Of a kind about an entry: the other entry's LSN.
    pub version: Version,
    /// Who asked.
    pub origin: Origin,
    /// Sectors concerned; everything for kinds that concern whole objects.
    pub sectors: SectorRange,
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
        Change { kind, object, version, origin, sectors, extents, crcs, requests: Vec::new() }
    }

    /// The LSN that a kind about an entry is about.
    pub fn target(&self) -> Lsn {
        debug_assert!(self.kind.is_about_entry());
        Lsn(self.version.0)
    }

    /// Bytes of an entry.
    pub fn encoded_len(extents: usize, crcs: usize, requests: usize) -> usize {
        ENTRY_HEAD + 8 * extents + size_of::<RawEntryRequest>() * requests + (4 * crcs).next_multiple_of(8)
    }

    /// Appends the entry to `out`.
    pub fn encode(&self, lsn: Lsn, out: &mut Vec<u8>) {
        let start = out.len();
        let len = Self::encoded_len(self.extents.len(), self.crcs.len(), self.requests.len());
        debug_assert!(len <= ENTRY_BYTES_MAX);
        out.extend_from_slice(self.raw_head(lsn, len).as_bytes());
        self.extents.iter().for_each(|e| out.extend_from_slice(&e.raw().to_le_bytes()));
        for r in &self.requests {
            let raw = RawEntryRequest { client: r.client.0.into(), seq: r.seq.into(), version: r.version.0.into() };
            out.extend_from_slice(raw.as_bytes());
        }
        self.crcs.iter().for_each(|crc| out.extend_from_slice(&crc.to_le_bytes()));
        out.resize(start + len, 0);
        let crc = crc32c(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    }

    fn raw_head(&self, lsn: Lsn, len: usize) -> RawEntry {
        RawEntry {
            crc: 0.into(),
            len_words: ((len / 8) as u16).into(),
            kind: self.kind as u8,
            reserved: 0,
            lsn: lsn.0.into(),
            pool: self.object.pool.0.into(),
            index: self.object.index.into(),
            lineage: self.object.lineage.0.into(),
            layer: self.object.layer.0.into(),
            version: self.version.0.into(),
            client: self.origin.client.0.into(),
            seq: self.origin.seq.into(),
            floor_distance: ((self.origin.seq - self.origin.floor) as u16).into(),
            extent_count: (self.extents.len() as u16).into(),
            sector_start: (self.sectors.start as u16).into(),
            sector_count: (self.sectors.count as u16).into(),
        }
    }

    /// Length of the entry that starts with `head`, once enough of it is there to know. `Some(0)` for garbage.
    pub fn len_of(head: &[u8]) -> Option<usize> {
        let (raw, _) = RawEntry::read_from_prefix(head).ok()?;
        let len = usize::from(raw.len_words.get()) * 8;
        Some(if (ENTRY_HEAD..=ENTRY_BYTES_MAX).contains(&len) { len } else { 0 })
    }

    /// Reads an entry of exactly the bytes given. `None` if it is damaged or senseless.
    pub fn decode(bytes: &[u8], data_sectors: u64) -> Option<(Lsn, Change)> {
        let (raw, mut rest) = RawEntry::read_from_prefix(bytes).ok()?;
        if raw.crc.get() != crc_after_crc(bytes) {
            return None;
        }
        let kind = Kind::from_u8(raw.kind)?;
        let extents: Extents = take(&mut rest, usize::from(raw.extent_count.get()))?
            .iter()
            .map(|e: &U64| Extent::from_raw(e.get()))
            .collect();
        if !extent::are_valid(&extents, data_sectors) {
            return None;
        }
        let crc_count = if kind == Kind::Relocate { 0 } else { extent::sector_count(&extents) as usize };
        let request_bytes = rest.len().checked_sub((4 * crc_count).next_multiple_of(8))?;
        let requests: &[RawEntryRequest] = take(&mut rest, request_bytes / size_of::<RawEntryRequest>())?;
        let crcs: &[U32] = take(&mut rest, crc_count)?;
        let sectors = SectorRange::new(raw.sector_start.get().into(), raw.sector_count.get().into());
        (sectors.end() <= SECTORS_PER_OBJECT_MAX).then_some(())?;
        let change = Change {
            kind,
            object: raw.object(),
            version: Version(raw.version.get()),
            origin: raw.origin(),
            sectors,
            extents,
            crcs: crcs.iter().map(|c| c.get()).collect(),
            requests: requests.iter().map(RawEntryRequest::value).collect(),
        };
        change.extents.iter().all(|e| sectors.contains(e.sectors())).then_some((Lsn(raw.lsn.get()), change))
    }
}

impl RawEntry {
    fn object(&self) -> ObjectId {
        ObjectId {
            pool: PoolId(self.pool.get()),
            lineage: LayerId(self.lineage.get()),
            layer: LayerId(self.layer.get()),
            index: self.index.get(),
        }
    }

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

    fn sample() -> Change {
        let object = ObjectId { pool: PoolId(1), lineage: LayerId(2), layer: LayerId(3), index: 4 };
        let origin = Origin { client: ClientId(9), seq: 100, floor: 90 };
        let mut change = Change::new(Kind::Restore, object, Version(77), origin, SectorRange::new(0, 1024));
        change.extents.push(Extent::new(SectorRange::new(3, 2), 60));
        change.extents.push(Extent::new(SectorRange::new(9, 1), 10));
        change.crcs.extend([1, 2, 3]);
        change.requests.push(AppliedRequest { client: ClientId(5), seq: 6, version: Version(7) });
        change
    }

    #[test]
    fn entries_round_trip_and_damage_is_seen() {
        let mut bytes = Vec::new();
        sample().encode(Lsn(12), &mut bytes);
        assert_eq!(bytes.len(), Change::encoded_len(2, 3, 1));
        assert_eq!(Change::len_of(&bytes), Some(bytes.len()));
        assert_eq!(Change::decode(&bytes, 62), Some((Lsn(12), sample())));
        assert_eq!(Change::decode(&bytes, 61), None, "an extent beyond the data area");
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Change::decode(&bytes, 62), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn every_truncation_and_every_resigned_byte_is_survived() {
        let mut bytes = Vec::new();
        sample().encode(Lsn(12), &mut bytes);
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
                    assert!(extent::are_valid(&change.extents, 62));
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
