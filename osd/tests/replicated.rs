//! Three OSDs: copies, restarts of members, damage.

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use buffer::Buffer;
use cluster_proto::SECTOR;
use cluster_proto::wire::RequestOp;
use support::client::pattern;
use support::{Cluster, object};

/// Byte offset of a sector with this content in an OSD's file.
fn find_sector(cluster: &Cluster, id: u32, content: &[u8]) -> u64 {
    let file = std::fs::read(cluster.path(id)).expect("the OSD's file");
    let found: Vec<_> = file.chunks(SECTOR).enumerate().filter(|(_, sector)| *sector == content).collect();
    assert_eq!(found.len(), 1, "one copy per OSD");
    (found[0].0 * SECTOR) as u64
}

#[test]
fn every_member_has_every_write() {
    let mut cluster = Cluster::start(3);
    cluster.serve(&[1, 2, 3]);
    let mut client = cluster.client(1);
    for i in 0..16 {
        client.write(object(i), i, &pattern(u64::from(i), 8));
    }
    assert_eq!(client.call(object(3), RequestOp::Delete).status, cluster_proto::Status::Ok);
    for lead in [[2, 3, 1], [3, 1, 2]] {
        cluster.serve(&lead);
        let mut client = cluster.client(lead[0]);
        for i in 0..16 {
            let expected = if i == 3 { Buffer::zeroed(8 * SECTOR) } else { pattern(u64::from(i), 8) };
            assert!(client.read(object(i), i, 8) == expected, "object {i} at OSD {}", lead[0]);
        }
    }
}

#[test]
fn a_damaged_sector_is_repaired_and_counted() {
    let mut cluster = Cluster::start(3);
    cluster.serve(&[1, 2, 3]);
    let mut client = cluster.client(1);
    let data = pattern(77, 16);
    client.write(object(0), 4, &data);
    let at = find_sector(&cluster, 1, &data[5 * SECTOR..6 * SECTOR]);
    let file = OpenOptions::new().write(true).open(cluster.path(1)).expect("the OSD's file");
    file.write_all_at(b"bit rot", at + 100).expect("written");
    file.sync_all().expect("synced");
    // Looking for the sector may have taken longer than an OSD bears with a silent client.
    let mut client = cluster.client(1);
    assert!(client.read(object(0), 4, 16) == data);
    let live = cluster.wait(1, "the repair is counted", |live| live.stats.repaired_sectors > 0);
    assert_eq!(live.stats.repaired_sectors, 1);
    assert!(live.stats.crc_errors >= 1, "{live:?}");
    assert!(client.read(object(0), 4, 16) == data);
    assert_ne!(find_sector(&cluster, 1, &data[5 * SECTOR..6 * SECTOR]), at, "the good copy is somewhere else");
    let reads = live.stats.reads;
    let later = cluster.wait(1, "the last read is counted", |live| live.stats.reads > reads || reads > 1);
    assert_eq!((later.stats.repaired_sectors, later.stats.crc_errors), (1, live.stats.crc_errors), "once was enough");
}

#[test]
fn a_member_that_was_away_is_brought_up_to_date() {
    let mut cluster = Cluster::start(3);
    cluster.serve(&[1, 2, 3]);
    let mut client = cluster.client(1);
    for i in 0..12 {
        client.write(object(i), 0, &pattern(u64::from(i), 4));
    }
    cluster.stop(3);
    cluster.serve_degraded(&[1, 2], &[1, 2, 3]);
    for i in 0..6 {
        client.write(object(i), 2, &pattern(100 + u64::from(i), 1));
    }
    assert_eq!(client.call(object(7), RequestOp::Delete).status, cluster_proto::Status::Ok);
    client.write(object(20), 0, &pattern(20, 256));
    cluster.spawn(3);
    cluster.serve(&[1, 2, 3]);
    client.write(object(21), 0, &pattern(21, 1));
    cluster.serve(&[3, 2, 1]);
    let mut client = cluster.client(3);
    for i in 0..12 {
        let mut expected = pattern(u64::from(i), 4).to_vec();
        if i < 6 {
            expected[2 * SECTOR..3 * SECTOR].copy_from_slice(&pattern(100 + u64::from(i), 1));
        }
        if i == 7 {
            expected.fill(0);
        }
        assert!(client.read(object(i), 0, 4)[..] == expected[..], "object {i}");
    }
    assert!(client.read(object(20), 0, 256) == pattern(20, 256));
    assert!(client.read(object(21), 0, 1) == pattern(21, 1));
}

#[test]
fn a_write_waits_for_a_member_that_restarts() {
    let mut cluster = Cluster::start(2);
    cluster.serve(&[1, 2]);
    let mut client = cluster.client(1);
    client.write(object(0), 0, &pattern(1, 1));
    cluster.stop(2);
    // Nobody has begun another interval yet: this write must not be acknowledged by one member alone.
    let sectors = cluster_proto::SectorRange::new(0, 1);
    let data = pattern(2, 1);
    let crcs = cluster_proto::crc::sector_crcs(&data);
    let seq = client.begin(object(0), RequestOp::Write { sectors, data, crcs });
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(cluster.handle(1).live().held_requests, 1);
    cluster.spawn(2);
    cluster.serve(&[1, 2]);
    let reply = client.next_reply();
    assert_eq!((reply.seq, reply.status), (seq, cluster_proto::Status::Ok));
    cluster.serve(&[2, 1]);
    assert_eq!(cluster.client(2).read(object(0), 0, 1), pattern(2, 1));
}
