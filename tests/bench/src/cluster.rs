//! A cluster to measure: `blockyard up` in a process of its own, or many processes around etcd.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::ptr::null_mut;

use anyhow::{Context, Result, ensure};
use e2e::{Fleet, FleetOptions};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use serde_json::Value;

use crate::program::require;
use crate::scheme::Scheme;

/// The image that is measured.
pub const IMAGE: &str = "bench";

/// Smallest file of an OSD. Bytes.
const OSD_BYTES_MIN: u64 = 512 << 20;

/// A running cluster; stopped and removed when dropped.
pub enum Cluster {
    /// Everything in one process.
    Up(e2e::Cluster),
    /// Each daemon is a process.
    Fleet(Box<Fleet>),
}

impl Cluster {
    /// Starts one with its files below `dir`, and an image of `size` bytes; with real etcd if `etcd`.
    ///
    /// # Errors
    /// The OSDs' files do not get their blocks, or a program is missing.
    ///
    /// # Panics
    /// It was not ready in time; with what it said.
    pub fn start(dir: &Path, scheme: Scheme, size: u64, etcd: bool, busy_poll_us: u32) -> Result<Self> {
        let bytes = (2 * scheme.share(size)).max(OSD_BYTES_MIN);
        if etcd {
            let fleet = fleet(dir, scheme.osds().into(), bytes)?;
            let options = scheme.options();
            fleet.create(IMAGE, &size.to_string(), &options.each_ref().map(String::as_str));
            return Ok(Self::Fleet(Box::new(fleet)));
        }
        let (osds, image, [scheme_option, scheme_value]) =
            (scheme.osds().to_string(), format!("{IMAGE}={size}"), scheme.options());
        let osd_size = bytes.to_string();
        let polling = format!("--busy-poll-us={busy_poll_us}");
        let options =
            ["--osds", &osds, &scheme_option, &scheme_value, "--osd-size", &osd_size, "--image", &image, &polling];
        let cluster = e2e::Cluster::start_in(e2e::scratch_in(dir), &options);
        (1..=scheme.osds().into()).try_for_each(|id| allocate(&cluster.osd_file(id), bytes))?;
        Ok(Self::Up(cluster))
    }

    /// Endpoint of its state store.
    pub fn etcd(&self) -> String {
        match self {
            Self::Up(cluster) => cluster.etcd(),
            Self::Fleet(fleet) => fleet.etcd.endpoint(),
        }
    }

    /// Its NBD door.
    pub fn nbd(&self) -> SocketAddr {
        match self {
            Self::Up(cluster) => cluster.nbd(),
            Self::Fleet(fleet) => fleet.nbd(),
        }
    }

    /// Prometheus endpoints of its OSDs.
    ///
    /// # Errors
    /// A daemon has none.
    pub fn metrics(&self) -> Result<Vec<SocketAddr>> {
        match self {
            Self::Up(cluster) => Ok(vec![metrics_address(cluster.endpoints())?]),
            Self::Fleet(fleet) => osd_metrics(fleet),
        }
    }

    /// Its processes.
    pub fn pids(&self) -> Vec<u32> {
        match self {
            Self::Up(cluster) => vec![cluster.pid()],
            Self::Fleet(fleet) => fleet.daemons().map(|(_, daemon)| daemon.pid()).chain([fleet.etcd.pid()]).collect(),
        }
    }
}

/// etcd, a monitor, a gateway, and so many OSDs with files of `bytes`, which have all their blocks. No pool yet.
///
/// # Errors
/// The files do not get their blocks, or a program is missing.
///
/// # Panics
/// Something was not ready in time; with what it said.
pub fn fleet(dir: &Path, osds: u32, bytes: u64) -> Result<Fleet> {
    require("etcd", "Debian has it in etcd-server")?;
    require("etcdctl", "Debian has it in etcd-client")?;
    let (osd_size, folder) = (bytes.to_string(), Some(dir.to_owned()));
    let fleet = Fleet::start(FleetOptions { osds, osd_size, folder, ..FleetOptions::default() });
    (1..=osds).try_for_each(|id| allocate(&fleet.osd_file(id), bytes))?;
    Ok(fleet)
}

/// Gives an OSD's file all its blocks, and the memory below them: a device does not have to find any when it is written
/// to either. On a virtual machine that returns free memory to its host, the first write to a page costs ten
/// microseconds and more.
///
/// # Errors
/// There is no room.
pub fn allocate(file: &Path, bytes: u64) -> Result<()> {
    let done = Command::new("fallocate").args(["-l", &bytes.to_string()]).arg(file).status()?;
    ensure!(done.success(), "fallocate of {bytes} bytes for {} failed", file.display());
    let open = OpenOptions::new().read(true).write(true).open(file)?;
    populate(&open, usize::try_from(bytes)?).with_context(|| format!("no memory for {}", file.display()))
}

/// Makes the kernel write to all pages of a file, without changing what they hold.
#[allow(unsafe_code)]
fn populate(file: &File, bytes: usize) -> io::Result<()> {
    // SAFETY: a new mapping, wherever the kernel likes; nobody looks at what is in it, and it is unmapped at the end.
    unsafe {
        let pages = mmap(null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)?;
        let done = madvise(pages, bytes, Advice::LinuxPopulateWrite);
        munmap(pages, bytes)?;
        Ok(done?)
    }
}

/// Prometheus endpoints of the OSDs that run.
///
/// # Errors
/// One has none.
pub fn osd_metrics(fleet: &Fleet) -> Result<Vec<SocketAddr>> {
    let osds = fleet.daemons().filter(|(name, _)| name.starts_with("osd."));
    let ready = osds.map(|(name, daemon)| daemon.first_line().with_context(|| format!("{name} is not ready")));
    ready.map(|line| metrics_address(&serde_json::from_str(&line?)?)).collect()
}

fn metrics_address(ready: &Value) -> Result<SocketAddr> {
    let address = ready["metrics"].as_str().and_then(|address| address.parse().ok());
    address.with_context(|| format!("no metrics in {ready}"))
}
