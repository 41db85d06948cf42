//! A partition's checkpoint: a header block in one of two slots, and content in segments that the header lists.

use cluster_proto::SectorRange;
use cluster_proto::ids::{ClientId, LayerId, ObjectId, PoolId, Version};
use cluster_proto::layout::LayerRef;
use cluster_proto::limits::{SECTORS_PER_OBJECT_MAX, SHARDS_MAX};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::crc_after_crc;
use super::log::{Lsn, take};
use crate::extent::Extent;
use crate::geometry::BLOCK;
use crate::index::Undo;
use crate::layer::LayerPart;

const MAGIC: u32 = u32::from_le_bytes(*b"BYCP");
/// Segments that one checkpoint can have.
pub const SEGMENTS_MAX: usize = (BLOCK as usize - size_of::<RawHeader>()) / 4;

/// Accounted bytes of a written sector: a checksum and, at worst, an extent of its own.
pub const SECTOR_BYTES_MAX: u64 = 4 + 8;
/// Accounted bytes of an object: its record, padding, and a layer of its own.
pub const OBJECT_BYTES_MAX: u64 = (size_of::<RawObject>() + 4 + size_of::<RawLayer>()) as u64;
/// Accounted bytes of what is kept of a staged change, without its sectors: record and padding.
pub const UNDO_BYTES_MAX: u64 = (size_of::<RawUndo>() + 4) as u64;
/// Accounted bytes of a remembered request: its record and a layer of its own.
pub const REQUEST_BYTES_MAX: u64 = (size_of::<RawRequest>() + size_of::<RawLayer>()) as u64;
/// Accounted bytes of a remembered client.
pub const CLIENT_BYTES: u64 = size_of::<RawClient>() as u64;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    crc: U32,
    magic: U32,
    store: [u8; 16],
    serial: U64,
    lsn: U64,
    replay_seq: U64,
    content_len: U64,
    content_crc: U32,
    generation: U32,
    pair: U32,
    segment_count: U32,
    reserved: [u8; 24],
}

const _: () = assert!(size_of::<RawHeader>() == 96 && SEGMENTS_MAX == 1000);

/// Validated header of a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct SlotHeader {
    /// The partition; the number after the last is the remembered requests.
    pub pair: u32,
    /// Counts the checkpoints of the partition; the slot is `serial % 2`.
    pub serial: u64,
    /// The content is the state after this entry.
    pub lsn: Lsn,
    /// Log block in which the entry after `lsn` starts or will start.
    pub replay_seq: u64,
    /// Generation of the log at the time: older blocks at `replay_seq` or behind are stale.
    pub generation: u32,
    /// Bytes of content.
    pub content_len: u64,
    /// CRC-32C of the content.
    pub content_crc: u32,
    /// Where the content lies, in order.
    pub segments: Vec<u32>,
}

impl SlotHeader {
    /// The header of an empty partition of a new store.
    pub fn empty(pair: u32) -> SlotHeader {
        let segments = Vec::new();
        let (serial, lsn) = (0, Lsn(0));
        SlotHeader { pair, serial, lsn, replay_seq: 0, generation: 0, content_len: 0, content_crc: 0, segments }
    }

    /// The block to be written.
    pub fn encode(&self, store: &[u8; 16]) -> [u8; BLOCK as usize] {
        debug_assert!(self.segments.len() <= SEGMENTS_MAX);
        let raw = RawHeader {
            crc: 0.into(),
            magic: MAGIC.into(),
            store: *store,
            serial: self.serial.into(),
            lsn: self.lsn.0.into(),
            replay_seq: self.replay_seq.into(),
            content_len: self.content_len.into(),
            content_crc: self.content_crc.into(),
            generation: self.generation.into(),
            pair: self.pair.into(),
            segment_count: (self.segments.len() as u32).into(),
            reserved: [0; 24],
        };
        let mut block = [0; BLOCK as usize];
        block[..size_of::<RawHeader>()].copy_from_slice(raw.as_bytes());
        for (bytes, segment) in block[size_of::<RawHeader>()..].chunks_exact_mut(4).zip(&self.segments) {
            bytes.copy_from_slice(&segment.to_le_bytes());
        }
        let crc = crc_after_crc(&block);
        block[..4].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Reads a header; `None` for anything that is not an intact header of this store, this pair and this slot.
    pub fn decode(block: &[u8], store: &[u8; 16], pair: u32, slot: u64, segment_bytes: u32) -> Option<SlotHeader> {
        let (raw, mut rest) = RawHeader::read_from_prefix(block).ok()?;
        if raw.magic != MAGIC || raw.store != *store || raw.crc.get() != crc_after_crc(block) {
            return None;
        }
        if raw.pair != pair || raw.serial.get() % 2 != slot {
            return None;
        }
        let segments: &[U32] = take(&mut rest, raw.segment_count.get() as usize)?;
        if raw.content_len.get() > segments.len() as u64 * u64::from(segment_bytes) {
            return None;
        }
        Some(SlotHeader {
            pair,
            serial: raw.serial.get(),
            lsn: Lsn(raw.lsn.get()),
            replay_seq: raw.replay_seq.get(),
            generation: raw.generation.get(),
            content_len: raw.content_len.get(),
            content_crc: raw.content_crc.get(),
            segments: segments.iter().map(|s| s.get()).collect(),
        })
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, zerocopy::Unaligned, Clone, Copy)]
#[repr(C)]
struct RawContent {
    layers: U32,
    objects: U32,
    clients: U32,
    requests: U32,
    undos: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, zerocopy::Unaligned, Clone, Copy)]
#[repr(C)]
struct RawLayer {
    pool: U32,
    part: U32,
    lineage: U64,
    layer: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, zerocopy::Unaligned, Clone, Copy)]
#[repr(C)]
struct RawObject {
    layer: U32,
    index: U32,
    version: U64,
    extents: U16,
    crcs: U16,
    deleted: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, zerocopy::Unaligned, Clone, Copy)]
#[repr(C)]
struct RawUndo {
    layer: U32,
    index: U32,
    version: U64,
    client: U64,
    seq: U64,
    before: U32,
    extents: U16,
    crcs: U16,
    sector_start: U16,
    sector_count: U16,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, zerocopy::Unaligned, Clone, Copy)]
#[repr(C)]
struct RawClient {
    client: U64,
    floor: U64,
    last_lsn: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, zerocopy::Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRequest {
    client: U64,
    seq: U64,
    version: U64,
    layer: U32,
    index: U32,
}

const _: () = {
    assert!(size_of::<RawContent>() == 24 && size_of::<RawLayer>() == 24 && size_of::<RawObject>() == 24);
    assert!(size_of::<RawClient>() == 24 && size_of::<RawRequest>() == 32 && size_of::<RawUndo>() == 48);
};

/// Object of a checkpoint, borrowed from its bytes. Judged by the index when it takes it in.
pub struct StoredObject<'a> {
    /// The object.
    pub object: ObjectId,
    /// Its version.
    pub version: Version,
    /// Whether it is a tombstone.
    pub deleted: bool,
    /// Packed extents.
    pub extents: &'a [U64],
    /// Checksums.
    pub crcs: &'a [U32],
}

/// What an object was before its newest change was staged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Before {
    /// It did not exist.
    Absent = 0,
    /// A tombstone.
    Deleted = 1,
    /// It held data, or at least could.
    Live = 2,
}

/// What a staged change replaced, as a checkpoint keeps it. Judged by the index when it takes it in.
pub struct StoredUndo<'a> {
    /// The object; it comes before this.
    pub object: ObjectId,
    /// What it was.
    pub before: Before,
    /// The version it had.
    pub version: Version,
    /// Who asked for the staged change.
    pub client: ClientId,
    /// Under which number.
    pub seq: u64,
    /// The sectors of the change; may be empty.
    pub sectors: SectorRange,
    /// Packed extents of what was replaced.
    pub extents: &'a [U64],
    /// Checksums of it.
    pub crcs: &'a [U32],
}

/// A remembered client of a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredClient {
    /// The client.
    pub client: ClientId,
    /// Its floor.
    pub floor: u64,
    /// Entry of its last request.
    pub last_lsn: Lsn,
}

/// A remembered request of a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredRequest {
    /// The client.
    pub client: ClientId,
    /// Its number.
    pub seq: u64,
    /// The version it made.
    pub version: Version,
    /// The object it changed.
    pub object: ObjectId,
}

/// Writes content: layers come first on disk, so they are collected while objects are appended.
#[derive(Default)]
pub struct ContentWriter {
    layers: Vec<u8>,
    body: Vec<u8>,
    counts: [u32; 5],
}

impl ContentWriter {
    /// Adds a layer and returns its number.
    pub fn layer(&mut self, own: LayerPart) -> u32 {
        let raw = RawLayer {
            pool: own.layer.pool.0.into(),
            part: u32::from(own.part).into(),
            lineage: own.layer.lineage.0.into(),
            layer: own.layer.layer.0.into(),
        };
        self.layers.extend_from_slice(raw.as_bytes());
        self.counts[0] += 1;
        self.counts[0] - 1
    }

    /// Adds an object. `words` are its extents (two words each, low first) and checksums, as the arena holds them.
    pub fn object(&mut self, layer: u32, index: u32, version: Version, deleted: bool, extents: u16, words: &[u32]) {
        let crcs = words.len() as u16 - 2 * extents;
        let raw = RawObject {
            layer: layer.into(),
            index: index.into(),
            version: version.0.into(),
            extents: extents.into(),
            crcs: crcs.into(),
            deleted: u32::from(deleted).into(),
        };
        self.body.extend_from_slice(raw.as_bytes());
        words.iter().for_each(|w| self.body.extend_from_slice(&w.to_le_bytes()));
        self.body.resize(self.body.len().next_multiple_of(8), 0);
        self.counts[1] += 1;
    }

    /// Adds what a staged change of an object added before replaced; `layer` is the object's.
    pub fn undo(&mut self, layer: u32, undo: &Undo, index: u32) {
        let raw = RawUndo {
            layer: layer.into(),
            index: index.into(),
            version: undo.version.0.into(),
            client: undo.client.0.into(),
            seq: undo.seq.into(),
            before: (undo.before as u32).into(),
            extents: (undo.extents.len() as u16).into(),
            crcs: (undo.crcs.len() as u16).into(),
            sector_start: (undo.sectors.start as u16).into(),
            sector_count: (undo.sectors.count as u16).into(),
            reserved: 0.into(),
        };
        self.body.extend_from_slice(raw.as_bytes());
        undo.extents.iter().for_each(|e| self.body.extend_from_slice(&e.raw().to_le_bytes()));
        undo.crcs.iter().for_each(|crc| self.body.extend_from_slice(&crc.to_le_bytes()));
        self.body.resize(self.body.len().next_multiple_of(8), 0);
        self.counts[4] += 1;
    }

    /// Adds a client.
    pub fn client(&mut self, c: StoredClient) {
        let raw = RawClient { client: c.client.0.into(), floor: c.floor.into(), last_lsn: c.last_lsn.0.into() };
        self.body.extend_from_slice(raw.as_bytes());
        self.counts[2] += 1;
    }

    /// Adds a request, to a layer added before.
    pub fn request(&mut self, layer: u32, r: StoredRequest) {
        let raw = RawRequest {
            client: r.client.0.into(),
            seq: r.seq.into(),
            version: r.version.0.into(),
            layer: layer.into(),
            index: r.object.index.into(),
        };
        self.body.extend_from_slice(raw.as_bytes());
        self.counts[3] += 1;
    }

    /// The content; empty if nothing was added.
    pub fn finish(self) -> Vec<u8> {
        if self.counts == [0; 5] {
            return Vec::new();
        }
        let [layers, objects, clients, requests, undos] = self.counts.map(U32::new);
        let head = RawContent { layers, objects, clients, requests, undos, reserved: 0.into() };
        let mut out = Vec::with_capacity(size_of::<RawContent>() + self.layers.len() + self.body.len());
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(&self.layers);
        out.extend_from_slice(&self.body);
        out
    }
}

/// Reads content, item by item, in the order it was written. Every step may find the bytes senseless.
pub struct ContentReader<'a> {
    layers: Vec<LayerPart>,
    rest: &'a [u8],
    objects: u32,
    undos: u32,
    clients: u32,
    requests: u32,
}

impl<'a> ContentReader<'a> {
    /// Starts reading.
    pub fn new(content: &'a [u8]) -> Option<ContentReader<'a>> {
        let mut rest = content;
        if rest.is_empty() {
            return Some(ContentReader { layers: Vec::new(), rest, objects: 0, undos: 0, clients: 0, requests: 0 });
        }
        let head: &[RawContent] = take(&mut rest, 1)?;
        let layers: &[RawLayer] = take(&mut rest, head[0].layers.get() as usize)?;
        Some(ContentReader {
            layers: layers.iter().map(RawLayer::value).collect::<Option<_>>()?,
            rest,
            objects: head[0].objects.get(),
            undos: head[0].undos.get(),
            clients: head[0].clients.get(),
            requests: head[0].requests.get(),
        })
    }

    /// Number of objects left.
    pub fn objects_left(&self) -> usize {
        self.objects as usize
    }

    /// The next object; `Ok(None)` when there are no more.
    pub fn object(&mut self) -> Result<Option<StoredObject<'a>>, Senseless> {
        if self.objects == 0 {
            return Ok(None);
        }
        self.objects -= 1;
        self.object_body().map(Some).ok_or(Senseless)
    }

    fn object_body(&mut self) -> Option<StoredObject<'a>> {
        let raw = take::<RawObject>(&mut self.rest, 1)?[0];
        let extents = take(&mut self.rest, usize::from(raw.extents.get()))?;
        let crcs = take(&mut self.rest, usize::from(raw.crcs.get()))?;
        take::<U32>(&mut self.rest, crcs.len() % 2)?;
        Some(StoredObject {
            object: self.layers.get(raw.layer.get() as usize)?.object(raw.index.get()),
            version: Version(raw.version.get()),
            deleted: raw.deleted.get() != 0,
            extents,
            crcs,
        })
    }

    /// What was replaced by the next staged change, after all objects.
    pub fn undo(&mut self) -> Result<Option<StoredUndo<'a>>, Senseless> {
        if self.undos == 0 {
            return Ok(None);
        }
        self.undos -= 1;
        self.undo_body().map(Some).ok_or(Senseless)
    }

    fn undo_body(&mut self) -> Option<StoredUndo<'a>> {
        let raw = take::<RawUndo>(&mut self.rest, 1)?[0];
        let extents = take(&mut self.rest, usize::from(raw.extents.get()))?;
        let crcs = take(&mut self.rest, usize::from(raw.crcs.get()))?;
        take::<U32>(&mut self.rest, crcs.len() % 2)?;
        let sectors = SectorRange::new(raw.sector_start.get().into(), raw.sector_count.get().into());
        let is_sensible = sectors.end() <= SECTORS_PER_OBJECT_MAX;
        is_sensible.then_some(StoredUndo {
            object: self.layers.get(raw.layer.get() as usize)?.object(raw.index.get()),
            before: [Before::Absent, Before::Deleted, Before::Live].get(raw.before.get() as usize).copied()?,
            version: Version(raw.version.get()),
            client: ClientId(raw.client.get()),
            seq: raw.seq.get(),
            sectors,
            extents,
            crcs,
        })
    }

    /// The next client.
    pub fn client(&mut self) -> Result<Option<StoredClient>, Senseless> {
        if self.clients == 0 {
            return Ok(None);
        }
        self.clients -= 1;
        let raw = take::<RawClient>(&mut self.rest, 1).ok_or(Senseless)?[0];
        Ok(Some(StoredClient {
            client: ClientId(raw.client.get()),
            floor: raw.floor.get(),
            last_lsn: Lsn(raw.last_lsn.get()),
        }))
    }

    /// The next request.
    pub fn request(&mut self) -> Result<Option<StoredRequest>, Senseless> {
        if self.requests == 0 {
            return Ok(None);
        }
        self.requests -= 1;
        let raw = take::<RawRequest>(&mut self.rest, 1).ok_or(Senseless)?[0];
        let layer = self.layers.get(raw.layer.get() as usize).ok_or(Senseless)?;
        Ok(Some(StoredRequest {
            client: ClientId(raw.client.get()),
            seq: raw.seq.get(),
            version: Version(raw.version.get()),
            object: layer.object(raw.index.get()),
        }))
    }
}

impl RawLayer {
    fn value(&self) -> Option<LayerPart> {
        let pool = PoolId(self.pool.get());
        let layer = LayerRef { pool, lineage: LayerId(self.lineage.get()), layer: LayerId(self.layer.get()) };
        let part = u8::try_from(self.part.get()).ok().filter(|&part| usize::from(part) < SHARDS_MAX)?;
        Some(LayerPart { layer, part })
    }
}

/// Bytes with a good checksum that nevertheless make no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Senseless;

/// Extents from their stored form.
pub fn extents_of(stored: &[U64]) -> impl Iterator<Item = Extent> {
    stored.iter().map(|e| Extent::from_raw(e.get()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::shard::Origin;

    #[test]
    fn a_header_belongs_to_one_slot_of_one_store() {
        let mut header = SlotHeader::empty(3);
        header.serial = 5;
        header.segments = vec![9, 8];
        header.content_len = 5000;
        let block = header.encode(&[1; 16]);
        assert_eq!(SlotHeader::decode(&block, &[1; 16], 3, 1, 4096), Some(header));
        assert_eq!(SlotHeader::decode(&block, &[2; 16], 3, 1, 4096), None);
        assert_eq!(SlotHeader::decode(&block, &[1; 16], 2, 1, 4096), None);
        assert_eq!(SlotHeader::decode(&block, &[1; 16], 3, 0, 4096), None);
        assert_eq!(SlotHeader::decode(&block, &[1; 16], 3, 1, 2048), None, "content longer than its segments");
        let mut bad = block;
        bad[4095] ^= 1;
        assert_eq!(SlotHeader::decode(&bad, &[1; 16], 3, 1, 4096), None);
    }

    #[test]
    fn content_round_trips_and_every_truncation_is_survived() {
        let layer = LayerRef { pool: PoolId(1), lineage: LayerId(2), layer: LayerId(3) };
        let layer = LayerPart { layer, part: 31 };
        let mut writer = ContentWriter::default();
        let number = writer.layer(layer);
        writer.object(number, 7, Version(9), false, 1, &[5, 6, 77]);
        writer.object(number, 8, Version(10), true, 0, &[]);
        let mut undo = Undo::of_nothing(Before::Deleted, Version(8), &Origin { client: ClientId(4), seq: 8, floor: 1 });
        (undo.sectors, undo.crcs) = (SectorRange::new(3, 2), [1, 2, 3].into_iter().collect());
        writer.undo(number, &undo, 7);
        let client = StoredClient { client: ClientId(4), floor: 5, last_lsn: Lsn(6) };
        let request = StoredRequest { client: ClientId(4), seq: 8, version: Version(9), object: layer.object(7) };
        writer.client(client);
        writer.request(number, request);
        let bytes = writer.finish();
        let mut reader = ContentReader::new(&bytes).expect("sensible");
        let object = reader.object().expect("sensible").expect("first");
        assert_eq!((object.object, object.deleted), (layer.object(7), false));
        assert_eq!(extents_of(object.extents).next().map(Extent::raw), Some(6 << 32 | 5));
        assert_eq!(object.crcs[0].get(), 77);
        assert!(reader.object().expect("sensible").expect("second").deleted);
        assert!(reader.object().expect("sensible").is_none());
        let stored = reader.undo().expect("sensible").expect("one");
        assert_eq!((stored.object, stored.before, stored.version), (layer.object(7), Before::Deleted, Version(8)));
        assert_eq!((stored.client, stored.seq, stored.sectors), (undo.client, undo.seq, undo.sectors));
        assert_eq!((stored.extents.len(), stored.crcs[2].get()), (0, 3));
        assert_eq!(reader.client(), Ok(Some(client)));
        assert_eq!(reader.request(), Ok(Some(request)));
        for len in 1..bytes.len() {
            assert!(read_all(&bytes[..len]).is_none(), "{len} bytes");
        }
        assert!(read_all(&bytes).is_some());
    }

    fn read_all(bytes: &[u8]) -> Option<()> {
        let mut reader = ContentReader::new(bytes)?;
        while reader.object().ok()?.is_some() {}
        while reader.undo().ok()?.is_some() {}
        while reader.client().ok()?.is_some() {}
        while reader.request().ok()?.is_some() {}
        Some(())
    }
}
