//! Prints what messages with payloads cost on plain and on encrypted connections, and what an introduction costs. One thread.
//!
//! `cargo run --release -p cluster-proto --example seal`

use std::hint::black_box;
use std::time::{Duration, Instant};

use buffer::Buffer;
use cluster_proto::auth::{ClusterKey, Credentials, Introductions, Side};
use cluster_proto::crc::sector_crcs;
use cluster_proto::ids::{ClientId, Incarnation, OsdId, Version};
use cluster_proto::link::Identity;
use cluster_proto::wire::{Decoder, Hello, Message, Nonce, Reply, ReplyBody, Role, Session, encode};
use cluster_proto::{Status, Uuid};

const RUN: Duration = Duration::from_millis(300);

/// Calls timed at once.
const BATCH: usize = 4;

fn median(times: impl Iterator<Item = f64>) -> f64 {
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Median time of a call. Nanoseconds.
fn time(mut call: impl FnMut()) -> f64 {
    let end = Instant::now() + RUN;
    median(std::iter::from_fn(|| {
        let begin = Instant::now();
        (0..BATCH).for_each(|_| call());
        (begin < end).then(|| begin.elapsed().as_nanos() as f64 / BATCH as f64)
    }))
}

fn reply(len: usize) -> Message {
    let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
    let body = ReplyBody::Data { crcs: sector_crcs(&bytes), data: Buffer::copy_of(&bytes) };
    Message::Reply(Reply { seq: 1, status: Status::Ok, version: Version::NONE, unsynced: false, body })
}

/// Appends all of a message, as the connection's send buffer and the kernel would have it.
fn put_plain(message: &Message, out: &mut Vec<u8>) {
    if let Some(payload) = encode(message, out) {
        out.extend_from_slice(&payload);
    }
}

fn hellos(credentials: &Credentials) -> (Hello, Hello) {
    let of = |role| Identity {
        cluster: Uuid::from_u128(1),
        role,
        incarnation: Incarnation(1),
        credentials: Some(credentials.clone()),
    };
    let hello = of(Role::Client(ClientId(1))).hello(OsdId(2), Nonce([1; 32]));
    (hello, of(Role::Osd(OsdId(2))).hello(OsdId(2), Nonce([2; 32])))
}

fn sessions(credentials: &Credentials) -> [Box<Session>; 2] {
    let (hello, welcome) = hellos(credentials);
    let both = Introductions { hello: &hello, welcome: &welcome };
    [Side::Connecting, Side::Accepting].map(|side| both.session(credentials, side).expect("encryption is asked for"))
}

fn measure(credentials: &Credentials, len: usize) {
    let message = reply(len);
    let mut out = Vec::new();
    let plain = time(|| {
        out.clear();
        put_plain(black_box(&message), &mut out);
    });
    let mut decoder = Decoder::new();
    decoder.introduce(None);
    let plain_decode = time(|| {
        black_box(decoder.decode(&mut black_box(&out[..])).expect("a good message"));
    });
    let [near, far] = sessions(credentials);
    let mut sealer = near.sealer;
    let seal = time(|| {
        out.clear();
        sealer.seal(black_box(&message), &mut out);
    });
    // Each record opens once: sealed ahead, so that only the opening is timed.
    let [mut fresh, _] = sessions(credentials);
    let mut decoder = Decoder::new();
    decoder.introduce(Some(far.opener));
    let count = (16 << 20) / (len + 4096) / BATCH * BATCH;
    let mut ahead = Vec::new();
    (0..count).for_each(|_| fresh.sealer.seal(&message, &mut ahead));
    let mut input = &ahead[..];
    let open = median((0..count / BATCH).map(|_| {
        let begin = Instant::now();
        for _ in 0..BATCH {
            black_box(decoder.decode(&mut input).expect("a good record"));
        }
        begin.elapsed().as_nanos() as f64 / BATCH as f64
    }));
    println!(
        "{:>4} KiB  encode {plain:7.0} ns, sealed {seal:7.0}   decode {plain_decode:7.0} ns, sealed {open:7.0}",
        len >> 10
    );
}

fn main() {
    let credentials = Credentials { key: ClusterKey::from_bytes([7; 32]), encrypt: true };
    for len in [0, 4 << 10, 16 << 10, 128 << 10, 1 << 20] {
        measure(&credentials, len);
    }
    let (hello, welcome) = hellos(&credentials);
    let both = Introductions { hello: &hello, welcome: &welcome };
    let proof = both.proof(&credentials.key, Side::Connecting);
    let prove = time(|| {
        black_box(both.proof(&credentials.key, Side::Accepting));
        black_box(both.is_proved(&credentials.key, Side::Connecting, &proof));
    });
    let derive = time(|| {
        black_box(both.session(&credentials, Side::Accepting));
    });
    println!("introduction, each side: proofs {prove:.0} ns, keys {derive:.0} ns");
}
