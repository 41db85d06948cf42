//! Settings of the whole cluster.

use serde::{Deserialize, Serialize};

use super::SchemaError;

/// Settings of the whole cluster, one value. What is left out has its default.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ClusterSettings {
    /// Share of an OSD's space above which it counts as nearly full. 0.5 to 0.99, default 0.85; below `full-ratio`.
    pub near_full_ratio: f64,
    /// Share of an OSD's space above which it counts as full: the little that is left is for clients. 0.5 to 0.99, default 0.95.
    pub full_ratio: f64,
    /// An OSD that does not run for so long gets no data any more: what it held is copied to others. Seconds; 10 to 604,800 (a
    /// week), default 600.
    pub down_out_seconds: u32,
    /// Whether objects that lack copies are not brought up to date for now, unless somebody asks for them. Default: they are.
    pub recovery_paused: bool,
    /// Whether objects that have all copies, but not where they should be, stay there for now. Default: they move.
    pub rebalance_paused: bool,
    /// Objects that one OSD, as primary, recovers or moves at the same time; one for each 16 of them while it serves clients. 1 to 256,
    /// default 16.
    pub recovery_objects_max: u32,
    /// The share of the time in which an OSD that serves clients recovers or moves objects: after each it rests. 0.01 to 1, default 0.25.
    pub recovery_share: f64,
    /// Bytes per second that one OSD, as primary, recovers or moves; none (the default): as many as clients leave. At least 1 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_bytes_per_second_max: Option<u64>,
    /// Time from one light scrub of a PG, which compares what its members have, to the next. Seconds; 60 to 31,536,000 (a year), 0 for
    /// never, default 86,400 (a day).
    pub scrub_interval_seconds: u32,
    /// Time from one deep scrub of a PG, which also reads and verifies everything, to the next. Seconds; 60 to 31,536,000 (a year), 0 for
    /// never, default 604,800 (a week).
    pub deep_scrub_interval_seconds: u32,
    /// PGs of the cluster that may move to other OSDs at the same time. 1 to 65,536, default 64.
    pub moving_pgs_max: u32,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            near_full_ratio: 0.85,
            full_ratio: 0.95,
            down_out_seconds: 600,
            recovery_paused: false,
            rebalance_paused: false,
            recovery_objects_max: 16,
            recovery_share: 0.25,
            recovery_bytes_per_second_max: None,
            scrub_interval_seconds: 86_400,
            deep_scrub_interval_seconds: 604_800,
            moving_pgs_max: 64,
        }
    }
}

impl ClusterSettings {
    /// Checks every bound.
    ///
    /// # Errors
    /// The first field that is out of range, with the range.
    pub fn validate(&self) -> Result<(), SchemaError> {
        for (name, ratio) in [("near-full-ratio", self.near_full_ratio), ("full-ratio", self.full_ratio)] {
            SchemaError::check((0.5..=0.99).contains(&ratio), || format!("{name} is {ratio}: give 0.5 to 0.99"))?;
        }
        SchemaError::check(self.near_full_ratio < self.full_ratio, || {
            format!("near-full-ratio is {}: give less than full-ratio, {}", self.near_full_ratio, self.full_ratio)
        })?;
        let bounds = [
            ("down-out-seconds", self.down_out_seconds, 10..=604_800),
            ("recovery-objects-max", self.recovery_objects_max, 1..=256),
            ("moving-pgs-max", self.moving_pgs_max, 1..=65_536),
        ];
        for (name, value, range) in bounds {
            SchemaError::check(range.contains(&value), || {
                format!("{name} is {value}: give {} to {}", range.start(), range.end())
            })?;
        }
        let intervals = [
            ("scrub-interval-seconds", self.scrub_interval_seconds),
            ("deep-scrub-interval-seconds", self.deep_scrub_interval_seconds),
        ];
        for (name, seconds) in intervals {
            SchemaError::check(seconds == 0 || (60..=31_536_000).contains(&seconds), || {
                format!("{name} is {seconds}: give 60 to 31536000, or 0 for never")
            })?;
        }
        let share = self.recovery_share;
        SchemaError::check((0.01..=1.0).contains(&share), || format!("recovery-share is {share}: give 0.01 to 1"))?;
        let rate = self.recovery_bytes_per_second_max;
        SchemaError::check(rate.is_none_or(|rate| rate >= 1 << 20), || {
            format!("recovery-bytes-per-second-max is {}: give at least 1048576, or nothing", rate.unwrap_or_default())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_its_default() {
        let settings: ClusterSettings = serde_json::from_str(r#"{"down-out-seconds":30}"#).unwrap();
        assert_eq!(settings, ClusterSettings { down_out_seconds: 30, ..ClusterSettings::default() });
        assert_eq!(settings.validate(), Ok(()));
        assert!(serde_json::from_str::<ClusterSettings>(r#"{"down-out":30}"#).is_err());
    }

    #[test]
    fn every_bound_is_checked() {
        let fault =
            |json: &str| serde_json::from_str::<ClusterSettings>(json).unwrap().validate().unwrap_err().to_string();
        assert!(fault(r#"{"full-ratio":1.5}"#).contains("full-ratio is 1.5: give 0.5 to 0.99"));
        assert!(fault(r#"{"near-full-ratio":0.96}"#).contains("less than full-ratio"));
        assert!(fault(r#"{"down-out-seconds":1}"#).contains("10 to 604800"));
        assert!(fault(r#"{"recovery-objects-max":0}"#).contains("1 to 256"));
        assert!(fault(r#"{"recovery-share":0.0}"#).contains("0.01 to 1"));
        assert!(fault(r#"{"moving-pgs-max":0}"#).contains("1 to 65536"));
        assert!(fault(r#"{"scrub-interval-seconds":59}"#).contains("60 to 31536000, or 0"));
        assert!(
            fault(r#"{"deep-scrub-interval-seconds":31536001}"#).contains("deep-scrub-interval-seconds is 31536001")
        );
        let never: ClusterSettings =
            serde_json::from_str(r#"{"scrub-interval-seconds":0,"deep-scrub-interval-seconds":0}"#).unwrap();
        assert_eq!(never.validate(), Ok(()));
        assert!(fault(r#"{"recovery-bytes-per-second-max":1}"#).contains("1048576"));
    }
}
