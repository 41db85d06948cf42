//! What takes longer than an operation: recovery, fail-over, start-up; and what memory stored data takes.

mod client;
mod failover;
mod history;
mod print;
mod recovery;
mod scatter;
mod store;
mod up;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::runtime::Handle;

use crate::library::Library;
use crate::load;
use crate::scheme::Scheme;

/// The parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// An OSD comes back, and an OSD is replaced: how fast, and what clients notice.
    Recovery,
    /// OSDs die and hang: how long clients wait.
    Failover,
    /// An OSD with a full store: memory per TiB, time to start.
    Store,
    /// 'blockyard up': time until an image is served.
    Up,
}

/// What is measured.
#[derive(Args)]
pub struct BehaviourOptions {
    /// Which parts.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "recovery,failover,store,up")]
    parts: Vec<Part>,
    /// Where the OSDs' files go. In memory, the software is what is measured.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// How data is kept, for recovery and fail-over. Pools of erasure code accept writes as long as any shards can be rebuilt.
    #[arg(long, value_delimiter = ',', default_value = "3,2+1")]
    schemes: Vec<Scheme>,
    /// Size of the image that is recovered. Bytes.
    #[arg(long, default_value_t = 1 << 30)]
    size: u64,
    /// What is stored for memory and start-up. Bytes.
    #[arg(long, default_value_t = 4 << 30)]
    stored: u64,
    /// How often an OSD is killed.
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// How often an OSD hangs.
    #[arg(long, default_value_t = 5)]
    hangs: u32,
    /// Starts of each kind.
    #[arg(long, default_value_t = 3)]
    starts: usize,
    /// Operations per second of the client that watches: 4 KiB each, half reads, half writes, at random places.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Also write the figures to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What came of it. Times in the units that their names end in.
#[derive(Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Figures {
    recovery: Vec<recovery::Recovery>,
    failover: Vec<failover::Failover>,
    memory: Vec<store::Memory>,
    starts: Vec<store::Start>,
    up: Vec<up::UpStart>,
}

/// Where and with what it is measured.
struct Setting<'a> {
    options: &'a BehaviourOptions,
    /// Below which everything is kept.
    dir: &'a Path,
    runtime: &'a Handle,
}

impl Setting<'_> {
    /// An open image.
    fn open(&self, etcd: &str, image: &str) -> Result<Library> {
        Library::open(self.runtime, etcd, image, load::payload())
    }

    /// Time between operations of the client that watches.
    fn pace(&self) -> Duration {
        Duration::from_secs(1) / self.options.rate.max(1)
    }
}

/// Measures, prints, and writes what is asked for.
///
/// # Errors
/// The cluster failed an operation, or a file cannot be written.
///
/// # Panics
/// The cluster did not get where it should in time; with what it said.
pub fn run(options: &BehaviourOptions, runtime: &Handle) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("blockyard-bench").tempdir_in(&options.dir)?;
    let setting = Setting { options, dir: dir.path(), runtime };
    let mut figures = Figures::default();
    for part in &options.parts {
        match part {
            Part::Recovery => figures.recovery = recovery::measure(&setting)?,
            Part::Failover => figures.failover = failover::measure(&setting)?,
            Part::Store => (figures.memory, figures.starts) = store::measure(&setting)?,
            Part::Up => figures.up = up::measure(&setting)?,
        }
    }
    print::print(&figures);
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&figures)?)?;
    }
    Ok(())
}
