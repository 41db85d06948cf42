//! Randomness from the kernel, for incarnations, identifiers and seeds. Pure cores take the result as an argument.

use crate::Error;

/// 64 unpredictable bits.
///
/// # Errors
/// Only when the kernel has no entropy source at all (`getrandom(2)` refused, no `/dev/urandom`).
pub fn random_u64() -> Result<u64, Error> {
    getrandom::u64().map_err(no_entropy)
}

/// `N` unpredictable bytes.
///
/// # Errors
/// As [`random_u64`].
pub fn bytes<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// Fills `bytes` with unpredictable bits.
///
/// # Errors
/// As [`random_u64`].
pub fn fill(bytes: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(bytes).map_err(no_entropy)
}

fn no_entropy(error: getrandom::Error) -> Error {
    let source = error.raw_os_error().map(std::io::Error::from_raw_os_error);
    Error::new(crate::ErrorKind::Unavailable, "cannot get random bytes from the kernel", source)
}

#[cfg(test)]
mod tests {
    #[test]
    fn values_differ() {
        let values: std::collections::HashSet<u64> = (0..64).map(|_| super::random_u64().unwrap()).collect();
        assert_eq!(values.len(), 64);
        let mut bytes = [0u8; 64];
        super::fill(&mut bytes).unwrap();
        assert_ne!(bytes, [0; 64]);
        assert_ne!(super::bytes::<32>().unwrap(), super::bytes::<32>().unwrap());
    }
}
