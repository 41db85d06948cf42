//! What does the store itself cost per 4 KiB overwrite of fragmented objects? The device completes everything at once and
//! keeps nothing.
//!
//! `cargo run --release -p blockstore --example write_cost`

mod support;

use std::time::{Duration, Instant};

use buffer::Buffer;
use cluster_proto::SectorRange;
use cluster_proto::ids::{LayerId, ObjectId, PoolId, Version};
use cluster_proto::shard::{Origin, ShardIndex, ShardOp};
use support::{open, run};

const DEPTH: u64 = 32;
const OBJECTS: u64 = 256;
const SECTORS: u64 = 256;

fn main() {
    let device_bytes = 4 << 30;
    let mut store = open(device_bytes);
    store.set_pool(PoolId(1), 16);
    let data = Buffer::zeroed(4096);
    let crcs = cluster_proto::crc::sector_crcs(&data);
    let (mut version, mut seed) = (0, 1u64);
    for kind in ["write", "stage and commit"] {
        let mut best = Duration::MAX;
        for _ in 0..20_000 {
            let start = Instant::now();
            let mut staged = Vec::with_capacity(DEPTH as usize);
            for _ in 0..DEPTH {
                version += 1;
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let layer = LayerId(3);
                let index = (seed >> 33) % OBJECTS;
                let object = ObjectId { pool: PoolId(1), lineage: layer, layer, index: index as u32, part: 0 };
                let sectors = SectorRange::new((seed >> 45) as u32 % SECTORS as u32, 1);
                let (data, crcs, version) = (data.clone(), crcs.clone(), Version(version));
                let op = if kind == "write" {
                    ShardOp::Write { object, version, sectors, data, crcs, origin: Origin::NONE, lazy: false }
                } else {
                    staged.push((object, version));
                    ShardOp::Stage { object, version, sectors, rows: sectors, data, crcs, origin: Origin::NONE }
                };
                store.submit(version.0, op);
            }
            run(&mut store);
            for (object, version) in staged {
                store.submit(version.0, ShardOp::Commit { object, version });
            }
            run(&mut store);
            best = best.min(start.elapsed());
        }
        println!(
            "{kind}: {:.0} ns each at depth {DEPTH}, best of 20,000 batches",
            best.as_nanos() as f64 / DEPTH as f64
        );
    }
}
