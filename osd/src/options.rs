//! Settings of one OSD process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use blockstore::Durability;
use cluster_io::DiskInfo;
use cluster_proto::auth::Credentials;
use cluster_proto::{OsdId, Uuid};
use cluster_state::StateStore;

use crate::{Error, ErrorKind};

/// When a write to the device counts as durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DurabilityOption {
    /// After a flush, unless the device says that it has no volatile cache (or is in memory).
    #[default]
    Auto,
    /// When the device says it is written. For devices with a protected cache that does not say so.
    WriteThrough,
    /// After a flush.
    Flush,
}

impl DurabilityOption {
    pub(crate) fn resolve(self, disk: &DiskInfo) -> Durability {
        match self {
            DurabilityOption::Flush => Durability::Flush,
            DurabilityOption::WriteThrough => Durability::WriteThrough,
            DurabilityOption::Auto if disk.flush_needed => Durability::Flush,
            DurabilityOption::Auto => Durability::WriteThrough,
        }
    }
}

impl FromStr for DurabilityOption {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Ok(match text {
            "auto" => Self::Auto,
            "write-through" => Self::WriteThrough,
            "flush" => Self::Flush,
            _ => {
                let text = format!("durability is {text:?}: give auto, write-through or flush");
                return Err(Error::new(ErrorKind::Invalid, text));
            }
        })
    }
}

/// What an OSD is told at start.
#[derive(Clone)]
pub struct OsdOptions {
    /// The prepared file or block device.
    pub path: PathBuf,
    /// Number of the OSD; must be that of the store on `path`.
    pub id: OsdId,
    /// The cluster; must be that of the store on `path`.
    pub cluster: Uuid,
    /// The cluster's key, if it has one: without it whoever reaches the OSD is served.
    pub credentials: Option<Credentials>,
    /// Where to listen; port 0 means any free one.
    pub listen: SocketAddr,
    /// Address under which others reach it, if it is not the one it listens on; port 0 stands for that one's port.
    pub advertise: Option<SocketAddr>,
    /// The cluster state.
    pub state: Arc<dyn StateStore>,
    /// Where the control plane runs. It must have time enabled and outlive the OSD.
    pub runtime: tokio::runtime::Handle,
    /// When a write counts as durable.
    pub durability: DurabilityOption,
    /// Memory of the store, above which new objects are refused. Bytes; default 1 GiB.
    pub memory_bytes_max: u64,
    /// Freed runs of at least so many 4 KiB sectors are given back to the device; 0 = never. Default 256.
    pub discard_sectors_min: u32,
    /// How long others take a dead OSD for alive. Seconds, 1 to 60; default 5.
    pub lease_ttl_s: u32,
    /// Operations that take so long are logged, with where the time went; 0: none. Milliseconds, at most an hour; default 1,000.
    pub slow_operation_ms: u32,
    /// How long the OSD looks for work before it sleeps: latency for processor time. At most 1 s; default 0.
    pub busy_poll: Duration,
}

impl OsdOptions {
    /// The defaults of everything that has one.
    pub fn new(
        path: impl Into<PathBuf>,
        id: OsdId,
        cluster: Uuid,
        listen: SocketAddr,
        state: Arc<dyn StateStore>,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        Self {
            path: path.into(),
            id,
            cluster,
            credentials: None,
            listen,
            advertise: None,
            state,
            runtime,
            durability: DurabilityOption::Auto,
            memory_bytes_max: 1 << 30,
            discard_sectors_min: 256,
            lease_ttl_s: 5,
            slow_operation_ms: 1_000,
            busy_poll: Duration::ZERO,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let invalid = |text: String| Err(Error::new(ErrorKind::Invalid, text));
        if !(1..=60).contains(&self.lease_ttl_s) {
            return invalid(format!("the lease lasts {} s: give 1 to 60", self.lease_ttl_s));
        }
        if self.busy_poll > Duration::from_secs(1) {
            return invalid(format!("it polls for {:?} before it sleeps: give at most 1 s", self.busy_poll));
        }
        if self.slow_operation_ms > 3_600_000 {
            return invalid(format!("operations are slow after {} ms: give at most 3600000", self.slow_operation_ms));
        }
        if self.advertised(self.listen).ip().is_unspecified() {
            let listen = self.listen;
            return invalid(format!("others cannot connect to {listen}: say under which address they reach this OSD"));
        }
        Ok(())
    }

    /// What others connect to, given where we listen.
    pub(crate) fn advertised(&self, local: SocketAddr) -> SocketAddr {
        let mut address = self.advertise.unwrap_or(local);
        if address.port() == 0 {
            address.set_port(local.port());
        }
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durability_follows_the_device_unless_told() {
        let cached = DiskInfo {
            bytes: 1 << 30,
            is_block_device: true,
            logical_block: 512,
            flush_needed: true,
            direct: true,
            discard: false,
        };
        let plain = DiskInfo { flush_needed: false, ..cached };
        let resolve = |text: &str, disk| text.parse::<DurabilityOption>().expect(text).resolve(disk);
        assert_eq!(resolve("auto", &cached), Durability::Flush);
        assert_eq!(resolve("auto", &plain), Durability::WriteThrough);
        assert_eq!(resolve("write-through", &cached), Durability::WriteThrough);
        assert_eq!(resolve("flush", &plain), Durability::Flush);
        assert_eq!("fast".parse::<DurabilityOption>().map_err(|e| e.kind()), Err(ErrorKind::Invalid));
    }
}
