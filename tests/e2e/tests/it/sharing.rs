//! Several connections to one image.

use std::thread;

use e2e::{Cluster, Nbd, PERMISSION_DENIED, Random, eventually, limited};

/// Bytes of one connection's own places.
const SLOT: u64 = 200;
const WRITERS: u64 = 4;
const SLOTS: u64 = 200;
const ROUNDS: u8 = 12;

/// The places of all writers are interleaved, so that every sector is shared by all of them.
fn slot(writer: u64, index: u64) -> u64 {
    100 + (index * WRITERS + writer) * SLOT
}

fn write_slots(mut nbd: Nbd, writer: u64) {
    let mut random = Random::new(writer);
    for round in 1..=ROUNDS {
        let content = vec![round * 10 + writer as u8; SLOT as usize];
        for i in 0..SLOTS {
            if nbd.under_way() == 16 {
                nbd.receive().unwrap().1.unwrap();
            }
            nbd.send(e2e::Command::Write, slot(writer, i), 0, &content, random.percent(10)).unwrap();
        }
        while nbd.under_way() > 0 {
            nbd.receive().unwrap().1.unwrap();
        }
        for _ in 0..10 {
            let i = random.below(SLOTS);
            assert_eq!(nbd.read(slot(writer, i), SLOT as usize).unwrap(), content, "writer {writer}, slot {i}");
        }
    }
}

#[test]
fn unaligned_writes_into_shared_sectors_lose_nothing() {
    limited(120, || {
        let cluster = Cluster::start_with(&["--osd-size", "256M"]);
        assert_eq!(cluster.connect("demo").block_min, 1, "any byte may be written");
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let nbd = cluster.connect("demo");
                scope.spawn(move || write_slots(nbd, writer));
            }
        });
        let mut nbd = cluster.connect("demo");
        for index in 0..SLOTS {
            for writer in 0..WRITERS {
                let found = nbd.read(slot(writer, index), SLOT as usize).unwrap();
                let expected = vec![ROUNDS * 10 + writer as u8; SLOT as usize];
                assert_eq!(found, expected, "writer {writer}, slot {index}");
            }
        }
        assert_eq!(nbd.read(0, 100).unwrap(), [0; 100], "nothing else was touched");
    });
}

#[test]
fn connections_see_each_others_writes_at_once() {
    limited(60, || {
        let cluster = Cluster::start_with(&["--osd-size", "256M"]);
        let (mut a, mut b) = (cluster.connect("demo"), cluster.connect("demo"));
        for i in 0..200u64 {
            let data = Random::new(i).bytes(4096 + 512 * (i as usize % 5));
            a.write(i * 7777, &data).unwrap();
            assert_eq!(b.read(i * 7777, data.len()).unwrap(), data, "{i}");
            std::mem::swap(&mut a, &mut b);
        }
    });
}

#[test]
fn a_read_only_export_refuses_writes_and_shows_those_of_others() {
    limited(60, || {
        let cluster = Cluster::start_with(&["--osd-size", "256M"]);
        cluster.blockyard(&["export", "add", "guest", "--image", "demo", "--read-only", "--json"]).json();
        let mut guest = eventually(10, "the export is served", || Nbd::connect(cluster.nbd(), "guest").ok());
        assert!(guest.is_read_only() && !cluster.connect("demo").is_read_only());
        cluster.connect("demo").write(5000, b"hello").unwrap();
        assert_eq!(guest.read(5000, 5).unwrap(), b"hello");
        let refused = |result: std::io::Result<()>| result.unwrap_err().raw_os_error() == Some(PERMISSION_DENIED);
        assert!(refused(guest.write(5000, b"other")) && refused(guest.trim(4096, 4096)));
        assert_eq!(guest.read(5000, 5).unwrap(), b"hello");
        let list = cluster.blockyard(&["export", "ls", "--json"]).json();
        assert!(
            list.as_array().is_some_and(|l| l.iter().any(|e| e["name"] == "guest" && e["read-only"] == true)),
            "{list}"
        );
        cluster.blockyard(&["export", "rm", "guest"]).ok();
        eventually(10, "the export is gone", || Nbd::connect(cluster.nbd(), "guest").err());
        cluster.connect("demo").write(5000, b"still").unwrap();
    });
}
