//! A cluster in one process: real OSDs on temporary files, and the maps that a monitor would write.
#![allow(dead_code)]

pub mod client;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use cluster_proto::auth::Credentials;
use cluster_proto::ids::{Epoch, LayerId, ObjectId, OsdId, PgId, PoolId};
use cluster_proto::map::{ClusterInfo, DEAD_MAX, Member, PgMap, PoolConfig, Scheme, keys};
use cluster_proto::wire::Refusal;
use cluster_proto::{LayerRef, Uuid};
use cluster_state::{EmbeddedStore, StateStore, Txn};
use osd::{Error, Live, OsdHandle, OsdOptions, PrepareOptions, prepare, spawn};

use client::Client;

pub const POOL: PoolId = PoolId(1);
pub const PG_COUNT: u32 = 4;
pub const DEVICE_BYTES: u64 = 256 << 20;

const PATIENCE: Duration = Duration::from_secs(30);

pub fn object(index: u32) -> ObjectId {
    LayerRef { pool: POOL, lineage: LayerId(1), layer: LayerId(1) }.object(index)
}

pub fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub struct Cluster {
    // Before the runtime, so that the OSDs stop first.
    osds: BTreeMap<u32, OsdHandle>,
    pub state: EmbeddedStore,
    pub runtime: tokio::runtime::Runtime,
    pub id: Uuid,
    pub credentials: Option<Credentials>,
    folder: tempfile::TempDir,
    epoch: u32,
    /// Runs in the last interval, and those that are over.
    runs: Vec<Member>,
    dead: Vec<Member>,
    clients: u64,
}

impl Cluster {
    /// Prepared files for OSDs 1 to `count`, all running, and a pool with as many copies.
    pub fn start(count: u32) -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary folder"), count)
    }

    pub fn start_in(folder: tempfile::TempDir, count: u32) -> Self {
        Self::start_with(folder, count, None)
    }

    /// The same, guarded by a key.
    pub fn start_guarded(count: u32, credentials: Credentials) -> Self {
        Self::start_with(tempfile::tempdir().expect("a temporary folder"), count, Some(credentials))
    }

    fn start_with(folder: tempfile::TempDir, count: u32, credentials: Option<Credentials>) -> Self {
        static LOG: Once = Once::new();
        LOG.call_once(|| {
            let filter = tracing_subscriber::EnvFilter::from_default_env();
            tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().init();
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let mut cluster = Self {
            osds: BTreeMap::new(),
            state: EmbeddedStore::in_memory(),
            runtime: runtime.expect("a runtime"),
            id: Uuid::new_v4(),
            credentials,
            folder,
            epoch: 0,
            runs: Vec::new(),
            dead: Vec::new(),
            clients: 0,
        };
        cluster.put_config(count as u8);
        for id in 1..=count {
            cluster.prepare(id).expect("an empty folder");
            cluster.spawn(id);
        }
        cluster
    }

    fn put_config(&self, copies: u8) {
        let info = ClusterInfo { id: self.id, created: 1, schema: 1 };
        let pool = PoolConfig {
            name: "test".into(),
            scheme: Scheme::Replicated { copies },
            min_size: 1,
            pg_count: PG_COUNT,
            block_size: 1 << 20,
            ..PoolConfig::replicated("test", copies)
        };
        let txn = Txn::new()
            .put(keys::CLUSTER, serde_json::to_vec(&info).expect("JSON"))
            .put(keys::pool(POOL), serde_json::to_vec(&pool).expect("JSON"));
        self.txn(txn);
    }

    pub fn txn(&self, txn: Txn) {
        self.runtime.block_on(self.state.txn(txn)).expect("the store is in memory");
    }

    pub fn path(&self, id: u32) -> PathBuf {
        self.folder.path().join(format!("osd-{id}"))
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn prepare_options(&self, id: u32) -> PrepareOptions {
        let bytes = Some(DEVICE_BYTES);
        PrepareOptions { path: self.path(id), bytes, id: OsdId(id), cluster: self.id, force: false }
    }

    pub fn prepare(&self, id: u32) -> Result<(), Error> {
        prepare(&self.prepare_options(id)).map(drop)
    }

    pub fn options(&self, id: u32) -> OsdOptions {
        let state: Arc<dyn StateStore> = Arc::new(self.state.clone());
        let runtime = self.runtime.handle().clone();
        let options = OsdOptions::new(self.path(id), OsdId(id), self.id, any_port(), state, runtime);
        OsdOptions { lease_ttl_s: 1, credentials: self.credentials.clone(), ..options }
    }

    pub fn spawn(&mut self, id: u32) {
        let handle = spawn(self.options(id)).expect("it was prepared");
        self.osds.insert(id, handle);
    }

    /// Stops an OSD in order.
    pub fn stop(&mut self, id: u32) {
        let handle = self.osds.remove(&id).expect("it runs");
        handle.stop();
        handle.join().expect("no failure");
    }

    /// Begins an interval: all PGs are served by these OSDs, the first leads.
    pub fn serve(&mut self, acting: &[u32]) {
        self.serve_degraded(acting, acting);
    }

    /// Begins an interval in which some of the OSDs that should serve are away.
    pub fn serve_degraded(&mut self, acting: &[u32], target: &[u32]) {
        self.epoch += 1;
        let member = |id: &u32| Member { osd: OsdId(*id), incarnation: self.osds[id].incarnation() };
        let runs: Vec<Member> = self.osds.keys().map(member).collect();
        self.dead.extend(self.runs.iter().filter(|run| !runs.contains(run)));
        let map = PgMap {
            epoch: Epoch(self.epoch),
            primary: OsdId(acting[0]),
            acting: acting.iter().map(|id| Some(member(id))).collect(),
            target: target.iter().map(|&id| OsdId(id)).collect(),
            dead: self.dead.iter().rev().take(DEAD_MAX).copied().collect(),
            unfenced: Vec::new(),
            pg_count: None,
        };
        self.runs = runs;
        let value = serde_json::to_vec(&map).expect("JSON");
        let pgs = (0..PG_COUNT).map(|index| keys::pg_map(PgId { pool: POOL, index }));
        self.txn(pgs.fold(Txn::new(), |txn, key| txn.put(key, value.clone())));
    }

    pub fn handle(&self, id: u32) -> &OsdHandle {
        &self.osds[&id]
    }

    pub fn client(&mut self, id: u32) -> Client {
        self.clients += 1;
        self.introduce(id, self.id, OsdId(id), self.credentials.clone()).expect("it has all that is needed")
    }

    /// Connects to OSD `id` as somebody who says that he looks for `target` of `cluster`.
    pub fn introduce(
        &self,
        id: u32,
        cluster: Uuid,
        target: OsdId,
        credentials: Option<Credentials>,
    ) -> Result<Client, Refusal> {
        Client::introduce(self.osds[&id].address(), cluster, target, self.clients.max(1), credentials)
    }

    /// Waits until an OSD's published state is as wanted.
    pub fn wait(&self, id: u32, what: &str, is_so: impl Fn(&Live) -> bool) -> Live {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let live = self.osds[&id].live();
            if is_so(&live) {
                return live;
            }
            assert!(Instant::now() < deadline, "OSD {id}: {what}: {live:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
