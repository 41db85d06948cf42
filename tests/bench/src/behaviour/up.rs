//! `blockyard up`: from the start of the process until its image is served.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::{Cluster, Random, scratch_in};
use serde::Serialize;

use super::Setting;
use crate::load::median;

/// The image that is there without options.
const IMAGE: &str = "demo";
/// What is written to it before it starts again. Bytes.
const DATA: usize = 64 << 20;

/// Starts of one kind.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct UpStart {
    /// What there was before.
    pub after: &'static str,
    /// Until NBD answers a read.
    pub served_ms: Vec<f64>,
    pub served_median_ms: f64,
}

/// Measures the first start, one after a stop, and one after a crash.
///
/// # Errors
/// NBD did not answer.
pub fn measure(setting: &Setting<'_>) -> Result<Vec<UpStart>> {
    let mut times: [(&'static str, Vec<f64>); 3] =
        [("nothing: the first start", Vec::new()), ("a stop", Vec::new()), ("kill -9", Vec::new())];
    for _ in 0..setting.options.starts.max(1) {
        for ((_, times), time) in times.iter_mut().zip(starts(setting)?) {
            times.push(time.as_secs_f64() * 1e3);
        }
    }
    let start = |(after, served_ms): (&'static str, Vec<f64>)| UpStart {
        after,
        served_median_ms: median(served_ms.clone()),
        served_ms,
    };
    Ok(times.map(start).into())
}

fn starts(setting: &Setting<'_>) -> Result<[Duration; 3]> {
    let begin = Instant::now();
    let mut cluster = Cluster::start_in(scratch_in(setting.dir), &[]);
    let first = served(&cluster, begin)?;
    cluster.connect(IMAGE).write_long(0, &Random::new(1).bytes(DATA)).context("cannot write to the image")?;
    let mut again = |end: fn(&mut Cluster)| {
        end(&mut cluster);
        let begin = Instant::now();
        cluster.start_again();
        served(&cluster, begin)
    };
    Ok([first, again(Cluster::stop)?, again(Cluster::kill)?])
}

fn served(cluster: &Cluster, begin: Instant) -> Result<Duration> {
    cluster.connect(IMAGE).read(0, 4096).context("the image is not served")?;
    Ok(begin.elapsed())
}
