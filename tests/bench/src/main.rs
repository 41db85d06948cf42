//! `tests/bench/run`: one table of what a cluster costs. Figures are medians over several runs; ratios are against an echo of
//! the same bytes over the same kind of socket with the same reactor, taken in the same run.

mod cluster;
mod cpu;
mod echo;
mod library;
mod load;
mod nbd;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use buffer::{Buffer, BufferMut};
use clap::{Parser, Subcommand};
use cluster::{Cluster, IMAGE, Scheme};
use comfy_table::{Cell, CellAlignment, Table, presets};
use load::{Case, Sample, Target};
use serde::Serialize;

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

/// One row of the table.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    scheme: Scheme,
    case: &'static str,
    door: &'static str,
    iops: f64,
    mb_per_s: f64,
    mean_us: f64,
    p50_us: f64,
    p99_us: f64,
    /// CPU time per operation, microseconds.
    cpu_load_us: f64,
    cpu_gateway_us: f64,
    cpu_osds_us: f64,
    cpu_rest_us: f64,
    echo_mean_us: f64,
    /// Mean latency, over the echo's.
    latency_ratio: f64,
    /// Rate, over the echo's.
    rate_ratio: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Internal::EchoServer) = arguments.command {
        return echo::serve();
    }
    let dir = tempfile::Builder::new().prefix("blockyard-bench").tempdir_in(&arguments.dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let server = echo::Server::start()?;
    let mut rows = Vec::new();
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
    }
    print(&rows);
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

/// A run of one case on one target, with the CPU time of the cluster's parts.
type Run = (Sample, BTreeMap<&'static str, u64>);

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
    let time = Duration::from_secs_f64(arguments.seconds);
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
    let row = |door, runs: &[Run]| {
        let of = |f: &dyn Fn(&Run) -> f64| median(runs.iter().map(f).collect());
        let cpu = |part: &'static str| of(&|(s, parts)| parts[part] as f64 / 1000.0 / s.count as f64);
        let echo_mean_us = median(echoes.iter().map(Sample::mean_us).collect());
        let echo_rate = median(echoes.iter().map(Sample::rate).collect());
        let iops = of(&|(s, _)| s.rate());
        let mean_us = of(&|(s, _)| s.mean_us());
        Row {
            scheme,
            case: case.name,
            door,
            iops,
            mb_per_s: iops * f64::from(case.bytes) / 1e6,
            mean_us,
            p50_us: of(&|(s, _)| s.latency_us(0.5)),
            p99_us: of(&|(s, _)| s.latency_us(0.99)),
            cpu_load_us: of(&|(s, _)| s.own_cpu as f64 / 1000.0 / s.count as f64),
            cpu_gateway_us: cpu("gateway"),
            cpu_osds_us: cpu("osds"),
            cpu_rest_us: cpu("rest"),
            echo_mean_us,
            latency_ratio: mean_us / echo_mean_us,
            rate_ratio: iops / echo_rate,
        }
    };
    let doors = [("nbd", &through_nbd), ("library", &through_library)];
    Ok(doors.into_iter().filter(|(_, runs)| !runs.is_empty()).map(|(door, runs)| row(door, runs)).collect())
}

fn observed(cluster: &Cluster, target: &mut impl Target, case: Case, size: u64, time: Duration) -> Result<Run> {
    let before = cpu::parts(cluster.pid());
    let sample = load::run(target, case, size, time)?;
    let mut parts = cpu::parts(cluster.pid());
    for (part, ns) in &mut parts {
        *ns -= before.get(part).copied().unwrap_or(0).min(*ns);
    }
    Ok((sample, parts))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn print(rows: &[Row]) {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header([
        "scheme",
        "case",
        "door",
        "IOPS",
        "MB/s",
        "mean us",
        "p50 us",
        "p99 us",
        "cpu: load",
        "gateway",
        "osds",
        "rest",
        "echo us",
        "latency/echo",
        "rate/echo",
    ]);
    for row in rows {
        let numbers = [
            (row.iops, 0),
            (row.mb_per_s, 0),
            (row.mean_us, 1),
            (row.p50_us, 1),
            (row.p99_us, 1),
            (row.cpu_load_us, 2),
            (row.cpu_gateway_us, 2),
            (row.cpu_osds_us, 2),
            (row.cpu_rest_us, 2),
            (row.echo_mean_us, 1),
            (row.latency_ratio, 2),
            (row.rate_ratio, 2),
        ];
        let mut cells = vec![Cell::new(row.scheme), Cell::new(row.case), Cell::new(row.door)];
        let number = |(n, digits): (f64, usize)| Cell::new(format!("{n:.digits$}")).set_alignment(CellAlignment::Right);
        cells.extend(numbers.map(number));
        table.add_row(cells);
    }
    println!("{table}");
    println!("cpu: microseconds of CPU time per operation; load = this program, osds = all OSD threads together");
}
