//! How long operations take: a histogram of fixed size, counted without allocating or searching.

use std::fmt::Write;
use std::time::Duration;

/// Each doubling of the time is cut into so many buckets, as a power of two: what a bucket says is at most a quarter too long.
const STEP_BITS: u32 = 2;
const STEPS: usize = 1 << STEP_BITS;
/// Times from 2^OCTAVES microseconds on (33 s) are not told apart.
const OCTAVES: u32 = 25;
const BUCKETS: usize = (OCTAVES - STEP_BITS + 1) as usize * STEPS + 1;

/// Counts times by their length, from 1 us to 33 s. 800 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Histogram {
    buckets: [u64; BUCKETS],
    sum_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum_us: 0 }
    }
}

fn bucket_of(us: u64) -> usize {
    if us < STEPS as u64 {
        return us as usize;
    }
    let octave = us.ilog2();
    let step = (us >> (octave - STEP_BITS)) as usize % STEPS;
    ((octave - STEP_BITS + 1) as usize * STEPS + step).min(BUCKETS - 1)
}

/// All times in a bucket are shorter than this. Microseconds.
fn end_of(bucket: usize) -> u64 {
    match (bucket / STEPS, bucket % STEPS) {
        (0, step) => step as u64 + 1,
        (octave, step) => ((STEPS + step + 1) as u64) << (octave - 1),
    }
}

impl Histogram {
    /// Counts an operation that took so long. Microseconds.
    pub fn add(&mut self, us: u64) {
        self.buckets[bucket_of(us)] += 1;
        self.sum_us += us;
    }

    /// Operations counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All their times together.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us)
    }

    /// What was counted since `before`, an older state of the same histogram.
    pub fn since(&self, before: &Histogram) -> Histogram {
        let mut after = *self;
        after.buckets.iter_mut().zip(&before.buckets).for_each(|(now, then)| *now = now.saturating_sub(*then));
        after.sum_us = after.sum_us.saturating_sub(before.sum_us);
        after
    }

    /// The time within which this share of the operations ended (0.99 for the 99th percentile), at most a quarter too long.
    /// Microseconds; 0 if there are none.
    pub fn quantile_us(&self, share: f64) -> u64 {
        let rank = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut below = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            below += count;
            if below >= rank {
                return end_of(bucket);
            }
        }
        0
    }

    /// Adds the histogram to metrics in Prometheus' text format: `name` in seconds, a bucket for each power of two of microseconds.
    /// `labels` are those of all samples, like `osd="1",op="read"`, and not empty. Nothing is added as long as nothing was counted.
    pub fn put_prometheus(&self, out: &mut String, name: &str, labels: &str) {
        let count = self.count();
        if count == 0 {
            return;
        }
        let mut below = 0;
        let mut power = 1u64;
        for (bucket, n) in self.buckets[..BUCKETS - 1].iter().enumerate() {
            below += n;
            if end_of(bucket) == power {
                // Writing to a string cannot fail.
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{}\"}} {below}", power as f64 / 1e6);
                power *= 2;
            }
        }
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum_us as f64 / 1e6);
        let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_are_narrow() {
        for bucket in 0..BUCKETS - 1 {
            let end = end_of(bucket);
            assert_eq!((bucket_of(end - 1), bucket_of(end)), (bucket, bucket + 1));
            let begin = if bucket == 0 { 0 } else { end_of(bucket - 1) };
            assert!(end - begin == 1 || (end - begin) * 4 <= begin, "{begin} to {end}");
        }
        assert_eq!(end_of(BUCKETS - 2), 1 << OCTAVES);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_hardly_too_long() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_us(0.5), 0);
        (1..=1000).for_each(|us| histogram.add(us));
        for (share, exact) in [(0.5, 500), (0.99, 990), (1.0, 1000), (0.0, 1)] {
            let found = histogram.quantile_us(share);
            assert!(exact < found && found <= exact + exact / 4 + 1, "{share}: {found}");
        }
        let before = histogram;
        histogram.add(5_000_000);
        let last = histogram.since(&before);
        assert_eq!((last.count(), last.sum()), (1, Duration::from_secs(5)));
        assert!((5_000_000..6_250_000).contains(&last.quantile_us(0.5)));
    }

    #[test]
    fn prometheus_gets_sums_over_buckets() {
        let mut histogram = Histogram::default();
        let mut text = String::new();
        histogram.put_prometheus(&mut text, "x", "op=\"read\"");
        assert_eq!(text, "");
        [0, 1, 2, 3, 4, 1_000_000_000].into_iter().for_each(|us| histogram.add(us));
        histogram.put_prometheus(&mut text, "x", "op=\"read\"");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "x_bucket{op=\"read\",le=\"0.000001\"} 1");
        assert_eq!(lines[1], "x_bucket{op=\"read\",le=\"0.000002\"} 2");
        assert_eq!(lines[2], "x_bucket{op=\"read\",le=\"0.000004\"} 4");
        assert_eq!(lines[3], "x_bucket{op=\"read\",le=\"0.000008\"} 5");
        assert_eq!(lines[25], "x_bucket{op=\"read\",le=\"33.554432\"} 5");
        assert_eq!(
            lines[26..],
            ["x_bucket{op=\"read\",le=\"+Inf\"} 6", "x_sum{op=\"read\"} 1000.00001", "x_count{op=\"read\"} 6"]
        );
    }
}
