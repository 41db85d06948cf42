//! CRC-32C (Castagnoli), the only checksum of Blockyard: per 4 KiB sector of data, and over every header.

#[cfg(target_arch = "x86_64")]
mod sector;

use crc_fast::{CrcAlgorithm, checksum};
use smallvec::SmallVec;

use crate::layout::SECTOR;

/// Checksums of consecutive sectors. Inline for small requests.
pub type Crcs = SmallVec<[u32; 4]>;

/// CRC-32C of a sector of zeroes.
pub const ZERO_SECTOR_CRC: u32 = 0x98f9_4189;

/// CRC-32C of `bytes`; one sector at a time is the fast way.
#[allow(unsafe_code)]
pub fn crc32c(bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if let Ok(sector) = bytes.try_into()
        && sector::is_best()
    {
        // SAFETY: the machine has been asked.
        return unsafe { sector::crc(sector) };
    }
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// CRC-32C of each sector of `data`.
///
/// # Panics
/// If `data` is not whole sectors.
pub fn sector_crcs(data: &[u8]) -> Crcs {
    assert!(data.len().is_multiple_of(SECTOR), "{} bytes are not whole sectors", data.len());
    data.chunks_exact(SECTOR).map(crc32c).collect()
}

/// Index of the first sector of `data` whose checksum differs from `crcs`; also 0 when the counts differ.
pub fn first_mismatch(data: &[u8], crcs: &[u32]) -> Option<usize> {
    if data.len() != crcs.len() * SECTOR {
        return Some(0);
    }
    data.chunks_exact(SECTOR).zip(crcs).position(|(sector, &crc)| crc32c(sector) != crc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&[0; SECTOR]), ZERO_SECTOR_CRC);
    }

    #[test]
    fn a_flipped_bit_is_found_in_its_sector() {
        let mut data = vec![5; 3 * SECTOR];
        let crcs = sector_crcs(&data);
        assert_eq!(first_mismatch(&data, &crcs), None);
        data[2 * SECTOR + 17] ^= 1;
        assert_eq!(first_mismatch(&data, &crcs), Some(2));
        assert_eq!(first_mismatch(&data, &crcs[..2]), Some(0));
    }
}
