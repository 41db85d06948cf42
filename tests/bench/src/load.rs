//! A load on any target: so many operations in flight, for so long, and what came of it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use buffer::{Buffer, BufferMut};
use e2e::{Distribution, Random};

use crate::cpu;

/// How long a target may take to answer before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// One row of the matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// Name in the table.
    pub name: &'static str,
    /// Writes instead of reads.
    pub write: bool,
    /// Bytes per operation.
    pub bytes: u32,
    /// Operations in flight.
    pub depth: usize,
    /// Ascending offsets instead of random ones.
    pub sequential: bool,
}

/// An operation to start.
#[derive(Clone, Copy, Debug)]
pub struct Io {
    /// Place among the operations in flight.
    pub slot: usize,
    /// Writes instead of reads.
    pub write: bool,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// Something that carries out operations.
pub trait Target {
    /// Queues an operation.
    fn start(&mut self, io: Io);
    /// Sends what is queued, waits for answers or the time, and adds the slots that are done. May return before either.
    ///
    /// # Errors
    /// The target failed an operation or went away.
    fn turn(&mut self, until: Instant, done: &mut Vec<usize>) -> Result<()>;
}

/// What came of a load.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Operations.
    pub count: u64,
    /// Wall time.
    pub elapsed: Duration,
    /// How long each took.
    pub latencies: Distribution,
    /// CPU time of the thread that made the load, nanoseconds.
    pub own_cpu: u64,
}

impl Sample {
    /// Operations per second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }

    /// Latency that a share of the operations did not exceed, microseconds.
    pub fn latency_us(&self, share: f64) -> f64 {
        microseconds(self.latencies.at(share))
    }

    /// Mean latency, microseconds.
    pub fn mean_us(&self) -> f64 {
        microseconds(self.latencies.mean())
    }
}

/// A time as a number.
pub fn microseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

/// The middle one of some values, 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Offsets of a case.
struct Offsets {
    case: Case,
    blocks: u64,
    next: u64,
    random: Random,
}

impl Offsets {
    /// Within `size` bytes.
    fn new(case: Case, size: u64) -> Self {
        Self { case, blocks: size / u64::from(case.bytes), next: 0, random: Random::new(1) }
    }

    fn next(&mut self) -> u64 {
        let block = if self.case.sequential {
            self.next += 1;
            self.next % self.blocks
        } else {
            self.random.below(self.blocks)
        };
        block * u64::from(self.case.bytes)
    }
}

/// Keeps `case.depth` operations in flight for `time`, over an image of `size` bytes.
///
/// # Errors
/// The target failed, or does not answer.
pub fn run(target: &mut impl Target, case: Case, size: u64, time: Duration) -> Result<Sample> {
    let mut offsets = Offsets::new(case, size);
    let mut io = |slot| Io { slot, write: case.write, offset: offsets.next(), len: case.bytes };
    let mut started = vec![Instant::now(); case.depth];
    // Written to before anything is measured: the system takes its time to find memory.
    let mut latencies = vec![Duration::MAX; 1 << 20];
    latencies.clear();
    let mut done = Vec::with_capacity(case.depth);
    let (begin, cpu) = (Instant::now(), cpu::own_thread());
    let end = begin + time;
    let mut in_flight = case.depth;
    for (slot, at) in started.iter_mut().enumerate() {
        *at = Instant::now();
        target.start(io(slot));
    }
    while in_flight > 0 {
        target.turn(end + PATIENCE, &mut done)?;
        let now = Instant::now();
        if now > end + PATIENCE {
            bail!("{in_flight} operations were not answered");
        }
        for slot in done.drain(..) {
            latencies.push(now - started[slot]);
            if now < end {
                started[slot] = now;
                target.start(io(slot));
            } else {
                in_flight -= 1;
            }
        }
    }
    let (elapsed, own_cpu) = (begin.elapsed(), cpu::own_thread() - cpu);
    Ok(Sample { count: latencies.len() as u64, elapsed, latencies: latencies.into_iter().collect(), own_cpu })
}

/// A part of an image: its first byte, and how many there are.
pub type Piece = (u64, u32);

/// Pieces of 1 MiB that make up an image.
pub fn whole(size: u64) -> impl Iterator<Item = Piece> {
    (0..size >> 20).map(|block| (block << 20, 1 << 20))
}

/// Slots for operations of [`write_pieces`]: more than any depth, so that one that is used again is free.
const SLOTS: usize = 4096;

/// Writes each of the pieces, up to `depth` at once.
///
/// # Errors
/// The target failed, or does not answer.
pub fn write_pieces(target: &mut impl Target, depth: usize, pieces: impl IntoIterator<Item = Piece>) -> Result<()> {
    let mut pieces = pieces.into_iter().enumerate().peekable();
    let mut done = Vec::new();
    let mut in_flight = 0;
    let mut limit = Instant::now() + PATIENCE;
    while in_flight > 0 || pieces.peek().is_some() {
        while in_flight < depth
            && let Some((number, (offset, len))) = pieces.next()
        {
            target.start(Io { slot: number % SLOTS, write: true, offset, len });
            in_flight += 1;
        }
        target.turn(limit, &mut done)?;
        let now = Instant::now();
        if !done.is_empty() {
            limit = now + PATIENCE;
        } else if now > limit {
            bail!("{in_flight} writes were not answered");
        }
        in_flight -= done.drain(..).count();
    }
    Ok(())
}

/// Bytes that do not compress or repeat: the largest operation there is.
pub fn payload() -> Buffer {
    let mut data = BufferMut::for_overwrite(4 << 20);
    let mut random = Random::new(2);
    for word in data.chunks_exact_mut(8) {
        word.copy_from_slice(&random.number().to_le_bytes());
    }
    data.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers everything at the next turn, in reverse.
    #[derive(Default)]
    struct Mirror {
        waiting: Vec<Io>,
        seen: Vec<Piece>,
        deepest: usize,
    }

    impl Target for Mirror {
        fn start(&mut self, io: Io) {
            self.waiting.push(io);
            self.seen.push((io.offset, io.len));
            self.deepest = self.deepest.max(self.waiting.len());
        }

        fn turn(&mut self, _: Instant, done: &mut Vec<usize>) -> Result<()> {
            done.extend(self.waiting.drain(..).rev().map(|io| io.slot));
            Ok(())
        }
    }

    #[test]
    fn each_piece_is_written_once_so_many_at_a_time() {
        let mut mirror = Mirror::default();
        write_pieces(&mut mirror, 8, whole(100 << 20)).expect("it is written");
        assert_eq!((mirror.seen, mirror.deepest), (whole(100 << 20).collect::<Vec<_>>(), 8));
    }

    #[test]
    fn a_load_stays_inside_its_image_and_keeps_its_depth() {
        for sequential in [false, true] {
            let case = Case { name: "x", write: true, bytes: 4096, depth: 16, sequential };
            let mut mirror = Mirror::default();
            let sample = run(&mut mirror, case, 40 << 12, Duration::from_millis(5)).expect("it runs");
            assert_eq!((sample.count as usize, mirror.deepest), (mirror.seen.len(), 16));
            let mut blocks: Vec<_> = mirror.seen.iter().map(|(offset, _)| offset / 4096).collect();
            assert!(mirror.seen.iter().all(|(offset, _)| offset % 4096 == 0 && *offset < 40 << 12));
            blocks.sort_unstable();
            blocks.dedup();
            assert_eq!(blocks.len(), 40, "all of it is used");
        }
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![7.0]), median(Vec::new())), (2.0, 7.0, 0.0));
    }
}
