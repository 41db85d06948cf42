//! Placement groups: who serves them, since when.

use serde::{Deserialize, Serialize};

use super::SchemaError;
use crate::ids::{Epoch, Incarnation, OsdId};
use crate::limits::REPLICAS_MAX;

/// A member of a PG's acting set: one run of an OSD. A restarted OSD is a new member, and the interval ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Member {
    /// The OSD.
    pub osd: OsdId,
    /// Its run.
    pub incarnation: Incarnation,
}

/// The present interval of a PG.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PgMap {
    /// Number of the interval.
    pub epoch: Epoch,
    /// OSDs that serve the PG now. The first is the primary.
    pub acting: Vec<Member>,
    /// OSDs that should serve it.
    pub target: Vec<OsdId>,
}

impl PgMap {
    /// The primary.
    pub fn primary(&self) -> Option<Member> {
        self.acting.first().copied()
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<(), SchemaError> {
        let epoch = self.epoch;
        SchemaError::check((1..=Epoch::MAX.0).contains(&epoch.0), || format!("epoch {epoch} is out of range"))?;
        SchemaError::check((1..=REPLICAS_MAX).contains(&self.acting.len()), || {
            format!("{} members: give 1 to {REPLICAS_MAX}", self.acting.len())
        })?;
        let distinct = |ids: Vec<OsdId>| {
            let mut sorted = ids.clone();
            sorted.sort_unstable();
            sorted.dedup();
            sorted.len() == ids.len()
        };
        SchemaError::check(distinct(self.acting.iter().map(|m| m.osd).collect()), || "an OSD is listed twice".into())?;
        SchemaError::check(distinct(self.target.clone()), || "an OSD is listed twice in the target".into())
    }
}

/// Written by a primary before its interval accepts writes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Activation {
    /// The interval.
    pub epoch: Epoch,
    /// Its members.
    pub acting: Vec<Member>,
}

/// A past interval that may have accepted writes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Interval {
    /// Number of the interval.
    pub epoch: Epoch,
    /// OSDs that served it.
    pub acting: Vec<OsdId>,
}
