//! Measures the embedded store on the disk under a directory: `cargo run --release -p cluster-state --example latency [DIR]`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_state::{EmbeddedStore, StateStore, Txn, connect, serve_etcd};

const WRITES: usize = 2000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parent = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("."), PathBuf::from);
    let dir = parent.join(format!("latency-{}", std::process::id()));
    let store = EmbeddedStore::open(&dir)?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let server = tokio::spawn(serve_etcd(store.clone(), listener, std::future::pending()));
    let local: Arc<dyn StateStore> = Arc::new(store.clone());
    let remote = connect(&address)?;
    println!("256-byte puts, each durable before it is acknowledged");
    println!("{:<22}{:>12}{:>12}{:>12}", "", "puts/s", "p50 us", "p99 us");
    for (name, store) in [("in process", &local), ("through the socket", &remote)] {
        for depth in [1, 32] {
            measure(&format!("{name}, {depth}"), store, depth).await?;
        }
    }
    let before = cpu_time();
    tokio::time::sleep(Duration::from_secs(10)).await;
    println!("idle: {:.3} % of one core", (cpu_time() - before).as_secs_f64() / 10.0 * 100.0);
    server.abort();
    store.close().await;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

async fn measure(name: &str, store: &Arc<dyn StateStore>, depth: usize) -> Result<(), Box<dyn std::error::Error>> {
    let began = Instant::now();
    let writers: Vec<_> = (0..depth)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                for i in 0..WRITES / depth {
                    let start = Instant::now();
                    store.txn(Txn::new().put(format!("bench/{writer}/{}", i % 100), vec![7; 256])).await?;
                    latencies.push(start.elapsed());
                }
                Ok::<_, cluster_state::StateError>(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for writer in writers {
        latencies.extend(writer.await??);
    }
    let rate = latencies.len() as f64 / began.elapsed().as_secs_f64();
    latencies.sort();
    let at = |part: usize| latencies[latencies.len() * part / 100].as_micros();
    println!("{name:<22}{rate:>12.0}{:>12}{:>12}", at(50), at(99));
    Ok(())
}

/// User and system time of this process.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
