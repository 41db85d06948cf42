//! Reed-Solomon codes over GF(2^8), for any `data + parity` up to 32 shards: parity from data, parity from a change of
//! data, and lost shards from those that are left. Pure arithmetic on byte slices.
//!
//! # Which code
//!
//! The field is GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11D) and generator 2. The generator matrix is
//! the Vandermonde matrix `row^column` of `data + parity` rows, multiplied by the inverse of its upper square, so that data
//! shards are stored as they are. That is the matrix of the crate `reed-solomon-erasure` (`galois_8`), which is the oracle of
//! the tests. With **one** parity shard the parity is the plain XOR of the data instead: it costs a third, any shard is the
//! XOR of the others, and it is *not* the row that the matrix would have.
//!
//! What is on disks depends on the matrix: it can never change.
//!
//! # Speed, and unsafe code
//!
//! The work is `output ^= coefficient * input` over whole shards. [`Kernel`] lists the instruction sets; the best that the
//! machine has is chosen at run time. This crate and `cluster-io` are the only ones of the data path with unsafe code, here
//! for vector loads, stores and the call of functions compiled for an instruction set, all in `kernel/`; every block says why
//! it is sound. `cargo run --release -p erasure --example speed` measures.

mod code;
mod field;
mod kernel;
mod matrix;

pub use code::{Code, CodeError, SHARDS_MAX};
pub use field::images;
pub use kernel::Kernel;
