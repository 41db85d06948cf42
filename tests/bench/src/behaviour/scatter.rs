//! Numbers in an order in which no two neighbours follow one another.

/// A prime far from any power of two: steps of this size go all over any range.
const STEP: u64 = 1_000_000_007;

/// `count` different numbers below `end`, scattered all over. Neighbours are never in succession, if `end` is more than 4.
///
/// # Panics
/// `count` is more than `end`.
pub fn scattered(end: u64, count: u64) -> impl Iterator<Item = u64> {
    assert!(count <= end, "there are only {end} numbers below {end}");
    // Some step that has no divisor in common with `end` visits every number once.
    let step = (0..).map(|i| (STEP + i) % end.max(1)).find(|step| is_coprime(*step, end) && is_far(*step, end));
    let step = step.unwrap_or(1);
    (0..count).map(move |i| (u128::from(i) * u128::from(step) % u128::from(end)) as u64)
}

fn is_coprime(a: u64, b: u64) -> bool {
    if b == 0 { a == 1 } else { is_coprime(b, a % b) }
}

fn is_far(step: u64, end: u64) -> bool {
    end <= 4 || (step > 1 && step < end - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_once_and_no_neighbour_follows() {
        for end in [1, 2, 5, 100, 4096, 262_144, 99_991] {
            let numbers: Vec<_> = scattered(end, end).collect();
            let mut sorted = numbers.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..end), "{end}");
            let neighbours = numbers.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count();
            assert!(neighbours == 0 || end <= 4, "{neighbours} of {end}");
        }
        assert_eq!(scattered(1000, 0).count(), 0);
    }
}
