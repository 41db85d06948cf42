//! What power cuts may do to changes of a lazy pool, on top of linearizability.
//!
//! A lazy change may, after a power cut that came after its start, stop showing, together with all later changes of its chunk that are
//! lazy; and show again once, later: when its client repeats it, or when an OSD comes back that still had it. It may not
//!
//! - stop showing after a flush of its client that began after its answer was answered, nor if a durable change of the chunk came after it;
//! - be missed by its own client: what that begins after the change was answered finds it;
//! - be missed by anybody once the client has flushed;
//! - stay lost, unless its client died.
//!
//! The search is that of `checker.rs` with more moves: a cut passes, and the newest change is undone.

use std::collections::{BTreeSet, HashSet};

use crate::checker::{Did, Entry, apply, mask};

/// States that one search may visit; a history that takes more is not judged.
const STATES_MAX: usize = 400_000;

/// What happened beside operations.
#[derive(Default)]
pub struct Losses {
    /// When power was cut, ascending.
    pub cuts: Vec<u64>,
    /// Flushes that were answered: client, start, end.
    pub syncs: Vec<(u64, u64, u64)>,
    /// Clients that died.
    pub dead: BTreeSet<u64>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    /// Operations that have their effect.
    done: u128,
    /// Operations that had it and lost it.
    undone: u128,
    /// Cuts that have passed.
    cuts: usize,
    /// Value below the changes that may be undone.
    base: u64,
    /// Those changes, and the cuts that had passed before each.
    changes: Vec<(u8, usize)>,
}

struct Search<'a> {
    entries: &'a [Entry],
    cuts: &'a [u64],
    /// When each change was synced.
    synced: Vec<u64>,
    /// Which need not come back once they are undone.
    optional: u128,
}

/// Whether power cuts explain a history.
pub fn is_explained_by_losses(entries: &[Entry], losses: &Losses) -> bool {
    if losses.cuts.is_empty() || !entries.iter().any(|entry| entry.lazy) {
        return false;
    }
    let synced = |entry: &Entry| {
        let of_client = losses
            .syncs
            .iter()
            .filter(|(client, start, _)| *client == entry.client && entry.end.is_some_and(|end| end < *start));
        of_client.map(|(.., end)| *end).min().unwrap_or(u64::MAX)
    };
    let is_optional = |entry: &Entry| losses.dead.contains(&entry.client);
    let optional = mask(entries.iter().enumerate().filter(|(_, e)| is_optional(e)).map(|(i, _)| i));
    let search = Search { entries, cuts: &losses.cuts, synced: entries.iter().map(synced).collect(), optional };
    search.run()
}

impl Search<'_> {
    fn run(&self) -> bool {
        let answered = mask(self.entries.iter().enumerate().filter(|(_, e)| e.end.is_some()).map(|(i, _)| i));
        let first = State { done: 0, undone: 0, cuts: 0, base: 0, changes: Vec::new() };
        let mut seen = HashSet::new();
        let mut stack = vec![first];
        while let Some(state) = stack.pop() {
            if (state.done | state.undone & self.optional) & answered == answered || seen.len() >= STATES_MAX {
                return true;
            }
            if !seen.insert(state.clone()) {
                continue;
            }
            // The last pushed is tried first: operations before cuts, cuts before losses.
            stack.extend(self.undo(&state));
            stack.extend(self.pass_cut(&state));
            stack.extend((0..self.entries.len()).rev().filter_map(|i| self.take_place(&state, i)));
        }
        false
    }

    fn has(set: u128, i: usize) -> bool {
        set >> i & 1 == 1
    }

    /// Before that, something has to happen that has not.
    fn horizon(&self, state: &State) -> u64 {
        let left = (0..self.entries.len()).filter(|i| !Self::has(state.done | state.undone, *i));
        left.filter_map(|i| self.entries[i].end).min().unwrap_or(u64::MAX)
    }

    /// Whether something at this time, of this client if it is an operation, finds nothing undone that it may not miss.
    fn may_miss(&self, state: &State, time: u64, client: Option<u64>) -> bool {
        let mut undone = (0..self.entries.len()).filter(|i| Self::has(state.undone, *i));
        undone.all(|i| {
            let entry = &self.entries[i];
            let is_own = client == Some(entry.client) && entry.end.is_some_and(|end| end < time);
            !is_own && time <= self.synced[i]
        })
    }

    fn pass_cut(&self, state: &State) -> Option<State> {
        let cut = *self.cuts.get(state.cuts)?;
        let fits = cut <= self.horizon(state) && self.may_miss(state, cut, None);
        fits.then(|| State { cuts: state.cuts + 1, ..state.clone() })
    }

    /// Latest time at which anything that has happened began.
    fn present(&self, state: &State) -> u64 {
        let done = (0..self.entries.len()).filter(|i| Self::has(state.done, *i)).map(|i| self.entries[i].start);
        let cut = state.cuts.checked_sub(1).map(|last| self.cuts[last]);
        done.chain(cut).max().unwrap_or(0)
    }

    fn undo(&self, state: &State) -> Option<State> {
        let &(newest, before) = state.changes.last()?;
        let i = usize::from(newest);
        let was_cut = self.cuts[before..state.cuts].iter().any(|cut| *cut > self.entries[i].start);
        if !was_cut || self.present(state) >= self.synced[i] {
            return None;
        }
        let mut next = state.clone();
        next.changes.pop();
        next.done &= !(1 << i);
        next.undone |= 1 << i;
        Some(next)
    }

    fn take_place(&self, state: &State, i: usize) -> Option<State> {
        let entry = &self.entries[i];
        let is_late = self.cuts.get(state.cuts).is_some_and(|cut| entry.start > *cut);
        if Self::has(state.done, i) || is_late || entry.start > self.horizon(state) {
            return None;
        }
        let others = State { undone: state.undone & !(1 << i), ..state.clone() };
        if !self.may_miss(&others, entry.start, Some(entry.client)) {
            return None;
        }
        let value = state.changes.last().map_or(state.base, |(top, _)| self.value_of(*top));
        let new = apply(entry.did, value)?;
        let mut next = others;
        next.done |= 1 << i;
        match entry.did {
            Did::Write(_) if entry.lazy => next.changes.push((i as u8, state.cuts)),
            Did::Write(_) => (next.base, next.changes) = (new, Vec::new()),
            Did::Swap { .. } if new != value => (next.base, next.changes) = (new, Vec::new()),
            Did::Read(_) | Did::Swap { .. } => {}
        }
        Some(next)
    }

    fn value_of(&self, change: u8) -> u64 {
        if let Did::Write(value) = self.entries[usize::from(change)].did { value } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(client: u64, start: u64, end: u64, did: Did) -> Entry {
        let lazy = matches!(did, Did::Write(_));
        Entry { start, end: Some(end), did, op: start, client, lazy }
    }

    fn is_explained(entries: &[Entry], cuts: &[u64], syncs: &[(u64, u64, u64)]) -> bool {
        let losses = Losses { cuts: cuts.to_vec(), syncs: syncs.to_vec(), dead: BTreeSet::from([9]) };
        is_explained_by_losses(entries, &losses)
    }

    #[test]
    fn others_may_miss_a_lost_change_until_it_is_repeated() {
        let write = entry(1, 1, 2, Did::Write(5));
        let missed = entry(2, 12, 13, Did::Read(0));
        let found = entry(2, 14, 15, Did::Read(5));
        assert!(is_explained(&[write, missed, found], &[10], &[]));
        assert!(!is_explained(&[write, missed, found], &[20], &[]), "before any cut");
        assert!(!is_explained(&[write, missed], &[10], &[(1, 3, 5)]), "synced");
        assert!(!is_explained(&[write, missed], &[10], &[(1, 10, 11)]), "repeated and synced before the read");
        let again = entry(2, 16, 17, Did::Read(0));
        assert!(!is_explained(&[write, missed, found, again], &[10], &[]), "one cut loses it once");
        assert!(is_explained(&[write, missed, found, again], &[10, 16], &[]));
    }

    #[test]
    fn its_own_client_never_misses_a_change_and_it_comes_back() {
        let write = entry(1, 1, 2, Did::Write(5));
        assert!(!is_explained(&[write, entry(1, 12, 13, Did::Read(0))], &[10], &[]));
        let dead = entry(9, 1, 2, Did::Write(5));
        assert!(is_explained(&[dead, entry(2, 12, 13, Did::Read(0))], &[10], &[]));
        let over = entry(1, 3, 4, Did::Write(6));
        let stale = entry(2, 20, 21, Did::Read(5));
        assert!(is_explained(&[write, over, stale], &[10], &[]), "the later one was lost");
        assert!(!is_explained(&[write, over, stale], &[10], &[(1, 5, 6)]));
    }

    #[test]
    fn a_durable_change_keeps_what_was_before_it() {
        let write = entry(1, 1, 2, Did::Write(5));
        let swap = Did::Swap { expect: 5, new: 6, ok: Some(true) };
        let durable = Entry { lazy: false, ..entry(2, 3, 4, swap) };
        assert!(!is_explained(&[write, durable, entry(3, 12, 13, Did::Read(0))], &[10], &[]));
        assert!(!is_explained(&[write, durable, entry(3, 12, 13, Did::Read(5))], &[10], &[]));
    }
}
