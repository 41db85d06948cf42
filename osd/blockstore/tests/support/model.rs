//! What a store should hold: a plain map, and random operations on it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use blockstore::Store;
use buffer::Buffer;
use cluster_proto::crc::sector_crcs;
use cluster_proto::ids::{ClientId, LayerId, ObjectId, PoolId, Version};
use cluster_proto::shard::{AppliedRequest, ObjectContent, Origin, RequestState, ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::{SECTOR, SectorRange};

use super::Rng;
use super::driver::Driver;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelObject {
    pub version: Version,
    pub deleted: bool,
    /// Sector -> the word that fills it.
    pub sectors: BTreeMap<u32, u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// Shared between the many states of a run.
    pub objects: BTreeMap<ObjectId, Rc<ModelObject>>,
    pub requests: BTreeMap<(ClientId, u64), Version>,
}

pub fn object(n: u32) -> ObjectId {
    ObjectId { pool: PoolId(1), lineage: LayerId(7), layer: LayerId(7 + u64::from(n % 3)), index: n }
}

/// Sectors each filled with their own word.
pub fn filled(words: impl Iterator<Item = u64>) -> Buffer {
    let mut bytes = Vec::new();
    for word in words {
        for i in 0..SECTOR / 8 {
            bytes.extend_from_slice(&(word ^ (i as u64) << 48).to_le_bytes());
        }
    }
    Buffer::copy_of(&bytes)
}

pub fn word(version: Version, sector: u32) -> u64 {
    version.0 << 16 | u64::from(sector)
}

impl Model {
    pub fn version(&self, object: &ObjectId) -> Version {
        self.objects.get(object).map_or(Version::NONE, |o| o.version)
    }

    /// Executes a mutation; the model has no errors, so only what would succeed may be given.
    pub fn apply(&mut self, op: &ShardOp) {
        let Some(&id) = op.object() else { return };
        if let ShardOp::Write { origin, version, .. }
        | ShardOp::Zero { origin, version, .. }
        | ShardOp::Delete { origin, version, .. } = op
            && origin.client != ClientId(0)
        {
            self.requests.retain(|k, _| k.0 != origin.client || k.1 >= origin.floor);
            self.requests.insert((origin.client, origin.seq), *version);
        }
        match op {
            ShardOp::Write { version, sectors, data, .. } => {
                self.put(id, Some(*version), sectors.iter(), data);
            }
            ShardOp::Repair { version, sectors, data, .. } => {
                if self.objects.get(&id).is_some_and(|o| !o.deleted && o.version == *version) {
                    self.put(id, None, sectors.iter(), data);
                }
            }
            ShardOp::Zero { version, sectors, .. } => {
                let own = Rc::make_mut(self.objects.entry(id).or_default());
                (own.version, own.deleted) = (*version, false);
                own.sectors.retain(|s, _| *s < sectors.start || *s >= sectors.end());
            }
            ShardOp::Delete { version, .. } => {
                self.tombstone(id, *version, true);
            }
            ShardOp::Collect { version, .. } => {
                if self.objects.get(&id).is_some_and(|o| o.deleted && o.version == *version) {
                    self.objects.remove(&id);
                }
            }
            ShardOp::Restore { version, content, .. } => {
                self.tombstone(id, *version, content.deleted);
                let sectors = content.extents.iter().flat_map(|e| e.iter());
                if !content.deleted {
                    self.put(id, Some(*version), sectors, &content.data);
                }
                for r in &content.requests {
                    self.requests.insert((r.client, r.seq), r.version);
                }
            }
            ShardOp::Read { .. } | ShardOp::Fetch { .. } | ShardOp::Sync => {}
        }
    }

    fn tombstone(&mut self, id: ObjectId, version: Version, deleted: bool) {
        self.objects.insert(id, Rc::new(ModelObject { version, deleted, ..ModelObject::default() }));
    }

    fn put(&mut self, id: ObjectId, version: Option<Version>, sectors: impl Iterator<Item = u32>, data: &Buffer) {
        let own = Rc::make_mut(self.objects.entry(id).or_default());
        if let Some(version) = version {
            (own.version, own.deleted) = (version, false);
        }
        for (sector, bytes) in sectors.zip(data.chunks_exact(SECTOR)) {
            own.sectors.insert(sector, u64::from_le_bytes(bytes[..8].try_into().expect("eight")));
        }
    }

    /// Heads and requests, compared with the model.
    fn differs_in_heads(&self, store: &Store) -> Option<String> {
        for n in 0..64 {
            let id = object(n);
            let head = store.head(&id).map(|h| (h.version, h.deleted));
            let own = self.objects.get(&id).map(|o| (o.version, o.deleted));
            if head != own {
                return Some(format!("head of {id}: store {head:?}, model {own:?}"));
            }
        }
        for (&(client, seq), &version) in &self.requests {
            let got = store.request(client, seq);
            if got != RequestState::Applied(version) {
                return Some(format!("request {client}/{seq}: {got:?}, model {version}"));
            }
        }
        None
    }

    /// What the index says, compared with the model. Data is not read.
    pub fn differs_from_index(&self, store: &Store) -> Option<String> {
        if let Some(why) = self.differs_in_heads(store) {
            return Some(why);
        }
        for (id, own) in &self.objects {
            let held = allocated(store, id);
            let own: BTreeSet<u32> = own.sectors.keys().copied().collect();
            if held != own {
                return Some(format!("sectors of {id}: store {held:?}, model {own:?}"));
            }
        }
        None
    }

    /// Everything, data included, compared with the model.
    pub fn differs(&self, driver: &mut Driver) -> Option<String> {
        if let Some(why) = self.differs_from_index(&driver.store) {
            return Some(why);
        }
        self.differs_in_data(driver, u32::MAX)
    }

    /// Data of the objects numbered below `most`, compared with the model.
    pub fn differs_in_data(&self, driver: &mut Driver, most: u32) -> Option<String> {
        for (id, own) in self.objects.iter().filter(|(id, _)| id.index < most) {
            let ShardOutcome::Fetched { version, content } = driver.call(ShardOp::Fetch { object: *id }) else {
                return Some(format!("{id} cannot be fetched"));
            };
            let data = filled(own.sectors.values().copied());
            if version != own.version || content.data != data || content.crcs != sector_crcs(&data) {
                return Some(format!("content of {id} at {version}"));
            }
        }
        None
    }

    /// A random mutation that succeeds on this state, given enough space.
    pub fn random_op(&self, rng: &mut Rng, objects: u32, sectors: u32, counter: &mut u64) -> ShardOp {
        let object = object(rng.below(objects.into()) as u32);
        let current = self.objects.get(&object);
        *counter += 1;
        let version = Version(*counter);
        let start = rng.below(sectors.into()) as u32;
        let longest = if rng.chance(20) { 24 } else { 3 };
        let count = 1 + rng.below(u64::from((sectors - start).min(longest))) as u32;
        let range = SectorRange::new(start, count);
        let client = 1 + rng.below(3);
        let origin = Origin { client: ClientId(client), seq: *counter, floor: counter.saturating_sub(20) };
        match (rng.below(100), current) {
            (0..8, _) => ShardOp::Zero { object, version, sectors: range, origin },
            (8..12, _) => ShardOp::Delete { object, version, origin },
            (12..16, Some(o)) if o.deleted => ShardOp::Collect { object, version: o.version },
            (16..24, _) => restore(rng, object, version, sectors),
            (24..28, Some(o)) if !o.deleted && o.sectors.contains_key(&start) => {
                let data = filled(std::iter::once(o.sectors[&start]));
                let crcs = sector_crcs(&data);
                ShardOp::Repair { object, version: o.version, sectors: SectorRange::new(start, 1), data, crcs }
            }
            _ => write(object, version, range, origin),
        }
    }
}

pub fn write(object: ObjectId, version: Version, sectors: SectorRange, origin: Origin) -> ShardOp {
    let data = filled(sectors.iter().map(|s| word(version, s)));
    let crcs = sector_crcs(&data);
    ShardOp::Write { object, version, sectors, data, crcs, origin }
}

fn restore(rng: &mut Rng, object: ObjectId, version: Version, sectors: u32) -> ShardOp {
    let mut content = ObjectContent { deleted: rng.chance(20), ..ObjectContent::default() };
    let requests = rng.below(10).saturating_sub(7);
    for i in 0..requests {
        let seq = version.0 * 10 + i;
        content.requests.push(AppliedRequest { client: ClientId(50), seq, version });
    }
    if !content.deleted {
        let mut at = rng.below(4) as u32;
        while at < sectors {
            let count = 1 + rng.below(4).min(u64::from(sectors - at - 1)) as u32;
            content.extents.push(SectorRange::new(at, count));
            at += count + 1 + rng.below(12) as u32;
        }
        content.data = filled(content.extents.iter().flat_map(|e| e.iter()).map(|s| word(version, s)));
        content.crcs = sector_crcs(&content.data);
    }
    ShardOp::Restore { object, version, content }
}

fn allocated(store: &Store, id: &ObjectId) -> BTreeSet<u32> {
    let mut at = 0;
    let mut held = BTreeSet::new();
    for run in store.allocation(id, SectorRange::new(0, 1024)) {
        if run.data {
            held.extend(at..at + run.count);
        }
        at += run.count;
    }
    assert_eq!(at, 1024, "allocation covers what was asked for");
    held
}
