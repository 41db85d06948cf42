//! One OSD: every kind of request, restart, and peers that do not behave.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use buffer::Buffer;
use cluster_proto::auth::{ClusterKey, Credentials};
use cluster_proto::ids::OsdId;
use cluster_proto::map::{Activation, OsdState, OsdStats, keys};
use cluster_proto::wire::{Refusal, RequestOp};
use cluster_proto::{PgId, SECTOR, SectorRange, Status, Uuid};
use cluster_state::StateStore;
use osd::{End, ErrorKind, PrepareOptions, prepare, spawn};
use support::client::pattern;
use support::{Cluster, POOL, any_port, object};

#[test]
fn every_request_does_what_it_says() {
    let mut cluster = Cluster::start(1);
    cluster.serve(&[1]);
    let mut client = cluster.client(1);
    let (a, b) = (pattern(1, 1), pattern(2, 256));
    assert!(client.read(object(0), 3, 2) == Buffer::zeroed(2 * SECTOR), "never written");
    client.write(object(0), 3, &a);
    assert!(client.read(object(0), 3, 1) == a);
    client.write(object(1), 0, &b);
    assert!(client.read(object(1), 0, 256) == b);
    assert_eq!(client.allocation(object(0), 0, 8), [(3, false), (1, true), (4, false)]);

    assert_eq!(client.compare_and_write(object(0), 3, &pattern(9, 1), &pattern(3, 1)), Status::Mismatch);
    assert!(client.read(object(0), 3, 1) == a);
    assert_eq!(client.compare_and_write(object(0), 3, &a, &pattern(3, 1)), Status::Ok);
    assert!(client.read(object(0), 3, 1) == pattern(3, 1));

    assert_eq!(client.call(object(1), RequestOp::Zero(SectorRange::new(16, 16))).status, Status::Ok);
    assert_eq!(client.allocation(object(1), 0, 64), [(16, true), (16, false), (32, true)]);
    assert!(client.read(object(1), 16, 16) == Buffer::zeroed(16 * SECTOR));
    assert!(client.read(object(1), 32, 4)[..] == b[32 * SECTOR..36 * SECTOR]);

    assert_eq!(client.call(object(1), RequestOp::Delete).status, Status::Ok);
    assert!(client.read(object(1), 0, 256) == Buffer::zeroed(256 * SECTOR));
    assert_eq!(client.call(object(0), RequestOp::Sync).status, Status::Ok);

    let beyond = RequestOp::Read(SectorRange::new(256, 1));
    assert_eq!(client.call(object(0), beyond).status, Status::Invalid, "outside the object");
    let live = cluster.wait(1, "all is counted", |live| live.stats.writes >= 5);
    assert_eq!(live.stats.write_bytes, (1 + 256 + 1) * SECTOR as u64);
    assert_eq!((live.connections, live.stats.pgs_active, live.stats.crc_errors), (1, support::PG_COUNT, 0));
}

#[test]
fn the_cluster_state_learns_of_the_osd() {
    let mut cluster = Cluster::start(1);
    cluster.serve(&[1]);
    cluster.client(1).write(object(0), 0, &pattern(1, 1));
    let get = |key: &str| {
        let found = cluster.runtime.block_on(cluster.state.get(key)).expect("memory");
        found.map(|entry| entry.value)
    };
    let state: OsdState = serde_json::from_slice(&get(&keys::osd(OsdId(1))).expect("registered")).expect("JSON");
    let handle = cluster.handle(1);
    assert_eq!((state.address, state.incarnation), (handle.address(), handle.incarnation()));
    let activation = get(&keys::pg_activation(PgId { pool: POOL, index: 0 })).expect("activated");
    let activation: Activation = serde_json::from_slice(&activation).expect("JSON");
    assert_eq!((activation.epoch.0, activation.acting.len()), (1, 1));
    let stats = (0..100).find_map(|_| {
        std::thread::sleep(Duration::from_millis(100));
        get(&keys::osd_stats(OsdId(1)))
    });
    let stats: OsdStats = serde_json::from_slice(&stats.expect("written every two seconds")).expect("JSON");
    assert_eq!(stats.incarnation, state.incarnation);
    assert!(stats.space.total > 0 && stats.space.total <= support::DEVICE_BYTES);
    cluster.stop(1);
    assert_eq!(cluster.runtime.block_on(cluster.state.get(&keys::osd(OsdId(1)))).expect("memory"), None);
}

#[test]
fn a_restart_keeps_everything() {
    let mut cluster = Cluster::start(1);
    for round in 0..4u64 {
        cluster.serve(&[1]);
        let mut client = cluster.client(1);
        for past in 0..round {
            assert!(client.read(object(past as u32), 5, 33) == pattern(past, 33), "round {past} seen in {round}");
        }
        client.write(object(round as u32), 5, &pattern(round, 33));
        let before = cluster.handle(1).incarnation();
        cluster.stop(1);
        cluster.spawn(1);
        assert_ne!(cluster.handle(1).incarnation(), before);
    }
    let live = cluster.wait(1, "published", |live| live.store.objects == 4);
    assert_eq!(live.store.cut, 0, "it was closed in order");
}

#[test]
fn io_goes_on_without_the_state_store() {
    let mut cluster = Cluster::start(1);
    cluster.serve(&[1]);
    let mut client = cluster.client(1);
    client.write(object(0), 0, &pattern(1, 1));
    // A placement group cannot become active without the state store.
    cluster.wait(1, "all are active", |live| live.stats.pgs_active == support::PG_COUNT);
    cluster.runtime.block_on(cluster.state.close());
    // Longer than the lease and than a few attempts at it.
    for i in 0..30 {
        client.write(object(i), 0, &pattern(u64::from(i), 2));
        assert!(client.read(object(i), 0, 2) == pattern(u64::from(i), 2));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(cluster.handle(1).end(), None);
    drop(client);
    cluster.stop(1);
}

#[test]
fn strangers_are_turned_away() {
    let mut cluster = Cluster::start(1);
    cluster.serve(&[1]);
    let refusal = |id, target| cluster.introduce(1, id, target, None).err();
    assert_eq!(refusal(Uuid::new_v4(), OsdId(1)), Some(Refusal::Cluster));
    assert_eq!(refusal(cluster.id, OsdId(2)), Some(Refusal::Target));
    assert_eq!(cluster.introduce(1, cluster.id, OsdId(1), key(1, false)).err(), Some(Refusal::KeyUnexpected));
    cluster.client(1).write(object(0), 0, &pattern(1, 1));
}

fn key(byte: u8, encrypt: bool) -> Option<Credentials> {
    Some(Credentials { key: ClusterKey::from_bytes([byte; 32]), encrypt })
}

#[test]
fn a_guarded_cluster_serves_those_who_have_its_key() {
    for encrypt in [false, true] {
        let mut cluster = Cluster::start_guarded(2, key(1, encrypt).expect("a key"));
        cluster.serve(&[1, 2]);
        let mut client = cluster.client(1);
        let data = pattern(4, 64);
        client.write(object(0), 8, &data);
        assert!(client.read(object(0), 8, 64) == data);
        cluster.wait(2, "the copy", |live| live.store.objects == 1);
        let refusal = |credentials| cluster.introduce(1, cluster.id, OsdId(1), credentials).err();
        assert_eq!(refusal(None), Some(Refusal::KeyMissing));
        assert_eq!(refusal(key(2, encrypt)), Some(Refusal::Key));
        // One that wants encryption gets it.
        assert!(cluster.introduce(1, cluster.id, OsdId(1), key(1, true)).is_ok());
        assert!(client.read(object(0), 8, 64) == data, "others did not notice");
    }
}

#[test]
fn garbage_does_no_harm() {
    let mut cluster = Cluster::start(1);
    cluster.serve(&[1]);
    let mut client = cluster.client(1);
    client.write(object(0), 0, &pattern(1, 1));
    let address = cluster.handle(1).address();
    for seed in 0..64 {
        let mut stream = TcpStream::connect(address).expect("it listens");
        let mut bytes = pattern(seed, 1).to_vec();
        // Some look like messages at first.
        match seed % 4 {
            1 => bytes[..4].copy_from_slice(b"BYD1"),
            2 => bytes[..12].copy_from_slice(b"BYD1\x0a\0\x38\0\xff\xff\xff\x7f"),
            3 => bytes.truncate(17),
            _ => {}
        }
        // The OSD may have hung up before all of it is sent, and hangs up at the latest when we do.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(client.read(object(0), 0, 1) == pattern(1, 1), "others did not notice");
    cluster.wait(1, "only the client is left", |live| live.connections == 1);
    assert_eq!(cluster.handle(1).end(), None);
}

#[test]
fn a_peer_that_breaks_the_protocol_later_is_cut_off() {
    let mut cluster = Cluster::start(1);
    cluster.serve(&[1]);
    let mut other = cluster.client(1);
    let mut bad = cluster.client(1);
    bad.write(object(0), 0, &pattern(1, 1));
    let data = pattern(2, 1);
    // The checksum belongs to other data.
    let crcs = cluster_proto::crc::sector_crcs(&pattern(3, 1));
    bad.begin(object(0), RequestOp::Write { sectors: SectorRange::new(0, 1), data, crcs });
    cluster.wait(1, "it is cut off", |live| live.connections == 1);
    assert!(other.read(object(0), 0, 1) == pattern(1, 1), "nothing of it was written");
}

#[test]
fn a_client_that_does_not_read_is_not_listened_to() {
    let mut cluster = Cluster::start(1);
    cluster.serve(&[1]);
    let mut client = cluster.client(1);
    let data = pattern(1, 256);
    client.write(object(0), 0, &data);
    let mut greedy = cluster.client(1);
    let sent = 150;
    for _ in 0..sent {
        greedy.begin(object(0), RequestOp::Read(SectorRange::new(0, 256)));
    }
    cluster.wait(1, "it is paused", |live| live.paused_connections == 1);
    assert!(client.read(object(0), 0, 256) == data, "others are served");
    for _ in 0..sent {
        let reply = greedy.next_reply();
        assert_eq!(reply.status, Status::Ok);
    }
    assert!(greedy.read(object(0), 0, 256) == data, "and it is listened to again");
    cluster.wait(1, "no more paused", |live| live.paused_connections == 0);
}

#[test]
fn what_cannot_be_started_says_why() {
    let mut cluster = Cluster::start(1);
    let kind = |options| spawn(options).map(|_| ()).expect_err("it cannot be started");
    let error = kind(cluster.options(1));
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    assert_eq!(cluster.prepare(1).map_err(|e| e.kind()), Err(ErrorKind::Locked));
    let error = kind(cluster.options(2));
    assert_eq!(error.kind(), ErrorKind::Missing, "{error}");
    assert!(error.to_string().contains("prepare"), "{error}");
    cluster.stop(1);

    let error = kind(osd::OsdOptions { cluster: Uuid::new_v4(), ..cluster.options(1) });
    assert_eq!(error.kind(), ErrorKind::Stranger, "{error}");
    let error = kind(osd::OsdOptions { id: OsdId(7), ..cluster.options(1) });
    assert!(error.kind() == ErrorKind::Stranger && error.to_string().contains("OSD 1"), "{error}");
    let taken = std::net::TcpListener::bind(any_port()).expect("a port");
    let error = kind(osd::OsdOptions { listen: taken.local_addr().expect("bound"), ..cluster.options(1) });
    assert_eq!(error.kind(), ErrorKind::AddressInUse, "{error}");
    let error = kind(osd::OsdOptions { listen: "0.0.0.0:0".parse().expect("address"), ..cluster.options(1) });
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");

    let path = cluster.folder().join("noise");
    std::fs::write(&path, &*pattern(5, 4096)).expect("a file");
    let error = kind(osd::OsdOptions { path, ..cluster.options(1) });
    assert_eq!(error.kind(), ErrorKind::BadStore, "{error}");
    cluster.spawn(1);
    assert_eq!(cluster.handle(1).end(), None, "none of it hurt the store");
    cluster.handle(1).stop();
    let handle = cluster.handle(1);
    for _ in 0..500 {
        if handle.end().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(handle.end(), Some(End::Stopped));
}

#[test]
fn nothing_is_overwritten_by_mistake() {
    let cluster = Cluster::start(0);
    let options = cluster.prepare_options(1);
    let refused = |options: &PrepareOptions| prepare(options).expect_err("refused").kind();
    assert_eq!(refused(&PrepareOptions { bytes: None, ..options.clone() }), ErrorKind::Missing);
    assert_eq!(refused(&PrepareOptions { bytes: Some(1 << 20), ..options.clone() }), ErrorKind::TooSmall);
    assert!(std::fs::read_dir(cluster.folder()).expect("folder").next().is_none(), "nothing is left behind");
    assert_eq!(prepare(&options).map(|p| p.bytes), Ok(support::DEVICE_BYTES));
    let error = prepare(&options).expect_err("it is a store now");
    assert!(error.kind() == ErrorKind::Occupied && error.to_string().contains("a Blockyard store"), "{error}");
    prepare(&PrepareOptions { force: true, ..options.clone() }).expect("forced");

    let path = cluster.folder().join("letter");
    std::fs::write(&path, "Dear reader").expect("a file");
    assert_eq!(refused(&PrepareOptions { path: path.clone(), ..options.clone() }), ErrorKind::Occupied);
    assert_eq!(std::fs::read(&path).expect("still there"), b"Dear reader");
    let empty = cluster.folder().join("empty");
    std::fs::write(&empty, "").expect("a file");
    assert!(prepare(&PrepareOptions { path: empty, ..options }).is_ok(), "an empty file is taken");
}
