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
    /// Parity that does not fit the data of its object is computed anew from the data, also where it is not known which of them is wrong.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub parity_from_data: bool,
}

/// What has been scrubbed of a PG: in the cluster state, so that the next primary goes on from there. Times are seconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct PgScrub {
    /// End of the last light or deep scrub.
    pub light: Option<u64>,
    /// End of the last deep scrub.
    pub deep: Option<u64>,
    /// Damaged sectors, rows whose parity does not fit their data, and differences between members, that the last scrub found.
    pub errors: u64,
    /// The rows among them.
    pub parity: u64,
    /// Those of them that it could not repair.
    pub unrepaired: u64,
    /// The request that was served last: its time.
    pub served: Option<u64>,
}
