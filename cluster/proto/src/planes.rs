//! What is known of a sector by eight checksums: enough to say what checksum a *product* of it has, without seeing it.
//!
//! A CRC is linear over XOR, up to a constant: the checksum of the XOR of sectors follows from theirs, and so that of plain XOR parity. The
//! other parity of Reed-Solomon codes multiplies every byte in GF(2^8) first, and of the product's checksum the checksum of the data says
//! nothing. But multiplication by a constant is linear over the *bits* of a byte. A sector's *plane* `k` is the sector with nothing left of
//! each byte but bit `k`; the product is an XOR of planes moved to other bits, and moving all bits of a message moves its checksum in a way that
//! is known, because it multiplies the message, as a polynomial, by a power of x. So the checksums of the eight planes, 32 bytes for
//! 4096, let anyone compute the checksum of any product, exactly: with the certainty of the checksum itself, and no data moved.
//!
//! All values here are *remainders*: checksums of sectors XORed with that of zeroes. The remainder of zeroes is 0, that of an XOR the XOR.

use zerocopy::IntoBytes;

use crate::crc::{ZERO_SECTOR_CRC, crc32c};
use crate::layout::SECTOR;

/// CRC-32C's polynomial, in the order of bits in which the checksum is kept.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The remainders of a sector's planes, by the bit of the bytes that each keeps; all moved to bit 7.
pub type Planes = [u32; 8];

/// The remainder of a sector, of its checksum.
pub const fn remainder(crc: u32) -> u32 {
    crc ^ ZERO_SECTOR_CRC
}

/// A remainder times x: that of the same message with every bit moved to the bit below. (Bit 7 of a byte is its last in a CRC.)
const fn times_x(remainder: u32) -> u32 {
    remainder >> 1 ^ if remainder & 1 == 1 { POLYNOMIAL } else { 0 }
}

/// The planes of a sector.
///
/// # Panics
/// If it is not a sector.
pub fn planes(sector: &[u8]) -> Planes {
    assert_eq!(sector.len(), SECTOR);
    let (words, _) = sector.as_chunks::<8>();
    let mut plane = [0u64; SECTOR / 8];
    std::array::from_fn(|bit| {
        for (plane, word) in plane.iter_mut().zip(words) {
            *plane = (u64::from_ne_bytes(*word) >> bit & 0x0101_0101_0101_0101) << 7;
        }
        remainder(crc32c(plane.as_bytes()))
    })
}

/// The remainder of what a sector becomes if every byte is replaced by a linear function of its bits: `images[k]` is what a byte becomes of
/// which only bit `k` is set.
pub fn remainder_of_product(planes: &Planes, images: &[u8; 8]) -> u32 {
    // Bit 0 is the farthest from bit 7.
    (0..8).fold(0, |sum, bit| {
        let moved = planes.iter().zip(images).filter(|(_, image)| *image >> bit & 1 == 1);
        moved.fold(times_x(sum), |sum, (plane, _)| sum ^ plane)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(seed: u32) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(0x9e37_79b1).wrapping_add(0x7f4a_7c15);
            (state >> 17) as u8
        };
        (0..SECTOR).map(|_| next()).collect()
    }

    const SAME: [u8; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

    #[test]
    fn the_planes_make_up_the_sector() {
        for seed in 0..20 {
            let data = sector(seed);
            assert_eq!(remainder_of_product(&planes(&data), &SAME), remainder(crc32c(&data)));
        }
        assert_eq!(planes(&[0; SECTOR]), [0; 8]);
        assert_eq!(remainder(ZERO_SECTOR_CRC), 0);
    }

    #[test]
    fn of_every_linear_function_of_bytes_the_checksum_is_known() {
        let data = sector(7);
        let known = planes(&data);
        for seed in 0..50u8 {
            let images: [u8; 8] = std::array::from_fn(|k| sector(u32::from(seed))[100 + k]);
            let of = |byte: u8| (0..8).filter(|k| byte >> k & 1 == 1).fold(0, |sum, k| sum ^ images[k]);
            let product: Vec<u8> = data.iter().map(|byte| of(*byte)).collect();
            assert_eq!(remainder_of_product(&known, &images), remainder(crc32c(&product)));
        }
    }

    #[test]
    fn a_bit_anywhere_changes_its_plane_alone() {
        let data = sector(3);
        let before = planes(&data);
        for bit in [0, 5, 8 * 100 + 3, 8 * SECTOR - 1] {
            let mut other = data.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            let after = planes(&other);
            assert!((0..8).all(|k| (before[k] != after[k]) == (k == bit % 8)));
        }
    }
}
