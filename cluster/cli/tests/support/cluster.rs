//! A state store as a running `blockyard up` serves it.

use std::net::SocketAddr;

use cluster_proto::map::{Activation, ClusterInfo, Member, OsdConfig, OsdState, PgMap, PoolConfig, keys};
use cluster_proto::{Epoch, Incarnation, OsdId, PgId, PoolId, Uuid};
use cluster_state::{EmbeddedStore, StateStore, Txn, serve_etcd};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::{Run, blockyard};

/// A state store with the metadata of a cluster of three OSDs, none of which runs.
pub struct Cluster {
    pub runtime: Runtime,
    pub store: EmbeddedStore,
    address: SocketAddr,
}

impl Cluster {
    pub fn start() -> Cluster {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store = EmbeddedStore::in_memory();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let served = store.clone();
        std::thread::spawn(move || {
            runtime().block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                serve_etcd(served, listener, std::future::pending()).await
            })
        });
        let runtime = runtime();
        let cluster = Cluster { runtime, store, address };
        cluster.put(keys::CLUSTER.into(), &ClusterInfo { id: Uuid::from_u128(7), created: 1, schema: 1 });
        let pool = PoolConfig { pg_count: 2, ..PoolConfig::replicated("default", 3) };
        cluster.put(keys::pool(PoolId(1)), &pool);
        for id in 1..=3 {
            cluster.put(keys::osd_config(OsdId(id)), &OsdConfig::new(1.0));
        }
        cluster
    }

    pub fn put<T: serde::Serialize>(&self, key: String, value: &T) {
        let txn = Txn::new().put(key, serde_json::to_vec(value).unwrap());
        self.runtime.block_on(self.store.txn(txn)).unwrap();
    }

    pub fn read(&self, key: &str) -> Option<Vec<u8>> {
        self.runtime.block_on(self.store.get(key)).unwrap().map(|entry| entry.value)
    }

    pub fn run(&self, args: &[&str]) -> Run {
        let address = self.address.to_string();
        blockyard(&[&["--cluster", &address], args].concat())
    }

    pub fn serve_pgs(&self) {
        let member = |id| Member { osd: OsdId(id), incarnation: Incarnation(1) };
        let acting: Vec<_> = (1..=3).map(|id| Some(member(id))).collect();
        let target: Vec<_> = (1..=3).map(OsdId).collect();
        for id in 1..=3 {
            let address = "127.0.0.1:1".parse().unwrap();
            self.put(keys::osd(OsdId(id)), &OsdState { address, incarnation: Incarnation(1), started: 0 });
        }
        for index in 0..2 {
            let pg = PgId { pool: PoolId(1), index };
            let (acting, complete) = (acting.clone(), target.clone());
            let map = PgMap {
                epoch: Epoch(1),
                primary: OsdId(1),
                acting: acting.clone(),
                target: target.clone(),
                dead: Vec::new(),
                unfenced: Vec::new(),
                pg_count: Some(2),
            };
            self.put(keys::pg_map(pg), &map);
            self.put(keys::pg_activation(pg), &Activation { epoch: Epoch(1), acting, complete, min_size: 2 });
        }
    }
}
