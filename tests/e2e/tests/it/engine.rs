//! fio's native engine, which talks to OSDs itself.

use std::path::Path;
use std::thread;
use std::time::Duration;

use e2e::{Cluster, Done, Engine, Fleet, FleetOptions, Process, blockyard, eventually, have, limited, run, scratch};

/// Requests of all sizes, also of parts of sectors, across objects too.
const ALL_SIZES: [&str; 4] =
    ["--rw=randrw", "--rwmixread=30", "--bssplit=512/15:1536/10:4k/30:7k/10:16k/15:64k/10:132k/5:1m/5", "--iodepth=32"];

fn data_dir(cluster: &Cluster) -> String {
    cluster.data_dir().to_str().expect("a path of characters").to_owned()
}

fn images(cluster: &Cluster) -> Vec<String> {
    let list = cluster.blockyard(&["image", "ls", "--json"]).json();
    let names = list.as_array().into_iter().flatten().filter_map(|image| image["name"].as_str());
    names.map(str::to_owned).collect()
}

#[test]
fn the_engine_verifies_on_copies_and_on_erasure_code() {
    limited(400, || {
        for scheme in [["--replicas", "3"], ["--ec", "2+1"]] {
            let cluster = Cluster::start_with(&[&scheme[..], &["--osds", "3", "--image", "demo=256M"]].concat());
            let Some(fio) = Engine::find(&cluster.path("")) else { return };
            // By its endpoint, and by its data directory.
            fio.verify(&cluster.etcd(), "demo", &[&ALL_SIZES[..], &["--name=mixed", "--size=48M"]].concat());
            let long = ["--name=long", "--rw=write", "--bs=4M", "--iodepth=8", "--size=64M", "--offset=128M"];
            fio.verify(&data_dir(&cluster), "demo", &long);
            let pages = ["--name=pages", "--rw=randwrite", "--bs=4k", "--iodepth=128", "--size=16M", "--offset=64M"];
            fio.verify(&cluster.etcd(), "demo", &[&pages[..], &["--blockyard_busy_poll_us=500"]].concat());
        }
    });
}

#[test]
fn several_jobs_share_an_image_as_threads_and_as_processes() {
    limited(300, || {
        let cluster = Cluster::start_with(&["--image", "demo=256M"]);
        let Some(fio) = Engine::find(&cluster.path("")) else { return };
        let jobs = ["--rw=randrw", "--bs=4k", "--iodepth=16", "--numjobs=2", "--size=16M", "--offset_increment=32M"];
        for how in [&["--name=threads", "--thread"][..], &["--name=processes"]] {
            let done = fio.verify(&cluster.etcd(), "demo", &[&jobs[..], how].concat());
            assert_eq!(done.stdout.matches("err= 0").count(), 2, "{}", done.stdout);
        }
    });
}

#[test]
fn what_the_engine_writes_and_trims_is_what_others_read() {
    limited(300, || {
        let cluster = Cluster::start_with(&["--image", "demo=64M"]);
        let Some(fio) = Engine::find(&cluster.path("")) else { return };
        let (at, image) = (cluster.etcd(), "--blockyard_image=demo");
        let run = |options: &[&str]| fio.run(&at, &[options, &[image, "--output-format=json"]].concat()).json();
        let pattern = ["--buffer_pattern=0xb10c", "--size=8M", "--iodepth=4"];
        // It counts them somewhat differently when several are under way.
        let syncs = run(&[&["--name=w", "--rw=write", "--bs=64k", "--fsync=8"], &pattern[..]].concat());
        assert!(syncs["jobs"][0]["sync"]["total_ios"].as_u64() >= Some(15), "{syncs}");
        run(&[&["--name=d", "--rw=write", "--bs=64k", "--fdatasync=4", "--end_fsync=1"], &pattern[..]].concat());
        let bytes = |len: usize| cluster.connect("demo").read_long(0, len).expect("the image is served");
        assert!(bytes(8 << 20).chunks(2).all(|pair| pair == [0xb1, 0x0c]));
        let trims = run(&["--name=t", "--rw=trim", "--bs=128k", "--size=4M", "--iodepth=4"]);
        assert_eq!(trims["jobs"][0]["trim"]["total_ios"], 32, "{trims}");
        let (trimmed, kept) = (bytes(8 << 20), 4 << 20);
        assert!(trimmed[..kept].iter().all(|byte| *byte == 0));
        assert!(trimmed[kept..].chunks(2).all(|pair| pair == [0xb1, 0x0c]));
        run(&["--name=tw", "--rw=trimwrite", "--bs=64k", "--size=8M", "--iodepth=4"]);
        assert!(bytes(8 << 20).chunks(4096).all(|page| page.iter().any(|byte| *byte != 0)));
    });
}

#[test]
fn temporary_images_are_gone_afterwards() {
    limited(300, || {
        let cluster = Cluster::start();
        let Some(fio) = Engine::find(&cluster.path("")) else { return };
        let before = images(&cluster);
        let options =
            ["--name=tmp", "--blockyard_size=32M", "--rw=randwrite", "--bs=16k", "--iodepth=8", "--verify=crc32c"];
        fio.run(&cluster.etcd(), &[&options[..], &["--numjobs=2"]].concat()).ok();
        assert_eq!(images(&cluster), before);

        // Also when it is interrupted.
        let long = [&options[..], &["--time_based", "--runtime=100"]].concat();
        let (folder, arguments) = (cluster.path(""), fio.arguments(&cluster.etcd(), &long));
        let mut process = Process::start(&folder, "fio", Path::new("fio"), &arguments, None);
        let made = || images(&cluster).into_iter().find(|name| name.starts_with("fio-"));
        let made = eventually(20, "fio makes an image", made);
        process.signal("INT");
        eventually(30, "fio ends", || process.ended());
        assert_eq!(images(&cluster), before, "{made} is left:\n{}", process.log());
        let used = cluster.blockyard(&["status", "--json"]).json();
        assert_eq!(used["verdict"], "ok", "{used}");
    });
}

/// Makes sure that fio refused to do anything, and said why.
#[track_caller]
fn refused(done: &Done, words: &[&str]) {
    let said = words.iter().all(|word| done.stderr.contains(word));
    assert!(done.status == 1 && said, "{words:?}: {} {}\n{}", done.status, done.stdout, done.stderr);
}

#[test]
fn whoever_asks_for_what_is_not_there_is_told() {
    limited(300, || {
        let cluster = Cluster::start();
        let Some(fio) = Engine::find(&cluster.path("")) else { return };
        let at = cluster.etcd();
        let read = |at: &str, options: &[&str]| fio.run(at, &[&["--name=x", "--rw=read"], options].concat());
        refused(&read(&at, &["--blockyard_image=nothing"]), &["there is no image default/nothing"]);
        refused(&read(&at, &["--blockyard_size=1M", "--blockyard_pool=none"]), &["there is no pool \"none\""]);
        refused(&read(&at, &[]), &["say which image"]);
        refused(&read(&at, &["--blockyard_image=demo", "--blockyard_size=1M"]), &["not both"]);
        refused(&read("127.0.0.1:1", &["--blockyard_image=demo"]), &["state store", "127.0.0.1:1"]);
        refused(&read("/nowhere", &["--blockyard_image=demo"]), &["no cluster runs on /nowhere"]);
        refused(&read(&at, &["--blockyard_image=demo", "--blockyard_key_file=/nowhere"]), &["/nowhere"]);
        refused(&read(&at, &["--blockyard_image=demo", "--blockyard_encrypt=1"]), &["needs the cluster's key"]);
        refused(&read(&at, &["--blockyard_image=demo", "--bs=1000", "--size=1000"]), &["multiples of 512"]);
        refused(&read(&at, &["--blockyard_image=demo", "--filename=a:b"]), &["one image"]);
        refused(&read(&at, &["--blockyard_image=demo", "--blockyard_busy_poll_us=1000001"]), &["max value", "1000000"]);
    });
}

#[test]
fn a_cluster_with_a_key_lets_only_those_in_who_have_it() {
    limited(300, || {
        let folder = scratch();
        let path = |name: &str| folder.path().join(name).to_str().expect("a path of characters").to_owned();
        for name in ["key", "other"] {
            run(blockyard(), ["key", "create", &path(name)]).ok();
        }
        let cluster = Cluster::start_with(&["--key-file", &path("key"), "--image", "demo=64M"]);
        let Some(fio) = Engine::find(&cluster.path("")) else { return };
        let at = cluster.etcd();
        let conf = path("conf.toml");
        std::fs::write(&conf, format!("cluster = {at:?}\nkey-file = {:?}\nencrypt = true\n", path("key"))).unwrap();
        let write = ["--name=x", "--rw=randwrite", "--bs=16k", "--size=4M", "--iodepth=8"];
        fio.verify(&at, "demo", &[&write[..], &[&format!("--blockyard_key_file={}", path("key"))]].concat());
        fio.verify(&at, "demo", &[&write[..], &[&format!("--blockyard_conf={conf}")]].concat());
        let other = format!("--blockyard_key_file={}", path("other"));
        let image = "--blockyard_image=demo";
        refused(&fio.run(&at, &[&write[..], &[image, &other]].concat()), &["different cluster keys"]);
        refused(&fio.run(&at, &[&write[..], &[image]].concat()), &["no cluster key"]);
        refused(&fio.run(&at, &[&write[..], &["--blockyard_size=1M", &other]].concat()), &["different cluster keys"]);
        let left = cluster.blockyard(&["--key-file", &path("key"), "image", "ls", "--json"]).json();
        assert_eq!(left.as_array().map(Vec::len), Some(1), "an image that was never used is not left: {left}");
    });
}

#[test]
fn another_fio_is_refused() {
    limited(200, || {
        let folder = scratch();
        let Some(fio) = Engine::find(folder.path()) else { return };
        let version = run("fio", ["--version"]).ok().stdout.trim().to_owned();
        let mut bytes = std::fs::read(fio.library()).expect("the engine");
        let (own, other) = (format!("{version}\0"), format!("{}\0", version.replace('3', "9")));
        let at: Vec<_> = (0..bytes.len() - own.len()).filter(|at| bytes[*at..].starts_with(own.as_bytes())).collect();
        assert!(!at.is_empty(), "the engine knows for which fio it was built");
        for at in at {
            bytes[at..at + own.len()].copy_from_slice(other.as_bytes());
        }
        let changed = folder.path().join("changed.so");
        std::fs::write(&changed, bytes).expect("a file");
        let engine = format!("--ioengine=external:{}", changed.display());
        refused(&run("fio", [&engine, "--name=x"]), &["built for fio-9", &version, "fio/headers"]);
    });
}

#[test]
fn a_bare_store_is_measured_alone() {
    limited(300, || {
        let folder = scratch();
        let Some(fio) = Engine::find(folder.path()) else { return };
        let library = fio.library().display();
        let (engine, aux) =
            (format!("--ioengine=external:{library}"), format!("--aux-path={}", folder.path().display()));
        let store = format!("--blockyard_store={}", folder.path().join("store").display());
        let mode = [engine.as_str(), &aux, &store, "--blockyard_mode=store", "--blockyard_size=128M", "--name=x"];
        let write =
            ["--rw=randrw", "--bsrange=4k-128k", "--iodepth=32", "--size=64M", "--verify=crc32c", "--end_fsync=1"];
        let done = run("fio", [&mode[..], &write].concat()).ok();
        assert!(done.stdout.contains("err= 0"), "{}", done.stdout);
        run("fio", [&mode[..], &["--rw=randtrim", "--bs=64k", "--size=64M", "--iodepth=4"]].concat()).ok();
        let check = ["--rw=read", "--bs=64k", "--size=64M", "--verify=pattern", "--verify_pattern=0x00"];
        run("fio", [&mode[..], &check].concat()).ok();
        refused(&run("fio", [&mode[..], &["--rw=read", "--bs=512", "--size=4k"]].concat()), &["multiples of 4096"]);
        std::fs::write(folder.path().join("store"), b"somebody's").unwrap();
        refused(&run("fio", [&mode[..], &["--rw=read"]].concat()), &["holds data"]);
    });
}

/// Verifies through the engine while OSDs are killed and started again.
fn verify_under_kills(redundancy: &[&str]) {
    let mut fleet = Fleet::start_with_pool(FleetOptions::default(), redundancy, "256M");
    let Some(fio) = Engine::find(&fleet.path("")) else { return };
    let at = fleet.etcd.endpoint();
    let load = thread::spawn(move || {
        let shape =
            ["--rw=randrw", "--rwmixread=30", "--bsrange=4k-64k", "--iodepth=16", "--size=96M", "--rate=12m,12m"];
        fio.verify(&at, "demo", &[&["--name=kills"], &shape[..]].concat())
    });
    let mut kills = 0;
    for id in [2, 1, 3] {
        thread::sleep(Duration::from_millis(1200));
        if load.is_finished() {
            break;
        }
        fleet.kill(&format!("osd.{id}"));
        kills += 1;
        thread::sleep(Duration::from_millis(800));
        fleet.start_osd(id);
        fleet.wait_served(60);
    }
    load.join().expect("fio found what it wrote");
    assert!(kills > 0, "fio ended before anything was killed");
    fleet.wait_active(90);
}

#[test]
fn fio_goes_on_when_osds_are_killed() {
    limited(400, || {
        if have(&["etcd", "etcdctl", "openssl"]) {
            verify_under_kills(&["--replicas", "3"]);
        }
    });
}

#[test]
fn fio_goes_on_when_osds_of_erasure_code_are_killed() {
    limited(400, || {
        if have(&["etcd", "etcdctl", "openssl"]) {
            verify_under_kills(&["--ec", "2+1"]);
        }
    });
}
