//! What every store must do: transactions, conditions, ranges, limits, leases, dumps.

use std::sync::Arc;
use std::time::Duration;

use cluster_state::{Change, Compare, EmbeddedStore, StateErrorKind, StateStore, Txn, export, import, limits};
use tokio::time::timeout;

pub async fn run(store: Arc<dyn StateStore>) {
    let store = &*store;
    revisions(store, "suite/revisions/").await;
    conditions(store, "suite/conditions/").await;
    atomic(store, "suite/atomic/").await;
    ranges(store, "suite/ranges/").await;
    pages(store, "suite/pages/").await;
    refusals(store, "suite/refusals/").await;
    leases(store, "suite/leases/").await;
    dumps(store, "suite/dumps/").await;
}

async fn put(store: &dyn StateStore, key: &str, value: &str) -> i64 {
    let result = store.txn(Txn::new().put(key, value)).await.unwrap();
    assert!(result.succeeded && result.read.is_empty());
    result.revision
}

async fn revisions(store: &dyn StateStore, at: &str) {
    let key = format!("{at}k");
    assert_eq!(store.get(&key).await.unwrap(), None);
    let first = put(store, &key, "one").await;
    let second = put(store, &key, "two").await;
    assert_eq!(second, first + 1);
    let entry = store.get(&key).await.unwrap().unwrap();
    assert_eq!((entry.key.as_str(), entry.value.as_slice()), (key.as_str(), &b"two"[..]));
    assert_eq!((entry.create_revision, entry.mod_revision, entry.version, entry.lease), (first, second, 2, 0));
    let deleted = store.txn(Txn::new().delete(&key)).await.unwrap();
    assert_eq!(deleted.revision, second + 1);
    let nothing = store.txn(Txn::new().delete(&key)).await.unwrap();
    assert_eq!(nothing.revision, deleted.revision, "deleting nothing is no revision");
    assert_eq!(store.get(&key).await.unwrap(), None);
}

async fn conditions(store: &dyn StateStore, at: &str) {
    let (key, none) = (format!("{at}k"), format!("{at}none"));
    put(store, &key, "x").await;
    let entry = store.get(&key).await.unwrap().unwrap();
    let mod_revision = |key: &str, revision| Compare::ModRevision { key: key.into(), revision };
    let create_revision = |key: &str, revision| Compare::CreateRevision { key: key.into(), revision };
    let value = |key: &str, value: &str| Compare::Value { key: key.into(), value: value.into() };
    let cases = [
        (Compare::Absent(none.clone()), true),
        (Compare::Absent(key.clone()), false),
        (Compare::Exists(key.clone()), true),
        (Compare::Exists(none.clone()), false),
        (mod_revision(&key, entry.mod_revision), true),
        (mod_revision(&key, entry.mod_revision - 1), false),
        (mod_revision(&none, 0), true),
        (create_revision(&key, entry.create_revision), true),
        (create_revision(&key, entry.create_revision + 1), false),
        (value(&key, "x"), true),
        (value(&key, "y"), false),
        (value(&none, ""), false),
    ];
    for (compare, expected) in cases {
        let txn = Txn::new().when(compare.clone()).or_read(&key).or_read(&none);
        let result = store.txn(txn).await.unwrap();
        assert_eq!(result.succeeded, expected, "{compare:?}");
        let read = if expected { vec![] } else { vec![Some(entry.clone()), None] };
        assert_eq!(result.read, read, "{compare:?}");
    }
}

async fn atomic(store: &dyn StateStore, at: &str) {
    let (a, b, count) = (format!("{at}a"), format!("{at}b"), format!("{at}count"));
    let both = store.txn(Txn::new().put(&a, "1").put(&b, "1")).await.unwrap();
    let snapshot = store.range(at).await.unwrap();
    assert!(snapshot.entries.iter().all(|entry| entry.mod_revision == both.revision) && snapshot.entries.len() == 2);
    let failing = Txn::new().when(Compare::Exists(a.clone())).when(Compare::Absent(b.clone())).put(&a, "2").delete(&b);
    assert!(!store.txn(failing).await.unwrap().succeeded);
    assert_eq!(store.range(at).await.unwrap().entries, snapshot.entries);
    put(store, &count, "0").await;
    // Sixteen writers increment with compare-and-set: no increment may be lost.
    let increments = (0..16).map(|_| increment(store, &count, 5));
    futures_join(increments.collect()).await;
    assert_eq!(store.get(&count).await.unwrap().unwrap().value, b"80");
}

async fn increment(store: &dyn StateStore, key: &str, times: usize) {
    let mut done = 0;
    while done < times {
        let entry = store.get(key).await.unwrap().unwrap();
        let next = String::from_utf8(entry.value).unwrap().parse::<u64>().unwrap() + 1;
        let unchanged = Compare::ModRevision { key: key.into(), revision: entry.mod_revision };
        let result = store.txn(Txn::new().when(unchanged).put(key, next.to_string())).await.unwrap();
        done += usize::from(result.succeeded);
    }
}

/// Waits for all futures while they run concurrently in this task.
pub async fn futures_join<F: Future<Output = ()>>(futures: Vec<F>) {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        futures.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

async fn ranges(store: &dyn StateStore, at: &str) {
    for key in ["a", "a/1", "a/2", "a0", "b", "a/ü"] {
        put(store, &format!("{at}{key}"), key).await;
    }
    let found = store.range(&format!("{at}a/")).await.unwrap();
    let keys: Vec<&str> = found.entries.iter().map(|entry| entry.key.strip_prefix(at).unwrap()).collect();
    assert_eq!(keys, ["a/1", "a/2", "a/ü"]);
    let later = put(store, &format!("{at}z"), "z").await;
    assert!(found.revision < later);
    let removed = store.txn(Txn::new().delete_prefix(format!("{at}a/")).delete(format!("{at}b"))).await.unwrap();
    assert_eq!(removed.revision, later + 1, "all deletions are one revision");
    let left = store.range(at).await.unwrap();
    assert_eq!((left.entries.len(), left.revision), (3, removed.revision));
    assert!(store.range(&format!("{at}nothing")).await.unwrap().entries.is_empty());
    assert!(store.range("").await.unwrap().entries.len() >= 3);
}

async fn pages(store: &dyn StateStore, at: &str) {
    let count = 2 * limits::PAGE_KEYS + 30;
    for first in (0..count).step_by(100) {
        let keys = first..count.min(first + 100);
        let txn = keys.fold(Txn::new(), |txn, i| txn.put(format!("{at}{i:06}"), i.to_string()));
        store.txn(txn).await.unwrap();
    }
    let all = store.range(at).await.unwrap().entries;
    assert_eq!(all.len(), count);
    assert!(all.iter().enumerate().all(|(i, entry)| entry.value == i.to_string().into_bytes()));
    store.txn(Txn::new().delete_prefix(at)).await.unwrap();
}

async fn refusals(store: &dyn StateStore, at: &str) {
    let key = format!("{at}k");
    let before = store.range(at).await.unwrap().revision;
    let kind = |txn: Txn| async { store.txn(txn).await.unwrap_err().kind };
    assert_eq!(kind(Txn::new().put(&key, "1").put(&key, "2")).await, StateErrorKind::Invalid);
    assert_eq!(kind(Txn::new().put(&key, "1").delete_prefix(at)).await, StateErrorKind::Invalid);
    assert_eq!(kind(Txn::new().put("", "1")).await, StateErrorKind::Invalid);
    let large = vec![b'x'; limits::REQUEST_BYTES_MAX + 1];
    assert_eq!(kind(Txn::new().put(&key, large)).await, StateErrorKind::TooLarge);
    let many = (0..=limits::TXN_OPS_MAX).fold(Txn::new(), |txn, i| txn.put(format!("{at}{i}"), ""));
    assert_eq!(kind(many).await, StateErrorKind::TooLarge);
    let lost = cluster_state::LeaseId(i64::MAX - 7);
    assert_eq!(
        kind(Txn::new().put(&key, "1").put_leased(format!("{at}l"), "", lost)).await,
        StateErrorKind::LeaseNotFound
    );
    assert_eq!(store.get("").await.unwrap_err().kind, StateErrorKind::Invalid);
    assert_eq!(store.lease_grant(0).await.unwrap_err().kind, StateErrorKind::Invalid);
    let after = store.range(at).await.unwrap();
    assert_eq!((after.revision, after.entries.len()), (before, 0), "nothing of all this was applied");
}

async fn leases(store: &dyn StateStore, at: &str) {
    let (bound, freed, kept) = (format!("{at}bound"), format!("{at}freed"), format!("{at}kept"));
    let short = store.lease_grant(2).await.unwrap();
    let long = store.lease_grant(60).await.unwrap();
    assert_ne!(short, long);
    let txn = Txn::new().put_leased(&bound, "", short).put_leased(&freed, "", short).put_leased(&kept, "", long);
    let written = store.txn(txn).await.unwrap().revision;
    assert_eq!(store.get(&bound).await.unwrap().unwrap().lease, short.0);
    store
        .txn(Txn { then: vec![Change::Put { key: freed.clone(), value: vec![], lease: None }], ..Txn::new() })
        .await
        .unwrap();
    // Kept alive for longer than its time to live, it lives.
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(store.lease_keep_alive(short).await.unwrap());
    }
    assert!(store.get(&bound).await.unwrap().is_some());
    // Left alone it ends, and a watch sees its key go.
    let mut watch = store.watch(&bound, written + 1).await.unwrap();
    let batch = timeout(Duration::from_secs(20), watch.next()).await.expect("the lease ends").unwrap();
    let deleted = cluster_state::WatchEvent::Delete { key: bound.clone(), revision: batch.revision };
    assert_eq!(batch.events, [deleted]);
    assert_eq!(store.get(&bound).await.unwrap(), None);
    assert!(!store.lease_keep_alive(short).await.unwrap());
    assert!(store.get(&freed).await.unwrap().is_some(), "no longer bound when the lease ended");
    assert!(store.get(&kept).await.unwrap().is_some());
    store.lease_revoke(long).await.unwrap();
    store.lease_revoke(long).await.unwrap();
    assert_eq!(store.get(&kept).await.unwrap(), None);
}

async fn dumps(store: &dyn StateStore, at: &str) {
    let lease = store.lease_grant(60).await.unwrap();
    for i in 0..250 {
        put(store, &format!("{at}{i:03}"), &format!("{{\"n\":{i}}}\n")).await;
    }
    let extra = Txn::new().put(format!("{at}binary"), vec![0, 255, 7]).put_leased(format!("{at}leased"), "", lease);
    store.txn(extra).await.unwrap();
    let dump = export(store, at).await.unwrap();
    assert_eq!(dump.lines().count(), 251, "all but the leased key");
    let other = EmbeddedStore::in_memory();
    assert_eq!(import(&other, &dump).await.unwrap(), 251);
    assert_eq!(export(&other, "").await.unwrap(), dump);
    let again = import(store, &dump).await.unwrap_err();
    assert_eq!(again.kind, StateErrorKind::Invalid, "{again}");
    store.lease_revoke(lease).await.unwrap();
    store.txn(Txn::new().delete_prefix(at)).await.unwrap();
    assert_eq!(import(store, &dump).await.unwrap(), 251);
    assert_eq!(export(store, at).await.unwrap(), dump);
    for bad in ["{}", "x", r#"{"key":"a","value":"b","value_hex":"00"}"#, r#"{"key":"a","value_hex":"0g"}"#] {
        let text = format!("{dump}{bad}\n");
        assert_eq!(import(&other, &text).await.unwrap_err().kind, StateErrorKind::Invalid, "{bad}");
    }
}
