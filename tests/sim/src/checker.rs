//! Judges what clients saw: linearizability per 512 bytes.
//!
//! Every chunk of 512 bytes is a register. Writes put in values that no other write has; zeroing puts in 0. An operation
//! without an answer may have taken effect at any time after its start, or never. A chunk's history is accepted if its
//! operations can be put in an order that respects real time and in which every read returns what was last written
//! (Wing and Gong's search, with Lowe's memory of visited states).

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::losses::{Losses, is_explained_by_losses};

/// Unit of the check. Bytes.
pub const CHUNK: u64 = 512;
/// Operations on one chunk that the search takes.
const HISTORY_MAX: usize = 128;

/// What an operation did to one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Did {
    /// Put the value in.
    Write(u64),
    /// Found the value.
    Read(u64),
    /// Found `expect` and put `new` in; `None` as outcome when there was no answer.
    Swap {
        /// Expected.
        expect: u64,
        /// Put in.
        new: u64,
        /// Whether it reported success.
        ok: Option<bool>,
    },
}

/// One operation on one chunk. Times are the world's event numbers.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// When it was asked for.
    pub start: u64,
    /// When it was answered.
    pub end: Option<u64>,
    /// What it did.
    pub did: Did,
    /// Number of the operation, for people.
    pub op: u64,
    /// The client's run.
    pub client: u64,
    /// A change that may be lost with the power until its client has flushed.
    pub lazy: bool,
}

/// All chunks' histories.
#[derive(Default)]
pub struct History {
    chunks: BTreeMap<u64, Vec<Entry>>,
    losses: Losses,
}

impl History {
    /// Adds an operation on a chunk. A read without an answer says nothing and is left out.
    pub fn add(&mut self, chunk: u64, entry: Entry) {
        if matches!((entry.did, entry.end), (Did::Read(_), None)) {
            return;
        }
        self.chunks.entry(chunk).or_default().push(entry);
    }

    /// A client flushed.
    pub fn add_sync(&mut self, client: u64, start: u64, end: Option<u64>) {
        self.losses.syncs.extend(end.map(|end| (client, start, end)));
    }

    /// When power was cut, ascending, and which clients died.
    pub fn set_cuts(&mut self, cuts: Vec<u64>, dead: BTreeSet<u64>) {
        (self.losses.cuts, self.losses.dead) = (cuts, dead);
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.chunks.values().map(Vec::len).sum()
    }

    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Checks every chunk.
    ///
    /// # Errors
    /// The first chunk whose history cannot be explained, with that history.
    pub fn check(&self) -> Result<(), String> {
        for (chunk, entries) in &self.chunks {
            if entries.len() > HISTORY_MAX {
                return Err(format!(
                    "chunk {chunk} has {} operations: the workload is too hot to check",
                    entries.len()
                ));
            }
            if !is_linearizable(entries) && !is_explained_by_losses(entries, &self.losses) {
                let mut sorted = entries.clone();
                sorted.sort_by_key(|e| e.start);
                let lines: Vec<String> = sorted.iter().map(|e| format!("  {e:?}")).collect();
                return Err(format!("chunk {chunk} is not linearizable:\n{}", lines.join("\n")));
            }
        }
        Ok(())
    }
}

/// Value after the operation, if it could take place at `value`.
pub(crate) fn apply(did: Did, value: u64) -> Option<u64> {
    match did {
        Did::Write(new) => Some(new),
        Did::Read(found) => (found == value).then_some(value),
        Did::Swap { expect, new, ok } => match (expect == value, ok) {
            (true, Some(true) | None) => Some(new),
            (false, Some(false) | None) => Some(value),
            _ => None,
        },
    }
}

fn is_linearizable(entries: &[Entry]) -> bool {
    let all_answered: u128 = mask(entries.iter().enumerate().filter(|(_, e)| e.end.is_some()).map(|(i, _)| i));
    let mut seen: HashSet<(u128, u64)> = HashSet::new();
    let mut stack: Vec<(u128, u64)> = vec![(0, 0)];
    while let Some((done, value)) = stack.pop() {
        if done & all_answered == all_answered {
            return true;
        }
        if !seen.insert((done, value)) {
            continue;
        }
        let left = |i: &usize| done >> i & 1 == 0;
        let horizon = (0..entries.len()).filter(left).filter_map(|i| entries[i].end).min().unwrap_or(u64::MAX);
        for i in (0..entries.len()).filter(left).filter(|i| entries[*i].start <= horizon) {
            if let Some(next) = apply(entries[i].did, value) {
                stack.push((done | 1 << i, next));
            }
        }
    }
    false
}

pub(crate) fn mask(indexes: impl Iterator<Item = usize>) -> u128 {
    indexes.fold(0, |set, i| set | 1 << i)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(entries: &[(u64, Option<u64>, Did)]) -> bool {
        let entries: Vec<_> = entries
            .iter()
            .enumerate()
            .map(|(i, &(start, end, did))| Entry { start, end, did, op: i as u64, client: 0, lazy: false })
            .collect();
        is_linearizable(&entries)
    }

    #[test]
    fn accepts_what_can_be_explained() {
        assert!(check(&[(1, Some(2), Did::Write(1)), (3, Some(4), Did::Read(1))]));
        // Concurrent: either order.
        assert!(check(&[(1, Some(5), Did::Write(1)), (2, Some(3), Did::Read(0)), (4, Some(6), Did::Read(1))]));
        // Without an answer: took effect late.
        assert!(check(&[(1, None, Did::Write(1)), (2, Some(3), Did::Read(0)), (9, Some(10), Did::Read(1))]));
        let swap = Did::Swap { expect: 1, new: 2, ok: Some(true) };
        assert!(check(&[(1, Some(2), Did::Write(1)), (3, Some(4), swap), (5, Some(6), Did::Read(2))]));
    }

    #[test]
    fn refuses_what_cannot() {
        // A lost write.
        assert!(!check(&[(1, Some(2), Did::Write(1)), (3, Some(4), Did::Read(0))]));
        // A value that comes back.
        assert!(!check(&[
            (1, None, Did::Write(1)),
            (2, Some(3), Did::Read(1)),
            (4, Some(5), Did::Write(2)),
            (6, Some(7), Did::Read(2)),
            (8, Some(9), Did::Read(1)),
        ]));
        // A value that nobody wrote.
        assert!(!check(&[(1, Some(2), Did::Read(7))]));
        // Two swaps of one value cannot both succeed.
        let swap = |new| Did::Swap { expect: 0, new, ok: Some(true) };
        assert!(!check(&[(1, Some(2), swap(1)), (1, Some(2), swap(2))]));
    }
}
