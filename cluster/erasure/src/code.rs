//! A code: how many shards, their matrix, and what can be computed with it.

use crate::field::multiply;
use crate::kernel::{Kernel, Product};
use crate::matrix::{LOST_MAX, Matrix, inverse, parity_rows};

/// Shards of one stripe at most, data and parity together.
pub const SHARDS_MAX: usize = 32;
/// Wanted shards computed at a time; keeps the rows on the stack few.
const WANTED_CHUNK: usize = 8;

/// Why a code or a reconstruction cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodeError {
    /// No data, no parity, or more shards than [`SHARDS_MAX`].
    #[error(
        "{data} data and {parity} parity shards: there must be 1 or more of each and at most {SHARDS_MAX} together"
    )]
    Shape {
        /// Data shards asked for.
        data: usize,
        /// Parity shards asked for.
        parity: usize,
    },
    /// The kernel asked for needs instructions that this machine does not have.
    #[error("this machine has no {0:?} instructions")]
    Kernel(Kernel),
    /// As many shards as there are data shards are needed, neither fewer nor more.
    #[error("{given} shards given where exactly {needed} are needed")]
    Count {
        /// Shards given.
        given: usize,
        /// Data shards of the code.
        needed: usize,
    },
    /// A shard with this index does not exist.
    #[error("there is no shard {0}")]
    Index(usize),
    /// The same shard was given twice.
    #[error("shard {0} was given twice")]
    Twice(usize),
    /// Shards and places for results differ in length or number.
    #[error("shards and places for results must be equally long, one place for each wanted shard")]
    Length,
}

/// An erasure code of `data` + `parity` shards. Shard indices count data first: `0..data`, then parity `data..data + parity`.
///
/// It is a kilobyte of constants: immutable, cheap to clone and to share. Nothing allocates.
#[derive(Clone, Debug)]
pub struct Code {
    data: usize,
    parity: usize,
    /// The parity rows of the generator matrix.
    rows: Matrix,
    kernel: Kernel,
}

impl Code {
    /// The code with so many shards, computed with the best kernel of this machine.
    ///
    /// # Errors
    /// [`CodeError::Shape`].
    pub fn new(data: usize, parity: usize) -> Result<Self, CodeError> {
        Self::with_kernel(data, parity, Kernel::best())
    }

    /// The code, computed with this kernel: for tests and measurements.
    ///
    /// # Errors
    /// [`CodeError::Shape`]; [`CodeError::Kernel`] if the machine cannot.
    pub fn with_kernel(data: usize, parity: usize, kernel: Kernel) -> Result<Self, CodeError> {
        if data == 0 || parity == 0 || data.saturating_add(parity) > SHARDS_MAX {
            return Err(CodeError::Shape { data, parity });
        }
        if !kernel.is_available() {
            return Err(CodeError::Kernel(kernel));
        }
        let mut rows = parity_rows(data, parity);
        if parity == 1 {
            rows[0][..data].fill(1);
        }
        Ok(Self { data, parity, rows, kernel })
    }

    /// Data shards.
    pub fn data(&self) -> usize {
        self.data
    }

    /// Parity shards.
    pub fn parity(&self) -> usize {
        self.parity
    }

    /// The kernel in use.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// What a data shard is multiplied with in a parity shard. Never 0.
    ///
    /// # Panics
    /// There is no such shard.
    pub fn coefficient(&self, parity_index: usize, data_index: usize) -> u8 {
        self.row(parity_index)[data_index]
    }

    fn row(&self, parity_index: usize) -> &[u8] {
        assert!(parity_index < self.parity, "parity {parity_index} of {}", self.parity);
        &self.rows[parity_index][..self.data]
    }

    /// All parity of a stripe. What was in `parity` is overwritten.
    ///
    /// # Panics
    /// Not as many slices as the code has shards, or not all equally long.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        assert_eq!(data.len(), self.data, "data shards");
        assert_eq!(parity.len(), self.parity, "parity shards");
        self.kernel.run(Product { rows: &self.rows[..self.parity], inputs: data, outputs: parity, add: false });
    }

    /// Carries a change of a data shard into a parity shard: `parity ^= coefficient * delta`, where `delta` is old XOR new data
    /// of the same range of bytes. Each parity holder can do it for itself.
    ///
    /// # Panics
    /// There are no such shards, or the slices differ in length.
    pub fn update(&self, data_index: usize, delta: &[u8], parity_index: usize, parity: &mut [u8]) {
        let mut row = [0; SHARDS_MAX];
        row[0] = self.coefficient(parity_index, data_index);
        self.kernel.run(Product { rows: &[row], inputs: &[delta], outputs: &mut [parity], add: true });
    }

    /// Computes shards, data or parity, from any `data` others: `present` are exactly so many distinct shards by index,
    /// `out[i]` becomes shard `wanted[i]`. A wanted shard may be among the present, and is copied.
    ///
    /// The decoding matrix is solved anew each time (only for the lost data shards among those that are needed): that costs
    /// less than finding it in a cache, see the example `speed`.
    ///
    /// # Errors
    /// [`CodeError::Count`], [`CodeError::Index`], [`CodeError::Twice`], [`CodeError::Length`]; `out` is untouched then.
    pub fn reconstruct(
        &self,
        present: &[(usize, &[u8])],
        wanted: &[usize],
        out: &mut [&mut [u8]],
    ) -> Result<(), CodeError> {
        self.check(present, wanted, out)?;
        let solution = Solution::new(self, present);
        let inputs: [&[u8]; SHARDS_MAX] = std::array::from_fn(|i| present.get(i).map_or(&[][..], |(_, shard)| *shard));
        for (wanted, out) in wanted.chunks(WANTED_CHUNK).zip(out.chunks_mut(WANTED_CHUNK)) {
            let mut rows = [[0; SHARDS_MAX]; WANTED_CHUNK];
            for (row, shard) in rows.iter_mut().zip(wanted) {
                *row = solution.row(*shard);
            }
            let rows = &rows[..wanted.len()];
            self.kernel.run(Product { rows, inputs: &inputs[..self.data], outputs: out, add: false });
        }
        Ok(())
    }

    /// What each of the present shards (so many, and by index, as [`Code::reconstruct`] wants them) is multiplied with in a wanted one: for
    /// who has something other than the shards themselves that is as linear as they are.
    ///
    /// # Errors
    /// [`CodeError::Count`], [`CodeError::Index`], [`CodeError::Twice`].
    pub fn weights(&self, present: &[usize], wanted: usize) -> Result<[u8; SHARDS_MAX], CodeError> {
        let shards: [(usize, &[u8]); SHARDS_MAX] =
            std::array::from_fn(|i| (present.get(i).copied().unwrap_or_default(), &[][..]));
        let wrong = CodeError::Count { given: present.len(), needed: self.data };
        let shards = shards.get(..present.len()).ok_or(wrong)?;
        self.check(shards, &[wanted], &[&mut []])?;
        Ok(Solution::new(self, shards).row(wanted))
    }

    fn check(&self, present: &[(usize, &[u8])], wanted: &[usize], out: &[&mut [u8]]) -> Result<(), CodeError> {
        if present.len() != self.data {
            return Err(CodeError::Count { given: present.len(), needed: self.data });
        }
        let shards = self.data + self.parity;
        let mut seen = 0u32;
        for (index, _) in present {
            if *index >= shards {
                return Err(CodeError::Index(*index));
            }
            if seen & (1 << index) != 0 {
                return Err(CodeError::Twice(*index));
            }
            seen |= 1 << index;
        }
        if let Some(index) = wanted.iter().find(|index| **index >= shards) {
            return Err(CodeError::Index(*index));
        }
        let len = present[0].1.len();
        let equal = present.iter().all(|(_, s)| s.len() == len) && out.iter().all(|o| o.len() == len);
        if equal && wanted.len() == out.len() { Ok(()) } else { Err(CodeError::Length) }
    }
}

/// Any shard as a sum over the present ones.
///
/// With `e` data shards lost there are `e` parity shards P among the present, and P = A * known + B * lost, so
/// lost = B^-1 * (P + A * known). Only the `e` x `e` matrix B is inverted, not all of it.
struct Solution<'a> {
    code: &'a Code,
    present: &'a [(usize, &'a [u8])],
    /// The lost data shards; row `i` of `inverse` belongs to the i-th.
    lost: Indices,
    /// Positions among the present of parity shards; column `i` of `inverse` belongs to the i-th.
    parity: Indices,
    inverse: [[u8; LOST_MAX]; LOST_MAX],
}

impl<'a> Solution<'a> {
    fn new(code: &'a Code, present: &'a [(usize, &'a [u8])]) -> Self {
        let mut known = 0u32;
        let mut parity = Indices::default();
        for (position, (shard, _)) in present.iter().enumerate() {
            if *shard < code.data {
                known |= 1 << shard;
            } else {
                parity.push(position);
            }
        }
        let mut lost = Indices::default();
        (0..code.data).filter(|d| known & (1 << d) == 0).for_each(|d| lost.push(d));
        debug_assert_eq!(lost.len, parity.len);
        let mut b = [[0; LOST_MAX]; LOST_MAX];
        for (row, position) in b.iter_mut().zip(parity.iter()) {
            for (cell, shard) in row.iter_mut().zip(lost.iter()) {
                *cell = code.coefficient(present[position].0 - code.data, shard);
            }
        }
        Self { code, present, inverse: inverse(b, usize::from(lost.len)), lost, parity }
    }

    /// Coefficients of a shard, column `i` that of `present[i]`.
    fn row(&self, shard: usize) -> [u8; SHARDS_MAX] {
        if shard < self.code.data {
            return self.data_row(shard);
        }
        let mut row = [0; SHARDS_MAX];
        for (data, coefficient) in self.code.row(shard - self.code.data).iter().enumerate() {
            for (cell, term) in row[..self.code.data].iter_mut().zip(self.data_row(data)) {
                *cell ^= multiply(*coefficient, term);
            }
        }
        row
    }

    fn data_row(&self, shard: usize) -> [u8; SHARDS_MAX] {
        let mut row = [0; SHARDS_MAX];
        let Some(nth) = self.lost.iter().position(|lost| lost == shard) else {
            for (cell, (other, _)) in row.iter_mut().zip(self.present) {
                *cell = u8::from(*other == shard);
            }
            return row;
        };
        for (position, weight) in self.parity.iter().zip(self.inverse[nth]) {
            row[position] = weight;
            let coefficients = self.code.row(self.present[position].0 - self.code.data);
            for (cell, (other, _)) in row.iter_mut().zip(self.present) {
                // Parity has no coefficient here.
                *cell ^= coefficients.get(*other).map_or(0, |coefficient| multiply(weight, *coefficient));
            }
        }
        row
    }
}

/// A short list of indices.
#[derive(Default)]
struct Indices {
    items: [u8; LOST_MAX],
    len: u8,
}

impl Indices {
    fn push(&mut self, index: usize) {
        self.items[usize::from(self.len)] = index as u8;
        self.len += 1;
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        self.items[..usize::from(self.len)].iter().map(|item| usize::from(*item))
    }
}
