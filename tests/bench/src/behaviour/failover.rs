//! How long clients wait when an OSD dies or hangs.
//!
//! OSDs fail in turn; each is the primary of its share of the placement groups, and the client asks all over the image, so each
//! time it meets some whose primary is gone.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::{Distribution, Fleet};
use serde::Serialize;

use super::Setting;
use super::client::Client;
use super::history::History;
use crate::cluster::{self, IMAGE};
use crate::load;
use crate::scheme::Scheme;

/// Size of the image. Bytes.
const IMAGE_BYTES: u64 = 256 << 20;
/// Size of each OSD's file. Bytes.
const OSD_BYTES: u64 = 512 << 20;
/// How long all is left alone before something fails, and after the others serve.
const CALM: Duration = Duration::from_millis(500);
/// Upper ends of the histogram's ranges. Milliseconds.
const ENDS_MS: [u64; 13] = [50, 100, 200, 300, 400, 600, 800, 1000, 1500, 2000, 3000, 4000, 8000];

/// How an OSD fails, and how it comes back.
#[derive(Clone, Copy)]
struct Failure {
    name: &'static str,
    fail: fn(&mut Fleet, u32),
    mend: fn(&mut Fleet, u32),
}

const KILL: Failure = Failure {
    name: "kill -9",
    fail: |fleet, id| fleet.kill(&format!("osd.{id}")),
    mend: |fleet, id| drop(fleet.start_osd(id)),
};

const HANG: Failure = Failure {
    name: "SIGSTOP",
    fail: |fleet, id| fleet.daemon(&format!("osd.{id}")).signal("STOP"),
    mend: |fleet, id| fleet.daemon(&format!("osd.{id}")).signal("CONT"),
};

/// What clients saw of a kind of failure.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Failover {
    pub scheme: String,
    pub failure: &'static str,
    pub times: usize,
    /// Of the longest operation of each time.
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// How often the longest operation took so long; the last is what took longer than all.
    pub histogram: Vec<Range>,
    /// The longest operation of each time, in order.
    pub stalls_ms: Vec<f64>,
    /// The longest time in which the client itself did not run, each time: the part of the machine in that.
    pub paused_ms: Vec<f64>,
    /// The longest operation just before each time.
    pub calm_ms: Vec<f64>,
    /// The longest operation while the OSD came back.
    pub return_ms: Vec<f64>,
}

/// A range of the histogram.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Range {
    /// Upper end; `null` for what is longer.
    pub up_to_ms: Option<u64>,
    pub count: usize,
}

/// One failure.
struct Round {
    calm: Instant,
    failed: Instant,
    served: Instant,
    whole: Instant,
}

/// Measures kills and hangs for each scheme.
///
/// # Errors
/// The cluster failed an operation.
pub fn measure(setting: &Setting<'_>) -> Result<Vec<Failover>> {
    let mut failovers = Vec::new();
    for &scheme in &setting.options.schemes {
        let mut fleet = cluster::fleet(setting.dir, scheme.osds().into(), OSD_BYTES)?;
        let pool = scheme.forgiving_options();
        fleet.create(IMAGE, &IMAGE_BYTES.to_string(), &pool.iter().map(String::as_str).collect::<Vec<_>>());
        load::write_pieces(&mut setting.open(&fleet.etcd.endpoint(), IMAGE)?, 8, load::whole(IMAGE_BYTES))?;
        for (failure, times) in [(KILL, setting.options.kills), (HANG, setting.options.hangs)] {
            if times > 0 {
                failovers.push(fail(setting, &mut fleet, scheme, failure, times)?);
            }
        }
    }
    Ok(failovers)
}

fn fail(setting: &Setting<'_>, fleet: &mut Fleet, scheme: Scheme, failure: Failure, times: u32) -> Result<Failover> {
    let osds = u32::from(scheme.osds());
    let client = Client::start(setting, &fleet.etcd.endpoint(), IMAGE, IMAGE_BYTES);
    sleep(CALM);
    let mut rounds = Vec::new();
    for number in 0..times {
        let id = number % osds + 1;
        eprintln!("{scheme}: {} of OSD {id}, {} of {times}", failure.name, number + 1);
        let calm = Instant::now();
        sleep(CALM);
        let failed = Instant::now();
        (failure.fail)(fleet, id);
        fleet.wait_degraded(60, osds - 1);
        sleep(CALM);
        let served = Instant::now();
        (failure.mend)(fleet, id);
        fleet.wait_active(120);
        rounds.push(Round { calm, failed, served, whole: Instant::now() });
    }
    Ok(outcome(scheme, failure.name, &rounds, &client.stop()?))
}

fn outcome(scheme: Scheme, failure: &'static str, rounds: &[Round], history: &History) -> Failover {
    let stalls: Vec<_> = rounds.iter().map(|round| history.longest(round.failed, round.served)).collect();
    let calm = rounds.iter().map(|round| history.longest_answered(round.calm, round.failed));
    let back = rounds.iter().map(|round| history.longest(round.served, round.whole));
    let paused = rounds.iter().map(|round| history.longest_pause(round.failed, round.served));
    let all: Distribution = stalls.iter().copied().collect();
    let at = |share: f64| milliseconds(&all.at(share));
    let counts = all.histogram(&ENDS_MS.map(Duration::from_millis));
    let ends = ENDS_MS.into_iter().map(Some).chain([None]);
    let each = |times: Vec<Duration>| times.iter().map(milliseconds).collect();
    Failover {
        scheme: scheme.to_string(),
        failure,
        times: all.count(),
        p50_ms: at(0.5),
        p90_ms: at(0.9),
        p99_ms: at(0.99),
        max_ms: at(1.0),
        histogram: ends.zip(counts).map(|(up_to_ms, count)| Range { up_to_ms, count }).collect(),
        stalls_ms: each(stalls),
        paused_ms: each(paused.collect()),
        calm_ms: each(calm.collect()),
        return_ms: each(back.collect()),
    }
}

fn milliseconds(time: &Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::super::history::Answer;
    use super::*;

    #[test]
    fn each_time_counts_its_longest_operation() {
        let begin = Instant::now();
        let ms = |ms: u64| begin + Duration::from_millis(ms);
        let round = |at: u64| Round { calm: ms(at), failed: ms(at + 500), served: ms(at + 2000), whole: ms(at + 3000) };
        let answer = |due: u64, took: u64| Answer { write: false, due: ms(due), at: ms(due + took) };
        let answers = vec![answer(10, 2), answer(510, 900), answer(1500, 40), answer(2500, 7), answer(10_600, 70)];
        let outcome =
            outcome(Scheme::Copies(3), "x", &[round(0), round(10_000)], &History { answers, pauses: Vec::new() });
        assert_eq!(outcome.stalls_ms, [900.0, 70.0]);
        assert_eq!((outcome.calm_ms, outcome.return_ms), (vec![2.0, 0.0], vec![7.0, 0.0]));
        assert_eq!((outcome.times, outcome.p50_ms, outcome.p99_ms, outcome.max_ms), (2, 70.0, 900.0, 900.0));
        let filled: Vec<_> = outcome.histogram.iter().filter(|r| r.count > 0).map(|r| r.up_to_ms).collect();
        assert_eq!(filled, [Some(100), Some(1000)]);
    }
}
