//! Digests of what each PG of a declared pool holds, kept up to date with every change of a head.

use std::collections::BTreeMap;

use cluster_proto::limits::DIGEST_BUCKETS;
use cluster_proto::shard::{Digests, ObjectHead, digest_bucket, digest_hash};
use cluster_proto::{PgId, PoolId};

struct PoolDigests {
    pg_count: u32,
    /// Only PGs that ever held something take memory.
    pgs: BTreeMap<u32, Box<Digests>>,
}

/// Digests of all declared pools.
#[derive(Default)]
pub struct DigestTable {
    pools: BTreeMap<PoolId, PoolDigests>,
}

impl DigestTable {
    /// PGs of a pool; `None` if it was not declared.
    pub fn pg_count(&self, pool: PoolId) -> Option<u32> {
        self.pools.get(&pool).map(|p| p.pg_count)
    }

    /// Starts over for a pool; the caller adds what is stored.
    pub fn declare(&mut self, pool: PoolId, pg_count: u32) {
        self.pools.insert(pool, PoolDigests { pg_count, pgs: BTreeMap::new() });
    }

    /// Takes a head into its digest.
    pub fn add(&mut self, head: &ObjectHead) {
        self.change(head, u64::wrapping_add);
    }

    /// Takes a head out of its digest.
    pub fn remove(&mut self, head: &ObjectHead) {
        self.change(head, u64::wrapping_sub);
    }

    fn change(&mut self, head: &ObjectHead, sum: fn(u64, u64) -> u64) {
        let Some(pool) = self.pools.get_mut(&head.object.pool) else { return };
        let pg = head.object.pg(pool.pg_count).index;
        let digests = pool.pgs.entry(pg).or_insert_with(|| Box::new([0; DIGEST_BUCKETS]));
        let bucket = &mut digests[digest_bucket(&head.object)];
        *bucket = sum(*bucket, digest_hash(head));
    }

    /// Digests of a PG; all zero if it is empty or unknown.
    pub fn of(&self, pg: PgId) -> Digests {
        self.pools.get(&pg.pool).and_then(|p| p.pgs.get(&pg.index)).map_or([0; DIGEST_BUCKETS], |d| **d)
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> u64 {
        self.pools.values().map(|p| (p.pgs.len() * size_of::<Digests>()) as u64).sum()
    }
}
