//! Daemons as processes of their own, as on many machines: against real etcd, and against the store of `blockyard up`.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::{Cluster, Done, Fleet, FleetOptions, Nbd, Random, blockyard, eventually, have, limited, run, sample, skip};
use serde_json::{Value, json};

const TOOLS: [&str; 3] = ["etcd", "etcdctl", "openssl"];

/// Metrics of a daemon, given what it said when it was ready.
pub fn metrics(ready: &Value) -> String {
    let address = ready["metrics"].as_str().and_then(|address| address.parse().ok()).expect("an address of metrics");
    e2e::metrics(address).expect("metrics are served")
}

#[test]
fn many_processes_serve_as_one_does_and_keep_their_data() {
    limited(120, || {
        if !have(&TOOLS) {
            return;
        }
        let mut fleet = Fleet::start(FleetOptions::default());
        fleet.blockyard(&["init"]).refused(5, &["holds cluster", "already"]);
        fleet.blockyard(&["pool", "create", "default", "--pg-count", "16"]).ok();
        fleet.blockyard(&["image", "create", "demo", "--size", "256M"]).ok();
        fleet.wait_active(30);
        let nbd = fleet.nbd();
        let mut demo = eventually(15, "demo is exported", || Nbd::connect(nbd, "demo").ok());
        let data = Random::new(1).bytes(20 << 20);
        demo.write_long(7 << 20, &data).unwrap();
        let status = fleet.status();
        assert_eq!((&status["verdict"], &status["osds"]["up"]), (&json!("ok"), &json!(3)), "{status}");
        assert_eq!((&status["leader"], &status["gateways"][0]["nbd"]), (&json!("mon.1"), &json!([nbd.to_string()])));
        let osds = fleet.blockyard(&["osd", "ls", "--json"]).json();
        assert_eq!((&osds[2]["host"], &osds[2]["up"]), (&json!("host3"), &json!(true)), "{osds}");
        let pgs = fleet.blockyard(&["pg", "ls", "--json"]).json();
        assert!(pgs.as_array().is_some_and(|pgs| pgs.len() == 16 && pgs.iter().all(|pg| pg["state"] == "active")));
        let df = || fleet.blockyard(&["df", "--json"]).json()["raw"]["used"].as_u64();
        eventually(15, "df shows what was written", || df().filter(|used| *used >= 3 * (20 << 20)));

        for name in ["gateway", "mon.1", "osd.2", "osd.1", "osd.3"] {
            fleet.stop(name);
        }
        let down = fleet.status();
        assert_eq!((&down["osds"]["up"], &down["gateways"]), (&json!(0), &json!([])), "they deregister at once");
        let mut ready = vec![fleet.start_monitor(1)];
        ready.extend((1..=3).map(|id| fleet.start_osd(id)));
        ready.push(fleet.start_gateway());
        fleet.wait_active(30);
        assert_eq!(ready[1]["osds"][0]["id"], 1, "{}", ready[1]);
        let mut demo = eventually(15, "demo is exported again", || Nbd::connect(nbd, "demo").ok());
        assert!(demo.read_long(7 << 20, data.len()).unwrap() == data);
        let osd = eventually(10, "an OSD counts reads", || {
            let text = metrics(&ready[1]);
            sample(&text, "blockyard_osd_process_reads_total{osd=\"1\"}").filter(|n| *n > 0.0).map(|_| text)
        });
        assert!(sample(&osd, "blockyard_osd_process_objects{osd=\"1\"}") > Some(0.0), "{osd}");
        assert_eq!(sample(&metrics(&ready[0]), "blockyard_osds_up"), Some(3.0));
        assert!(metrics(&ready[4]).contains("blockyard_gateway_ops_total"));
    });
}

#[test]
fn what_is_started_twice_or_elsewhere_is_refused() {
    limited(60, || {
        if !have(&TOOLS) {
            return;
        }
        let fleet = Fleet::start(FleetOptions { osds: 1, ..FleetOptions::default() });
        let file = fleet.osd_file(1);
        let path = file.to_str().unwrap();
        fleet.blockyard(&["osd", "run", path]).refused(1, &[path]);
        fleet.blockyard(&["osd", "prepare", path, "--yes"]).refused(5, &["another process has it open"]);
        fleet.blockyard(&["osd", "rm", "1"]).refused(5, &["it runs"]);
        assert_eq!(fleet.blockyard(&["osd", "ls", "--json"]).json().as_array().map(Vec::len), Some(1));
        let other = Fleet::start_etcd(FleetOptions::default());
        other.blockyard(&["osd", "run", path]).refused(4, &["holds no cluster", "blockyard init"]);
        other.blockyard(&["mon"]).refused(4, &["holds no cluster"]);
        other.blockyard(&["gateway", "--nbd", "127.0.0.1:0"]).refused(4, &["holds no cluster"]);
        other.blockyard(&["init"]).ok();
        other.blockyard(&["osd", "run", path]).refused(1, &["belongs to cluster"]);
    });
}

#[test]
fn etcd_with_tls_and_users_lets_in_only_who_may() {
    limited(120, || {
        if !have(&TOOLS) {
            return;
        }
        let mut fleet = Fleet::start_etcd(FleetOptions { tls: true, ..FleetOptions::default() });
        fs::write(fleet.path("password"), "secret\n").unwrap();
        fs::write(fleet.path("wrong"), "guess\n").unwrap();
        let etcd = |args: &[&str]| fleet.etcd.etcdctl(args).ok();
        etcd(&["user", "add", "root:rootpw"]);
        etcd(&["user", "grant-role", "root", "root"]);
        etcd(&["user", "add", "by:secret"]);
        etcd(&["role", "add", "blockyard"]);
        etcd(&["role", "grant-permission", "--prefix=true", "blockyard", "readwrite", "/blockyard/"]);
        etcd(&["user", "grant-role", "by", "blockyard"]);
        etcd(&["auth", "enable"]);

        let endpoint = fleet.etcd.endpoint();
        let plain = run(blockyard(), ["--cluster", &endpoint, "status"]);
        plain.refused(3, &[&endpoint]);
        fleet.blockyard(&["init"]).refused(1, &["user"]);
        let file = |name: &str| fleet.path(name).to_str().unwrap().to_owned();
        let (right, wrong) = (file("password"), file("wrong"));
        let with = |password: &str| fleet.blockyard(&["--etcd-user", "by", "--etcd-password-file", password, "init"]);
        assert_ne!(with(&wrong).status, 0);
        with(&right).ok();
        fleet.add_access(&["--etcd-user", "by", "--etcd-password-file", &right]);
        fleet.start_monitor(1);
        fleet.prepare_osd(1);
        fleet.start_osd(1);
        fleet.start_gateway();
        fleet.blockyard(&["pool", "create", "default", "--replicas", "1", "--pg-count", "4"]).ok();
        fleet.blockyard(&["image", "create", "demo", "--size", "16M"]).ok();
        fleet.wait_active(30);
        let nbd = fleet.nbd();
        let mut demo = eventually(15, "demo is exported", || Nbd::connect(nbd, "demo").ok());
        demo.write(0, &[7; 4096]).unwrap();
        let lines = fs::read_to_string(format!("/proc/{}/cmdline", fleet.daemon("gateway").pid())).unwrap();
        assert!(!lines.contains("secret"), "the password is on no command line");
    });
}

#[test]
fn a_cluster_in_one_process_takes_osds_of_other_processes() {
    limited(120, || {
        let mut cluster = Cluster::start_with(&["--osds", "2", "--osd-size", "512M"]);
        let file = cluster.path("osd.3").to_str().unwrap().to_owned();
        let made = cluster.blockyard(&["osd", "prepare", &file, "--size", "512M", "--json"]).json();
        assert_eq!(made["id"], 3, "{made}");
        let access = ["--cluster".to_owned(), cluster.data_dir().to_str().unwrap().to_owned(), "--json".to_owned()];
        let line: Vec<_> = access.into_iter().chain(["osd".to_owned(), "run".to_owned(), file]).collect();
        let folder = e2e::scratch();
        let mut osd = e2e::Process::start(folder.path(), "osd.3", &blockyard(), &line, None);
        osd.wait_line(Duration::from_secs(20));
        cluster.blockyard(&["pool", "create", "three", "--replicas", "3", "--pg-count", "8"]).ok();
        cluster.blockyard(&["image", "create", "three/a", "--size", "64M"]).ok();
        let mut a = eventually(20, "three/a is exported", || Nbd::connect(cluster.nbd(), "three/a").ok());
        let data = Random::new(2).bytes(16 << 20);
        a.write_long(0, &data).unwrap();
        assert!(a.read_long(0, data.len()).unwrap() == data);
        let pgs = cluster.blockyard(&["pg", "ls", "--osd", "3", "--pool", "three", "--json"]).json();
        assert_eq!(pgs.as_array().map(Vec::len), Some(8));
        assert_eq!(cluster.status()["osds"]["up"], 3);
        osd.stop();
        cluster.blockyard(&["osd", "rm", "3"]).refused(7, &["OSD 3", "placement groups"]);
        cluster.stop();
    });
}

/// A block device that is a file.
struct Loop(String);

impl Loop {
    /// `None`, loudly, where the system has none left to give.
    fn of(file: &Path, bytes: u64) -> Option<Self> {
        fs::File::create(file).and_then(|file| file.set_len(bytes)).unwrap();
        let made = run("losetup", ["--partscan", "--find", "--show", file.to_str().unwrap()]);
        if made.status != 0 {
            skip(&format!("no loop device: {}", made.stderr.trim()));
            return None;
        }
        Some(Self(made.stdout.trim().to_owned()))
    }

    /// Runs something that waits for the system to show new partitions. Not every kernel of a virtual machine can read a GPT.
    fn while_partitions_are_added(&self, divide: impl FnOnce() -> Done) -> Done {
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    run("partx", ["--update", &self.0]);
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
            let done = divide();
            is_done.store(true, Ordering::Relaxed);
            done
        })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", ["--detach", &self.0]);
    }
}

#[test]
fn a_drive_is_divided_among_several_osds() {
    limited(120, || {
        if !have(&["losetup", "partx"]) {
            return;
        }
        let mut cluster = Cluster::start_with(&["--osds", "1", "--osd-size", "512M"]);
        let Some(drive) = Loop::of(&cluster.path("drive"), 600 << 20) else { return };
        let divide = |count, more: &[&str]| {
            let line = [&["osd", "prepare", &drive.0, "--osds-per-device", count, "--json"], more].concat();
            cluster.blockyard(&line)
        };
        divide("17", &[]).refused(2, &["1..=16"]);
        divide("2", &["--id", "9"]).refused(2, &["--id"]);
        cluster.blockyard(&["osd", "prepare", "/dev/null", "--osds-per-device", "2"]).refused(2, &["no block device"]);
        let made = drive.while_partitions_are_added(|| divide("2", &["--host", "elsewhere"])).json();
        let of = |field: &str| made.as_array().unwrap().iter().map(|osd| osd[field].clone()).collect::<Vec<_>>();
        assert_eq!(of("id"), [2, 3], "{made}");
        assert_eq!(of("path"), [format!("{}p1", drive.0), format!("{}p2", drive.0)]);
        assert_eq!(of("bytes"), [299 << 20, 299 << 20]);
        cluster.blockyard(&["osd", "prepare", made[0]["path"].as_str().unwrap()]).refused(6, &["a Blockyard store"]);

        let access = ["--cluster".to_owned(), cluster.data_dir().to_str().unwrap().to_owned(), "--json".to_owned()];
        let paths = of("path").into_iter().map(|path| path.as_str().unwrap().to_owned());
        let line: Vec<_> = access.into_iter().chain(["osd".to_owned(), "run".to_owned()]).chain(paths).collect();
        let folder = e2e::scratch();
        let mut osds = e2e::Process::start(folder.path(), "osds", &blockyard(), &line, None);
        osds.wait_line(Duration::from_secs(20));
        divide("3", &["--yes"]).refused(5, &["used by the system"]);
        cluster.blockyard(&["pool", "create", "two", "--replicas", "2", "--pg-count", "8"]).ok();
        cluster.blockyard(&["image", "create", "two/a", "--size", "64M"]).ok();
        let mut a = eventually(20, "two/a is exported", || Nbd::connect(cluster.nbd(), "two/a").ok());
        let data = Random::new(2).bytes(16 << 20);
        a.write_long(0, &data).unwrap();
        assert!(a.read_long(0, data.len()).unwrap() == data);
        let share = |id: &str| {
            let pgs = cluster.blockyard(&["pg", "ls", "--osd", id, "--pool", "two", "--json"]).json();
            pgs.as_array().map_or(0, Vec::len)
        };
        assert_eq!((share("1"), share("2") + share("3")), (8, 8), "never two copies on one drive");
        assert!(share("2") >= 2 && share("3") >= 2, "both take part");
        osds.stop();
        divide("3", &[]).refused(6, &["a GPT partition table", "--yes"]);
        let again = drive.while_partitions_are_added(|| divide("3", &["--yes"])).json();
        assert_eq!(again.as_array().unwrap().iter().map(|osd| osd["id"].clone()).collect::<Vec<_>>(), [4, 5, 6]);
        cluster.stop();
    });
}

#[test]
fn a_daemon_waits_for_its_state_store_and_tells_systemd() {
    limited(90, || {
        if !have(&TOOLS) {
            return;
        }
        let mut fleet = Fleet::start_etcd(FleetOptions::default());
        fleet.blockyard(&["init"]).ok();
        fleet.prepare_osd(1);
        fleet.etcd.kill();
        let socket = UnixDatagram::bind(fleet.path("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let told = || {
            let mut bytes = [0; 64];
            let n = socket.recv(&mut bytes).expect("systemd is told");
            String::from_utf8_lossy(&bytes[..n]).into_owned()
        };
        let (path, endpoint) = (fleet.path("notify"), fleet.etcd.endpoint());
        let file = fleet.osd_file(1).to_str().unwrap().to_owned();
        let words = [
            &format!("NOTIFY_SOCKET={}", path.display()),
            "WATCHDOG_USEC=400000",
            blockyard().to_str().unwrap(),
            "--cluster",
            &endpoint,
            "osd",
            "run",
            &file,
        ]
        .map(str::to_owned);
        let mut osd = e2e::Process::start(fleet.path("").as_path(), "osd", "env".as_ref(), &words, None);
        std::thread::sleep(Duration::from_millis(1500));
        assert!(osd.first_line().is_none() && osd.ended().is_none(), "it waits");
        assert!(osd.log().contains("waiting for the state store"), "{}", osd.log());
        fleet.etcd.start_again();
        osd.wait_line(Duration::from_secs(20));
        assert_eq!(told(), "READY=1");
        assert_eq!([told(), told()], ["WATCHDOG=1", "WATCHDOG=1"]);
        osd.stop();
        let end = eventually(5, "systemd is told of the end", || Some(told()).filter(|told| told != "WATCHDOG=1"));
        assert_eq!(end, "STOPPING=1");
    });
}
