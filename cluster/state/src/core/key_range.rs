//! Sets of keys: one key, a range, or all from a key on.

use std::ops::Bound;

use prost::bytes::Bytes;

/// Bounds for a sorted map.
pub(super) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// A contiguous set of keys, as etcd's API expresses them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRange {
    /// Exactly this key.
    Key(Bytes),
    /// Keys from the first (included) to the second (excluded).
    Between(Bytes, Bytes),
    /// All keys from this one on.
    From(Bytes),
}

impl KeyRange {
    /// All keys that begin with `prefix`; all keys if it is empty.
    pub fn prefix(prefix: &[u8]) -> Self {
        let start = Bytes::copy_from_slice(prefix);
        match prefix.iter().rposition(|&byte| byte != 0xff) {
            None => KeyRange::From(start),
            Some(last) => {
                let mut end = prefix[..=last].to_vec();
                end[last] += 1;
                KeyRange::Between(start, end.into())
            }
        }
    }

    /// The meaning of `key` and `range_end` in a request: no end = one key, an end of one zero byte = all from `key` on.
    pub fn from_wire(key: Bytes, range_end: Bytes) -> Self {
        match &range_end[..] {
            [] => KeyRange::Key(key),
            [0] => KeyRange::From(if key[..] == [0] { Bytes::new() } else { key }),
            _ => KeyRange::Between(key, range_end),
        }
    }

    /// The pair `key` and `range_end` of a request.
    pub fn to_wire(&self) -> (Bytes, Bytes) {
        const ZERO: Bytes = Bytes::from_static(&[0]);
        match self {
            KeyRange::Key(key) => (key.clone(), Bytes::new()),
            KeyRange::Between(start, end) => (start.clone(), end.clone()),
            KeyRange::From(start) if start.is_empty() => (ZERO, ZERO),
            KeyRange::From(start) => (start.clone(), ZERO),
        }
    }

    /// Whether `key` belongs to the set.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            KeyRange::Key(only) => only[..] == *key,
            KeyRange::Between(start, end) => start[..] <= *key && *key < end[..],
            KeyRange::From(start) => start[..] <= *key,
        }
    }

    /// Whether a request may name this set: a single key must not be empty.
    pub fn is_valid(&self) -> bool {
        !matches!(self, KeyRange::Key(key) if key.is_empty())
    }

    /// The bounds for a sorted map; `None` for a range that is empty because its end is not above its start.
    pub(super) fn bounds(&self) -> Option<Bounds<'_>> {
        match self {
            KeyRange::Key(key) => Some((Bound::Included(key), Bound::Included(key))),
            KeyRange::Between(start, end) if start >= end => None,
            KeyRange::Between(start, end) => Some((Bound::Included(start), Bound::Excluded(end))),
            KeyRange::From(start) => Some((Bound::Included(start), Bound::Unbounded)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_contains_exactly_what_begins_with_it() {
        for prefix in [&b""[..], b"a", b"a/", b"a\xff", b"\xff\xff", b"a\xff\xff"] {
            let range = KeyRange::prefix(prefix);
            for key in
                [&b"a"[..], b"a/", b"a/b", b"a0", b"a\xff", b"a\xff\xff\x01", b"b", b"\xff", b"\xff\xff", b"\xff\xffz"]
            {
                assert_eq!(range.contains(key), key.starts_with(prefix), "{prefix:?} {key:?}");
            }
        }
    }

    #[test]
    fn the_wire_form_keeps_the_meaning() {
        for range in [
            KeyRange::Key(Bytes::from_static(b"k")),
            KeyRange::prefix(b""),
            KeyRange::prefix(b"a/"),
            KeyRange::From(Bytes::from_static(b"m")),
        ] {
            let (key, range_end) = range.to_wire();
            assert!(!key.is_empty());
            assert_eq!(KeyRange::from_wire(key, range_end), range);
        }
    }

    #[test]
    fn an_inverted_range_is_empty() {
        let range = KeyRange::Between(Bytes::from_static(b"b"), Bytes::from_static(b"a"));
        assert!(range.bounds().is_none());
        assert!(!range.contains(b"a") && !range.contains(b"b"));
    }
}
