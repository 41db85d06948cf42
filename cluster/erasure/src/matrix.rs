//! Small matrices over the field: the generator matrix, and the solution for lost shards.

use crate::code::SHARDS_MAX;
use crate::field::{invert, multiply, power};

/// A matrix with at most [`SHARDS_MAX`] rows and columns, on the stack. Only the upper left part is in use; its owner
/// knows how much.
pub(crate) type Matrix = [[u8; SHARDS_MAX]; SHARDS_MAX];

/// All zero.
const ZERO: Matrix = [[0; SHARDS_MAX]; SHARDS_MAX];

/// The parity rows of the systematic matrix made from Vandermonde's: `parity` rows of `data` columns.
pub(crate) fn parity_rows(data: usize, parity: usize) -> Matrix {
    let vandermonde = |row: usize, column: usize| power(row as u8, column);
    let mut upper = ZERO;
    for (row, cells) in upper.iter_mut().enumerate().take(data) {
        for (column, cell) in cells.iter_mut().enumerate().take(data) {
            *cell = vandermonde(row, column);
        }
    }
    let inverse = inverse(upper, data);
    let mut rows = ZERO;
    for (row, cells) in rows.iter_mut().enumerate().take(parity) {
        for (column, cell) in cells.iter_mut().enumerate().take(data) {
            *cell = (0..data).fold(0, |sum, i| sum ^ multiply(vandermonde(data + row, i), inverse[i][column]));
        }
    }
    rows
}

/// Lost data shards that a solution may have: more than half of all shards cannot be lost.
pub(crate) const LOST_MAX: usize = SHARDS_MAX / 2;

/// The inverse of the upper left square of `size`, by elimination without search for pivots.
///
/// # Panics
/// A pivot is 0. It never is where all leading squares are regular, which holds for a Vandermonde matrix with distinct
/// nodes and for every square part of our parity rows (that every such part is regular is what makes any `data` shards
/// sufficient).
pub(crate) fn inverse<const N: usize>(mut matrix: [[u8; N]; N], size: usize) -> [[u8; N]; N] {
    let mut inverse = [[0; N]; N];
    for (i, row) in inverse.iter_mut().enumerate().take(size) {
        row[i] = 1;
    }
    for pivot in 0..size {
        let scale = invert(matrix[pivot][pivot]);
        scale_row(&mut matrix[pivot], scale, size);
        scale_row(&mut inverse[pivot], scale, size);
        let (pivot_row, pivot_inverse) = (matrix[pivot], inverse[pivot]);
        for row in (0..size).filter(|row| *row != pivot) {
            let factor = matrix[row][pivot];
            add_row(&mut matrix[row], &pivot_row, factor, size);
            add_row(&mut inverse[row], &pivot_inverse, factor, size);
        }
    }
    inverse
}

fn scale_row<const N: usize>(row: &mut [u8; N], factor: u8, len: usize) {
    for cell in &mut row[..len] {
        *cell = multiply(*cell, factor);
    }
}

/// `row += factor * other`.
fn add_row<const N: usize>(row: &mut [u8; N], other: &[u8; N], factor: u8, len: usize) {
    for (cell, other) in row[..len].iter_mut().zip(other) {
        *cell ^= multiply(*other, factor);
    }
}
