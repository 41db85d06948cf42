//! A pool: redundancy and placement rules.

use serde::{Deserialize, Serialize};

use super::{PlacementRules, SchemaError};
use crate::limits::{
    BLOCK_SIZE_DEFAULT, BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, NAME_LEN_MAX, PG_COUNT_DEFAULT, PG_COUNT_MAX, REPLICAS_MAX,
    SHARDS_MAX,
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
    /// Reed-Solomon code: any `data` of the shards make up the object.
    Ec {
        /// Data shards, 1 to 31.
        data: u8,
        /// Parity shards, at least 1; 32 at most together with the data shards.
        parity: u8,
    },
}

impl Scheme {
    /// Members of each PG.
    pub fn width(self) -> usize {
        match self {
            Scheme::Replicated { copies } => usize::from(copies),
            Scheme::Ec { data, parity } => usize::from(data) + usize::from(parity),
        }
    }

    /// Members that together have everything: 1 copy, or so many shards.
    pub fn copies_needed(self) -> usize {
        match self {
            Scheme::Replicated { .. } => 1,
            Scheme::Ec { data, .. } => usize::from(data),
        }
    }
}

/// Configuration of a pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PoolConfig {
    /// Unique among pools. 1 to 255 bytes, no `/`.
    pub name: String,
    /// Redundancy.
    pub scheme: Scheme,
    /// Fewest members that may accept writes; 1 to the number of copies, or from the number of data shards to that of all.
    pub min_size: u8,
    /// Placement groups that the pool shall have; 1 to 65,536. If this is raised to a multiple, the monitor splits the PGs one after the
    /// other: what there is now say their maps ([`PgMap::pg_count`](super::PgMap::pg_count)).
    pub pg_count: u32,
    /// Size of a copy or data shard of an object in bytes: a power of two, 128 KiB to 4 MiB.
    pub block_size: u32,
    /// Which OSDs may serve it, and which together.
    #[serde(default)]
    pub placement: PlacementRules,
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
            placement: PlacementRules::default(),
        }
    }

    /// An erasure-coded pool with the defaults of everything else.
    pub fn erasure_coded(name: &str, data: u8, parity: u8) -> Self {
        let share = BLOCK_SIZE_MAX / u32::from(data.max(1));
        let block_size = BLOCK_SIZE_DEFAULT.min((share + 1).next_power_of_two() / 2);
        let scheme = Scheme::Ec { data, parity };
        Self { scheme, min_size: data.saturating_add(1), block_size, ..Self::replicated(name, 1) }
    }

    /// Bytes of an image that one object holds: the block size times the data shards.
    pub fn object_size(&self) -> u32 {
        self.block_size * self.scheme.copies_needed() as u32
    }

    /// Members of each PG.
    pub fn width(&self) -> usize {
        self.scheme.width()
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// The first field that is out of range, with the range.
    pub fn validate(&self) -> Result<(), SchemaError> {
        validate_name("pool", &self.name)?;
        match self.scheme {
            Scheme::Replicated { copies } => {
                SchemaError::check((1..=REPLICAS_MAX).contains(&usize::from(copies)), || {
                    format!("copies is {copies}: give 1 to {REPLICAS_MAX}")
                })?;
            }
            Scheme::Ec { data, parity } => {
                let fits = data >= 1 && parity >= 1 && self.width() <= SHARDS_MAX;
                SchemaError::check(fits, || {
                    format!("erasure code {data}+{parity}: give at least 1+1 and at most {SHARDS_MAX} shards together")
                })?;
            }
        }
        SchemaError::check(
            self.block_size.checked_mul(self.scheme.copies_needed() as u32) <= Some(BLOCK_SIZE_MAX),
            || {
                format!(
                    "an object of {} data shards is larger than {BLOCK_SIZE_MAX} bytes: give a smaller block-size",
                    self.scheme.copies_needed()
                )
            },
        )?;
        let (least, most) = (self.scheme.copies_needed(), self.width());
        SchemaError::check((least..=most).contains(&usize::from(self.min_size)), || {
            format!("min-size is {}: give {least} to {most}", self.min_size)
        })?;
        SchemaError::check((1..=PG_COUNT_MAX).contains(&self.pg_count), || {
            format!("pg-count is {}: give 1 to {PG_COUNT_MAX}", self.pg_count)
        })?;
        self.placement.validate()?;
        let block = self.block_size;
        SchemaError::check(block.is_power_of_two() && (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block), || {
            format!("block-size is {block}: give a power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX} bytes")
        })
    }
}

/// Checks the name of a pool, image, export, node or the like.
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
