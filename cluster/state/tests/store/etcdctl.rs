//! `etcdctl` uses the embedded store as it uses etcd.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use cluster_state::{EmbeddedStore, StateStore, Txn};

use crate::servers::{Guard, Served, etcdctl, etcdctl_command, is_installed};

/// A served store in a runtime of its own, because `etcdctl` blocks the thread of the test.
fn with_store(test: impl FnOnce(&str, &EmbeddedStore, &tokio::runtime::Runtime)) {
    if !is_installed("etcdctl") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = EmbeddedStore::in_memory();
    let served = runtime.block_on(Served::start(store.clone(), "127.0.0.1:0"));
    test(&served.address, &store, &runtime);
    runtime.block_on(served.stop());
}

#[test]
fn reads_and_writes() {
    with_store(|at, store, runtime| {
        assert_eq!(etcdctl(at, &["put", "a/1", "one"]), "OK\n");
        etcdctl(at, &["put", "a/2", "two"]);
        etcdctl(at, &["put", "b", "three"]);
        assert_eq!(etcdctl(at, &["get", "a/1"]), "a/1\none\n");
        assert_eq!(etcdctl(at, &["get", "--prefix", "a/"]), "a/1\none\na/2\ntwo\n");
        assert_eq!(
            etcdctl(at, &["get", "--prefix", "", "--keys-only", "--order", "DESCEND", "--sort-by", "KEY"]),
            "b\n\na/2\n\na/1\n\n"
        );
        assert_eq!(etcdctl(at, &["get", "a/1", "b", "--print-value-only"]), "one\ntwo\n");
        assert_eq!(etcdctl(at, &["get", "--from-key", "a/2", "--limit", "1"]), "a/2\ntwo\n");
        etcdctl(at, &["put", "a/1", "uno"]);
        assert_eq!(etcdctl(at, &["get", "a/1", "--rev", "2", "--print-value-only"]), "one\n");
        assert_eq!(etcdctl(at, &["put", "b", "drei", "--prev-kv"]), "OK\nb\nthree\n");
        assert_eq!(etcdctl(at, &["del", "--prefix", "a/", "--prev-kv"]), "2\na/1\nuno\na/2\ntwo\n");
        let left = runtime.block_on(store.range("")).unwrap();
        assert_eq!((left.entries.len(), left.revision), (1, 7));
    });
}

#[test]
fn transactions() {
    with_store(|at, _, _| {
        etcdctl(at, &["put", "k", "v"]);
        let txn = |text: &str| {
            let mut process =
                etcdctl_command(at, &["txn"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            process.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            String::from_utf8(process.wait_with_output().unwrap().stdout).unwrap()
        };
        let holds =
            txn("value(\"k\") = \"v\"\nversion(\"k\") > \"0\"\nmod(\"none\") = \"0\"\n\nput k w\nget k\n\nput k x\n\n");
        assert_eq!(holds, "SUCCESS\n\nOK\n\nk\nw\n");
        let fails = txn("value(\"k\") != \"w\"\n\nput k x\n\nget k\ndel k\n\n");
        assert_eq!(fails, "FAILURE\n\nk\nw\n\n1\n");
    });
}

#[test]
fn watches() {
    with_store(|at, store, runtime| {
        etcdctl(at, &["put", "w/0", "before"]);
        let args = ["watch", "--prefix", "w/", "--rev", "2", "--prev-kv"];
        let mut process = etcdctl_command(at, &args).stdout(Stdio::piped()).spawn().map(Guard).unwrap();
        let output = BufReader::new(process.0.stdout.take().unwrap());
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let take = |count: usize| {
            let line = |_| told.recv_timeout(Duration::from_secs(20)).expect("etcdctl sees the event");
            (0..count).map(line).collect::<Vec<_>>().join("|")
        };
        assert_eq!(take(3), "PUT|w/0|before");
        runtime.block_on(store.txn(Txn::new().put("w/0", "after").put("w/1", "new").put("x", ""))).unwrap();
        assert_eq!(take(8), "PUT|w/0|before|w/0|after|PUT|w/1|new");
        etcdctl(at, &["del", "w/1"]);
        assert_eq!(take(5), "DELETE|w/1|new|w/1|");
    });
}

#[test]
fn leases() {
    with_store(|at, store, runtime| {
        let granted = etcdctl(at, &["lease", "grant", "60"]);
        let id = granted.split_whitespace().nth(1).unwrap().to_owned();
        assert!(granted.contains("granted with TTL(60s)"), "{granted}");
        etcdctl(at, &["put", "--lease", &id, "bound", "v"]);
        let info = etcdctl(at, &["lease", "timetolive", &id, "--keys"]);
        assert!(info.contains("granted with TTL(60s)") && info.contains("attached keys([bound])"), "{info}");
        assert!(etcdctl(at, &["lease", "keep-alive", "--once", &id]).contains("keepalived with TTL(60)"));
        assert!(etcdctl(at, &["lease", "list"]).contains(&id));
        etcdctl(at, &["lease", "revoke", &id]);
        assert_eq!(runtime.block_on(store.get("bound")).unwrap(), None);
        assert!(etcdctl(at, &["lease", "timetolive", &id]).contains("already expired"));
    });
}

#[test]
fn health_and_status() {
    with_store(|at, _, _| {
        let status = etcdctl(at, &["endpoint", "status"]);
        assert!(status.contains(at) && status.contains("3.4.0"), "{status}");
        let members = etcdctl(at, &["member", "list"]);
        assert!(members.contains(&format!("http://{at}")), "{members}");
        let health = etcdctl_command(at, &["endpoint", "health"]).stdin(Stdio::null()).output().unwrap();
        let text = [health.stdout, health.stderr].concat();
        assert!(health.status.success() && String::from_utf8_lossy(&text).contains("is healthy"));
    });
}

#[test]
fn compaction_and_refusals() {
    with_store(|at, _, _| {
        for i in 0..5 {
            etcdctl(at, &["put", "k", &i.to_string()]);
        }
        assert_eq!(etcdctl(at, &["compact", "4"]), "compacted revision 4\n");
        let fails = |args: &[&str], with: &str| {
            let output = etcdctl_command(at, args).stdin(Stdio::null()).output().unwrap();
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(!output.status.success() && text.contains(with), "{args:?}: {text}");
        };
        fails(&["get", "k", "--rev", "3"], "required revision has been compacted");
        fails(&["get", "k", "--rev", "1000"], "required revision is a future revision");
        fails(&["compact", "4000"], "required revision is a future revision");
        fails(&["put", "--lease", "7b", "k", "v"], "requested lease not found");
        fails(&["watch", "k", "--rev", "2"], "required revision has been compacted");
    });
}
