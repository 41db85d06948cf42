//! How long does a store of 64 GiB of data take to open, and how much memory does it need? Checkpoints are generated
//! into a sparse device in memory; nothing but opening is timed.
//!
//! `cargo run --release -p blockstore --example open_time [GiB] [sectors per extent]`

use std::collections::HashMap;
use std::time::Instant;

use blockstore::{DeviceOp, DeviceResult, Durability, FormatOptions, Store, StoreConfig, StoreState, format};
use buffer::{Buffer, BufferMut};
use cluster_proto::ids::{LayerId, ObjectId, OsdId, PoolId, Version};
use cluster_proto::shard::{Origin, ShardOp, ShardOutcome};
use cluster_proto::{SECTOR, SectorRange};

/// Remembers everything except the data area, which reads as zeroes.
struct Metadata {
    blocks: HashMap<u64, Box<[u8; SECTOR]>>,
    data_offset: u64,
}

impl Metadata {
    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= self.data_offset {
            return;
        }
        for (i, chunk) in data.chunks_exact(SECTOR).enumerate() {
            let block: [u8; SECTOR] = chunk.try_into().expect("whole blocks");
            self.blocks.insert(offset / SECTOR as u64 + i as u64, Box::new(block));
        }
    }

    fn read(&self, offset: u64, len: usize) -> BufferMut {
        let mut out = BufferMut::for_overwrite(len);
        for (i, chunk) in out.chunks_exact_mut(SECTOR).enumerate() {
            match self.blocks.get(&(offset / SECTOR as u64 + i as u64)) {
                Some(block) => chunk.copy_from_slice(&block[..]),
                None => chunk.fill(0),
            }
        }
        out
    }
}

fn run(store: &mut Store, device: &mut Metadata) {
    while let Some(request) = store.poll_device() {
        let result = match request.op {
            DeviceOp::Read { offset, len } => DeviceResult::Read(Ok(device.read(offset, len))),
            DeviceOp::Write { offset, data } => {
                let mut at = offset;
                for piece in &data {
                    device.write(at, piece);
                    at += piece.len() as u64;
                }
                DeviceResult::Done(Ok(()))
            }
            DeviceOp::Flush | DeviceOp::Discard { .. } => DeviceResult::Done(Ok(())),
        };
        store.handle_device(request.token, result);
    }
    while let Some((tag, outcome)) = store.poll_outcome() {
        assert_eq!(outcome, ShardOutcome::Done, "op {tag}");
    }
}

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>().expect("a number"));
    let (gib, extent) = (args.next().unwrap_or(64), args.next().unwrap_or(1) as u32);
    let sectors_per_object = 256;
    let objects = (gib << 30) / (u64::from(sectors_per_object) * SECTOR as u64);
    let device_bytes = (gib << 30) / 16 * 18;
    let options = FormatOptions { device_bytes, cluster: [1; 16], store: [2; 16], osd: OsdId(1), log_bytes: None };
    let mut device = Metadata { blocks: HashMap::new(), data_offset: u64::MAX };
    for write in format(&options).expect("large enough") {
        device.write(write.offset, &write.data);
    }
    let config =
        StoreConfig { memory_bytes_max: 64 << 30, durability: Durability::WriteThrough, discard_sectors_min: 0 };
    let mut store = Store::open(config, device_bytes);
    run(&mut store, &mut device);
    device.data_offset = store.superblock().expect("open").geometry.data_offset;
    fill(&mut store, &mut device, objects, sectors_per_object, extent);
    store.begin_close();
    run(&mut store, &mut device);
    assert_eq!(store.state(), StoreState::Closed);
    drop(store);

    let start = Instant::now();
    let mut store = Store::open(config, device_bytes);
    run(&mut store, &mut device);
    let elapsed = start.elapsed();
    assert_eq!(store.state(), StoreState::Running);
    let stats = store.stats();
    println!(
        "{gib} GiB: {} objects, {} sectors in extents of {extent}; {} log entries replayed; opened in {elapsed:.2?}",
        stats.objects, stats.used_sectors, stats.replayed
    );
    println!(
        "memory {} MiB: {} bytes per object, {:.1} per sector",
        stats.memory_bytes >> 20,
        stats.memory_bytes / stats.objects,
        stats.memory_bytes as f64 / stats.used_sectors as f64
    );
}

/// Writes every object; with extents shorter than an object, in an order that keeps neighbours apart.
fn fill(store: &mut Store, device: &mut Metadata, objects: u64, sectors: u32, extent: u32) {
    let whole = Buffer::zeroed(sectors as usize * SECTOR);
    let crcs = cluster_proto::crc::sector_crcs(&whole);
    let mut version = 0;
    for part in 0..sectors / extent.min(sectors) {
        for index in 0..objects {
            version += 1;
            store.submit(
                version,
                ShardOp::Write {
                    object: ObjectId {
                        pool: PoolId(1),
                        lineage: LayerId(1 + index / 4096),
                        layer: LayerId(1 + index / 4096),
                        index: (index % 4096) as u32,
                        part: 0,
                    },
                    version: Version(version),
                    sectors: SectorRange::new(part * extent, extent),
                    data: whole.slice(..extent as usize * SECTOR),
                    crcs: crcs[..extent as usize].into(),
                    origin: Origin::NONE,
                    lazy: false,
                },
            );
            if index % 256 == 255 {
                run(store, device);
            }
        }
        run(store, device);
    }
}
