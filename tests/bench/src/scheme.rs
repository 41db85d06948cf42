//! How a cluster keeps data.

use std::fmt::{self, Display};
use std::str::FromStr;

/// How the cluster keeps data; it has as many OSDs as that takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheme {
    /// So many copies.
    Copies(u8),
    /// Erasure code: data and parity shards.
    Coded(u8, u8),
}

impl Scheme {
    /// How many OSDs it has.
    pub fn osds(self) -> u8 {
        match self {
            Scheme::Copies(copies) => copies,
            Scheme::Coded(data, parity) => data.saturating_add(parity),
        }
    }

    /// Bytes that each OSD holds of an image of `size` bytes.
    pub fn share(self, size: u64) -> u64 {
        match self {
            Scheme::Copies(_) => size,
            Scheme::Coded(data, _) => size.div_ceil(data.max(1).into()),
        }
    }

    /// For titles.
    pub fn in_words(self) -> String {
        match self {
            Scheme::Copies(1) => "1 copy".into(),
            Scheme::Copies(copies) => format!("{copies} copies"),
            Scheme::Coded(..) => format!("EC {self}"),
        }
    }

    /// Options of `blockyard up` and `pool create` for it.
    pub fn options(self) -> [String; 2] {
        let option = if matches!(self, Scheme::Copies(_)) { "--replicas" } else { "--ec" };
        [option.into(), self.to_string()]
    }

    /// The same, for a pool that can be written to while one OSD is away. By itself one of erasure code cannot with one parity
    /// shard: what is written then has no redundancy.
    pub fn forgiving_options(self) -> Vec<String> {
        let mut options = self.options().to_vec();
        if let Scheme::Coded(data, _) = self {
            options.extend(["--min-size".into(), data.to_string()]);
        }
        options
    }
}

impl Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scheme::Copies(copies) => copies.fmt(f),
            Scheme::Coded(data, parity) => write!(f, "{data}+{parity}"),
        }
    }
}

impl FromStr for Scheme {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.parse::<u8>().ok().filter(|n| *n > 0);
        let parsed = match text.split_once('+') {
            None => number(text).map(Scheme::Copies),
            Some((data, parity)) => number(data).zip(number(parity)).map(|(data, parity)| Scheme::Coded(data, parity)),
        };
        parsed.ok_or_else(|| {
            format!("{text:?} is neither a number of copies, like 3, nor data and parity shards, like 4+2")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_read_as_they_are_shown() {
        for text in ["1", "3", "2+1", "4+2"] {
            assert_eq!(text.parse::<Scheme>().map(|scheme| scheme.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "0", "2+", "+1", "2+0", "4+2+1", "x"] {
            assert!(text.parse::<Scheme>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_osd_holds_a_copy_or_a_shard() {
        assert_eq!((Scheme::Copies(3).osds(), Scheme::Copies(3).share(1000)), (3, 1000));
        assert_eq!((Scheme::Coded(4, 2).osds(), Scheme::Coded(4, 2).share(1000)), (6, 250));
        assert_eq!(Scheme::Copies(2).forgiving_options(), ["--replicas", "2"]);
        assert_eq!(Scheme::Coded(4, 2).forgiving_options(), ["--ec", "4+2", "--min-size", "4"]);
    }
}
