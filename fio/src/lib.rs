//! fio's native engine: `fio --ioengine=external:libfio_blockyard.so --blockyard_image=NAME` makes load with Blockyard's client
//! inside fio's own threads, with nothing between them and the OSDs. docs/fio.md tells how to use it.
//!
//! - `ioengine.c` is fio's side: options, the table of functions, fio's structures. It is compiled against fio's headers
//!   (`fio/headers` fetches them); without them this crate is built, checked and tested, but the library has no entry point.
//! - [`abi`] is the border, in both languages: `blockyard.h` says the same. The only unsafe code is there.
//! - [`settings`] is what the options mean, [`access`] how to get at the cluster that they name.
//! - [`engine`] keeps account of what is under way; it drives a [`target`]: an image of a cluster, or a bare store.
//!
//! Each fio thread or process has an engine of its own, with its own client, connections and ring. They share nothing.

mod abi;
mod access;
mod cluster;
mod engine;
mod error;
mod settings;
mod store;
mod target;
