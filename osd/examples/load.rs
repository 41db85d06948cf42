//! Rate and latency of 4 KiB requests at OSDs in this process, through the blocking test client.
//!
//!     cargo run --release -p osd --example load -- FOLDER OSDS SECONDS
//!
//! Also says what one request costs the primary's thread: `io_uring_enter` calls and CPU time.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use buffer::Buffer;
use cluster_proto::SectorRange;
use cluster_proto::crc::sector_crcs;
use cluster_proto::wire::RequestOp;
use support::client::{Client, pattern};
use support::{Cluster, object};

const OBJECTS: u32 = 64;
const SECTORS: u32 = 256;

/// CPU time of this process's threads of that name. Microseconds, in steps of 10,000.
fn cpu_us(thread: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs");
    let stats = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    let ticks = |stat: String| {
        let (name, rest) = stat.split_once('(')?.1.split_once(')')?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
        (name == thread).then_some(ticks)
    };
    stats.filter_map(ticks).sum::<u64>() * 10_000
}

fn request(n: u64, write: bool, data: &Buffer) -> (u32, RequestOp) {
    let spot = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let (index, sector) = ((spot % u64::from(OBJECTS)) as u32, (spot / 64 % u64::from(SECTORS)) as u32);
    let sectors = SectorRange::new(sector, 1);
    let op = match write {
        true => RequestOp::Write { sectors, data: data.clone(), crcs: sector_crcs(data) },
        false => RequestOp::Read(sectors),
    };
    (index, op)
}

fn run(cluster: &Cluster, client: &mut Client, write: bool, depth: usize, time: Duration) {
    let data = pattern(5, 1);
    let mut begun = HashMap::new();
    let mut latencies = Vec::new();
    std::thread::sleep(Duration::from_millis(250));
    let (before, cpu) = (cluster.handle(1).live(), cpu_us("osd-1"));
    let start = Instant::now();
    let mut n = 0;
    loop {
        while begun.len() < depth && start.elapsed() < time {
            let (index, op) = request(n, write, &data);
            n += 1;
            begun.insert(client.begin(object(index), op), Instant::now());
        }
        if begun.is_empty() {
            break;
        }
        let reply = client.next_reply();
        assert_eq!(reply.status, cluster_proto::Status::Ok);
        latencies.push(begun.remove(&reply.seq).expect("asked for").elapsed());
    }
    let rate = n as f64 / start.elapsed().as_secs_f64();
    let cpu = cpu_us("osd-1") - cpu;
    std::thread::sleep(Duration::from_millis(250));
    let after = cluster.handle(1).live();
    latencies.sort_unstable();
    let at = |part: usize| latencies[(latencies.len() - 1) * part / 1000].as_micros();
    println!(
        "{} depth {depth:3}: {rate:8.0}/s  p50 {:5} us  p99 {:5} us  primary: {:.2} enters/op  {:.1} us CPU/op",
        if write { "write" } else { "read " },
        at(500),
        at(990),
        (after.reactor.enters - before.reactor.enters) as f64 / n as f64,
        cpu as f64 / n as f64,
    );
}

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let [_, folder, osds, seconds] = &args[..] else {
        eprintln!("usage: load FOLDER OSDS SECONDS");
        std::process::exit(2);
    };
    let osds: u32 = osds.parse().expect("a number of OSDs");
    let time = Duration::from_secs_f64(seconds.parse().expect("seconds"));
    let folder = tempfile::tempdir_in(folder).expect("a folder");
    let mut cluster = Cluster::start_in(folder, osds);
    cluster.serve(&(1..=osds).collect::<Vec<_>>());
    let mut client = cluster.client(1);
    (0..OBJECTS).for_each(|i| client.write(object(i), 0, &pattern(u64::from(i), SECTORS as usize)));
    for write in [false, true] {
        for depth in [1, 32, 128] {
            run(&cluster, &mut client, write, depth, time);
        }
    }
}
