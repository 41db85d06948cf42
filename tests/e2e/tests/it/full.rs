//! Full OSDs: writers pause, they do not fail.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use e2e::{Cluster, Command, Nbd, Random, limited};

const PIECE: usize = 256 << 10;
/// What is left of pieces that are freed: no object is freed whole.
const KEPT: usize = 64 << 10;

/// Writes until no answer comes for a while. Returns how many pieces were acknowledged.
fn fill(nbd: &mut Nbd) -> u64 {
    nbd.set_patience(Some(Duration::from_secs(4))).unwrap();
    let mut acknowledged = 0;
    loop {
        let data = Random::new(acknowledged).bytes(PIECE);
        nbd.send(Command::Write, acknowledged * PIECE as u64, 0, &data, false).unwrap();
        match nbd.receive() {
            Ok((_, answer)) => answer.unwrap_or_else(|e| panic!("write {acknowledged} failed: {e}")),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return acknowledged,
            Err(e) => panic!("the connection broke at write {acknowledged}: {e}"),
        };
        acknowledged += 1;
        assert!(acknowledged < 8 * 64, "128 MiB hold no more than that");
    }
}

#[test]
fn a_writer_pauses_when_the_disk_is_full_and_continues_when_there_is_space() {
    fill_and_free(&["--osds", "2", "--osd-size", "64M"]);
}

#[test]
fn a_writer_of_an_erasure_coded_image_pauses_and_continues_as_well() {
    fill_and_free(&["--ec", "2+1", "--osd-size", "64M"]);
}

fn fill_and_free(arguments: &'static [&'static str]) {
    limited(180, || {
        let mut cluster = Cluster::start_with(arguments);
        let mut writer = cluster.connect("demo");
        let acknowledged = fill(&mut writer);
        println!("{acknowledged} pieces of 256 KiB fit, then the writer waits");
        assert!(acknowledged > 64, "more than a quarter of the space is for data: {acknowledged}");
        let mut other = cluster.connect("demo");
        let first = other.read(0, PIECE).unwrap();
        assert!(first == Random::new(0).bytes(PIECE), "full stores can be read");
        // Also what takes space before it frees any, as parity of a part of an object does.
        other.trim(8192, 48 << 10).unwrap();
        let freed = acknowledged / 2;
        for piece in 0..freed {
            other.trim(piece * PIECE as u64 + KEPT as u64, PIECE - KEPT).unwrap();
        }
        writer.set_patience(Some(Duration::from_secs(60))).unwrap();
        let begin = Instant::now();
        writer.receive().expect("the writer goes on").1.expect("without an error");
        println!("it continued {:?} after space was freed", begin.elapsed());
        for piece in 1..freed {
            let found = other.read(piece * PIECE as u64, PIECE).unwrap();
            assert!(found[..KEPT] == Random::new(piece).bytes(PIECE)[..KEPT], "what is left of piece {piece}");
            assert!(found[KEPT..].iter().all(|byte| *byte == 0), "what was freed of piece {piece}");
        }
        for piece in freed..=acknowledged {
            let found = other.read(piece * PIECE as u64, PIECE).unwrap();
            assert!(found == Random::new(piece).bytes(PIECE), "piece {piece}");
        }
        // A full store starts again.
        let mut writer = cluster.connect("demo");
        fill(&mut writer);
        cluster.kill();
        cluster.start_again();
        let mut nbd = cluster.connect("demo");
        assert!(nbd.read(freed * PIECE as u64, PIECE).unwrap() == Random::new(freed).bytes(PIECE));
        nbd.trim(0, 32 << 20).unwrap();
        nbd.write(0, &[1; 4096]).unwrap();
    });
}
