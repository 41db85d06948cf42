//! What the store knows of every object, in memory: heads, extents and checksums. It holds the durable state only;
//! [`crate::commit`] executes each change here when the change and all before it are durable, and replay does the same.
//! `apply` executes changes, `staged` keeps what can be taken back, `pg` answers what peering asks.

mod apply;
mod pg;
mod staged;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use cluster_proto::SectorRange;
use cluster_proto::ids::{ObjectId, Version};
use cluster_proto::shard::{ObjectHead, digest_bucket};

use crate::arena::{Arena, Slot};
use crate::digest::DigestTable;
use crate::extent::{Extent, ExtentList, are_valid, guess, sector_count, seek};
use crate::format::checkpoint::{
    ContentWriter, OBJECT_BYTES_MAX, SECTOR_BYTES_MAX, Senseless, StoredObject, UNDO_BYTES_MAX, extents_of,
};
use crate::layer::LayerPart;
use crate::prefetch::prefetch;

pub use apply::Effect;
pub use staged::Undo;

/// Extent count that marks a tombstone in a packed record.
const DELETED: u16 = u16::MAX;
/// Tables of as many places or more shrink when not more than one in [`SPARSE_SHARE`] is used.
pub(crate) const SPARSE_PLACES_MIN: u64 = 1024;
pub(crate) const SPARSE_SHARE: u64 = 8;
/// Memory of one place in a partition's table: key, record and control byte. Bytes.
const PLACE_BYTES: u64 = (size_of::<Key>() + size_of::<Record>() + 1) as u64;

/// Names an object: the number of its layer and part, and its index.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
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
pub struct Mixer(u64);

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

/// The partition of an object. Part of the format: checkpoints are per partition. The same for all parts of an object, and
/// all objects of a digest bucket lie in one partition, so that listing a bucket looks at no other.
pub fn partition_of(object: &ObjectId, partitions: u32) -> u32 {
    digest_bucket(object) as u32 % partitions
}

type Table<T> = HashMap<Key, T, BuildHasherDefault<Mixer>>;

#[derive(Default)]
struct Partition {
    objects: Table<Record>,
    /// Places of `objects`, used or not.
    places: u64,
    /// What the staged changes of its objects replaced.
    undos: Table<Undo>,
    /// Sectors of `objects`.
    sectors: u64,
    /// Sectors of `undos`.
    kept: u64,
}

/// Where an object is, or would be.
#[derive(Clone, Copy)]
struct Place {
    partition: usize,
    key: Key,
}

/// A layer and part, and how its objects lie.
struct LayerUse {
    own: LayerPart,
    objects: u32,
    /// No object has a higher index.
    index_max: u32,
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
        let (words, _) = self.words[..2 * self.extents].as_chunks::<2>();
        let (number, mut at) = seek(words.len(), crcs.len(), range.start, |i| unpack(&words[i]).sectors());
        let touched = words[number..].iter().map(unpack).take_while(move |e| e.sectors().start < range.end());
        touched.filter_map(move |extent| {
            let first = at;
            at += extent.sectors().count as usize;
            let part = extent.part(range)?;
            let from = first + (part.sectors().start - extent.sectors().start) as usize;
            Some((part, &crcs[from..from + part.sectors().count as usize]))
        })
    }
}

/// All objects.
pub struct Index {
    layers: Vec<LayerUse>,
    layer_numbers: HashMap<LayerKey, u32, BuildHasherDefault<Mixer>>,
    partitions: Vec<Partition>,
    arena: Arena,
    digests: DigestTable,
    old: ExtentList,
    new: ExtentList,
    /// Words of an object on their way to another slot.
    packed: Vec<u32>,
    objects: u64,
    sectors: u64,
    places: u64,
    undos: u64,
    kept: u64,
    /// Sectors by which objects grow if all staged changes are taken back.
    regrowth: u64,
    undo_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct LayerKey(LayerPart);

impl std::hash::Hash for LayerKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.words().into_iter().for_each(|n| state.write_u64(n));
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
            packed: Vec::new(),
            objects: 0,
            sectors: 0,
            places: 0,
            undos: 0,
            kept: 0,
            regrowth: 0,
            undo_bytes: 0,
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

    /// Sectors that hold data or will if staged changes are taken back.
    pub fn claimed_count(&self) -> u64 {
        self.sectors + self.regrowth
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> u64 {
        let layers = self.layers.len() as u64 * (size_of::<LayerUse>() + size_of::<LayerKey>() + 8) as u64;
        self.places * PLACE_BYTES + self.arena.bytes() + self.digests.memory_bytes() + self.undo_bytes + layers
    }

    /// Accounted bytes of a partition's checkpoint, at worst.
    pub fn partition_bytes(&self, partition: u32) -> u64 {
        let p = &self.partitions[partition as usize];
        let heads = p.objects.len() as u64 * OBJECT_BYTES_MAX + p.undos.len() as u64 * UNDO_BYTES_MAX;
        (p.sectors + p.kept) * SECTOR_BYTES_MAX + heads
    }

    /// Where an object is to be stored. Its layer gets a number if it has none.
    fn place(&mut self, object: &ObjectId) -> Place {
        let own = LayerPart::of(object);
        let layer = *self.layer_numbers.entry(LayerKey(own)).or_insert_with(|| {
            self.layers.push(LayerUse { own, objects: 0, index_max: 0 });
            self.layers.len() as u32 - 1
        });
        Place { partition: self.partition_of(object), key: Key { layer, index: object.index } }
    }

    /// Where an object is, if it is.
    fn find(&self, object: &ObjectId) -> Option<Place> {
        let layer = *self.layer_numbers.get(&LayerKey(LayerPart::of(object)))?;
        Some(Place { partition: self.partition_of(object), key: Key { layer, index: object.index } })
    }

    fn partition_of(&self, object: &ObjectId) -> usize {
        partition_of(object, self.partitions.len() as u32) as usize
    }

    fn record(&self, place: Place) -> Option<&Record> {
        self.partitions[place.partition].objects.get(&place.key)
    }

    /// An object; `None` if the store does not know it.
    pub fn object(&self, object: &ObjectId) -> Option<ObjectView<'_>> {
        Some(self.view(self.record(self.find(object)?)?))
    }

    fn view(&self, record: &Record) -> ObjectView<'_> {
        ObjectView {
            version: record.version,
            deleted: record.is_deleted(),
            extents: record.extent_count(),
            words: self.arena.words(record.slot, record.words()),
        }
    }

    /// Has the processor fetch what executing a change of this sector will look at, while the change is written.
    pub fn prefetch(&self, object: &ObjectId, sector: u32) {
        self.digests.prefetch(object);
        let Some(view) = self.object(object).filter(|view| view.extents > 0) else { return };
        let (extents, crcs) = view.words.split_at(2 * view.extents);
        prefetch(&extents[2 * guess(view.extents, crcs.len(), sector)]);
        prefetch(&extents[extents.len() - 1]);
        prefetch(&crcs[(sector as usize).min(crcs.len() - 1)]);
    }

    /// Head of an object.
    pub fn head(&self, object: &ObjectId) -> Option<ObjectHead> {
        self.head_at(self.find(object)?)
    }

    fn head_at(&self, place: Place) -> Option<ObjectHead> {
        self.record(place).map(|record| self.head_of(place, record))
    }

    fn head_of(&self, place: Place, record: &Record) -> ObjectHead {
        ObjectHead {
            object: self.layers[place.key.layer as usize].own.object(place.key.index),
            version: record.version,
            deleted: record.is_deleted(),
            staged_over: self.undo_at(place).map(|undo| undo.version),
        }
    }

    /// Sectors of `range` that hold data.
    pub fn sectors_held(&self, object: &ObjectId, range: SectorRange) -> u32 {
        self.object(object).map_or(0, |v| v.parts(range).map(|(e, _)| e.sectors().count).sum())
    }

    /// Unpacks the object into `self.old`.
    fn unpack_old(&mut self, place: Place) {
        let mut old = std::mem::take(&mut self.old);
        old.clear();
        if let Some(record) = self.record(place) {
            let view = self.view(record);
            old.extents.extend(view.extents());
            old.crcs.extend_from_slice(view.crcs());
        }
        self.old = old;
    }

    /// Replaces an object's record and words; `None` makes it a tombstone.
    fn store(&mut self, place: Place, version: Version, content: Option<&ExtentList>) {
        let old = self.record(place).copied();
        let (extents, crcs) = content.map_or((DELETED, 0), |c| (c.extents.len() as u16, c.crcs.len() as u16));
        let mut record = Record { version, slot: Slot::default(), extents, crcs };
        record.slot = self.slot_for(place, old.as_ref(), record.words());
        if let Some(content) = content {
            pack(content, self.arena.words_mut(record.slot, record.words()));
        }
        self.count_sectors(place, old.map_or(0, |r| r.crcs), crcs);
        self.insert(place, record, old.is_none());
    }

    /// Removes an object, which has given up its sectors.
    fn remove(&mut self, place: Place) {
        let Some(record) = self.partitions[place.partition].objects.remove(&place.key) else { return };
        self.free_slot(&record);
        self.count_sectors(place, record.crcs, 0);
        self.objects -= 1;
        self.give_back_places(place.partition);
        let layer = &mut self.layers[place.key.layer as usize];
        layer.objects -= 1;
        if layer.objects == 0 {
            layer.index_max = 0;
        }
    }

    fn count_sectors(&mut self, place: Place, old: u16, new: u16) {
        let own = &mut self.partitions[place.partition].sectors;
        *own = *own + u64::from(new) - u64::from(old);
        self.sectors = self.sectors + u64::from(new) - u64::from(old);
    }

    /// Keeps the old slot if the size class is the same, otherwise changes it for another.
    fn slot_for(&mut self, place: Place, old: Option<&Record>, words: usize) -> Slot {
        match old {
            Some(old) if Arena::same_class(old.words(), words) => return old.slot,
            Some(old) => self.free_slot(old),
            None => {}
        }
        self.arena.allocate(words, [place.key.layer, place.key.index])
    }

    /// Gives a slot back. The object whose slot the arena moves into its place is told.
    fn free_slot(&mut self, record: &Record) {
        let Some(moved) = self.arena.free(record.slot, record.words()) else { return };
        let [layer, index] = moved.owner;
        let partition = self.partition_of(&self.layers[layer as usize].own.object(index));
        let owner = self.partitions[partition].objects.get_mut(&Key { layer, index });
        owner.expect("a slot in use has an owner").slot = moved.slot;
    }

    fn insert(&mut self, place: Place, record: Record, is_new: bool) {
        self.partitions[place.partition].objects.insert(place.key, record);
        self.count_places(place.partition);
        if is_new {
            self.objects += 1;
            let layer = &mut self.layers[place.key.layer as usize];
            layer.objects += 1;
            layer.index_max = layer.index_max.max(place.key.index);
        }
    }

    /// Makes room for the objects of a partition's checkpoint.
    pub fn reserve(&mut self, partition: u32, objects: usize) {
        let map = &mut self.partitions[partition as usize].objects;
        // A count from the disk may be absurd: the rest grows as it comes.
        map.reserve(objects.min(1 << 22));
        self.count_places(partition as usize);
    }

    /// Counts the places that a table got. One from which keys were removed may tell less than it has: the most that it told since it shrank
    /// is true.
    fn count_places(&mut self, partition: usize) {
        let own = &mut self.partitions[partition];
        let places = places_of(&own.objects);
        let grown = places.saturating_sub(own.places);
        own.places += grown;
        self.places += grown;
    }

    /// A table that has become almost empty shrinks.
    fn give_back_places(&mut self, partition: usize) {
        let own = &mut self.partitions[partition];
        if own.places < SPARSE_PLACES_MIN || own.objects.len() as u64 * SPARSE_SHARE > own.places {
            return;
        }
        own.objects.shrink_to(2 * own.objects.len());
        let places = places_of(&own.objects);
        self.places = self.places + places - own.places;
        own.places = places;
    }

    /// Takes an object in from its partition's checkpoint.
    pub fn load(&mut self, partition: u32, stored: &StoredObject<'_>, data_sectors: u64) -> Result<(), Senseless> {
        let mut new = std::mem::take(&mut self.new);
        new.clear();
        new.extents.extend(extents_of(stored.extents));
        new.crcs.extend(stored.crcs.iter().map(|c| c.get()));
        let fits = are_valid(&new.extents, data_sectors)
            && sector_count(&new.extents) as usize == new.crcs.len()
            && (!stored.deleted || new.crcs.is_empty())
            && self.partition_of(&stored.object) == partition as usize
            && self.object(&stored.object).is_none();
        if fits {
            let place = self.place(&stored.object);
            self.store(place, stored.version, (!stored.deleted).then_some(&new));
            self.digest(place, None, self.head_at(place).as_ref());
        }
        self.new = new;
        fits.then_some(()).ok_or(Senseless)
    }

    /// Content of a partition's checkpoint.
    pub fn encode(&self, partition: u32) -> Vec<u8> {
        let mut writer = ContentWriter::default();
        let mut numbers = vec![u32::MAX; self.layers.len()];
        let own = &self.partitions[partition as usize];
        for (key, record) in &own.objects {
            let number = &mut numbers[key.layer as usize];
            if *number == u32::MAX {
                *number = writer.layer(self.layers[key.layer as usize].own);
            }
            let words = self.arena.words(record.slot, record.words());
            let extents = record.extent_count() as u16;
            writer.object(*number, key.index, record.version, record.is_deleted(), extents, words);
        }
        own.undos.iter().for_each(|(key, undo)| writer.undo(numbers[key.layer as usize], undo, key.index));
        writer.finish()
    }

    /// Every place with an object, in no particular order.
    fn places(&self) -> impl Iterator<Item = (Place, &Record)> {
        let partitions = self.partitions.iter().enumerate();
        partitions.flat_map(|(partition, p)| p.objects.iter().map(move |(&key, r)| (Place { partition, key }, r)))
    }

    /// Every object with its head and extents, in no particular order.
    pub fn objects(&self) -> impl Iterator<Item = (ObjectHead, ObjectView<'_>, Option<&Undo>)> {
        self.places().map(|(place, record)| (self.head_of(place, record), self.view(record), self.undo_at(place)))
    }

    /// The digests.
    #[cfg(test)]
    pub fn digests(&self) -> &DigestTable {
        &self.digests
    }

    /// Brings the digests up to date for an object whose head changed.
    fn digest(&mut self, place: Place, old: Option<&ObjectHead>, new: Option<&ObjectHead>) {
        debug_assert_eq!(new.copied(), self.head_at(place));
        if let Some(any) = old.or(new)
            && old != new
        {
            self.digests.replace(&any.object, place.key, old, new);
        }
    }
}

/// An extent in the arena: low word, high word.
fn words_of(extent: Extent) -> [u32; 2] {
    [extent.raw() as u32, (extent.raw() >> 32) as u32]
}

fn places_of(table: &Table<Record>) -> u64 {
    (table.capacity() as u64 * 8).div_ceil(7)
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
mod tests;
