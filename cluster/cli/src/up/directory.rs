//! The data directory: who uses it, where what lies in it, and how others find the endpoints.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster_proto::OsdId;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::error::{CliError, Exit, io_failed};

/// How long a killed predecessor may take to vanish.
const PREDECESSOR_MAX: Duration = Duration::from_secs(1);
/// Longest path of a Unix socket. Bytes, as the kernel limits it.
const SOCKET_PATH_MAX: usize = 107;

/// Content of `DIR/up.json`, a contract with scripts: where a running cluster serves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Endpoints {
    /// The process.
    pub pid: u32,
    /// Its state store.
    pub etcd: String,
    /// NBD over TCP.
    pub nbd: String,
    /// NBD over a Unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd_socket: Option<PathBuf>,
    /// Prometheus metrics, at `/metrics`.
    pub metrics: String,
    /// Names under which images were exported at the start.
    pub images: Vec<String>,
}

impl Endpoints {
    /// Name of the file in the data directory.
    pub const FILE: &str = "up.json";
}

/// The data directory, locked.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Holds the lock as long as it is open.
    _lock: File,
}

impl Directory {
    /// Creates the directory if need be, and takes it for this process alone.
    pub async fn open(path: &Path) -> Result<Directory, CliError> {
        create(path)?;
        let lock_path = path.join("lock");
        let how = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path);
        let mut lock = how.map_err(|e| io_failed("write to", path, &e))?;
        take(&mut lock, path).await?;
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(|e| io_failed("write to", &lock_path, &e))?;
        let path = path.canonicalize().map_err(|e| io_failed("look at", path, &e))?;
        let directory = Directory { path, _lock: lock };
        directory.withdraw();
        Ok(directory)
    }

    /// Where the state store lies.
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    /// The file of an OSD.
    pub fn osd(&self, id: OsdId) -> PathBuf {
        self.path.join(format!("osd.{id}"))
    }

    /// Unix socket for NBD, if its path is not too long for one.
    pub fn nbd_socket(&self) -> Option<PathBuf> {
        Some(self.path.join("nbd.sock")).filter(|path| path.as_os_str().len() <= SOCKET_PATH_MAX)
    }

    /// Writes the endpoints, all at once: whoever sees the file sees all of it.
    pub fn announce(&self, endpoints: &Endpoints) -> Result<(), CliError> {
        let path = self.path.join(Endpoints::FILE);
        let unfinished = self.path.join("up.json.unfinished");
        let json = serde_json::to_vec(endpoints)
            .map_err(|e| CliError::failed(format!("cannot write {}: {e}", path.display())))?;
        std::fs::write(&unfinished, json)
            .and_then(|()| std::fs::rename(&unfinished, &path))
            .map_err(|e| io_failed("write", &path, &e))
    }

    /// Removes the endpoints. Those of a killed predecessor go the same way.
    pub fn withdraw(&self) {
        // If there are none, that is what we want.
        let _ = std::fs::remove_file(self.path.join(Endpoints::FILE));
    }
}

fn create(path: &Path) -> Result<(), CliError> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(_) if path.is_dir() => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(CliError::failed(format!(
            "cannot create the data directory {}: the directory above it does not exist: create that first",
            path.display()
        ))),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(CliError::failed(format!(
            "cannot use {} as data directory: it is not a directory: name another with --data-dir",
            path.display()
        ))),
        Err(e) => Err(io_failed("create the data directory", path, &e)),
    }
}

/// Takes the lock. What a killed predecessor held is free in a moment.
async fn take(lock: &mut File, path: &Path) -> Result<(), CliError> {
    let deadline = Instant::now() + PREDECESSOR_MAX;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(io_failed("lock", path, &e)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Err(in_use(lock, path)),
            Err(TryLockError::WouldBlock) => sleep(Duration::from_millis(50)).await,
        }
    }
}

fn in_use(lock: &mut File, path: &Path) -> CliError {
    let mut pid = String::new();
    // The number only makes the message better.
    let _ = lock.read_to_string(&mut pid);
    let process = match pid.trim() {
        "" => "another process".to_owned(),
        pid => format!("process {pid}"),
    };
    CliError::new(
        Exit::Conflict,
        format!(
            "a cluster runs on {} already ({process}): use it with 'blockyard --cluster {0} ..', stop it, or name another \
             --data-dir",
            path.display()
        ),
    )
}
