//! Commands about metadata against an embedded state store, as a second process sees it.

mod support;

use cluster_proto::map::{ImageMeta, OsdStats, keys};
use cluster_proto::{LayerId, OsdId};
use cluster_state::{StateStore, Txn};
use serde_json::{Value, json};
use support::cluster::Cluster;

#[test]
fn images_are_created_listed_shown_and_grown() {
    let cluster = Cluster::start();
    assert_eq!(cluster.run(&["image", "ls", "--json"]).json(), json!([]));
    let made = cluster.run(&["image", "create", "b/with slash", "--size", "1G"]);
    assert_eq!(made.code, 4, "there is no pool b: {}", made.stderr);
    let made = cluster.run(&["image", "create", "default/b/c", "--size", "1G", "--json"]).json();
    assert_eq!((&made["name"], &made["size"], &made["layer"]), (&json!("b/c"), &json!(1 << 30), &json!(1)));
    assert_eq!(cluster.run(&["image", "create", "a", "--size", "512"]).code, 0);
    let again = cluster.run(&["image", "create", "a", "--size", "512"]);
    assert_eq!(again.code, 5);
    assert!(again.stderr.contains("default/a already"), "{}", again.stderr);
    for size in ["0", "513", "1000P"] {
        let bad = cluster.run(&["image", "create", "x", "--size", size]);
        assert_eq!(bad.code, 2, "{size}: {}", bad.stderr);
    }
    let list = cluster.run(&["image", "ls"]);
    assert_eq!(list.stdout, "IMAGE   SIZE  STATE\na      512 B\nb/c    1 GiB\n");
    let info = cluster.run(&["image", "info", "a", "--json"]).json();
    assert_eq!(
        (&info["pool"], &info["removing"], &info["block-size"]),
        (&json!("default"), &json!(false), &json!(1 << 20))
    );
    assert_eq!(cluster.run(&["image", "info", "nothing"]).code, 4);
    let meta: ImageMeta = serde_json::from_slice(&cluster.read(&keys::layer(LayerId(2))).unwrap()).unwrap();
    assert_eq!((meta.name.as_str(), meta.size, meta.lineage), ("a", 512, LayerId(2)));
}

#[test]
fn what_destroys_data_asks_for_yes() {
    let cluster = Cluster::start();
    assert_eq!(cluster.run(&["image", "create", "a", "--size", "1G"]).code, 0);
    let refused = cluster.run(&["image", "rm", "a"]);
    assert_eq!(refused.code, 6);
    assert_eq!(refused.stderr, "error: removing image a deletes its data: add --yes if that is what you want\n");
    let refused = cluster.run(&["image", "resize", "a", "512M"]);
    assert_eq!(refused.code, 6);
    assert!(refused.stderr.contains("deletes the last 512 MiB"), "{}", refused.stderr);
    assert_eq!(cluster.run(&["image", "info", "a", "--json"]).json()["size"], json!(1 << 30));
}

#[test]
fn pools_are_checked_before_they_are_made() {
    let cluster = Cluster::start();
    let pool = cluster.run(&["pool", "create", "fast", "--replicas", "2", "--pg-count", "8", "--json"]).json();
    assert_eq!((&pool["id"], &pool["replicas"], &pool["min-size"]), (&json!(2), &json!(2), &json!(2)));
    assert_eq!(cluster.run(&["pool", "create", "fast"]).code, 5);
    let many = cluster.run(&["pool", "create", "safe", "--replicas", "4"]);
    assert_eq!(many.code, 2);
    assert!(many.stderr.contains("pool \"safe\""), "{}", many.stderr);
    for bad in [&["--block-size", "100K"][..], &["--pg-count", "0"], &["--min-size", "4"]] {
        let run = cluster.run(&[&["pool", "create", "bad"], bad].concat());
        assert_eq!(run.code, 2, "{bad:?} {}", run.stderr);
    }
    assert_eq!(cluster.run(&["pool", "create", "a/b"]).code, 2);
    let pools = cluster.run(&["pool", "ls", "--json"]).json();
    assert_eq!(pools.as_array().unwrap().len(), 2);
    assert_eq!(
        pools[1]["pgs"],
        json!({"total": 8, "active": 0, "peering": 0, "degraded": 0, "offline": 0, "creating": 8})
    );
}

#[test]
fn exports_are_added_and_removed() {
    let cluster = Cluster::start();
    assert_eq!(cluster.run(&["image", "create", "a", "--size", "1G"]).code, 0);
    assert_eq!(cluster.run(&["export", "add", "x", "--image", "none"]).code, 4);
    let add = ["export", "add", "look only/1", "--image", "a", "--read-only", "--description", "for audits"];
    assert_eq!(cluster.run(&add).code, 0);
    assert_eq!(cluster.run(&add).code, 5);
    let list = cluster.run(&["export", "ls", "--json"]).json();
    let names: Vec<_> =
        list.as_array().unwrap().iter().map(|e| (&e["name"], &e["read-only"], &e["implicit"])).collect();
    assert_eq!(
        names,
        [(&json!("a"), &json!(false), &json!(true)), (&json!("look only/1"), &json!(true), &json!(false))]
    );
    assert_eq!(cluster.run(&["export", "rm", "look only/1"]).code, 0);
    assert_eq!(cluster.run(&["export", "rm", "look only/1"]).code, 4);
    assert_eq!(cluster.run(&["export", "rm", "a"]).code, 4, "an image's own export cannot be removed");
}

#[test]
fn bad_configuration_is_refused() {
    let cluster = Cluster::start();
    assert_eq!(cluster.run(&["config", "get", "osd/1"]).stdout, "{\"weight\":1.0}\n");
    assert_eq!(cluster.run(&["config", "get", "osd/9"]).code, 4);
    assert_eq!(cluster.run(&["config", "set", "osd/1", "{\"weight\":0}"]).code, 0);
    assert_eq!(cluster.read(&keys::osd_config(OsdId(1))).unwrap(), b"{\"weight\":0}");
    for (key, value) in [("osd/1", "{\"weight\":\"much\"}"), ("osd/x", "{}"), ("other", "1"), ("cluster", "{}")] {
        let run = cluster.run(&["config", "set", key, value]);
        assert_eq!(run.code, 2, "{key}: {}", run.stderr);
    }
    let ls = cluster.run(&["config", "ls", "--json"]).json();
    assert_eq!(ls["osd/1"], json!({"weight": 0}));
    assert_eq!(ls["pool/1"]["name"], "default");
}

#[test]
fn settings_are_changed_one_by_one() {
    let cluster = Cluster::start();
    let get = |name: &str| cluster.run(&["config", "get", name]).stdout;
    assert_eq!(get("down-out-seconds"), "600\n", "what is not stored has its default");
    let set = cluster.run(&["config", "set", "down-out-seconds", "2min"]);
    assert_eq!((set.code, set.stdout.trim()), (0, "down-out-seconds is 2 min now"), "{}", set.stderr);
    assert_eq!(cluster.run(&["config", "set", "recovery-paused", "on"]).code, 0);
    assert_eq!(cluster.run(&["config", "set", "near-full-ratio", "80%"]).code, 0);
    let stored: Value = serde_json::from_slice(&cluster.read(keys::SETTINGS).unwrap()).unwrap();
    assert_eq!(stored, json!({"down-out-seconds": 120, "recovery-paused": true, "near-full-ratio": 0.8}));

    for (name, value, why) in [
        ("down-out-seconds", "5", "10 to 604800"),
        ("full-ratio", "0.7", "less than full-ratio"),
        ("recovery-paused", "perhaps", "true or false"),
        ("recovery-bytes-per-second-max", "1K", "at least 1048576"),
    ] {
        let run = cluster.run(&["config", "set", name, value]);
        assert!(run.code == 2 && run.stderr.contains(why), "{name}: {}", run.stderr);
    }
    assert_eq!(cluster.run(&["config", "reset", "osd/1"]).code, 2);
    assert_eq!(cluster.run(&["config", "reset", "recovery-paused"]).code, 0);
    let view = cluster.run(&["config", "get", "down-out-seconds", "--json"]).json();
    assert_eq!(view, json!({"name": "down-out-seconds", "value": 120, "default": 600, "is-default": false}));
    let ls = cluster.run(&["config", "ls"]).stdout;
    assert!(ls.contains("down-out-seconds") && ls.contains("2 min") && ls.contains("osd/1 {"), "{ls}");
    let ls = cluster.run(&["config", "ls", "--json"]).json();
    assert_eq!(ls["settings"], json!({"down-out-seconds": 120, "near-full-ratio": 0.8}));
    assert_eq!(ls["all-settings"].as_array().map(Vec::len), Some(11));

    // Many at once: none undoes another's.
    std::thread::scope(|scope| {
        for (name, value) in [("moving-pgs-max", "9"), ("recovery-objects-max", "5"), ("scrub-interval-seconds", "1h")]
        {
            let cluster = &cluster;
            scope.spawn(move || assert_eq!(cluster.run(&["config", "set", name, value]).code, 0));
        }
    });
    let got = ["moving-pgs-max", "recovery-objects-max", "scrub-interval-seconds", "down-out-seconds"].map(get);
    assert_eq!(got, ["9\n", "5\n", "3600\n", "120\n"]);
}

#[test]
fn status_tells_what_is_wrong() {
    let cluster = Cluster::start();
    let down = cluster.run(&["status", "--json"]).json();
    assert_eq!(
        (&down["verdict"], &down["osds"]["up"], &down["pgs"]["creating"]),
        (&json!("error"), &json!(0), &json!(2))
    );
    let codes: Vec<_> = down["problems"].as_array().unwrap().iter().map(|p| p["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["pool-waits-for-osds", "osd-down"]);
    cluster.serve_pgs();
    let up = cluster.run(&["status", "--json"]).json();
    assert_eq!((&up["verdict"], &up["pgs"]["active"]), (&json!("ok"), &json!(2)), "{up}");
    cluster.put(keys::osd_stats(OsdId(2)), &OsdStats { crc_errors: 3, repaired_sectors: 2, ..OsdStats::default() });
    let damaged = cluster.run(&["status", "--json"]).json();
    assert_eq!(damaged["verdict"], "warning");
    assert_eq!((&damaged["counters"]["crc-errors"], &damaged["counters"]["repaired-sectors"]), (&json!(3), &json!(2)));
    assert_eq!(damaged["osd-list"][1]["crc-errors"], 3);
    let text = cluster.run(&["status"]).stdout;
    assert!(text.contains("health    warning\n") && text.contains("[crc-errors]"), "{text}");
    assert!(text.contains("osds      3 up, 3 in, of 3\n") && text.contains("pgs       2 active\n"), "{text}");
    let osds = cluster.run(&["osd", "ls", "--json"]).json();
    assert_eq!((&osds[0]["up"], &osds[0]["in"], &osds[0]["weight"]), (&json!(true), &json!(true), &json!(1.0)));
}

#[test]
fn an_empty_state_store_is_no_cluster() {
    let cluster = Cluster::start();
    cluster.runtime.block_on(cluster.store.txn(Txn::new().delete_prefix(keys::ROOT))).unwrap();
    for args in [&["status"][..], &["pool", "ls"], &["image", "ls"], &["export", "ls"], &["config", "ls"]] {
        let run = cluster.run(args);
        assert_eq!(run.code, 4, "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains("holds no cluster"), "{}", run.stderr);
    }
}
