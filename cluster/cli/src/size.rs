//! Sizes as people write and read them.

use clap::builder::{TypedValueParser, ValueParserFactory};
use std::fmt;
use std::str::FromStr;

/// Units with their power of two.
const UNITS: [(char, u32); 5] = [('P', 50), ('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// A number of bytes: `4G`, `1.5TiB`, `512M`, `4096`. Units are powers of 1024.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no size: give a number of bytes, or one with K, M, G, T or P, like 4G");
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim().to_ascii_uppercase();
        let unit = unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit);
        let shift = match unit.chars().next() {
            None => 0,
            Some(c) if unit.len() == 1 => UNITS.iter().find(|(u, _)| *u == c).ok_or_else(bad)?.1,
            Some(_) => return Err(bad()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: u64 = whole.parse().map_err(|_| bad())?;
        let bytes = whole.checked_mul(1 << shift).ok_or_else(bad)?;
        bytes.checked_add(fraction_of(fraction, shift).ok_or_else(bad)?).map(Size).ok_or_else(bad)
    }
}

/// `0.fraction` of `1 << shift`, rounded down.
fn fraction_of(fraction: &str, shift: u32) -> Option<u64> {
    if fraction.is_empty() {
        return Some(0);
    }
    if shift == 0 || fraction.len() > 9 {
        return None;
    }
    let numerator: u128 = fraction.parse().ok()?;
    u64::try_from((numerator << shift) / 10u128.pow(fraction.len() as u32)).ok()
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((unit, shift)) = UNITS.iter().find(|(_, shift)| self.0 >= 1 << shift) else {
            return f.pad(&format!("{} B", self.0));
        };
        let tenths = (u128::from(self.0) * 10) >> shift;
        let text = match tenths % 10 {
            0 => format!("{} {unit}iB", tenths / 10),
            rest => format!("{}.{rest} {unit}iB", tenths / 10),
        };
        f.pad(&text)
    }
}

/// As a number of bytes, which is exact.
impl serde::Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// From a number of bytes, or a text as on the command line.
impl<'de> serde::Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Form {
            Bytes(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Bytes(bytes) => Ok(Size(bytes)),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl ValueParserFactory for Size {
    type Parser = clap::builder::ValueParser;
    fn value_parser() -> Self::Parser {
        clap::builder::NonEmptyStringValueParser::new().try_map(|text| text.parse::<Size>()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_written() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4k", 4096),
            ("4G", 4 << 30),
            ("4GiB", 4 << 30),
            ("4 GB", 4 << 30),
            ("1.5M", 3 << 19),
            ("0.5K", 512),
            ("16T", 16 << 40),
        ] {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "G", "4X", "4GG", "-1", "1.5", "99999999999P", "1.2.3M", "4KiBB", "1e9"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_one_digit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (4 << 30, "4 GiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
