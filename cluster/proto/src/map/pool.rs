//! A pool: redundancy and placement rules.

use serde::{Deserialize, Serialize};

use super::{PlacementRules, SchemaError};
use crate::layout::SECTOR;
use crate::limits::{
    BLOCK_SIZE_DEFAULT, BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, IMMEDIATE_COMMIT_SMALL_MAX, NAME_LEN_MAX, PG_COUNT_DEFAULT,
    PG_COUNT_MAX, REPLICAS_MAX, SHARDS_MAX, STRIPE_UNIT,
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

    /// Sectors after which shards repeat: one unit of each data shard; 1 for copies.
    pub fn stripe_sectors(self) -> u32 {
        match self {
            Scheme::Replicated { .. } => 1,
            Scheme::Ec { data, .. } => u32::from(data) * (STRIPE_UNIT / SECTOR) as u32,
        }
    }
}

/// What has become durable when a change is answered. What has not is kept by the client, which sees to it with a sync and repeats the
/// change in a new interval (docs/peering.md, "Lazy pools").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImmediateCommit {
    /// Nothing need be: the change is on the members' devices, perhaps in their volatile caches.
    None,
    /// Changes of up to [`IMMEDIATE_COMMIT_SMALL_MAX`] bytes of payload.
    Small,
    /// Every change.
    #[default]
    All,
}

impl ImmediateCommit {
    /// Whether a change with so many bytes of payload may be answered before it is durable.
    pub fn is_lazy(self, bytes: usize) -> bool {
        match self {
            ImmediateCommit::None => true,
            ImmediateCommit::Small => bytes > IMMEDIATE_COMMIT_SMALL_MAX,
            ImmediateCommit::All => false,
        }
    }

    /// As it is written and asked for.
    pub fn name(self) -> &'static str {
        match self {
            ImmediateCommit::None => "none",
            ImmediateCommit::Small => "small",
            ImmediateCommit::All => "all",
        }
    }

    // serde's skip_serializing_if wants a reference.
    fn is_all(&self) -> bool {
        *self == ImmediateCommit::All
    }
}

impl std::fmt::Display for ImmediateCommit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
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
    /// other, if it is lowered to a divisor, it merges them: what there is now say their maps ([`PgMap::pg_count`](super::PgMap::pg_count)).
    pub pg_count: u32,
    /// Size of a copy or data shard of an object in bytes: a power of two, 128 KiB to 4 MiB.
    pub block_size: u32,
    /// What is durable when it is answered. Fixed when the pool is created; erasure-coded pools have only `all` (default).
    #[serde(default, skip_serializing_if = "ImmediateCommit::is_all")]
    pub immediate_commit: ImmediateCommit,
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
            immediate_commit: ImmediateCommit::All,
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
        let lazy = self.immediate_commit != ImmediateCommit::All;
        SchemaError::check(!(lazy && matches!(self.scheme, Scheme::Ec { .. })), || {
            "immediate-commit of an erasure-coded pool must be all: shards lost with the power of two members could leave too few of any \
             version"
                .to_owned()
        })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pools_of_copies_may_be_lazy_and_all_is_not_written() {
        let lazy = |pool| PoolConfig { immediate_commit: ImmediateCommit::None, ..pool };
        assert_eq!(lazy(PoolConfig::replicated("p", 3)).validate(), Ok(()));
        let refused = lazy(PoolConfig::erasure_coded("p", 2, 1)).validate().expect_err("erasure-coded");
        assert!(refused.to_string().contains("immediate-commit"), "{refused}");
        let plain = serde_json::to_value(PoolConfig::replicated("p", 3)).expect("JSON");
        assert!(plain.get("immediate-commit").is_none());
        let written = serde_json::to_value(lazy(PoolConfig::replicated("p", 3))).expect("JSON");
        assert_eq!(written["immediate-commit"], "none");
        let read: PoolConfig = serde_json::from_value(plain).expect("a pool of before");
        assert_eq!(read.immediate_commit, ImmediateCommit::All);
    }

    #[test]
    fn small_changes_are_durable_up_to_the_limit() {
        let small = IMMEDIATE_COMMIT_SMALL_MAX;
        assert!(!ImmediateCommit::Small.is_lazy(small) && ImmediateCommit::Small.is_lazy(small + 1));
        assert!(ImmediateCommit::None.is_lazy(0) && !ImmediateCommit::All.is_lazy(usize::MAX));
    }
}
