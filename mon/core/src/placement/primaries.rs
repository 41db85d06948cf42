//! Who leads each PG.
//!
//! Each OSD leads its share of the PGs that it serves, rounded up or down. That this is always possible is the integrality of a
//! bipartite flow: every PG giving each of its members the same fraction is a solution in fractions. Leads are exchanged along
//! augmenting paths, from those there are, so that few change.

use std::collections::VecDeque;

/// Who leads each PG.
struct Leads<'a> {
    members: &'a [Vec<usize>],
    lead: Vec<usize>,
    led: Vec<u64>,
}

impl Leads<'_> {
    /// Starts with those who lead now; elsewhere with the member that leads least.
    fn greedy<'a>(members: &'a [Vec<usize>], present: &[Option<usize>], osds: usize) -> Leads<'a> {
        let mut led = vec![0; osds];
        present.iter().flatten().for_each(|&osd| led[osd] += 1);
        let mut lead = Vec::with_capacity(members.len());
        for (set, present) in members.iter().zip(present) {
            let least = || set.iter().copied().min_by_key(|&osd| led[osd]).unwrap_or_default();
            let chosen = present.unwrap_or_else(least);
            if present.is_none() {
                led[chosen] += 1;
            }
            lead.push(chosen);
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

/// Chooses the leader of each PG. Every set has `width` members; `present` tells who leads now, if it is one of the members.
pub(super) fn primaries(members: &[Vec<usize>], present: &[Option<usize>], osds: usize, width: usize) -> Vec<usize> {
    let mut served = vec![0u64; osds];
    members.iter().flatten().for_each(|&osd| served[osd] += 1);
    let width = width as u64;
    let least = |osd: usize| served[osd] / width;
    let most = |osd: usize| served[osd].div_ceil(width);
    let mut leads = Leads::greedy(members, present, osds);
    for osd in 0..osds {
        while leads.led[osd] > most(osd) && leads.shift(osd, |next, led| led < most(next)) {}
    }
    // Now none leads too many. Who still leads too few takes over from someone who leads more than the least.
    while let Some(poor) = (0..osds).find(|&osd| leads.led[osd] < least(osd)) {
        let rich: Vec<_> = (0..osds).filter(|&osd| leads.led[osd] > least(osd)).collect();
        if !rich.into_iter().any(|osd| leads.shift(osd, |next, _| next == poor)) {
            break;
        }
    }
    debug_assert!((0..osds).all(|osd| (least(osd)..=most(osd)).contains(&leads.led[osd])));
    leads.lead
}
