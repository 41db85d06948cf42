//! Monotonic time as plain numbers, for drivers that hand time to pure cores.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

static START: OnceLock<Instant> = OnceLock::new();

/// The instant that is 0 ns: the first use of this module in the process.
pub fn start() -> Instant {
    *START.get_or_init(Instant::now)
}

/// Monotonic nanoseconds since [`start`]; never goes back, comparable between threads of one process only.
pub fn now_ns() -> u64 {
    ns_of(Instant::now())
}

/// Monotonic milliseconds since [`start`].
pub fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// `instant` in nanoseconds since [`start`]; 0 for an earlier one.
pub fn ns_of(instant: Instant) -> u64 {
    u64::try_from(instant.saturating_duration_since(start()).as_nanos()).unwrap_or(u64::MAX)
}

/// The instant that lies `ns` nanoseconds after [`start`]: the inverse of [`ns_of`], to turn a core's deadline into
/// the argument of [`Reactor::turn`](crate::Reactor::turn). A time beyond the clock's range becomes a year from `start`.
pub fn instant_of(ns: u64) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    start().checked_add(Duration::from_nanos(ns)).unwrap_or_else(|| start() + YEAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_instants_convert_both_ways() {
        let zero = start();
        assert_eq!(ns_of(zero), 0);
        let later = zero + Duration::from_micros(1_500);
        assert_eq!(ns_of(later), 1_500_000);
        assert_eq!(instant_of(1_500_000), later);
        assert!(instant_of(u64::MAX) > later);
        let a = now_ns();
        assert!(now_ns() >= a);
    }
}
