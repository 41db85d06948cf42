//! The matrix: each kind of load on a cluster of each scheme, through both doors, against the echo.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tokio::runtime::Handle;

use crate::awake::Awake;
use crate::cluster::{Cluster, IMAGE};
use crate::echo::{Echo, Server};
use crate::flame::Flames;
use crate::library::Library;
use crate::load::{self, Case, Sample, Target, median};
use crate::metrics::Counters;
use crate::nbd::Nbd;
use crate::report::{self, Row};
use crate::scheme::Scheme;
use crate::{cpu, graph, targets};

/// What is measured.
#[derive(Args)]
pub struct MatrixOptions {
    /// Where the OSDs' files go. In memory, the software is what is measured.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Seconds per case and run.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Runs per case; the medians are printed.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// How data is kept, one cluster each: a number of copies, or DATA+PARITY shards.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3,2+1,4+2")]
    schemes: Vec<Scheme>,
    /// Size of the image. Bytes.
    #[arg(long, default_value_t = 1 << 30)]
    size: u64,
    /// Only the cases whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Through which doors.
    #[arg(long, value_delimiter = ',', default_value = "nbd,library")]
    doors: Vec<String>,
    /// With real etcd, and a process for each OSD, monitor and gateway, instead of 'blockyard up'.
    #[arg(long, conflicts_with = "busy_poll_us")]
    etcd: bool,
    /// OSDs, gateway, the library and the echo look for work so long before they sleep. Microseconds.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    busy_poll_us: u32,
    /// Keep the processors from sleeping: what it takes to wake one differs from machine to machine, and is most of the latency at depth 1
    /// in a virtual machine.
    #[arg(long)]
    awake: bool,
    /// Also write the figures to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Compare with the figures that --json wrote in an earlier run, instead of with those stored in tests/bench/baseline.json.
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Draw latency against throughput of 4 KiB operations, at depths 1 to 256, into this file, as SVG.
    #[arg(long)]
    graph: Option<PathBuf>,
    /// Draw what the OSDs' CPU time is spent on into this folder, one flame graph per scheme and case (of the library's runs).
    /// Needs perf and inferno.
    #[arg(long)]
    flame: Option<PathBuf>,
}

impl MatrixOptions {
    fn busy_poll(&self) -> Duration {
        Duration::from_micros(self.busy_poll_us.into())
    }
}

const fn case(name: &'static str, write: bool, bytes: u32, depth: usize, sequential: bool) -> Case {
    Case { name, write, bytes, depth, sequential }
}

const CASES: [Case; 10] = [
    case("4k random read, depth 1", false, 4096, 1, false),
    case("4k random read, depth 32", false, 4096, 32, false),
    case("4k random read, depth 128", false, 4096, 128, false),
    case("4k random write, depth 1", true, 4096, 1, false),
    case("4k random write, depth 32", true, 4096, 32, false),
    case("4k random write, depth 128", true, 4096, 128, false),
    case("128k sequential read, depth 16", false, 128 << 10, 16, true),
    case("128k sequential write, depth 16", true, 128 << 10, 16, true),
    case("4m sequential read, depth 4", false, 4 << 20, 4, true),
    case("4m sequential write, depth 4", true, 4 << 20, 4, true),
];

/// How long a target is used before it is measured.
const WARM_UP: Duration = Duration::from_millis(300);

/// Measures, prints the table, and writes what is asked for.
///
/// # Errors
/// A cluster failed, or a file cannot be written.
pub fn run(options: &MatrixOptions, runtime: &Handle) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("blockyard-bench").tempdir_in(&options.dir)?;
    let baseline = options.baseline.as_deref().map_or_else(|| Ok(report::stored()), report::load)?;
    let flames = options.flame.as_deref().map(Flames::new).transpose()?;
    let _awake = Awake::start(options.awake)?;
    let echo = Server::start(options.busy_poll())?;
    let (mut rows, mut curves) = (Vec::new(), Vec::new());
    for &scheme in &options.schemes {
        let mut bench = Bench::start(options, scheme, dir.path(), runtime, &echo)?;
        for case in CASES.into_iter().filter(|case| case.name.contains(&options.only)) {
            eprintln!("{scheme}: {}", case.name);
            rows.extend(bench.measure(case)?);
            if let Some(flames) = &flames {
                bench.draw_flames(case, flames)?;
            }
        }
        if options.graph.is_some() {
            curves.extend(bench.sweep()?);
        }
    }
    report::print(&rows, &baseline);
    targets::print(&rows);
    if let Some(path) = &options.graph {
        graph::draw(path, &curves)?;
    }
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&rows)?)?;
    }
    Ok(())
}

/// Measures all cases on one cluster, of the first scheme, as long as `next` says so: it gets what came of the last time.
///
/// # Errors
/// The cluster failed, or `next` did.
pub fn slices(
    options: &MatrixOptions,
    runtime: &Handle,
    mut next: impl FnMut(Option<&[Row]>) -> Result<bool>,
) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("blockyard-bench").tempdir_in(&options.dir)?;
    let echo = Server::start(options.busy_poll())?;
    let scheme = *options.schemes.first().context("no scheme")?;
    let mut bench = Bench::start(options, scheme, dir.path(), runtime, &echo)?;
    let mut rows: Option<Vec<Row>> = None;
    while next(rows.as_deref())? {
        let mut all = Vec::new();
        for case in CASES.into_iter().filter(|case| case.name.contains(&options.only)) {
            all.extend(bench.measure(case)?);
        }
        rows = Some(all);
    }
    Ok(())
}

/// A cluster with everything that loads it.
struct Bench<'a> {
    options: &'a MatrixOptions,
    scheme: Scheme,
    // Connections end before the cluster does.
    echo: Echo,
    echo_server: &'a Server,
    nbd: Nbd,
    library: Library,
    cluster: Cluster,
}

/// A run of one case on one target, with what the cluster's parts did for it.
struct Run {
    sample: Sample,
    cpu: BTreeMap<String, u64>,
    osds: Counters,
}

impl Run {
    /// CPU time of the load and of all parts that it goes through. Microseconds per operation.
    fn cpu_us(&self) -> f64 {
        let parts = ["gateway", "osds"].map(|part| self.cpu.get(part).copied().unwrap_or(0));
        (self.sample.own_cpu + parts.iter().sum::<u64>()) as f64 / 1000.0 / self.sample.count as f64
    }
}

impl<'a> Bench<'a> {
    fn start(
        options: &'a MatrixOptions,
        scheme: Scheme,
        dir: &Path,
        runtime: &Handle,
        echo_server: &'a Server,
    ) -> Result<Self> {
        let cluster = Cluster::start(dir, scheme, options.size, options.etcd, options.busy_poll_us)?;
        let payload = load::payload();
        let mut library = Library::open(runtime, &cluster.etcd(), IMAGE, payload.clone())?;
        // So that reads find data.
        load::write_pieces(&mut library, 8, load::whole(options.size))?;
        library.poll(options.busy_poll());
        let nbd = Nbd::connect(cluster.nbd(), IMAGE, payload)?;
        let echo = Echo::connect(echo_server)?;
        Ok(Self { options, scheme, echo, echo_server, nbd, library, cluster })
    }

    /// How long a run takes.
    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.options.seconds)
    }

    fn measure(&mut self, case: Case) -> Result<Vec<Row>> {
        let wanted = |door: &str| self.options.doors.iter().any(|wanted| wanted == door);
        let (through_nbd, through_library) = (wanted("nbd"), wanted("library"));
        let (size, time) = (self.options.size, self.time());
        let mut echoes = Vec::new();
        let (mut nbd, mut library) = (Vec::new(), Vec::new());
        for _ in 0..self.options.runs.max(1) {
            // In turn, so that a machine that changes its speed changes it for all three.
            echoes.push(self.echo(case)?);
            if through_nbd {
                nbd.push(observed(&self.cluster, &mut self.nbd, case, size, time)?);
            }
            if through_library {
                library.push(observed(&self.cluster, &mut self.library, case, size, time)?);
            }
        }
        let extras: Vec<f64> = nbd.iter().zip(&library).map(|(nbd, library)| nbd.cpu_us() - library.cpu_us()).collect();
        let mut rows = Vec::new();
        if through_nbd {
            let extra_us = through_library.then(|| median(extras));
            rows.push(Row { extra_us, ..row(self.scheme, case, "nbd", &echoes, &nbd) });
        }
        if through_library {
            rows.push(row(self.scheme, case, "library", &echoes, &library));
        }
        Ok(rows)
    }

    /// The same bytes, echoed, with the CPU time of the other side.
    fn echo(&mut self, case: Case) -> Result<(Sample, u64)> {
        let (before, time) = (self.echo_server.cpu(), self.time() / 2);
        let sample = load::run(&mut self.echo, case, self.options.size, time)?;
        Ok((sample, self.echo_server.cpu().saturating_sub(before)))
    }

    /// Runs a case once more, for what the OSDs do meanwhile.
    fn draw_flames(&mut self, case: Case, flames: &Flames) -> Result<()> {
        let (threads, time) = (cpu::osd_threads(&self.cluster.pids()), self.time());
        let recording = flames.record(&threads, time)?;
        load::run(&mut self.library, case, self.options.size, time)?;
        recording.draw(&format!("{}, {}", self.scheme.in_words(), case.name))
    }

    /// 4 KiB operations through the library at rising depths.
    fn sweep(&mut self) -> Result<[graph::Curve; 2]> {
        let (size, time, scheme) = (self.options.size, self.time(), self.scheme);
        let mut curve = |name: &str, write| -> Result<graph::Curve> {
            let mut points = Vec::new();
            for depth in (0..9).map(|power| 1 << power) {
                let sample = load::run(&mut self.library, case("sweep", write, 4096, depth, false), size, time)?;
                points.push((sample.rate(), sample.mean_us()));
            }
            Ok(graph::Curve { name: format!("{scheme}: {name}"), points })
        };
        Ok([curve("4 KiB random read", false)?, curve("4 KiB random write", true)?])
    }
}

fn observed(cluster: &Cluster, target: &mut impl Target, case: Case, size: u64, time: Duration) -> Result<Run> {
    // Connections that stood still while others were measured are made anew.
    load::run(target, Case { depth: 1, ..case }, size, WARM_UP)?;
    let (metrics, pids) = (cluster.metrics()?, cluster.pids());
    let counted = Counters::read(&metrics)?;
    let before = cpu::parts(&pids);
    let sample = load::run(target, case, size, time)?;
    let mut cpu = cpu::parts(&pids);
    for (part, ns) in &mut cpu {
        *ns -= before.get(part).copied().unwrap_or(0).min(*ns);
    }
    Ok(Run { sample, cpu, osds: Counters::read(&metrics)?.since(counted) })
}

/// The medians of some runs.
fn row(scheme: Scheme, case: Case, door: &str, echoes: &[(Sample, u64)], runs: &[Run]) -> Row {
    let of = |f: &dyn Fn(&Run) -> f64| median(runs.iter().map(f).collect());
    let per_op = |f: &dyn Fn(&Run) -> f64| of(&|run| f(run) / run.sample.count as f64);
    let cpu = |part: &str| per_op(&|run| run.cpu.get(part).copied().unwrap_or(0) as f64 / 1000.0);
    let of_echo = |f: &dyn Fn(&(Sample, u64)) -> f64| median(echoes.iter().map(f).collect());
    let echo_mean_us = of_echo(&|(sample, _)| sample.mean_us());
    let echo_rate = of_echo(&|(sample, _)| sample.rate());
    let echo_cpu_us = of_echo(&|(sample, other)| (sample.own_cpu + other) as f64 / 1000.0 / sample.count as f64);
    let iops = of(&|run| run.sample.rate());
    let mean_us = of(&|run| run.sample.mean_us());
    let bytes = if case.write { f64::from(case.bytes) } else { f64::INFINITY };
    Row {
        scheme: scheme.to_string(),
        case: case.name.into(),
        door: door.into(),
        iops,
        mb_per_s: iops * f64::from(case.bytes) / 1e6,
        mean_us,
        p50_us: of(&|run| run.sample.latency_us(0.5)),
        p99_us: of(&|run| run.sample.latency_us(0.99)),
        p999_us: of(&|run| run.sample.latency_us(0.999)),
        cpu_load_us: per_op(&|run| run.sample.own_cpu as f64 / 1000.0),
        cpu_gateway_us: cpu("gateway"),
        cpu_osds_us: cpu("osds"),
        cpu_each_osd_us: (1..=scheme.osds()).map(|osd| cpu(&format!("osd-{osd}"))).collect(),
        cpu_rest_us: cpu("rest"),
        osd_calls: per_op(&|run| run.osds.calls),
        device_writes: per_op(&|run| run.osds.device_writes),
        device_bytes: per_op(&|run| run.osds.device_bytes / bytes),
        echo_mean_us,
        echo_cpu_us,
        latency_ratio: mean_us / echo_mean_us,
        rate_ratio: iops / echo_rate,
        extra_us: None,
    }
}
