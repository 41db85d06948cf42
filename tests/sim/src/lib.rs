//! A cluster in one thread, from one seed.
//!
//! The code under test is the code that ships: `cluster-client`, `osd-core`, `blockstore`, `mon-core` and the state
//! store's core. Simulated are the clock, the network ([`net`]), the disks ([`disk`]) and the state store's delays
//! ([`control`]). A run ([`world::run`]) lets clients do random work ([`workload`]) while faults happen ([`faults`]), then
//! heals everything, waits until every operation is answered, reads everything back, and judges what clients saw
//! ([`checker`], and for lazy pools [`losses`]). docs/sim.md tells how to use it.

pub mod checker;
pub mod control;
pub mod disk;
pub mod faults;
mod fill;
pub mod lazy;
pub mod losses;
pub mod net;
pub mod nodes;
pub mod rng;
mod scrubs;
mod sectors;
mod state;
pub mod watch;
pub mod workload;
pub mod world;
