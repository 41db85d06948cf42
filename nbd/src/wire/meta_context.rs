//! The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.

use crate::wire::{DecodeError, string::Reader};

/// The one context there is: what is allocated.
//= nbd-proto §Metadata contexts, `base:allocation`
pub const BASE_ALLOCATION: &str = "base:allocation";
/// All contexts of the namespace, when listing.
const BASE_WILDCARD: &str = "base:";
/// The number under which replies carry `base:allocation`.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// A validated query: for which export, and whether it names `base:allocation`.
//= nbd-proto §Option types, NBD_OPT_LIST_META_CONTEXT
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetaQuery<'a> {
    /// Export it asks about; empty for the default one.
    pub name: &'a str,
    /// Queries sent.
    pub count: u32,
    /// One of them is `base:allocation`.
    pub names_allocation: bool,
    /// One of them is `base:`, which means every context of the namespace when listing.
    pub names_base: bool,
}

impl<'a> MetaQuery<'a> {
    /// Refuses lengths that do not add up and bad strings.
    pub fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(data);
        let name = reader.string("export name")?;
        let count = reader.u32("count of queries")?;
        let (mut names_allocation, mut names_base) = (false, false);
        for _ in 0..count {
            let query = reader.string("query")?;
            names_allocation |= query == BASE_ALLOCATION;
            names_base |= query == BASE_WILDCARD;
        }
        reader.finish("trailing bytes")?;
        Ok(Self { name, count, names_allocation, names_base })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(strings: &[&str], count: u32) -> Vec<u8> {
        let mut data = Vec::new();
        for (at, string) in strings.iter().enumerate() {
            data.extend_from_slice(&(string.len() as u32).to_be_bytes());
            data.extend_from_slice(string.as_bytes());
            if at == 0 {
                data.extend_from_slice(&count.to_be_bytes());
            }
        }
        data
    }

    #[test]
    fn queries_are_found_among_others() {
        let data = data(&["demo", "x-other:", "base:allocation"], 2);
        let query = MetaQuery::decode(&data).expect("valid");
        assert_eq!(query, MetaQuery { name: "demo", count: 2, names_allocation: true, names_base: false });
    }

    #[test]
    fn counts_that_lie_are_refused() {
        assert!(MetaQuery::decode(&data(&["demo", "base:"], u32::MAX)).is_err());
        assert!(MetaQuery::decode(&data(&["demo", "base:"], 0)).is_err());
        let data = data(&["demo", "base:"], 1);
        for len in 0..data.len() {
            assert!(MetaQuery::decode(&data[..len]).is_err(), "{len} bytes");
        }
    }
}
