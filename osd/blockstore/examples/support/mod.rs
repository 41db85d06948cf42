//! A device that completes everything at once and keeps nothing.

use blockstore::{DeviceOp, DeviceResult, FormatWrite, Store};
use buffer::BufferMut;
use cluster_proto::shard::ShardOutcome;

/// Completes every request; reads find what formatting wrote.
pub fn run(store: &mut Store, formatted: &[FormatWrite]) {
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
