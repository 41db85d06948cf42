//! OSDs that have been away for so long that their data is copied to others.

use std::collections::{BTreeMap, BTreeSet};

use cluster_proto::OsdId;
use cluster_proto::map::ClusterMap;
use mon_core::Running;
use mon_core::liveness::Millis;

/// Since when which configured OSD does not run. A new leader starts to count anew: that only makes it wait longer.
#[derive(Debug, Default)]
pub(crate) struct Absence {
    since: BTreeMap<OsdId, Millis>,
    /// Longest absence that changes nothing.
    limit_ms: Millis,
}

impl Absence {
    /// The OSDs that have been away for too long.
    pub fn out(&mut self, now: Millis, map: &ClusterMap, running: &Running) -> BTreeSet<OsdId> {
        self.limit_ms = Millis::from(map.settings.down_out_seconds) * 1000;
        let is_away = |osd: &OsdId| map.osd_configs.contains_key(osd) && !running.alive.contains_key(osd);
        self.since.retain(|osd, _| is_away(osd));
        for osd in map.osd_configs.keys().filter(|osd| is_away(osd)) {
            self.since.entry(*osd).or_insert(now);
        }
        self.since.iter().filter(|(_, since)| **since + self.limit_ms <= now).map(|(osd, _)| *osd).collect()
    }

    /// When the next one will have been away for too long.
    pub fn timeout(&self, now: Millis) -> Option<Millis> {
        self.since.values().map(|since| since + self.limit_ms).filter(|end| *end > now).min()
    }
}

#[cfg(test)]
mod tests {
    use cluster_proto::Incarnation;
    use cluster_proto::map::OsdConfig;

    use super::*;

    #[test]
    fn who_comes_back_in_time_keeps_its_data() {
        let mut map = ClusterMap::default();
        map.settings.down_out_seconds = 10;
        (1..=3).for_each(|id| drop(map.osd_configs.insert(OsdId(id), OsdConfig::new(1.0))));
        let running = |ids: &[u32]| Running {
            alive: ids.iter().map(|id| (OsdId(*id), Incarnation(1))).collect(),
            ..Running::default()
        };
        let mut absence = Absence::default();
        let mut out = |now, ids: &[u32]| {
            let out = absence.out(now, &map, &running(ids)).into_iter().map(|osd| osd.0).collect::<Vec<_>>();
            (out, absence.timeout(now))
        };
        assert_eq!(out(0, &[1, 2, 3]), (vec![], None));
        assert_eq!(out(1_000, &[1]), (vec![], Some(11_000)));
        assert_eq!(out(5_000, &[1, 3]), (vec![], Some(11_000)));
        assert_eq!(out(6_000, &[1]), (vec![], Some(11_000)));
        assert_eq!(out(11_000, &[1]), (vec![2], Some(16_000)));
        assert_eq!(out(16_000, &[1]), (vec![2, 3], None));
        assert_eq!(out(16_001, &[1, 2]), (vec![3], None));
    }
}
