//! Who may work on which sectors of an object.
//!
//! Changes of disjoint sectors run side by side; a change waits for an overlapping one. A read does not hold anything
//! (the store never overwrites in place, so it sees the state before or after any change that begins later), but it
//! waits for overlapping changes under way: what it would return might otherwise still be taken back.

use std::collections::{HashMap, VecDeque};

use cluster_proto::ids::ObjectId;
use cluster_proto::layout::SectorRange;
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

use crate::op::OpId;

/// What an operation wants of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Hold {
    pub op: OpId,
    pub sectors: SectorRange,
    pub write: bool,
}

impl Hold {
    fn conflicts(&self, other: &Hold) -> bool {
        (self.write || other.write) && self.sectors.overlaps(other.sectors)
    }
}

#[derive(Default)]
struct Queue {
    running: SmallVec<[Hold; 2]>,
    blocked: VecDeque<Hold>,
}

/// The objects of a PG on which something is going on.
#[derive(Default)]
pub(crate) struct Locks {
    queues: HashMap<ObjectId, Queue, FxBuildHasher>,
}

impl Locks {
    /// True if the operation may start now; otherwise it is queued and comes out of a later [`Locks::release`].
    pub fn acquire(&mut self, object: ObjectId, hold: Hold) -> bool {
        if !hold.write {
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
    pub fn release(&mut self, object: ObjectId, op: OpId) -> SmallVec<[OpId; 4]> {
        let mut started = SmallVec::new();
        let Some(queue) = self.queues.get_mut(&object) else { return started };
        queue.running.retain(|hold| hold.op != op);
        let mut still: VecDeque<Hold> = VecDeque::new();
        for hold in std::mem::take(&mut queue.blocked) {
            let free = !queue.running.iter().chain(&still).any(|other| other.conflicts(&hold));
            if !free {
                still.push_back(hold);
                continue;
            }
            if hold.write {
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

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.queues.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::ids::{LayerId, PoolId};

    fn object() -> ObjectId {
        ObjectId { pool: PoolId(1), lineage: LayerId(1), layer: LayerId(1), index: 0 }
    }

    fn hold(op: u64, start: u32, count: u32, write: bool) -> Hold {
        Hold { op: OpId(op), sectors: SectorRange::new(start, count), write }
    }

    #[test]
    fn disjoint_changes_run_side_by_side_and_overlapping_ones_in_order() {
        let mut locks = Locks::default();
        assert!(locks.acquire(object(), hold(1, 0, 4, true)));
        assert!(locks.acquire(object(), hold(2, 4, 4, true)));
        assert!(!locks.acquire(object(), hold(3, 3, 2, true)));
        assert!(!locks.acquire(object(), hold(4, 3, 1, true)), "must not overtake 3");
        assert!(locks.acquire(object(), hold(5, 8, 1, true)));
        assert!(locks.release(object(), OpId(1)).is_empty());
        assert_eq!(locks.release(object(), OpId(2))[..], [OpId(3)]);
        assert_eq!(locks.release(object(), OpId(3))[..], [OpId(4)]);
        locks.release(object(), OpId(4));
        locks.release(object(), OpId(5));
        assert!(locks.queues.is_empty());
    }

    #[test]
    fn a_read_waits_for_a_change_but_holds_nothing() {
        let mut locks = Locks::default();
        assert!(locks.acquire(object(), hold(1, 0, 4, false)));
        assert!(locks.acquire(object(), hold(2, 0, 4, true)), "the read before does not stand in the way");
        assert!(!locks.acquire(object(), hold(3, 0, 1, false)));
        assert!(locks.acquire(object(), hold(4, 4, 1, false)));
        assert_eq!(locks.release(object(), OpId(2))[..], [OpId(3)]);
        assert!(locks.queues.is_empty());
    }
}
