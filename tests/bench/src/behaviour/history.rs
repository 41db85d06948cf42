//! What a client saw, and when.

use std::time::{Duration, Instant};

use e2e::Distribution;
use serde::Serialize;

use crate::load::microseconds;

/// An operation that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// It was a write.
    pub write: bool,
    /// When it was due, which is when its time begins: an operation that waits for others to end waits too.
    pub due: Instant,
    /// When its answer came.
    pub at: Instant,
}

impl Answer {
    fn took(&self) -> Duration {
        self.at.saturating_duration_since(self.due)
    }
}

/// A time in which the client itself did not run though it wanted to: the machine, not the cluster, was slow.
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    /// Its end.
    pub at: Instant,
    /// How long it was.
    pub lasted: Duration,
}

/// All operations of a client.
#[derive(Debug, Default)]
pub struct History {
    pub answers: Vec<Answer>,
    pub pauses: Vec<Pause>,
}

/// Latencies of one kind of operation.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Latency {
    pub operations: usize,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

impl Latency {
    fn of(times: &Distribution) -> Self {
        Self {
            operations: times.count(),
            mean_us: microseconds(times.mean()),
            p50_us: microseconds(times.at(0.5)),
            p99_us: microseconds(times.at(0.99)),
            max_us: microseconds(times.max()),
        }
    }
}

/// What clients saw in a span of time.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Phase {
    /// What happened meanwhile.
    pub phase: String,
    pub seconds: f64,
    pub read: Latency,
    pub write: Latency,
    /// The longest time in which the client itself did not run.
    pub paused_us: f64,
}

impl History {
    /// Operations that were due in a span of time.
    pub fn phase(&self, phase: &str, from: Instant, to: Instant) -> Phase {
        let due = |write: bool| {
            let within =
                self.answers.iter().filter(move |answer| answer.write == write && (from..to).contains(&answer.due));
            Latency::of(&within.map(Answer::took).collect())
        };
        let seconds = to.saturating_duration_since(from).as_secs_f64();
        let paused_us = microseconds(self.longest_pause(from, to));
        Phase { phase: phase.into(), seconds, read: due(false), write: due(true), paused_us }
    }

    /// The longest pause of which a part lies in a span of time.
    pub fn longest_pause(&self, from: Instant, to: Instant) -> Duration {
        let touching = self.pauses.iter().filter(|pause| pause.at >= from && pause.at < to + pause.lasted);
        touching.map(|pause| pause.lasted).max().unwrap_or_default()
    }

    /// The longest operation that was answered in a span of time.
    pub fn longest_answered(&self, from: Instant, to: Instant) -> Duration {
        let within = self.answers.iter().filter(|answer| (from..to).contains(&answer.at));
        within.map(Answer::took).max().unwrap_or_default()
    }

    /// The longest operation of which a part lies in a span of time.
    pub fn longest(&self, from: Instant, to: Instant) -> Duration {
        let touching = self.answers.iter().filter(|answer| answer.due < to && answer.at >= from);
        touching.map(Answer::took).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_belong_to_the_phase_in_which_they_were_due_and_stall_all_that_they_touch() {
        let begin = Instant::now();
        let ms = |ms: u64| begin + Duration::from_millis(ms);
        let answer = |write, due, at| Answer { write, due: ms(due), at: ms(at) };
        let answers = vec![answer(false, 0, 1), answer(true, 5, 8), answer(true, 9, 40), answer(false, 20, 22)];
        let history = History { answers, pauses: vec![Pause { at: ms(15), lasted: Duration::from_millis(6) }] };
        let first = history.phase("first", ms(0), ms(10));
        assert_eq!((first.read.operations, first.write.operations, first.seconds), (1, 2, 0.01));
        assert_eq!((first.write.p50_us, first.write.mean_us, first.write.max_us), (3000.0, 17_000.0, 31_000.0));
        let second = history.phase("second", ms(10), ms(50));
        assert_eq!((second.read.operations, second.write.operations, second.write.max_us), (1, 0, 0.0));
        assert_eq!(history.longest(ms(10), ms(15)), Duration::from_millis(31));
        assert_eq!(history.longest(ms(0), ms(9)), Duration::from_millis(3));
        assert_eq!(history.longest_answered(ms(0), ms(30)), Duration::from_millis(3));
        assert_eq!(history.longest(ms(41), ms(50)), Duration::ZERO);
        assert_eq!((first.paused_us, second.paused_us), (6000.0, 6000.0));
        assert_eq!((history.longest_pause(ms(0), ms(9)), history.longest_pause(ms(16), ms(20))), Default::default());
    }
}
