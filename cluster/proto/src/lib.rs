//! The vocabulary of a Blockyard cluster: ids, the arithmetic that maps a byte of an image to an object and a placement
//! group, every limit, the operations on a shard, the messages between clients and OSDs, latency histograms, and the schema of the cluster
//! state. No I/O, no clock, no decisions.

pub mod auth;
pub mod crc;
pub mod ids;
pub mod latency;
pub mod layout;
pub mod limits;
pub mod link;
pub mod locks;
pub mod map;
pub mod planes;
pub mod shard;
pub mod status;
pub mod wire;

pub use ids::{ClientId, Epoch, Incarnation, LayerId, ObjectId, OsdId, PgId, PoolId, Version};
pub use layout::{LayerRef, PgScope, SECTOR, SectorRange};
pub use status::Status;
pub use uuid::Uuid;
