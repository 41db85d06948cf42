//! What the store asks of its device, and the slab that remembers why it asked.

use buffer::{Buffer, BufferMut};
use smallvec::SmallVec;

/// Pieces of one vectored write; inline for small ones.
pub type Pieces = SmallVec<[Buffer; 4]>;

/// An operation on the device. Offsets and lengths are bytes, multiples of 4096.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceOp {
    /// Read `len` bytes; a short read is an error.
    Read {
        /// Where.
        offset: u64,
        /// How many.
        len: usize,
    },
    /// Write all pieces, one behind the other. Each is page-aligned and whole pages long.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Pieces,
    },
    /// Make every write that completed before this was issued survive a power cut.
    Flush,
    /// The bytes are not needed any more. May be ignored; a failure is harmless.
    Discard {
        /// Where.
        offset: u64,
        /// How many.
        len: u64,
    },
}

/// An operation with the token that its completion must carry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceRequest {
    /// Goes into [`crate::Store::handle_device`].
    pub token: u64,
    /// The operation.
    pub op: DeviceOp,
}

/// The device failed: its error number, 0 if it has none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error, serde::Serialize)]
#[error("device error {0}")]
pub struct DeviceError(pub i32);

/// How a [`DeviceOp`] ended.
#[derive(Debug)]
pub enum DeviceResult {
    /// Of a read: exactly as many bytes as asked for.
    Read(Result<BufferMut, DeviceError>),
    /// Of everything else.
    Done(Result<(), DeviceError>),
}

/// Values in numbered places. A number is used again only with another generation, so a late or repeated completion
/// finds nothing.
pub(crate) struct Slab<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub fn new() -> Slab<T> {
        Slab { places: Vec::new(), free: Vec::new() }
    }

    pub fn insert(&mut self, value: T) -> u64 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[at as usize];
        place.1 = Some(value);
        u64::from(place.0) << 32 | u64::from(at)
    }

    fn place(&mut self, token: u64) -> Option<&mut (u32, Option<T>)> {
        self.places.get_mut(token as u32 as usize).filter(|p| p.0 == (token >> 32) as u32)
    }

    pub fn get_mut(&mut self, token: u64) -> Option<&mut T> {
        self.place(token)?.1.as_mut()
    }

    pub fn remove(&mut self, token: u64) -> Option<T> {
        let place = self.place(token)?;
        let value = place.1.take()?;
        place.0 = place.0.wrapping_add(1);
        self.free.push(token as u32);
        Some(value)
    }

    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Takes everything out.
    pub fn drain(&mut self) -> Vec<T> {
        let tokens: Vec<u64> = (0..self.places.len())
            .filter(|&at| self.places[at].1.is_some())
            .map(|at| u64::from(self.places[at].0) << 32 | at as u64)
            .collect();
        tokens.into_iter().filter_map(|t| self.remove(t)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once() {
        let mut slab = Slab::new();
        let a = slab.insert('a');
        assert_eq!((slab.remove(a), slab.remove(a)), (Some('a'), None));
        let b = slab.insert('b');
        assert_ne!(a, b);
        assert_eq!(slab.get_mut(a), None);
        assert_eq!(slab.len(), 1);
        assert_eq!(slab.drain(), ['b']);
        assert_eq!(slab.remove(u64::MAX), None);
    }
}
