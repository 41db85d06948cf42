//! Metrics of the cluster as a whole, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use cluster_proto::OsdId;
use cluster_proto::map::{ClusterMap, OsdStats, keys, parse};
use cluster_state::{StateError, StateStore};
use mon_core::health::{Health, PgCounts, Verdict, health};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::MoreMetrics;
use crate::add_scrubbed;
use crate::leader::Leading;

/// How long a scrape waits for the state store.
const STORE_MAX: Duration = Duration::from_secs(2);

/// Where metrics come from.
#[derive(Clone)]
pub(crate) struct Source {
    pub store: Arc<dyn StateStore>,
    pub latest: watch::Receiver<Arc<ClusterMap>>,
    pub elected: watch::Receiver<Option<Leading>>,
    pub more: Option<MoreMetrics>,
}

/// Serves until the listener fails; without one, for ever.
pub(crate) async fn serve(listener: Option<TcpListener>, source: Source) -> std::io::Result<()> {
    let Some(listener) = listener else { return std::future::pending().await };
    let router = Router::new()
        .route("/", get(async || "Blockyard monitor. Metrics: /metrics\n"))
        .route("/metrics", get(scrape))
        .with_state(source);
    axum::serve(listener, router).await
}

async fn scrape(State(source): State<Source>) -> Response {
    let mut map = ClusterMap::clone(&source.latest.borrow());
    let leads = source.elected.borrow().is_some();
    let reading = async {
        add_scrubbed(&*source.store, &mut map).await?;
        read_stats(&*source.store).await
    };
    match timeout(STORE_MAX, reading).await {
        Ok(Ok(stats)) => {
            let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
            let more = source.more.map_or_else(String::new, |more| more());
            (kind, render(&map, &stats, leads) + &more).into_response()
        }
        Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the state store does not answer\n").into_response(),
    }
}

/// Statistics of all OSDs. Values that cannot be understood are left out.
async fn read_stats(store: &dyn StateStore) -> Result<BTreeMap<OsdId, OsdStats>, StateError> {
    let prefix = format!("{}osd/", keys::STATS);
    let entries = store.range(&prefix).await?.entries;
    let read = |key: &str, value: &[u8]| Some((key.strip_prefix(&prefix)?.parse().ok()?, parse(key, value).ok()?));
    Ok(entries.iter().filter_map(|entry| read(&entry.key, &entry.value)).collect())
}

/// Collects metrics, each with its help and type.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn family<L: Display, V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) {
        let out = &mut self.0;
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# HELP blockyard_{name} {help}\n# TYPE blockyard_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(out, "blockyard_{name}{labels} {value}");
        }
    }

    fn gauge<V: Display>(&mut self, name: &str, help: &str, value: V) {
        self.family(name, "gauge", help, [("", value)]);
    }
}

/// Escapes a label's value as the format asks.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn render(map: &ClusterMap, stats: &BTreeMap<OsdId, OsdStats>, leads: bool) -> String {
    let health = health(map, stats);
    let mut out = Exposition::default();
    out.gauge("monitor_leads", "Whether this monitor leads.", u8::from(leads));
    render_health(&mut out, &health);
    render_pools(&mut out, map);
    render_osds(&mut out, map, stats);
    out.0
}

fn render_health(out: &mut Exposition, health: &Health) {
    let level = match health.verdict {
        Verdict::Ok => 0,
        Verdict::Warning => 1,
        Verdict::Error => 2,
    };
    out.gauge("health", "0 ok, 1 something needs attention, 2 some data is not served.", level);
    let mut problems: BTreeMap<&str, usize> = BTreeMap::new();
    for problem in &health.problems {
        *problems.entry(problem.code.as_str()).or_default() += 1;
    }
    let problems = problems.into_iter().map(|(code, n)| (format!("{{code=\"{code}\"}}"), n));
    out.family("problems", "gauge", "Present problems by kind.", problems);
    out.gauge("osds", "OSDs, configured or running.", health.osds.total);
    out.gauge("osds_up", "Running OSDs.", health.osds.up);
    out.gauge("osds_in", "OSDs configured with weight.", health.osds.within);
}

fn render_pools(out: &mut Exposition, map: &ClusterMap) {
    let mut samples = Vec::new();
    for (id, pool) in &map.pools {
        let counts = PgCounts::of_pool(map, *id, Some(pool));
        let states = [
            ("active", counts.active),
            ("degraded", counts.degraded),
            ("peering", counts.peering),
            ("offline", counts.offline),
            ("creating", counts.creating),
        ];
        let name = escape(&pool.name);
        samples.extend(states.map(|(state, n)| (format!("{{pool=\"{name}\",state=\"{state}\"}}"), n)));
    }
    out.family("pgs", "gauge", "PGs by pool and state.", samples);
}

fn render_osds(out: &mut Exposition, map: &ClusterMap, stats: &BTreeMap<OsdId, OsdStats>) {
    let ids = || map.osd_configs.keys().chain(map.osds.keys()).copied();
    let mut all: Vec<OsdId> = ids().collect();
    all.sort_unstable();
    all.dedup();
    let up = all.iter().map(|osd| (format!("{{osd=\"{osd}\"}}"), u8::from(map.osds.contains_key(osd))));
    out.family("osd_up", "gauge", "Whether the OSD runs.", up);
    let mut of = |name: &str, kind: &str, help: &str, value: fn(&OsdStats) -> u64| {
        let samples = stats.iter().map(|(osd, stats)| (format!("{{osd=\"{osd}\"}}"), value(stats)));
        out.family(&format!("osd_{name}"), kind, help, samples);
    };
    of("space_bytes", "gauge", "Size of the data area.", |s| s.space.total);
    of("used_bytes", "gauge", "Used part of the data area.", |s| s.space.used);
    of("objects", "gauge", "Objects stored.", |s| s.space.objects);
    of("reads_total", "counter", "Client reads answered.", |s| s.reads);
    of("writes_total", "counter", "Client changes answered.", |s| s.writes);
    of("read_bytes_total", "counter", "Bytes read for clients.", |s| s.read_bytes);
    of("written_bytes_total", "counter", "Bytes written for clients.", |s| s.write_bytes);
    of("crc_errors_total", "counter", "Sectors that did not match their checksum.", |s| s.crc_errors);
    of("repaired_sectors_total", "counter", "Damaged sectors rewritten from another copy.", |s| s.repaired_sectors);
    of("lost_sectors_total", "counter", "Sectors that nobody could read of objects copied.", |s| s.lost_sectors);
    of("scrubbed_objects_total", "counter", "Objects that deep scrubs verified.", |s| s.scrubbed_objects);
    of("scrub_errors_total", "counter", "Damaged sectors and differences that scrubs found.", |s| s.scrub_errors);
    of("scrub_unrepaired_total", "counter", "Damaged sectors that scrubs could not repair.", |s| s.scrub_unrepaired);
    of("io_errors_total", "counter", "Device errors.", |s| s.io_errors);
    of("recovered_objects_total", "counter", "Objects copied to bring members to the same state.", |s| {
        s.recovered_objects
    });
    of("patched_objects_total", "counter", "Of these, those of which only changed sectors were written.", |s| {
        s.patched_objects
    });
    of("recovered_bytes_total", "counter", "Bytes written to members for that.", |s| s.recovered_bytes);
    of("objects_degraded", "gauge", "Objects of PGs that the OSD leads that some member lacks.", |s| {
        s.objects_degraded
    });
}

#[cfg(test)]
mod tests {
    use cluster_proto::PoolId;
    use cluster_proto::map::{OsdConfig, PoolConfig};

    use super::*;

    #[test]
    fn every_sample_belongs_to_a_family_and_labels_are_escaped() {
        let mut map = ClusterMap::default();
        map.pools.insert(PoolId(1), PoolConfig::replicated("a\"b\\", 3));
        map.osd_configs.insert(OsdId(1), OsdConfig::new(1.0));
        let stats = BTreeMap::from([(OsdId(1), OsdStats { crc_errors: 7, ..OsdStats::default() })]);
        let text = render(&map, &stats, true);
        assert!(text.contains("blockyard_pgs{pool=\"a\\\"b\\\\\",state=\"creating\"} 64\n"), "{text}");
        assert!(text.contains("blockyard_osd_crc_errors_total{osd=\"1\"} 7\n"));
        assert!(text.contains("blockyard_osd_up{osd=\"1\"} 0\n"));
        assert!(text.contains("blockyard_health 2\n"));
        let mut family = "";
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => family = rest.split(' ').next().unwrap(),
                None => assert!(line.starts_with("# HELP ") || line.starts_with(family), "{line}"),
            }
        }
    }
}
