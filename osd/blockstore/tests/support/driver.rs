//! A driver: moves requests from a store to the simulated device and completions back, in any order.

use std::collections::BTreeMap;

use blockstore::{DeviceOp, Durability, FormatOptions, Store, StoreConfig, StoreState, format};
use cluster_proto::shard::{ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::{OsdId, PoolId};

use super::Rng;
use super::device::Device;
use super::model::PG_COUNT;

pub struct InFlight {
    token: u64,
    id: u64,
    op: DeviceOp,
    flushed: Vec<u64>,
}

pub struct Driver {
    pub store: Store,
    pub device: Device,
    pub in_flight: Vec<InFlight>,
    pub outcomes: BTreeMap<u64, ShardOutcome>,
    /// Tags in the order their outcomes came.
    pub finished: Vec<u64>,
    pub next_tag: u64,
    pub rng: Rng,
    /// Stop (as in a crash) when the device has taken this many writes and flushes.
    pub stop_at: Option<u64>,
}

pub fn formatted(bytes: u64, log_bytes: u64, durability: Durability, store_id: u8) -> Device {
    let mut device = Device::new(bytes, durability);
    reformat(&mut device, log_bytes, store_id);
    device
}

pub fn reformat(device: &mut Device, log_bytes: u64, store_id: u8) {
    let options = FormatOptions {
        device_bytes: device.bytes,
        cluster: [1; 16],
        store: [store_id; 16],
        osd: OsdId(1),
        log_bytes: Some(log_bytes),
    };
    device.format(&format(&options).expect("large enough"));
}

pub fn config(durability: Durability) -> StoreConfig {
    StoreConfig { memory_bytes_max: 1 << 30, durability, discard_sectors_min: 0 }
}

impl Driver {
    /// A store that begins to open.
    pub fn start(device: Device, seed: u64) -> Driver {
        let config = config(device.durability);
        Driver::start_with(device, seed, config)
    }

    pub fn start_with(mut device: Device, seed: u64, config: StoreConfig) -> Driver {
        device.steps = 0;
        let store = Store::open(config, device.bytes);
        Driver {
            store,
            device,
            in_flight: Vec::new(),
            outcomes: BTreeMap::new(),
            finished: Vec::new(),
            next_tag: 1,
            rng: Rng(seed),
            stop_at: None,
        }
    }

    /// A store that runs.
    pub fn open(device: Device, seed: u64) -> Driver {
        let mut driver = Driver::start(device, seed);
        driver.run();
        assert_eq!(driver.store.state(), StoreState::Running);
        driver
    }

    pub fn submit(&mut self, op: ShardOp) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.store.submit(tag, op);
        tag
    }

    pub fn is_stopped(&self) -> bool {
        self.stop_at.is_some_and(|at| self.device.steps >= at)
    }

    /// Hands requests to the device.
    pub fn issue(&mut self) {
        while !self.is_stopped() {
            let Some(request) = self.store.poll_device() else { break };
            let flushed = if request.op == DeviceOp::Flush { self.device.completed() } else { Vec::new() };
            let id = self.device.submit(&request.op);
            self.in_flight.push(InFlight { token: request.token, id, op: request.op, flushed });
        }
        while let Some((tag, outcome)) = self.store.poll_outcome() {
            assert!(self.outcomes.insert(tag, outcome).is_none(), "tag {tag} ended twice");
            self.finished.push(tag);
        }
    }

    /// Completes one request, chosen at random.
    pub fn step(&mut self) -> bool {
        self.issue();
        if self.in_flight.is_empty() || self.is_stopped() {
            return false;
        }
        let at = self.rng.below(self.in_flight.len() as u64) as usize;
        let done = self.in_flight.swap_remove(at);
        let result = self.device.complete(done.id, &done.op, &done.flushed);
        self.store.handle_device(done.token, result);
        self.issue();
        true
    }

    /// Until nothing is in flight.
    pub fn run(&mut self) {
        while self.step() {}
        if self.store.is_running() {
            self.store.set_pool(PoolId(1), PG_COUNT);
        }
    }

    /// Submits and waits.
    pub fn call(&mut self, op: ShardOp) -> ShardOutcome {
        let tag = self.submit(op);
        self.run();
        self.outcomes.get(&tag).cloned().unwrap_or_else(|| panic!("op {tag} got no outcome"))
    }

    /// Until idle, with the idle calls of a real driver.
    pub fn rest(&mut self) {
        self.run();
        for _ in 0..3 {
            self.store.handle_idle();
            self.run();
        }
    }
}
