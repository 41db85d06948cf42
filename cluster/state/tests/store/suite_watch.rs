//! What every store must do for watches: order, whole revisions, resuming, compaction.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cluster_state::{Mirror, MirrorEvent, StateStore, Txn, Watch, WatchBatch, WatchError, WatchEvent, watch_forever};
use tokio::time::timeout;

use crate::suite::futures_join;

const PATIENCE: Duration = Duration::from_secs(20);

pub async fn run(store: Arc<dyn StateStore>) {
    whole_revisions_in_order(&*store, "watch/order/").await;
    resumes_anywhere(&*store, "watch/resume/").await;
    sees_only_its_prefix(&*store, "watch/prefix/").await;
    compaction_ends_it(&*store, "watch/compact/").await;
    a_mirror_follows(store, "watch/mirror/").await;
}

pub async fn next(watch: &mut Watch) -> WatchBatch {
    timeout(PATIENCE, watch.next()).await.expect("a batch comes in time").unwrap()
}

/// Several writers put pairs of keys with the same value. A watcher must see each pair at once, and all in order.
async fn whole_revisions_in_order(store: &dyn StateStore, at: &str) {
    const WRITERS: usize = 8;
    const WRITES: usize = 30;
    let start = store.range(at).await.unwrap().revision;
    let writers = (0..WRITERS).map(|writer| async move {
        for i in 0..WRITES {
            let value = format!("{writer}.{i}");
            let pair = Txn::new().put(format!("{at}left"), value.as_str()).put(format!("{at}right"), value.as_str());
            store.txn(pair).await.unwrap();
        }
    });
    let mut watch = store.watch(at, start + 1).await.unwrap();
    let watcher = async {
        let (mut seen, mut last) = (0, start);
        while seen < WRITERS * WRITES {
            let batch = next(&mut watch).await;
            assert!(batch.events.iter().all(|event| event.revision() > last), "a batch begins after the one before");
            assert!(batch.events.is_sorted_by_key(WatchEvent::revision));
            let mut revisions: BTreeMap<i64, Vec<&WatchEvent>> = BTreeMap::new();
            batch.events.iter().for_each(|event| revisions.entry(event.revision()).or_default().push(event));
            for (revision, events) in &revisions {
                let [WatchEvent::Put(left), WatchEvent::Put(right)] = events[..] else {
                    panic!("torn {revision}: {events:?}")
                };
                assert!(left.value == right.value && left.key != right.key);
            }
            seen += revisions.len();
            last = batch.revision;
            assert_eq!(Some(&last), revisions.keys().last());
        }
    };
    let mut all: Vec<std::pin::Pin<Box<dyn Future<Output = ()> + '_>>> = vec![Box::pin(watcher)];
    all.extend(writers.map(|writer| Box::pin(writer) as _));
    futures_join(all).await;
}

async fn resumes_anywhere(store: &dyn StateStore, at: &str) {
    let key = format!("{at}k");
    let mut revisions = Vec::new();
    for i in 0..10 {
        revisions.push(store.txn(Txn::new().put(&key, i.to_string())).await.unwrap().revision);
    }
    revisions.push(store.txn(Txn::new().delete(&key)).await.unwrap().revision);
    for (index, &from) in revisions.iter().enumerate() {
        let mut watch = store.watch(at, from).await.unwrap();
        assert!(watch.store_revision() >= revisions[10]);
        let mut events = Vec::new();
        while events.len() < revisions.len() - index {
            events.extend(next(&mut watch).await.events);
        }
        assert_eq!(events.iter().map(WatchEvent::revision).collect::<Vec<_>>(), revisions[index..]);
        assert!(matches!(events.last(), Some(WatchEvent::Delete { key: deleted, .. }) if *deleted == key));
    }
}

async fn sees_only_its_prefix(store: &dyn StateStore, at: &str) {
    let start = store.range(at).await.unwrap().revision;
    let mut watch = store.watch(&format!("{at}in/"), start + 1).await.unwrap();
    for key in ["out", "in", "in/1", "in0", "in/2"] {
        store.txn(Txn::new().put(format!("{at}{key}"), "")).await.unwrap();
    }
    let mut keys = Vec::new();
    while keys.len() < 2 {
        keys.extend(next(&mut watch).await.events.iter().map(|event| event.key().to_owned()));
    }
    assert_eq!(keys, [format!("{at}in/1"), format!("{at}in/2")]);
    // A future dropped while it waits loses nothing.
    assert!(timeout(Duration::from_millis(50), watch.next()).await.is_err());
    store.txn(Txn::new().put(format!("{at}in/3"), "")).await.unwrap();
    assert_eq!(next(&mut watch).await.events[0].key(), format!("{at}in/3"));
}

async fn compaction_ends_it(store: &dyn StateStore, at: &str) {
    let key = format!("{at}k");
    let mut revision = 0;
    for i in 0..5 {
        revision = store.txn(Txn::new().put(&key, i.to_string())).await.unwrap().revision;
    }
    store.compact(revision).await.unwrap();
    store.compact(revision).await.unwrap();
    let mut watch = store.watch(at, revision - 3).await.unwrap();
    match timeout(PATIENCE, watch.next()).await.expect("an answer comes in time") {
        Err(WatchError::Compacted { first_available }) => assert!(first_available >= revision, "{first_available}"),
        other => panic!("not compacted: {other:?}"),
    }
    assert!(store.compact(revision + 1_000_000).await.is_err());
}

pub async fn follow(mirror: &mut Mirror) -> MirrorEvent {
    timeout(PATIENCE, mirror.next()).await.expect("the mirror follows in time")
}

async fn a_mirror_follows(store: Arc<dyn StateStore>, at: &str) {
    let put = |key: &str| Txn::new().put(format!("{at}{key}"), "");
    let first = store.txn(put("a")).await.unwrap().revision;
    let mut mirror = watch_forever(store.clone(), at);
    let MirrorEvent::Reset(snapshot) = follow(&mut mirror).await else { panic!("a mirror begins with a snapshot") };
    assert_eq!((snapshot.revision, snapshot.entries.len()), (first, 1));
    let second = store.txn(put("b")).await.unwrap().revision;
    let MirrorEvent::Batch(batch) = follow(&mut mirror).await else { panic!("nothing was lost: no reset") };
    assert_eq!((batch.revision, batch.events.len()), (second, 1));
    assert!(mirror.outage().is_none());
}
