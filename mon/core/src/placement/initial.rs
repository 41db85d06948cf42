//! The first layout of a pool, before any OSD has data of it.

use cluster_proto::LayerId;
use cluster_proto::layout::mix;

use super::candidates::Candidates;
use super::combinations::{scatter_width, shares};

/// Sets of members, by position, for all `pgs` PGs, no OSD in more than its `quota`. Seats that are left empty are for
/// [`super::layout::Layout`] to fill.
pub(super) fn sets(
    candidates: &Candidates,
    quota: &[u32],
    pgs: u32,
    width: usize,
    scatter: u32,
    seed: u64,
) -> Vec<Vec<Option<u32>>> {
    let mut all = vec![vec![None; width]; pgs as usize];
    let Some(limit) = candidates.domains() else { return all };
    let domains = candidates.fold();
    let mut domain_quota = vec![0; limit.count];
    let mut members = vec![Vec::new(); limit.count];
    for (osd, domain) in limit.group.iter().enumerate() {
        domain_quota[*domain as usize] += quota[osd];
        members[*domain as usize].push(osd as u32);
    }
    let scatter = scatter_width(scatter, width, limit.count);
    let shares = shares(&domains, &domain_quota, pgs, width, scatter, seed);
    let mut left = quota.to_vec();
    let mut placed: Vec<(u64, Vec<u32>)> = Vec::with_capacity(pgs as usize);
    for (number, (set, count)) in (0u64..).zip(&shares) {
        let columns: Vec<_> = set.iter().map(|domain| unfold(&members[*domain as usize], &mut left, *count)).collect();
        for at in 0..*count {
            let turn = mix(LayerId(seed ^ mix(LayerId(number << 32 | u64::from(at)))));
            let mut members: Vec<u32> = columns.iter().filter_map(|column| column.get(at as usize).copied()).collect();
            // Positions change from PG to PG: they are not alike (a primary, data and parity).
            let shift = turn as usize % members.len().max(1);
            members.rotate_left(shift);
            placed.push((turn, members));
        }
    }
    // An image walks the PGs in their order: neighbours should lie on different OSDs.
    placed.sort_unstable();
    for (set, (_, members)) in all.iter_mut().zip(placed) {
        set.iter_mut().zip(members).for_each(|(seat, osd)| *seat = Some(osd));
    }
    all
}

/// Chooses the OSDs of one domain for `count` PGs: by what is left of their quotas, each OSD's PGs next to each other, so that it
/// meets few OSDs of the other domains.
fn unfold(members: &[u32], left: &mut [u32], count: u32) -> Vec<u32> {
    let mut taken = vec![0u32; members.len()];
    let total: u32 = members.iter().map(|osd| left[*osd as usize]).sum();
    let share = |osd: u32, left: &[u32]| u64::from(left[osd as usize]) * u64::from(count) / u64::from(total.max(1));
    for (taken, osd) in taken.iter_mut().zip(members) {
        *taken = share(*osd, left) as u32;
        left[*osd as usize] -= *taken;
    }
    for _ in taken.iter().sum::<u32>()..count {
        let emptiest = (0..members.len()).max_by_key(|at| (left[members[*at] as usize], std::cmp::Reverse(*at)));
        let Some(at) = emptiest else { break };
        debug_assert!(left[members[at] as usize] > 0, "a domain was given more PGs than the quotas of its OSDs");
        left[members[at] as usize] = left[members[at] as usize].saturating_sub(1);
        taken[at] += 1;
    }
    members.iter().zip(taken).flat_map(|(osd, n)| std::iter::repeat_n(*osd, n as usize)).collect()
}
