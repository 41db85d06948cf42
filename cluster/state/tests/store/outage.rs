//! Servers that go away and come back, and endpoints that never answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_state::{EmbeddedStore, MirrorEvent, StateErrorKind, StateStore, Txn, WatchError, connect, watch_forever};

use crate::servers::Served;
use crate::suite_watch::{follow, next};

fn put(key: &str, value: &str) -> Txn {
    Txn::new().put(key, value)
}

/// The server ends for a while, and what happens meanwhile is still in its history: the mirror misses nothing.
#[tokio::test]
async fn a_mirror_goes_on_after_an_outage() {
    let store = EmbeddedStore::in_memory();
    let served = Served::start(store.clone(), "127.0.0.1:0").await;
    let address = served.address.clone();
    let mut mirror = watch_forever(connect(&address).unwrap(), "");
    assert!(matches!(follow(&mut mirror).await, MirrorEvent::Reset(_)));
    store.txn(put("a", "1")).await.unwrap();
    assert!(matches!(follow(&mut mirror).await, MirrorEvent::Batch(_)));
    served.stop().await;
    assert!(tokio::time::timeout(Duration::from_millis(500), mirror.next()).await.is_err());
    assert_eq!(mirror.outage().map(|error| error.kind), Some(StateErrorKind::Unavailable));
    let during = store.txn(put("b", "2")).await.unwrap().revision;
    let served = Served::start(store.clone(), &address).await;
    let MirrorEvent::Batch(batch) = follow(&mut mirror).await else { panic!("the history was there: no reset") };
    assert_eq!((batch.revision, batch.events[0].key()), (during, "b"));
    assert!(mirror.outage().is_none());
    served.stop().await;
}

/// The store restarts from its file, and so forgets its history: the mirror begins anew, with everything.
#[tokio::test]
async fn a_mirror_begins_anew_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    let served = Served::start(store.clone(), "127.0.0.1:0").await;
    let address = served.address.clone();
    let mut mirror = watch_forever(connect(&address).unwrap(), "");
    assert!(matches!(follow(&mut mirror).await, MirrorEvent::Reset(_)));
    served.stop().await;
    store.close().await;
    let store = EmbeddedStore::open(dir.path()).unwrap();
    let during = store.txn(put("b", "2")).await.unwrap().revision;
    store.close().await;
    let store = EmbeddedStore::open(dir.path()).unwrap();
    let served = Served::start(store.clone(), &address).await;
    let MirrorEvent::Reset(snapshot) = follow(&mut mirror).await else { panic!("the history was lost: a reset") };
    assert_eq!((snapshot.revision, snapshot.entries.len()), (during, 1));
    let next = store.txn(put("c", "3")).await.unwrap().revision;
    assert!(matches!(follow(&mut mirror).await, MirrorEvent::Batch(batch) if batch.revision == next));
    served.stop().await;
}

/// A store that is put back to an older state makes a mirror begin anew although it has no gap.
#[tokio::test]
async fn a_mirror_notices_a_store_that_went_back() {
    let newer = EmbeddedStore::in_memory();
    for i in 0..5 {
        newer.txn(put("k", &i.to_string())).await.unwrap();
    }
    let served = Served::start(newer, "127.0.0.1:0").await;
    let address = served.address.clone();
    let mut mirror = watch_forever(connect(&address).unwrap(), "");
    assert!(matches!(follow(&mut mirror).await, MirrorEvent::Reset(_)));
    assert!(tokio::time::timeout(Duration::from_millis(200), mirror.next()).await.is_err());
    served.stop().await;
    let older = EmbeddedStore::in_memory();
    older.txn(put("k", "old")).await.unwrap();
    let served = Served::start(older, &address).await;
    let MirrorEvent::Reset(snapshot) = follow(&mut mirror).await else { panic!("not the store it was: a reset") };
    assert_eq!(snapshot.entries[0].value, b"old");
    served.stop().await;
}

#[tokio::test]
async fn the_next_endpoint_serves_when_one_is_gone() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // This one accepts connections, but never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let served = Served::start(EmbeddedStore::in_memory(), "127.0.0.1:0").await;
    let spec = format!("{gone},{},{gone}", served.address);
    let store = connect(&spec).unwrap();
    for i in 0..20 {
        assert!(store.txn(put("k", &i.to_string())).await.unwrap().succeeded, "a refused connection is no risk");
    }
    let spec = format!("{},{}", silent.local_addr().unwrap(), served.address);
    assert!(connect(&spec).unwrap().get("k").await.unwrap().is_some());
    served.stop().await;
}

#[tokio::test]
async fn nobody_there_is_a_clear_and_quick_error() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let started = Instant::now();
    let error = connect(&gone).unwrap().txn(put("k", "v")).await.unwrap_err();
    assert_eq!(error.kind, StateErrorKind::Unavailable, "{error}");
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(error.to_string().contains(&gone) && error.to_string().contains("refused"), "{error}");
}

/// After a restart of the server the first write finds the new connection by itself.
#[tokio::test]
async fn a_client_survives_a_restart_of_the_server() {
    let store = EmbeddedStore::in_memory();
    let served = Served::start(store.clone(), "127.0.0.1:0").await;
    let address = served.address.clone();
    let client = connect(&address).unwrap();
    for i in 0..3 {
        client.txn(put("k", &i.to_string())).await.unwrap();
    }
    served.stop().await;
    let served = Served::start(store.clone(), &address).await;
    client.txn(put("k", "again")).await.unwrap();
    served.stop().await;
}

#[tokio::test]
async fn a_closed_store_ends_its_watches_and_refuses() {
    let store = EmbeddedStore::in_memory();
    let mut watch = store.watch("", 1).await.unwrap_or_else(|error| panic!("{error}"));
    let waiting = Arc::new(store.clone());
    assert!(matches!(watch.next().await, Err(WatchError::Compacted { .. })), "revision 1 is the empty store");
    let mut watch = store.watch("", 2).await.unwrap();
    waiting.txn(put("k", "v")).await.unwrap();
    assert_eq!(next(&mut watch).await.revision, 2);
    store.close().await;
    assert!(matches!(watch.next().await, Err(WatchError::Lost(error)) if error.kind == StateErrorKind::Unavailable));
    let error = store.get("k").await.unwrap_err();
    assert!(error.kind == StateErrorKind::Unavailable && error.to_string().contains("closed"), "{error}");
    store.close().await;
}
