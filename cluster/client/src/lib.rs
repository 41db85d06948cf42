//! What a client decides, without sockets, threads or a clock.
//!
//! [`Client`] turns operations on images ([`ImageOp`]: any offset, any length) into requests on objects, sends each to the
//! primary of its PG, and sends it again for as long as it takes: a caller waits while the cluster heals, it does not see
//! errors of single servers. Connections, introductions and probes are [`cluster_proto::link::Outgoing`].
//!
//! - [`op`]: what can be asked of an image;
//! - [`write`](mod@write), [`read`](mod@read), [`patch`](mod@patch): how it becomes requests, and what their answers mean;
//! - [`request`](mod@request): one request from its number to its answer;
//! - [`unsynced`](mod@unsynced): changes that are answered and not yet durable.

mod client;
mod image;
mod op;
mod patch;
mod read;
mod request;
mod table;
mod unsynced;
mod write;

pub use client::{Client, ClientOptions, Output};
pub use image::{ImageId, ImageOptions};
pub use op::{Extent, ImageOp, ImageReply};
