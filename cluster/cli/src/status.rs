//! `blockyard status`.

use std::collections::BTreeMap;

use blockyard_client::metadata;
use cluster_proto::OsdId;
use cluster_proto::map::{ClusterMap, GatewayState, OsdStats, keys, parse};
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
    io_errors: u64,
    recovered_objects: u64,
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
        self.io_errors += stats.io_errors;
        self.recovered_objects += stats.recovered_objects;
    }
}

/// Shows how the cluster is.
pub async fn status(session: &Session, out: Output) -> Result<(), CliError> {
    out.show(&collect(session).await?, text)
}

async fn collect(session: &Session) -> Result<Status, CliError> {
    let map = session.map().await?;
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
