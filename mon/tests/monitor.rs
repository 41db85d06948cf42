//! The monitor against a state store in memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_proto::map::{
    Activation, ClusterInfo, Interval, Member, OsdConfig, OsdState, PgMap, PoolConfig, Suspicion, keys, parse,
};
use cluster_proto::{Epoch, Incarnation, OsdId, PgId, PoolId, Uuid};
use cluster_state::{EmbeddedStore, StateStore, Txn};
use mon::{MonConfig, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const POOL: PoolId = PoolId(1);
const PG_COUNT: u32 = 120;

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), mon::MonError>>,
}

fn start(store: &EmbeddedStore, name: &str, metrics: Option<TcpListener>) -> Running {
    let (stop, stopped) = oneshot::channel();
    let config = MonConfig {
        name: name.into(),
        lease_ttl_s: 10,
        credentials: None,
        metrics,
        more_metrics: Some(Arc::new(|| "more 1\n".into())),
    };
    let shutdown = async move { drop(stopped.await) };
    Running { stop, task: tokio::spawn(run(Arc::new(store.clone()), config, shutdown)) }
}

impl Running {
    async fn stop(self) {
        drop(self.stop);
        self.task.await.unwrap().unwrap();
    }
}

async fn put<T: serde::Serialize>(store: &EmbeddedStore, key: String, value: &T) {
    store.txn(Txn::new().put(key, serde_json::to_vec(value).unwrap())).await.unwrap();
}

async fn start_osd(store: &EmbeddedStore, id: u32, run: u64) {
    let address = format!("127.0.0.1:{id}").parse().unwrap();
    put(store, keys::osd(OsdId(id)), &OsdState { address, incarnation: Incarnation(run), started: 0 }).await;
}

async fn cluster() -> EmbeddedStore {
    let store = EmbeddedStore::in_memory();
    let info = ClusterInfo { id: Uuid::from_u128(7), created: 0, schema: 1 };
    put(&store, keys::CLUSTER.into(), &info).await;
    put(&store, keys::pool(POOL), &PoolConfig { pg_count: PG_COUNT, ..PoolConfig::replicated("default", 3) }).await;
    for id in 1..=3 {
        put(&store, keys::osd_config(OsdId(id)), &OsdConfig::new(1.0)).await;
    }
    store
}

async fn maps(store: &EmbeddedStore) -> Vec<PgMap> {
    let entries = store.range(&format!("{}map/", keys::PGS)).await.unwrap().entries;
    entries.iter().map(|entry| parse(&entry.key, &entry.value).unwrap()).collect()
}

async fn wait_for(store: &EmbeddedStore, accepts: impl Fn(&[PgMap]) -> bool) -> Vec<PgMap> {
    let poll = async {
        loop {
            let maps = maps(store).await;
            if accepts(&maps) {
                return maps;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), poll).await.expect("the PG maps are written")
}

#[tokio::test]
async fn pgs_are_created_and_renewed_and_history_is_kept() {
    let store = cluster().await;
    let monitor = start(&store, "a", None);
    for id in 1..=3 {
        start_osd(&store, id, 1).await;
    }
    let created = wait_for(&store, |maps| maps.len() == PG_COUNT as usize).await;
    assert!(created.iter().all(|map| map.epoch == Epoch(1)));
    let pg = PgId { pool: POOL, index: 4 };
    let first: PgMap = parse("", &store.get(&keys::pg_map(pg)).await.unwrap().unwrap().value).unwrap();
    let record =
        Activation { epoch: Epoch(1), acting: first.acting.clone(), complete: first.target.clone(), min_size: 2 };
    put(&store, keys::pg_activation(pg), &record).await;
    start_osd(&store, 2, 2).await;
    let renewed = wait_for(&store, |maps| maps.iter().all(|map| map.epoch == Epoch(2))).await;
    let second = Member { osd: OsdId(2), incarnation: Incarnation(2) };
    assert!(renewed.iter().all(|map| map.members().any(|(_, member)| member == second)));
    let history: Vec<Interval> = parse("", &store.get(&keys::pg_history(pg)).await.unwrap().unwrap().value).unwrap();
    assert_eq!(history, [record.interval()]);
    assert_eq!(store.range(&format!("{}history/", keys::PGS)).await.unwrap().entries.len(), 1);
    sleep(Duration::from_millis(200)).await;
    assert!(maps(&store).await.iter().all(|map| map.epoch == Epoch(2)), "nothing changed, so nothing is written");
    monitor.stop().await;
}

/// Registers OSD 3, of which nobody but `listener` knows more, and lets OSD 1 complain about it. Returns the maps once nobody
/// serves with it any more.
async fn complain(store: &EmbeddedStore, address: SocketAddr) -> Vec<PgMap> {
    let suspect = Member { osd: OsdId(3), incarnation: Incarnation(9) };
    put(store, keys::osd(OsdId(3)), &OsdState { address, incarnation: suspect.incarnation, started: 0 }).await;
    wait_for(store, |maps| {
        maps.len() == PG_COUNT as usize && maps.iter().all(|map| map.members().any(|(_, m)| m == suspect))
    })
    .await;
    for pg in store.range(&format!("{}map/", keys::PGS)).await.unwrap().entries {
        let map: PgMap = parse(&pg.key, &pg.value).unwrap();
        let complete = map.target.clone();
        let record = Activation { epoch: map.epoch, acting: map.acting, complete, min_size: 2 };
        put(store, pg.key.replace("/map/", "/activation/"), &record).await;
    }
    let report = Suspicion { incarnation: Incarnation(1), suspects: vec![suspect] };
    put(store, keys::suspicion(OsdId(1)), &report).await;
    wait_for(store, |maps| maps.iter().all(|map| map.members().all(|(_, m)| m != suspect))).await
}

#[tokio::test]
async fn an_osd_that_refuses_connections_is_dead() {
    let store = cluster().await;
    let monitor = start(&store, "a", None);
    for id in 1..=2 {
        start_osd(&store, id, 1).await;
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let maps = complain(&store, nobody).await;
    let dead = Member { osd: OsdId(3), incarnation: Incarnation(9) };
    assert!(maps.iter().all(|map| map.dead.contains(&dead)), "nobody needs to wait for it");
    assert!(store.get(&keys::osd(OsdId(3))).await.unwrap().is_none(), "its registration is withdrawn");
    monitor.stop().await;
}

#[tokio::test]
async fn an_osd_that_is_silent_loses_its_place_but_may_live() {
    let store = cluster().await;
    let monitor = start(&store, "a", None);
    for id in 1..=2 {
        start_osd(&store, id, 1).await;
    }
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let begin = Instant::now();
    let maps = complain(&store, silent.local_addr().unwrap()).await;
    assert!(begin.elapsed() > Duration::from_millis(900), "one unanswered probe is not enough");
    assert!(maps.iter().all(|map| map.dead.is_empty()));
    monitor.stop().await;
}

#[tokio::test]
async fn one_leads_and_the_next_takes_over_at_once() {
    let store = cluster().await;
    let first = start(&store, "first", None);
    let leader = async |name: &str| {
        let poll = async {
            while store.get(keys::LEADER).await.unwrap().is_none_or(|entry| entry.value != name.as_bytes()) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(5), poll).await.expect("a leader")
    };
    leader("first").await;
    let second = start(&store, "second", None);
    sleep(Duration::from_millis(100)).await;
    leader("first").await;
    first.stop().await;
    leader("second").await;
    for id in 1..=3 {
        start_osd(&store, id, 1).await;
    }
    wait_for(&store, |maps| maps.len() == PG_COUNT as usize).await;
    second.stop().await;
    assert!(store.get(keys::LEADER).await.unwrap().is_none());
}

#[tokio::test]
async fn who_lost_the_leader_key_writes_nothing_until_elected_again() {
    let store = cluster().await;
    let monitor = start(&store, "a", None);
    sleep(Duration::from_millis(200)).await;
    // Somebody else leads from here on, as far as the store is concerned.
    store.txn(Txn::new().delete(keys::LEADER)).await.unwrap();
    store.txn(Txn::new().put(keys::LEADER, "other")).await.unwrap();
    for id in 1..=3 {
        start_osd(&store, id, 1).await;
    }
    sleep(Duration::from_millis(500)).await;
    assert!(maps(&store).await.is_empty());
    store.txn(Txn::new().delete(keys::LEADER)).await.unwrap();
    wait_for(&store, |maps| maps.len() == PG_COUNT as usize).await;
    monitor.stop().await;
}

#[tokio::test]
async fn metrics_are_served() {
    let store = cluster().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let monitor = start(&store, "a", Some(listener));
    start_osd(&store, 1, 1).await;
    sleep(Duration::from_millis(200)).await;
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    assert!(answer.contains("blockyard_monitor_leads 1\n"), "{answer}");
    assert!(answer.contains("blockyard_osds_up 1\n") && answer.ends_with("more 1\n"), "{answer}");
    assert!(answer.contains(&format!("state=\"creating\"}} {PG_COUNT}\n")), "{answer}");
    monitor.stop().await;
}
