//! What peering asks of the index: digests, and heads of the objects of one PG. Nothing is kept per object for it; a PG's
//! objects are found by arithmetic, because every layer has them at every `pg_count`-th index.

use cluster_proto::ids::{PgId, PoolId};
use cluster_proto::layout::{PgScope, mix};
use cluster_proto::limits::DIGEST_BUCKETS;
use cluster_proto::shard::{Buckets, Digests, ObjectHead, digest_bucket, digest_hash};

use super::{Index, Key, LayerUse, Place};

/// What looking an object up costs, compared with passing by an index of a layer at which there may be none.
const LOOKUP_COST: u64 = 12;
/// What passing by an object in a table costs, compared with passing by an index of a layer.
const SCAN_COST: u64 = 2;

/// The indices of a layer at which objects of a PG are: first, distance.
fn indices(layer: &LayerUse, pg: PgId, pg_count: u32) -> (u64, u64) {
    let base = mix(layer.own.layer.lineage);
    if base.checked_add(layer.index_max.into()).is_none() {
        // The sum that decides wraps within the layer: the distance is not the same everywhere.
        return (0, 1);
    }
    let count = u64::from(pg_count);
    ((u64::from(pg.index) + count - base % count) % count, count)
}

fn bucket_count(buckets: &Buckets) -> u64 {
    buckets.0.iter().map(|w| u64::from(w.count_ones())).sum()
}

impl Index {
    /// See [`cluster_proto::shard::ShardIndex::set_pool`].
    pub fn set_pool(&mut self, pool: PoolId, pg_count: u32) {
        if pg_count == 0 || self.digests.pg_count(pool).is_some_and(|kept| kept.is_multiple_of(pg_count)) {
            return;
        }
        let mut digests = std::mem::take(&mut self.digests);
        digests.declare(pool, pg_count);
        if self.layers_of(pool).next().is_some() {
            let own = self.places().filter(|(place, _)| self.layers[place.key.layer as usize].own.layer.pool == pool);
            for (place, record) in own {
                let head = self.head_of(place, record);
                digests.replace(&head.object, place.key, None, Some(&head));
            }
        }
        self.digests = digests;
    }

    /// Numbers of a pool's layers that have objects.
    fn layers_of(&self, pool: PoolId) -> impl Iterator<Item = (u32, &LayerUse)> {
        let used = self.layers.iter().zip(0..).filter(move |(l, _)| l.objects > 0 && l.own.layer.pool == pool);
        used.map(|(layer, number)| (number, layer))
    }

    /// Heads of a PG's objects in the given buckets, ascending.
    pub fn list(&self, scope: PgScope, buckets: &Buckets) -> Vec<ObjectHead> {
        let PgScope { pg, count } = scope;
        if self.digests.pg_count(pg.pool).is_none() || buckets.is_empty() {
            return Vec::new();
        }
        let mut heads = if self.walk_cost(pg, count, buckets) < self.scan_cost(buckets) {
            self.walk(pg, count, buckets)
        } else {
            self.scan(pg, count, buckets)
        };
        heads.sort_unstable();
        heads
    }

    fn walk_cost(&self, pg: PgId, pg_count: u32, buckets: &Buckets) -> u64 {
        let candidates = |layer: &LayerUse| u64::from(layer.index_max) / indices(layer, pg, pg_count).1 + 1;
        let all: u64 = self.layers_of(pg.pool).map(|(_, layer)| candidates(layer)).sum();
        all + all * LOOKUP_COST * bucket_count(buckets) / DIGEST_BUCKETS as u64
    }

    /// Looks every object up that could be in the PG. Costs what the PG's layers span.
    pub(super) fn walk(&self, pg: PgId, pg_count: u32, buckets: &Buckets) -> Vec<ObjectHead> {
        let mut heads = Vec::new();
        for (number, layer) in self.layers_of(pg.pool) {
            let (first, distance) = indices(layer, pg, pg_count);
            for index in (first..=u64::from(layer.index_max)).step_by(distance as usize) {
                let object = layer.own.object(index as u32);
                if !buckets.contains(digest_bucket(&object)) || object.pg(pg_count) != pg {
                    continue;
                }
                let key = Key { layer: number, index: index as u32 };
                heads.extend(self.head_at(Place { partition: self.partition_of(&object), key }));
            }
        }
        heads
    }

    /// Partitions in which objects of the buckets lie.
    fn partitions_of(&self, buckets: &Buckets) -> impl Iterator<Item = usize> {
        let count = self.partitions.len();
        (0..count).filter(move |&p| (p..DIGEST_BUCKETS).step_by(count).any(|bucket| buckets.contains(bucket)))
    }

    fn scan_cost(&self, buckets: &Buckets) -> u64 {
        self.partitions_of(buckets).map(|p| self.partitions[p].objects.len() as u64 * SCAN_COST).sum()
    }

    /// Looks at every object of the partitions that hold the buckets.
    pub(super) fn scan(&self, pg: PgId, pg_count: u32, buckets: &Buckets) -> Vec<ObjectHead> {
        let mut heads = Vec::new();
        for partition in self.partitions_of(buckets) {
            for (&key, record) in &self.partitions[partition].objects {
                let layer = &self.layers[key.layer as usize].own;
                let object = layer.object(key.index);
                let is_wanted = layer.layer.pool == pg.pool && object.pg(pg_count) == pg;
                if is_wanted && buckets.contains(digest_bucket(&object)) {
                    heads.push(self.head_of(Place { partition, key }, record));
                }
            }
        }
        heads
    }

    /// Digests of a PG.
    pub fn digests_of(&self, scope: PgScope) -> Digests {
        if self.digests.is_kept(scope) {
            return self.digests.of(scope);
        }
        // Only if somebody changed the pool's number of PGs to one that has nothing to do with what there is.
        let mut digests = [0u64; DIGEST_BUCKETS];
        for head in self.list(scope, &Buckets::ALL) {
            let bucket = &mut digests[digest_bucket(&head.object)];
            *bucket = bucket.wrapping_add(digest_hash(&head));
        }
        digests
    }

    /// Which parts of objects of a PG are here.
    pub fn parts(&self, scope: PgScope) -> u32 {
        match self.digests.is_kept(scope) {
            true => self.digests.parts(scope),
            false => self.list(scope, &Buckets::ALL).iter().fold(0, |mask, head| mask | 1 << head.object.part),
        }
    }

    /// Tombstones of a PG, ascending.
    pub fn tombstones(&self, scope: PgScope) -> Vec<ObjectHead> {
        match self.digests.is_kept(scope) {
            true => self.heads_of(self.digests.tombstones(scope)),
            false => self.listed(scope, |head| head.deleted),
        }
    }

    /// Objects of a PG whose newest change is staged, ascending.
    pub fn staged(&self, scope: PgScope) -> Vec<ObjectHead> {
        match self.digests.is_kept(scope) {
            true => self.heads_of(self.digests.staged(scope)),
            false => self.listed(scope, |head| head.staged_over.is_some()),
        }
    }

    fn listed(&self, scope: PgScope, is_wanted: fn(&ObjectHead) -> bool) -> Vec<ObjectHead> {
        self.list(scope, &Buckets::ALL).into_iter().filter(is_wanted).collect()
    }

    fn heads_of(&self, keys: impl Iterator<Item = Key>) -> Vec<ObjectHead> {
        let places = keys.map(|key| {
            let object = self.layers[key.layer as usize].own.object(key.index);
            Place { partition: self.partition_of(&object), key }
        });
        let mut heads: Vec<_> = places.filter_map(|place| self.head_at(place)).collect();
        heads.sort_unstable();
        heads
    }
}
