//! OSDs that die, hang, are cut off, come back stale, come and go: who asks waits a moment at most, and all data is there.
//!
//! `E2E_LONG=1` kills as often as the promises say (50 times) and holds them to their bounds; else few times, with bounds for a
//! busy machine.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use e2e::{
    Distribution, Fleet, FleetOptions, Lane, Nbd, Pattern, Random, Slowest, can_make_networks, eventually, have,
    limited, skip,
};

/// Bytes of each connection's part of the image.
const LANE: u64 = 8 << 20;

fn is_long() -> bool {
    std::env::var_os("E2E_LONG").is_some()
}

/// Small requests, a few at a time: the longest of them is what a client waits.
const PROBING: [Pattern; 2] = [
    Pattern { name: "probing", depth: 8, units_max: 16, align: 8, zeroes: 0, reads: 30, fua: false },
    Pattern { name: "probing all", depth: 4, units_max: 64, align: 1, zeroes: 5, reads: 40, fua: false },
];

/// Loads `demo`, verifying, while `disturb` does something to the cluster; compares everything afterwards.
fn under_load(fleet: &mut Fleet, lanes: &mut [Lane], disturb: impl FnOnce(&mut Fleet, &[Slowest])) {
    let over = AtomicBool::new(false);
    let meters: Vec<_> = lanes.iter().map(|lane| lane.slowest.clone()).collect();
    thread::scope(|scope| {
        for (i, lane) in lanes.iter_mut().enumerate() {
            let mut nbd = fleet.connect("demo");
            nbd.set_patience(Some(Duration::from_secs(60))).expect("a time-out");
            let (pattern, over) = (PROBING[i % PROBING.len()], &over);
            scope.spawn(move || lane.run_while(&mut nbd, &pattern, |_| !over.load(Ordering::Relaxed)));
        }
        // Also when a disturbance fails, the load ends.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| disturb(fleet, &meters)));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    check(fleet, lanes);
}

/// Reads everything and compares it with what was acknowledged.
fn check(fleet: &Fleet, lanes: &mut [Lane]) {
    let mut nbd = fleet.connect("demo");
    nbd.set_patience(Some(Duration::from_secs(60))).expect("a time-out");
    lanes.iter_mut().for_each(|lane| {
        lane.check(&mut nbd);
    });
}

fn lanes(count: u64) -> Vec<Lane> {
    (0..count).map(|i| Lane::new(i * LANE, LANE, i)).collect()
}

fn worst(meters: &[Slowest]) -> Duration {
    meters.iter().map(Slowest::take).max().unwrap_or_default()
}

/// Says how stalls are distributed, and returns the 99th percentile.
fn judge(what: &str, stalls: &[Duration]) -> Duration {
    let all: Distribution = stalls.iter().copied().collect();
    let (count, [median, most, worst]) = (all.count(), [0.5, 0.9, 0.99].map(|share| all.at(share)));
    println!("{what}, {count} times: client stall median {median:?}, 90% {most:?}, 99% {worst:?}, all {stalls:?}");
    worst
}

/// A cluster with a pool of three copies.
fn fleet(options: FleetOptions) -> Fleet {
    Fleet::start_with_pool(options, &["--replicas", "3"], "32M")
}

/// Disturbs one OSD after the other; each time waits until everything is served without it, and then until it is back.
fn stalls(rounds: u32, out: fn(&mut Fleet, u32), back: fn(&mut Fleet, u32)) -> Vec<Duration> {
    let mut fleet = fleet(FleetOptions::default());
    let mut lanes = lanes(2);
    let mut stalls = Vec::new();
    under_load(&mut fleet, &mut lanes, |fleet, meters| {
        for round in 0..rounds {
            let id = round % 3 + 1;
            thread::sleep(Duration::from_millis(300));
            let calm = worst(meters);
            out(fleet, id);
            fleet.wait_degraded(30, 2);
            thread::sleep(Duration::from_millis(300));
            stalls.push(worst(meters));
            back(fleet, id);
            fleet.wait_active(60);
            let stall = stalls.last();
            println!("OSD {id}: stall {stall:?}, before {calm:?}, when it came back {:?}", worst(meters));
        }
    });
    stalls
}

#[test]
fn a_killed_osd_stalls_clients_for_a_moment_only() {
    limited(900, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let (rounds, bound) = if is_long() { (50, 1500) } else { (4, 5000) };
        let out = |fleet: &mut Fleet, id| fleet.kill(&format!("osd.{id}"));
        let stalls = stalls(rounds, out, |fleet, id| drop(fleet.start_osd(id)));
        let worst = judge("kill -9", &stalls);
        assert!(worst < Duration::from_millis(bound), "{worst:?}");
    });
}

#[test]
fn a_hung_osd_stalls_clients_for_seconds_only() {
    limited(900, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let (rounds, bound) = if is_long() { (20, 4000) } else { (2, 10_000) };
        let stalls = stalls(
            rounds,
            |fleet, id| fleet.daemon(&format!("osd.{id}")).signal("STOP"),
            |fleet, id| fleet.daemon(&format!("osd.{id}")).signal("CONT"),
        );
        let worst = judge("SIGSTOP", &stalls);
        assert!(worst < Duration::from_millis(bound), "{worst:?}");
    });
}

/// Two OSDs, each of which serves alone while the other is away.
fn pair() -> (Fleet, Nbd) {
    let options = FleetOptions { osds: 2, ..FleetOptions::default() };
    let fleet = Fleet::start_with_pool(options, &["--replicas", "2", "--min-size", "1"], "16M");
    let mut demo = fleet.connect("demo");
    demo.set_patience(Some(Duration::from_secs(60))).unwrap();
    (fleet, demo)
}

#[test]
fn a_stale_osd_alone_serves_nothing() {
    limited(120, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let (mut fleet, mut demo) = pair();
        let (old, new) = (Random::new(1).bytes(4 << 20), Random::new(2).bytes(4 << 20));
        demo.write_long(0, &old).unwrap();
        fleet.kill("osd.2");
        demo.write_long(0, &new).unwrap();
        fleet.kill("osd.1");
        fleet.start_osd(2);
        let mut reader = fleet.connect("demo");
        reader.set_patience(Some(Duration::from_secs(6))).unwrap();
        let stale = reader.read(0, 4096);
        assert!(stale.is_err(), "what is stale is not read");
        let status = fleet.status();
        assert_eq!((&status["pgs"]["active"], &status["pgs"]["degraded"]), (&0.into(), &0.into()), "{status}");
        fleet.start_osd(1);
        fleet.wait_active(30);
        assert!(fleet.connect("demo").read_long(0, new.len()).unwrap() == new);
        // And with what it missed, it can stand alone.
        fleet.kill("osd.1");
        let mut reader = fleet.connect("demo");
        reader.set_patience(Some(Duration::from_secs(30))).unwrap();
        assert!(reader.read_long(0, new.len()).unwrap() == new);
    });
}

#[test]
fn what_only_a_lost_osd_had_is_given_up_when_told_so() {
    limited(150, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let (mut fleet, mut demo) = pair();
        let (old, new) = (Random::new(1).bytes(4 << 20), Random::new(2).bytes(4 << 20));
        demo.write_long(0, &old).unwrap();
        demo.flush().unwrap();
        fleet.blockyard(&["pool", "create", "single", "--replicas", "1", "--pg-count", "16"]).ok();
        fleet.wait_active(30);
        let of_single = fleet.blockyard(&["pg", "ls", "--osd", "1", "--pool", "single", "--json"]).json();
        let of_single = of_single.as_array().map(Vec::len);
        fleet.kill("osd.2");
        demo.write_long(0, &new).unwrap();
        demo.flush().unwrap();
        fleet.kill("osd.1");
        fleet.wait_status(30, "nobody runs", |status| status["osds"]["up"] == 0);
        fleet.blockyard(&["osd", "rm", "1"]).refused(7, &["OSD 1", "--force"]);
        let removed = fleet.blockyard(&["osd", "rm", "1", "--force", "--json"]).json();
        assert!(removed["waiting"].as_u64() >= Some(32), "nobody else serves yet: {removed}");
        fleet.start_osd(2);
        let mut reader = fleet.connect("demo");
        reader.set_patience(Some(Duration::from_secs(6))).unwrap();
        reader.read(0, 4096).expect_err("it may be stale");
        let removed = fleet.blockyard(&["osd", "rm", "1", "--force", "--json"]).json();
        let count = |name: &str| removed[name].as_u64().map(|n| n as usize);
        assert_eq!((count("waiting"), count("lost")), (Some(0), of_single), "{removed}");
        let mut reader = fleet.connect("demo");
        reader.set_patience(Some(Duration::from_secs(30))).unwrap();
        assert!(reader.read_long(0, old.len()).unwrap() == old, "as it was before");
        let newest = Random::new(3).bytes(1 << 20);
        reader.write_long(0, &newest).unwrap();
        fleet.blockyard(&["pool", "rm", "single", "--yes"]).ok();
        // If it comes back after all, what it has does not count.
        fleet.start_osd_unwaited(1);
        fleet.prepare_osd(3);
        fleet.start_osd(3);
        fleet.wait_active(60);
        let mut reader = fleet.connect("demo");
        assert!(reader.read_long(0, newest.len()).unwrap() == newest);
        assert!(reader.read_long(1 << 20, 3 << 20).unwrap() == old[1 << 20..]);
        fleet.kill("osd.2");
        let mut reader = fleet.connect("demo");
        reader.set_patience(Some(Duration::from_secs(30))).unwrap();
        assert!(reader.read_long(1 << 20, 3 << 20).unwrap() == old[1 << 20..], "the new one has all of it");
    });
}

#[test]
fn osds_come_and_go_and_the_data_moves() {
    limited(240, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let mut fleet = fleet(FleetOptions::default());
        let mut lanes = lanes(2);
        let count = |fleet: &Fleet, id: u32| {
            let id = id.to_string();
            fleet.blockyard(&["pg", "ls", "--osd", &id, "--json"]).json().as_array().map_or(0, Vec::len)
        };
        under_load(&mut fleet, &mut lanes, |fleet, _| {
            fleet.prepare_osd(4);
            fleet.start_osd(4);
            eventually(60, "the new OSD gets data", || (count(fleet, 4) > 16).then_some(()));
            fleet.wait_active(90);
            println!("OSD 4 has {} PGs", count(fleet, 4));
            let dry = fleet.blockyard(&["osd", "reweight", "1", "0", "--dry-run", "--json"]).json();
            assert!(dry["moves"]["shards"].as_u64() > Some(0), "{dry}");
            fleet.blockyard(&["osd", "rm", "1"]).refused(5, &["it runs"]);
            fleet.blockyard(&["osd", "reweight", "1", "0"]).ok();
            eventually(90, "OSD 1 has no data any more", || (count(fleet, 1) == 0).then_some(()));
            fleet.wait_active(90);
            fleet.stop("osd.1");
            fleet.blockyard(&["osd", "rm", "1"]).ok();
        });
        fleet.wait_status(30, "all is well", |status| status["verdict"] == "ok");
        assert_eq!(fleet.blockyard(&["osd", "ls", "--json"]).json().as_array().map(Vec::len), Some(3));
        let stale = fleet.osd_file(1);
        fleet
            .blockyard(&["osd", "prepare", stale.to_str().unwrap(), "--id", "1", "--yes"])
            .refused(5, &["was removed"]);
    });
}

#[test]
fn an_erasure_coded_pool_does_without_two_of_six() {
    limited(240, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let options = FleetOptions { osds: 6, osd_size: "512M".into(), ..FleetOptions::default() };
        let mut fleet = Fleet::start_with_pool(options, &["--ec", "4+2", "--min-size", "4"], "32M");
        let mut lanes = lanes(2);
        under_load(&mut fleet, &mut lanes, |fleet, meters| {
            thread::sleep(Duration::from_secs(1));
            fleet.kill("osd.2");
            fleet.wait_served(30);
            thread::sleep(Duration::from_secs(1));
            fleet.kill("osd.5");
            fleet.wait_served(30);
            thread::sleep(Duration::from_secs(1));
            println!("two of six are dead, the slowest request took {:?}", worst(meters));
        });
        under_load(&mut fleet, &mut lanes, |fleet, _| {
            fleet.start_osd(2);
            fleet.start_osd(5);
            fleet.wait_active(90);
            fleet.kill("osd.1");
            fleet.kill("osd.3");
            fleet.wait_served(30);
        });
    });
}

/// A member misses a few sectors of every object, and is then needed for all of them.
fn a_member_gets_what_changed(redundancy: &[&str]) {
    let mut fleet = Fleet::start_with_pool(FleetOptions::default(), redundancy, "16M");
    let mut random = Random::new(31);
    let mut data = random.bytes(16 << 20);
    let mut demo = fleet.connect("demo");
    demo.set_patience(Some(Duration::from_secs(60))).unwrap();
    demo.write_long(0, &data).unwrap();
    fleet.kill("osd.3");
    // A write that is under way when an OSD dies is not among those that are known to be missed: its object is copied whole.
    fleet.wait_degraded(30, 2);
    for object in 0..16 {
        let at = (object << 20) + (random.below(256) << 12);
        let sector = random.bytes(4096);
        demo.write(at, &sector).unwrap();
        data[at as usize..][..4096].copy_from_slice(&sector);
    }
    fleet.start_osd(3);
    fleet.wait_active(60);
    let recovered = eventually(30, "what was missed is recovered", || {
        let counters = fleet.status()["counters"].clone();
        (counters["patched-objects"].as_u64() >= Some(16)).then_some(counters)
    });
    assert!(recovered["recovered-bytes"].as_u64() <= Some(16 * 4096), "{recovered}");
    // Now what it has is needed: two shards are, and of copies it may be the one that is read.
    fleet.kill("osd.1");
    fleet.wait_served(30);
    assert!(demo.read_long(0, data.len()).unwrap() == data, "{redundancy:?}");
}

#[test]
fn a_copy_that_was_away_gets_what_changed() {
    limited(120, || {
        if have(&["etcd", "etcdctl"]) {
            a_member_gets_what_changed(&["--replicas", "3"]);
        }
    });
}

#[test]
fn a_shard_that_was_away_gets_what_changed() {
    limited(120, || {
        if have(&["etcd", "etcdctl"]) {
            a_member_gets_what_changed(&["--ec", "2+1", "--min-size", "2"]);
        }
    });
}

/// Flips a bit in every sector of a store that holds one of these sectors. Returns how many.
fn damage(fleet: &Fleet, id: u32, data: &[u8], random: &mut Random) -> usize {
    let heads: std::collections::HashSet<&[u8]> = data.chunks_exact(4096).map(|sector| &sector[..16]).collect();
    let path = fleet.osd_file(id);
    let (mut reader, writer) = (File::open(&path).unwrap(), File::options().write(true).open(&path).unwrap());
    let (mut block, mut at, mut damaged) = (vec![0; 1 << 20], 0, 0);
    loop {
        let n = reader.read(&mut block).unwrap();
        if n == 0 {
            return damaged;
        }
        for (i, sector) in block[..n].chunks_exact(4096).enumerate().filter(|(_, sector)| heads.contains(&sector[..16]))
        {
            let place = random.below(4096) as usize;
            writer.write_all_at(&[sector[place] ^ (1 << random.below(8))], at + (i * 4096 + place) as u64).unwrap();
            damaged += 1;
        }
        at += n as u64;
    }
}

#[test]
fn one_good_copy_of_each_sector_is_enough() {
    limited(120, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let mut fleet = fleet(FleetOptions::default());
        let mut random = Random::new(9);
        let data = random.bytes(8 << 20);
        fleet.connect("demo").write_long(0, &data).unwrap();
        (1..=3).for_each(|id| fleet.stop(&format!("osd.{id}")));
        let damaged: Vec<_> = [1, 3].map(|id| damage(&fleet, id, &data, &mut random)).into();
        assert_eq!(damaged, [2048, 2048], "each copy of each sector was found");
        (1..=3).for_each(|id| drop(fleet.start_osd(id)));
        fleet.wait_active(60);
        let nbd = fleet.nbd();
        let mut demo = eventually(15, "demo is exported", || Nbd::connect(nbd, "demo").ok());
        demo.set_patience(Some(Duration::from_secs(60))).unwrap();
        assert!(demo.read_long(0, data.len()).unwrap() == data);
        eventually(10, "damage is counted", || {
            let counters = &fleet.status()["counters"];
            (counters["crc-errors"].as_u64() > Some(0) && counters["repaired-sectors"].as_u64() > Some(0)).then_some(())
        });
    });
}

#[test]
fn networks_that_are_cut_lose_nothing() {
    limited(300, || {
        if !have(&["etcd", "etcdctl", "ip"]) {
            return;
        }
        if !can_make_networks() {
            return skip("no network namespaces can be made here: that needs root");
        }
        let mut fleet = fleet(FleetOptions { network: true, ..FleetOptions::default() });
        let mut lanes = lanes(2);
        type Change = fn(&mut e2e::Network);
        let cuts: [(&str, Change, Change); 4] = [
            ("two OSDs do not reach each other", |n| n.cut("osd.1", "osd.2"), |n| n.mend("osd.1", "osd.2")),
            ("one way only", |n| n.cut_one_way("osd.2", "osd.3"), |n| n.mend_one_way("osd.2", "osd.3")),
            ("the gateway does not reach an OSD", |n| n.cut("gateway", "osd.3"), |n| n.mend("gateway", "osd.3")),
            ("an OSD is alone", |n| n.isolate("osd.1"), |n| n.rejoin("osd.1")),
        ];
        under_load(&mut fleet, &mut lanes, |fleet, meters| {
            for (what, cut, mend) in cuts {
                thread::sleep(Duration::from_millis(500));
                let begin = Instant::now();
                worst(meters);
                cut(fleet.network.as_mut().expect("a network"));
                thread::sleep(Duration::from_secs(9));
                mend(fleet.network.as_mut().expect("a network"));
                fleet.wait_active(90);
                println!("{what}: well again after {:?}, slowest request {:?}", begin.elapsed(), worst(meters));
            }
        });
    });
}
