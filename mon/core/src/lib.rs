//! What the monitor decides, without I/O, clock or randomness: which OSDs serve a placement group ([`placement`]),
//! which keys of the cluster state must be written now ([`plan`]), and how the cluster is ([`health`]).
//!
//! Everything is a function of the cluster map. The monitor's driver (crate `mon`) mirrors the map from the state store
//! and writes what [`plan`] returns; `blockyard status` asks the same functions.

pub mod health;
pub mod placement;
mod plan;
mod problem;

pub use plan::{PgChange, Plan, plan};
pub use problem::{Problem, ProblemCode, Severity};
