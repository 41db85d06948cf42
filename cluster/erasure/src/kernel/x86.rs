//! Vectors of x86-64.

use std::arch::x86_64::*;

use super::{Lanes, Product, whole_turns};
use crate::field::{AFFINE, NIBBLES};

/// # Safety
/// The machine has AVX2; the product has been checked.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn avx2(product: &mut Product<'_, '_>) -> usize {
    // SAFETY: the caller's promise.
    unsafe { whole_turns::<Shuffled>(product) }
}

/// # Safety
/// The machine has GFNI and AVX2; the product has been checked.
#[target_feature(enable = "gfni,avx2")]
pub(super) unsafe fn gfni256(product: &mut Product<'_, '_>) -> usize {
    // SAFETY: the caller's promise.
    unsafe { whole_turns::<Affine256>(product) }
}

/// # Safety
/// The machine has GFNI and AVX-512F; the product has been checked.
#[target_feature(enable = "gfni,avx512f")]
pub(super) unsafe fn gfni512(product: &mut Product<'_, '_>) -> usize {
    // SAFETY: the caller's promise.
    unsafe { whole_turns::<Affine512>(product) }
}

/// 32 bytes, multiplied by looking up their nibbles.
#[derive(Clone, Copy)]
struct Shuffled(__m256i);

impl Lanes for Shuffled {
    const BYTES: usize = 32;
    /// Low nibbles, high nibbles.
    type Split = (__m256i, __m256i);

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: AVX2 is there, as for all that follows.
        Self(unsafe { _mm256_setzero_si256() })
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller promises the bytes.
        Self(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller promises the bytes.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) };
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: AVX2.
        Self(unsafe { _mm256_xor_si256(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn split(self) -> Self::Split {
        // SAFETY: AVX2.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            (_mm256_and_si256(self.0, mask), _mm256_and_si256(_mm256_srli_epi64::<4>(self.0), mask))
        }
    }

    #[inline(always)]
    unsafe fn multiply((low, high): Self::Split, factor: u8) -> Self {
        let table = NIBBLES[usize::from(factor)].0.as_ptr();
        // SAFETY: AVX2; a table has 32 bytes, and both loads are of 16.
        unsafe {
            let lows = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.cast()));
            let highs = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.add(16).cast()));
            Self(_mm256_xor_si256(_mm256_shuffle_epi8(lows, low), _mm256_shuffle_epi8(highs, high)))
        }
    }
}

/// 32 bytes, multiplied as bits by a matrix.
#[derive(Clone, Copy)]
struct Affine256(__m256i);

impl Lanes for Affine256 {
    const BYTES: usize = 32;
    type Split = __m256i;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: GFNI and AVX2 are there, as for all that follows.
        Self(unsafe { _mm256_setzero_si256() })
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller promises the bytes.
        Self(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller promises the bytes.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) };
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: AVX2.
        Self(unsafe { _mm256_xor_si256(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn split(self) -> Self::Split {
        self.0
    }

    #[inline(always)]
    unsafe fn multiply(split: Self::Split, factor: u8) -> Self {
        // SAFETY: GFNI and AVX2.
        unsafe {
            let matrix = _mm256_set1_epi64x(AFFINE[usize::from(factor)].cast_signed());
            Self(_mm256_gf2p8affine_epi64_epi8::<0>(split, matrix))
        }
    }
}

/// 64 bytes, multiplied as bits by a matrix.
#[derive(Clone, Copy)]
struct Affine512(__m512i);

impl Lanes for Affine512 {
    const BYTES: usize = 64;
    type Split = __m512i;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: GFNI and AVX-512F are there, as for all that follows.
        Self(unsafe { _mm512_setzero_si512() })
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller promises the bytes.
        Self(unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller promises the bytes.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) };
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: AVX-512F.
        Self(unsafe { _mm512_xor_si512(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn split(self) -> Self::Split {
        self.0
    }

    #[inline(always)]
    unsafe fn multiply(split: Self::Split, factor: u8) -> Self {
        // SAFETY: GFNI and AVX-512F.
        unsafe {
            let matrix = _mm512_set1_epi64(AFFINE[usize::from(factor)].cast_signed());
            Self(_mm512_gf2p8affine_epi64_epi8::<0>(split, matrix))
        }
    }
}
