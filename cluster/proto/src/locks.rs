//! Who may work on which sectors of an object: used by primaries, and by clients to keep their own overlapping changes
//! in order.
//!
//! Changes of disjoint sectors run side by side; a change waits for an overlapping one. A read does not hold anything
//! (a store never overwrites in place, so it sees the state before or after any change that begins later), but it
//! waits for overlapping changes under way: what it would return might otherwise still be taken back. Recovery of an object keeps
//! changes away, not reads: it copies what is there.

use std::collections::{HashMap, VecDeque};

use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

use crate::ids::ObjectId;
use crate::layout::SectorRange;

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reads.
    Read,
    /// Changes.
    Change,
    /// Copies: the content must stand still.
    Copy,
}

/// What an operation wants of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hold<I> {
    /// Who.
    pub op: I,
    /// Which sectors.
    pub sectors: SectorRange,
    /// To do what.
    pub access: Access,
}

impl<I> Hold<I> {
    fn conflicts(&self, other: &Hold<I>) -> bool {
        let clash = match (self.access, other.access) {
            (Access::Read, Access::Read | Access::Copy) | (Access::Copy, Access::Read) => false,
            (Access::Change, _) | (_, Access::Change) | (Access::Copy, Access::Copy) => true,
        };
        clash && self.sectors.overlaps(other.sectors)
    }
}

struct Queue<I> {
    running: SmallVec<[Hold<I>; 2]>,
    blocked: VecDeque<Hold<I>>,
}

impl<I> Default for Queue<I> {
    fn default() -> Self {
        Self { running: SmallVec::new(), blocked: VecDeque::new() }
    }
}

/// The objects on which something is going on.
pub struct Locks<I> {
    queues: HashMap<ObjectId, Queue<I>, FxBuildHasher>,
}

impl<I> Default for Locks<I> {
    fn default() -> Self {
        Self { queues: HashMap::default() }
    }
}

impl<I: Copy + PartialEq> Locks<I> {
    /// True if the operation may start now; otherwise it is queued and comes out of a later [`Locks::release`].
    pub fn acquire(&mut self, object: ObjectId, hold: Hold<I>) -> bool {
        if hold.access == Access::Read {
            let Some(queue) = self.queues.get_mut(&object) else { return true };
            if queue.running.iter().chain(&queue.blocked).any(|other| other.conflicts(&hold)) {
                queue.blocked.push_back(hold);
                return false;
            }
            return true;
        }
        let queue = self.queues.entry(object).or_default();
        if queue.running.iter().chain(&queue.blocked).any(|other| other.conflicts(&hold)) {
            queue.blocked.push_back(hold);
            return false;
        }
        queue.running.push(hold);
        true
    }

    /// The operation is done. Returns those that may start now, in order of arrival.
    pub fn release(&mut self, object: ObjectId, op: I) -> SmallVec<[I; 4]> {
        let mut started = SmallVec::new();
        let Some(queue) = self.queues.get_mut(&object) else { return started };
        queue.running.retain(|hold| hold.op != op);
        let mut still: VecDeque<Hold<I>> = VecDeque::new();
        for hold in std::mem::take(&mut queue.blocked) {
            let free = !queue.running.iter().chain(&still).any(|other| other.conflicts(&hold));
            if !free {
                still.push_back(hold);
                continue;
            }
            if hold.access != Access::Read {
                queue.running.push(hold);
            }
            started.push(hold.op);
        }
        queue.blocked = still;
        if queue.running.is_empty() && queue.blocked.is_empty() {
            self.queues.remove(&object);
        }
        started
    }

    /// Whether anything holds the object, or waits for it.
    pub fn is_held(&self, object: &ObjectId) -> bool {
        self.queues.contains_key(object)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.queues.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{LayerId, PoolId};

    fn object() -> ObjectId {
        ObjectId { pool: PoolId(1), lineage: LayerId(1), layer: LayerId(1), index: 0, part: 0 }
    }

    fn hold(op: u64, start: u32, count: u32, write: bool) -> Hold<u64> {
        let access = if write { Access::Change } else { Access::Read };
        Hold { op, sectors: SectorRange::new(start, count), access }
    }

    #[test]
    fn disjoint_changes_run_side_by_side_and_overlapping_ones_in_order() {
        let mut locks = Locks::default();
        assert!(locks.acquire(object(), hold(1, 0, 4, true)));
        assert!(locks.acquire(object(), hold(2, 4, 4, true)));
        assert!(!locks.acquire(object(), hold(3, 3, 2, true)));
        assert!(!locks.acquire(object(), hold(4, 3, 1, true)), "must not overtake 3");
        assert!(locks.acquire(object(), hold(5, 8, 1, true)));
        assert!(locks.release(object(), 1).is_empty());
        assert_eq!(locks.release(object(), 2)[..], [3]);
        assert_eq!(locks.release(object(), 3)[..], [4]);
        locks.release(object(), 4);
        locks.release(object(), 5);
        assert!(locks.queues.is_empty());
    }

    #[test]
    fn a_copy_keeps_changes_away_but_not_reads() {
        let mut locks = Locks::default();
        let copy = Hold { access: Access::Copy, ..hold(1, 0, 8, true) };
        assert!(locks.acquire(object(), copy));
        assert!(locks.acquire(object(), hold(2, 0, 4, false)));
        assert!(!locks.acquire(object(), hold(3, 0, 4, true)));
        assert!(!locks.acquire(object(), Hold { op: 4, ..copy }));
        assert_eq!(locks.release(object(), 1)[..], [3]);
        assert_eq!(locks.release(object(), 3)[..], [4]);
    }

    #[test]
    fn a_read_waits_for_a_change_but_holds_nothing() {
        let mut locks = Locks::default();
        assert!(locks.acquire(object(), hold(1, 0, 4, false)));
        assert!(locks.acquire(object(), hold(2, 0, 4, true)), "the read before does not stand in the way");
        assert!(!locks.acquire(object(), hold(3, 0, 1, false)));
        assert!(locks.acquire(object(), hold(4, 4, 1, false)));
        assert_eq!(locks.release(object(), 2)[..], [3]);
        assert!(locks.queues.is_empty());
    }
}
