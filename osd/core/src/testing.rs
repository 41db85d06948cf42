//! What unit tests share.

use cluster_proto::ids::{ClientId, ObjectId, PoolId};
use cluster_proto::layout::{PgScope, SectorRange};
use cluster_proto::shard::{Allocation, Buckets, Digests, ObjectHead, RequestState, ShardIndex, Space};

/// A store without objects.
#[derive(Default)]
pub(crate) struct Empty {
    /// What pools were told to have, at most.
    pub pg_count: u32,
    /// What it says of its space.
    pub space: Space,
}

impl ShardIndex for Empty {
    fn head(&self, _: &ObjectId) -> Option<ObjectHead> {
        None
    }
    fn request(&self, _: ClientId, _: u64) -> RequestState {
        RequestState::Unknown
    }
    fn set_floor(&mut self, _: ClientId, _: u64) {}
    fn allocation(&self, _: &ObjectId, _: SectorRange) -> Vec<Allocation> {
        Vec::new()
    }
    fn set_pool(&mut self, _: PoolId, pg_count: u32) {
        self.pg_count = self.pg_count.max(pg_count);
    }
    fn digests(&self, _: PgScope) -> Digests {
        [0; 256]
    }
    fn list(&self, _: PgScope, _: &Buckets) -> Vec<ObjectHead> {
        Vec::new()
    }
    fn tombstones(&self, _: PgScope) -> Vec<ObjectHead> {
        Vec::new()
    }
    fn staged(&self, _: PgScope) -> Vec<ObjectHead> {
        Vec::new()
    }
    fn parts(&self, _: PgScope) -> u32 {
        0
    }
    fn space(&self) -> Space {
        self.space
    }
}
