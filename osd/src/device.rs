//! The store's device on the reactor: the store's requests out, the reactor's completions back.

use std::io;

use blockstore::{DeviceError, DeviceOp, DeviceRequest, DeviceResult};
use buffer::BufferMut;
use cluster_io::{DiskId, Reactor};

/// Hands a request of the store to the reactor; its token names the completion.
pub fn submit(reactor: &mut Reactor, disk: DiskId, request: DeviceRequest) {
    let token = request.token;
    match request.op {
        DeviceOp::Read { offset, len } => reactor.disk_read(disk, token, offset, BufferMut::for_overwrite(len)),
        DeviceOp::Write { offset, data } => reactor.disk_write(disk, token, offset, data),
        DeviceOp::Flush => reactor.disk_flush(disk, token),
        DeviceOp::Discard { offset, len } => reactor.disk_discard(disk, token, offset, len),
    }
}

/// A read's outcome in the store's terms.
pub fn read_result(result: Result<BufferMut, io::Error>) -> DeviceResult {
    DeviceResult::Read(result.map_err(device_error))
}

/// The outcome of everything else in the store's terms.
pub fn done_result(result: Result<(), io::Error>) -> DeviceResult {
    DeviceResult::Done(result.map_err(device_error))
}

fn device_error(error: io::Error) -> DeviceError {
    DeviceError(error.raw_os_error().unwrap_or(0))
}
