//! `kill -9` under load: what was acknowledged is there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use e2e::{Cluster, Lane, Pattern, Random, have, limited};

use crate::clients::fio;

/// How often the process is killed.
const ROUNDS: usize = 20;
/// Bytes of each connection's part of the image.
const LANE: u64 = 16 << 20;

/// Loads all lanes with different patterns and kills the process after a while, but not before something was written. Returns how many writes were answered.
fn crash_under_load(cluster: &mut Cluster, lanes: &mut [Lane], round: usize, after: Duration) -> u64 {
    let before: u64 = lanes.iter().map(|lane| lane.writes).sum();
    let written = &AtomicBool::new(false);
    thread::scope(|scope| {
        for (i, lane) in lanes.iter_mut().enumerate() {
            let mut nbd = cluster.connect("demo");
            let pattern = Pattern::ALL[(i + round) % Pattern::ALL.len()];
            scope.spawn(move || lane.run(&mut nbd, &pattern, written));
        }
        thread::sleep(after);
        while !written.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        cluster.kill();
    });
    lanes.iter().map(|lane| lane.writes).sum::<u64>() - before
}

#[test]
fn twenty_crashes_lose_nothing_that_was_acknowledged() {
    limited(400, || {
        let mut random = Random::new(20);
        let mut cluster = Cluster::start();
        let mut lanes: Vec<_> = (0..3).map(|i| Lane::new(i * LANE, LANE, i)).collect();
        let (mut answered, mut carried_out) = (0, 0);
        for round in 0..ROUNDS {
            let after = Duration::from_millis(100 + random.below(700));
            let writes = crash_under_load(&mut cluster, &mut lanes, round, after);
            assert!(writes > 0, "round {round}: nothing was written");
            answered += writes;
            if round % 4 == 3 {
                // A start that is killed is a crash as well.
                cluster.start_unwaited();
                thread::sleep(Duration::from_millis(random.below(400)));
                cluster.kill();
            }
            cluster.start_again();
            println!("round {round}: {writes} writes, started again in {:?}", cluster.started_in);
            let mut nbd = cluster.connect("demo");
            carried_out += lanes.iter_mut().map(|lane| lane.check(&mut nbd)).sum::<usize>();
        }
        println!("{answered} writes answered, {carried_out} unanswered ones were carried out nevertheless");
        if have(&["fio"]) {
            fio(&cluster, &["--name=after", "--rw=randwrite", "--bsrange=512-64k", "--offset=256M", "--size=32M"]);
        }
        let mut nbd = cluster.connect("demo");
        for lane in &mut lanes {
            assert_eq!(lane.check(&mut nbd), 0, "nothing was under way");
        }
        cluster.stop();
        for id in 1..=3 {
            let done = cluster.blockyard(&["osd", "check", cluster.osd_file(id).to_str().unwrap(), "--json"]).json();
            assert_eq!(done["problems"], serde_json::json!([]), "OSD {id}: {done}");
        }
    });
}

#[test]
fn a_crash_in_the_middle_of_fio_leaves_a_cluster_that_serves() {
    limited(120, || {
        if !have(&["fio"]) {
            return;
        }
        let mut cluster = Cluster::start();
        let (uri, folder) = (cluster.uri("demo"), cluster.path(""));
        let load = thread::spawn(move || {
            let uri = format!("--uri={uri}");
            // It leaves its state there.
            let folder = format!("--aux-path={}", folder.display());
            let shape = ["--rw=randrw", "--bsrange=512-64k", "--size=256M", "--iodepth=32", "--verify=crc32c"];
            e2e::run("fio", [&["--name=killed", "--ioengine=nbd", &uri, &folder], &shape[..]].concat())
        });
        thread::sleep(Duration::from_millis(1500));
        cluster.kill();
        assert!(load.join().expect("fio ends").status != 0, "fio noticed that the server is gone");
        cluster.start_again();
        fio(&cluster, &["--name=after", "--rw=randrw", "--bsrange=512-64k", "--size=32M"]);
    });
}
