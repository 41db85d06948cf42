//! `blockyard status`.

use std::collections::BTreeMap;

use blockyard_client::metadata;
use cluster_proto::OsdId;
use cluster_proto::map::{ClusterMap, GatewayState, LatencyStats, OsdStats, keys, parse};
use mon_core::health::{Health, Verdict, health};
use mon_core::{Problem, Severity};
use serde::Serialize;

use crate::error::CliError;
use crate::osd::{OsdView, statistics};
use crate::output::{Output, paint};
use crate::pool::PoolView;
use crate::session::Session;
use crate::size::Size;

/// The whole cluster at a glance. Field names are stable.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    cluster: String,
    state_store: String,
    leader: Option<String>,
    #[serde(flatten)]
    health: Health,
    space: Space,
    counters: Counters,
    recovery: Recovery,
    images: usize,
    image_bytes: u64,
    gateways: Vec<Gateway>,
    pools: Vec<PoolView>,
    osd_list: Vec<OsdView>,
}

/// Raw space of all OSDs. Bytes.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Space {
    total: u64,
    used: u64,
    objects: u64,
}

/// Sums over all OSDs since their starts.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Counters {
    reads: u64,
    writes: u64,
    read_bytes: u64,
    write_bytes: u64,
    crc_errors: u64,
    repaired_sectors: u64,
    lost_sectors: u64,
    io_errors: u64,
    recovered_objects: u64,
    patched_objects: u64,
    recovered_bytes: u64,
}

/// How far recovery is, of all OSDs together, as of the last seconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Recovery {
    /// Objects that some member lacks.
    objects_degraded: u64,
    objects_per_second: f64,
    bytes_per_second: f64,
    /// When the last OSD will be done if it goes on like this; `null` if some OSD with work to do makes no headway.
    eta_seconds: Option<u64>,
    /// The settings say so.
    paused: bool,
}

impl Recovery {
    fn of<'a>(paused: bool, stats: impl IntoIterator<Item = &'a OsdStats>) -> Self {
        let mut all = Recovery { paused, eta_seconds: Some(0), ..Recovery::default() };
        for stats in stats {
            let rate = stats.recovery.objects_per_second();
            all.objects_degraded += stats.objects_degraded;
            all.objects_per_second += rate;
            all.bytes_per_second += stats.recovery.bytes_per_second();
            if stats.objects_degraded > 0 {
                let eta = (rate > 0.0).then(|| (stats.objects_degraded as f64 / rate).ceil() as u64);
                all.eta_seconds = all.eta_seconds.zip(eta).map(|(before, eta)| before.max(eta));
            }
        }
        all
    }

    fn line(&self) -> String {
        if self.objects_degraded == 0 && self.objects_per_second == 0.0 {
            return "recovery  nothing to do".to_owned() + if self.paused { ", paused" } else { "" };
        }
        let eta = match self.eta_seconds {
            _ if self.paused => "paused".into(),
            Some(seconds) => format!("done in {}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
            None => "no headway".into(),
        };
        format!(
            "recovery  {} objects degraded, {:.1} objects/s, {}/s, {eta}",
            self.objects_degraded,
            self.objects_per_second,
            Size(self.bytes_per_second as u64)
        )
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Gateway {
    name: String,
    nbd: Vec<String>,
}

impl Counters {
    fn add(&mut self, stats: &OsdStats) {
        self.reads += stats.reads;
        self.writes += stats.writes;
        self.read_bytes += stats.read_bytes;
        self.write_bytes += stats.write_bytes;
        self.crc_errors += stats.crc_errors;
        self.repaired_sectors += stats.repaired_sectors;
        self.lost_sectors += stats.lost_sectors;
        self.io_errors += stats.io_errors;
        self.recovered_objects += stats.recovered_objects;
        self.patched_objects += stats.patched_objects;
        self.recovered_bytes += stats.recovered_bytes;
    }
}

/// Shows how the cluster is.
pub async fn status(session: &Session, out: Output) -> Result<(), CliError> {
    out.show(&collect(session).await?, text)
}

async fn collect(session: &Session) -> Result<Status, CliError> {
    let mut map = session.map().await?;
    mon::add_scrubbed(&*session.store, &mut map).await?;
    let stats = statistics(session).await?;
    let images = metadata::images(&*session.store).await?;
    let leader = session.store.get(keys::LEADER).await?;
    let (mut space, mut counters) = (Space::default(), Counters::default());
    for stats in stats.values() {
        space.total += stats.space.total;
        space.used += stats.space.used;
        space.objects += stats.space.objects;
        counters.add(stats);
    }
    Ok(Status {
        cluster: map.cluster.as_ref().map(|info| info.id.to_string()).unwrap_or_default(),
        state_store: session.store.location(),
        leader: leader.map(|entry| String::from_utf8_lossy(&entry.value).into_owned()),
        health: judged(&map, &stats),
        space,
        counters,
        // What an OSD that is down wrote last is not how it is.
        recovery: Recovery::of(
            map.settings.recovery_paused,
            stats.iter().filter(|(osd, _)| map.osds.contains_key(osd)).map(|(_, stats)| stats),
        ),
        images: images.len(),
        image_bytes: images.iter().map(|info| info.meta.size).sum(),
        gateways: gateways(session).await?,
        pools: PoolView::all(&map),
        osd_list: OsdView::all(&map, &stats),
    })
}

/// Statistics of OSDs that do not exist any more are not judged.
fn judged(map: &ClusterMap, stats: &BTreeMap<OsdId, OsdStats>) -> Health {
    let known = |osd: &OsdId| map.osd_configs.contains_key(osd) || map.osds.contains_key(osd);
    let stats = stats.iter().filter(|(osd, _)| known(osd)).map(|(osd, stats)| (*osd, stats.clone())).collect();
    health(map, &stats)
}

async fn gateways(session: &Session) -> Result<Vec<Gateway>, CliError> {
    let entries = session.store.range(keys::GATEWAYS).await?.entries;
    let read = |key: &str, value: &[u8]| {
        let state: GatewayState = parse(key, value).ok()?;
        Some(Gateway { name: key.strip_prefix(keys::GATEWAYS)?.to_owned(), nbd: state.nbd })
    };
    Ok(entries.iter().filter_map(|entry| read(&entry.key, &entry.value)).collect())
}

fn text(status: &Status) -> String {
    let health = &status.health;
    let verdict = match health.verdict {
        Verdict::Ok => paint(32, "ok"),
        Verdict::Warning => paint(33, "warning"),
        Verdict::Error => paint(31, "error"),
    };
    let mut lines = vec![format!("cluster   {}", status.cluster), format!("health    {verdict}")];
    lines.extend(health.problems.iter().map(problem_line));
    lines.push(format!("monitor   {}", status.leader.as_deref().unwrap_or("no leader")));
    lines.push(format!("osds      {} up, {} in, of {}", health.osds.up, health.osds.within, health.osds.total));
    lines.push(format!("pgs       {}", pgs_line(health)));
    lines.push(format!("pools     {}", status.pools.len()));
    lines.push(format!("images    {}, {} in all", status.images, Size(status.image_bytes)));
    lines.push(space_line(&status.space));
    lines.push(counters_line(&status.counters));
    lines.push(status.recovery.line());
    lines.extend(latency_line(status.osd_list.iter().flat_map(OsdView::latencies)));
    for gateway in &status.gateways {
        lines.push(format!("gateway   {} nbd {}", gateway.name, gateway.nbd.join(" ")));
    }
    format!("{}\n\n{}", lines.join("\n"), OsdView::table(&status.osd_list))
}

fn problem_line(problem: &Problem) -> String {
    let mark = match problem.severity {
        Severity::Warning => paint(33, "!"),
        Severity::Error => paint(31, "!"),
    };
    format!("          {mark} {problem}")
}

fn pgs_line(health: &Health) -> String {
    let pgs = &health.pgs;
    let states = [
        (pgs.active, "active"),
        (pgs.degraded, "degraded"),
        (pgs.peering, "peering"),
        (pgs.offline, "offline"),
        (pgs.creating, "creating"),
    ];
    let present: Vec<_> = states.iter().filter(|(n, _)| *n > 0).map(|(n, state)| format!("{n} {state}")).collect();
    if present.is_empty() { "none".into() } else { present.join(", ") }
}

fn space_line(space: &Space) -> String {
    let percent = (u128::from(space.used) * 100).checked_div(u128::from(space.total)).unwrap_or(0);
    format!("space     {} used of {} raw ({percent}%), {} objects", Size(space.used), Size(space.total), space.objects)
}

fn counters_line(counters: &Counters) -> String {
    format!(
        "counters  {} reads ({}), {} writes ({}), {} crc errors, {} repaired sectors, {} device errors",
        counters.reads,
        Size(counters.read_bytes),
        counters.writes,
        Size(counters.write_bytes),
        counters.crc_errors,
        counters.repaired_sectors,
        counters.io_errors
    )
}

/// The slowest OSD's latencies of clients' requests.
fn latency_line<'a>(latencies: impl Iterator<Item = &'a LatencyStats>) -> Option<String> {
    let mut worst: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for stats in latencies.filter(|stats| stats.at == "client") {
        let (p50, p99) = worst.entry(&stats.op).or_default();
        (*p50, *p99) = (stats.p50_us.max(*p50), stats.p99_us.max(*p99));
    }
    let ms = |us: u64| us as f64 / 1000.0;
    let parts = worst.iter().map(|(op, (p50, p99))| format!("{op} p50 {:.2} ms, p99 {:.2} ms", ms(*p50), ms(*p99)));
    let parts: Vec<_> = parts.collect();
    (!parts.is_empty()).then(|| format!("latency   {} (at the slowest OSD)", parts.join("; ")))
}

#[cfg(test)]
mod tests {
    use cluster_proto::map::RecoveryRate;

    use super::*;

    fn stats(objects_degraded: u64, objects: u64) -> OsdStats {
        let window_ms = if objects == 0 { 0 } else { 10_000 };
        let recovery = RecoveryRate { window_ms, objects, bytes: objects << 20 };
        OsdStats { objects_degraded, recovery, ..OsdStats::default() }
    }

    #[test]
    fn recovery_ends_with_the_last_osd() {
        let all = Recovery::of(false, &[stats(100, 50), stats(30, 5), stats(0, 0)]);
        assert_eq!((all.objects_degraded, all.objects_per_second, all.eta_seconds), (130, 5.5, Some(60)));
        assert_eq!(all.line(), "recovery  130 objects degraded, 5.5 objects/s, 5.5 MiB/s, done in 0:01:00");
        let stuck = Recovery::of(false, &[stats(100, 50), stats(1, 0)]);
        assert_eq!((stuck.eta_seconds, stuck.line().ends_with("no headway")), (None, true));
        assert!(Recovery::of(true, &[stats(1, 0)]).line().ends_with("paused"));
        assert_eq!(Recovery::of(false, &[stats(0, 0)]).line(), "recovery  nothing to do");
    }

    #[test]
    fn the_slowest_osd_is_shown() {
        let of = |at: &str, p99_us| LatencyStats { at: at.into(), op: "read".into(), count: 1, p50_us: 100, p99_us };
        let all = [of("client", 1_500), of("client", 900), of("store", 9_000)];
        let line = latency_line(all.iter());
        assert_eq!(line.as_deref(), Some("latency   read p50 0.10 ms, p99 1.50 ms (at the slowest OSD)"));
        assert_eq!(latency_line([].iter()), None);
    }
}
