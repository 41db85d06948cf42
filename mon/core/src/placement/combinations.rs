//! Sets of failure domains that PGs are placed on in the first place, and how many PGs on each.
//!
//! A pool's *scatter width* says with how many others an OSD shares PGs. It is the number of sampled sets that decides: each
//! domain is in so many of them as give it that many partners. The linear program then gives PGs to the sets, no more to a
//! domain than its quota. What rounding to whole PGs leaves over is placed one by one.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use cluster_proto::LayerId;
use cluster_proto::layout::mix;
use good_lp::{Expression, ProblemVariables, Solution, SolverModel, constraint, microlp, variable};

use super::candidates::Candidates;

/// Domains up to which the linear program is solved: its time grows faster than their square. Above it, the sampled sets, which respect
/// the quotas nearly by themselves, are filled evenly.
const PROGRAM_DOMAINS_MAX: usize = 512;
/// Part of an even share that each sampled set gets in any case; the program decides on the rest. More would bind its hands, less
/// costs time.
const EVEN_PART: f64 = 0.6;

/// A set of domains and the number of PGs on it.
pub(super) type Share = (Vec<u32>, u32);

/// Partners of an OSD unless the pool says otherwise: grows with the square root of the number of domains. Few partners mean that
/// few simultaneous failures lose data; many, that recovery is spread over many devices.
pub(super) fn scatter_width(asked: u32, width: usize, domains: usize) -> usize {
    let automatic = 2 * width.saturating_sub(1) + domains.isqrt();
    let wanted = if asked == 0 { automatic } else { asked as usize };
    wanted.clamp(width.saturating_sub(1), domains.saturating_sub(1).max(width.saturating_sub(1)))
}

/// Shares `pgs` PGs of `width` members out to sets of domains, no domain getting more than its `quota`. May leave some PGs out.
pub(super) fn shares(
    domains: &Candidates,
    quota: &[u32],
    pgs: u32,
    width: usize,
    scatter: usize,
    seed: u64,
) -> Vec<Share> {
    if width < 2 || pgs == 0 {
        return Vec::new();
    }
    let per_domain = scatter.div_ceil(width - 1);
    let wanted = (per_domain * domains.len()).div_ceil(width).clamp(1, pgs as usize);
    let solves = domains.len() <= PROGRAM_DOMAINS_MAX;
    // Some more for the program to choose from.
    let sampled = if solves { wanted + domains.len().max(wanted / 4) } else { wanted };
    let sets = sample(domains, quota, sampled, width, seed);
    let even = f64::from(pgs) / wanted as f64;
    // If there are hardly more sets than wanted, the program needs all freedom.
    let most = if sets.len() <= wanted { pgs } else { even.ceil() as u32 };
    let mut sharing = Sharing { counts: vec![0; sets.len()], sets, left: quota.to_vec(), open: pgs, most };
    for at in 0..wanted.min(sharing.sets.len()) {
        sharing.give(at, (even * EVEN_PART) as u32);
    }
    let solution = if solves { sharing.solve() } else { None };
    let rest = f64::from(sharing.open) / sharing.sets.len().max(1) as f64;
    let amounts = solution.unwrap_or_else(|| vec![rest; sharing.sets.len()]);
    sharing.round(&amounts);
    sharing.sets.into_iter().zip(sharing.counts).filter(|(_, n)| *n > 0).collect()
}

/// Different sets that the rules allow, each domain in a number of them in proportion to its quota.
fn sample(domains: &Candidates, quota: &[u32], count: usize, width: usize, seed: u64) -> Vec<Vec<u32>> {
    let total: u64 = quota.iter().map(|n| u64::from(*n)).sum();
    let slots = |n: &u32| (count as u64 * width as u64 * u64::from(*n)).div_ceil(total.max(1)) as i64;
    let mut left: Vec<i64> = quota.iter().map(slots).collect();
    let mut order: Vec<u32> = (0..quota.len() as u32).filter(|domain| quota[*domain as usize] > 0).collect();
    let mut seen = BTreeSet::new();
    let mut sets = Vec::new();
    for turn in 0..count as u64 {
        order.sort_by_cached_key(|domain| {
            (Reverse(left[*domain as usize]), mix(LayerId(mix(LayerId(seed ^ turn)) ^ u64::from(*domain))))
        });
        let mut set = Vec::with_capacity(width);
        for &domain in &order {
            if set.len() < width && domains.admits(&set, None, domain) {
                set.push(Some(domain));
            }
        }
        for domain in set.iter().flatten() {
            left[*domain as usize] -= 1;
        }
        let mut set: Vec<u32> = set.into_iter().flatten().collect();
        set.sort_unstable();
        if set.len() == width && seen.insert(set.clone()) {
            sets.push(set);
        }
    }
    sets
}

/// PGs being shared out.
struct Sharing {
    sets: Vec<Vec<u32>>,
    /// PGs on each set.
    counts: Vec<u32>,
    /// What is left of the quota of each domain.
    left: Vec<u32>,
    /// PGs that are on no set yet.
    open: u32,
    /// PGs on one set.
    most: u32,
}

impl Sharing {
    /// Puts up to `wanted` more PGs on a set, as far as there is room.
    fn give(&mut self, at: usize, wanted: u32) {
        let set = &self.sets[at];
        let room = set.iter().map(|domain| self.left[*domain as usize]).min().unwrap_or(0);
        let given = wanted.min(room).min(self.open);
        set.iter().for_each(|domain| self.left[*domain as usize] -= given);
        self.counts[at] += given;
        self.open -= given;
    }

    /// More PGs for each set, in fractions: as many as possible within what is left. `None` if the solver fails.
    fn solve(&self) -> Option<Vec<f64>> {
        let mut variables = ProblemVariables::new();
        let room = |count: &u32| f64::from(self.most.saturating_sub(*count));
        let amounts: Vec<_> =
            self.counts.iter().map(|count| variables.add(variable().min(0.0).max(room(count)))).collect();
        let mut served = vec![Expression::default(); self.left.len()];
        for (set, amount) in self.sets.iter().zip(&amounts) {
            for domain in set {
                served[*domain as usize] += *amount;
            }
        }
        let placed: Expression = amounts.iter().sum();
        let mut program = variables.maximise(placed.clone()).using(microlp);
        program.add_constraint(constraint!(placed <= f64::from(self.open)));
        for (served, left) in served.into_iter().zip(&self.left) {
            program.add_constraint(constraint!(served <= f64::from(*left)));
        }
        let solution = program.solve().ok()?;
        Some(amounts.iter().map(|amount| solution.value(*amount)).collect())
    }

    /// Gives whole PGs: fractions are cut off, then the sets with the largest rests get one more where there is room.
    fn round(&mut self, amounts: &[f64]) {
        for (at, amount) in amounts.iter().enumerate() {
            self.give(at, (amount + 1e-6) as u32);
        }
        let rest = |at: usize| amounts[at] - f64::from((amounts[at] + 1e-6) as u32);
        let mut order: Vec<usize> = (0..amounts.len()).filter(|at| rest(*at) > 1e-6).collect();
        order.sort_by(|a, b| rest(*b).total_cmp(&rest(*a)).then(a.cmp(b)));
        for at in order {
            self.give(at, 1);
        }
    }
}
