//! Content that tells where it belongs and which write it is from.

use crate::Random;

/// Length of a stamped piece. Bytes.
pub const UNIT: usize = 512;

/// Fills a piece: 8 bytes sequence number, 8 bytes address, the rest follows from these.
pub fn write_stamp(out: &mut [u8], unit: u64, sequence: u64) {
    let mut random = Random::new(sequence.rotate_left(32) ^ unit);
    let words = [sequence, unit].into_iter().chain(std::iter::from_fn(move || Some(random.number())));
    for (bytes, word) in out.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// The sequence number in a piece that was read, 0 for zeroes, or what is wrong with it.
///
/// # Errors
/// If the piece is neither zeroes nor entirely one stamp for this address.
pub fn read_stamp(bytes: &[u8], unit: u64) -> Result<u64, String> {
    if bytes.iter().all(|b| *b == 0) {
        return Ok(0);
    }
    let word = |at: usize| bytes.get(at..at + 8).map_or(0, |b| b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)));
    let (sequence, address) = (word(0), word(8));
    let mut expected = vec![0; bytes.len()];
    write_stamp(&mut expected, unit, sequence);
    match expected.iter().zip(bytes).position(|(a, b)| a != b) {
        None => Ok(sequence),
        Some(at) => {
            Err(format!("no stamp of this place (it claims number {sequence}, place {address}; wrong from byte {at})"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_read_back_and_everything_else_is_noticed() {
        let mut bytes = [0; UNIT];
        assert_eq!(read_stamp(&bytes, 7), Ok(0));
        write_stamp(&mut bytes, 7, 3);
        assert_eq!(read_stamp(&bytes, 7), Ok(3));
        assert!(read_stamp(&bytes, 8).is_err());
        for at in [0, 8, 16, UNIT - 1] {
            let mut wrong = bytes;
            wrong[at] ^= 4;
            assert!(read_stamp(&wrong, 7).is_err(), "byte {at}");
        }
    }
}
