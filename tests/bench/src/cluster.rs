//! A cluster to measure: `blockyard up` in a process of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Size of an OSD's file.
const OSD_BYTES: u64 = 2 << 30;

/// The image that is measured.
pub const IMAGE: &str = "bench";

#[derive(Deserialize)]
struct Ready {
    etcd: String,
    metrics: SocketAddr,
    nbd: SocketAddr,
}

/// How the cluster keeps data; it has as many OSDs as that takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheme {
    /// So many copies.
    Copies(u8),
    /// Erasure code: data and parity shards.
    Coded(u8, u8),
}

impl Scheme {
    /// How many OSDs it has.
    pub fn osds(self) -> u8 {
        match self {
            Scheme::Copies(copies) => copies,
            Scheme::Coded(data, parity) => data + parity,
        }
    }

    /// Options of `blockyard up`.
    fn options(self) -> Vec<String> {
        let option = if matches!(self, Scheme::Copies(_)) { "--replicas" } else { "--ec" };
        vec!["--osds".into(), self.osds().to_string(), option.into(), self.to_string()]
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Scheme::Copies(copies) => copies.fmt(f),
            Scheme::Coded(data, parity) => write!(f, "{data}+{parity}"),
        }
    }
}

impl std::str::FromStr for Scheme {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text.split_once('+') {
            None => Ok(Scheme::Copies(text.parse()?)),
            Some((data, parity)) => Ok(Scheme::Coded(data.parse()?, parity.parse()?)),
        }
    }
}

/// A running cluster; stopped and removed when dropped.
pub struct Cluster {
    child: Child,
    dir: PathBuf,
    /// Endpoint of its state store.
    pub etcd: String,
    /// Its NBD door.
    pub nbd: SocketAddr,
    /// Its Prometheus endpoint.
    pub metrics: SocketAddr,
}

impl Cluster {
    /// Starts one below `dir`.
    ///
    /// # Errors
    /// It was not ready in time; its log is named.
    pub fn start(dir: &Path, scheme: Scheme, size: u64) -> Result<Self> {
        let binary = std::env::current_exe()?.with_file_name("blockyard");
        let data = dir.join(scheme.to_string());
        let log = dir.join(format!("{scheme}.log"));
        let child = Command::new(&binary)
            .args(["up", "--ports", "auto", "--data-dir"])
            .arg(&data)
            .args(scheme.options())
            .args(["--osd-size", &OSD_BYTES.to_string(), "--image", &format!("{IMAGE}={size}")])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .with_context(|| format!("cannot start {}: build it with 'cargo build --release'", binary.display()))?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut cluster = Self { child, dir: data, etcd: String::new(), nbd: nowhere, metrics: nowhere };
        let end = Instant::now() + Duration::from_secs(30);
        let ready = loop {
            if let Ok(text) = std::fs::read(cluster.dir.join("up.json")) {
                break serde_json::from_slice::<Ready>(&text)?;
            }
            if Instant::now() > end || cluster.child.try_wait()?.is_some() {
                bail!("the cluster did not start: see {}", log.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        (cluster.etcd, cluster.nbd, cluster.metrics) = (ready.etcd, ready.nbd, ready.metrics);
        cluster.allocate()?;
        Ok(cluster)
    }

    /// Gives the OSDs' files all their blocks: a device does not have to find any when it is written to either.
    fn allocate(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.metadata()?.len() == OSD_BYTES {
                let done = Command::new("fallocate").args(["-l", &OSD_BYTES.to_string()]).arg(&path).status()?;
                anyhow::ensure!(done.success(), "fallocate of {} failed", path.display());
            }
        }
        Ok(())
    }

    /// Process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
