//! How many PGs of a pool each OSD serves.
//!
//! In fractions: proportional to weight, where what a group cannot take (a failure domain serves a PG once at most) goes to the
//! others. In whole PGs: the method of divisors that makes the largest excess over the ideal share smallest, as the fullest
//! OSD decides how much fits. Divisor methods are monotone: an OSD more takes from the others and changes nothing among
//! them, which whole shares rounded one by one would.

use cluster_proto::LayerId;
use cluster_proto::layout::mix;

use super::candidates::Candidates;

/// Excess over the best possible that is left as it is rather than moving data. A share.
const TOLERANCE: f64 = 0.01;

/// Ideal shares of `pgs` PGs of `width` members, in PGs per OSD. They sum to `pgs * width` if the rules allow sets of `width`.
pub(super) fn ideal(candidates: &Candidates, pgs: u32, width: usize) -> Vec<f64> {
    let weights = &candidates.weights;
    let mut shares = vec![0.0; weights.len()];
    let mut settled = vec![false; weights.len()];
    loop {
        let sum = |of: &[f64], is: bool| -> f64 {
            of.iter().zip(&settled).filter(|(_, settled)| **settled == is).map(|(value, _)| value).sum()
        };
        let open = sum(weights, false);
        if open <= 0.0 {
            return shares;
        }
        let scale = (f64::from(pgs) * width as f64 - sum(&shares, true)) / open;
        let fills = fills(candidates, pgs, &shares, &settled);
        let first = fills.iter().copied().fold(f64::INFINITY, f64::min);
        let scale = if first < scale { first.max(0.0) } else { scale };
        for osd in 0..weights.len() {
            if !settled[osd] && (first > scale || fills[osd] <= first * (1.0 + 1e-12)) {
                (shares[osd], settled[osd]) = (scale * weights[osd], true);
            }
        }
    }
}

/// For each OSD that is not settled: PGs per weight at which the first of its groups is full.
fn fills(candidates: &Candidates, pgs: u32, shares: &[f64], settled: &[bool]) -> Vec<f64> {
    let mut fills = vec![f64::INFINITY; shares.len()];
    for limit in &candidates.limits {
        let mut taken = vec![0.0; limit.count];
        let mut open = vec![0.0; limit.count];
        for (osd, group) in limit.group.iter().enumerate() {
            let group = *group as usize;
            if settled[osd] { taken[group] += shares[osd] } else { open[group] += candidates.weights[osd] }
        }
        let room = f64::from(pgs) * f64::from(limit.max);
        for (osd, group) in limit.group.iter().enumerate().filter(|(osd, _)| !settled[*osd]) {
            let group = *group as usize;
            fills[osd] = fills[osd].min((room - taken[group]) / open[group]);
        }
    }
    fills
}

/// What whole shares are chosen by.
pub(super) struct Wanted<'a> {
    pub candidates: &'a Candidates,
    /// From [`ideal`].
    pub ideal: &'a [f64],
    pub pgs: u32,
    pub width: usize,
    /// PGs that each serves now, if there is a layout already: kept where that is near enough to the ideal.
    pub present: Option<&'a [u32]>,
    /// By how many PGs other pools give each OSD less than its share. Decides among equals.
    pub owed: &'a [f64],
    /// Decides what is still equal.
    pub seed: u64,
}

/// Whole shares: they sum to `pgs * width`, no group exceeds its limit. Equal input gives equal output, and taking the output for the
/// present gives it again.
pub(super) fn whole(wanted: &Wanted<'_>) -> Vec<u32> {
    let floors: Vec<u32> = wanted.ideal.iter().map(|share| (share + 1e-9) as u32).collect();
    let mut best = Quotas::new(wanted, floors.clone());
    best.raise(|_| u32::MAX, false);
    let worst = best.quota.iter().zip(wanted.ideal).map(|(n, share)| f64::from(*n) / share).fold(1.0, f64::max);
    let most: Vec<u32> = (0..floors.len())
        .map(|osd| {
            let near = (wanted.ideal[osd] * worst * (1.0 + TOLERANCE)) as u32;
            let bound = best.quota[osd].max(wanted.ideal[osd].ceil() as u32);
            near.min(bound).max(floors[osd])
        })
        .collect();
    let start = match wanted.present {
        Some(present) => (0..floors.len()).map(|osd| present[osd].clamp(floors[osd], most[osd])).collect(),
        None => floors.clone(),
    };
    let mut quotas = Quotas::new(wanted, start);
    quotas.lower(&floors);
    quotas.raise(|osd| most[osd], true);
    quotas.raise(|_| u32::MAX, true);
    quotas.quota
}

struct Quotas<'a> {
    wanted: &'a Wanted<'a>,
    quota: Vec<u32>,
    /// Sum of each group of each limit.
    sums: Vec<Vec<u64>>,
    total: u64,
}

impl<'a> Quotas<'a> {
    fn new(wanted: &'a Wanted<'a>, quota: Vec<u32>) -> Self {
        let limits = &wanted.candidates.limits;
        let sums = limits.iter().map(|limit| vec![0; limit.count]).collect();
        let mut quotas = Self { wanted, quota: vec![0; quota.len()], sums, total: 0 };
        for (osd, n) in quota.into_iter().enumerate() {
            quotas.add(osd, i64::from(n));
        }
        quotas
    }

    fn add(&mut self, osd: usize, n: i64) {
        self.quota[osd] = self.quota[osd].wrapping_add_signed(n as i32);
        self.total = self.total.wrapping_add_signed(n);
        for (limit, sums) in self.wanted.candidates.limits.iter().zip(&mut self.sums) {
            let sum = &mut sums[limit.group[osd] as usize];
            *sum = sum.wrapping_add_signed(n);
        }
    }

    /// By how many PGs the groups of an OSD exceed their limits: positive if they do, 0 if there is no room for more.
    fn excess(&self, osd: usize) -> i64 {
        let excess = |(limit, sums): (&super::candidates::Limit, &Vec<u64>)| {
            sums[limit.group[osd] as usize] as i64 - i64::from(limit.max) * i64::from(self.wanted.pgs)
        };
        self.wanted.candidates.limits.iter().zip(&self.sums).map(excess).max().unwrap_or(i64::MIN)
    }

    fn goal(&self) -> u64 {
        u64::from(self.wanted.pgs) * self.wanted.width as u64
    }

    /// How full an OSD with `n` PGs is, in parts of its ideal share, and what decides among equals.
    fn fullness(&self, osd: usize, n: u32, with_owed: bool) -> (f64, u64) {
        let owed = if with_owed { self.wanted.owed[osd] } else { 0.0 };
        let fullness = (f64::from(n) - owed) / self.wanted.ideal[osd].max(1e-9);
        // Weights that differ by rounding errors are equal.
        let id = u64::from(self.wanted.candidates.ids[osd].0);
        ((fullness * 1e9).round(), mix(LayerId(mix(LayerId(self.wanted.seed)) ^ id)))
    }

    /// Gives PGs to the emptiest until all are given, or none can take more.
    fn raise(&mut self, most: impl Fn(usize) -> u32, with_owed: bool) {
        while self.total < self.goal() {
            let open = (0..self.quota.len()).filter(|&osd| self.quota[osd] < most(osd) && self.excess(osd) < 0);
            let key = |osd: &usize| self.fullness(*osd, self.quota[*osd] + 1, with_owed);
            let Some(osd) = open.min_by(|a, b| compare(key(a), key(b))) else { return };
            self.add(osd, 1);
        }
    }

    /// Takes PGs from the fullest until no group is over its limit and not more are given than there are.
    fn lower(&mut self, least: &[u32]) {
        loop {
            let too_many = self.total > self.goal();
            let open = (0..self.quota.len()).filter(|&osd| self.quota[osd] > least[osd]);
            let open = open.filter(|&osd| too_many || self.excess(osd) > 0);
            let key = |osd: &usize| (self.excess(*osd) > 0, self.fullness(*osd, self.quota[*osd], true));
            let Some(osd) = open.max_by(|a, b| key(a).0.cmp(&key(b).0).then(compare(key(a).1, key(b).1))) else {
                return;
            };
            self.add(osd, -1);
        }
    }
}

fn compare(a: (f64, u64), b: (f64, u64)) -> std::cmp::Ordering {
    a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use cluster_proto::OsdId;
    use proptest::prelude::*;

    use super::super::candidates::Limit;
    use super::*;

    /// OSDs of these weights; each host has two of them, and each rack two hosts.
    fn candidates(weights: &[f64], rack_max: u32) -> Candidates {
        let limit = |osds: u32, max| {
            let group: Vec<u32> = (0..weights.len() as u32).map(|osd| osd / osds).collect();
            Limit { max, count: group.iter().max().map_or(0, |last| *last as usize + 1), group }
        };
        let ids = (1..=weights.len() as u32).map(OsdId).collect();
        Candidates { ids, weights: weights.to_vec(), limits: vec![limit(4, rack_max), limit(2, 1)] }
    }

    /// OSDs of these weights, each a failure domain.
    fn flat(weights: &[f64]) -> Candidates {
        let candidates = candidates(weights, 1);
        candidates.without_domains()
    }

    fn quota(candidates: &Candidates, pgs: u32, width: usize, present: Option<&[u32]>) -> Vec<u32> {
        let ideal = ideal(candidates, pgs, width);
        let owed = vec![0.0; candidates.len()];
        whole(&Wanted { candidates, ideal: &ideal, pgs, width, present, owed: &owed, seed: 1 })
    }

    #[test]
    fn what_a_group_cannot_take_goes_to_the_others() {
        // The first host may serve each of the 12 PGs once, 6 for each of its OSDs; the rest is shared by weight.
        let shares = ideal(&candidates(&[8.0, 8.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0], 2), 12, 2);
        assert_eq!(shares, [6.0, 6.0, 1.5, 1.5, 1.5, 1.5, 3.0, 3.0]);
        // A rack of which one member is allowed: its hosts together serve each PG once.
        let shares = ideal(&candidates(&[8.0, 8.0, 4.0, 4.0, 1.0, 1.0, 2.0, 2.0], 1), 12, 2);
        assert_eq!(shares, [4.0, 4.0, 2.0, 2.0, 2.0, 2.0, 4.0, 4.0]);
    }

    #[test]
    fn who_is_least_overfilled_by_it_gets_one_more() {
        // Ideal are 7.14, 1.43 and 1.43. The largest remainder would be a small one's, and fill it 1.4 times.
        assert_eq!(quota(&flat(&[5.0, 1.0, 1.0]), 10, 1, None), [8, 1, 1]);
    }

    #[test]
    fn what_is_near_enough_stays() {
        let equal = flat(&[1.0; 4]);
        for present in [[3, 3, 2, 2], [2, 3, 2, 3]] {
            assert_eq!(quota(&equal, 10, 1, Some(&present)), present);
        }
        assert_eq!(quota(&equal, 10, 1, Some(&[4, 2, 2, 2])).into_iter().max(), Some(3));
    }

    #[test]
    fn whom_other_pools_owe_is_rounded_up() {
        let candidates = flat(&[1.0; 4]);
        let ideal = ideal(&candidates, 10, 1);
        let owed = [-0.5, 0.5, 0.5, -0.5];
        let wanted =
            Wanted { candidates: &candidates, ideal: &ideal, pgs: 10, width: 1, present: None, owed: &owed, seed: 1 };
        assert_eq!(whole(&wanted), [2, 3, 3, 2]);
    }

    proptest! {
        #[test]
        fn an_osd_more_or_larger_only_takes(
            weights in prop::collection::vec(0.5f64..2.0, 9..24), pgs in 1u32..300, grown in 0usize..9, by in 1.0f64..2.0
        ) {
            let mut larger = weights.clone();
            larger[grown] *= by;
            let more: Vec<f64> = weights.iter().copied().chain([by]).collect();
            let before = quota(&flat(&weights), pgs, 2, None);
            for after in [larger, more] {
                let quota = quota(&flat(&after), pgs, 2, None);
                prop_assert_eq!(quota.iter().sum::<u32>(), 2 * pgs);
                for osd in (0..weights.len()).filter(|osd| after[*osd] <= weights[*osd]) {
                    prop_assert!(quota[osd] <= before[osd], "{:?} became {:?}", before, quota);
                }
            }
        }
    }
}
