//! Vectors for any machine.

use super::Lanes;
use crate::field::PRODUCTS;

/// Bytes, a product looked up for each. Arithmetic on words (doubling with masks) is no faster: it spends eight steps on what
/// is one load here.
#[derive(Clone, Copy)]
pub(super) struct Bytes([u8; 16]);

impl Lanes for Bytes {
    const BYTES: usize = 16;
    type Split = Self;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0; Self::BYTES])
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller promises that the bytes can be read.
        Self(unsafe { from.cast::<[u8; Self::BYTES]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller promises that the bytes can be written.
        unsafe { to.cast::<[u8; Self::BYTES]>().write(self.0) };
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] ^ other.0[i]))
    }

    #[inline(always)]
    unsafe fn split(self) -> Self::Split {
        self
    }

    #[inline(always)]
    unsafe fn multiply(split: Self::Split, factor: u8) -> Self {
        let products = &PRODUCTS[usize::from(factor)];
        Self(split.0.map(|byte| products[usize::from(byte)]))
    }
}
