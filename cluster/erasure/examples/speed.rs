//! Prints how fast each kernel of this machine is: GB/s of data (what is read, not what is written), one thread.
//!
//! `cargo run --release -p erasure --example speed`

use std::hint::black_box;
use std::time::{Duration, Instant};

use erasure::{Code, Kernel};

const SHAPES: [(usize, usize); 3] = [(2, 1), (4, 2), (8, 3)];
const RUN: Duration = Duration::from_millis(60);

/// Best time of one call. Nanoseconds.
fn time(mut call: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    let end = Instant::now() + RUN;
    while Instant::now() < end {
        let begin = Instant::now();
        for _ in 0..32 {
            call();
        }
        best = best.min(begin.elapsed().as_nanos() as f64 / 32.0);
    }
    best
}

fn shards(count: usize, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|s| (0..len).map(|i| (i * 31 + s * 7) as u8).collect()).collect()
}

fn measure(kernel: Kernel, data: usize, parity: usize, len: usize) {
    let Ok(code) = Code::with_kernel(data, parity, kernel) else { return };
    let input = shards(data, len);
    let input: Vec<&[u8]> = input.iter().map(Vec::as_slice).collect();
    let mut output = shards(parity, len);
    let mut output: Vec<&mut [u8]> = output.iter_mut().map(Vec::as_mut_slice).collect();
    let encode = time(|| code.encode(black_box(&input), black_box(&mut output)));
    let update = time(|| code.update(0, black_box(input[1]), parity - 1, black_box(output[parity - 1])));
    // The first data shard is lost, the first parity stands in for it.
    let present: Vec<(usize, &[u8])> = (1..=data).map(|i| (i, input[i % data])).collect();
    let rebuild = time(|| {
        code.reconstruct(black_box(&present), &[0], black_box(&mut output[..1])).expect("a legal call");
    });
    // Two bytes of each shard: what is left is the cost of the decoding matrix.
    let short: Vec<(usize, &[u8])> = present.iter().map(|(i, shard)| (*i, &shard[..1])).collect();
    let mut byte = [0];
    let solve = time(|| code.reconstruct(black_box(&short), &[0], &mut [black_box(&mut byte)]).expect("a legal call"));
    let rate = |bytes: usize, ns: f64| bytes as f64 / ns;
    println!(
        "{:9} {data}+{parity} {:>4} KiB  encode {:6.1}  update {:6.1}  rebuild 1 {:6.1} GB/s  decoding matrix {solve:4.0} ns",
        format!("{kernel:?}"),
        len >> 10,
        rate(data * len, encode),
        rate(len, update),
        rate(data * len, rebuild),
    );
}

fn main() {
    for kernel in Kernel::ALL {
        if !kernel.is_available() {
            println!("{kernel:?}: not on this machine");
        }
        for len in [4 << 10, 128 << 10] {
            for (data, parity) in SHAPES {
                measure(kernel, data, parity, len);
            }
        }
    }
}
