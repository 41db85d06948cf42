//! Free sectors of the data area: a bitmap under a tree of summary bits. Small writes go to the next free sectors, so that those of a moment
//! lie together and become one device write. Large ones take up space again that was used before, if there is much of it: a sparse file
//! stays smaller, and memory that a file already has is cheaper than new.

use crate::extent::{Run, Runs};
use crate::prefetch::prefetch;

/// Free runs looked at for one that holds a whole write, before it is cut into pieces.
const RUNS_TRIED: usize = 16;

/// Which sectors are free. `levels[0]` has one bit per sector (1 = free); each bit above says that the word below has
/// a bit set. 64 GiB need 2 MiB.
pub struct Allocator {
    levels: Vec<Vec<u64>>,
    sectors: u64,
    free: u64,
    /// Where small writes go on.
    cursor: u64,
    /// Where writes into used space go on.
    reuse: u64,
    /// One past the highest sector ever taken.
    reached: u64,
}

/// Sectors of a large write.
const LARGE: u32 = 16;
/// Used space is taken up again while one sector in so many of it is free.
const REUSABLE_SHARE: u64 = 16;

impl Allocator {
    /// All of `sectors` free.
    pub fn new(sectors: u64) -> Allocator {
        let mut levels = vec![full_level(sectors)];
        while levels[levels.len() - 1].len() > 1 {
            levels.push(full_level(levels[levels.len() - 1].len() as u64));
        }
        Allocator { levels, sectors, free: sectors, cursor: 0, reuse: 0, reached: 0 }
    }

    /// Free sectors.
    pub fn free_count(&self) -> u64 {
        self.free
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> u64 {
        self.levels.iter().map(|l| l.len() as u64 * 8).sum()
    }

    /// Takes a given run. `false`, with nothing taken, if one of its sectors is not free.
    pub fn take(&mut self, run: Run) -> bool {
        if run.end() > self.sectors || self.free_run(run.start, u64::from(run.count)) < u64::from(run.count) {
            return false;
        }
        self.mark_taken(run);
        true
    }

    fn mark_taken(&mut self, run: Run) {
        self.edit(run, false);
        self.free -= u64::from(run.count);
        self.reached = self.reached.max(run.end());
    }

    /// Has the processor fetch what [`release`](Self::release) will change.
    pub fn prefetch(&self, run: Run) {
        prefetch(&self.levels[0][(run.start / 64) as usize]);
    }

    /// Gives a run back.
    pub fn release(&mut self, run: Run) {
        debug_assert!(run.end() <= self.sectors);
        debug_assert!((run.start..run.end()).all(|s| self.levels[0][(s / 64) as usize] >> (s % 64) & 1 == 0));
        self.edit(run, true);
        self.free += u64::from(run.count);
    }

    /// Takes `count` sectors: one run if there is one near, otherwise several. `None` if there are not as many.
    pub fn allocate(&mut self, count: u32) -> Option<Runs> {
        if self.free < u64::from(count) || count == 0 {
            return None;
        }
        let mut runs = Runs::new();
        if let Some(run) = self.find_used(count) {
            runs.push(run);
            self.mark_taken(run);
            self.reuse = run.end();
            return Some(runs);
        }
        if let Some(run) = self.find_whole(count, self.cursor) {
            runs.push(run);
            self.claim(run);
            return Some(runs);
        }
        let mut left = count;
        while left > 0 {
            let start = self.next_free(self.cursor).or_else(|| self.next_free(0))?;
            let run = Run { start, count: self.free_run(start, u64::from(left)) as u32 };
            runs.push(run);
            self.claim(run);
            left -= run.count;
        }
        Some(runs)
    }

    fn claim(&mut self, run: Run) {
        self.mark_taken(run);
        self.cursor = run.end();
    }

    /// A place for a large write in space that was used before.
    fn find_used(&self, count: u32) -> Option<Run> {
        let free = self.free - (self.sectors - self.reached);
        if count < LARGE || free * REUSABLE_SHARE < self.reached {
            return None;
        }
        [self.reuse, 0]
            .into_iter()
            .find_map(|from| self.find_whole(count, from).filter(|run| run.end() <= self.reached))
    }

    fn find_whole(&self, count: u32, from: u64) -> Option<Run> {
        let mut at = from;
        for _ in 0..RUNS_TRIED {
            let start = match self.next_free(at) {
                Some(start) => start,
                None => self.next_free(0)?,
            };
            let len = self.free_run(start, u64::from(count));
            if len == u64::from(count) {
                return Some(Run { start, count });
            }
            at = start + len;
        }
        None
    }

    /// First free sector at or after `from`.
    fn next_free(&self, from: u64) -> Option<u64> {
        let mut at = from;
        let mut level = 0;
        loop {
            let word = (at / 64) as usize;
            let bits = self.levels[level].get(word)? & (u64::MAX << (at % 64));
            if bits != 0 {
                let mut found = word as u64 * 64 + u64::from(bits.trailing_zeros());
                for below in self.levels[..level].iter().rev() {
                    found = found * 64 + u64::from(below[found as usize].trailing_zeros());
                }
                return Some(found);
            }
            level += 1;
            if level == self.levels.len() {
                return None;
            }
            at = at / 64 + 1;
        }
    }

    /// Free sectors in a row from `start`, at most `max`.
    fn free_run(&self, start: u64, max: u64) -> u64 {
        let mut len = 0;
        while len < max && start + len < self.sectors {
            let at = start + len;
            let ones = (self.levels[0][(at / 64) as usize] >> (at % 64)).trailing_ones();
            let available = 64 - (at % 64) as u32;
            len += u64::from(ones.min(available));
            if ones < available {
                break;
            }
        }
        len.min(max)
    }

    fn edit(&mut self, run: Run, free: bool) {
        let mut at = run.start;
        while at < run.end() {
            let bit = at % 64;
            let count = (64 - bit).min(run.end() - at);
            let mask = (u64::MAX >> (64 - count)) << bit;
            self.edit_word((at / 64) as usize, mask, free);
            at += count;
        }
    }

    fn edit_word(&mut self, word: usize, mask: u64, free: bool) {
        let (mut word, mut mask) = (word, mask);
        for level in &mut self.levels {
            let old = level[word];
            level[word] = if free { old | mask } else { old & !mask };
            // The summary changes only when the word becomes empty or stops being so.
            if (old == 0) == (level[word] == 0) {
                return;
            }
            mask = 1 << (word % 64);
            word /= 64;
        }
    }
}

fn full_level(bits: u64) -> Vec<u64> {
    let mut level = vec![u64::MAX; bits.div_ceil(64) as usize];
    if !bits.is_multiple_of(64)
        && let Some(last) = level.last_mut()
    {
        *last = (1 << (bits % 64)) - 1;
    }
    level
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_can_be_taken_once_and_given_back() {
        let mut a = Allocator::new(5000);
        let mut taken = vec![false; 5000];
        let mut runs = Vec::new();
        for i in 0.. {
            let Some(got) = a.allocate(1 + i % 7) else { break };
            for run in got {
                for s in run.start..run.end() {
                    assert!(!std::mem::replace(&mut taken[s as usize], true), "{s} given out twice");
                }
                runs.push(run);
            }
        }
        while let Some(got) = a.allocate(1) {
            runs.extend(got);
        }
        assert_eq!((a.free_count(), a.next_free(0)), (0, None));
        runs.iter().step_by(2).for_each(|&r| a.release(r));
        let scattered = a.allocate(a.free_count() as u32).expect("as many as are free");
        assert!(scattered.len() > 100);
        assert_eq!(a.free_count(), 0);
    }

    #[test]
    fn large_writes_use_again_what_was_used() {
        let mut a = Allocator::new(100_000);
        let first: Vec<Run> = (0..100).flat_map(|_| a.allocate(32).expect("space")).collect();
        first[10..20].iter().for_each(|run| a.release(*run));
        let again: Vec<Run> = (0..4).flat_map(|_| a.allocate(32).expect("space")).collect();
        assert_eq!(again, first[10..14], "in a row, where one tenth was free");
        assert_eq!(a.allocate(1).expect("space")[0].start, 3200, "small ones go on behind");
        first[..10].iter().for_each(|run| a.release(*run));
        let behind: Vec<Run> = (0..8).flat_map(|_| a.allocate(32).expect("space")).collect();
        assert_eq!(behind, [&first[14..20], &first[..2]].concat(), "from the end to the beginning");
        let more: Vec<Run> = (0..4).flat_map(|_| a.allocate(32).expect("space")).collect();
        assert!(more.iter().any(|run| run.start > 3200), "little is free there now: {more:?}");
    }

    #[test]
    fn writes_in_a_row_are_neighbours() {
        let mut a = Allocator::new(200_000);
        let first = a.allocate(1).expect("space")[0];
        let second = a.allocate(100).expect("space")[0];
        assert_eq!((first.end(), second.count), (second.start, 100));
        assert!(!a.take(Run { start: 100, count: 2 }), "sector 100 is taken, 101 is not");
        assert!(a.take(Run { start: 199_999, count: 1 }));
        assert!(!a.take(Run { start: 199_999, count: 2 }));
    }
}
