//! A load on any target: so many operations in flight, for so long, and what came of it.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cpu;

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
    /// Sends what is queued, waits for an answer or the time, and adds the slots that are done.
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
    /// Latencies, ascending, nanoseconds.
    pub latencies: Vec<u64>,
    /// CPU time of the thread that made the load, nanoseconds.
    pub own_cpu: u64,
}

impl Sample {
    /// Operations per second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }

    /// Latency at a quantile, microseconds.
    pub fn latency_us(&self, quantile: f64) -> f64 {
        let at = ((self.latencies.len() as f64 - 1.0) * quantile) as usize;
        self.latencies.get(at).map_or(0.0, |ns| *ns as f64 / 1000.0)
    }

    /// Mean latency, microseconds.
    pub fn mean_us(&self) -> f64 {
        self.latencies.iter().sum::<u64>() as f64 / self.latencies.len().max(1) as f64 / 1000.0
    }
}

/// Offsets of a case within `size` bytes.
struct Offsets {
    case: Case,
    blocks: u64,
    next: u64,
    state: u64,
}

impl Offsets {
    fn next(&mut self) -> u64 {
        let block = if self.case.sequential {
            self.next += 1;
            self.next % self.blocks
        } else {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            self.state % self.blocks
        };
        block * u64::from(self.case.bytes)
    }
}

/// Keeps `case.depth` operations in flight for `time`, over an image of `size` bytes.
///
/// # Errors
/// The target failed.
pub fn run(target: &mut impl Target, case: Case, size: u64, time: Duration) -> Result<Sample> {
    let mut offsets = Offsets { case, blocks: size / u64::from(case.bytes), next: 0, state: 0x9e37_79b9_7f4a_7c15 };
    let mut io = |slot| Io { slot, write: case.write, offset: offsets.next(), len: case.bytes };
    let mut started = vec![Instant::now(); case.depth];
    let mut latencies = Vec::with_capacity(1 << 20);
    let mut done = Vec::with_capacity(case.depth);
    let (begin, cpu) = (Instant::now(), cpu::own_thread());
    let end = begin + time;
    let mut in_flight = case.depth;
    for (slot, at) in started.iter_mut().enumerate() {
        *at = Instant::now();
        target.start(io(slot));
    }
    while in_flight > 0 {
        target.turn(end + Duration::from_secs(30), &mut done)?;
        let now = Instant::now();
        for slot in done.drain(..) {
            latencies.push((now - started[slot]).as_nanos() as u64);
            if now < end {
                started[slot] = now;
                target.start(io(slot));
            } else {
                in_flight -= 1;
            }
        }
    }
    let (elapsed, own_cpu) = (begin.elapsed(), cpu::own_thread() - cpu);
    latencies.sort_unstable();
    Ok(Sample { count: latencies.len() as u64, elapsed, latencies, own_cpu })
}
