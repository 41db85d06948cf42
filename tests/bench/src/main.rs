//! `tests/bench/run`: one table of what a cluster costs. Figures are medians over several runs; ratios are against an echo of
//! the same bytes over the same kind of socket with the same reactor, taken in the same run.

mod cluster;
mod cpu;
mod echo;
mod graph;
mod library;
mod load;
mod metrics;
mod nbd;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use buffer::{Buffer, BufferMut};
use clap::{Parser, Subcommand};
use cluster::{Cluster, IMAGE, Scheme};
use load::{Case, Sample, Target};
use metrics::Counters;
use report::Row;

/// Measures a cluster of 'blockyard up' through NBD and through the client library.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Internal>,
    /// Where the OSDs' files go. In memory, the software is what is measured.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Seconds per case and run.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Runs per case; the medians are printed.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// How data is kept, one cluster each: a number of copies, or DATA+PARITY shards.
    #[arg(long, value_delimiter = ',', default_value = "1,3,2+1,4+2")]
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
    /// Also write the figures to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Compare with the figures that --json wrote in an earlier run.
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Draw latency against throughput of 4 KiB operations, at depths 1 to 256, into this file, as SVG.
    #[arg(long)]
    graph: Option<PathBuf>,
}

impl Arguments {
    /// How long a run takes.
    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

#[derive(Subcommand)]
enum Internal {
    /// Serves the echo.
    #[command(hide = true)]
    EchoServer,
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

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Internal::EchoServer) = arguments.command {
        return echo::serve();
    }
    let dir = tempfile::Builder::new().prefix("blockyard-bench").tempdir_in(&arguments.dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let server = echo::Server::start()?;
    let baseline = arguments.baseline.as_deref().map(report::load).transpose()?.unwrap_or_default();
    let (mut rows, mut curves) = (Vec::new(), Vec::new());
    for &scheme in &arguments.schemes {
        let cluster = Cluster::start(dir.path(), scheme, arguments.size)?;
        let _guard = runtime.enter();
        let state = cluster_state::connect(&cluster.etcd)?;
        let payload = payload();
        let mut library = library::Library::open(&runtime, state, IMAGE, payload.clone())?;
        fill(&mut library, arguments.size)?;
        let mut nbd = nbd::Nbd::connect(cluster.nbd, IMAGE, payload)?;
        let mut echo = echo::Echo::connect(server.address)?;
        for case in CASES.into_iter().filter(|case| case.name.contains(&arguments.only)) {
            eprintln!("{scheme}: {}", case.name);
            rows.extend(measure(&arguments, scheme, case, &cluster, &mut echo, &mut nbd, &mut library)?);
        }
        if arguments.graph.is_some() {
            curves.extend(sweep(&arguments, scheme, &mut library)?);
        }
    }
    report::print(&rows, &baseline);
    if let Some(path) = &arguments.graph {
        graph::draw(path, &curves)?;
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&rows)?)?;
    }
    Ok(())
}

/// Bytes that do not compress or repeat.
fn payload() -> Buffer {
    let mut data = BufferMut::for_overwrite(4 << 20);
    let mut state = 0x0123_4567_89ab_cdefu64;
    for word in data.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    data.freeze()
}

/// Writes the whole image once, so that reads find data.
fn fill(target: &mut impl Target, size: u64) -> Result<()> {
    let whole = case("fill", true, 1 << 20, 8, true);
    let blocks = size / u64::from(whole.bytes);
    let mut done = Vec::new();
    let (mut next, mut finished) = (0, 0);
    while finished < blocks {
        while next < blocks && next - finished < whole.depth as u64 {
            let slot = (next % 4096) as usize;
            target.start(load::Io { slot, write: true, offset: next * u64::from(whole.bytes), len: whole.bytes });
            next += 1;
        }
        target.turn(std::time::Instant::now() + Duration::from_secs(30), &mut done)?;
        finished += done.drain(..).count() as u64;
    }
    Ok(())
}

/// 4 KiB operations through the library at rising depths.
fn sweep(arguments: &Arguments, scheme: Scheme, library: &mut library::Library) -> Result<[graph::Curve; 2]> {
    let mut curve = |name: &str, write| -> Result<graph::Curve> {
        let mut points = Vec::new();
        for depth in (0..9).map(|power| 1 << power) {
            let sample =
                load::run(library, case("sweep", write, 4096, depth, false), arguments.size, arguments.time())?;
            points.push((sample.rate(), sample.mean_us()));
        }
        Ok(graph::Curve { name: format!("{scheme}: {name}"), points })
    };
    Ok([curve("4 KiB random read", false)?, curve("4 KiB random write", true)?])
}

/// How long a target is used before it is measured.
const WARM_UP: Duration = Duration::from_millis(300);

/// A run of one case on one target, with what the cluster's parts did for it.
struct Run {
    sample: Sample,
    cpu: BTreeMap<String, u64>,
    osds: Counters,
}

fn measure(
    arguments: &Arguments,
    scheme: Scheme,
    case: Case,
    cluster: &Cluster,
    echo: &mut echo::Echo,
    nbd: &mut nbd::Nbd,
    library: &mut library::Library,
) -> Result<Vec<Row>> {
    let wanted = |door: &str| arguments.doors.iter().any(|wanted| wanted == door);
    let time = arguments.time();
    let (mut echoes, mut through_nbd, mut through_library) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.runs.max(1) {
        // In turn, so that a machine that changes its speed changes it for all three.
        echoes.push(load::run(echo, case, arguments.size, time / 2)?);
        if wanted("nbd") {
            through_nbd.push(observed(cluster, nbd, case, arguments.size, time)?);
        }
        if wanted("library") {
            through_library.push(observed(cluster, library, case, arguments.size, time)?);
        }
    }
    let row = |door: &str, runs: &[Run]| {
        let of = |f: &dyn Fn(&Run) -> f64| median(runs.iter().map(f).collect());
        let per_op = |f: &dyn Fn(&Run) -> f64| of(&|run| f(run) / run.sample.count as f64);
        let cpu = |part: &str| per_op(&|run| run.cpu.get(part).copied().unwrap_or(0) as f64 / 1000.0);
        let echo_mean_us = median(echoes.iter().map(Sample::mean_us).collect());
        let echo_rate = median(echoes.iter().map(Sample::rate).collect());
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
            latency_ratio: mean_us / echo_mean_us,
            rate_ratio: iops / echo_rate,
        }
    };
    let doors = [("nbd", &through_nbd), ("library", &through_library)];
    Ok(doors.into_iter().filter(|(_, runs)| !runs.is_empty()).map(|(door, runs)| row(door, runs)).collect())
}

fn observed(cluster: &Cluster, target: &mut impl Target, case: Case, size: u64, time: Duration) -> Result<Run> {
    // Connections that stood still while others were measured are made anew.
    load::run(target, Case { depth: 1, ..case }, size, WARM_UP)?;
    let counted = Counters::read(cluster.metrics)?;
    let before = cpu::parts(cluster.pid());
    let sample = load::run(target, case, size, time)?;
    let mut cpu = cpu::parts(cluster.pid());
    for (part, ns) in &mut cpu {
        *ns -= before.get(part).copied().unwrap_or(0).min(*ns);
    }
    Ok(Run { sample, cpu, osds: Counters::read(cluster.metrics)?.since(counted) })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
