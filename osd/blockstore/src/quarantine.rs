//! Freed sectors that must not be written yet.
//!
//! A run freed by entry n may be reused only when (a) a durable log block records a durable LSN of at least n: until
//! then replay verifies data of entries up to n, and would take new data in an old place for a torn write; and
//! (b) every read that began before the run was freed has ended.

use std::collections::VecDeque;

use crate::extent::{Run, Runs};
use crate::format::log::Lsn;

struct Batch {
    lsn: Lsn,
    /// Reads numbered below this may still be reading.
    reads: u64,
    runs: Runs,
}

/// Freed runs in the order they were freed.
#[derive(Default)]
pub struct Quarantine {
    batches: VecDeque<Batch>,
    sectors: u64,
}

impl Quarantine {
    /// Adds runs freed by `lsn`; `reads` is the number the next read will get.
    pub fn add(&mut self, lsn: Lsn, reads: u64, runs: Runs) {
        if runs.is_empty() {
            return;
        }
        self.sectors += runs.iter().map(|r| u64::from(r.count)).sum::<u64>();
        self.batches.push_back(Batch { lsn, reads, runs });
    }

    /// Takes out the next runs that may be reused. `recorded`: durable LSN recorded durably; `oldest_read`: number of
    /// the oldest read in progress.
    pub fn pop(&mut self, recorded: Lsn, oldest_read: u64) -> Option<Runs> {
        let front = self.batches.front()?;
        if front.lsn > recorded || front.reads > oldest_read {
            return None;
        }
        let batch = self.batches.pop_front()?;
        self.sectors -= batch.runs.iter().map(|r: &Run| u64::from(r.count)).sum::<u64>();
        Some(batch.runs)
    }

    /// Sectors waiting.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_wait_for_the_record_and_for_readers() {
        let mut q = Quarantine::default();
        q.add(Lsn(5), 3, Runs::from_slice(&[Run { start: 1, count: 2 }]));
        assert!(q.pop(Lsn(4), 9).is_none(), "not recorded");
        assert!(q.pop(Lsn(5), 2).is_none(), "read 2 began before");
        assert_eq!(q.sectors(), 2);
        assert!(q.pop(Lsn(5), 3).is_some());
        assert_eq!(q.sectors(), 0);
    }
}
