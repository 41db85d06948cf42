//! Settings of a machine, and commands about OSDs, pools and placement groups that need no running OSD.

mod support;

use std::fs;

use cluster_proto::map::{OsdConfig, OsdStats, keys};
use cluster_proto::{OsdId, PgId, PoolId};
use cluster_state::{StateStore, Txn};
use serde_json::{Value, json};
use support::cluster::Cluster;
use support::{blockyard, command};

fn osd_config(cluster: &Cluster, id: u32) -> OsdConfig {
    serde_json::from_slice(&cluster.read(&keys::osd_config(OsdId(id))).unwrap()).unwrap()
}

#[test]
fn a_cluster_is_created_once() {
    let cluster = Cluster::start();
    let again = cluster.run(&["init"]);
    assert_eq!(again.code, 5);
    assert!(again.stderr.contains("holds cluster 00000000-0000-0000-0000-000000000007 already"), "{}", again.stderr);
    cluster.runtime.block_on(cluster.store.txn(Txn::new().delete(keys::CLUSTER))).unwrap();
    let lost = cluster.run(&["init"]);
    assert_eq!(lost.code, 5);
    assert!(lost.stderr.contains("parts of a cluster without its identity"), "{}", lost.stderr);
    cluster.runtime.block_on(cluster.store.txn(Txn::new().delete_prefix(keys::ROOT))).unwrap();
    let id = "11111111-2222-3333-4444-555555555555";
    let made = cluster.run(&["init", "--id", id, "--json"]).json();
    assert_eq!((&made["id"], &made["schema"]), (&json!(id), &json!(1)));
    assert_eq!(cluster.run(&["status", "--json"]).json()["cluster"], id);
}

#[test]
fn osds_are_prepared_under_fresh_numbers() {
    let cluster = Cluster::start();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let missing = cluster.run(&["osd", "prepare", &path("a")]);
    assert_eq!(missing.code, 2);
    assert!(missing.stderr.contains("say how large"), "{}", missing.stderr);
    let line = ["osd", "prepare", &path("a"), "--size", "256M", "--host", "h1", "--tag", "ssd", "--tag", "fast"];
    let made = cluster.run(&[&line[..], &["--json"]].concat()).json();
    assert_eq!((&made["id"], &made["bytes"], &made["host"]), (&json!(4), &json!(256 << 20), &json!("h1")));
    let config = osd_config(&cluster, 4);
    assert_eq!(config.weight, 256.0 / (1 << 20) as f64);
    assert_eq!(config.tags, ["ssd", "fast"]);
    assert_eq!(config.store.map(|store| json!(store)), Some(made["store"].clone()));

    let occupied = cluster.run(&["osd", "prepare", &path("a")]);
    assert_eq!(occupied.code, 6);
    assert!(occupied.stderr.contains("a Blockyard store") && occupied.stderr.contains("--yes"), "{}", occupied.stderr);
    assert!(cluster.read(&keys::osd_config(OsdId(5))).is_none(), "the number is given back");
    fs::write(folder.path().join("b"), "somebody's data").unwrap();
    assert_eq!(cluster.run(&["osd", "prepare", &path("b"), "--size", "256M"]).code, 6);
    let forced = cluster.run(&["osd", "prepare", &path("b"), "--size", "256M", "--yes", "--weight", "2.5", "--json"]);
    assert_eq!((&forced.json()["id"], &forced.json()["weight"]), (&json!(5), &json!(2.5)));
    let small = cluster.run(&["osd", "prepare", &path("c"), "--size", "1M"]);
    assert_eq!(small.code, 2, "{}", small.stderr);
    assert!(!folder.path().join("c").exists());
    let taken = cluster.run(&["osd", "prepare", &path("c"), "--size", "256M", "--id", "2"]);
    assert_eq!(taken.code, 5, "{}", taken.stderr);
    for bad in [["--weight", "-1"], ["--weight", "NaN"], ["--tag", ""]] {
        let weight = format!("{}={}", bad[0], bad[1]);
        let run = cluster.run(&["osd", "prepare", &path("c"), "--size", "256M", &weight]);
        assert_eq!(run.code, 2, "{bad:?}: {}", run.stderr);
    }
    let ls = cluster.run(&["osd", "ls", "--json"]).json();
    assert_eq!((&ls[3]["host"], &ls[3]["tags"], &ls[3]["up"]), (&json!("h1"), &json!(["ssd", "fast"]), &json!(false)));
}

#[test]
fn a_removed_osd_is_gone_and_its_number_is_not_used_again() {
    let cluster = Cluster::start();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    assert_eq!(cluster.run(&["osd", "rm", "9"]).code, 4);
    assert_eq!(cluster.run(&["osd", "rm", "3", "--dry-run", "--json"]).json()["removed"], false);
    assert_eq!(cluster.run(&["osd", "rm", "3"]).code, 0);
    assert!(cluster.read(&keys::osd_config(OsdId(3))).is_none());
    let reused = cluster.run(&["osd", "prepare", &path("a"), "--size", "256M", "--id", "3"]);
    assert_eq!(reused.code, 5);
    assert!(reused.stderr.contains("was removed"), "{}", reused.stderr);
    assert_eq!(cluster.run(&["osd", "prepare", &path("a"), "--size", "256M", "--json"]).json()["id"], 4);

    cluster.serve_pgs();
    let runs = cluster.run(&["osd", "rm", "1"]);
    assert_eq!(runs.code, 5);
    assert!(runs.stderr.contains("it runs"), "{}", runs.stderr);
    cluster.runtime.block_on(cluster.store.txn(Txn::new().delete(keys::osd(OsdId(1))))).unwrap();
    let needed = cluster.run(&["osd", "rm", "1"]);
    assert_eq!(needed.code, 7);
    assert!(needed.stderr.contains("2 placement groups (1/0, 1/1: 2 served by it"), "{}", needed.stderr);
    assert!(cluster.read(&keys::osd_config(OsdId(1))).is_some());
    let depends = cluster.run(&["osd", "rm", "1", "--dry-run", "--json"]).json();
    assert_eq!((&depends["serves"], &depends["removed"]), (&json!(2), &json!(false)));
    assert_eq!(cluster.run(&["osd", "rm", "1", "--force"]).code, 0);
    assert!(cluster.read(&keys::osd_config(OsdId(1))).is_none());
}

#[test]
fn weights_and_tags_are_changed_without_touching_the_rest() {
    let cluster = Cluster::start();
    let dry = cluster.run(&["osd", "reweight", "2", "0.5", "--dry-run", "--json"]).json();
    assert_eq!((&dry["changed"], osd_config(&cluster, 2).reweight), (&json!(false), 1.0));
    assert_eq!(cluster.run(&["osd", "reweight", "2", "0.5"]).code, 0);
    assert_eq!(cluster.run(&["osd", "reweight", "2", "--weight", "4"]).code, 0);
    assert_eq!(cluster.run(&["osd", "tag", "2", "--add", "ssd", "--add", "x"]).code, 0);
    let tags = cluster.run(&["osd", "tag", "2", "--remove", "x", "--json"]).json();
    assert_eq!(tags, json!({ "id": 2, "tags": ["ssd"] }));
    let config = osd_config(&cluster, 2);
    assert_eq!((config.weight, config.reweight, config.tags.len()), (4.0, 0.5, 1));
    assert_eq!(cluster.run(&["osd", "reweight", "9", "1"]).code, 4);
    assert_eq!(cluster.run(&["osd", "tag", "9", "--add", "x"]).code, 4);
    assert_eq!(cluster.run(&["osd", "reweight", "2"]).code, 2);
    assert_eq!(cluster.run(&["osd", "reweight", "2", "1.1"]).code, 2);
    assert_eq!(cluster.run(&["osd", "reweight", "2", "--weight=-1"]).code, 2);
    assert_eq!(cluster.run(&["osd", "tag", "2", "--add", ""]).code, 2);
}

#[test]
fn the_number_of_pgs_becomes_a_multiple_or_a_divisor() {
    let cluster = Cluster::start();
    cluster.serve_pgs();
    let set = |args: &[&str]| cluster.run(&[&["pool", "set-pg-count"], args].concat());
    for (count, why) in [("0", "equally many"), ("3", "multiple of 2"), ("2", "has 2 already")] {
        let refused = set(&["default", count]);
        assert_eq!(refused.code, 2);
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
    assert_eq!(set(&["x", "4"]).code, 4);
    let before = cluster.read(&keys::pool(PoolId(1)));
    let dry = set(&["default", "4", "--dry-run", "--json"]).json();
    assert_eq!((&dry["pg-count"], &dry["pg-count-before"], &dry["changed"]), (&json!(4), &json!(2), &json!(false)));
    assert_eq!(cluster.read(&keys::pool(PoolId(1))), before);
    let done = set(&["default", "4"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.contains("4 placement groups instead of 2"), "{}", done.stdout);
    assert!(cluster.run(&["pool", "ls"]).stdout.contains("2 of 4"), "they are split by the monitor");
    assert_eq!(set(&["default", "6"]).code, 2, "what shall be counts");
    assert_eq!(set(&["default", "1", "--dry-run", "--json"]).json()["pg-count"], json!(1));
    assert!(set(&["default", "1"]).stdout.contains("1 placement groups instead of 4"));
    assert!(cluster.run(&["pool", "ls"]).stdout.contains("2 of 1"), "they are merged by the monitor");
    assert_eq!(set(&["default", "3"]).code, 2, "so does what there is");
}

#[test]
fn pools_are_removed_with_everything_that_belongs_to_them() {
    let cluster = Cluster::start();
    cluster.serve_pgs();
    let dry = cluster.run(&["pool", "create", "p", "--replicas", "2", "--dry-run", "--json"]).json();
    assert_eq!((&dry["id"], cluster.read(&keys::pool(PoolId(2)))), (&json!(2), None));
    assert_eq!(cluster.run(&["pool", "create", "p", "--replicas", "9", "--dry-run"]).code, 2);
    assert_eq!(cluster.run(&["image", "create", "a", "--size", "1M"]).code, 0);
    let used = cluster.run(&["pool", "rm", "default", "--yes"]);
    assert_eq!(used.code, 7);
    assert!(used.stderr.contains("it has 1 image (a first)"), "{}", used.stderr);
    let image = Txn::new().delete_prefix(keys::IMAGES);
    cluster.runtime.block_on(cluster.store.txn(image)).unwrap();
    assert_eq!(cluster.run(&["pool", "rm", "default"]).code, 6);
    assert_eq!(cluster.run(&["pool", "rm", "default", "--dry-run"]).code, 0);
    assert!(cluster.read(&keys::pool(PoolId(1))).is_some());
    assert_eq!(cluster.run(&["pool", "rm", "default", "--yes"]).code, 0);
    let left = cluster.runtime.block_on(cluster.store.range(keys::PGS)).unwrap().entries;
    assert!(left.is_empty() && cluster.read(&keys::pool(PoolId(1))).is_none());
    assert_eq!(cluster.run(&["pool", "rm", "default", "--yes"]).code, 4);
    let next = cluster.run(&["pool", "create", "default", "--replicas", "2", "--json"]).json();
    assert_eq!(next["id"], 2, "numbers are not used twice");
}

#[test]
fn placement_groups_are_listed_and_described() {
    let cluster = Cluster::start();
    assert_eq!(cluster.run(&["pg", "ls", "--json"]).json(), json!([]));
    assert_eq!(cluster.run(&["pg", "describe", "1/0"]).code, 4);
    cluster.serve_pgs();
    let all = cluster.run(&["pg", "ls", "--json"]).json();
    assert_eq!(all.as_array().map(Vec::len), Some(2));
    assert_eq!(
        (&all[1]["pg"], &all[1]["state"], &all[1]["acting"]),
        (&json!("1/1"), &json!("active"), &json!([1, 2, 3]))
    );
    let count = |more: &[&str]| {
        let run = cluster.run(&[&["pg", "ls", "--json"], more].concat());
        run.json().as_array().map(Vec::len)
    };
    assert_eq!((count(&["--osd", "3"]), count(&["--osd", "4"])), (Some(2), Some(0)));
    assert_eq!((count(&["--state", "active"]), count(&["--state", "offline"])), (Some(2), Some(0)));
    assert_eq!((count(&["--pool", "default"]), cluster.run(&["pg", "ls", "--pool", "x"]).code), (Some(2), 4));
    let history = keys::pg_history(PgId { pool: PoolId(1), index: 1 });
    cluster.put(history, &json!([{ "epoch": 1, "acting": [2, 5], "complete": [2], "min-size": 1 }]));
    let one = cluster.run(&["pg", "describe", "1/1", "--json"]).json();
    assert_eq!((&one["activation"]["epoch"], &one["history"][0]["acting"]), (&json!(1), &json!([2, 5])));
    assert_eq!((&one["members"]["5"]["up"], &one["members"]["2"]["same-run"]), (&json!(false), &json!(true)));
    let text = cluster.run(&["pg", "describe", "1/1"]).stdout;
    for line in [
        "state       active",
        "activation  epoch 1 by 1 2 3, complete 1 2 3",
        "past        epoch 1 by 2 5",
        "osd 5       down",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    let table = cluster.run(&["pg", "ls"]).stdout;
    assert!(
        table.starts_with(" PG  POOL     STATE   EPOCH  ACTING  TO BE\n1/0  default  active      1  1 2 3\n"),
        "{table}"
    );
}

#[test]
fn space_is_summed_up() {
    let cluster = Cluster::start();
    for id in 1..=3 {
        let mut stats = OsdStats::default();
        (stats.space.total, stats.space.used, stats.space.objects) = (1 << 30, 256 << 20, 5);
        cluster.put(keys::osd_stats(OsdId(id)), &stats);
    }
    assert_eq!(cluster.run(&["image", "create", "a", "--size", "2G"]).code, 0);
    let df = cluster.run(&["df", "--json"]).json();
    assert_eq!(df["raw"], json!({ "total": 3u64 << 30, "used": 3 * (256 << 20), "free": 3u64 * (768 << 20) }));
    assert_eq!((&df["pools"][0]["provisioned"], &df["pools"][0]["available"]), (&json!(2u64 << 30), &json!(768 << 20)));
    assert_eq!((&df["osds"][2]["used"], &df["osds"][2]["objects"]), (&json!(256 << 20), &json!(5)));
    let text = cluster.run(&["df"]).stdout;
    assert!(text.contains("3 GiB  768 MiB") && text.contains("25%"), "{text}");
}

#[test]
fn settings_come_from_line_environment_and_file_in_that_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("node.toml");
    fs::write(&file, "cluster = '10.1.1.1:2379'\n[osd]\nmemory = '2G'\n[mon]\nname = 'm1'\nmetrics = '127.0.0.1:1'\n")
        .unwrap();
    let file = file.to_str().unwrap();
    let dump = |args: &[&str], env: &[(&str, &str)]| -> Value {
        let mut command = command(&[&["--config", file], args, &["--dump-config", "--json"]].concat());
        let output = command.envs(env.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let osd = dump(&["osd", "run", "--lease-ttl-s", "7"], &[]);
    assert_eq!((&osd["cluster"], &osd["osd"]["memory"]), (&json!("10.1.1.1:2379"), &json!(2u64 << 30)));
    assert_eq!((&osd["osd"]["lease-ttl-s"], &osd["osd"]["durability"]), (&json!(7), &json!("auto")));
    assert_eq!(osd.get("mon"), None);
    let named = [("BLOCKYARD_MON_NAME", "m2"), ("BLOCKYARD_CLUSTER", "e:1"), ("BLOCKYARD_ETCD_CA", "/ca")];
    let mon = dump(&["mon"], &named);
    assert_eq!(
        (&mon["mon"]["name"], &mon["cluster"], &mon["etcd"]["ca"]),
        (&json!("m2"), &json!("e:1"), &json!("/ca"))
    );
    let mon = dump(&["mon", "--name", "m3", "--cluster", "l:1"], &named);
    assert_eq!((&mon["mon"]["name"], &mon["cluster"]), (&json!("m3"), &json!("l:1")));
    let gateway = dump(&["gateway"], &[("BLOCKYARD_GATEWAY_NBD", "1.2.3.4:5,1.2.3.5:6")]);
    assert_eq!(gateway["gateway"]["nbd"], json!(["1.2.3.4:5", "1.2.3.5:6"]));
    let text = blockyard(&["--config", file, "mon", "--dump-config"]).stdout;
    assert!(text.contains("[mon]\nname = \"m1\"\n"), "{text}");

    for (name, text) in [("a.toml", "nonsense = 1"), ("b.json", "{\"osd\": {\"memory\": true}}"), ("c.toml", "[")] {
        let bad = folder.path().join(name);
        fs::write(&bad, text).unwrap();
        let run = blockyard(&["--config", bad.to_str().unwrap(), "mon", "--dump-config"]);
        assert_eq!(run.code, 2, "{name}: {}", run.stderr);
        assert!(run.stderr.contains(name), "{}", run.stderr);
    }
    assert_eq!(blockyard(&["--config", "/no/such/file", "status"]).code, 1);
    assert_eq!(blockyard(&["osd", "run", "--listen", "0.0.0.0:1", "--dump-config"]).code, 2);
}

#[test]
fn what_is_no_store_of_this_cluster_is_not_run() {
    let cluster = Cluster::start();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(folder.path().join("junk"), vec![7; 1 << 20]).unwrap();
    let junk = cluster.run(&["osd", "run", &path("junk")]);
    assert_eq!(junk.code, 1);
    assert!(junk.stderr.contains("not a Blockyard store"), "{}", junk.stderr);
    assert_eq!(cluster.run(&["osd", "prepare", &path("a"), "--size", "256M"]).code, 0);
    let twice = cluster.run(&["osd", "run", &path("a"), &path("a")]);
    assert_eq!(twice.code, 2, "{}", twice.stderr);
    // Prepared again under the same number by some other means, like a disk that was restored or exchanged.
    let other = Cluster::start();
    assert_eq!(other.run(&["osd", "prepare", &path("b"), "--size", "256M"]).code, 0);
    let stale = cluster.run(&["osd", "run", &path("b")]);
    assert_eq!(stale.code, 1);
    assert!(stale.stderr.contains("is not the one that OSD 4 has now"), "{}", stale.stderr);
    other.runtime.block_on(other.store.txn(Txn::new().delete_prefix(keys::ROOT))).unwrap();
    let empty = other.run(&["osd", "run", &path("b")]);
    assert_eq!(empty.code, 4, "{}", empty.stderr);
    assert_eq!(other.run(&["init"]).code, 0);
    let foreign = other.run(&["osd", "run", &path("b")]);
    assert_eq!(foreign.code, 1);
    assert!(foreign.stderr.contains("belongs to cluster"), "{}", foreign.stderr);
}
