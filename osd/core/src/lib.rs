//! What an OSD decides, without sockets, files, threads or a clock.
//!
//! [`Osd`] is fed with messages, store outcomes, pieces of the cluster state and the time; it is drained of [`Output`]s.
//! It does not know the store: a local copy is just another member of the PG, whose operations the driver hands to
//! `blockstore` instead of the network, and what it needs to know at once it asks through
//! [`ShardIndex`](cluster_proto::shard::ShardIndex).
//!
//! - [`request`](mod@request): a client's request comes in, waits for its PG and its object, is answered;
//! - [`write`](mod@write), [`read`](mod@read), [`ec`](mod@ec): what the primary does;
//! - [`recovery`](mod@recovery), [`pace`](mod@pace), [`purge`](mod@purge): how copies come to where they should be, and go from elsewhere;
//! - [`scrub`](mod@scrub): damage is looked for and repaired;
//! - [`secondary`](mod@secondary): what a member does for a primary;
//! - [`latency`](mod@latency), [`slow`](mod@slow): how long it all takes, and why;
//! - [`pg`]: state, locks, peering and recovery of a placement group.

mod ec;
#[cfg(test)]
mod hostile;
mod latency;
mod links;
mod op;
mod osd;
mod pace;
mod pg;
mod purge;
mod read;
mod recovery;
mod request;
mod scrub;
mod secondary;
mod slow;
#[cfg(test)]
mod testing;
mod write;

pub use latency::{ByClass, Latencies, OP_CLASSES, OpClass};
pub use osd::{Osd, OsdOptions, Output};
pub use pg::PgSummary;
