//! Initial placement of a pool: which OSDs serve which PG, and which of them leads.
//!
//! Three steps, each deterministic. **Quotas**: how many PGs each OSD serves, in proportion to its weight and never more
//! than there are PGs. **Members**: PG by PG the OSDs with the largest rest of their quota; this never gets stuck (if an
//! OSD's rest equals the number of PGs left it is among the largest), and ties are broken by a hash, so that an OSD
//! shares PGs with many others. **Primaries**: any member, then exchanged along augmenting paths until each OSD leads
//! its share of the PGs it serves; that this always ends is the integrality of a bipartite flow (every PG giving each of
//! its members the same fraction is a solution in fractions).
//!
//! Failure domains, tags and the change of a placement come with the linear program of the design; this function's
//! signature is the seam.

use std::collections::VecDeque;

use cluster_proto::layout::mix;
use cluster_proto::{LayerId, OsdId};

/// Places `pg_count` PGs of `width` members on `osds`, given with their weights (finite, not negative; 0 = gets nothing).
/// The first member of each is its primary. Equal input gives equal output.
///
/// Each OSD's number of PGs is its share by weight rounded up or down, and so is the number of those that it leads: with
/// equal weights both numbers differ by at most one between OSDs.
///
/// `None` if fewer than `width` OSDs have weight, or `width` is 0.
pub fn place(osds: &[(OsdId, f64)], width: usize, pg_count: u32) -> Option<Vec<Vec<OsdId>>> {
    let mut osds: Vec<_> = osds.iter().copied().filter(|(_, weight)| *weight > 0.0).collect();
    osds.sort_by_key(|(id, _)| *id);
    osds.dedup_by_key(|(id, _)| *id);
    if width == 0 || osds.len() < width {
        return None;
    }
    let weights: Vec<f64> = osds.iter().map(|(_, weight)| *weight).collect();
    let quotas = quotas(&weights, width, pg_count);
    let members = members(&quotas, width, pg_count);
    let led = primaries(&members, &quotas, width);
    let named = members.into_iter().zip(led).map(|(set, lead)| {
        let rest = set.iter().filter(|&&osd| osd != lead);
        std::iter::once(&lead).chain(rest).map(|&osd| osds[osd].0).collect()
    });
    Some(named.collect())
}

/// PGs per OSD: proportional to weight, at most `pg_count`, summing to `width * pg_count`.
fn quotas(weights: &[f64], width: usize, pg_count: u32) -> Vec<u64> {
    let ideal = shares(weights, width, pg_count);
    let mut quotas: Vec<u64> = ideal.iter().map(|share| *share as u64).collect();
    let wanted = width as u64 * u64::from(pg_count);
    let mut order: Vec<usize> = (0..quotas.len()).collect();
    let rest = |osd: usize| ideal[osd] - ideal[osd].floor();
    order.sort_by(|&a, &b| rest(b).total_cmp(&rest(a)).then(a.cmp(&b)));
    // The largest remainders are rounded up. More than one turn is needed only to make up for rounding errors.
    let mut missing = wanted.saturating_sub(quotas.iter().sum());
    while missing > 0 {
        for &osd in &order {
            if missing > 0 && quotas[osd] < u64::from(pg_count) {
                quotas[osd] += 1;
                missing -= 1;
            }
        }
    }
    while quotas.iter().sum::<u64>() > wanted {
        let Some(largest) = quotas.iter_mut().max() else { break };
        *largest -= 1;
    }
    quotas
}

/// Exact shares by weight, where what an OSD cannot take (it serves a PG once at most) goes to the others.
fn shares(weights: &[f64], width: usize, pg_count: u32) -> Vec<f64> {
    let limit = f64::from(pg_count);
    let mut shares = vec![0.0; weights.len()];
    let mut full = vec![false; weights.len()];
    loop {
        let taken = full.iter().filter(|&&f| f).count() as f64 * limit;
        let open: f64 = weights.iter().zip(&full).filter(|(_, f)| !**f).map(|(w, _)| w).sum();
        let left = width as f64 * limit - taken;
        let mut changed = false;
        for osd in 0..weights.len() {
            if full[osd] {
                continue;
            }
            shares[osd] = left * (weights[osd] / open);
            if shares[osd] >= limit {
                (shares[osd], full[osd], changed) = (limit, true, true);
            }
        }
        if !changed {
            return shares;
        }
    }
}

fn members(quotas: &[u64], width: usize, pg_count: u32) -> Vec<Vec<usize>> {
    let mut left = quotas.to_vec();
    let mut order: Vec<usize> = (0..left.len()).collect();
    let pick = |pg: u32| {
        let tie = |osd: usize| mix(LayerId(u64::from(pg) << 32 | osd as u64));
        order.sort_by_key(|&osd| (std::cmp::Reverse(left[osd]), tie(osd)));
        let set = order[..width].to_vec();
        for &osd in &set {
            debug_assert!(left[osd] > 0, "a quota was exceeded");
            left[osd] = left[osd].saturating_sub(1);
        }
        set
    };
    (0..pg_count).map(pick).collect()
}

/// Who leads each PG.
struct Leads<'a> {
    members: &'a [Vec<usize>],
    lead: Vec<usize>,
    led: Vec<u64>,
}

impl Leads<'_> {
    /// Starts with the member that leads least.
    fn greedy(members: &[Vec<usize>], osds: usize) -> Leads<'_> {
        let mut led = vec![0; osds];
        let mut lead = Vec::with_capacity(members.len());
        for set in members {
            let least = set.iter().copied().min_by_key(|&osd| led[osd]).unwrap_or_default();
            led[least] += 1;
            lead.push(least);
        }
        Leads { members, lead, led }
    }

    /// Moves one PG's lead from `from` towards an OSD that satisfies `accepts`, directly or through others whose number
    /// does not change. False if none can be reached.
    fn shift(&mut self, from: usize, accepts: impl Fn(usize, u64) -> bool) -> bool {
        let mut by_lead = vec![Vec::new(); self.led.len()];
        for (pg, &lead) in self.lead.iter().enumerate() {
            by_lead[lead].push(pg);
        }
        // For each reached OSD the PG whose lead it would take.
        let mut through: Vec<Option<usize>> = vec![None; self.led.len()];
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            for &pg in &by_lead[at] {
                for &next in &self.members[pg] {
                    if next == from || through[next].is_some() {
                        continue;
                    }
                    through[next] = Some(pg);
                    if accepts(next, self.led[next]) {
                        self.follow(from, next, &through);
                        return true;
                    }
                    queue.push_back(next);
                }
            }
        }
        false
    }

    fn follow(&mut self, from: usize, to: usize, through: &[Option<usize>]) {
        self.led[from] -= 1;
        self.led[to] += 1;
        let mut at = to;
        while at != from {
            let Some(pg) = through[at] else { break };
            at = std::mem::replace(&mut self.lead[pg], at);
        }
    }
}

fn primaries(members: &[Vec<usize>], quotas: &[u64], width: usize) -> Vec<usize> {
    let width = width as u64;
    let least = |osd: usize| quotas[osd] / width;
    let most = |osd: usize| quotas[osd].div_ceil(width);
    let mut leads = Leads::greedy(members, quotas.len());
    for osd in 0..quotas.len() {
        while leads.led[osd] > most(osd) && leads.shift(osd, |next, led| led < most(next)) {}
    }
    // Now none leads too many. Who still leads too few takes over from someone who leads more than the least.
    while let Some(poor) = (0..quotas.len()).find(|&osd| leads.led[osd] < least(osd)) {
        let rich: Vec<_> = (0..quotas.len()).filter(|&osd| leads.led[osd] > least(osd)).collect();
        if !rich.into_iter().any(|osd| leads.shift(osd, |next, _| next == poor)) {
            break;
        }
    }
    debug_assert!((0..quotas.len()).all(|osd| (least(osd)..=most(osd)).contains(&leads.led[osd])));
    leads.lead
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn equal(n: u32) -> Vec<(OsdId, f64)> {
        (1..=n).map(|id| (OsdId(id), 1.0)).collect()
    }

    /// PGs served and led by each OSD.
    fn counts(placed: &[Vec<OsdId>], id: OsdId) -> (usize, usize) {
        let served = placed.iter().filter(|set| set.contains(&id)).count();
        (served, placed.iter().filter(|set| set[0] == id).count())
    }

    fn spread(values: impl Iterator<Item = usize> + Clone) -> usize {
        values.clone().max().unwrap() - values.min().unwrap()
    }

    fn check_sets(placed: &[Vec<OsdId>], width: usize) {
        for set in placed {
            assert_eq!(set.len(), width);
            assert_eq!(set.iter().collect::<BTreeSet<_>>().len(), width, "{set:?}");
        }
    }

    #[test]
    fn too_few_osds_is_no_placement() {
        assert_eq!(place(&equal(2), 3, 64), None);
        assert_eq!(place(&[(OsdId(1), 1.0), (OsdId(2), 0.0)], 2, 64), None);
        assert_eq!(place(&equal(2), 0, 64), None);
    }

    #[test]
    fn three_osds_three_copies() {
        let placed = place(&equal(3), 3, 64).unwrap();
        check_sets(&placed, 3);
        let led: Vec<_> = (1..=3).map(|id| counts(&placed, OsdId(id))).collect();
        assert_eq!(led, [(64, 21), (64, 21), (64, 22)]);
    }

    #[test]
    fn an_osd_shares_pgs_with_many_others() {
        let placed = place(&equal(12), 3, 256).unwrap();
        let partners: BTreeSet<_> =
            placed.iter().filter(|set| set.contains(&OsdId(1))).flatten().filter(|id| id.0 != 1).collect();
        assert!(partners.len() >= 10, "{}", partners.len());
    }

    #[test]
    fn weight_decides_up_to_one_copy_of_every_pg() {
        let placed = place(&[(OsdId(1), 1.0), (OsdId(2), 1.0), (OsdId(3), 2.0)], 1, 64).unwrap();
        assert_eq!([1, 2, 3].map(|id| counts(&placed, OsdId(id)).0), [16, 16, 32]);
        let placed = place(&[(OsdId(1), 1.0), (OsdId(2), 1.0), (OsdId(3), 100.0)], 2, 64).unwrap();
        assert_eq!([1, 2, 3].map(|id| counts(&placed, OsdId(id)).0), [32, 32, 64]);
    }

    #[test]
    fn a_large_pool_is_placed_quickly() {
        let start = std::time::Instant::now();
        let placed = place(&equal(100), 3, 1 << 14).unwrap();
        check_sets(&placed, 3);
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }

    proptest! {
        #[test]
        fn equal_weights_give_equal_counts(n in 1u32..24, width in 1usize..6, pg_count in 1u32..300) {
            let placed = place(&equal(n), width, pg_count);
            prop_assert_eq!(placed.is_some(), n as usize >= width);
            if let Some(placed) = placed {
                prop_assert_eq!(placed.len(), pg_count as usize);
                check_sets(&placed, width);
                let counts: Vec<_> = (1..=n).map(|id| counts(&placed, OsdId(id))).collect();
                prop_assert!(spread(counts.iter().map(|c| c.0)) <= 1, "{:?}", counts);
                prop_assert!(spread(counts.iter().map(|c| c.1)) <= 1, "{:?}", counts);
            }
        }

        #[test]
        fn any_weights_give_shares_and_leads_in_proportion(
            weights in prop::collection::vec(0.01f64..10.0, 3..16),
            width in 1usize..4,
            pg_count in 1u32..300,
        ) {
            let osds: Vec<_> = weights.iter().enumerate().map(|(i, w)| (OsdId(i as u32 + 1), *w)).collect();
            let placed = place(&osds, width, pg_count).unwrap();
            check_sets(&placed, width);
            let ideal = shares(&weights, width, pg_count);
            for (share, (id, _)) in ideal.iter().zip(&osds) {
                let (served, led) = counts(&placed, *id);
                prop_assert!((served as f64 - share).abs() < 1.0 + 1e-6);
                prop_assert!((led as f64 - served as f64 / width as f64).abs() < 1.0);
            }
        }
    }
}
