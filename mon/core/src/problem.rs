//! What is wrong with a cluster, for people and for scripts.

use std::fmt;

use serde::{Serialize, Serializer};

/// How bad a problem is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Everything is served, but something needs attention.
    Warning,
    /// Some data is not served, or cannot be.
    Error,
}

/// What kind of problem. The names are stable: scripts and alerts rely on them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum ProblemCode {
    /// There is no cluster identity in the state store.
    NoCluster,
    /// A configured OSD does not run.
    OsdDown,
    /// An OSD runs that is not configured: it gets no data.
    OsdNotConfigured,
    /// A pool wants more copies than there are OSDs with weight.
    PoolTooFewOsds,
    /// PGs of a pool are not created yet, because OSDs they are placed on do not run.
    PoolWaitsForOsds,
    /// The configuration of a pool does not fit the PGs that exist.
    PoolChanged,
    /// PGs of a pool that is not configured.
    PoolMissing,
    /// PGs of which too few members run to accept writes.
    PgOffline,
    /// PGs that serve with less redundancy than they should have.
    PgDegraded,
    /// PGs whose members all run, but which do not serve yet.
    PgPeering,
    /// A PG has used up its epochs.
    PgEpochsExhausted,
    /// Stored data did not match its checksum.
    CrcErrors,
    /// A scrub found damage that it could not repair.
    ScrubUnrepaired,
    /// Objects were copied of which some sectors could not be read anywhere.
    SectorsLost,
    /// A device reported errors.
    IoErrors,
    /// An OSD is nearly full.
    OsdNearlyFull,
    /// An OSD is full: writes will wait when nothing is left.
    OsdFull,
}

impl ProblemCode {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            ProblemCode::NoCluster => "no-cluster",
            ProblemCode::OsdDown => "osd-down",
            ProblemCode::OsdNotConfigured => "osd-not-configured",
            ProblemCode::PoolTooFewOsds => "pool-too-few-osds",
            ProblemCode::PoolWaitsForOsds => "pool-waits-for-osds",
            ProblemCode::PoolChanged => "pool-changed",
            ProblemCode::PoolMissing => "pool-missing",
            ProblemCode::PgOffline => "pg-offline",
            ProblemCode::PgDegraded => "pg-degraded",
            ProblemCode::PgPeering => "pg-peering",
            ProblemCode::PgEpochsExhausted => "pg-epochs-exhausted",
            ProblemCode::CrcErrors => "crc-errors",
            ProblemCode::ScrubUnrepaired => "scrub-unrepaired",
            ProblemCode::SectorsLost => "sectors-lost",
            ProblemCode::IoErrors => "io-errors",
            ProblemCode::OsdNearlyFull => "osd-nearly-full",
            ProblemCode::OsdFull => "osd-full",
        }
    }

    /// How bad this kind of problem is.
    pub const fn severity(self) -> Severity {
        match self {
            ProblemCode::OsdDown
            | ProblemCode::OsdNotConfigured
            | ProblemCode::PgDegraded
            | ProblemCode::PgPeering
            | ProblemCode::CrcErrors
            | ProblemCode::IoErrors
            | ProblemCode::OsdNearlyFull => Severity::Warning,
            ProblemCode::NoCluster
            | ProblemCode::OsdFull
            | ProblemCode::PoolTooFewOsds
            | ProblemCode::PoolWaitsForOsds
            | ProblemCode::PoolChanged
            | ProblemCode::PoolMissing
            | ProblemCode::PgOffline
            | ProblemCode::ScrubUnrepaired
            | ProblemCode::SectorsLost
            | ProblemCode::PgEpochsExhausted => Severity::Error,
        }
    }
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ProblemCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One problem: what is wrong, with what, and what to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// What kind; stable.
    pub code: ProblemCode,
    /// A sentence for people; may change.
    pub message: String,
}

impl Problem {
    /// A problem of the severity that belongs to its kind.
    pub fn new(code: ProblemCode, message: impl Into<String>) -> Self {
        Self { severity: code.severity(), code, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.message, self.code)
    }
}

/// "1 PG", "2 PGs".
pub(crate) fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// "1, 2, 5" or, for long lists, the first eight and how many more.
pub(crate) fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    const SHOWN_MAX: usize = 8;
    let all: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    let shown = all[..all.len().min(SHOWN_MAX)].join(", ");
    match all.len().saturating_sub(SHOWN_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_in_json() {
        let problem = Problem::new(ProblemCode::OsdDown, "osd 3 is down");
        assert_eq!(
            serde_json::to_string(&problem).unwrap(),
            r#"{"severity":"warning","code":"osd-down","message":"osd 3 is down"}"#
        );
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(list([1, 2]), "1, 2");
        assert_eq!(list(1..=10), "1, 2, 3, 4, 5, 6, 7, 8 and 2 more");
    }
}
