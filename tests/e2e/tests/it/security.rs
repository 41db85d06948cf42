//! The cluster's key: whoever has it is let in everywhere, whoever has another or none nowhere, and both sides say why.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use e2e::{Fleet, FleetOptions, Nbd, Process, Random, blockyard, eventually, have, limited};

const OTHER: &str = "different cluster keys";
const NONE: &str = "has no cluster key";

/// A fleet with a key, and the options by which strangers come: with another key, and without.
fn start() -> (Fleet, [(Vec<String>, &'static str); 2]) {
    let mut fleet = Fleet::start_etcd(FleetOptions { osds: 2, ..FleetOptions::default() });
    fleet.blockyard(&["init"]).ok();
    let [right, wrong] = ["right", "wrong"].map(|name| {
        let path = fleet.path(name).to_str().unwrap().to_owned();
        let made = fleet.blockyard(&["key", "create", &path, "--json"]).json();
        let shown = fleet.blockyard(&["key", "fingerprint", &path, "--json"]).json();
        assert_eq!(made["fingerprint"], shown["fingerprint"]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "only its owner reads it");
        path
    });
    fleet.blockyard(&["key", "create", &right]).refused(5, &["exists already"]);
    let cluster = ["--cluster".to_owned(), fleet.etcd.endpoint(), "--json".to_owned()];
    let with_wrong = [&cluster[..], &["--key-file".to_owned(), wrong]].concat();
    fleet.add_access(&["--key-file", &right]);
    fleet.start_monitor(1);
    for id in 1..=2 {
        fleet.prepare_osd(id);
        fleet.start_osd(id);
    }
    fleet.start_gateway();
    fleet.blockyard(&["pool", "create", "default", "--replicas", "2", "--pg-count", "8"]).ok();
    fleet.blockyard(&["image", "create", "demo", "--size", "64M"]).ok();
    fleet.wait_active(30);
    let nbd = fleet.nbd();
    eventually(15, "demo is exported", || Nbd::connect(nbd, "demo").ok());
    (fleet, [(with_wrong, OTHER), (cluster.to_vec(), NONE)])
}

fn stranger(fleet: &Fleet, name: &str, access: &[String], args: &[&str]) -> Process {
    let line: Vec<String> = access.iter().cloned().chain(args.iter().map(|arg| (*arg).to_owned())).collect();
    Process::start(fleet.path("").as_path(), name, &blockyard(), &line, None)
}

#[test]
fn clients_without_the_right_key_are_refused() {
    limited(150, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let (mut fleet, strangers) = start();
        let data = Random::new(1).bytes(8 << 20);
        fleet.connect("demo").write_long(0, &data).unwrap();
        for (access, why) in &strangers {
            let mut gateway = stranger(&fleet, why, access, &["gateway", "--nbd", "127.0.0.1:0"]);
            let ready: serde_json::Value = serde_json::from_str(&gateway.wait_line(Duration::from_secs(20))).unwrap();
            let nbd = ready["nbd"][0].as_str().unwrap().parse().unwrap();
            let mut demo = eventually(15, "the images are known", || Nbd::connect(nbd, "demo").ok());
            demo.set_patience(Some(Duration::from_secs(2))).unwrap();
            demo.read(0, 4096).expect_err("nothing is read");
            eventually(10, "the gateway says why", || gateway.log().contains(why).then_some(()));
            let told = |id: u32| fleet.daemon(&format!("osd.{id}")).log();
            let logs = [1, 2].map(told).concat();
            assert!(logs.contains(why), "an OSD says why: {logs}");
        }
        let path = fleet.path("loose");
        fs::copy(fleet.path("right"), &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let access = ["--cluster", &fleet.etcd.endpoint(), "--key-file", path.to_str().unwrap(), "status"];
        e2e::run(blockyard(), access).refused(1, &[path.to_str().unwrap()]);
        assert!(fleet.connect("demo").read_long(0, data.len()).unwrap() == data);
    });
}

#[test]
fn an_osd_without_the_right_key_is_refused_and_loses_nothing() {
    limited(200, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let (mut fleet, strangers) = start();
        let data = Random::new(2).bytes(8 << 20);
        fleet.connect("demo").write_long(0, &data).unwrap();
        let file = fleet.osd_file(2).to_str().unwrap().to_owned();
        for (access, why) in &strangers {
            fleet.kill("osd.2");
            let before = fleet.daemon("osd.1").log().len();
            let osd = stranger(&fleet, why, access, &["osd", "run", &file]);
            // Whoever leads connects; the one without a key calls it the other way round.
            let says = |log: &str| log.contains(OTHER) || log.contains(NONE);
            eventually(30, "osd 1 says why", || says(&fleet.daemon("osd.1").log()[before..]).then_some(()));
            eventually(30, "osd 2 says why", || says(&osd.log()).then_some(()));
            osd.kill();
            fleet.start_osd(2);
            fleet.wait_active(60);
        }
        assert!(fleet.connect("demo").read_long(0, data.len()).unwrap() == data);
    });
}

#[test]
fn a_monitor_without_the_right_key_is_refused() {
    limited(150, || {
        if !have(&["etcd", "etcdctl"]) {
            return;
        }
        let (mut fleet, strangers) = start();
        fleet.connect("demo").write(0, &[5; 4096]).unwrap();
        fleet.stop("mon.1");
        for (access, why) in &strangers {
            let mut monitor = stranger(&fleet, why, access, &["mon", "--name", "stranger"]);
            monitor.wait_line(Duration::from_secs(20));
            // It asks an OSD whose registration is gone whether it runs.
            eventually(30, "the monitor says why", || {
                fleet.etcd.etcdctl(&["del", "/blockyard/osd/2"]).ok();
                monitor.log().contains(why).then_some(())
            });
            eventually(5, "the OSD says why", || fleet.daemon("osd.2").log().contains(why).then_some(()));
            monitor.stop();
        }
        fleet.start_monitor(1);
        fleet.wait_active(60);
        assert_eq!(fleet.connect("demo").read(0, 4096).unwrap(), [5; 4096]);
    });
}
