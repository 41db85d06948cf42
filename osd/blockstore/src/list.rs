//! Questions that memory answers at once: heads, requests, digests, lists.

use cluster_proto::ids::{ClientId, ObjectId, PoolId};
use cluster_proto::shard::{Allocation, Buckets, Digests, ObjectHead, RequestState, ShardIndex, Space};
use cluster_proto::{PgScope, SECTOR, SectorRange};

use crate::store::Store;

impl ShardIndex for Store {
    fn head(&self, object: &ObjectId) -> Option<ObjectHead> {
        self.index.head(object)
    }

    fn request(&self, client: ClientId, seq: u64) -> RequestState {
        self.requests.state(client, seq)
    }

    fn set_floor(&mut self, client: ClientId, floor: u64) {
        self.requests.raise_floor(client, floor);
    }

    fn allocation(&self, object: &ObjectId, sectors: SectorRange) -> Vec<Allocation> {
        let mut runs = Vec::new();
        let mut at = sectors.start;
        if let Some(view) = self.index.object(object) {
            for (extent, _) in view.parts(sectors) {
                let held = extent.sectors();
                push_run(&mut runs, held.start - at, false);
                push_run(&mut runs, held.count, true);
                at = held.end();
            }
        }
        push_run(&mut runs, sectors.end() - at, false);
        runs
    }

    fn set_pool(&mut self, pool: PoolId, pg_count: u32) {
        self.index.set_pool(pool, pg_count);
    }

    fn digests(&self, scope: PgScope) -> Digests {
        self.index.digests_of(scope)
    }

    fn list(&self, scope: PgScope, buckets: &Buckets) -> Vec<ObjectHead> {
        self.index.list(scope, buckets)
    }

    fn tombstones(&self, scope: PgScope) -> Vec<ObjectHead> {
        self.index.tombstones(scope)
    }

    fn staged(&self, scope: PgScope) -> Vec<ObjectHead> {
        self.index.staged(scope)
    }

    fn parts(&self, scope: PgScope) -> u32 {
        self.index.parts(scope)
    }

    fn space(&self) -> Space {
        let sectors = self.geometry.data_sectors;
        Space {
            total: sectors * SECTOR as u64,
            used: (sectors - self.allocator.free_count()) * SECTOR as u64,
            objects: self.index.object_count(),
        }
    }
}

fn push_run(runs: &mut Vec<Allocation>, count: u32, data: bool) {
    match runs.last_mut() {
        _ if count == 0 => {}
        Some(last) if last.data == data => last.count += count,
        _ => runs.push(Allocation { count, data }),
    }
}
