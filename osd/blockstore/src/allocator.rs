//! Free sectors of the data area: a bitmap under a tree of summary bits. Small writes go to the next free sectors, so that those of a moment
//! lie together and become one device write. Large ones take up space again that was used before, if there is much of it: a sparse file
//! stays smaller, and memory that a file already has is cheaper than new.

use std::collections::VecDeque;

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

/// Runs between the one that is taken and the one whose word is fetched, when all are taken.
const FETCHED_AHEAD: usize = 16;
/// Sectors of a large write.
const LARGE: u32 = 16;
/// Used space is taken up again while one sector in so many of it is free.
const REUSABLE_SHARE: u64 = 16;

impl Allocator {
    /// All of `sectors` free.
    pub fn new(sectors: u64) -> Allocator {
        Allocator {
            levels: with_summaries(full_level(sectors)),
            sectors,
            free: sectors,
            cursor: 0,
            reuse: 0,
            reached: 0,
        }
    }

    /// All of `sectors` free but those of `used`.
    ///
    /// # Errors
    /// A run of which a sector does not exist or has been used before.
    pub fn without(sectors: u64, used: impl Iterator<Item = Run>) -> Result<Allocator, Run> {
        let mut bits = full_level(sectors);
        let (mut free, mut reached) = (sectors, 0);
        // Runs in no order: the words of those that follow are fetched meanwhile.
        let (mut used, mut ahead) = (used, VecDeque::with_capacity(FETCHED_AHEAD));
        loop {
            while ahead.len() < FETCHED_AHEAD
                && let Some(run) = used.next()
            {
                bits.get((run.start / 64) as usize).into_iter().for_each(prefetch);
                ahead.push_back(run);
            }
            let Some(run) = ahead.pop_front() else { break };
            if run.end() > sectors {
                return Err(run);
            }
            for (word, mask) in words_of(run) {
                if bits[word] & mask != mask {
                    return Err(run);
                }
                bits[word] &= !mask;
            }
            free -= u64::from(run.count);
            reached = reached.max(run.end());
        }
        Ok(Allocator { levels: with_summaries(bits), sectors, cursor: 0, free, reuse: 0, reached })
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
        words_of(run).for_each(|(word, mask)| self.edit_word(word, mask, free));
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

/// The words in which a run lies, with its bits.
fn words_of(run: Run) -> impl Iterator<Item = (usize, u64)> {
    let mut at = run.start;
    std::iter::from_fn(move || {
        let (bit, count) = (at % 64, (64 - at % 64).min(run.end() - at));
        let found = (count > 0).then(|| ((at / 64) as usize, (u64::MAX >> (64 - count)) << bit));
        at += count;
        found
    })
}

/// The levels above `bits`.
fn with_summaries(bits: Vec<u64>) -> Vec<Vec<u64>> {
    let mut levels = vec![bits];
    while levels[levels.len() - 1].len() > 1 {
        let below = &levels[levels.len() - 1];
        let summary = |words: &[u64]| words.iter().rev().fold(0, |bits, word| bits << 1 | u64::from(*word != 0));
        levels.push(below.chunks(64).map(summary).collect());
    }
    levels
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
    fn what_is_used_from_the_start_is_as_if_taken() {
        let runs = |all: &[(u64, u32)]| all.iter().map(|&(start, count)| Run { start, count }).collect::<Vec<_>>();
        let used = runs(&[(9_000, 1), (60, 200), (0, 1), (64 * 64, 64 * 64 + 3), (2, 5)]);
        let mut taken = Allocator::new(10_000);
        assert!(used.iter().all(|run| taken.take(*run)));
        let without = Allocator::without(10_000, used.iter().copied()).expect("each sector once");
        assert_eq!((without.levels, without.free, without.reached), (taken.levels, taken.free, taken.reached));
        for wrong in [(9_999, 2), (100, 1), (4_095, 2), (8_000, 900)] {
            let wrong = Run { start: wrong.0, count: wrong.1 };
            let found = Allocator::without(10_000, used.iter().copied().chain([wrong]));
            assert_eq!(found.err(), Some(wrong));
        }
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
