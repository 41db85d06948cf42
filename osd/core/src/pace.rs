//! How much recovery goes on at once: as the settings of the cluster say, and less while clients are served.
//!
//! While they are, an object or few are recovered at a time, and each is followed by a rest in proportion to the time it took: so recovery has
//! its share of the time, and whatever it competes for with clients, it takes longer and rests longer when that is short.
//!
//! A limit of bytes is kept by a budget that time fills and recoveries use up. What an object will cost is known when it has been read:
//! until then it counts as much as objects did before it.

use std::collections::VecDeque;

use cluster_proto::link::Millis;
use cluster_proto::map::{ClusterSettings, RecoveryRate};

/// The rate is that of so much time. Milliseconds.
const WINDOW_MS: Millis = 10_000;
/// So often it is looked how much was recovered. Milliseconds.
const SAMPLE_MS: Millis = 1_000;
/// The budget holds what may be recovered in so much time. Milliseconds.
const BUDGET_MS: u64 = 1_000;
/// Clients count as served until none asked for anything for so long. Milliseconds.
const SERVING_MS: Millis = 1_000;
/// While clients are served, one in so many objects at a time.
const SERVING_DIVISOR: u32 = 16;
/// No rest is longer. Microseconds.
const REST_MAX_US: u64 = 1_000_000;
/// What an object is taken to cost before one was recovered. Bytes.
const FIRST_ESTIMATE: u64 = 1 << 20;

/// How far recovery has come.
#[derive(Clone, Copy)]
struct Sample {
    at: Millis,
    objects: u64,
    bytes: u64,
}

pub(crate) struct RecoveryPace {
    /// Recoveries under way.
    running: u32,
    /// Until when clients count as being served.
    serving_until: Millis,
    /// What they had asked for by the last tick.
    served: u64,
    /// When the rest after the last recovery ends. Microseconds.
    rest_until_us: u64,
    /// A recovery waits for that.
    is_awaited: bool,
    paused: bool,
    objects_max: u32,
    share: f64,
    bytes_per_second_max: Option<u64>,
    /// Bytes that may be recovered now; negative after it was more than expected.
    budget: i64,
    estimate: u64,
    filled_at: Millis,
    /// Of the last [`WINDOW_MS`], oldest first.
    samples: VecDeque<Sample>,
}

impl Default for RecoveryPace {
    fn default() -> Self {
        let mut pace = Self {
            running: 0,
            serving_until: 0,
            served: 0,
            rest_until_us: 0,
            is_awaited: false,
            paused: false,
            objects_max: 0,
            share: 1.0,
            bytes_per_second_max: None,
            budget: 0,
            estimate: FIRST_ESTIMATE,
            filled_at: 0,
            samples: VecDeque::new(),
        };
        pace.apply(&ClusterSettings::default());
        pace
    }
}

impl RecoveryPace {
    /// The settings have changed.
    pub fn apply(&mut self, settings: &ClusterSettings) {
        (self.paused, self.objects_max) = (settings.recovery_paused, settings.recovery_objects_max);
        self.share = settings.recovery_share;
        let rate = settings.recovery_bytes_per_second_max;
        if std::mem::replace(&mut self.bytes_per_second_max, rate) != rate {
            self.budget = 0;
        }
    }

    /// Looks at the clients' load and at the clock. `served`: what clients have asked for in all. `objects` and `bytes`: what has been
    /// recovered in all.
    pub fn tick(&mut self, now: Millis, served: u64, objects: u64, bytes: u64) {
        if std::mem::replace(&mut self.served, served) != served {
            self.serving_until = now + SERVING_MS;
        }
        let passed = now.saturating_sub(std::mem::replace(&mut self.filled_at, now)).min(BUDGET_MS);
        if let Some(rate) = self.bytes_per_second_max {
            let filled = self.budget.saturating_add_unsigned(rate.saturating_mul(passed) / 1000);
            self.budget = filled.min(i64::try_from(rate.saturating_mul(BUDGET_MS) / 1000).unwrap_or(i64::MAX));
        }
        if self.samples.back().is_none_or(|last| last.at + SAMPLE_MS <= now) {
            self.samples.push_back(Sample { at: now, objects, bytes });
            while self.samples.front().is_some_and(|first| first.at + WINDOW_MS < now) {
                self.samples.pop_front();
            }
        }
    }

    /// Whether something is being recovered.
    pub fn is_running(&self) -> bool {
        self.running > 0
    }

    fn is_serving(&self, now_us: u64) -> bool {
        now_us < self.serving_until * 1_000
    }

    /// Whether another object may be recovered that nobody waits for.
    pub fn has_room(&mut self, now_us: u64) -> bool {
        let serving = self.is_serving(now_us);
        let at_once = if serving { (self.objects_max / SERVING_DIVISOR).max(1) } else { self.objects_max };
        let affords = self.bytes_per_second_max.is_none() || self.budget > 0;
        let may = !self.paused && self.running < at_once && affords;
        self.is_awaited = may && serving && now_us < self.rest_until_us;
        may && !self.is_awaited
    }

    /// When a recovery that waits for the end of a rest may begin.
    pub fn rest_ends(&self) -> Option<Millis> {
        self.is_awaited.then(|| self.rest_until_us.div_ceil(1_000))
    }

    /// A recovery begins. Returns what it is taken to cost.
    pub fn begin(&mut self) -> u64 {
        self.running += 1;
        self.charge(self.estimate, 0);
        self.estimate
    }

    /// A recovery is over, for good or given up. `estimate`: what it was taken to cost, if nothing was written.
    pub fn end(&mut self, estimate: u64) {
        debug_assert!(self.running > 0, "it began");
        self.running -= 1;
        self.charge(0, estimate);
    }

    /// A recovery that was begun at `began_us` is over.
    pub fn rest(&mut self, began_us: u64, now_us: u64) {
        if self.is_serving(now_us) {
            let rest = now_us.saturating_sub(began_us) as f64 * (1.0 / self.share - 1.0);
            self.rest_until_us = now_us + (rest as u64).min(REST_MAX_US);
        }
    }

    /// Who waited for the end of the rest looks again.
    pub fn rested(&mut self) {
        self.is_awaited = false;
    }

    /// A recovery that was taken to cost `estimate` costs so many bytes.
    pub fn cost(&mut self, estimate: u64, bytes: u64) {
        self.charge(bytes, estimate);
        self.estimate = (self.estimate * 7 + bytes) / 8;
    }

    fn charge(&mut self, bytes: u64, before: u64) {
        if self.bytes_per_second_max.is_some() {
            self.budget = self.budget.saturating_sub_unsigned(bytes).saturating_add_unsigned(before);
        }
    }

    /// The present speed.
    pub fn rate(&self) -> RecoveryRate {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return RecoveryRate::default();
        };
        let (objects, bytes) = (last.objects - first.objects, last.bytes - first.bytes);
        let window_ms = if objects == 0 && bytes == 0 { 0 } else { last.at - first.at };
        RecoveryRate { window_ms, objects, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(change: impl FnOnce(&mut ClusterSettings)) -> RecoveryPace {
        let mut settings = ClusterSettings::default();
        change(&mut settings);
        let mut pace = RecoveryPace::default();
        pace.apply(&settings);
        pace
    }

    fn begin_all(pace: &mut RecoveryPace, now: Millis) -> u32 {
        let mut begun = 0;
        while pace.has_room(now * 1_000) {
            pace.begin();
            begun += 1;
        }
        begun
    }

    #[test]
    fn objects_are_limited_and_more_so_while_clients_are_served() {
        let mut pace = pace(|settings| settings.recovery_objects_max = 32);
        pace.tick(100, 3, 0, 0);
        assert_eq!(begin_all(&mut pace, 100), 2);
        pace.tick(1_000, 3, 0, 0);
        assert_eq!(begin_all(&mut pace, 1_000), 0, "they were served a moment ago");
        pace.tick(1_200, 3, 0, 0);
        assert_eq!(begin_all(&mut pace, 1_200), 30);
        pace.end(0);
        assert!(pace.has_room(1_200_000));
        pace.apply(&ClusterSettings { recovery_objects_max: 32, recovery_paused: true, ..ClusterSettings::default() });
        assert!(!pace.has_room(1_200_000));
        pace.apply(&ClusterSettings { recovery_objects_max: 1, ..ClusterSettings::default() });
        assert!(!pace.has_room(1_200_000) && pace.is_running());
    }

    #[test]
    fn while_clients_are_served_recovery_has_its_share_of_the_time() {
        for (share, took) in [(0.25, 4_000), (0.25, 300), (0.5, 20_000), (1.0, 5_000)] {
            let mut pace = pace(|settings| settings.recovery_share = share);
            let (mut now_us, mut spent, mut served) = (0, 0, 0);
            while now_us < 10_000_000 {
                served += 1;
                pace.tick(now_us / 1_000, served, 0, 0);
                if pace.has_room(now_us) {
                    let estimate = pace.begin();
                    now_us += took;
                    spent += took;
                    pace.end(estimate);
                    pace.rest(now_us - took, now_us);
                } else {
                    let end = pace.rest_ends().expect("it rests");
                    assert!(end * 1_000 > now_us && !pace.is_running());
                    now_us = end * 1_000;
                }
            }
            let found = spent as f64 / now_us as f64;
            // Timers count in milliseconds.
            assert!(found <= share + 0.02 && found > share * 0.5, "{found} of {share}, {took} us each");
        }
        let mut idle = pace(|_| ());
        idle.tick(5_000, 0, 0, 0);
        idle.begin();
        idle.end(0);
        idle.rest(4_000_000, 5_000_000);
        assert!(idle.has_room(5_000_000) && idle.rest_ends().is_none(), "nobody is served");
    }

    #[test]
    fn bytes_are_limited_over_time_whatever_objects_cost() {
        for cost in [4 << 10, 1 << 20, 12 << 20] {
            let mut pace = pace(|settings| settings.recovery_bytes_per_second_max = Some(2 << 20));
            let (mut bytes, mut objects) = (0u64, 0);
            for tick in 0..600 {
                pace.tick(tick * 100, 0, objects, bytes);
                while pace.has_room(tick * 100_000) {
                    let estimate = pace.begin();
                    pace.cost(estimate, cost);
                    pace.end(0);
                    (objects, bytes) = (objects + 1, bytes + cost);
                }
            }
            let (wanted, per_second) = (60 * (2 << 20), bytes / 60);
            assert!(bytes <= wanted + cost + (2 << 20), "{cost}: {per_second} bytes in a second");
            assert!(bytes + cost + (2 << 20) >= wanted, "{cost}: {per_second} bytes in a second");
            let rate = pace.rate();
            assert!((rate.bytes_per_second() / (2 << 20) as f64 - 1.0).abs() < 0.7, "{cost}: {rate:?}");
        }
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut pace = RecoveryPace::default();
        assert_eq!(pace.rate(), RecoveryRate::default());
        for second in 0..=30 {
            pace.tick(second * 1000, 0, second.min(20) * 3, second.min(20) * 300);
        }
        assert_eq!(pace.rate(), RecoveryRate::default(), "nothing for ten seconds");
        for second in 31..=35 {
            pace.tick(second * 1000, 0, 60 + (second - 30) * 2, 6000);
        }
        assert_eq!(pace.rate(), RecoveryRate { window_ms: 10_000, objects: 10, bytes: 0 });
        assert_eq!(pace.rate().objects_per_second(), 1.0);
    }
}
