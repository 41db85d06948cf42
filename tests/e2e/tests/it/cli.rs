//! Commands that talk to a running cluster.

use std::os::unix::fs::MetadataExt;

use e2e::{Cluster, Random, blockyard, eventually, have, limited, run, sha256};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn names(list: &Value) -> Vec<&str> {
    list.as_array().map(|list| list.iter().filter_map(|entry| entry["name"].as_str()).collect()).unwrap_or_default()
}

#[test]
fn images_are_created_listed_resized_and_removed() {
    limited(90, || {
        let cluster = Cluster::start_with(&["--osd-size", "512M"]);
        let by = |args: &[&str]| cluster.blockyard(&[args, &["--json"]].concat());
        assert_eq!(by(&["image", "create", "disk", "--size", "64M"]).json()["size"], 64 * MIB);
        by(&["image", "create", "disk", "--size", "64M"]).refused(5, &["disk"]);
        by(&["image", "create", "other", "--size", "1000"]).refused(2, &["1000"]);
        assert_eq!(names(&by(&["image", "ls"]).json()), ["demo", "disk"]);
        let mut nbd = eventually(10, "the image is exported", || e2e::Nbd::connect(cluster.nbd(), "disk").ok());
        nbd.write(MIB, &[1; 65536]).unwrap();
        let info = by(&["image", "info", "disk", "--usage"]).json();
        assert_eq!((&info["size"], &info["used"]), (&json!(64 * MIB), &json!(65536)), "{info}");

        assert_eq!(by(&["image", "resize", "disk", "128M"]).json()["size"], 128 * MIB);
        let size = || Some(e2e::Nbd::connect(cluster.nbd(), "disk").ok()?.size);
        eventually(10, "a new connection sees the new size", || (size() == Some(128 * MIB)).then_some(()));
        let mut grown = cluster.connect("disk");
        grown.write(127 * MIB, &[2; 4096]).unwrap();
        by(&["image", "resize", "disk", "1M"]).refused(6, &["--yes"]);
        assert_eq!(by(&["image", "resize", "disk", "1M", "--yes"]).json()["size"], MIB);
        eventually(10, "and the smaller one", || (size() == Some(MIB)).then_some(()));
        by(&["image", "resize", "disk", "128M"]).json();
        eventually(10, "grown again", || (size() == Some(128 * MIB)).then_some(()));
        let mut again = cluster.connect("disk");
        assert_eq!(again.read(MIB, 65536).unwrap(), [0; 65536], "what was cut off is gone");
        assert_eq!(again.read(127 * MIB, 4096).unwrap(), [0; 4096]);

        by(&["image", "rm", "disk"]).refused(6, &["--yes"]);
        by(&["image", "rm", "disk", "--yes"]).json();
        assert_eq!(names(&by(&["image", "ls"]).json()), ["demo"]);
        by(&["image", "info", "disk"]).refused(4, &["disk"]);
        by(&["image", "rm", "disk", "--yes"]).refused(4, &["disk"]);
        eventually(10, "it is not exported any more", || e2e::Nbd::connect(cluster.nbd(), "disk").err());
    });
}

#[test]
fn removing_an_image_frees_its_space() {
    limited(90, || {
        let cluster = Cluster::start_with(&["--osd-size", "256M", "--image", "big=128M"]);
        let used = || cluster.status()["space"]["used"].as_u64().unwrap_or_default();
        let before = used();
        cluster.connect("big").write_long(0, &Random::new(1).bytes(64 << 20)).unwrap();
        let written = 3 * 64 * MIB;
        eventually(20, "the space is used", || (used() >= before + written).then_some(()));
        cluster.blockyard(&["image", "rm", "big", "--yes"]).ok();
        eventually(20, "the space is free", || (used() < before + written / 8).then_some(()));
    });
}

#[test]
fn pools_are_created_and_hold_images() {
    limited(90, || {
        let cluster = Cluster::start_with(&["--osd-size", "256M"]);
        let by = |args: &[&str]| cluster.blockyard(&[args, &["--json"]].concat());
        by(&["pool", "create", "single", "--replicas", "1", "--pg-count", "16"]).ok();
        by(&["pool", "create", "single"]).refused(5, &["single"]);
        let pools = by(&["pool", "ls"]).json();
        assert_eq!(names(&pools), ["default", "single"], "{pools}");
        assert_eq!(pools[1]["replicas"], 1);
        by(&["image", "create", "single/a", "--size", "8M"]).ok();
        let mut nbd = eventually(15, "POOL/NAME is exported", || e2e::Nbd::connect(cluster.nbd(), "single/a").ok());
        let data = Random::new(3).bytes(4 << 20);
        nbd.write_long(0, &data).unwrap();
        assert!(nbd.read_long(0, data.len()).unwrap() == data);
        assert_eq!(names(&by(&["image", "ls", "--pool", "single"]).json()), ["a"]);
        by(&["image", "ls", "--pool", "none"]).refused(4, &["none"]);
        by(&["pool", "create", "bad", "--block-size", "3M"]).refused(2, &[]);
    });
}

#[test]
fn a_removed_image_gives_its_space_back_to_the_machine() {
    limited(120, || {
        let cluster = Cluster::start();
        let file = cluster.path("file");
        std::fs::write(&file, Random::new(6).bytes(48 << 20)).unwrap();
        cluster.blockyard(&["image", "import", file.to_str().unwrap(), "copy"]).ok();
        let taken = || std::fs::metadata(cluster.osd_file(1)).unwrap().blocks() * 512;
        let before = taken();
        cluster.blockyard(&["image", "rm", "copy", "--yes"]).ok();
        eventually(60, "the space is discarded", || (taken() + 40 * MIB < before).then_some(()));
    });
}

#[test]
fn import_and_export_keep_every_bit_and_every_hole() {
    limited(120, || {
        let cluster = Cluster::start_with(&["--osd-size", "512M"]);
        let by = |args: &[&str]| cluster.blockyard(&[args, &["--json"]].concat());
        let (from, to) = (cluster.path("from"), cluster.path("to"));
        let (from_name, to_name) = (from.to_str().unwrap(), to.to_str().unwrap());
        let mut random = Random::new(4);
        let file = std::fs::File::create(&from).unwrap();
        file.set_len(700 * MIB + 512).unwrap();
        for _ in 0..40 {
            let bytes = random.bytes(1000 + random.clone().below(600_000) as usize);
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, random.below(699 * MIB)).unwrap();
        }
        // Written zeroes are no data either.
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; 4 << 20], 100 * MIB).unwrap();
        drop(file);
        let done = by(&["image", "import", from_name, "copy", "--verify"]).json();
        assert_eq!(done["size"], (700 * MIB + 512).next_multiple_of(4096), "{done}");
        let info = by(&["image", "info", "copy", "--usage"]).json();
        assert!(info["used"].as_u64().unwrap() < 40 * MIB, "holes and zeroes take no space: {info}");
        by(&["image", "export", "copy", to_name]).ok();
        by(&["image", "export", "copy", to_name]).refused(6, &["--yes"]);
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 60 * MIB, "the copy is sparse");
        run("truncate", ["-s", &(700 * MIB + 512).to_string(), to_name]).ok();
        assert_eq!(sha256(&from), sha256(&to));

        // Over something that exists, longer than the file.
        let small = cluster.path("small");
        std::fs::write(&small, random.bytes(3_000_000)).unwrap();
        by(&["image", "import", small.to_str().unwrap(), "copy"]).refused(6, &["--yes"]);
        by(&["image", "import", small.to_str().unwrap(), "copy", "--yes", "--verify"]).ok();
        let info = by(&["image", "info", "copy", "--usage"]).json();
        assert!(info["used"].as_u64().unwrap() < 4 * MIB, "behind the file is nothing: {info}");
        let piped = format!(
            "{} --cluster {} image export copy - | head -c 3000000 | cmp - {}",
            blockyard().display(),
            cluster.data_dir().display(),
            small.display()
        );
        run("bash", ["-c", &piped]).ok();
        by(&["image", "import", "/no/such/file", "x"]).refused(4, &["/no/such/file"]);
        by(&["image", "export", "none", to_name, "--yes"]).refused(4, &["none"]);
    });
}

#[test]
fn etcdctl_and_a_second_process_see_the_state() {
    limited(60, || {
        let cluster = Cluster::start_with(&["--osds", "1"]);
        let etcd = cluster.etcd();
        let status = run(blockyard(), ["--cluster", &etcd, "status", "--json"]).json();
        assert_eq!(status["cluster"], cluster.status()["cluster"]);
        assert_eq!((&status["verdict"], &status["images"]), (&json!("ok"), &json!(1)), "{status}");
        let text = cluster.blockyard(&["status"]).ok().stdout;
        assert!(text.contains("health") && text.contains("osds"), "{text}");
        let env = format!("BLOCKYARD_CLUSTER={}", cluster.data_dir().display());
        let osds = run("env", [env.as_str(), blockyard().to_str().unwrap(), "osd", "ls", "--json"]).json();
        assert_eq!((osds.as_array().map(Vec::len), &osds[0]["up"]), (Some(1), &json!(true)), "{osds}");
        run(blockyard(), ["--cluster", "127.0.0.1:1", "status"]).refused(3, &["127.0.0.1:1"]);
        if have(&["etcdctl"]) {
            let endpoints = format!("--endpoints={etcd}");
            let line = ["ETCDCTL_API=3", "etcdctl", &endpoints, "get", "--prefix", "/blockyard/"];
            let out = run("env", line).ok().stdout;
            for key in ["/blockyard/config/", "/blockyard/image/", "/blockyard/pg/", "/blockyard/osd/"] {
                assert!(out.lines().any(|line| line.starts_with(key)), "{key} in\n{out}");
            }
            run("env", [&line[..3], &["put", "/elsewhere/a", "b"]].concat()).ok();
            assert_eq!(run("env", [&line[..3], &["get", "/elsewhere/a"]].concat()).ok().stdout, "/elsewhere/a\nb\n");
        }
    });
}

#[test]
fn configuration_is_shown_and_checked() {
    limited(60, || {
        let cluster = Cluster::start_with(&["--osds", "1"]);
        let values = cluster.blockyard(&["config", "ls", "--json"]).json();
        assert!(values["pool/1"]["name"] == "default", "{values}");
        let pool = cluster.blockyard(&["config", "get", "pool/1"]).json();
        assert_eq!(pool, values["pool/1"]);
        cluster.blockyard(&["config", "set", "pool/1", "{}"]).refused(2, &["pool/1"]);
        cluster.blockyard(&["config", "set", "nonsense", "1"]).refused(2, &["no such setting"]);
        cluster.blockyard(&["config", "get", "pool/9"]).refused(4, &["pool/9"]);
        let mut changed = pool.clone();
        changed["pg-count"] = json!(7);
        cluster.blockyard(&["config", "set", "pool/1", &changed.to_string()]).refused(2, &["cannot be changed"]);
        assert_eq!(cluster.blockyard(&["config", "get", "pool/1"]).json(), pool);
    });
}
