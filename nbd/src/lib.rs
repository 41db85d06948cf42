//! The server side of the NBD protocol as a pure state machine.
//!
//! [`Session`] is one connection: bytes in, bytes out, requests to the volume out, completions in, one timer (see
//! [`gateway_core::Session`]). It has no socket, thread or clock; the gateway's connection driver moves the bytes.
//!
//! - [`wire`]: the layouts of the protocol, raw and validated.
//! - [`session`]: what a connection does with them.
//! - [`status`]: how outcomes of the volume are said in NBD's words.
//! - [`limits`]: every bound, in one place.
//!
//! The specification is `doc/proto.md` of <https://github.com/NetworkBlockDevice/nbd>; rules are cited where they are
//! followed, as `//= nbd-proto §Section`.

pub mod limits;
pub mod session;
pub mod status;
pub mod wire;

pub use limits::Limits;
pub use session::Session;
