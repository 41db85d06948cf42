//! The processes of the simulation: OSDs and clients, with the cores they run.

use std::collections::BTreeSet;

use blockstore::{Durability, FormatOptions, Store, StoreConfig};
use cluster_client::{Client, ClientOptions, ImageId, ImageOptions};
use cluster_proto::auth::Credentials;
use cluster_proto::layout::LayerRef;
use cluster_proto::map::Member;
use cluster_proto::{ClientId, Incarnation, LayerId, ObjectId, OsdId, PoolId};
use osd_core::{Osd, OsdOptions};

use crate::control::CLUSTER;
use crate::disk::Disk;
use crate::net::{Micros, NodeId};
use crate::rng::Rng;
use crate::watch::Watching;

/// What counts as slow: so little that the log of it is written all the time. Milliseconds.
const SLOW_MS: u64 = 50;

/// What a device cannot do, apart from writing data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// Reading while the store opens.
    Reads,
    /// Writing metadata; of what fails, parts are written.
    Metadata,
    /// Flushing.
    Flushes,
}

/// An OSD: its disk stays, its process comes and goes.
pub struct OsdNode {
    /// Number.
    pub id: OsdId,
    /// Counts its runs.
    pub life: u32,
    /// The device.
    pub disk: Disk,
    /// The device is gone for good.
    pub is_lost: bool,
    /// The running process.
    pub run: Option<OsdRun>,
    /// Until then every device operation takes long.
    pub slow_until: Micros,
    /// Until then most writes of data fail.
    pub failing_until: Micros,
    /// Until then half of all reads of data fail.
    pub unreadable_until: Micros,
    /// Until then other operations of the device fail, some of which.
    pub broken_until: Micros,
    /// Which.
    pub broken: Broken,
    /// Until then something else takes up the space.
    pub full_until: Micros,
    /// Objects that did.
    pub filler: Vec<ObjectId>,
    /// Until then the process does not run, without knowing it.
    pub frozen_until: Micros,
    /// Until then it cannot reach the state store.
    pub state_cut_until: Micros,
    /// Its registration lasts until then.
    pub lease_until: Micros,
    /// What its clock is ahead. Milliseconds.
    pub clock_ahead: u64,
}

/// A running OSD process.
pub struct OsdRun {
    /// The store.
    pub store: Store,
    /// The core; there once the store is open.
    pub core: Option<Osd>,
    /// This run.
    pub incarnation: Incarnation,
    /// What the core was told of the state.
    pub told: Watching,
    /// Whom it cannot reach, as it last said.
    pub suspects: Vec<Member>,
    /// Device operations under way.
    pub device_ops: u32,
    /// The device could not do something, apart from writing data: the store may have to give up.
    pub is_broken: bool,
}

impl OsdNode {
    /// A prepared OSD that does not run yet.
    pub fn new(id: OsdId, bytes: u64, write_through: bool, rng: &mut Rng) -> Self {
        let mut disk = Disk::new(bytes, write_through);
        let mut store = [0; 16];
        store[..8].copy_from_slice(&rng.bits().to_le_bytes());
        store[15] = 1;
        let log_bytes = Some(128 << 10 << rng.below(3));
        let options = FormatOptions { device_bytes: bytes, cluster: *CLUSTER.as_bytes(), store, osd: id, log_bytes };
        for write in blockstore::format(&options).expect("the simulated disk is large enough") {
            disk.prepare(write.offset, &write.data);
        }
        let clock_ahead = rng.below(1_000_000);
        Self {
            id,
            life: 0,
            disk,
            is_lost: false,
            run: None,
            slow_until: 0,
            failing_until: 0,
            unreadable_until: 0,
            broken_until: 0,
            broken: Broken::Reads,
            full_until: 0,
            filler: Vec::new(),
            frozen_until: 0,
            state_cut_until: 0,
            lease_until: 0,
            clock_ahead,
        }
    }

    /// The node of the OSD.
    pub fn node(&self) -> NodeId {
        NodeId(self.id.0)
    }

    /// Starts the process: the store begins to open.
    pub fn start(&mut self, rng: &mut Rng) {
        self.life += 1;
        let durability = if self.disk.is_write_through() { Durability::WriteThrough } else { Durability::Flush };
        let discard_sectors_min = if rng.one_in(2) { 1 } else { 0 };
        let config = StoreConfig { durability, discard_sectors_min, ..StoreConfig::default() };
        self.run = Some(OsdRun {
            store: Store::open(config, self.disk.bytes()),
            core: None,
            incarnation: Incarnation((rng.bits() >> 1) | 1),
            told: Watching::default(),
            suspects: Vec::new(),
            device_ops: 0,
            is_broken: false,
        });
    }
}

impl OsdRun {
    /// Starts the core once the store is open. True if it did. `now` and `unix`: milliseconds on its clock, seconds for all.
    pub fn start_core(&mut self, id: OsdId, (now, unix): (u64, u64), credentials: &Option<Credentials>) -> bool {
        if self.core.is_some() || !self.store.is_running() {
            return false;
        }
        let (cluster, incarnation, credentials) = (CLUSTER, self.incarnation, credentials.clone());
        self.core = Some(Osd::new(OsdOptions {
            id,
            cluster,
            incarnation,
            started: now,
            started_unix: unix,
            credentials,
            slow_operation_ms: SLOW_MS,
        }));
        true
    }
}

/// A client process.
pub struct ClientNode {
    /// Its node.
    pub node: NodeId,
    /// Counts its runs.
    pub life: u32,
    /// The core.
    pub core: Client,
    /// The image it works on.
    pub image: ImageId,
    /// What the core was told of the state.
    pub told: Watching,
    /// Operations without an answer.
    pub pending: BTreeSet<u64>,
    /// Operations it will still start.
    pub to_do: u32,
    /// The time for which it was last told to be woken.
    pub wake: Micros,
}

impl ClientNode {
    /// Tells this run of the client from all others.
    pub fn run_number(&self) -> u64 {
        u64::from(self.node.0) << 32 | u64::from(self.life)
    }

    /// A new run of a client.
    pub fn new(
        (node, life): (NodeId, u32),
        (size, block_size): (u64, u32),
        to_do: u32,
        credentials: Option<Credentials>,
        rng: &mut Rng,
    ) -> Self {
        let id = ClientId(rng.bits() | 1);
        let mut core = Client::new(ClientOptions { id, cluster: CLUSTER, credentials });
        let layer = LayerRef { pool: PoolId(1), lineage: LayerId(1), layer: LayerId(1) };
        let image = core.open(ImageOptions { layer, size, block_size, read_only: false });
        let told = Watching::default();
        Self { node, life, core, image, told, pending: BTreeSet::new(), to_do, wake: 0 }
    }
}
