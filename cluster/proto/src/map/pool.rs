//! A pool: redundancy and placement rules.

use serde::{Deserialize, Serialize};

use super::SchemaError;
use crate::limits::{
    BLOCK_SIZE_DEFAULT, BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, NAME_LEN_MAX, PG_COUNT_DEFAULT, PG_COUNT_MAX, REPLICAS_MAX,
};

/// How a pool keeps its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Scheme {
    /// Full copies.
    Replicated {
        /// How many; 1 to 16.
        copies: u8,
    },
}

/// Configuration of a pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PoolConfig {
    /// Unique among pools. 1 to 255 bytes, no `/`.
    pub name: String,
    /// Redundancy.
    pub scheme: Scheme,
    /// Fewest members that may accept writes; 1 to the number of copies.
    pub min_size: u8,
    /// Placement groups; 1 to 65,536.
    pub pg_count: u32,
    /// Object size in bytes: a power of two, 128 KiB to 4 MiB.
    pub block_size: u32,
}

impl PoolConfig {
    /// A replicated pool with the defaults of everything else.
    pub fn replicated(name: &str, copies: u8) -> Self {
        Self {
            name: name.to_owned(),
            scheme: Scheme::Replicated { copies },
            min_size: copies / 2 + 1,
            pg_count: PG_COUNT_DEFAULT,
            block_size: BLOCK_SIZE_DEFAULT,
        }
    }

    /// Members of each PG.
    pub fn width(&self) -> usize {
        match self.scheme {
            Scheme::Replicated { copies } => usize::from(copies),
        }
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// The first field that is out of range, with the range.
    pub fn validate(&self) -> Result<(), SchemaError> {
        validate_name("pool", &self.name)?;
        let Scheme::Replicated { copies } = self.scheme;
        SchemaError::check((1..=REPLICAS_MAX).contains(&usize::from(copies)), || {
            format!("copies is {copies}: give 1 to {REPLICAS_MAX}")
        })?;
        SchemaError::check((1..=copies).contains(&self.min_size), || {
            format!("min-size is {}: give 1 to the number of copies, {copies}", self.min_size)
        })?;
        SchemaError::check((1..=PG_COUNT_MAX).contains(&self.pg_count), || {
            format!("pg-count is {}: give 1 to {PG_COUNT_MAX}", self.pg_count)
        })?;
        let block = self.block_size;
        SchemaError::check(block.is_power_of_two() && (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block), || {
            format!("block-size is {block}: give a power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX} bytes")
        })
    }
}

/// Checks the name of a pool, image or export.
pub(super) fn validate_name(what: &str, name: &str) -> Result<(), SchemaError> {
    SchemaError::check(!name.is_empty() && name.len() <= NAME_LEN_MAX, || {
        format!("{what} name has {} bytes: give 1 to {NAME_LEN_MAX}", name.len())
    })?;
    SchemaError::check(!name.chars().any(char::is_control), || {
        format!("{what} name {name:?} has control characters: leave them out")
    })?;
    SchemaError::check(what != "pool" || !name.contains('/'), || {
        format!("pool name {name:?} contains '/': it separates pool and image, leave it out")
    })
}
