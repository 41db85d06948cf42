//! What waits to be polled by the driver.

use std::collections::VecDeque;

use buffer::Buffer;
use gateway_core::{Bytes, Output, VolumeOp};

#[derive(Default)]
pub(super) struct Outbox {
    queue: VecDeque<Output>,
}

impl Outbox {
    /// Sends the parts one after the other, as one piece.
    pub(super) fn send(&mut self, parts: &[&[u8]]) {
        let mut bytes = Bytes::new();
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        self.queue.push_back(Output::Bytes(bytes));
    }

    pub(super) fn send_payload(&mut self, payload: Buffer) {
        self.queue.push_back(Output::Payload(payload));
    }

    pub(super) fn attach(&mut self, name: &str) {
        self.queue.push_back(Output::Attach(name.to_owned()));
    }

    pub(super) fn request(&mut self, tag: u64, op: VolumeOp) {
        self.queue.push_back(Output::Request { tag, op });
    }

    pub(super) fn close(&mut self) {
        self.queue.push_back(Output::Close);
    }

    pub(super) fn poll(&mut self) -> Option<Output> {
        self.queue.pop_front()
    }
}
