//! A client that watches: it asks for something at fixed times, whether or not it has been answered, and notes how long it waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use e2e::Random;

use super::Setting;
use super::history::{Answer, History, Pause};
use crate::library::Library;
use crate::load::{self, Io, Target};

/// Most operations in flight. What is due while there are so many is late, which counts.
const DEPTH_MAX: usize = 256;

/// Bytes of each operation.
const BYTES: u32 = 4096;

/// What it runs late is a pause from here on.
const PAUSE_MIN: Duration = Duration::from_millis(2);

/// How long the cluster may leave it without an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client in a thread of its own.
pub struct Client {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<History>>,
}

impl Client {
    /// Starts one on an image of `size` bytes.
    pub fn start(setting: &Setting<'_>, etcd: &str, image: &'static str, size: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, runtime, etcd, pace) = (stop.clone(), setting.runtime.clone(), etcd.to_owned(), setting.pace());
        let thread = thread::spawn(move || {
            let mut library = Library::open(&runtime, &etcd, image, load::payload())?;
            watch(&mut library, size, pace, &stopped)
        });
        Self { stop, thread }
    }

    /// Stops it. What it has asked for is answered first.
    ///
    /// # Errors
    /// An operation failed, or was not answered.
    pub fn stop(self) -> Result<History> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the client panicked"))?
    }
}

/// Operations that are due, one after the other, at random places, half of them writes.
struct Schedule {
    next: Instant,
    pace: Duration,
    blocks: u64,
    random: Random,
}

impl Schedule {
    /// The next operation and when it is due, if that is not later than `now`.
    fn take(&mut self, now: Instant, slot: usize) -> Option<(Io, Instant)> {
        let due = Some(self.next).filter(|due| *due <= now)?;
        self.next += self.pace;
        let offset = self.random.below(self.blocks) * u64::from(BYTES);
        Some((Io { slot, write: self.random.percent(50), offset, len: BYTES }, due))
    }
}

fn watch(target: &mut impl Target, size: u64, pace: Duration, stop: &AtomicBool) -> Result<History> {
    let blocks = (size / u64::from(BYTES)).max(1);
    let mut schedule = Schedule { next: Instant::now(), pace, blocks, random: Random::new(3) };
    let mut free: Vec<usize> = (0..DEPTH_MAX).collect();
    let mut in_flight = vec![(false, Instant::now()); DEPTH_MAX];
    let (mut history, mut done, mut limit) = (History::default(), Vec::new(), Instant::now() + PATIENCE);
    loop {
        let (now, stopped) = (Instant::now(), stop.load(Ordering::Relaxed));
        while !stopped
            && let Some(slot) = free.last().copied()
            && let Some((io, due)) = schedule.take(now, slot)
        {
            free.pop();
            in_flight[slot] = (io.write, due);
            target.start(io);
        }
        if stopped && free.len() == DEPTH_MAX {
            return Ok(history);
        }
        let wait = if stopped || free.is_empty() { now + Duration::from_millis(100) } else { schedule.next };
        target.turn(wait, &mut done)?;
        let at = Instant::now();
        let lasted = at.saturating_duration_since(wait.max(now));
        if lasted >= PAUSE_MIN {
            history.pauses.push(Pause { at, lasted });
        }
        if !done.is_empty() || free.len() == DEPTH_MAX {
            limit = at + PATIENCE;
        } else if at > limit {
            bail!("the cluster does not answer");
        }
        for slot in done.drain(..) {
            let (write, due) = in_flight[slot];
            history.answers.push(Answer { write, due, at });
            free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers nothing from 20 ms to 60 ms after its start, and everything at once at other times.
    struct Stalling {
        begin: Instant,
        waiting: Vec<usize>,
        deepest: usize,
        answered: usize,
        stop: Arc<AtomicBool>,
    }

    impl Target for Stalling {
        fn start(&mut self, io: Io) {
            self.waiting.push(io.slot);
            self.deepest = self.deepest.max(self.waiting.len());
        }

        fn turn(&mut self, until: Instant, done: &mut Vec<usize>) -> Result<()> {
            let stalled = (20..60).contains(&self.begin.elapsed().as_millis());
            if stalled || self.waiting.is_empty() {
                let longest = Duration::from_millis(1);
                thread::sleep(until.saturating_duration_since(Instant::now()).min(longest));
            }
            if !stalled {
                self.answered += self.waiting.len();
                done.append(&mut self.waiting);
            }
            // Counted, not timed: on a busy machine all comes later, but it comes.
            self.stop.store(self.answered >= 2000, Ordering::Relaxed);
            Ok(())
        }
    }

    #[test]
    fn a_stall_is_seen_as_long_as_it_is_by_all_who_should_have_asked_meanwhile() {
        let begin = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let mut target = Stalling { begin, waiting: Vec::new(), deepest: 0, answered: 0, stop: stop.clone() };
        let history = watch(&mut target, 1 << 20, Duration::from_micros(50), &stop).expect("it is answered");
        let ms = |ms: u64| begin + Duration::from_millis(ms);
        // 20 operations are due each millisecond, so there is no room for most of those of 40 ms.
        assert_eq!(target.deepest, DEPTH_MAX);
        let longest = history.longest(ms(20), ms(60));
        assert!(longest >= Duration::from_millis(38), "{longest:?}");
        let stall = history.phase("stall", ms(20), ms(58));
        assert!(stall.read.operations + stall.write.operations >= 700, "{stall:?}");
        assert!(stall.read.p50_us >= 10_000.0 && stall.write.p50_us >= 10_000.0, "{stall:?}");
    }
}
