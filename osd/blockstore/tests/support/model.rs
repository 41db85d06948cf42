//! What a store should hold: a plain map, and random operations on it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use blockstore::Store;
use buffer::Buffer;
use cluster_proto::crc::{Crcs, sector_crcs};
use cluster_proto::ids::{ClientId, LayerId, ObjectId, PgId, PoolId, Version};
use cluster_proto::limits::DIGEST_BUCKETS;
use cluster_proto::shard::{
    AppliedRequest, Buckets, ObjectContent, ObjectHead, Origin, RequestState, ShardIndex, ShardOp, ShardOutcome,
    Unreadable, digest_bucket, digest_hash,
};
use cluster_proto::{PgScope, SECTOR, SectorRange};

use super::Rng;
use super::driver::Driver;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelObject {
    pub version: Version,
    pub deleted: bool,
    /// Sector -> the word that fills it; with [`LOST`], the word that would, if it could be read.
    pub sectors: BTreeMap<u32, u64>,
    pub staged: Option<Staged>,
}

/// Nobody can read the sector.
pub const LOST: u64 = 1 << 63;

/// What a rollback leads back to.
#[derive(Clone, Debug, PartialEq)]
pub struct Staged {
    pub before: Option<Rc<ModelObject>>,
    pub request: (ClientId, u64),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// Shared between the many states of a run.
    pub objects: BTreeMap<ObjectId, Rc<ModelObject>>,
    pub requests: BTreeMap<(ClientId, u64), (Version, ObjectId)>,
    /// Requests that were taken back, or whose object was dropped.
    pub forgotten: BTreeSet<(ClientId, u64)>,
}

/// PGs of the pool in which the tests' objects are.
pub const PG_COUNT: u32 = 3;

/// Two numbers in a row are two parts of one object.
pub fn object(n: u32) -> ObjectId {
    let layer = LayerId(7 + u64::from(n / 2 % 3));
    ObjectId { pool: PoolId(1), lineage: LayerId(7), layer, index: n / 2, part: (n % 2) as u8 }
}

fn number(object: &ObjectId) -> u32 {
    object.index * 2 + u32::from(object.part)
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

impl ModelObject {
    /// How many sectors more than in the model cannot be read. None if anything else differs.
    pub fn damage(&self, content: &ObjectContent) -> Option<usize> {
        let mut unreadable = content.unreadable.iter().copied().peekable();
        let mut damaged = 0;
        let found: Vec<&[u8]> = content.data.chunks_exact(SECTOR).collect();
        for ((sector, word), found) in self.sectors.iter().zip(&found) {
            let is_lost = word & LOST != 0;
            let intact = filled([word & !LOST].into_iter());
            let marked = Unreadable { sector: *sector, crc: sector_crcs(&intact)[0] };
            let is_unreadable = unreadable.next_if_eq(&marked).is_some();
            damaged += usize::from(is_unreadable && !is_lost);
            let expected = if is_unreadable { &[0; SECTOR][..] } else { &intact[..] };
            if *found != expected || is_lost && !is_unreadable {
                return None;
            }
        }
        let extents = content.extents.iter().flat_map(|e| e.iter());
        let fits = extents.eq(self.sectors.keys().copied()) && content.crcs == sector_crcs(&content.data);
        (fits && found.len() == self.sectors.len() && unreadable.next().is_none()).then_some(damaged)
    }

    fn head(&self, object: ObjectId) -> ObjectHead {
        let before = |staged: &Staged| staged.before.as_ref().map_or(Version::NONE, |b| b.version);
        ObjectHead {
            object,
            version: self.version,
            deleted: self.deleted,
            staged_over: self.staged.as_ref().map(before),
        }
    }
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
        | ShardOp::Stage { origin, version, .. }
        | ShardOp::Delete { origin, version, .. } = op
            && origin.client != ClientId(0)
        {
            self.requests.retain(|k, _| k.0 != origin.client || k.1 >= origin.floor);
            self.requests.insert((origin.client, origin.seq), (*version, id));
            self.forgotten.retain(|k| k.0 != origin.client || k.1 >= origin.floor);
        }
        match op {
            ShardOp::Write { version, sectors, data, .. } => {
                self.commit(id);
                self.put(id, Some(*version), sectors.iter(), data);
            }
            ShardOp::Repair { version, sectors, data, .. } => {
                if self.objects.get(&id).is_some_and(|o| !o.deleted && o.version == *version) {
                    self.put(id, None, sectors.iter(), data);
                }
            }
            ShardOp::Zero { version, sectors, .. } => {
                self.commit(id);
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
                    self.lose(id, &content.unreadable);
                }
                for r in &content.requests {
                    self.requests.insert((r.client, r.seq), (r.version, id));
                }
            }
            ShardOp::Patch { base, version, sectors, content, .. } => {
                assert_eq!(self.version(&id), *base);
                self.commit(id);
                let own = Rc::make_mut(self.objects.entry(id).or_default());
                own.sectors.retain(|s, _| !sectors.iter().any(|r| r.contains(SectorRange::new(*s, 1))));
                self.put(id, Some(*version), content.extents.iter().flat_map(|e| e.iter()), &content.data);
                self.lose(id, &content.unreadable);
                for r in &content.requests {
                    self.requests.insert((r.client, r.seq), (r.version, id));
                }
            }
            ShardOp::Stage { version, sectors, data, origin, .. } => {
                self.commit(id);
                let before = self.objects.get(&id).cloned();
                let own = Rc::make_mut(self.objects.entry(id).or_default());
                own.sectors.retain(|s, _| *s < sectors.start || *s >= sectors.end());
                let written = if data.is_empty() { SectorRange::new(0, 0) } else { *sectors };
                self.put(id, Some(*version), written.iter(), data);
                let request = (origin.client, origin.seq);
                Rc::make_mut(self.objects.entry(id).or_default()).staged = Some(Staged { before, request });
            }
            ShardOp::Commit { version, .. } if self.version(&id) == *version => self.commit(id),
            ShardOp::Rollback { version, .. } if self.version(&id) == *version => self.rollback(id),
            ShardOp::Drop { version, .. } if self.version(&id) == *version => {
                if self.objects.remove(&id).is_some() {
                    let gone = self.requests.extract_if(.., |_, (_, object)| *object == id);
                    self.forgotten.extend(gone.map(|(request, _)| request));
                }
            }
            ShardOp::Commit { .. } | ShardOp::Rollback { .. } | ShardOp::Drop { .. } => {}
            ShardOp::Read { .. }
            | ShardOp::Fetch { .. }
            | ShardOp::FetchPart { .. }
            | ShardOp::Verify { .. }
            | ShardOp::Sync => {}
        }
    }

    fn commit(&mut self, id: ObjectId) {
        if let Some(own) = self.objects.get_mut(&id)
            && own.staged.is_some()
        {
            Rc::make_mut(own).staged = None;
        }
    }

    fn rollback(&mut self, id: ObjectId) {
        let Some(own) = self.objects.get(&id).cloned() else { return };
        let Some(staged) = &own.staged else { return };
        if self.requests.get(&staged.request) == Some(&(own.version, id)) {
            self.requests.remove(&staged.request);
            self.forgotten.insert(staged.request);
        }
        match &staged.before {
            Some(before) => _ = self.objects.insert(id, before.clone()),
            None => _ = self.objects.remove(&id),
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

    fn lose(&mut self, id: ObjectId, unreadable: &[Unreadable]) {
        let own = Rc::make_mut(self.objects.entry(id).or_default());
        unreadable.iter().for_each(|u| *own.sectors.get_mut(&u.sector).expect("a sector with data") |= LOST);
    }

    /// Heads and requests, compared with the model.
    fn differs_in_heads(&self, store: &Store) -> Option<String> {
        for n in 0..64 {
            let id = object(n);
            let head = store.head(&id);
            let own = self.objects.get(&id).map(|o| o.head(id));
            if head != own {
                return Some(format!("head of {id}: store {head:?}, model {own:?}"));
            }
        }
        for (&(client, seq), &(version, _)) in &self.requests {
            let got = store.request(client, seq);
            if got != RequestState::Applied(version) {
                return Some(format!("request {client}/{seq}: {got:?}, model {version}"));
            }
        }
        for &(client, seq) in &self.forgotten {
            if let RequestState::Applied(version) = store.request(client, seq) {
                return Some(format!("request {client}/{seq} was taken back, but is remembered with {version}"));
            }
        }
        (0..PG_COUNT).find_map(|index| self.differs_in_pg(store, PgId { pool: PoolId(1), index }))
    }

    /// What peering sees, compared with the model.
    fn differs_in_pg(&self, store: &Store, pg: PgId) -> Option<String> {
        let heads: Vec<_> =
            self.objects.iter().filter(|(id, _)| id.pg(PG_COUNT) == pg).map(|(id, own)| own.head(*id)).collect();
        let mut digests = [0u64; DIGEST_BUCKETS];
        for head in &heads {
            let bucket = &mut digests[digest_bucket(&head.object)];
            *bucket = bucket.wrapping_add(digest_hash(head));
        }
        let scope = PgScope { pg, count: PG_COUNT };
        if store.digests(scope) != digests {
            return Some(format!("digests of {pg}"));
        }
        let listed = store.list(scope, &Buckets::ALL);
        if listed != heads {
            return Some(format!("list of {pg}: store {listed:?}, model {heads:?}"));
        }
        let some = Buckets([0x0f0f_3333_0101_8181; DIGEST_BUCKETS / 64]);
        let expected: Vec<_> = heads.iter().filter(|h| some.contains(digest_bucket(&h.object))).copied().collect();
        if store.list(scope, &some) != expected {
            return Some(format!("list of some buckets of {pg}"));
        }
        let deleted: Vec<_> = heads.iter().filter(|h| h.deleted).copied().collect();
        (store.tombstones(scope) != deleted).then(|| format!("tombstones of {pg}"))
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
        for (id, own) in self.objects.iter().filter(|(id, _)| number(id) < most) {
            let ShardOutcome::Fetched { version, content } = driver.call(ShardOp::Fetch { object: *id }) else {
                return Some(format!("{id} cannot be fetched"));
            };
            if version != own.version || own.damage(&content) != Some(0) {
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
            (0..8, _) => ShardOp::Zero { object, version, sectors: range, origin, lazy: false },
            (28..38, Some(o)) if o.staged.is_some() => ShardOp::Commit { object, version: o.version },
            (38..48, Some(o)) if o.staged.is_some() => ShardOp::Rollback { object, version: o.version },
            // Late duplicates.
            (48..50, Some(o)) => ShardOp::Rollback { object, version: Version(o.version.0 - 1) },
            (50..52, Some(o)) => ShardOp::Commit { object, version: Version(o.version.0 - 1) },
            (52..54, Some(o)) => ShardOp::Drop { object, version: o.version },
            (54..60, o) => {
                let base = o.map_or(Version::NONE, |o| o.version);
                patch(rng, object, base, version, sectors)
            }
            (60..84, _) => {
                let (range, is_hole) = match rng.below(10) {
                    0 => (SectorRange::new(0, 0), false),
                    n => (range, n < 4),
                };
                if is_hole { stage_hole(object, version, range, origin) } else { stage(object, version, range, origin) }
            }
            (8..12, _) => ShardOp::Delete { object, version, origin },
            (12..16, Some(o)) if o.deleted => ShardOp::Collect { object, version: o.version },
            (16..24, _) => restore(rng, object, version, sectors),
            // Of what can be read, so that it changes nothing: no version tells what came before it from what came after it.
            (24..28, Some(o)) if !o.deleted && o.sectors.get(&start).is_some_and(|word| word & LOST == 0) => {
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
    ShardOp::Write { object, version, sectors, data, crcs, origin, lazy: false }
}

pub fn stage(object: ObjectId, version: Version, sectors: SectorRange, origin: Origin) -> ShardOp {
    let data = filled(sectors.iter().map(|s| word(version, s)));
    let crcs = sector_crcs(&data);
    ShardOp::Stage { object, version, sectors, rows: sectors, data, crcs, origin }
}

/// A staged change after which the sectors read as zeroes.
pub fn stage_hole(object: ObjectId, version: Version, sectors: SectorRange, origin: Origin) -> ShardOp {
    let (data, crcs) = (Buffer::default(), Crcs::new());
    ShardOp::Stage { object, version, sectors, rows: sectors, data, crcs, origin }
}

fn patch(rng: &mut Rng, object: ObjectId, base: Version, version: Version, end: u32) -> ShardOp {
    let (mut sectors, mut extents) = (Vec::new(), Vec::new());
    let mut at = rng.below(8) as u32;
    while at < end && sectors.len() < 5 {
        let range = SectorRange::new(at, 1 + rng.below(4).min(u64::from(end - at - 1)) as u32);
        sectors.push(range);
        match rng.below(3) {
            0 => {}
            1 => extents.push(range),
            _ => extents.push(SectorRange::new(range.end() - 1, 1)),
        }
        at = range.end() + rng.below(6) as u32;
    }
    let data = filled(extents.iter().flat_map(|e| e.iter()).map(|s| word(version, s)));
    let crcs = sector_crcs(&data);
    let requests = (0..rng.below(10).saturating_sub(8)).map(|i| AppliedRequest {
        client: ClientId(51),
        seq: version.0 * 10 + i,
        version,
    });
    let unreadable = some_unreadable(rng, &extents, &crcs);
    let content = ObjectContent { deleted: false, extents, data, crcs, unreadable, requests: requests.collect() };
    ShardOp::Patch { object, base, version, sectors, content: content.into() }
}

/// Some sectors that nobody can read, now and then.
fn some_unreadable(rng: &mut Rng, extents: &[SectorRange], crcs: &[u32]) -> Vec<Unreadable> {
    if !rng.chance(30) {
        return Vec::new();
    }
    let all = extents.iter().flat_map(|e| e.iter()).zip(crcs);
    all.filter(|_| rng.chance(30)).map(|(sector, crc)| Unreadable { sector, crc: *crc }).collect()
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
        content.unreadable = some_unreadable(rng, &content.extents, &content.crcs);
    }
    ShardOp::Restore { object, version, content: content.into() }
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
