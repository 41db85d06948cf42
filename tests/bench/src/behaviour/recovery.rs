//! How fast what an OSD lacks is brought to it, and what clients notice of that.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::Fleet;
use serde::Serialize;

use super::Setting;
use super::client::Client;
use super::history::Phase;
use super::scatter::scattered;
use crate::cluster::{self, IMAGE, osd_metrics};
use crate::load;
use crate::metrics::totals;
use crate::scheme::Scheme;

/// How long clients are watched before and after.
const CALM: Duration = Duration::from_secs(5);
/// How often it is looked how far recovery is. OSDs tell every 100 ms.
const LOOK: Duration = Duration::from_millis(50);
/// The cluster's state is asked for less often: that starts a process.
const LOOKS_PER_STATUS: u32 = 8;
/// Longest recovery.
const RECOVERY_MAX: Duration = Duration::from_secs(600);
/// Share of the image that is written while an OSD is away.
const MISSED: u64 = 8;
/// The OSD that goes away.
const LOST: u32 = 1;

/// One recovery.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Recovery {
    pub scheme: String,
    /// What was lacking.
    pub what: &'static str,
    /// Size of the image, which is full.
    pub image_bytes: u64,
    /// What was written while the OSD was away, in 4 KiB pieces all over the image; the watching client's writes not counted.
    pub missed_bytes: u64,
    /// What was written to members to bring them to the same state.
    pub recovered_bytes: u64,
    /// Objects that this concerned.
    pub recovered_objects: u64,
    /// From the first to the last of it.
    pub seconds: f64,
    pub mb_per_s: f64,
    /// From the start of the OSD's process until all data was where it should be.
    pub seconds_from_start: f64,
    /// What the watching client saw.
    pub phases: Vec<Phase>,
}

/// Measures both kinds for each scheme.
///
/// # Errors
/// The cluster failed an operation, or did not recover in time.
pub fn measure(setting: &Setting<'_>) -> Result<Vec<Recovery>> {
    let mut recoveries = Vec::new();
    for &scheme in &setting.options.schemes {
        let mut cluster = Recovering::start(setting, scheme)?;
        eprintln!("{scheme}: an OSD comes back");
        recoveries.push(cluster.comes_back()?);
        eprintln!("{scheme}: an OSD is replaced");
        recoveries.push(cluster.is_replaced()?);
    }
    Ok(recoveries)
}

/// A cluster with a full image.
struct Recovering<'a> {
    setting: &'a Setting<'a>,
    scheme: Scheme,
    osd_bytes: u64,
    fleet: Fleet,
}

/// What the OSDs have recovered until a moment.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Progress {
    at: Instant,
    bytes: f64,
    objects: f64,
}

impl<'a> Recovering<'a> {
    fn start(setting: &'a Setting<'a>, scheme: Scheme) -> Result<Self> {
        let size = setting.options.size;
        let osd_bytes = (scheme.share(size) * 3 / 2).max(256 << 20);
        let fleet = cluster::fleet(setting.dir, scheme.osds().into(), osd_bytes)?;
        let pool = scheme.forgiving_options();
        fleet.create(IMAGE, &size.to_string(), &pool.iter().map(String::as_str).collect::<Vec<_>>());
        let recovering = Self { setting, scheme, osd_bytes, fleet };
        recovering.write(8, load::whole(size))?;
        Ok(recovering)
    }

    fn write(&self, depth: usize, pieces: impl Iterator<Item = load::Piece>) -> Result<()> {
        let mut library = self.setting.open(&self.fleet.etcd.endpoint(), IMAGE)?;
        load::write_pieces(&mut library, depth, pieces)
    }

    /// An OSD comes back and lacks what was written meanwhile.
    fn comes_back(&mut self) -> Result<Recovery> {
        let missed = self.setting.options.size / MISSED;
        self.recover("what was written meanwhile", missed, LOST, |_| Ok(()), |_| true)
    }

    /// An OSD is lost, and an empty one takes its place.
    fn is_replaced(&mut self) -> Result<Recovery> {
        let (lost, new, bytes) = (LOST.to_string(), u32::from(self.scheme.osds()) + 1, self.osd_bytes);
        let prepare = |fleet: &mut Fleet| {
            fleet.blockyard(&["osd", "reweight", &lost, "0"]).ok();
            fleet.prepare_osd(new);
            cluster::allocate(&fleet.osd_file(new), bytes)
        };
        let is_empty = |fleet: &Fleet| {
            let left = fleet.blockyard(&["pg", "ls", "--osd", &lost, "--json"]).json();
            left.as_array().is_some_and(Vec::is_empty)
        };
        self.recover("everything", 0, new, prepare, is_empty)
    }

    /// Kills an OSD, writes, prepares and starts the OSD `id` that gets what is lacking, and waits until it has it.
    fn recover(
        &mut self,
        what: &'static str,
        missed: u64,
        id: u32,
        prepare: impl FnOnce(&mut Fleet) -> Result<()>,
        is_done: impl Fn(&Fleet) -> bool,
    ) -> Result<Recovery> {
        let size = self.setting.options.size;
        let client = Client::start(self.setting, &self.fleet.etcd.endpoint(), IMAGE, size);
        sleep(CALM);
        let away = Instant::now();
        self.fleet.kill(&format!("osd.{LOST}"));
        self.fleet.wait_degraded(60, u32::from(self.scheme.osds()) - 1);
        self.write(32, scattered(size / 4096, missed / 4096).map(|sector| (sector * 4096, 4096)))?;
        let quiet = Instant::now();
        sleep(CALM);
        prepare(&mut self.fleet)?;
        let before = self.recovered()?;
        self.fleet.start_osd(id);
        let (progress, end) = self.follow(before, is_done)?;
        sleep(CALM);
        let history = client.stop()?;
        let phases = [
            ("before", away - CALM, away),
            ("one OSD away", quiet, before.at),
            ("recovery", before.at, end),
            ("after", end, end + CALM),
        ];
        let (last, (from, to)) = (progress.last().copied().unwrap_or(before), span(&progress));
        let (seconds, bytes) = (to.saturating_duration_since(from).as_secs_f64(), last.bytes - before.bytes);
        Ok(Recovery {
            scheme: self.scheme.to_string(),
            what,
            image_bytes: size,
            missed_bytes: missed,
            recovered_bytes: bytes as u64,
            recovered_objects: (last.objects - before.objects) as u64,
            seconds,
            mb_per_s: if seconds > 0.0 { bytes / seconds / 1e6 } else { 0.0 },
            seconds_from_start: (end - before.at).as_secs_f64(),
            phases: phases.into_iter().map(|(name, from, to)| history.phase(name, from, to)).collect(),
        })
    }

    /// What the running OSDs have recovered since their starts.
    fn recovered(&self) -> Result<Progress> {
        let [bytes, objects] =
            totals(&osd_metrics(&self.fleet)?, ["recovered_bytes_total", "recovered_objects_total"])?;
        Ok(Progress { at: Instant::now(), bytes, objects })
    }

    /// Waits until all data is where it should be. Returns how that went on, and when it was.
    fn follow(&self, before: Progress, is_done: impl Fn(&Fleet) -> bool) -> Result<(Vec<Progress>, Instant)> {
        let mut progress = vec![before];
        for look in 1.. {
            sleep(LOOK);
            progress.push(self.recovered()?);
            if look % LOOKS_PER_STATUS == 0 && is_whole(&self.fleet) && is_done(&self.fleet) {
                break;
            }
            ensure!(before.at.elapsed() < RECOVERY_MAX, "recovery did not end within {RECOVERY_MAX:?}");
        }
        let end = Instant::now();
        // What was done last is not told yet.
        sleep(4 * LOOK);
        progress.push(self.recovered()?);
        Ok((progress, end))
    }
}

fn is_whole(fleet: &Fleet) -> bool {
    let pgs = &fleet.status()["pgs"];
    pgs["active"] == pgs["total"]
}

/// From when to when something was done: the last moment before the first of it, the first after the last of it.
fn span(progress: &[Progress]) -> (Instant, Instant) {
    let changes = || progress.windows(2).filter(|pair| pair[0].bytes != pair[1].bytes);
    let begin = progress.first().map_or_else(Instant::now, |first| first.at);
    (changes().next().map_or(begin, |pair| pair[0].at), changes().next_back().map_or(begin, |pair| pair[1].at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_lasts_from_the_first_to_the_last_byte() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let progress = |counts: &[f64]| -> Vec<Progress> {
            (0..).zip(counts).map(|(i, bytes)| Progress { at: at(i * 10), bytes: *bytes, objects: 0.0 }).collect()
        };
        assert_eq!(span(&progress(&[0.0, 0.0, 5.0, 5.0, 9.0, 9.0])), (at(10), at(40)));
        assert_eq!(span(&progress(&[3.0, 3.0])), (begin, begin));
    }
}
