//! Scrubs: what operators ask for, and what has been done.

use serde::{Deserialize, Serialize};

/// A scrub of a PG that an operator asked for. The PG's primary watches it and carries it out once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ScrubRequest {
    /// Everything is read and verified, instead of only comparing what the members have.
    pub deep: bool,
    /// When it was asked for: seconds since 1970. Another request has another time.
    pub requested: u64,
}

/// What an OSD has scrubbed of a PG it leads. Times are milliseconds on the OSD's own clock, from the start of its run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct PgScrub {
    /// Number of the pool.
    pub pool: u32,
    /// Number of the PG in it.
    pub index: u32,
    /// End of the last light or deep scrub; none in this run yet.
    pub light: Option<u64>,
    /// End of the last deep scrub; none in this run yet.
    pub deep: Option<u64>,
    /// Damaged sectors, or differences between members, that the last scrub found.
    pub errors: u64,
    /// Those of them that it could not repair.
    pub unrepaired: u64,
    /// The request that was served last: its time.
    pub served: Option<u64>,
}
