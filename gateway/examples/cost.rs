//! What 4 KiB operations over NBD cost: a gateway and three OSDs on files in a temporary folder (`TMPDIR`), driven by fio.
//! Prints IOPS, latency, and CPU per operation of each thread.
//!
//! `cargo run --release -p gateway --example cost [SECONDS]`

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;

use support::Gateway;
use support::cluster::Cluster;
use support::tools::run;

const SIZE: u64 = 256 << 20;

/// CPU time of this process's threads by name. Microseconds; the kernel counts in 10 ms.
fn cpu_us() -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").expect("procfs").flatten() {
        let Ok(stat) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
        let ns: u64 = stat.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
        *all.entry(name.trim().to_owned()).or_default() += ns / 1000;
    }
    all
}

/// A number after `key` in fio's terse JSON.
fn field(json: &serde_json::Value, path: &[&str]) -> f64 {
    path.iter().fold(json, |value, key| &value[*key]).as_f64().unwrap_or(0.0)
}

fn measure(gateway: &Gateway, rw: &str, depth: u32, seconds: u32) -> Option<()> {
    let uri = format!("--uri={}", gateway.unix("demo"));
    let (rw_arg, depth_arg) = (format!("--rw={rw}"), format!("--iodepth={depth}"));
    let time = format!("--runtime={seconds}");
    let fixed = ["--name=cost", "--ioengine=nbd", "--size=256m", "--bs=4k", "--time_based", "--output-format=json"];
    let before = cpu_us();
    let out = run("fio", &[&fixed[..], &[&uri, &rw_arg, &depth_arg, &time]].concat())?;
    let after = cpu_us();
    // The engine says something before the document begins.
    let document = out.find('{').and_then(|start| out.get(start..)).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(document).expect("JSON");
    let side = &json["jobs"][0][if rw == "randread" { "read" } else { "write" }];
    let ops = field(side, &["total_ios"]).max(1.0);
    let us = |key: &str| field(side, &["clat_ns", "percentile", key]) / 1000.0;
    let (p50, p99) = (us("50.000000"), us("99.000000"));
    print!("{rw} depth {depth}: {:.0} IOPS, p50 {p50:.0} us, p99 {p99:.0} us; CPU us/op:", field(side, &["iops"]));
    for (name, total) in after {
        let used = total - before.get(&name).copied().unwrap_or(0);
        if used as f64 / ops > 0.05 {
            print!(" {name} {:.1}", used as f64 / ops);
        }
    }
    println!();
    Some(())
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    for osds in [1, 3] {
        let cluster = Cluster::start(osds);
        cluster.create_image("demo", SIZE);
        let gateway = Gateway::start(&cluster);
        cluster.run(gateway.handle.wait_export("demo"));
        println!("{osds} OSDs, {osds} copies");
        let (uri, fill) = (format!("--uri={}", gateway.unix("demo")), ["--name=fill", "--ioengine=nbd", "--rw=write"]);
        if run("fio", &[&fill[..], &[&uri, "--size=256m", "--bs=1m", "--iodepth=8"]].concat()).is_none() {
            return;
        }
        for (rw, depth) in [
            ("randread", 1),
            ("randread", 32),
            ("randread", 128),
            ("randwrite", 1),
            ("randwrite", 32),
            ("randwrite", 128),
        ] {
            measure(&gateway, rw, depth, seconds);
        }
        gateway.stop();
    }
}
