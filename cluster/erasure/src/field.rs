//! Arithmetic in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1, and the tables that the kernels multiply with.

/// The polynomial without its x^8.
const POLYNOMIAL: u8 = 0x1D;

/// Product by the schoolbook; for building tables.
const fn multiply_slowly(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = double(a);
        b >>= 1;
    }
    product
}

const fn double(a: u8) -> u8 {
    (a << 1) ^ if a & 0x80 != 0 { POLYNOMIAL } else { 0 }
}

/// Powers of 2, twice over, so that the sum of two logarithms needs no reduction.
static EXP: [u8; 510] = {
    let mut table = [0; 510];
    let (mut power, mut i) = (1, 0);
    while i < 255 {
        table[i] = power;
        table[i + 255] = power;
        power = double(power);
        i += 1;
    }
    table
};

/// Logarithms to base 2; that of 0 is not used.
static LOG: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 255 {
        table[EXP[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// `a * b`.
pub(crate) fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    EXP[usize::from(LOG[usize::from(a)]) + usize::from(LOG[usize::from(b)])]
}

/// What multiplication makes of each bit of a byte: the products of a factor with 1, 2, 4 and so on. It is linear: the product with any
/// byte is the XOR of those of its bits.
pub fn images(factor: u8) -> [u8; 8] {
    std::array::from_fn(|bit| multiply(factor, 1 << bit))
}

/// `1 / a`.
///
/// # Panics
/// `a` is 0.
pub(crate) fn invert(a: u8) -> u8 {
    assert!(a != 0, "0 has no inverse");
    EXP[255 - usize::from(LOG[usize::from(a)])]
}

/// `base^exponent`, where `0^0` is 1.
pub(crate) fn power(base: u8, exponent: usize) -> u8 {
    (0..exponent).fold(1, |product, _| multiply(product, base))
}

/// Products of one factor with all values of the low nibble, then with all values of the high nibble of a byte: what
/// byte shuffles look up.
#[repr(align(32))]
pub(crate) struct Nibbles(pub [u8; 32]);

/// [`Nibbles`] of every factor.
pub(crate) static NIBBLES: [Nibbles; 256] = {
    let mut table = [const { Nibbles([0; 32]) }; 256];
    let mut factor = 0;
    while factor < 256 {
        let mut i = 0;
        while i < 16 {
            table[factor].0[i] = multiply_slowly(factor as u8, i as u8);
            table[factor].0[i + 16] = multiply_slowly(factor as u8, (i << 4) as u8);
            i += 1;
        }
        factor += 1;
    }
    table
};

/// All products: what machines without byte shuffles look up.
pub(crate) static PRODUCTS: [[u8; 256]; 256] = {
    let mut table = [[0; 256]; 256];
    let mut i = 0;
    while i < 1 << 16 {
        table[i >> 8][i & 255] = multiply_slowly((i >> 8) as u8, i as u8);
        i += 1;
    }
    table
};

/// Multiplication by every factor as a matrix of bits, in the order of `GF2P8AFFINEQB`: byte `7 - i` of the word says which
/// bits of the input add up to bit `i` of the product. (The instruction that multiplies directly, `GF2P8MULB`, is of no use:
/// it has another polynomial.)
pub(crate) static AFFINE: [u64; 256] = {
    let mut table = [0; 256];
    let mut factor = 0;
    while factor < 256 {
        let (mut matrix, mut column) = (0, 0);
        while column < 8 {
            let image = multiply_slowly(factor as u8, 1 << column);
            let mut row = 0;
            while row < 8 {
                matrix |= ((image >> row & 1) as u64) << ((7 - row) * 8 + column);
                row += 1;
            }
            column += 1;
        }
        table[factor] = matrix;
        factor += 1;
    }
    table
};

/// `a * b` by the tables of shuffles; what the kernels leave at the end of a shard is done so.
pub(crate) fn multiply_by_nibbles(factor: u8, byte: u8) -> u8 {
    let table = &NIBBLES[usize::from(factor)].0;
    table[usize::from(byte & 15)] ^ table[16 + usize::from(byte >> 4)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `GF2P8AFFINEQB` with constant 0 for one byte, as Intel's manual (volume 2, affine_byte) writes it.
    fn affine_byte(matrix: u64, source: u8) -> u8 {
        let rows = matrix.to_le_bytes();
        (0..8).fold(0, |out, i| out | ((rows[7 - i] & source).count_ones() as u8 & 1) << i)
    }

    #[test]
    fn all_tables_agree_with_the_schoolbook_on_all_products() {
        for a in 0..=255 {
            for b in 0..=255 {
                let product = multiply_slowly(a, b);
                assert_eq!(multiply(a, b), product);
                assert_eq!(multiply_by_nibbles(a, b), product);
                assert_eq!(affine_byte(AFFINE[usize::from(a)], b), product);
            }
        }
    }

    #[test]
    fn products_are_those_of_the_oracle() {
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(multiply(a, b), reed_solomon_erasure::galois_8::mul(a, b));
            }
        }
    }

    #[test]
    fn products_are_made_of_the_images_of_bits() {
        for factor in 0..=255 {
            let images = images(factor);
            for byte in 0..=255u8 {
                let sum = (0..8).filter(|bit| byte >> bit & 1 == 1).fold(0, |sum, bit| sum ^ images[bit]);
                assert_eq!(sum, multiply(factor, byte));
            }
        }
    }

    #[test]
    fn inverses_and_powers() {
        for a in 1..=255 {
            assert_eq!(multiply(a, invert(a)), 1);
            assert_eq!(power(a, 255), 1);
        }
        assert_eq!((power(0, 0), power(0, 1), power(2, 8)), (1, 0, 0x1D));
    }
}
