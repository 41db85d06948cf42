//! What the sums of a sector cost, and what it costs to know the checksum of a product by them.

use std::hint::black_box;
use std::time::Instant;

use cluster_proto::SECTOR;
use cluster_proto::crc::crc32c;
use cluster_proto::planes::{planes, remainder_of_product};

fn measured(what: &str, count: u32, mut work: impl FnMut(usize)) {
    let begin = Instant::now();
    (0..count as usize).for_each(&mut work);
    println!("{what}: {:.0} ns", begin.elapsed().as_nanos() as f64 / f64::from(count));
}

fn main() {
    let data: Vec<u8> = (0..256 * SECTOR).map(|i| (i * 7 + i / 251) as u8).collect();
    let sector = |i: usize| &data[i % 256 * SECTOR..][..SECTOR];
    let known = planes(sector(3));
    measured("checksum of a sector", 1 << 20, |i| {
        black_box(crc32c(sector(i)));
    });
    measured("planes of a sector", 1 << 18, |i| {
        black_box(planes(sector(i)));
    });
    let images = [1, 2, 4, 8, 16, 32, 64, 255].map(black_box);
    measured("remainder of a product", 1 << 20, |_| {
        black_box(remainder_of_product(black_box(&known), &images));
    });
}
