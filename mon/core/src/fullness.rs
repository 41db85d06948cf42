//! How full OSDs are, against the thresholds of the cluster's settings.

use std::collections::BTreeMap;

use cluster_proto::OsdId;
use cluster_proto::map::{ClusterSettings, OsdStats};
use serde::Serialize;

use crate::problem::{Problem, ProblemCode};

/// How full an OSD is, in one word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fullness {
    /// There is room.
    Roomy,
    /// At least [`ClusterSettings::near_full_ratio`]: add space soon.
    NearFull,
    /// At least [`ClusterSettings::full_ratio`]: writes will wait when nothing is left.
    Full,
}

impl Fullness {
    /// Judges a share of an OSD's space that is in use, 0 to 1.
    pub fn of(settings: &ClusterSettings, fill: f64) -> Self {
        if fill >= settings.full_ratio {
            Fullness::Full
        } else if fill >= settings.near_full_ratio {
            Fullness::NearFull
        } else {
            Fullness::Roomy
        }
    }
}

/// Share of an OSD's space that is in use, 0 to 1; `None` before it has told its size.
pub fn fill(stats: &OsdStats) -> Option<f64> {
    (stats.space.total > 0).then(|| stats.space.used as f64 / stats.space.total as f64)
}

/// One problem for each OSD that is nearly full or full.
pub fn fullness_problems(settings: &ClusterSettings, stats: &BTreeMap<OsdId, OsdStats>) -> Vec<Problem> {
    stats.iter().filter_map(|(osd, stats)| problem(settings, *osd, fill(stats)?)).collect()
}

fn problem(settings: &ClusterSettings, osd: OsdId, fill: f64) -> Option<Problem> {
    let percent = fill * 100.0;
    match Fullness::of(settings, fill) {
        Fullness::Roomy => None,
        Fullness::NearFull => Some(Problem::new(
            ProblemCode::OsdNearlyFull,
            format!("osd {osd} is {percent:.1}% full: add OSDs or remove images"),
        )),
        Fullness::Full => Some(Problem::new(
            ProblemCode::OsdFull,
            format!(
                "osd {osd} is {percent:.1}% full, writes wait when nothing is left: add OSDs, lower its reweight, or remove images"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use cluster_proto::shard::Space;

    use super::*;

    fn stats(used: u64, total: u64) -> OsdStats {
        OsdStats { space: Space { used, total, ..Space::default() }, ..OsdStats::default() }
    }

    #[test]
    fn thresholds_are_those_of_the_settings() {
        let stats = [(1, 849), (2, 850), (3, 949), (4, 950)].map(|(id, used)| (OsdId(id), stats(used, 1000)));
        let mut stats = BTreeMap::from(stats);
        stats.insert(OsdId(5), OsdStats::default());
        let codes = |settings: &ClusterSettings| -> Vec<_> {
            fullness_problems(settings, &stats).into_iter().map(|problem| problem.code).collect()
        };
        let near = ProblemCode::OsdNearlyFull;
        assert_eq!(codes(&ClusterSettings::default()), [near, near, ProblemCode::OsdFull]);
        let tight = ClusterSettings { near_full_ratio: 0.5, full_ratio: 0.9, ..ClusterSettings::default() };
        assert_eq!(codes(&tight), [near, near, ProblemCode::OsdFull, ProblemCode::OsdFull]);
        assert!(fullness_problems(&tight, &stats)[2].message.starts_with("osd 3 is 94.9% full, writes wait"));
    }
}
