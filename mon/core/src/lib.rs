//! What the monitor decides, without I/O, clock or randomness: which OSDs serve a placement group ([`placement`]), which of them run ([`liveness`]),
//! which keys of the cluster state must be written now ([`plan`]), and how the cluster is ([`health`]).
//!
//! Everything but liveness, which needs time, is a function of the cluster map. The monitor's driver (crate `mon`) mirrors the map from the state store
//! and writes what [`plan`] returns; `blockyard status` asks the same functions.

pub mod dry_run;
pub mod fullness;
pub mod health;
mod interval;
pub mod liveness;
mod merge;
pub mod placement;
mod plan;
mod problem;
mod split;

pub use interval::Running;
pub use plan::{PgChange, Plan, plan, usable};
pub use problem::{Problem, ProblemCode, Severity};
pub use split::check_pg_count;
