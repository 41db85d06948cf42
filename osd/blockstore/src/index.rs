//! What the store knows of every object, in memory: heads, extents and checksums. It holds the durable state only;
//! [`crate::commit`] executes each change here when the change and all before it are durable, and replay does the same.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use cluster_proto::SectorRange;
use cluster_proto::ids::{LayerId, ObjectId, PgId, PoolId, Version};
use cluster_proto::layout::LayerRef;
use cluster_proto::limits::SECTORS_PER_OBJECT_MAX;
use cluster_proto::shard::{Buckets, ObjectHead, digest_bucket};

use crate::arena::{Arena, Slot};
use crate::digest::DigestTable;
use crate::extent::{Extent, ExtentList, Runs, are_valid, sector_count};
use crate::format::checkpoint::{
    ContentWriter, OBJECT_BYTES_MAX, SECTOR_BYTES_MAX, Senseless, StoredObject, extents_of,
};
use crate::format::log::{Change, Kind};

/// Extent count that marks a tombstone in a packed record.
const DELETED: u16 = u16::MAX;
/// Memory of one place in a partition's table: key, record and control byte. Bytes.
const PLACE_BYTES: u64 = (size_of::<Key>() + size_of::<Record>() + 1) as u64;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    layer: u32,
    index: u32,
}

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.layer) << 32 | u64::from(self.index));
    }
}

#[derive(Clone, Copy)]
struct Record {
    version: Version,
    slot: Slot,
    extents: u16,
    crcs: u16,
}

const _: () = assert!(size_of::<Key>() + size_of::<Record>() == 24);

impl Record {
    fn is_deleted(&self) -> bool {
        self.extents == DELETED
    }

    fn extent_count(&self) -> usize {
        if self.is_deleted() { 0 } else { usize::from(self.extents) }
    }

    fn words(&self) -> usize {
        2 * self.extent_count() + usize::from(self.crcs)
    }
}

/// Mixes the one word that keys feed it; deterministic, so that runs repeat.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.write_u64(b.into()));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = mix(self.0 ^ n);
    }
}

const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The partition of an object. Part of the format: checkpoints are per partition.
pub fn partition_of(object: &ObjectId, partitions: u32) -> u32 {
    (mix(object.layer.0 ^ mix(u64::from(object.pool.0) << 32 | u64::from(object.index))) % u64::from(partitions)) as u32
}

#[derive(Default)]
struct Partition {
    objects: HashMap<Key, Record, BuildHasherDefault<Mixer>>,
    sectors: u64,
}

/// One object as the index holds it.
#[derive(Clone, Copy)]
pub struct ObjectView<'a> {
    /// Its version.
    pub version: Version,
    /// Whether it is a tombstone.
    pub deleted: bool,
    extents: usize,
    words: &'a [u32],
}

impl<'a> ObjectView<'a> {
    /// Where its sectors lie, ascending.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + use<'a> {
        let (words, _) = self.words[..2 * self.extents].as_chunks::<2>();
        words.iter().map(unpack)
    }

    /// Checksums of its sectors, in the order of the extents.
    pub fn crcs(&self) -> &'a [u32] {
        &self.words[2 * self.extents..]
    }

    /// The parts of its extents that lie in `range`, each with its checksums.
    pub fn parts(&self, range: SectorRange) -> impl Iterator<Item = (Extent, &'a [u32])> + use<'a> {
        let crcs = self.crcs();
        let mut at = 0;
        self.extents().filter_map(move |extent| {
            let first = at;
            at += extent.sectors().count as usize;
            let part = extent.part(range)?;
            let from = first + (part.sectors().start - extent.sectors().start) as usize;
            Some((part, &crcs[from..from + part.sectors().count as usize]))
        })
    }
}

/// What executing a change did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Runs no longer used by any object: what was replaced, or the change's own data if it had no effect.
    pub freed: Runs,
    /// The change did not apply (a repair of a version that is gone).
    pub refused: bool,
}

/// All objects.
pub struct Index {
    layers: Vec<LayerRef>,
    layer_numbers: HashMap<LayerKey, u32, BuildHasherDefault<Mixer>>,
    partitions: Vec<Partition>,
    arena: Arena,
    digests: DigestTable,
    old: ExtentList,
    new: ExtentList,
    objects: u64,
    sectors: u64,
    places: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct LayerKey(PoolId, LayerId, LayerId);

impl std::hash::Hash for LayerKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        [self.0.0.into(), self.1.0, self.2.0].into_iter().for_each(|n| state.write_u64(n));
    }
}

impl Index {
    /// No objects.
    pub fn new(partitions: u32) -> Index {
        Index {
            layers: Vec::new(),
            layer_numbers: HashMap::default(),
            partitions: (0..partitions).map(|_| Partition::default()).collect(),
            arena: Arena::new(),
            digests: DigestTable::default(),
            old: ExtentList::default(),
            new: ExtentList::default(),
            objects: 0,
            sectors: 0,
            places: 0,
        }
    }

    /// Objects, tombstones included.
    pub fn object_count(&self) -> u64 {
        self.objects
    }

    /// Sectors that hold data.
    pub fn sector_count(&self) -> u64 {
        self.sectors
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> u64 {
        let layers = self.layers.len() as u64 * (size_of::<LayerRef>() * 2 + 8) as u64;
        self.places * PLACE_BYTES + self.arena.bytes() + self.digests.memory_bytes() + layers
    }

    /// Accounted bytes of a partition's checkpoint, at worst.
    pub fn partition_bytes(&self, partition: u32) -> u64 {
        let p = &self.partitions[partition as usize];
        p.sectors * SECTOR_BYTES_MAX + p.objects.len() as u64 * OBJECT_BYTES_MAX
    }

    fn layer_number(&mut self, layer: LayerRef) -> u32 {
        *self.layer_numbers.entry(LayerKey(layer.pool, layer.lineage, layer.layer)).or_insert_with(|| {
            self.layers.push(layer);
            self.layers.len() as u32 - 1
        })
    }

    fn key(&self, object: &ObjectId) -> Option<Key> {
        let layer = *self.layer_numbers.get(&LayerKey(object.pool, object.lineage, object.layer))?;
        Some(Key { layer, index: object.index })
    }

    fn partition_of(&self, object: &ObjectId) -> usize {
        partition_of(object, self.partitions.len() as u32) as usize
    }

    /// An object; `None` if the store does not know it.
    pub fn object(&self, object: &ObjectId) -> Option<ObjectView<'_>> {
        let key = self.key(object)?;
        let record = self.partitions[self.partition_of(object)].objects.get(&key)?;
        Some(self.view(record))
    }

    fn view(&self, record: &Record) -> ObjectView<'_> {
        ObjectView {
            version: record.version,
            deleted: record.is_deleted(),
            extents: record.extent_count(),
            words: self.arena.words(record.slot, record.words()),
        }
    }

    /// Head of an object.
    pub fn head(&self, object: &ObjectId) -> Option<ObjectHead> {
        self.object(object).map(|v| ObjectHead { object: *object, version: v.version, deleted: v.deleted })
    }

    /// Sectors of `range` that hold data.
    pub fn sectors_held(&self, object: &ObjectId, range: SectorRange) -> u32 {
        self.object(object).map_or(0, |v| v.parts(range).map(|(e, _)| e.sectors().count).sum())
    }

    /// Executes a change. The same function runs in operation and in replay, so both arrive at the same state.
    pub fn apply(&mut self, change: &Change) -> Effect {
        match change.kind {
            Kind::Write => self.write(change, change.sectors),
            Kind::Zero => self.write(change, change.sectors),
            Kind::Restore => self.write(change, SectorRange::new(0, SECTORS_PER_OBJECT_MAX)),
            Kind::Repair => self.repair(change),
            Kind::Delete | Kind::RestoreDeleted => self.delete(change),
            Kind::Collect => self.collect(change),
            Kind::Relocate | Kind::Cancel => Effect::default(),
        }
    }

    fn write(&mut self, change: &Change, range: SectorRange) -> Effect {
        if let Some(freed) = self.overwrite(change) {
            return Effect { freed, refused: false };
        }
        self.unpack_old(&change.object);
        let mut new = std::mem::take(&mut self.new);
        let freed = new.replaced(&self.old, range, &change.extents, &change.crcs);
        self.store(&change.object, change.version, Some(&new));
        self.new = new;
        Effect { freed, refused: false }
    }

    /// The common case of a fragmented object: exactly one of its extents is replaced, so nothing moves.
    fn overwrite(&mut self, change: &Change) -> Option<Runs> {
        let [new] = change.extents.as_slice() else { return None };
        if new.sectors() != change.sectors {
            return None;
        }
        let (key, at) = (self.key(&change.object)?, self.partition_of(&change.object));
        let record = self.partitions[at].objects.get_mut(&key).filter(|r| !r.is_deleted())?;
        let words = self.arena.words_mut(record.slot, record.words());
        let (extents, crcs) = words.split_at_mut(2 * record.extent_count());
        let (extents, _) = extents.as_chunks_mut::<2>();
        let mut first = 0;
        let old = extents.iter_mut().find(|w| {
            let sectors = unpack(w).sectors();
            let is_same = sectors == new.sectors();
            first += if is_same { 0 } else { sectors.count as usize };
            is_same
        })?;
        let freed = unpack(old).run();
        *old = words_of(*new);
        crcs[first..first + change.crcs.len()].copy_from_slice(&change.crcs);
        let before = ObjectHead { object: change.object, version: record.version, deleted: false };
        record.version = change.version;
        self.digests.remove(&before);
        self.digests.add(&ObjectHead { version: change.version, ..before });
        Some(Runs::from_slice(&[freed]))
    }

    fn repair(&mut self, change: &Change) -> Effect {
        let current = self.head(&change.object).filter(|h| h.version == change.version && !h.deleted);
        if current.is_none() {
            return Effect { freed: change.extents.iter().map(|e| e.run()).collect(), refused: true };
        }
        self.write(change, change.sectors)
    }

    fn delete(&mut self, change: &Change) -> Effect {
        self.unpack_old(&change.object);
        let freed = self.old.extents.iter().map(|e| e.run()).collect();
        self.store(&change.object, change.version, None);
        Effect { freed, refused: false }
    }

    fn collect(&mut self, change: &Change) -> Effect {
        let head = self.head(&change.object);
        if let Some(head) = head.filter(|h| h.deleted && h.version == change.version) {
            self.digests.remove(&head);
            let partition = self.partition_of(&change.object);
            if let Some(key) = self.key(&change.object) {
                self.partitions[partition].objects.remove(&key);
            }
            self.objects -= 1;
        }
        Effect::default()
    }

    /// Unpacks the object into `self.old`.
    fn unpack_old(&mut self, object: &ObjectId) {
        let mut old = std::mem::take(&mut self.old);
        old.clear();
        if let Some(view) = self.object(object) {
            old.extents.extend(view.extents());
            old.crcs.extend_from_slice(view.crcs());
        }
        self.old = old;
    }

    /// Replaces an object's record and words; `None` makes it a tombstone.
    fn store(&mut self, object: &ObjectId, version: Version, content: Option<&ExtentList>) {
        let layer = LayerRef { pool: object.pool, lineage: object.lineage, layer: object.layer };
        let key = Key { layer: self.layer_number(layer), index: object.index };
        let at = self.partition_of(object);
        let old = self.partitions[at].objects.get(&key).copied();
        let (extents, crcs) = content.map_or((DELETED, 0), |c| (c.extents.len() as u16, c.crcs.len() as u16));
        let mut record = Record { version, slot: Slot::default(), extents, crcs };
        record.slot = self.slot_for(old.as_ref(), record.words());
        if let Some(content) = content {
            pack(content, self.arena.words_mut(record.slot, record.words()));
        }
        let old_sectors = old.map_or(0, |r| u64::from(r.crcs));
        if let Some(old) = old {
            self.digests.remove(&ObjectHead { object: *object, version: old.version, deleted: old.is_deleted() });
        }
        self.digests.add(&ObjectHead { object: *object, version, deleted: content.is_none() });
        self.insert(at, key, record, old.is_none());
        self.partitions[at].sectors = self.partitions[at].sectors + u64::from(crcs) - old_sectors;
        self.sectors = self.sectors + u64::from(crcs) - old_sectors;
    }

    /// Keeps the old slot if the size class is the same, otherwise changes it for another.
    fn slot_for(&mut self, old: Option<&Record>, words: usize) -> Slot {
        match old {
            Some(old) if Arena::same_class(old.words(), words) => old.slot,
            Some(old) => {
                self.arena.free(old.slot, old.words());
                self.arena.allocate(words)
            }
            None => self.arena.allocate(words),
        }
    }

    fn insert(&mut self, partition: usize, key: Key, record: Record, is_new: bool) {
        let objects = &mut self.partitions[partition].objects;
        let capacity = objects.capacity();
        objects.insert(key, record);
        self.places += ((objects.capacity() - capacity) as u64 * 8).div_ceil(7);
        self.objects += u64::from(is_new);
    }

    /// Makes room for the objects of a partition's checkpoint.
    pub fn reserve(&mut self, partition: u32, objects: usize) {
        let map = &mut self.partitions[partition as usize].objects;
        let capacity = map.capacity();
        // A count from the disk may be absurd: the rest grows as it comes.
        map.reserve(objects.min(1 << 22));
        self.places += ((map.capacity() - capacity) as u64 * 8).div_ceil(7);
    }

    /// Takes an object in from its partition's checkpoint.
    pub fn load(&mut self, partition: u32, stored: &StoredObject<'_>, data_sectors: u64) -> Result<(), Senseless> {
        let mut new = std::mem::take(&mut self.new);
        new.clear();
        new.extents.extend(extents_of(stored));
        new.crcs.extend(stored.crcs.iter().map(|c| c.get()));
        let object = stored.layer.object(stored.index);
        let fits = are_valid(&new.extents, data_sectors)
            && sector_count(&new.extents) as usize == new.crcs.len()
            && (!stored.deleted || new.crcs.is_empty())
            && self.partition_of(&object) == partition as usize
            && self.object(&object).is_none();
        if fits {
            self.store(&object, stored.version, (!stored.deleted).then_some(&new));
        }
        self.new = new;
        fits.then_some(()).ok_or(Senseless)
    }

    /// Content of a partition's checkpoint.
    pub fn encode(&self, partition: u32) -> Vec<u8> {
        let mut writer = ContentWriter::default();
        let mut numbers = vec![u32::MAX; self.layers.len()];
        for (key, record) in &self.partitions[partition as usize].objects {
            let number = &mut numbers[key.layer as usize];
            if *number == u32::MAX {
                *number = writer.layer(self.layers[key.layer as usize]);
            }
            let words = self.arena.words(record.slot, record.words());
            let extents = record.extent_count() as u16;
            writer.object(*number, key.index, record.version, record.is_deleted(), extents, words);
        }
        writer.finish()
    }

    /// Every object with its head and extents, in no particular order.
    pub fn objects(&self) -> impl Iterator<Item = (ObjectId, ObjectView<'_>)> {
        self.partitions.iter().flat_map(|p| &p.objects).map(|(key, record)| {
            let layer = self.layers[key.layer as usize];
            (layer.object(key.index), self.view(record))
        })
    }

    /// See [`cluster_proto::shard::ShardIndex::set_pool`].
    pub fn set_pool(&mut self, pool: PoolId, pg_count: u32) {
        if pg_count == 0 || self.digests.pg_count(pool) == Some(pg_count) {
            return;
        }
        let mut digests = std::mem::take(&mut self.digests);
        digests.declare(pool, pg_count);
        for (object, view) in self.objects().filter(|(object, _)| object.pool == pool) {
            digests.add(&ObjectHead { object, version: view.version, deleted: view.deleted });
        }
        self.digests = digests;
    }

    /// The digests.
    pub fn digests(&self) -> &DigestTable {
        &self.digests
    }

    /// Heads of a PG's objects that `wanted` chooses, ascending.
    fn heads(&self, pg: PgId, wanted: impl Fn(&ObjectHead) -> bool) -> Vec<ObjectHead> {
        let Some(pg_count) = self.digests.pg_count(pg.pool) else { return Vec::new() };
        let mut heads: Vec<_> = self
            .objects()
            .filter(|(object, _)| object.pool == pg.pool && object.pg(pg_count) == pg)
            .map(|(object, v)| ObjectHead { object, version: v.version, deleted: v.deleted })
            .filter(wanted)
            .collect();
        heads.sort_unstable();
        heads
    }

    /// Heads of a PG's objects in the given buckets, ascending.
    pub fn list(&self, pg: PgId, buckets: &Buckets) -> Vec<ObjectHead> {
        self.heads(pg, |head| buckets.contains(digest_bucket(&head.object)))
    }

    /// Tombstones of a PG, ascending.
    pub fn tombstones(&self, pg: PgId) -> Vec<ObjectHead> {
        self.heads(pg, |head| head.deleted)
    }
}

/// An extent in the arena: low word, high word.
fn words_of(extent: Extent) -> [u32; 2] {
    [extent.raw() as u32, (extent.raw() >> 32) as u32]
}

fn unpack(words: &[u32; 2]) -> Extent {
    Extent::from_raw(u64::from(words[1]) << 32 | u64::from(words[0]))
}

fn pack(content: &ExtentList, words: &mut [u32]) {
    let (extents, crcs) = words.split_at_mut(2 * content.extents.len());
    let (pairs, _) = extents.as_chunks_mut::<2>();
    for (pair, extent) in pairs.iter_mut().zip(&content.extents) {
        *pair = words_of(*extent);
    }
    crcs.copy_from_slice(&content.crcs);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::checkpoint::ContentReader;
    use cluster_proto::shard::Origin;

    fn object(index: u32) -> ObjectId {
        ObjectId { pool: PoolId(1), lineage: LayerId(2), layer: LayerId(3), index }
    }

    fn write(index: u32, version: u64, sectors: SectorRange, at: u64) -> Change {
        let mut change = Change::new(Kind::Write, object(index), Version(version), Origin::NONE, sectors);
        change.extents.push(Extent::new(sectors, at));
        change.crcs.extend((0..sectors.count).map(|i| (version as u32) << 16 | i));
        change
    }

    #[test]
    fn digests_follow_every_change_and_match_a_recount() {
        let mut index = Index::new(4);
        index.set_pool(PoolId(1), 2);
        for i in 0..50 {
            index.apply(&write(i, 5, SectorRange::new(0, 4), u64::from(i) * 4));
            index.apply(&write(i, 6, SectorRange::new(1, 1), 1000 + u64::from(i)));
        }
        for i in 0..20 {
            index.apply(&Change::new(Kind::Delete, object(i), Version(7), Origin::NONE, SectorRange::new(0, 0)));
        }
        for i in 0..10 {
            index.apply(&Change::new(Kind::Collect, object(i), Version(7), Origin::NONE, SectorRange::new(0, 0)));
        }
        let kept: Vec<_> = (0..2).map(|i| index.digests().of(PgId { pool: PoolId(1), index: i })).collect();
        index.digests = DigestTable::default();
        index.set_pool(PoolId(1), 2);
        for (i, kept) in kept.iter().enumerate() {
            assert_eq!(*kept, index.digests().of(PgId { pool: PoolId(1), index: i as u32 }));
        }
        let lists: Vec<_> = (0..2).map(|i| index.list(PgId { pool: PoolId(1), index: i }, &Buckets::ALL)).collect();
        assert_eq!(lists.concat().len(), 40);
        assert_eq!((index.object_count(), index.sector_count()), (40, 120));
    }

    #[test]
    fn overwriting_one_extent_in_place_equals_the_general_way() {
        let mut index = Index::new(1);
        index.set_pool(PoolId(1), 1);
        for start in 0..9 {
            index.apply(&write(0, 1 + u64::from(start), SectorRange::new(start * 3, 2), 100 - u64::from(start) * 10));
        }
        let effect = index.apply(&write(0, 50, SectorRange::new(9, 2), 500));
        assert_eq!(effect.freed.as_slice(), [crate::extent::Run { start: 70, count: 2 }]);
        let view = index.object(&object(0)).expect("stored");
        let parts: Vec<_> = view.parts(SectorRange::new(6, 8)).map(|(e, c)| (e.run().start, c[0] >> 16)).collect();
        assert_eq!((view.version, parts), (Version(50), vec![(80, 3), (500, 50), (60, 5)]));
        let kept = index.digests().of(PgId { pool: PoolId(1), index: 0 });
        index.digests = DigestTable::default();
        index.set_pool(PoolId(1), 1);
        assert_eq!(kept, index.digests().of(PgId { pool: PoolId(1), index: 0 }));
        assert_eq!(index.sector_count(), 18);
    }

    #[test]
    fn a_partition_survives_its_checkpoint() {
        let mut index = Index::new(2);
        for i in 0..30 {
            index.apply(&write(i, 5, SectorRange::new(i, 3), u64::from(i) * 3));
        }
        index.apply(&Change::new(Kind::Delete, object(3), Version(7), Origin::NONE, SectorRange::new(0, 0)));
        let mut loaded = Index::new(2);
        for partition in 0..2 {
            let content = index.encode(partition);
            assert!(content.len() as u64 <= index.partition_bytes(partition) + 16);
            let mut reader = ContentReader::new(&content).expect("sensible");
            while let Some(stored) = reader.object().expect("sensible") {
                assert_eq!(loaded.load(1 - partition, &stored, 1000), Err(Senseless), "the wrong partition");
                loaded.load(partition, &stored, 1000).expect("sensible");
                assert_eq!(loaded.load(partition, &stored, 1000), Err(Senseless), "twice");
            }
        }
        for i in 0..30 {
            let (a, b) = (index.object(&object(i)).expect("stored"), loaded.object(&object(i)).expect("loaded"));
            assert_eq!((a.version, a.deleted, a.words), (b.version, b.deleted, b.words));
        }
        assert_eq!(loaded.sector_count(), index.sector_count());
    }

    #[test]
    fn a_repair_of_another_version_frees_its_own_data() {
        let mut index = Index::new(1);
        index.apply(&write(0, 5, SectorRange::new(0, 4), 0));
        let mut repair = write(0, 4, SectorRange::new(1, 1), 9);
        repair.kind = Kind::Repair;
        let effect = index.apply(&repair);
        assert!(effect.refused && effect.freed[0].start == 9);
        repair.version = Version(5);
        let effect = index.apply(&repair);
        assert!(!effect.refused && effect.freed[0].start == 1);
        assert_eq!(index.head(&object(0)).map(|h| h.version), Some(Version(5)));
    }
}
