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

/// Sets that the linear program chooses from.
const SAMPLED_MAX: usize = 8192;
/// Domains up to which the linear program is solved; its time grows with their square. Above it the sampled sets, which respect the
/// quotas nearly by themselves, are filled evenly.
const PROGRAM_DOMAINS_MAX: usize = 640;

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
    let sampled = if solves { (2 * wanted).min(SAMPLED_MAX.max(wanted)) } else { wanted };
    let sets = sample(domains, quota, sampled, width, seed);
    let most = if sets.len() <= wanted { f64::from(pgs) } else { (f64::from(pgs) / wanted as f64).ceil() };
    let even = || vec![f64::from(pgs) / sets.len() as f64; sets.len()];
    let amounts = if solves { solve(&sets, quota, pgs, most).unwrap_or_else(even) } else { even() };
    round(sets, &amounts, quota, pgs)
}

/// Different sets that the rules allow, each domain in a number of them in proportion to its quota.
fn sample(domains: &Candidates, quota: &[u32], count: usize, width: usize, seed: u64) -> Vec<Vec<u32>> {
    let total: u64 = quota.iter().map(|n| u64::from(*n)).sum();
    let slots = |n: &u32| (count as u64 * width as u64 * u64::from(*n)).div_ceil(total.max(1)) as i64;
    let mut left: Vec<i64> = quota.iter().map(slots).collect();
    let mut order: Vec<u32> = (0..quota.len() as u32).filter(|domain| quota[*domain as usize] > 0).collect();
    let mut sets = BTreeSet::new();
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
        if set.len() == width {
            sets.insert(set);
        }
    }
    sets.into_iter().collect()
}

/// PGs on each set, in fractions: as many as possible within the quotas. `None` if the solver fails.
fn solve(sets: &[Vec<u32>], quota: &[u32], pgs: u32, most: f64) -> Option<Vec<f64>> {
    let mut variables = ProblemVariables::new();
    let amounts: Vec<_> = sets.iter().map(|_| variables.add(variable().min(0.0).max(most))).collect();
    let mut served = vec![Expression::default(); quota.len()];
    for (set, amount) in sets.iter().zip(&amounts) {
        for domain in set {
            served[*domain as usize] += *amount;
        }
    }
    let placed: Expression = amounts.iter().sum();
    let mut program = variables.maximise(placed.clone()).using(microlp);
    program.add_constraint(constraint!(placed <= f64::from(pgs)));
    for (served, quota) in served.into_iter().zip(quota) {
        program.add_constraint(constraint!(served <= f64::from(*quota)));
    }
    let solution = program.solve().ok()?;
    Some(amounts.iter().map(|amount| solution.value(*amount)).collect())
}

/// Whole PGs within the quotas: fractions are cut off, then the sets with the largest rests get one more where there is room.
fn round(sets: Vec<Vec<u32>>, amounts: &[f64], quota: &[u32], pgs: u32) -> Vec<Share> {
    let mut left = quota.to_vec();
    let mut open = pgs;
    let mut shares: Vec<Share> = sets.into_iter().map(|set| (set, 0)).collect();
    let mut give = |(set, n): &mut Share, wanted: u32| {
        let room = set.iter().map(|domain| left[*domain as usize]).min().unwrap_or(0);
        let given = wanted.min(room).min(open);
        set.iter().for_each(|domain| left[*domain as usize] -= given);
        (*n, open) = (*n + given, open - given);
    };
    for (share, amount) in shares.iter_mut().zip(amounts) {
        give(share, (amount + 1e-6).max(0.0) as u32);
    }
    let mut order: Vec<usize> = (0..shares.len()).filter(|at| amounts[*at] > 1e-6).collect();
    let rest = |at: usize| amounts[at] - f64::from(amounts[at] as u32);
    order.sort_by(|a, b| rest(*b).total_cmp(&rest(*a)).then(a.cmp(b)));
    for at in order {
        give(&mut shares[at], 1);
    }
    shares.retain(|(_, n)| *n > 0);
    shares
}
