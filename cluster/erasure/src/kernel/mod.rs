//! The work itself: sums of multiples of shards, with whatever vectors the machine has.
//!
//! The loop is written once, over [`Lanes`], and compiled for each instruction set: `x86.rs` and `portable.rs` only say what
//! a vector is. Up to [`GROUP`] outputs are computed in one pass, so that each byte of input is loaded once and the sums stay in
//! registers.
#![allow(unsafe_code)]

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::code::SHARDS_MAX;
use crate::field::multiply_by_nibbles;

/// Outputs computed in one pass: with two vectors of each, the sums, the split input and the tables fit 16 registers.
const GROUP: usize = 4;
/// Vectors of each shard handled at a time: the tables are loaded once for so many.
const UNROLL: usize = 2;
/// Bytes of each shard after which the next group of outputs has its turn, so that inputs stay in the cache. A multiple
/// of what one turn of any kernel handles.
const BLOCK: usize = 4096;

/// An instruction set to compute with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Kernel {
    /// Any machine: words of 64 bits, which the compiler makes vectors of.
    Portable,
    /// AVX2: products by byte shuffles, a table for each nibble.
    Avx2,
    /// GFNI on 256 bits: products as matrices of bits.
    Gfni256,
    /// GFNI on 512 bits.
    Gfni512,
}

impl Kernel {
    /// All, best first.
    pub const ALL: [Kernel; 4] = [Kernel::Gfni512, Kernel::Gfni256, Kernel::Avx2, Kernel::Portable];

    /// The best that this machine has. The processor is asked once a process.
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|kernel| kernel.is_available()).unwrap_or(Kernel::Portable)
    }

    /// Does this machine have the instructions?
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Kernel::Portable => true,
            Kernel::Avx2 => is_x86_feature_detected!("avx2"),
            Kernel::Gfni256 => is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx2"),
            Kernel::Gfni512 => is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx512f"),
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Kernel::Portable;
    }

    /// Computes a product. The kernel must be available.
    pub(crate) fn run(self, mut product: Product<'_, '_>) {
        product.check();
        assert!(self.is_available(), "no {self:?} on this machine");
        let done = match self {
            // SAFETY: portable lanes need nothing of the machine, and `product` has been checked.
            Kernel::Portable => unsafe { whole_turns::<portable::Bytes>(&mut product) },
            // SAFETY: the instructions are there, by the assertion above, and `product` has been checked.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => unsafe { x86::avx2(&mut product) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kernel::Gfni256 => unsafe { x86::gfni256(&mut product) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kernel::Gfni512 => unsafe { x86::gfni512(&mut product) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => 0,
        };
        product.finish(done);
    }
}

/// `outputs[o] = sum of rows[o][i] * inputs[i]`, or that added to what is in the outputs.
pub(crate) struct Product<'a, 'o> {
    pub rows: &'a [[u8; SHARDS_MAX]],
    pub inputs: &'a [&'a [u8]],
    pub outputs: &'a mut [&'o mut [u8]],
    pub add: bool,
}

impl Product<'_, '_> {
    /// Length of every shard.
    fn len(&self) -> usize {
        self.inputs[0].len()
    }

    /// What the unsafe code relies on.
    fn check(&self) {
        assert!((1..=SHARDS_MAX).contains(&self.inputs.len()), "{} inputs", self.inputs.len());
        assert_eq!(self.rows.len(), self.outputs.len(), "rows and outputs");
        let len = self.len();
        assert!(self.inputs.iter().all(|input| input.len() == len), "inputs of different lengths");
        assert!(self.outputs.iter().all(|output| output.len() == len), "outputs not as long as the inputs");
    }

    /// What is left from a byte on, less than a turn of vectors.
    fn finish(&mut self, from: usize) {
        for (row, output) in self.rows.iter().zip(&mut *self.outputs) {
            for at in from..output.len() {
                let terms = row.iter().zip(self.inputs);
                let sum = terms.fold(0, |sum, (factor, input)| sum ^ multiply_by_nibbles(*factor, input[at]));
                output[at] = if self.add { output[at] ^ sum } else { sum };
            }
        }
    }
}

/// A vector of bytes.
///
/// # Safety
/// Of all methods: the machine must have the instruction set of the implementation.
trait Lanes: Copy {
    /// Its length.
    const BYTES: usize;
    /// A vector as multiplication wants it, prepared once for many factors.
    type Split: Copy;

    unsafe fn zero() -> Self;
    /// # Safety
    /// `BYTES` bytes from there can be read.
    unsafe fn load(from: *const u8) -> Self;
    /// # Safety
    /// `BYTES` bytes from there can be written.
    unsafe fn store(self, to: *mut u8);
    unsafe fn xor(self, other: Self) -> Self;
    unsafe fn split(self) -> Self::Split;
    unsafe fn multiply(split: Self::Split, factor: u8) -> Self;
}

/// Computes as many whole turns of vectors as there are, and returns the bytes of each shard done so.
///
/// # Safety
/// The machine has the instructions of `L`, and `product` has been checked.
#[inline(always)]
unsafe fn whole_turns<L: Lanes>(product: &mut Product<'_, '_>) -> usize {
    const { assert!(BLOCK.is_multiple_of(UNROLL * 64) && L::BYTES <= 64) };
    let end = product.len() - product.len() % (UNROLL * L::BYTES);
    // One pass needs no blocks.
    let block = if product.outputs.len() <= GROUP { end } else { BLOCK };
    let mut from = 0;
    while from < end {
        let to = end.min(from + block);
        let Product { rows, inputs, outputs, add } = product;
        for (rows, outputs) in rows.chunks(GROUP).zip(outputs.chunks_mut(GROUP)) {
            // SAFETY: the caller's promise; `to` is at most the length of every shard, and the range is whole turns since
            // blocks are.
            unsafe { group::<L>(rows, inputs, outputs, *add, from, to) };
        }
        from = to;
    }
    end
}

/// Chooses the loop for so many outputs.
///
/// # Safety
/// As [`pass`]; as many rows as outputs, at most [`GROUP`].
#[inline(always)]
unsafe fn group<L: Lanes>(
    rows: &[[u8; SHARDS_MAX]],
    inputs: &[&[u8]],
    outputs: &mut [&mut [u8]],
    add: bool,
    from: usize,
    to: usize,
) {
    let is_xor = rows[0][..inputs.len()].iter().all(|factor| *factor == 1);
    // SAFETY: the caller's promise, and the number of outputs is matched.
    unsafe {
        match (outputs.len(), add) {
            (1, false) if is_xor => pass::<L, 1, false, true>(rows, inputs, outputs, from, to),
            (1, true) if is_xor => pass::<L, 1, true, true>(rows, inputs, outputs, from, to),
            (1, false) => pass::<L, 1, false, false>(rows, inputs, outputs, from, to),
            (1, true) => pass::<L, 1, true, false>(rows, inputs, outputs, from, to),
            (2, false) => pass::<L, 2, false, false>(rows, inputs, outputs, from, to),
            (2, true) => pass::<L, 2, true, false>(rows, inputs, outputs, from, to),
            (3, false) => pass::<L, 3, false, false>(rows, inputs, outputs, from, to),
            (3, true) => pass::<L, 3, true, false>(rows, inputs, outputs, from, to),
            (4, false) => pass::<L, 4, false, false>(rows, inputs, outputs, from, to),
            (4, true) => pass::<L, 4, true, false>(rows, inputs, outputs, from, to),
            (n, _) => unreachable!("a group of {n}"),
        }
    }
}

/// One pass over a range of the inputs: `OUT` outputs, added to what they have if `ADD`; all factors are 1 if `XOR`.
///
/// # Safety
/// The machine has the instructions of `L`. There are `OUT` rows and outputs; every input and output is at least `to` long;
/// `to - from` is a multiple of `UNROLL * L::BYTES`; there are at most [`SHARDS_MAX`] inputs.
#[inline(always)]
unsafe fn pass<L: Lanes, const OUT: usize, const ADD: bool, const XOR: bool>(
    rows: &[[u8; SHARDS_MAX]],
    inputs: &[&[u8]],
    outputs: &mut [&mut [u8]],
    from: usize,
    to: usize,
) {
    debug_assert!(rows.len() == OUT && outputs.len() == OUT && (to - from).is_multiple_of(UNROLL * L::BYTES));
    let rows: &[[u8; SHARDS_MAX]; OUT] = rows.try_into().unwrap_or_else(|_| unreachable!("{OUT} rows"));
    let to_bytes: [*mut u8; OUT] = std::array::from_fn(|o| outputs[o].as_mut_ptr());
    for at in (from..to).step_by(UNROLL * L::BYTES) {
        // SAFETY: every access is of `L::BYTES` bytes at `at + lane * L::BYTES` with `lane < UNROLL`, so it ends at or before
        // `to`, which lies in every slice. The instructions are there by the caller's promise.
        unsafe {
            let mut sums = [[L::zero(); UNROLL]; OUT];
            if ADD {
                for (sums, output) in sums.iter_mut().zip(to_bytes) {
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        *sum = L::load(output.add(at + lane * L::BYTES));
                    }
                }
            }
            for (i, input) in inputs.iter().enumerate() {
                for lane in 0..UNROLL {
                    let vector = L::load(input.as_ptr().add(at + lane * L::BYTES));
                    if XOR {
                        sums[0][lane] = sums[0][lane].xor(vector);
                        continue;
                    }
                    let split = vector.split();
                    for (sums, row) in sums.iter_mut().zip(rows) {
                        sums[lane] = sums[lane].xor(L::multiply(split, row[i]));
                    }
                }
            }
            for (sums, output) in sums.iter().zip(to_bytes) {
                for (lane, sum) in sums.iter().enumerate() {
                    sum.store(output.add(at + lane * L::BYTES));
                }
            }
        }
    }
}
