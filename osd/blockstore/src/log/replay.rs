//! The reading end of the log: which blocks are part of it, where it ends, and which entries count. The rows of the
//! decision table in docs/disk.md are [`BlockFound`] and [`EntryFate`]; a crash-image test is named after each.

use std::collections::VecDeque;

use crate::extent::sector_count;
use crate::format::log::{BlockHead, Change, Kind, Lsn};

/// What a place of the ring holds, judged in order from the oldest block that is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockFound {
    /// The block expected: it is taken.
    Next,
    /// The first block after an earlier recovery: taken; entries from its first LSN on are void.
    NewGeneration,
    /// An older block that was not overwritten: the log ends before it.
    Stale,
    /// Nothing intact of this store: the log ends before it.
    Torn,
    /// A newer block in place of one that is still needed: damage.
    Overrun,
    /// Behind the end, a block that proves that entries before it were durable: damage.
    Missing,
    /// Behind the end, nothing of interest.
    Behind,
}

/// What becomes of an entry of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryFate {
    /// Already in its partition's checkpoint: skipped.
    Checkpointed,
    /// At or below a recorded durable LSN: executed.
    Confirmed,
    /// Above it, and its data is what its checksums say: executed.
    Verified,
    /// Above it, and its data is something else: the log is cut before it.
    DataMismatch,
    /// Above it, and its data cannot be read: refused.
    Unreadable,
    /// Its data could not be written and lies where a later entry says: judged there.
    Relocated,
    /// A later entry takes it back: skipped.
    Cancelled,
    /// Cut off by an earlier recovery: dropped.
    Voided,
    /// Goes on in a block that is not there: the log is cut before it.
    Truncated,
}

/// Why a log cannot be trusted: something that was durable is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDamage {
    /// A needed block was overwritten: a checkpoint that allowed it is unreadable.
    #[error("log block {0} is needed but was overwritten by a newer one; a checkpoint must be damaged")]
    Overrun(u64),
    /// Blocks behind the end prove that there was more.
    #[error("the log ends at block {end}, but block {found} proves that more was durable")]
    Missing {
        /// First block that is not there.
        end: u64,
        /// The witness.
        found: u64,
    },
    /// An intact block holds a senseless entry.
    #[error("log block {0} is intact but holds a damaged entry")]
    Entry(u64),
    /// Entries are not consecutive.
    #[error("the log goes on with entry {found} where {expected} is due", found = .found.0, expected = .expected.0)]
    Gap {
        /// What is due.
        expected: Lsn,
        /// What is there.
        found: Lsn,
    },
    /// The log ends before something that was durable.
    #[error("the log ends after entry {end}, but entry {durable} was durable", end = .end.0, durable = .durable.0)]
    Short {
        /// Last usable entry.
        end: Lsn,
        /// Known to have been durable.
        durable: Lsn,
    },
}

/// Where the checkpoints of one partition want replay to begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplayFrom {
    /// Block in which the entry after `lsn` starts.
    pub seq: u64,
    /// State of the checkpoint.
    pub lsn: Lsn,
    /// Blocks from `seq` on are of this generation or newer.
    pub generation: u32,
}

/// An entry that is not yet known to be durable.
#[derive(Clone, Debug)]
pub struct TailEntry {
    /// Its number.
    pub lsn: Lsn,
    /// What it does; relocations are already applied.
    pub change: Change,
    /// Taken back by a later entry.
    pub cancelled: bool,
    /// Its data was moved by a later entry.
    pub relocated: bool,
}

/// Reads blocks in order. Feed it, drain [`Replay::pop_confirmed`] after each block; when it [`Replay::is_done`], what is
/// left in [`Replay::tail`] must be verified.
pub struct Replay {
    store: [u8; 16],
    data_sectors: u64,
    /// Ascending by block: from there on, at least this generation.
    generations: Vec<(u64, u32)>,
    generation: u32,
    generation_max: u32,
    next_seq: u64,
    next_lsn: Lsn,
    synced: bool,
    stream: Vec<u8>,
    durable: Lsn,
    tail: VecDeque<TailEntry>,
    /// Set where the log ends.
    end_seq: Option<u64>,
    lookahead_left: u64,
}

impl Replay {
    /// Starts where the oldest checkpoint wants it. `lookahead` blocks behind the end are searched for proof of damage.
    pub fn new(store: [u8; 16], data_sectors: u64, checkpoints: &[ReplayFrom], lookahead: u64) -> Replay {
        let seq = checkpoints.iter().map(|c| c.seq).min().unwrap_or(0);
        let oldest = || checkpoints.iter().filter(|c| c.seq == seq);
        let from = ReplayFrom {
            seq,
            lsn: oldest().map(|c| c.lsn).min().unwrap_or_default(),
            generation: oldest().map(|c| c.generation).max().unwrap_or(0),
        };
        let mut generations: Vec<_> = checkpoints.iter().map(|c| (c.seq, c.generation)).collect();
        generations.sort_unstable();
        Replay {
            store,
            data_sectors,
            generation: from.generation,
            generation_max: checkpoints.iter().map(|c| c.generation).max().unwrap_or(0),
            generations,
            next_seq: seq,
            next_lsn: from.lsn.next(),
            synced: false,
            stream: Vec::new(),
            durable: Lsn(0),
            tail: VecDeque::new(),
            end_seq: None,
            lookahead_left: lookahead,
        }
    }

    /// Number of the block to be fed next.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Whether the end is found and the blocks behind it are searched.
    pub fn is_done(&self) -> bool {
        self.end_seq.is_some() && self.lookahead_left == 0
    }

    /// First block that is not part of the log: the next one to be written.
    pub fn end_seq(&self) -> u64 {
        self.end_seq.unwrap_or(self.next_seq)
    }

    /// Last entry that is complete.
    pub fn end_lsn(&self) -> Lsn {
        self.next_lsn.previous()
    }

    /// Highest LSN that a block records as durable.
    pub fn durable_lsn(&self) -> Lsn {
        self.durable
    }

    /// Highest generation seen anywhere.
    pub fn generation_max(&self) -> u32 {
        self.generation_max
    }

    /// Whether the last entry goes on in a block that is not there.
    pub fn is_truncated(&self) -> bool {
        !self.stream.is_empty()
    }

    /// Entries above the durable LSN.
    pub fn tail(&mut self) -> &mut VecDeque<TailEntry> {
        &mut self.tail
    }

    /// The next entry that is known to be durable.
    pub fn pop_confirmed(&mut self) -> Option<TailEntry> {
        if self.tail.front()?.lsn <= self.durable { self.tail.pop_front() } else { None }
    }

    /// Ends the log although more could follow: the ring has been read completely.
    pub fn finish(&mut self) {
        self.end_seq.get_or_insert(self.next_seq);
        self.lookahead_left = 0;
    }

    /// Takes the next place of the ring.
    pub fn feed(&mut self, block: &[u8]) -> Result<BlockFound, LogDamage> {
        let seq = self.next_seq;
        self.next_seq += 1;
        let decoded = BlockHead::decode(&self.store, block);
        if let Some((head, _)) = &decoded {
            self.generation_max = self.generation_max.max(head.generation);
        }
        match self.end_seq {
            None => self.feed_log(seq, decoded),
            Some(end) => self.feed_behind(seq, end, decoded.map(|(head, _)| head)),
        }
    }

    fn feed_log(&mut self, seq: u64, decoded: Option<(BlockHead, &[u8])>) -> Result<BlockFound, LogDamage> {
        let found = self.judge(seq, decoded.as_ref().map(|(head, _)| head));
        match (found, decoded) {
            (BlockFound::Next | BlockFound::NewGeneration, Some((head, payload))) => self.take(&head, payload)?,
            (BlockFound::Overrun, _) => return Err(LogDamage::Overrun(seq)),
            (BlockFound::Missing, _) => return Err(LogDamage::Missing { end: seq, found: seq }),
            _ => self.end_seq = Some(seq),
        }
        Ok(found)
    }

    fn judge(&self, seq: u64, head: Option<&BlockHead>) -> BlockFound {
        let Some(head) = head else { return BlockFound::Torn };
        let due = self.generations.iter().take_while(|g| g.0 <= seq).map(|g| g.1).max().unwrap_or(0);
        match head.seq.cmp(&seq) {
            std::cmp::Ordering::Greater => BlockFound::Overrun,
            std::cmp::Ordering::Less => BlockFound::Stale,
            _ if head.generation < due.max(self.generation) => BlockFound::Stale,
            _ if head.is_generation_start => BlockFound::NewGeneration,
            _ if head.generation > self.generation => BlockFound::Missing,
            _ => BlockFound::Next,
        }
    }

    fn feed_behind(&mut self, seq: u64, end: u64, head: Option<BlockHead>) -> Result<BlockFound, LogDamage> {
        self.lookahead_left = self.lookahead_left.saturating_sub(1);
        let Some(head) = head.filter(|h| h.seq == seq) else { return Ok(BlockFound::Behind) };
        let is_later = head.generation > self.generation;
        let is_proof = head.generation == self.generation && head.durable_lsn >= self.next_lsn;
        if is_later || is_proof {
            return Err(LogDamage::Missing { end, found: seq });
        }
        Ok(BlockFound::Behind)
    }

    fn take(&mut self, head: &BlockHead, payload: &[u8]) -> Result<(), LogDamage> {
        self.generation = head.generation;
        if head.is_generation_start {
            self.void_from(head.first_lsn)?;
        }
        let mut payload = payload;
        if !self.synced {
            let Some(start) = head.first_entry.map(usize::from).or(payload.is_empty().then_some(0)) else {
                self.durable = self.durable.max(head.durable_lsn);
                return Ok(());
            };
            if head.first_lsn > self.next_lsn {
                return Err(LogDamage::Gap { expected: self.next_lsn, found: head.first_lsn });
            }
            self.synced = true;
            self.next_lsn = head.first_lsn;
            payload = &payload[start..];
        }
        self.stream.extend_from_slice(payload);
        self.parse(head.seq)?;
        self.durable = self.durable.max(head.durable_lsn);
        Ok(())
    }

    /// An earlier recovery cut the log before `first`.
    fn void_from(&mut self, first: Lsn) -> Result<(), LogDamage> {
        self.stream.clear();
        if self.durable >= first {
            return Err(LogDamage::Short { end: first.previous(), durable: self.durable });
        }
        while self.tail.back().is_some_and(|e| e.lsn >= first) {
            self.tail.pop_back();
        }
        if self.synced && self.next_lsn < first {
            return Err(LogDamage::Gap { expected: self.next_lsn, found: first });
        }
        if self.synced {
            self.next_lsn = first;
        }
        Ok(())
    }

    fn parse(&mut self, seq: u64) -> Result<(), LogDamage> {
        let stream = std::mem::take(&mut self.stream);
        let mut at = 0;
        while let Some(len) = Change::len_of(&stream[at..]) {
            if len == 0 {
                return Err(LogDamage::Entry(seq));
            }
            let Some(bytes) = stream.get(at..at + len) else { break };
            let (lsn, change) = Change::decode(bytes, self.data_sectors).ok_or(LogDamage::Entry(seq))?;
            if lsn != self.next_lsn {
                return Err(LogDamage::Gap { expected: self.next_lsn, found: lsn });
            }
            self.next_lsn = lsn.next();
            self.resolve(&change).ok_or(LogDamage::Entry(seq))?;
            self.tail.push_back(TailEntry { lsn, change, cancelled: false, relocated: false });
            at += len;
        }
        self.stream = stream;
        self.stream.drain(..at);
        Ok(())
    }

    /// Entries about entries take effect when they are read, whatever becomes of them later: their block was part of
    /// the log when the entry they are about was acknowledged.
    fn resolve(&mut self, change: &Change) -> Option<()> {
        if !change.kind.is_about_entry() {
            return Some(());
        }
        // An entry that is not in the tail was in every checkpoint that replay began from.
        let Some(entry) = self.tail.iter_mut().rev().find(|e| e.lsn == change.target()) else { return Some(()) };
        if change.kind == Kind::Cancel {
            entry.cancelled = true;
            return Some(());
        }
        entry.relocated = true;
        entry.change.extents.clone_from(&change.extents);
        (sector_count(&change.extents) as usize == entry.change.crcs.len()).then_some(())
    }

    /// Whether the log may end after `end`: nothing durable may lie behind. `checkpoints` is the newest state of any
    /// checkpoint.
    pub fn check_end(&self, end: Lsn, checkpoints: Lsn) -> Result<(), LogDamage> {
        let durable = self.durable.max(checkpoints);
        if end < durable { Err(LogDamage::Short { end, durable }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{BLOCK, Geometry};
    use crate::log::append::LogTail;

    /// The block `seq` of a generation, with nothing in it.
    fn block(seq: u64, generation: u32, is_start: bool) -> Vec<u8> {
        let g = Geometry { log_blocks: 32, ..Geometry::default() };
        let mut tail = LogTail::new(&g, [1; 16], generation, seq, seq, Lsn(10));
        tail.mark(Lsn(9), is_start);
        let write = tail.next_write().expect("sealed");
        write.data[0].to_vec()
    }

    fn replay(checkpoints: &[(u64, u32)]) -> Replay {
        let from: Vec<_> =
            checkpoints.iter().map(|&(seq, generation)| ReplayFrom { seq, lsn: Lsn(9), generation }).collect();
        Replay::new([1; 16], 100, &from, 8)
    }

    #[test]
    fn a_checkpoint_makes_older_generations_stale_from_its_block_on() {
        let mut r = replay(&[(0, 1), (2, 3)]);
        assert_eq!(r.feed(&block(0, 1, false)), Ok(BlockFound::Next));
        assert_eq!(r.feed(&block(1, 1, false)), Ok(BlockFound::Next));
        assert_eq!(r.feed(&block(2, 1, false)), Ok(BlockFound::Stale));
        assert_eq!((r.end_seq(), r.generation_max()), (2, 3));
        let mut r = replay(&[(0, 1), (2, 3)]);
        assert_eq!(r.feed(&block(0, 1, false)), Ok(BlockFound::Next));
        assert_eq!(r.feed(&block(1, 2, true)), Ok(BlockFound::NewGeneration));
        assert_eq!(r.feed(&block(2, 3, true)), Ok(BlockFound::NewGeneration));
    }

    #[test]
    fn a_newer_generation_without_its_start_is_damage() {
        let mut r = replay(&[(0, 1)]);
        assert_eq!(r.feed(&block(0, 1, false)), Ok(BlockFound::Next));
        assert_eq!(r.feed(&block(1, 2, false)), Err(LogDamage::Missing { end: 1, found: 1 }));
        let mut r = replay(&[(0, 1)]);
        assert_eq!(r.feed(&vec![0; BLOCK as usize]), Ok(BlockFound::Torn));
        assert_eq!(r.feed(&block(1, 2, false)), Err(LogDamage::Missing { end: 0, found: 1 }));
    }

    #[test]
    fn old_blocks_behind_the_end_mean_nothing() {
        let mut r = replay(&[(0, 2)]);
        assert_eq!(r.feed(&block(0, 1, false)), Ok(BlockFound::Stale));
        for seq in 1..9 {
            assert_eq!(r.feed(&block(seq, 1, false)), Ok(BlockFound::Behind));
        }
        assert!(r.is_done() && r.end_lsn() == Lsn(9));
    }
}
