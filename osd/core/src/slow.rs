//! The log of slow operations: what took longer than a setting, and where the time went.
//!
//! A client's request is always in one of the [`Cause`]s, and every microsecond from its arrival to its answer is counted to one. It is
//! told of when it ends, and once before if it is held for [`HELD_US`]. What this OSD does for other primaries is told of when it ends. Few lines
//! are written when many operations are slow at once; the others are counted.

use std::fmt::Write;

use cluster_proto::PgId;
use cluster_proto::ids::OsdId;
use cluster_proto::link::Millis;

use crate::latency::OpClass;
use crate::op::{ClientOp, Kind, Local, Op, bits};
use crate::osd::{Osd, Output};

/// An operation that is held for so long is told of before it ends.
const HELD_US: u64 = 5_000_000;
/// How often operations that are held are looked at. Milliseconds.
const LOOK_MS: Millis = 1_000;
/// So many lines are written in each window; more are counted.
const LINES: u32 = 10;
/// Milliseconds.
const WINDOW_MS: Millis = 10_000;

/// What a request spends its time on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    /// The PG does not serve it at the moment.
    Pg,
    /// An overlapping request is before it.
    Blocked,
    /// Its object has to be brought to members that lack it first.
    Recovery,
    /// Stores work for it: the own one, or those of members.
    Stores,
}

const CAUSES: [Cause; 4] = [Cause::Pg, Cause::Blocked, Cause::Recovery, Cause::Stores];

impl Cause {
    fn words(self) -> &'static str {
        match self {
            Cause::Pg => "waiting for the placement group",
            Cause::Blocked => "behind other requests",
            Cause::Recovery => "waiting for recovery",
            Cause::Stores => "at the stores",
        }
    }
}

/// Whose answer took long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answerer {
    Own,
    Osd(OsdId),
}

/// Where the time of a request went so far. Microseconds on the clock of [`Osd::handle_clock`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trace {
    began: u64,
    since: u64,
    cause: Cause,
    spent: [u64; CAUSES.len()],
    slowest: Option<(Answerer, u64)>,
    is_told: bool,
}

impl Trace {
    pub fn new(now: u64) -> Self {
        Self { began: now, since: now, cause: Cause::Pg, spent: [0; CAUSES.len()], slowest: None, is_told: false }
    }

    /// From now on the time goes there.
    pub fn enter(&mut self, now: u64, cause: Cause) {
        self.spent[self.cause as usize] += now - self.since;
        (self.since, self.cause) = (now, cause);
    }

    /// A store answered after so long.
    pub fn answered(&mut self, by: Answerer, took: u64) {
        if self.slowest.is_none_or(|(_, slowest)| slowest < took) {
            self.slowest = Some((by, took));
        }
    }

    pub fn took(&self, now: u64) -> u64 {
        now - self.began
    }

    /// Where the time went, the most of it first. What is not worth a millisecond is left out.
    fn words(mut self, now: u64) -> String {
        self.enter(now, self.cause);
        debug_assert_eq!(self.spent.iter().sum::<u64>(), self.took(now), "all time is counted once");
        let mut parts = CAUSES;
        parts.sort_by_key(|cause| std::cmp::Reverse(self.spent[*cause as usize]));
        let mut text = String::new();
        for cause in parts.into_iter().filter(|cause| self.spent[*cause as usize] >= 1_000) {
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(text, "{comma}{} {}", seconds(self.spent[cause as usize]), cause.words());
            if let Some((by, took)) = self.slowest.filter(|(_, took)| cause == Cause::Stores && *took >= 1_000) {
                let _ = match by {
                    Answerer::Own => write!(text, " (slowest: the own one, {})", seconds(took)),
                    Answerer::Osd(osd) => write!(text, " (slowest: osd {osd}, {})", seconds(took)),
                };
            }
        }
        text
    }
}

fn seconds(us: u64) -> String {
    format!("{:.3} s", us as f64 / 1e6)
}

/// Which operations are told of.
pub(crate) struct SlowLog {
    limit_us: u64,
    look_at: Millis,
    window_ends: Millis,
    written: u32,
    suppressed: u64,
}

impl SlowLog {
    /// `limit_ms`: what takes so long is slow; 0: nothing is.
    pub fn new(limit_ms: Millis) -> Self {
        let limit_us = if limit_ms == 0 { u64::MAX } else { limit_ms.saturating_mul(1_000) };
        Self { limit_us, look_at: 0, window_ends: 0, written: 0, suppressed: 0 }
    }

    pub fn is_slow(&self, took_us: u64) -> bool {
        took_us >= self.limit_us
    }

    /// Whether a line may be written. If not, it is counted.
    fn admit(&mut self) -> bool {
        self.written += 1;
        self.suppressed += u64::from(self.written > LINES);
        self.written <= LINES
    }

    /// The time is `now`. Returns how many lines were left out in a window that has ended.
    fn tick(&mut self, now: Millis) -> u64 {
        if now < self.window_ends {
            return 0;
        }
        self.window_ends = now + WINDOW_MS;
        self.written = 0;
        std::mem::take(&mut self.suppressed)
    }
}

/// What a request is, for people.
fn name_of(pg: PgId, op: &ClientOp) -> String {
    let class = OpClass::of_request(&op.request.op).name();
    let (object, client, seq) = (op.request.object, op.client.0, op.request.seq);
    let sectors = op.request.op.sectors().map_or_else(String::new, |s| format!(" of {} KiB", s.bytes() / 1024));
    match op.request.op {
        cluster_proto::wire::RequestOp::Sync => format!("pg={pg} op={client:x}:{seq} sync"),
        _ => format!("pg={pg} obj={object} op={client:x}:{seq} {class}{sectors}"),
    }
}

impl Osd {
    /// A client's request has ended.
    pub(crate) fn slow_request(&mut self, pg: PgId, op: &ClientOp) {
        if self.slow.admit() {
            let (took, name) = (seconds(op.trace.took(self.now_us)), name_of(pg, op));
            let text = format!("{name} was slow: {took}, {}", op.trace.words(self.now_us));
            self.outputs.push_back(Output::Warning(text));
        }
    }

    /// What a primary asked of us has ended.
    pub(crate) fn slow_secondary(&mut self, pg: PgId, class: OpClass, took: u64) {
        if self.slow.admit() {
            let text = format!("pg={pg} {} for its primary was slow: {} at the own store", class.name(), seconds(took));
            self.outputs.push_back(Output::Warning(text));
        }
    }

    /// Tells of what has been held for long, and how much was not told of.
    pub(crate) fn poll_slow(&mut self, now: Millis) {
        let untold = self.slow.tick(now);
        if untold > 0 {
            self.outputs.push_back(Output::Warning(format!("{untold} more slow operations are not shown")));
        }
        if self.slow.look_at > now || self.slow.limit_us == u64::MAX {
            return;
        }
        self.slow.look_at = now + LOOK_MS;
        let Self { ops, slow, now_us, pgs, outputs, .. } = self;
        let held_us = HELD_US.max(slow.limit_us);
        for (_, op) in ops.iter_mut() {
            let Kind::Client(client_op) = &mut op.kind else { continue };
            let is_due = client_op.trace.took(*now_us) >= held_us;
            if !is_due || std::mem::replace(&mut client_op.trace.is_told, true) || !slow.admit() {
                continue;
            }
            let (trace, name) = (client_op.trace, name_of(op.pg, client_op));
            let (took, words) = (seconds(trace.took(*now_us)), trace.words(*now_us));
            let peers = pgs.get(&op.pg).map(|pg| pg.peers()).unwrap_or_default();
            let at = match trace.cause {
                Cause::Stores => awaited(op, |peer| peers.get(peer).map(|peer| peer.osd)),
                other => other.words().into(),
            };
            outputs.push_back(Output::Warning(format!("{name} is held: {took}, {words}; now {at}")));
        }
    }
}

/// Whose answers an operation waits for.
fn awaited(op: &Op, osd_at: impl Fn(usize) -> Option<OsdId>) -> String {
    let own = (op.local != Local::None).then(|| "the own store".to_owned());
    let others = bits(op.remotes).filter_map(osd_at).map(|osd| format!("osd {osd}"));
    let all: Vec<String> = own.into_iter().chain(others).collect();
    format!("waiting for {}", if all.is_empty() { "nobody".into() } else { all.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_microsecond_is_counted_to_one_cause() {
        let mut trace = Trace::new(1_000);
        trace.enter(1_000, Cause::Blocked);
        trace.enter(301_000, Cause::Recovery);
        trace.enter(301_500, Cause::Stores);
        trace.answered(Answerer::Own, 400);
        trace.answered(Answerer::Osd(OsdId(3)), 1_100_000);
        trace.answered(Answerer::Osd(OsdId(2)), 900_000);
        assert_eq!(trace.took(1_401_500), 1_400_500);
        let words = trace.words(1_401_500);
        assert_eq!(words, "1.100 s at the stores (slowest: osd 3, 1.100 s), 0.300 s behind other requests");
    }

    #[test]
    fn many_lines_become_a_number() {
        let mut log = SlowLog::new(1_000);
        assert!(!log.is_slow(999_999) && log.is_slow(1_000_000));
        assert_eq!(log.tick(5), 0);
        let written = (0..25).filter(|_| log.admit()).count();
        assert_eq!((written, log.tick(10_004)), (LINES as usize, 0));
        assert_eq!((log.tick(10_005), log.admit()), (15, true));
        assert_eq!(log.tick(30_000), 0);
        assert!(!SlowLog::new(0).is_slow(u64::MAX - 1));
    }
}
