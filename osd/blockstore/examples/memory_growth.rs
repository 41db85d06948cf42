//! How much memory does the index take while an image breaks up into single sectors? Objects are written whole, then
//! sector by sector in random order. The device completes everything at once and keeps nothing.
//!
//! `cargo run --release -p blockstore --example memory_growth [objects] [sectors per object]`

mod support;

use blockstore::Store;
use buffer::Buffer;
use cluster_proto::ids::{LayerId, ObjectId, PoolId, Version};
use cluster_proto::shard::{Origin, ShardIndex, ShardOp};
use cluster_proto::{SECTOR, SectorRange};
use support::{open, run};

const DEPTH: u64 = 32;
/// Overwrites per sector.
const ROUNDS: u64 = 6;

/// Bytes resident in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    statm.split(' ').nth(1).expect("a field").parse::<u64>().expect("pages") * 4096
}

/// Extents of an object of which some sectors were written one by one.
fn extents(single: &[bool]) -> u64 {
    single.chunk_by(|a, b| !a && !b).count() as u64
}

/// Which sectors were overwritten, object by object, and what the index needs for them.
struct Image {
    single: Vec<bool>,
    sectors: u32,
}

impl Image {
    /// 24 bytes an object, 8 an extent, 4 a sector.
    fn needed(&self) -> u64 {
        let objects = self.single.chunks(self.sectors as usize);
        objects.map(|own| 24 + 8 * extents(own) + 4 * own.len() as u64).sum()
    }

    fn report(&self, store: &Store, rounds: f64, before: u64) {
        let (mib, stats) = (|bytes: u64| bytes as f64 / f64::from(1 << 20), store.stats());
        let (needed, counted, resident) = (self.needed(), stats.memory_bytes, resident() - before);
        println!(
            "{rounds:4.1} overwrites per sector: needed {:7.1} MiB, counted {:7.1} ({:.2}), resident {:7.1} ({:.2})",
            mib(needed),
            mib(counted),
            counted as f64 / needed as f64,
            mib(resident),
            resident as f64 / needed as f64,
        );
    }
}

fn write(store: &mut Store, version: &mut u64, index: u64, sectors: SectorRange, data: &Buffer) {
    *version += 1;
    let layer = LayerId(3);
    let object = ObjectId { pool: PoolId(1), lineage: layer, layer, index: index as u32, part: 0 };
    let crcs = cluster_proto::crc::sector_crcs(data);
    let (data, version) = (data.clone(), Version(*version));
    let op = ShardOp::Write { object, version, sectors, data, crcs, origin: Origin::NONE, lazy: false };
    store.submit(version.0, op);
}

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>().expect("a number"));
    let (objects, sectors) = (args.next().unwrap_or(4096), args.next().unwrap_or(256) as u32);
    let all = objects * u64::from(sectors);
    let device_bytes = (all * SECTOR as u64 * 5 / 4).max(4 << 30);
    let mut store = open(device_bytes);
    store.set_pool(PoolId(1), 16);
    let (mut version, mut seed, before) = (0, 1u64, resident());
    let mut image = Image { single: vec![false; all as usize], sectors };
    let whole = Buffer::zeroed(SECTOR * sectors as usize);
    for index in 0..objects {
        write(&mut store, &mut version, index, SectorRange::new(0, sectors), &whole);
        run(&mut store);
    }
    image.report(&store, 0.0, before);
    let data = Buffer::zeroed(SECTOR);
    for n in 1..=all * ROUNDS {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (seed >> 20) % all;
        image.single[at as usize] = true;
        let (index, sector) = (at / u64::from(sectors), (at % u64::from(sectors)) as u32);
        write(&mut store, &mut version, index, SectorRange::new(sector, 1), &data);
        if n % DEPTH == 0 {
            run(&mut store);
        }
        if n % (all / 4) == 0 && (n <= all * 2 || n % all == 0) {
            image.report(&store, n as f64 / all as f64, before);
        }
    }
}
