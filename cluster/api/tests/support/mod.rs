//! A whole cluster in one process: real OSDs on temporary files, a monitor, a state store in memory.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::Duration;

use blockyard_client::{Client, metadata};
use cluster_proto::map::{ClusterInfo, OsdConfig, PoolConfig, keys};
use cluster_proto::{OsdId, PoolId, Uuid};
use cluster_state::{EmbeddedStore, StateStore, Txn};
use mon::MonConfig;
use osd::{OsdHandle, OsdOptions, PrepareOptions};
use tokio::sync::oneshot;

pub const POOL: PoolId = PoolId(1);
pub const BLOCK: u64 = 1 << 20;
const DEVICE_BYTES: u64 = 1 << 30;

pub struct Cluster {
    // Before the runtime, so that the OSDs stop first.
    osds: BTreeMap<u32, OsdHandle>,
    _monitor: oneshot::Sender<()>,
    pub state: EmbeddedStore,
    pub id: Uuid,
    folder: tempfile::TempDir,
    pub runtime: tokio::runtime::Runtime,
}

impl Cluster {
    /// `count` OSDs, all running, and the pool `default` with as many copies.
    pub fn start(count: u32) -> Self {
        static LOG: Once = Once::new();
        LOG.call_once(|| {
            let filter = tracing_subscriber::EnvFilter::from_default_env();
            tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().init();
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let state = EmbeddedStore::in_memory();
        let (monitor, stop) = oneshot::channel();
        let config =
            MonConfig { name: "test".into(), lease_ttl_s: 5, credentials: None, metrics: None, more_metrics: None };
        runtime.spawn(mon::run(Arc::new(state.clone()), config, async move { drop(stop.await) }));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut cluster = Self { osds: BTreeMap::new(), _monitor: monitor, state, id: Uuid::new_v4(), folder, runtime };
        cluster.put_config(count as u8);
        for id in 1..=count {
            let (bytes, cluster_id) = (Some(DEVICE_BYTES), cluster.id);
            let path = cluster.device(id);
            osd::prepare(&PrepareOptions { path, bytes, id: OsdId(id), cluster: cluster_id, force: false })
                .expect("an empty folder");
            cluster.start_osd(id);
        }
        cluster
    }

    fn put_config(&self, copies: u8) {
        let info = ClusterInfo { id: self.id, created: 1, schema: 1 };
        let pool = PoolConfig { pg_count: 16, ..PoolConfig::replicated("default", copies) };
        let mut txn = Txn::new().put(keys::CLUSTER, json(&info)).put(keys::pool(POOL), json(&pool));
        for id in 1..=copies {
            txn = txn.put(keys::osd_config(OsdId(id.into())), json(&OsdConfig::new(1.0)));
        }
        self.txn(txn);
    }

    pub fn txn(&self, txn: Txn) {
        assert!(self.runtime.block_on(self.state.txn(txn)).expect("the store is in memory").succeeded);
    }

    pub fn store(&self) -> Arc<dyn StateStore> {
        Arc::new(self.state.clone())
    }

    fn device(&self, id: u32) -> PathBuf {
        self.folder.path().join(format!("osd-{id}"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn start_osd(&mut self, id: u32) {
        let runtime = self.runtime.handle().clone();
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = OsdOptions::new(self.device(id), OsdId(id), self.id, any_port, self.store(), runtime);
        let handle = osd::spawn(OsdOptions { lease_ttl_s: 1, ..options }).expect("it was prepared");
        self.osds.insert(id, handle);
    }

    /// Stops an OSD in order.
    pub fn stop_osd(&mut self, id: u32) {
        let handle = self.osds.remove(&id).expect("it runs");
        handle.stop();
        handle.join().expect("no failure");
    }

    pub fn create_image(&self, name: &str, size: u64) {
        self.runtime.block_on(metadata::create_image(&self.state, "default", name, size)).expect("created");
    }

    pub fn client(&self) -> Client {
        self.runtime.block_on(Client::connect(self.store())).expect("connected")
    }

    /// Runs a future that must end soon.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let patience = Duration::from_secs(120);
        self.runtime.block_on(async { tokio::time::timeout(patience, future).await.expect("in time") })
    }
}

fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON")
}
