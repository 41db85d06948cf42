//! Daemons that die while I/O goes on: clients pause at most, and lose nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use e2e::{Fleet, FleetOptions, Lane, Pattern, have, limited};

/// Bytes of each connection's part of the image.
const LANE: u64 = 16 << 20;
/// Longest that a request may take while something dies that it does not need. On a busy machine requests take long by
/// themselves; who waits for what died waits for as long as it is away, 8 s at least.
fn no_stall() -> Duration {
    Duration::from_millis(if std::env::var_os("E2E_LONG").is_some() { 1500 } else { 6000 })
}

/// Loads `demo` on several connections, verifying, while `disturb` does something to the cluster. Returns the longest
/// that a request took.
fn under_load(fleet: &mut Fleet, lanes: &mut [Lane], disturb: impl FnOnce(&mut Fleet)) -> Duration {
    let over = AtomicBool::new(false);
    lanes.iter().for_each(|lane| {
        lane.slowest.take();
    });
    thread::scope(|scope| {
        for (i, lane) in lanes.iter_mut().enumerate() {
            let mut nbd = fleet.connect("demo");
            nbd.set_patience(Some(Duration::from_secs(60))).expect("a time-out");
            let (pattern, over) = (Pattern::ALL[i % Pattern::ALL.len()], &over);
            scope.spawn(move || lane.run_while(&mut nbd, &pattern, |_| !over.load(Ordering::Relaxed)));
        }
        // Also when a disturbance fails, the load ends.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| disturb(fleet)));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    slowest(lanes)
}

fn slowest(lanes: &[Lane]) -> Duration {
    lanes.iter().map(|lane| lane.slowest.take()).max().unwrap_or_default()
}

fn lanes(count: u64) -> Vec<Lane> {
    (0..count).map(|i| Lane::new(i * LANE, LANE, i)).collect()
}

fn fleet(options: FleetOptions) -> Fleet {
    Fleet::start_with_pool(options, &["--replicas", "3"], "64M")
}

/// Reads everything and compares it with what was acknowledged.
fn check(fleet: &Fleet, lanes: &mut [Lane]) {
    let mut nbd = fleet.connect("demo");
    nbd.set_patience(Some(Duration::from_secs(60))).expect("a time-out");
    lanes.iter_mut().for_each(|lane| assert_eq!(lane.check(&mut nbd), 0));
}

fn writes(lanes: &[Lane]) -> u64 {
    lanes.iter().map(|lane| lane.writes).sum()
}

#[test]
fn the_state_store_may_be_away_without_anybody_noticing() {
    limited(120, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let mut fleet = fleet(FleetOptions::default());
        let mut lanes = lanes(3);
        // Longer than the leases last.
        let away = Duration::from_secs(if std::env::var_os("E2E_LONG").is_some() { 60 } else { 9 });
        let mut before = 0;
        let slowest = under_load(&mut fleet, &mut lanes, |fleet| {
            thread::sleep(Duration::from_millis(500));
            fleet.etcd.kill();
            let begin = Instant::now();
            thread::sleep(away);
            println!("etcd was away for {:?}", begin.elapsed());
            fleet.etcd.start_again();
            thread::sleep(Duration::from_secs(4));
        });
        before += writes(&lanes);
        println!("{before} writes, the slowest request took {slowest:?}");
        assert!(slowest < no_stall(), "{slowest:?}");
        check(&fleet, &mut lanes);
        fleet.wait_status(30, "all is well again", |status| status["verdict"] == "ok");
    });
}

#[test]
fn the_monitors_may_be_gone_for_good() {
    limited(90, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let mut fleet = fleet(FleetOptions { monitors: 2, ..FleetOptions::default() });
        let mut lanes = lanes(3);
        let slowest = under_load(&mut fleet, &mut lanes, |fleet| {
            thread::sleep(Duration::from_millis(500));
            fleet.kill("mon.1");
            thread::sleep(Duration::from_secs(2));
            fleet.kill("mon.2");
            thread::sleep(Duration::from_secs(8));
        });
        println!("{} writes, the slowest request took {slowest:?}", writes(&lanes));
        assert!(slowest < no_stall(), "{slowest:?}");
        check(&fleet, &mut lanes);
    });
}

#[test]
fn osds_are_killed_one_after_the_other_and_nothing_is_lost() {
    limited(180, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let mut fleet = fleet(FleetOptions::default());
        let mut lanes = lanes(3);
        let slowest = under_load(&mut fleet, &mut lanes, |fleet| {
            for round in 0..2 {
                for id in 1..=3 {
                    thread::sleep(Duration::from_millis(700));
                    fleet.kill(&format!("osd.{id}"));
                    thread::sleep(Duration::from_millis(500));
                    fleet.start_osd(id);
                    fleet.wait_active(30);
                    println!("round {round}: OSD {id} was killed and is back");
                }
            }
        });
        println!("{} writes, the slowest request took {slowest:?}", writes(&lanes));
        check(&fleet, &mut lanes);
        fleet.wait_status(30, "all is well again", |status| status["verdict"] == "ok");
    });
}

#[test]
fn everything_may_be_killed_at_once() {
    limited(120, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let mut fleet = fleet(FleetOptions::default());
        let mut lanes = lanes(2);
        for round in 0..3 {
            under_load(&mut fleet, &mut lanes, |fleet| {
                thread::sleep(Duration::from_millis(400));
                (1..=3).for_each(|id| fleet.kill(&format!("osd.{id}")));
                fleet.kill("mon.1");
                fleet.etcd.kill();
                fleet.etcd.start_again();
                (1..=3).rev().for_each(|id| fleet.start_osd_unwaited(id));
                fleet.start_monitor(1);
                (1..=3).for_each(|id| drop(fleet.wait_ready(&format!("osd.{id}"))));
                fleet.wait_active(30);
            });
            check(&fleet, &mut lanes);
            println!("round {round}: {} writes", writes(&lanes));
        }
    });
}

#[test]
fn a_pool_gets_more_pgs_while_it_serves_and_an_osd_dies() {
    limited(120, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let mut fleet = fleet(FleetOptions::default());
        let mut lanes = lanes(3);
        let refused = fleet.blockyard(&["pool", "set-pg-count", "default", "48"]);
        assert_ne!(refused.status, 0, "48 is neither a multiple of 32 nor a divisor");
        let slowest = under_load(&mut fleet, &mut lanes, |fleet| {
            thread::sleep(Duration::from_millis(500));
            fleet.blockyard(&["pool", "set-pg-count", "default", "128"]).ok();
            thread::sleep(Duration::from_millis(200));
            fleet.kill("osd.2");
            thread::sleep(Duration::from_millis(500));
            fleet.start_osd(2);
            fleet.wait_status(60, "128 placement groups serve, with all data", |status| {
                status["pgs"]["total"] == 128 && status["pgs"]["active"] == 128
            });
        });
        println!("{} writes, the slowest request took {slowest:?}", writes(&lanes));
        check(&fleet, &mut lanes);
    });
}

#[test]
fn a_pool_gets_fewer_pgs_while_it_serves_and_osds_die() {
    limited(180, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let mut fleet = fleet(FleetOptions::default());
        let mut lanes = lanes(3);
        let slowest = under_load(&mut fleet, &mut lanes, |fleet| {
            thread::sleep(Duration::from_millis(500));
            fleet.blockyard(&["pool", "set-pg-count", "default", "4"]).ok();
            thread::sleep(Duration::from_millis(200));
            fleet.kill("osd.2");
            thread::sleep(Duration::from_millis(500));
            fleet.start_osd(2);
            let has = |status: &serde_json::Value, count: u32| {
                status["pgs"]["total"] == count && status["pgs"]["active"] == count
            };
            fleet.wait_status(60, "4 placement groups serve, with all data", |status| has(status, 4));
            fleet.blockyard(&["pool", "set-pg-count", "default", "12"]).ok();
            fleet.kill("osd.1");
            fleet.start_osd(1);
            fleet.wait_status(60, "12 placement groups serve, with all data", |status| has(status, 12));
        });
        println!("{} writes, the slowest request took {slowest:?}", writes(&lanes));
        check(&fleet, &mut lanes);
    });
}

#[test]
fn a_lazy_pool_loses_nothing_when_its_processes_die() {
    limited(120, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let redundancy = ["--replicas", "3", "--immediate-commit", "none"];
        let mut fleet = Fleet::start_with_pool(FleetOptions::default(), &redundancy, "64M");
        let pools = fleet.blockyard(&["pool", "ls"]).ok().stdout;
        assert!(pools.contains("none"), "{pools}");
        let mut lanes = lanes(3);
        let slowest = under_load(&mut fleet, &mut lanes, |fleet| {
            for id in 1..=3 {
                thread::sleep(Duration::from_millis(500));
                fleet.kill(&format!("osd.{id}"));
                fleet.start_osd(id);
                fleet.wait_active(30);
            }
            (1..=3).for_each(|id| fleet.kill(&format!("osd.{id}")));
            (1..=3).for_each(|id| fleet.start_osd_unwaited(id));
            (1..=3).for_each(|id| drop(fleet.wait_ready(&format!("osd.{id}"))));
            fleet.wait_active(30);
        });
        println!("{} writes, the slowest request took {slowest:?}", writes(&lanes));
        check(&fleet, &mut lanes);
    });
}
