//! Blockyard's client library: the images of a cluster for asynchronous Rust programs.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use blockyard_client::{Buffer, Client};
//!
//! let state = cluster_state::connect("127.0.0.1:2379")?;
//! let client = Client::connect(state).await?;
//! let image = client.open("default", "demo").await?;
//! image.write_at(0, Buffer::copy_of(b"hello")).await?;
//! assert_eq!(&image.read_at(0, 5).await?[..], b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! - [`Client`] is a connection to a cluster, [`Image`] an open image. Both are cheap handles to clone and to use from many
//!   tasks at once. Behind them is one thread with one io_uring, which talks to the OSDs directly.
//! - Operations wait while the cluster heals; they fail only for reasons that time does not mend ([`ErrorKind`]).
//! - What was acknowledged is durable. Reads and writes are linearizable per 4 KiB sector.
//! - [`metadata`] looks up, lists and makes images.
//! - [`LocalImage`] is an image with a client inside the calling thread, for fio and the benchmark; [`driver`] and [`feed`] are the
//!   parts from which a program with its own reactor loop (the gateway) builds one.

mod client;
pub mod driver;
mod error;
pub mod feed;
mod image;
mod local;
pub mod metadata;
mod shard;
mod watch;

pub use buffer::{Buffer, BufferMut};
pub use client::Client;
pub use cluster_client::Extent;
pub use error::{Error, ErrorKind};
pub use image::{Image, ImageState, TRANSFER_MAX};
pub use local::LocalImage;
pub use metadata::ImageInfo;
