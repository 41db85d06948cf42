//! `blockyard up`: what it promises to scripts, and what it refuses.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use e2e::{Cluster, Nbd, Random, blockyard, eventually, limited, run, scratch, skip, try_up};

#[test]
fn it_is_ready_soon_keeps_its_contract_and_its_data() {
    limited(90, || {
        let mut cluster = Cluster::start();
        println!("first start: ready in {:?}", cluster.started_in);
        let up = cluster.endpoints().clone();
        assert_eq!(up["pid"], cluster.pid());
        for name in ["etcd", "nbd", "metrics"] {
            let address: SocketAddr = up[name].as_str().and_then(|a| a.parse().ok()).expect(name);
            assert!(address.ip().is_loopback() && address.port() != 0, "{name}: {address}");
        }
        assert_eq!(up["images"], serde_json::json!(["demo"]));
        let mut nbd = cluster.connect("demo");
        assert_eq!(nbd.size, 4 << 30);
        let data = Random::new(1).bytes(3 << 20);
        nbd.write_long(12345 << 12, &data).unwrap();
        let log = cluster.log();
        for word in ["ready", &cluster.uri("demo"), "nbdcopy", "etcdctl", "metrics"] {
            assert!(log.contains(word), "what it prints tells {word}:\n{log}");
        }

        cluster.stop();
        assert!(!cluster.data_dir().join("up.json").exists(), "up.json is gone when nothing serves");
        let refused = cluster.blockyard(&["status"]).refused(3, &["no cluster runs on", "blockyard up"]);
        assert!(refused.stdout.is_empty());

        cluster.start_again();
        println!("second start: ready in {:?}", cluster.started_in);
        assert_eq!(cluster.connect("demo").read_long(12345 << 12, data.len()).unwrap(), data);
        assert_eq!(cluster.endpoints()["images"], serde_json::json!(["demo"]));
    });
}

#[test]
fn options_of_the_first_start_are_kept_and_later_ones_checked() {
    limited(90, || {
        let options = ["--osds", "2", "--osd-size", "256M", "--image", "a=64M", "--image", "b=1.5G"];
        let mut cluster = Cluster::start_with(&options);
        assert_eq!(cluster.endpoints()["images"], serde_json::json!(["a", "b"]));
        assert_eq!(cluster.connect("b").size, 3 << 29);
        let status = cluster.status();
        assert_eq!(status["pools"][0]["replicas"], 2, "{status}");
        assert_eq!(status["osd-list"].as_array().map(Vec::len), Some(2), "{status}");
        assert_eq!(std::fs::metadata(cluster.osd_file(1)).unwrap().len(), 256 << 20);
        cluster.stop();
        let dir = cluster.data_dir();
        let dir = dir.to_str().unwrap();
        let again = |option: &str, value: &str| try_up(&["--ports", "auto", "--data-dir", dir, option, value]).done;
        again("--osds", "3").refused(2, &["--osds", "fixed at the first start"]);
        again("--replicas", "1").refused(2, &["--replicas", "fixed at the first start"]);
        again("--osd-size", "1G").refused(2, &["--osd-size", "fixed at the first start"]);
        again("--ec", "2+1").refused(2, &["--ec", "fixed at the first start"]);
        cluster.start_again();
    });
}

#[test]
fn a_second_one_on_the_same_directory_is_refused() {
    limited(60, || {
        let cluster = Cluster::start_with(&["--osds", "1"]);
        let dir = cluster.data_dir();
        let dir = dir.to_str().unwrap();
        let refused = try_up(&["--ports", "auto", "--data-dir", dir]);
        refused.done.refused(5, &["a cluster runs on", dir, &cluster.pid().to_string()]);
        assert!(refused.after < Duration::from_secs(5), "{:?}", refused.after);
        cluster.connect("demo").write(0, b"and the first goes on").unwrap();
        assert_eq!(cluster.status()["verdict"], "ok");
        cluster.blockyard(&["osd", "check", cluster.osd_file(1).to_str().unwrap()]).refused(5, &["an OSD runs on it"]);
    });
}

#[test]
fn what_it_cannot_use_gets_a_clear_error() {
    limited(60, || {
        let folder = scratch();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let up = |dir: &str| try_up(&["--ports", "auto", "--data-dir", dir]).done;
        up(&path("missing/data")).refused(1, &["missing/data", "the directory above it does not exist"]);
        assert!(!folder.path().join("missing").exists());
        std::fs::write(folder.path().join("file"), "x").unwrap();
        up(&path("file")).refused(1, &["not a directory"]);
        let usage = |words: &[&str]| try_up(&[&["--ports", "auto", "--data-dir", &path("data")], words].concat()).done;
        usage(&["--osds", "2", "--replicas", "3"]).refused(2, &["3 copies need as many OSDs"]);
        usage(&["--osds", "0"]).refused(2, &["--osds"]);
        usage(&["--image", "demo"]).refused(2, &["NAME=SIZE"]);
        usage(&["--osd-size", "many"]).refused(2, &["--osd-size"]);
    });
}

#[test]
fn a_port_in_use_gets_a_clear_error() {
    limited(60, || {
        // If somebody else has the port, that is as good.
        let _held = TcpListener::bind("127.0.0.1:10809");
        let folder = scratch();
        let dir = folder.path().join("data");
        try_up(&["--data-dir", dir.to_str().unwrap()]).done.refused(1, &["the port is in use", "--ports auto"]);
    });
}

#[test]
fn a_full_disk_gets_a_clear_error() {
    limited(60, || {
        let folder = scratch();
        let script = "mount -t tmpfs -o size=128k none \"$1\" || exit 99
            exec \"$2\" up --ports auto --data-dir \"$1/data\"";
        let (dir, command) = (folder.path().to_str().unwrap(), blockyard());
        let done = run("unshare", ["-rm", "bash", "-c", script, "-", dir, command.to_str().unwrap()]);
        if done.status == 99 || done.stderr.contains("unshare") {
            return skip(&format!("no file system can be mounted here: {}", done.stderr));
        }
        let done = done.refused(1, &["error: "]);
        let told = ["No space left", "full", "space"].iter().any(|word| done.stderr.contains(word));
        assert!(told && !done.stderr.contains("panicked"), "{}", done.stderr);
    });
}

#[test]
fn a_signal_during_the_start_ends_it_cleanly() {
    limited(90, || {
        let mut random = Random::new(5);
        let mut cluster = Cluster::start_with(&["--osd-size", "256M"]);
        cluster.stop();
        for _ in 0..5 {
            cluster.start_unwaited();
            std::thread::sleep(Duration::from_millis(30 + random.below(300)));
            let status = cluster.terminate();
            assert!(status.success(), "{status}\n{}", cluster.log());
        }
        cluster.start_again();
    });
}

#[test]
fn metrics_are_served() {
    limited(60, || {
        use std::io::{Read, Write};
        let cluster = Cluster::start_with(&["--osds", "1"]);
        cluster.connect("demo").write(4096, &[7; 4096]).unwrap();
        let address = cluster.endpoints()["metrics"].as_str().unwrap().to_owned();
        let get = || {
            let mut stream = std::net::TcpStream::connect(&address).ok()?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n").ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            text.lines().any(|line| line.starts_with("blockyard_")).then_some(text)
        };
        let text = eventually(10, "metrics", get);
        assert!(text.starts_with("HTTP/1.") && text.contains(" 200 "), "{text}");
    });
}

#[test]
fn the_unix_socket_serves_too() {
    limited(60, || {
        let cluster = Cluster::start_with(&["--osds", "1"]);
        let Some(socket) = cluster.endpoints()["nbd-socket"].as_str() else { return };
        if e2e::have(&["nbdinfo"]) {
            let uri = format!("nbd+unix:///demo?socket={socket}");
            assert_eq!(run("nbdinfo", ["--size", &uri]).ok().stdout.trim(), (4u64 << 30).to_string());
        }
        assert!(Nbd::connect(cluster.nbd(), "no such image").is_err());
    });
}
