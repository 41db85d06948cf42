//! A cluster with a gateway, and ways to talk to it.
#![allow(dead_code)]

#[path = "../../../cluster/api/tests/support/mod.rs"]
pub mod cluster;
pub mod nbd;
pub mod tools;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cluster::Cluster;
use gateway::{GatewayHandle, GatewayOptions, GatewayStats, spawn};

pub struct Gateway {
    pub handle: GatewayHandle,
    pub address: SocketAddr,
    pub socket: PathBuf,
}

impl Gateway {
    pub fn start(cluster: &Cluster) -> Self {
        Self::start_with(cluster, |options| options)
    }

    pub fn start_with(cluster: &Cluster, change: impl FnOnce(GatewayOptions) -> GatewayOptions) -> Self {
        let socket = cluster.path("nbd.sock");
        let options = GatewayOptions::new(cluster.id, cluster.store(), cluster.runtime.handle().clone());
        let options = GatewayOptions {
            nbd_tcp: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            nbd_unix: vec![socket.clone()],
            lease_ttl_s: 1,
            ..options
        };
        let handle = spawn(change(options)).expect("it starts");
        let address = handle.nbd_addresses()[0];
        Self { handle, address, socket }
    }

    pub fn tcp(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.address)
    }

    pub fn unix(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    pub fn both(&self, export: &str) -> [String; 2] {
        [self.tcp(export), self.unix(export)]
    }

    pub fn client(&self, export: &str) -> nbd::Client {
        nbd::Client::connect(self.address, export)
    }

    pub fn stop(self) {
        self.handle.stop();
        self.handle.join().expect("no failure");
    }

    /// Waits until the published statistics are as wanted.
    pub fn wait(&self, what: &str, is_so: impl Fn(&GatewayStats) -> bool) {
        eventually(what, || is_so(&self.handle.stats()));
    }
}

pub fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}
