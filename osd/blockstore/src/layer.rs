//! What the objects of one layer with one part number have in common. It is interned, so that neither memory nor
//! checkpoints repeat it for every object.

use cluster_proto::ids::ObjectId;
use cluster_proto::layout::LayerRef;

/// A layer, and which shard of its objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerPart {
    /// The layer.
    pub layer: LayerRef,
    /// The shard number; 0 in replicated pools.
    pub part: u8,
}

impl LayerPart {
    /// Where an object belongs.
    pub const fn of(object: &ObjectId) -> LayerPart {
        let layer = LayerRef { pool: object.pool, lineage: object.lineage, layer: object.layer };
        LayerPart { layer, part: object.part }
    }

    /// The object with this index.
    pub const fn object(self, index: u32) -> ObjectId {
        self.layer.object(index).shard(self.part)
    }

    /// For hashing: every field, in words.
    pub const fn words(self) -> [u64; 3] {
        let LayerRef { pool, lineage, layer } = self.layer;
        [(self.part as u64) << 32 | pool.0 as u64, lineage.0, layer.0]
    }
}
