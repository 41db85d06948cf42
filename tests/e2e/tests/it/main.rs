//! The command, from outside. Each test has a cluster of its own and leaves nothing behind.

mod cli;
mod clients;
mod crash;
mod daemons;
mod damage;
mod engine;
mod failover;
mod full;
mod kernel;
mod observed;
mod outages;
mod scrub;
mod security;
mod sharing;
mod up;
