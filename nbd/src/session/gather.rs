//! Headers that may be cut by the end of a slice.

/// Gathers fixed-length messages of up to `N` bytes.
pub(super) struct Gather<const N: usize> {
    bytes: [u8; N],
    filled: usize,
}

impl<const N: usize> Gather<N> {
    pub(super) fn new() -> Self {
        Self { bytes: [0; N], filled: 0 }
    }

    /// The next `want` bytes, in place if the input holds them all; `None` if the input ended first.
    pub(super) fn take<'s, 'i: 's>(&'s mut self, input: &mut &'i [u8], want: usize) -> Option<&'s [u8]> {
        debug_assert!(self.filled < want && want <= N);
        if self.filled == 0 && input.len() >= want {
            return input.split_off(..want);
        }
        let more = input.len().min(want - self.filled);
        let piece = input.split_off(..more)?;
        self.bytes[self.filled..self.filled + more].copy_from_slice(piece);
        self.filled += more;
        if self.filled < want {
            return None;
        }
        self.filled = 0;
        Some(&self.bytes[..want])
    }
}

/// Drops up to `left` bytes of the input and says how many are left to drop.
pub(super) fn skip(input: &mut &[u8], left: u64) -> u64 {
    let dropped = (input.len() as u64).min(left);
    *input = &input[dropped as usize..];
    left - dropped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_whole_however_they_are_cut() {
        let stream: Vec<u8> = (0..40).collect();
        for cut in 1..40 {
            let mut gather = Gather::<16>::new();
            let mut messages = Vec::new();
            for slice in stream.chunks(cut) {
                let mut input = slice;
                while !input.is_empty() {
                    messages.extend(gather.take(&mut input, 10).map(<[u8]>::to_vec));
                }
            }
            assert_eq!(messages, stream.chunks(10).map(<[u8]>::to_vec).collect::<Vec<_>>(), "cut every {cut}");
        }
    }

    #[test]
    fn skipping_stops_at_the_end_of_what_is_skipped() {
        let mut input = &[1, 2, 3][..];
        assert_eq!((skip(&mut input, 2), input), (0, &[3][..]));
        assert_eq!((skip(&mut input, 9), input), (8, &[][..]));
    }
}
