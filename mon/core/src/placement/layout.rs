//! A layout under construction: who serves each PG, and the exchanges that make every OSD serve exactly its quota.
//!
//! Where a layout exists already it is the start, so that data stays where it is: members that may stay do, gaps are filled by
//! OSDs below their quota, and then PGs pass from OSDs above to OSDs below it, directly or, where the rules forbid that, along
//! the shortest path of exchanges. The rules form a matroid (see [`Candidates`]), so such a path exists whenever some OSD is
//! above its quota, and quotas within the limits can always be met.

use std::collections::VecDeque;

use cluster_proto::LayerId;
use cluster_proto::layout::mix;
use rustc_hash::FxHashMap;

use super::candidates::Candidates;

/// Legal exchanges that are compared before the best is taken.
const COMPARED_MAX: usize = 256;

/// One member's place in the layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seat {
    pg: u32,
    position: u32,
}

/// Who serves each PG, by position. `None`: nobody yet.
pub(super) struct Layout<'a> {
    candidates: &'a Candidates,
    sets: Vec<Vec<Option<u32>>>,
    /// As it was, to tell what was moved already.
    original: Vec<Vec<Option<u32>>>,
    seats: Vec<Vec<Seat>>,
    quota: Vec<u32>,
    /// PGs that two OSDs share, the smaller index first.
    shared: FxHashMap<(u32, u32), u32>,
    /// For each PG those who have data of it though they do not serve it: what goes to them is half there already.
    holders: &'a [Vec<u32>],
    seed: u64,
}

/// A step of a path: the OSD gets this seat from the one before it on the path.
type Step = (Seat, Option<u32>);

/// A search for a path, breadth first.
struct Search {
    /// How each OSD was reached.
    found: Vec<Option<Step>>,
    /// Reached, and not looked further from.
    queue: VecDeque<u32>,
    /// Whether only seats may change hands that are not where they were.
    moved_only: bool,
}

impl Search {
    fn new(osds: usize, moved_only: bool) -> Self {
        Self { found: vec![None; osds], queue: VecDeque::new(), moved_only }
    }
}

impl<'a> Layout<'a> {
    /// Starts with those members of `sets` that may be together; the others' seats are empty. Each set has the pool's width. `holders`:
    /// for each PG those who have data of it from before.
    pub fn new(
        candidates: &'a Candidates,
        sets: &[Vec<Option<u32>>],
        holders: &'a [Vec<u32>],
        quota: Vec<u32>,
        seed: u64,
    ) -> Self {
        let mut layout = Self {
            candidates,
            sets: sets.iter().map(|set| vec![None; set.len()]).collect(),
            original: Vec::new(),
            seats: vec![Vec::new(); candidates.len()],
            quota,
            shared: FxHashMap::default(),
            holders,
            seed,
        };
        for (pg, set) in (0..).zip(sets) {
            for (position, member) in (0..).zip(set) {
                let seat = Seat { pg, position };
                let Some(osd) = *member else { continue };
                if candidates.admits(&layout.sets[pg as usize], None, osd) {
                    layout.sets[pg as usize][position as usize] = Some(osd);
                    layout.seats[osd as usize].push(seat);
                }
            }
        }
        layout.original.clone_from(&layout.sets);
        layout
    }

    /// Fills all seats so that every OSD has its quota. False if that cannot be: the quotas do not fit the rules.
    pub fn settle(&mut self) -> bool {
        let full = self.sets.iter().flatten().all(Option::is_some);
        if full && !(0..self.candidates.len() as u32).any(|osd| self.is_over(osd)) {
            return true;
        }
        self.count_all_shared();
        self.fill() && self.level()
    }

    /// The sets; every seat is taken after [`Layout::settle`]. Who was a member before has the position it had.
    pub fn into_sets(self) -> Vec<Vec<u32>> {
        let sets = self.sets.into_iter().zip(self.original);
        sets.map(|(set, original)| seated_as_before(set.into_iter().flatten().collect(), &original)).collect()
    }

    fn holder(&self, seat: Seat) -> Option<u32> {
        self.sets[seat.pg as usize][seat.position as usize]
    }

    fn has_room(&self, osd: u32) -> bool {
        self.seats[osd as usize].len() < self.quota[osd as usize] as usize
    }

    fn is_over(&self, osd: u32) -> bool {
        self.seats[osd as usize].len() > self.quota[osd as usize] as usize
    }

    /// Gives a seat to somebody else, or to nobody.
    fn sit(&mut self, seat: Seat, osd: Option<u32>) {
        if let Some(old) = self.holder(seat) {
            let seats = &mut self.seats[old as usize];
            if let Some(at) = seats.iter().position(|taken| *taken == seat) {
                seats.swap_remove(at);
            }
            self.count_shared(seat, old, -1);
        }
        self.sets[seat.pg as usize][seat.position as usize] = osd;
        if let Some(new) = osd {
            self.seats[new as usize].push(seat);
            self.count_shared(seat, new, 1);
        }
    }

    /// Counts the PG of `seat` as shared by its holder and the other members, or no more.
    fn count_shared(&mut self, seat: Seat, osd: u32, by: i32) {
        for (position, member) in (0..).zip(&self.sets[seat.pg as usize]) {
            let Some(other) = member.filter(|_| position != seat.position) else { continue };
            let shared = self.shared.entry((osd.min(other), osd.max(other))).or_insert(0);
            *shared = shared.saturating_add_signed(by);
        }
    }

    /// Counts what all OSDs share, before the first exchange. A layout that stays as it is needs no counts.
    fn count_all_shared(&mut self) {
        for set in &self.sets {
            for (at, osd) in set.iter().enumerate() {
                for other in set[at + 1..].iter().flatten() {
                    let Some(osd) = osd else { continue };
                    *self.shared.entry((*osd.min(other), *osd.max(other))).or_insert(0) += 1;
                }
            }
        }
    }

    /// Members of the seat's PG, other than its holder, with whom `osd` shares nothing yet.
    fn strangers(&self, seat: Seat, osd: u32) -> usize {
        let others = (0..).zip(&self.sets[seat.pg as usize]).filter(|(position, _)| *position != seat.position);
        let known = |other: u32| self.shared.get(&(osd.min(other), osd.max(other))).is_some_and(|n| *n > 0);
        others.filter(|(_, member)| member.is_some_and(|other| !known(other))).count()
    }

    /// Whether `osd` has no data of the seat's PG yet.
    fn is_new(&self, seat: Seat, osd: u32) -> bool {
        !self.holders.get(seat.pg as usize).is_some_and(|holders| holders.contains(&osd))
    }

    fn tie(&self, seat: Seat, osd: u32) -> u64 {
        mix(LayerId(self.seed ^ mix(LayerId(u64::from(seat.pg) << 32 | u64::from(osd)))))
    }

    fn admits(&self, seat: Seat, osd: u32) -> bool {
        self.candidates.admits(&self.sets[seat.pg as usize], self.holder(seat), osd)
    }

    /// Gives empty seats to OSDs below their quota; those who have data of the PG first, then those who know the other members,
    /// then the emptiest.
    fn fill(&mut self) -> bool {
        let empty = |(pg, set): (u32, &Vec<Option<u32>>)| {
            let positions = (0..).zip(set).filter(|(_, member)| member.is_none());
            positions.map(|(position, _)| Seat { pg, position }).collect::<Vec<_>>()
        };
        let empty: Vec<Seat> = (0..).zip(&self.sets).flat_map(empty).collect();
        let osds = self.candidates.len() as u32;
        for seat in empty {
            let open = (0..osds).filter(|&osd| self.has_room(osd) && self.admits(seat, osd));
            let room = |osd: u32| self.quota[osd as usize] as usize - self.seats[osd as usize].len();
            let key = |osd: &u32| {
                (
                    self.is_new(seat, *osd),
                    self.strangers(seat, *osd),
                    std::cmp::Reverse(room(*osd)),
                    self.tie(seat, *osd),
                )
            };
            match open.min_by_key(key) {
                Some(osd) => self.sit(seat, Some(osd)),
                None if !self.shift(seat) => return false,
                None => {}
            }
        }
        true
    }

    /// Passes PGs from OSDs above their quota to OSDs below it, one of each OSD in turn.
    fn level(&mut self) -> bool {
        let mut over: Vec<u32> = (0..self.candidates.len() as u32).filter(|&osd| self.is_over(osd)).collect();
        while !over.is_empty() {
            for &osd in &over {
                if self.is_over(osd) && !self.pass_on(osd) && !self.shift_any(osd) {
                    return false;
                }
            }
            over.retain(|&osd| self.is_over(osd));
        }
        true
    }

    /// Passes one PG of `osd` directly to an OSD below its quota. Prefers OSDs that have data of the PG, PGs that are moved anyway, and
    /// OSDs that know the others.
    fn pass_on(&mut self, osd: u32) -> bool {
        let open: Vec<u32> = (0..self.candidates.len() as u32).filter(|&other| self.has_room(other)).collect();
        let seats = &self.seats[osd as usize];
        let first = self.tie(Seat { pg: seats.len() as u32, position: 0 }, osd) as usize % seats.len().max(1);
        let order = seats[first..].iter().chain(&seats[..first]);
        let legal =
            order.flat_map(|seat| open.iter().map(|other| (*seat, *other))).filter(|(s, o)| self.admits(*s, *o));
        let key = |(seat, other): &(Seat, u32)| {
            let stays = self.original[seat.pg as usize][seat.position as usize] == Some(osd);
            (self.is_new(*seat, *other), stays, self.strangers(*seat, *other), self.tie(*seat, *other))
        };
        let best = legal.take(COMPARED_MAX).min_by_key(key);
        if let Some((seat, other)) = best {
            self.sit(seat, Some(other));
        }
        best.is_some()
    }

    /// Fills an empty seat along a path of exchanges; if it can be, of seats that are moved anyway.
    fn shift(&mut self, seat: Seat) -> bool {
        [true, false].into_iter().any(|moved_only| {
            let mut search = Search::new(self.candidates.len(), moved_only);
            (0..self.candidates.len() as u32)
                .any(|osd| self.admits(seat, osd) && self.reach(&mut search, osd, (seat, None)))
                || self.shift_along(search)
        })
    }

    /// Passes one PG of `osd` on along a path of exchanges; if it can be, the others of seats that are moved anyway.
    fn shift_any(&mut self, osd: u32) -> bool {
        let seats = self.seats[osd as usize].clone();
        [true, false].into_iter().any(|moved_only| {
            let mut search = Search::new(self.candidates.len(), moved_only);
            // The start has no step to it; this one only marks it as reached and is never followed.
            search.found[osd as usize] = seats.first().map(|seat| (*seat, Some(osd)));
            seats.iter().any(|seat| self.look_from(&mut search, osd, *seat)) || self.shift_along(search)
        })
    }

    /// Searches breadth first for an OSD below its quota, and exchanges seats along the way to it.
    fn shift_along(&mut self, mut search: Search) -> bool {
        while let Some(at) = search.queue.pop_front() {
            let seats = self.seats[at as usize].clone();
            let moved = |seat: &Seat| self.original[seat.pg as usize][seat.position as usize] != Some(at);
            let open: Vec<Seat> = seats.into_iter().filter(|seat| !search.moved_only || moved(seat)).collect();
            if open.iter().any(|seat| self.look_from(&mut search, at, *seat)) {
                return true;
            }
        }
        false
    }

    /// Who else could have this seat of `at`. True if that ended the search.
    fn look_from(&mut self, search: &mut Search, at: u32, seat: Seat) -> bool {
        (0..self.candidates.len() as u32).any(|next| {
            search.found[next as usize].is_none()
                && self.admits(seat, next)
                && self.reach(search, next, (seat, Some(at)))
        })
    }

    /// Notes how an OSD is reached. True if it is below its quota and the path to it was taken.
    fn reach(&mut self, search: &mut Search, osd: u32, step: Step) -> bool {
        search.found[osd as usize] = Some(step);
        search.queue.push_back(osd);
        self.has_room(osd) && self.follow(&search.found, osd)
    }

    /// Takes the path that ends at `end`. False, and nothing is changed, if its exchanges get in each other's way.
    fn follow(&mut self, found: &[Option<Step>], end: u32) -> bool {
        let mut done = Vec::new();
        let mut at = end;
        while let Some((seat, from)) = found[at as usize] {
            if from == Some(at) {
                break;
            }
            done.push((seat, self.holder(seat)));
            self.sit(seat, Some(at));
            let Some(from) = from else { break };
            at = from;
        }
        let legal = done.iter().all(|(seat, _)| self.is_legal(seat.pg));
        if !legal {
            for (seat, old) in done.into_iter().rev() {
                self.sit(seat, old);
            }
        }
        legal
    }

    fn is_legal(&self, pg: u32) -> bool {
        let set = &self.sets[pg as usize];
        set.iter().flatten().all(|&osd| self.candidates.admits(set, Some(osd), osd))
    }
}

/// An OSD that left a seat of a PG may have got another one of the same PG on the way: that would be a shard moved for nothing.
fn seated_as_before(mut set: Vec<u32>, original: &[Option<u32>]) -> Vec<u32> {
    for (position, member) in original.iter().enumerate() {
        if let Some(at) = set.iter().position(|osd| Some(*osd) == *member) {
            set.swap(position, at);
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_return_to_their_positions() {
        let original = [Some(13), Some(1), Some(6), Some(8), Some(12)];
        assert_eq!(seated_as_before(vec![8, 1, 6, 100, 12], &original), [100, 1, 6, 8, 12]);
        assert_eq!(seated_as_before(vec![8, 13, 1, 6, 9], &original), [13, 1, 6, 8, 9]);
        assert_eq!(seated_as_before(vec![3, 4], &[None, None]), [3, 4]);
    }
}
