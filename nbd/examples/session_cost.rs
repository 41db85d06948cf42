//! What a session costs by itself, per 4 KiB request: no socket, and a volume that answers at once with one ready page.

#[path = "../tests/client/mod.rs"]
mod client;

use std::hint::black_box;
use std::time::Instant;

use buffer::Buffer;
use client::Header;
use gateway_core::ram::{RamExports, RamVolume};
use gateway_core::{Output, Session as _, VolumeOp, VolumeReply};
use nbd::{Limits, Session};

const SIZE: u64 = 1 << 30;
const DEPTH: u64 = 32;
const ROUNDS: u64 = 20_000;

struct Null {
    session: Session,
    exports: RamExports,
    page: Buffer,
    tags: Vec<(u64, bool)>,
}

impl Null {
    /// One turn of a driver: all of a slice in, all requests answered, all replies out.
    fn turn(&mut self, slice: &[u8]) {
        self.session.handle_bytes(0, &self.exports, slice);
        self.drain();
        while let Some((tag, is_read)) = self.tags.pop() {
            let reply = if is_read { VolumeReply::Data(vec![self.page.clone()]) } else { VolumeReply::Done };
            self.session.handle_reply(0, tag, reply);
        }
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match black_box(output) {
                Output::Request { tag, op } => self.tags.push((tag, matches!(op, VolumeOp::Read { .. }))),
                Output::Close => panic!("closed"),
                Output::Bytes(_) | Output::Payload(_) | Output::Attach(_) => {}
            }
        }
    }
}

fn measure(name: &str, command: u16) {
    let exports = [RamVolume::with_size("demo", SIZE)].into_iter().collect();
    let session = Session::new(0, Limits::default());
    let mut null = Null { session, exports, page: Buffer::zeroed(4096), tags: Vec::new() };
    null.turn(&[0, 0, 0, 3]);
    null.turn(&client::option(client::OPT_STRUCTURED_REPLY, &[]));
    null.turn(&client::option(client::OPT_GO, &client::info_data("demo", &[])));
    let request = |n: u64| {
        let mut bytes = Header { flags: 0, command, cookie: n, offset: n * 4096, len: 4096 }.encode(false);
        bytes.extend((command == client::CMD_WRITE).then_some([7; 4096]).into_iter().flatten());
        bytes
    };
    let slice: Vec<u8> = (0..DEPTH).flat_map(request).collect();
    let start = Instant::now();
    (0..ROUNDS).for_each(|_| null.turn(&slice));
    println!("{name}: {:.0} ns per request", start.elapsed().as_nanos() as f64 / (DEPTH * ROUNDS) as f64);
}

fn main() {
    measure("4 KiB read ", client::CMD_READ);
    measure("4 KiB write", client::CMD_WRITE);
}
