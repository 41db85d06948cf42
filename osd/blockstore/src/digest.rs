//! Digests of what each PG of a declared pool holds, kept up to date with every change of a head; and which of its objects
//! are tombstones, so that they can be listed without looking at all others. Digests are sums: those of PGs that together were one, or still
//! are for others, add up to its.

use std::collections::{BTreeMap, HashSet};
use std::hash::BuildHasherDefault;

use cluster_proto::limits::{DIGEST_BUCKETS, SHARDS_MAX};
use cluster_proto::shard::{Digests, ObjectHead, digest_bucket, digest_hash};
use cluster_proto::{ObjectId, PgScope, PoolId};

use crate::index::{Key, Mixer, SPARSE_PLACES_MIN, SPARSE_SHARE};
use crate::prefetch::prefetch;

/// Memory of one place in a set of tombstones. Bytes.
const PLACE_BYTES: u64 = size_of::<Key>() as u64 + 1;

/// One of the sets of keys of a PG.
type Set = fn(&mut PgSummary) -> &mut HashSet<Key, BuildHasherDefault<Mixer>>;

struct PgSummary {
    digests: Digests,
    tombstones: HashSet<Key, BuildHasherDefault<Mixer>>,
    staged: HashSet<Key, BuildHasherDefault<Mixer>>,
    /// Objects by their part.
    parts: [u32; SHARDS_MAX],
}

impl PgSummary {
    fn empty() -> Box<Self> {
        let (tombstones, staged) = (HashSet::default(), HashSet::default());
        Box::new(PgSummary { digests: [0; DIGEST_BUCKETS], tombstones, staged, parts: [0; SHARDS_MAX] })
    }

    /// Bytes of memory.
    fn memory_bytes(&self) -> u64 {
        size_of::<PgSummary>() as u64 + (self.tombstones.capacity() + self.staged.capacity()) as u64 * PLACE_BYTES
    }
}

struct PoolDigests {
    pg_count: u32,
    /// Only PGs that ever held something take memory.
    pgs: BTreeMap<u32, Box<PgSummary>>,
}

/// Digests and tombstones of all declared pools.
#[derive(Default)]
pub struct DigestTable {
    pools: BTreeMap<PoolId, PoolDigests>,
    /// Bytes of memory.
    bytes: u64,
}

impl DigestTable {
    /// PGs of a pool; `None` if it was not declared.
    pub fn pg_count(&self, pool: PoolId) -> Option<u32> {
        self.pools.get(&pool).map(|p| p.pg_count)
    }

    /// Starts over for a pool; the caller adds what is stored.
    pub fn declare(&mut self, pool: PoolId, pg_count: u32) {
        let before = self.pools.insert(pool, PoolDigests { pg_count, pgs: BTreeMap::new() });
        let freed = before.iter().flat_map(|p| p.pgs.values()).map(|own| own.memory_bytes());
        self.bytes -= freed.sum::<u64>();
    }

    /// Has the processor fetch what [`replace`](Self::replace) will change.
    pub fn prefetch(&self, object: &ObjectId) {
        let own = self.pools.get(&object.pool).and_then(|pool| pool.pgs.get(&object.pg(pool.pg_count).index));
        if let Some(own) = own {
            prefetch(&own.digests[digest_bucket(object)]);
        }
    }

    /// Takes the old head of an object out of its digest and the new one in. `key` is the object's.
    pub fn replace(&mut self, object: &ObjectId, key: Key, old: Option<&ObjectHead>, new: Option<&ObjectHead>) {
        let Some(pool) = self.pools.get_mut(&object.pool) else { return };
        let own = pool.pgs.entry(object.pg(pool.pg_count).index).or_insert_with(|| {
            let own = PgSummary::empty();
            self.bytes += own.memory_bytes();
            own
        });
        let before = own.memory_bytes();
        let bucket = &mut own.digests[digest_bucket(object)];
        *bucket = bucket.wrapping_sub(old.map_or(0, digest_hash)).wrapping_add(new.map_or(0, digest_hash));
        let of_part = &mut own.parts[usize::from(object.part)];
        *of_part = *of_part + u32::from(new.is_some()) - u32::from(old.is_some());
        let mut follow = |set: Set, is: fn(&ObjectHead) -> bool| match (old.is_some_and(is), new.is_some_and(is)) {
            (false, true) => _ = set(own).insert(key),
            (true, false) => _ = set(own).remove(&key),
            _ => {}
        };
        follow(|own| &mut own.tombstones, |head| head.deleted);
        follow(|own| &mut own.staged, |head| head.staged_over.is_some());
        let left = own.tombstones.len();
        if old.is_some_and(|head| head.deleted)
            && own.tombstones.capacity() as u64 >= SPARSE_PLACES_MIN.max(left as u64 * SPARSE_SHARE)
        {
            own.tombstones.shrink_to(2 * left);
        }
        self.bytes = self.bytes + own.memory_bytes() - before;
    }

    /// Whether the PG is one of those that are kept, or some of them together.
    pub fn is_kept(&self, scope: PgScope) -> bool {
        self.pg_count(scope.pg.pool).is_none_or(|count| count.is_multiple_of(scope.count))
    }

    /// What is kept of a PG, in parts.
    fn kept(&self, scope: PgScope) -> impl Iterator<Item = &PgSummary> {
        debug_assert!(self.is_kept(scope));
        let pool = self.pools.get(&scope.pg.pool).into_iter();
        pool.flat_map(move |pool| scope.parts(pool.pg_count).filter_map(|pg| pool.pgs.get(&pg.index)).map(|own| &**own))
    }

    /// Digests of a PG; all zero if it is empty or unknown.
    pub fn of(&self, scope: PgScope) -> Digests {
        let mut all: Digests = [0; DIGEST_BUCKETS];
        for own in self.kept(scope) {
            all.iter_mut().zip(&own.digests).for_each(|(sum, own)| *sum = sum.wrapping_add(*own));
        }
        all
    }

    /// Keys of a PG's tombstones, in no particular order.
    pub fn tombstones(&self, scope: PgScope) -> impl Iterator<Item = Key> {
        self.kept(scope).flat_map(|own| own.tombstones.iter().copied())
    }

    /// Keys of a PG's objects whose newest change is staged, in no particular order.
    pub fn staged(&self, scope: PgScope) -> impl Iterator<Item = Key> {
        self.kept(scope).flat_map(|own| own.staged.iter().copied())
    }

    /// Which parts of objects a PG has here, as a bit mask.
    pub fn parts(&self, scope: PgScope) -> u32 {
        let counts = self.kept(scope).flat_map(|own| own.parts.iter().enumerate());
        counts.filter(|(_, count)| **count > 0).fold(0, |mask, (part, _)| mask | 1 << part)
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> u64 {
        self.bytes
    }
}
