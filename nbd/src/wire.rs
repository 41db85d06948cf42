//! The layouts of the protocol: for each a raw struct in network byte order and, where a client chose the content, a
//! validated value made from it.

pub mod chunk;
pub mod error;
pub mod extent;
pub mod flags;
pub mod greeting;
pub mod info;
pub mod meta_context;
pub mod option;
pub mod option_reply;
pub mod request;
pub mod simple_reply;
mod string;

pub use error::DecodeError;
