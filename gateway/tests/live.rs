//! What changes under open connections: sizes, removals, OSDs, the state store, the gateway itself.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cluster_proto::PoolId;
use cluster_proto::map::{ImmediateCommit, PoolConfig, keys};
use cluster_state::{StateStore, Txn};
use gateway::GatewayStats;
use support::cluster::{BLOCK, Cluster};
use support::nbd::Client;
use support::tools::run;
use support::{Gateway, eventually};

const SIZE: u64 = 32 << 20;
const EINVAL: u32 = 22;
const EPERM: u32 = 1;

fn start(osds: u32) -> (Cluster, Gateway) {
    let cluster = Cluster::start(osds);
    cluster.create_image("demo", SIZE);
    let gateway = Gateway::start(&cluster);
    cluster.run(gateway.handle.wait_export("demo"));
    (cluster, gateway)
}

#[test]
fn unaligned_writes_of_four_connections_into_the_same_sectors_lose_nothing() {
    let (_cluster, gateway) = start(3);
    let (address, lanes, rounds) = (gateway.address, 64, 10u8);
    // Connection `i` owns bytes `i * 128 ..` of each 512 in two sectors and across the border of two objects.
    let base = (1 << 20) - 4096;
    thread::scope(|scope| {
        for i in 0..4u64 {
            scope.spawn(move || {
                let mut client = Client::connect(address, "demo");
                for round in 1..=rounds {
                    for lane in 0..lanes {
                        client.send(1, lane, base + lane * 128 * 4 % 8192 + i * 128, 128, &[round; 128]);
                    }
                    (0..lanes).for_each(|_| assert_eq!(client.reply().0, 0));
                    for lane in 0..16 {
                        let mine = client.read(base + lane * 512 + i * 128, 128).unwrap();
                        assert_eq!(mine, [round; 128], "connection {i}, round {round}, lane {lane}");
                    }
                }
            });
        }
    });
    let all = gateway.client("demo").read(base, 8192).unwrap();
    assert_eq!(all, [rounds; 8192]);
    gateway.stop();
}

#[test]
fn a_new_size_is_served_and_a_removed_image_ends() {
    let (cluster, gateway) = start(1);
    cluster.create_image("other", SIZE);
    cluster.run(gateway.handle.wait_export("other"));
    let (mut old, mut other) = (gateway.client("demo"), gateway.client("other"));
    assert_eq!((old.size, old.write(SIZE, b"x")), (SIZE, Err(28)), "behind the end");
    let client = cluster.client();
    cluster.run(client.resize_image("default", "demo", 2 * SIZE, |_, _| {})).unwrap();
    eventually("new connections see the new size", || gateway.client("demo").size == 2 * SIZE);
    assert_eq!(old.write(SIZE, b"x"), Ok(()), "and old ones may use it");
    assert_eq!(old.read(SIZE, 1).unwrap(), b"x");
    cluster.run(client.resize_image("default", "demo", SIZE, |_, _| {})).unwrap();
    eventually("it shrinks", || gateway.client("demo").size == SIZE);
    assert_eq!(old.read(SIZE, 1), Err(EINVAL));

    cluster.run(client.remove_image("default", "demo", |_, _| {})).unwrap();
    gateway.wait("it is gone", |stats| !stats.names.contains("demo"));
    assert!(old.read(0, 512).is_err() && old.write(0, b"x").is_err());
    assert!(Client::try_connect(gateway.address, "demo").is_none());
    assert_eq!(other.write(0, b"still here"), Ok(()));
    cluster.create_image("demo", 4096);
    cluster.run(gateway.handle.wait_export("demo"));
    assert_eq!(gateway.client("demo").size, 4096);
    assert!(old.read(0, 512).is_err(), "the old connection had the old image");
    gateway.stop();
}

#[test]
fn entries_of_the_state_make_exports() {
    let (cluster, gateway) = start(1);
    let entry = br#"{"pool":"default","image":"demo","read-only":true,"description":"for guests"}"#;
    cluster.txn(Txn::new().put(keys::export("guest/demo"), entry.to_vec()));
    cluster.run(gateway.handle.wait_export("guest/demo"));
    let (mut owner, mut guest) = (gateway.client("demo"), gateway.client("guest/demo"));
    owner.write(100, b"hello").unwrap();
    assert_eq!(guest.read(100, 5).unwrap(), b"hello");
    assert_eq!((guest.flags & 2, guest.write(100, b"x")), (2, Err(EPERM)));
    cluster.txn(Txn::new().delete(keys::export("guest/demo")));
    gateway.wait("it is gone", |stats| !stats.names.contains("guest/demo"));
    assert!(guest.read(100, 5).is_err());
    assert_eq!(owner.read(100, 5).unwrap(), b"hello");
    gateway.stop();
}

/// Writes and reads ranges of any alignment in the upper half of the image, and compares with what must be there.
fn mixed_load(address: SocketAddr, stop: &AtomicBool) -> u64 {
    let half = SIZE / 2;
    let mut client = Client::connect(address, "demo");
    let mut model = vec![0u8; half as usize];
    let (mut state, mut rounds) = (7u64, 0);
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    while !stop.load(Ordering::Relaxed) {
        rounds += 1;
        let offset = random(half - 70_000);
        let range = offset as usize..(offset + 1 + random(65_536)) as usize;
        if random(2) == 0 {
            model[range.clone()].fill(rounds as u8);
            client.write(half + offset, &model[range]).expect("no error");
        } else {
            let found = client.read(half + offset, range.len()).expect("no error");
            assert!(found == model[range], "round {rounds}: {} bytes at {offset} differ", found.len());
        }
    }
    rounds
}

#[test]
fn io_goes_on_while_osds_restart() {
    let (mut cluster, gateway) = start(3);
    let stop = Arc::new(AtomicBool::new(false));
    let (address, told) = (gateway.address, stop.clone());
    let mixed = thread::spawn(move || mixed_load(address, &told));
    let (uri, folder) = (gateway.tcp("demo"), cluster.path(""));
    // 4096 blocks at 500/s: 8 s of writing, through all restarts, and then reading it all.
    let fio = thread::spawn(move || {
        let uri = format!("--uri={uri}");
        let folder = format!("--aux-path={}", folder.display());
        let load = ["--name=verify", "--ioengine=nbd", &uri, &folder, "--size=16m", "--iodepth=16", "--bs=4k"];
        let verify = ["--rw=randwrite", "--rate_iops=500,500", "--verify=crc32c", "--verify_fatal=1"];
        run("fio", &[&load[..], &verify[..]].concat())
    });
    let begun = Instant::now();
    for id in [1, 2, 3, 1] {
        thread::sleep(Duration::from_millis(1000));
        cluster.stop_osd(id);
        thread::sleep(Duration::from_millis(500));
        cluster.start_osd(id);
    }
    eprintln!("restarted four times within {:?}", begun.elapsed());
    let out = fio.join().expect("no error in fio");
    assert!(out.is_none_or(|out| out.contains("err= 0")));
    stop.store(true, Ordering::Relaxed);
    let rounds = mixed.join().expect("what is read is what was written");
    assert!(rounds > 100, "{rounds}");
    gateway.stop();
}

#[test]
fn io_goes_on_without_the_state_store() {
    let (cluster, gateway) = start(2);
    let mut client = gateway.client("demo");
    // A placement group cannot become active without the state store: each that is used below is, before it closes.
    (0..SIZE).step_by(BLOCK as usize).for_each(|offset| client.write(offset, b"before").unwrap());
    cluster.run(cluster.state.close());
    // Longer than the leases of OSDs and gateway, which nobody renews.
    let end = Instant::now() + Duration::from_secs(3);
    let mut round = 0;
    while Instant::now() < end {
        round += 1;
        client.write(round % 1000 * 5000, &round.to_le_bytes()).unwrap();
        assert_eq!(client.read(round % 1000 * 5000, 8).unwrap(), round.to_le_bytes());
    }
    assert!(round > 100, "{round}");
    assert_eq!(gateway.client("demo").size, SIZE, "and new connections are served");
    gateway.stop();
}

#[test]
fn the_gateway_is_registered_again_when_its_lease_was_lost() {
    let (cluster, gateway) = start(1);
    let key = format!("{}{}", keys::GATEWAYS, gateway.handle.incarnation());
    let entry = || cluster.run(cluster.state.get(&key)).unwrap();
    eventually("it is registered", || entry().is_some());
    let first = entry().unwrap();
    assert!(String::from_utf8_lossy(&first.value).contains(&gateway.address.to_string()));
    cluster.run(cluster.state.lease_revoke(cluster_state::LeaseId(first.lease))).unwrap();
    eventually("and again", || entry().is_some_and(|entry| entry.lease != first.lease));
    gateway.stop();
    assert!(entry().is_none(), "it deregistered");
}

#[test]
fn connections_end_in_the_middle_of_requests_and_there_are_bounds() {
    let cluster = Cluster::start(2);
    cluster.create_image("demo", SIZE);
    let gateway = Gateway::start_with(&cluster, |options| gateway::GatewayOptions { connections_max: 4, ..options });
    cluster.run(gateway.handle.wait_export("demo"));
    for round in 0..50u64 {
        let mut client = gateway.client("demo");
        for i in 0..20 {
            client.send(1, i, (round * 20 + i) * 8192, 8192, &[round as u8; 8192]);
            client.send(0, 100 + i, i * 8192, 8192, &[]);
        }
        if round % 2 == 0 {
            assert_eq!(client.reply().0, 0);
        }
        drop(client);
    }
    gateway.wait("they are forgotten", |stats| stats.connections == 0 && stats.in_flight == 0);
    let mut kept: Vec<_> = (0..4).map(|_| gateway.client("demo")).collect();
    gateway.wait("four are served", |stats| stats.connections == 4);
    let mut fifth = std::net::TcpStream::connect(gateway.address).unwrap();
    let mut nothing = Vec::new();
    let read = std::io::Read::read_to_end(&mut fifth, &mut nothing);
    assert!(read.is_err() || nothing.is_empty(), "the fifth is turned away");
    assert!(kept.iter_mut().all(Client::is_alive));
    gateway.wait("and counted", |stats| stats.refused == 1);
    gateway.stop();
}

#[test]
fn a_client_that_does_not_read_is_not_read_either() {
    let (_cluster, gateway) = start(1);
    let mut client = gateway.client("demo");
    client.stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut header = Vec::new();
    for cookie in 0..4096u64 {
        header.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&cookie.to_be_bytes());
        header.extend_from_slice(&0u64.to_be_bytes());
        header.extend_from_slice(&(1u32 << 20).to_be_bytes());
    }
    // 4 GiB asked for and nothing taken: the gateway answers as far as its bounds go, and then stops reading.
    std::io::Write::write_all(&mut client.stream, &header).unwrap();
    thread::sleep(Duration::from_millis(500));
    let answered = |stats: &GatewayStats| stats.exports.get("demo").map_or(0, |demo| demo.ops[0].count);
    gateway.wait("it begins", |stats| answered(stats) >= 4);
    // Statistics come every second.
    thread::sleep(Duration::from_secs(3));
    assert!(answered(&gateway.handle.stats()) < 400, "it stops reading and answering");
    assert!(gateway.client("demo").is_alive(), "others are served");
    // And goes on when the client does.
    let mut rest = vec![0; 1 << 20];
    for _ in 0..600 {
        assert_eq!(client.reply().0, 0);
        std::io::Read::read_exact(&mut client.stream, &mut rest).unwrap();
    }
    gateway.stop();
}

#[test]
fn a_stop_lets_requests_under_way_end_but_not_for_ever() {
    let (mut cluster, gateway) = start(2);
    let mut client = gateway.client("demo");
    // Too few members: the write waits.
    cluster.stop_osd(2);
    client.send(1, 9, 0, 4096, &[5; 4096]);
    thread::sleep(Duration::from_millis(300));
    gateway.handle.stop();
    thread::sleep(Duration::from_millis(200));
    cluster.start_osd(2);
    let answered = client.reply();
    assert_eq!(answered, (0, 9), "answered while stopping");
    gateway.handle.join().unwrap();

    let gateway = Gateway::start(&cluster);
    cluster.run(gateway.handle.wait_export("demo"));
    let mut client = gateway.client("demo");
    assert_eq!(client.read(0, 4096).unwrap(), [5; 4096]);
    cluster.stop_osd(2);
    client.send(1, 9, 0, 4096, &[6; 4096]);
    let begun = Instant::now();
    thread::sleep(Duration::from_millis(100));
    gateway.stop();
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

/// A pool whose members answer before changes are durable.
fn lazy_pool(copies: u8) -> Txn {
    let pool = PoolConfig {
        pg_count: 16,
        immediate_commit: ImmediateCommit::None,
        ..PoolConfig::replicated("default", copies)
    };
    Txn::new().put(keys::pool(PoolId(1)), serde_json::to_vec(&pool).unwrap())
}

#[test]
fn a_stop_makes_durable_what_was_answered_but_does_not_wait_for_ever() {
    let mut cluster = Cluster::start(2);
    cluster.txn(lazy_pool(2));
    cluster.create_image("demo", SIZE);
    let gateway = Gateway::start(&cluster);
    cluster.run(gateway.handle.wait_export("demo"));
    let mut client = gateway.client("demo");
    (0..32).for_each(|i| assert_eq!(client.write(i << 20, &[7; 4096]), Ok(())));
    let begun = Instant::now();
    gateway.wait("nothing of it is durable", |stats| stats.unsynced > 0);
    let ended = |gateway: &Gateway| eventually("it ends", || gateway.handle.end().is_some());
    gateway.handle.stop();
    ended(&gateway);
    // By itself it would have synced after 5 s.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!((gateway.handle.stats().unsynced, gateway.handle.stats().connections), (0, 0));
    gateway.handle.join().unwrap();

    let sync_timeout = Duration::from_millis(700);
    let gateway = Gateway::start_with(&cluster, |options| gateway::GatewayOptions { sync_timeout, ..options });
    cluster.run(gateway.handle.wait_export("demo"));
    let mut client = gateway.client("demo");
    assert_eq!(client.read(0, 4096).unwrap(), [7; 4096]);
    assert_eq!(client.write(0, &[8; 4096]), Ok(()));
    gateway.wait("it is not durable", |stats| stats.unsynced > 0);
    cluster.stop_osd(2);
    cluster.stop_osd(1);
    let begun = Instant::now();
    gateway.handle.stop();
    ended(&gateway);
    assert!(begun.elapsed() >= sync_timeout && begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(gateway.handle.stats().unsynced, 1, "and it says so");
    gateway.handle.join().unwrap();
}

#[test]
fn a_change_that_must_be_durable_is_when_it_is_answered() {
    let cluster = Cluster::start(2);
    cluster.txn(lazy_pool(2));
    cluster.create_image("demo", SIZE);
    let gateway = Gateway::start(&cluster);
    cluster.run(gateway.handle.wait_export("demo"));
    let mut client = gateway.client("demo");
    assert_eq!(client.write(1 << 20, &[7; 4096]), Ok(()));
    gateway.wait("a change is not durable", |stats| stats.unsynced == 1);
    let begun = Instant::now();
    assert_eq!(client.write_fua(0, &[7; 4096]), Ok(()));
    // By itself it would have synced after 5 s.
    gateway.wait("both are durable", |stats| stats.unsynced == 0);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    gateway.stop();
}

#[test]
fn a_port_in_use_is_said_plainly() {
    let cluster = Cluster::start(1);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let options = gateway::GatewayOptions::new(cluster.id, cluster.store(), cluster.runtime.handle().clone());
    let options = gateway::GatewayOptions { nbd_tcp: vec![taken.local_addr().unwrap()], ..options };
    let error = gateway::spawn(options.clone()).unwrap_err();
    assert_eq!(error.kind(), gateway::ErrorKind::AddressInUse);
    let nothing = gateway::GatewayOptions { nbd_tcp: Vec::new(), ..options };
    assert_eq!(gateway::spawn(nothing).unwrap_err().kind(), gateway::ErrorKind::Invalid);
}
