//! The schema of the cluster state: which keys there are, what their JSON values mean, and what a value must satisfy.
//!
//! Everything lives under [`keys::ROOT`]. A value that breaks its schema is refused by the CLI and ignored, with a loud
//! error, by daemons ([`ClusterMap::apply`] leaves the previous value in force).

mod cluster;
mod image;
pub mod keys;
mod osd;
mod pg;
mod pool;
mod rules;
mod scrub;
mod settings;
mod tree;

pub use cluster::{ClusterInfo, ClusterMap, MapChange, SchemaError, parse};
pub use image::{ExportConfig, ImageMeta, ImageName};
pub use osd::{GatewayState, LatencyStats, OsdConfig, OsdState, OsdStats, RecoveryRate, WEIGHT_MAX};
pub use pg::{Activation, DEAD_MAX, Interval, Member, PgMap, Suspicion};
pub use pool::{ImmediateCommit, PoolConfig, Scheme};
pub use rules::{PlacementRules, SCATTER_WIDTH_MAX, TAGS_MAX};
pub use scrub::{PgScrub, ScrubRequest};
pub use settings::ClusterSettings;
pub use tree::{LEVEL_HOST, LEVEL_OSD, PlacementTree, TREE_LEVELS_MAX, TREE_NODES_MAX, TreeNode};
