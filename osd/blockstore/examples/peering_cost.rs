//! What does it cost to answer peering? A million objects in memory, in one PG and in a hundred; nothing is written.
//!
//! `cargo run --release -p blockstore --example peering_cost [thousands of objects]`

mod support;

use std::time::{Duration, Instant};

use buffer::Buffer;
use cluster_proto::ids::{LayerId, ObjectId, PgId, PoolId, Version};
use cluster_proto::shard::{Buckets, Origin, ShardIndex, ShardOp};
use cluster_proto::{PgScope, SectorRange};
use support::{open, run};

fn best<T>(mut ask: impl FnMut() -> T) -> (Duration, T) {
    let mut best = Duration::MAX;
    let mut last = ask();
    for _ in 0..20 {
        let start = Instant::now();
        last = ask();
        best = best.min(start.elapsed());
    }
    (best, last)
}

fn main() {
    let thousands = std::env::args().nth(1).map_or(1000, |a| a.parse::<u32>().expect("a number"));
    let count = thousands * 1000;
    // Room for every object with a sector, and a quarter of that in objects.
    let device_bytes = u64::from(count) * 4096 * 5;
    let mut store = open(device_bytes);
    let pool = PoolId(1);
    let object = |i: u32| ObjectId {
        pool,
        lineage: LayerId(1 + u64::from(i / 100_000)),
        layer: LayerId(1 + u64::from(i / 100_000)),
        index: i % 100_000,
        part: 0,
    };
    let data = Buffer::zeroed(4096);
    let crcs = cluster_proto::crc::sector_crcs(&data);
    for i in 0..count {
        let (object, version, sectors) = (object(i), Version(u64::from(i) + 1), SectorRange::new(0, 1));
        let op = if i % 1000 == 7 {
            ShardOp::Delete { object, version, origin: Origin::NONE }
        } else {
            ShardOp::Write {
                object,
                version,
                sectors,
                data: data.clone(),
                crcs: crcs.clone(),
                origin: Origin::NONE,
                lazy: false,
            }
        };
        store.submit(u64::from(i), op);
        if i % 256 == 255 {
            run(&mut store);
        }
    }
    run(&mut store);
    let partitions = store.superblock().expect("open").geometry.partitions;
    println!("{} objects, {partitions} partitions", store.space().objects);
    for pg_count in [1, 100] {
        let start = Instant::now();
        store.set_pool(pool, pg_count);
        let declared = start.elapsed();
        let pg = PgScope { pg: PgId { pool, index: 0 }, count: pg_count };
        let mut one = Buckets::default();
        one.insert(77);
        let mut eight = Buckets::default();
        (0..256).step_by(32).for_each(|bucket| eight.insert(bucket));
        let (digests, _) = best(|| store.digests(pg));
        let (none, _) = best(|| store.list(pg, &Buckets::default()).len());
        let (list_one, in_one) = best(|| store.list(pg, &one).len());
        let (list_eight, in_eight) = best(|| store.list(pg, &eight).len());
        let (list_all, in_all) = best(|| store.list(pg, &Buckets::ALL).len());
        let (tombstones, deleted) = best(|| store.tombstones(pg).len());
        println!("{pg_count} PGs: set_pool {declared:.2?}; digests {digests:.2?}; list of no bucket {none:.2?}");
        println!("  1 bucket {list_one:.2?} ({in_one} heads), 8 buckets {list_eight:.2?} ({in_eight})");
        println!("  256 buckets {list_all:.2?} ({in_all}), tombstones {tombstones:.2?} ({deleted})");
    }
    println!("memory {} bytes per object", store.stats().memory_bytes / u64::from(count));
}
