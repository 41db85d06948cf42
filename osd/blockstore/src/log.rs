//! The metadata log: a ring of blocks through which entries run as one stream.

pub mod append;
pub mod replay;
