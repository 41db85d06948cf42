//! Behaviour of the state stores, seen from outside: one suite for all of them, real etcd and `etcdctl`, crashes.

mod crash;
mod etcdctl;
mod outage;
mod servers;
mod suite;
mod suite_watch;

use std::sync::Arc;

use cluster_state::{EmbeddedStore, EtcdConfig, EtcdStore, StateStore, connect};
use servers::{Etcd, Served};

async fn whole_suite(store: Arc<dyn StateStore>) {
    suite::run(store.clone()).await;
    suite_watch::run(store).await;
}

#[tokio::test]
async fn in_memory() {
    whole_suite(Arc::new(EmbeddedStore::in_memory())).await;
}

#[tokio::test]
async fn embedded_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    whole_suite(Arc::new(EmbeddedStore::open(dir.path()).unwrap())).await;
}

#[tokio::test]
async fn embedded_through_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(EmbeddedStore::open(dir.path()).unwrap(), "127.0.0.1:0").await;
    whole_suite(connect(&served.address).unwrap()).await;
    served.stop().await;
}

#[tokio::test]
async fn real_etcd() {
    let Some(etcd) = Etcd::start().await else { return };
    whole_suite(connect(&etcd.address).unwrap()).await;
}

#[tokio::test]
async fn real_etcd_with_a_user() {
    let Some(etcd) = Etcd::start().await else { return };
    etcd.enable_auth("the-password");
    let mut config = EtcdConfig::from_spec(&etcd.address).unwrap();
    let refused = EtcdStore::new(config.clone()).unwrap().get("k").await.unwrap_err();
    assert_eq!(refused.kind, cluster_state::StateErrorKind::Denied, "{refused}");
    let credentials = |password: &str| cluster_state::Credentials { user: "root".into(), password: password.into() };
    config.credentials = Some(credentials("wrong"));
    let refused = EtcdStore::new(config.clone()).unwrap().get("k").await.unwrap_err();
    assert_eq!(refused.kind, cluster_state::StateErrorKind::Denied, "{refused}");
    config.credentials = Some(credentials("the-password"));
    whole_suite(Arc::new(EtcdStore::new(config).unwrap())).await;
}
