//! What the embedded store keeps when its process is killed, its file is damaged, or its disk is full.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cluster_state::{EmbeddedStore, StateErrorKind, StateStore, Txn};

use crate::servers::Guard;

/// Tells a process started by a test which part to play, and in which directory.
const CHILD: &str = "BLOCKYARD_STATE_TEST_CHILD";

fn child(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD, dir);
    command
}

fn child_dir() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

async fn put(store: &EmbeddedStore, key: &str, value: &str) -> Result<i64, cluster_state::StateError> {
    store.txn(Txn::new().put(key, value)).await.map(|result| result.revision)
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path().join("made/on/demand")).unwrap();
    let lease = store.lease_grant(60).await.unwrap();
    store.txn(Txn::new().put("a", "1").put("b", vec![0, 255]).put_leased("c", "3", lease)).await.unwrap();
    store.txn(Txn::new().delete("a")).await.unwrap();
    let before = store.range("").await.unwrap();
    drop(store);
    let store = EmbeddedStore::open(dir.path().join("made/on/demand")).unwrap();
    assert_eq!(store.range("").await.unwrap(), before);
    assert!(store.lease_keep_alive(lease).await.unwrap());
    assert_ne!(store.lease_grant(60).await.unwrap(), lease);
    store.lease_revoke(lease).await.unwrap();
    assert_eq!(put(&store, "d", "4").await.unwrap(), before.revision + 2);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(dir.path().join("made/on/demand/state.redb")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600, "secrets are in the file");
}

#[tokio::test]
async fn a_lease_without_its_holder_ends_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    let lease = store.lease_grant(1).await.unwrap();
    store.txn(Txn::new().put_leased("alive", "", lease)).await.unwrap();
    drop(store);
    let store = EmbeddedStore::open(dir.path()).unwrap();
    let revision = store.range("").await.unwrap().revision;
    let mut watch = store.watch("alive", revision + 1).await.unwrap();
    let batch = crate::suite_watch::next(&mut watch).await;
    assert!(matches!(&batch.events[..], [cluster_state::WatchEvent::Delete { .. }]));
    drop((watch, store));
    let store = EmbeddedStore::open(dir.path()).unwrap();
    assert!(store.range("").await.unwrap().entries.is_empty());
    assert!(!store.lease_keep_alive(lease).await.unwrap());
}

#[tokio::test]
async fn only_one_may_have_it_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    let Err(error) = EmbeddedStore::open(dir.path()) else { panic!("opened twice") };
    assert_eq!(error.kind, StateErrorKind::InUse);
    assert!(error.to_string().contains("in use by another process"), "{error}");
    put(&store, "k", "v").await.unwrap();
    drop(store);
    assert!(EmbeddedStore::open(dir.path()).unwrap().get("k").await.unwrap().is_some());
}

#[test]
fn a_damaged_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state.redb");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    runtime.block_on(put(&store, "k", &"v".repeat(10_000))).unwrap();
    drop(store);
    let good = fs::read(&file).unwrap();
    let mut cases = vec![b"no store at all".to_vec(), good[..good.len() / 2].to_vec(), vec![0; 8192]];
    for at in [0, 9, 64, 128, 192, 320, 4096, 8192] {
        let mut bad = good.clone();
        bad[at..at + 40].iter_mut().for_each(|byte| *byte ^= 0x5a);
        cases.push(bad);
    }
    let mut refused = 0;
    for (number, case) in cases.iter().enumerate() {
        fs::write(&file, case).unwrap();
        match EmbeddedStore::open(dir.path()) {
            // Bytes that redb does not use may be damaged without harm, or the commit before is found.
            Ok(store) => drop(runtime.block_on(store.range("")).unwrap()),
            Err(error) => {
                assert!(error.to_string().contains("state.redb"), "case {number}: {error}");
                refused += 1;
            }
        }
    }
    assert!(refused >= 4, "only {refused} damaged files were noticed");
}

#[tokio::test]
async fn a_killed_process_loses_nothing_acknowledged() {
    if let Some(dir) = child_dir() {
        return write_until_killed(&dir).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut expected = 0;
    for round in 0..5 {
        let mut process = child("crash::a_killed_process_loses_nothing_acknowledged", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .map(Guard)
            .unwrap();
        let mut lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
        let mut acknowledged = 0;
        while acknowledged < expected + 40 {
            let line = lines.next().expect("the child writes").unwrap();
            acknowledged = line.strip_prefix("written ").map_or(acknowledged, |number| number.parse().unwrap());
        }
        drop(process);
        // What it wrote into the pipe before it died counts, too.
        for line in lines.map_while(Result::ok) {
            acknowledged = line.strip_prefix("written ").and_then(|number| number.parse().ok()).unwrap_or(acknowledged);
        }
        let store = EmbeddedStore::open(dir.path()).unwrap();
        let snapshot = store.range("n/").await.unwrap();
        let numbers: Vec<u64> = snapshot.entries.iter().map(|entry| entry.key[2..].parse().unwrap()).collect();
        let last = numbers.last().copied().unwrap_or(0);
        assert!(last >= acknowledged, "round {round}: {acknowledged} was acknowledged, but {last} is the last");
        assert!(numbers.iter().copied().eq(1..=last), "round {round}: there is a hole");
        let count = store.get("count").await.unwrap().unwrap();
        assert_eq!(count.value, last.to_string().into_bytes(), "both keys of a transaction or none");
        expected = last;
    }
}

async fn write_until_killed(dir: &Path) {
    let store = EmbeddedStore::open(dir).unwrap();
    let count = store.get("count").await.unwrap();
    let mut number: u64 = count.map_or(0, |entry| String::from_utf8(entry.value).unwrap().parse().unwrap());
    // The parent kills us long before.
    for _ in 0..100_000 {
        number += 1;
        let txn = Txn::new().put(format!("n/{number:09}"), vec![7; 300]).put("count", number.to_string());
        store.txn(txn).await.unwrap();
        println!("written {number}");
        std::io::stdout().flush().unwrap();
    }
}

/// A limit on the size of files stands for a full disk.
#[tokio::test]
async fn a_full_disk_is_an_error_and_passes() {
    if let Some(dir) = child_dir() {
        return fill_the_disk(&dir).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = child("crash::a_full_disk_is_an_error_and_passes", dir.path());
    let mut shell = Command::new("sh");
    // 8 MiB in blocks of 512 bytes. The signal must be ignored, else it ends the process.
    shell.args(["-c", "trap '' XFSZ; ulimit -f 16384; exec \"$@\"", "sh"]).arg(program.get_program());
    shell.args(program.get_args()).env(CHILD, dir.path());
    let output = shell.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let acknowledged: usize = text.lines().find_map(|line| line.strip_prefix("written ")).unwrap().parse().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    assert_eq!(store.range("n/").await.unwrap().entries.len(), acknowledged);
}

async fn fill_the_disk(dir: &Path) {
    let store = EmbeddedStore::open(dir).unwrap();
    let mut written = 0;
    let error = loop {
        match store.txn(Txn::new().put(format!("n/{written:03}"), vec![7; 256 << 10])).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 64, "8 MiB hold no 16 MiB");
    };
    assert_eq!(error.kind, StateErrorKind::Full, "{error}");
    assert!(error.to_string().contains("free space"), "{error}");
    assert_eq!(store.range("n/").await.unwrap().entries.len(), written, "nothing of the failed write is seen");
    // With room again (here: what is deleted) it goes on, and watches with it.
    let revision = store.range("").await.unwrap().revision;
    let mut watch = store.watch("n/", revision + 1).await.unwrap();
    store.txn(Txn::new().delete("n/000").delete("n/001").delete("n/002")).await.unwrap();
    assert_eq!(crate::suite_watch::next(&mut watch).await.events.len(), 3);
    put(&store, "small", "fits").await.unwrap();
    println!("\nwritten {}", written - 3);
}
