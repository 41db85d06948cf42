//! How long things took, all of them: quantiles instead of means.

use std::time::Duration;

/// Times in ascending order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Distribution {
    /// Nanoseconds: half the size of a `Duration`.
    sorted: Vec<u64>,
}

impl Distribution {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The shortest time that so large a share of all does not exceed; zero if there are none. From 0 to 1.
    pub fn at(&self, share: f64) -> Duration {
        let rank = (self.sorted.len() as f64 * share).ceil() as usize;
        self.sorted.get(rank.max(1) - 1).map_or(Duration::ZERO, |ns| Duration::from_nanos(*ns))
    }

    /// The longest; zero if there are none.
    pub fn max(&self) -> Duration {
        self.at(1.0)
    }

    /// The mean; zero if there are none.
    pub fn mean(&self) -> Duration {
        let sum: u64 = self.sorted.iter().sum();
        Duration::from_nanos(sum / self.sorted.len().max(1) as u64)
    }

    /// How many are in each of the ranges that end at these times, which ascend; an end belongs to its range. One number more:
    /// what is longer.
    pub fn histogram(&self, ends: &[Duration]) -> Vec<usize> {
        let up_to = |end: &Duration| self.sorted.partition_point(|ns| u128::from(*ns) <= end.as_nanos());
        let counts = ends.iter().map(up_to).chain([self.sorted.len()]);
        counts.scan(0, |before, count| Some(count - std::mem::replace(before, count))).collect()
    }
}

impl FromIterator<Duration> for Distribution {
    fn from_iter<T: IntoIterator<Item = Duration>>(times: T) -> Self {
        let mut sorted: Vec<u64> = times.into_iter().map(|time| time.as_nanos() as u64).collect();
        sorted.sort_unstable();
        Self { sorted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn quantiles_are_times_that_occurred() {
        let hundred: Distribution = (1..=100).rev().map(ms).collect();
        assert_eq!([0.0, 0.5, 0.99, 0.991, 1.0].map(|share| hundred.at(share)), [1, 50, 99, 100, 100].map(ms));
        assert_eq!((hundred.count(), hundred.max(), hundred.mean()), (100, ms(100), Duration::from_micros(50_500)));
        let two: Distribution = [ms(7), ms(3)].into_iter().collect();
        assert_eq!((two.at(0.5), two.at(0.51)), (ms(3), ms(7)));
        let none = Distribution::default();
        assert_eq!((none.at(0.5), none.max(), none.mean()), (Duration::ZERO, Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn each_time_is_in_one_range() {
        let times: Distribution = [1, 100, 101, 500, 9000].into_iter().map(ms).collect();
        assert_eq!(times.histogram(&[ms(100), ms(200), ms(500)]), [2, 1, 1, 1]);
        assert_eq!(times.histogram(&[]), [5]);
    }
}
