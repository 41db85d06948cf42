//! A store on a device that completes everything at once and keeps nothing.

use blockstore::{DeviceOp, DeviceResult, Durability, FormatOptions, FormatWrite, Store, StoreConfig, format};
use buffer::BufferMut;
use cluster_proto::ids::OsdId;
use cluster_proto::shard::ShardOutcome;

/// An empty store.
pub fn open(device_bytes: u64) -> Store {
    let options = FormatOptions { device_bytes, cluster: [1; 16], store: [2; 16], osd: OsdId(1), log_bytes: None };
    let formatted = format(&options).expect("large enough");
    let config =
        StoreConfig { memory_bytes_max: 64 << 30, durability: Durability::WriteThrough, discard_sectors_min: 0 };
    let mut store = Store::open(config, device_bytes);
    complete(&mut store, &formatted);
    assert!(store.is_running());
    store
}

/// Completes every request.
pub fn run(store: &mut Store) {
    complete(store, &[]);
}

/// Completes every request; reads find what formatting wrote.
fn complete(store: &mut Store, formatted: &[FormatWrite]) {
    while let Some(request) = store.poll_device() {
        let result = match request.op {
            DeviceOp::Read { offset, len } => DeviceResult::Read(Ok(read(formatted, offset, len))),
            _ => DeviceResult::Done(Ok(())),
        };
        store.handle_device(request.token, result);
    }
    while let Some((tag, outcome)) = store.poll_outcome() {
        assert_eq!(outcome, ShardOutcome::Done, "op {tag}");
    }
}

fn read(formatted: &[FormatWrite], offset: u64, len: usize) -> BufferMut {
    let mut out = BufferMut::zeroed(len);
    for write in formatted {
        let end = write.offset + write.data.len() as u64;
        let (from, to) = (write.offset.max(offset), end.min(offset + len as u64));
        if from < to {
            let data = &write.data[(from - write.offset) as usize..(to - write.offset) as usize];
            out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(data);
        }
    }
    out
}
