//! Starts what the tests talk to, on free ports, and ends it with the test.

use std::net::TcpListener as StdListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cluster_state::{EmbeddedStore, connect, serve_etcd};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// An embedded store with its server.
pub struct Served {
    pub address: String,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Served {
    pub async fn start(store: EmbeddedStore, address: &str) -> Served {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let shutdown = async { stopped.await.unwrap_or_default() };
            serve_etcd(store, listener, shutdown).await.unwrap();
        });
        Served { address, stop, task }
    }

    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(10), self.task).await.expect("the server stops in time").unwrap();
    }
}

/// Whether a program is there. Without it a test is skipped, loudly; in CI it fails.
pub fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "`{program}` must be installed in CI");
        eprintln!("SKIPPED: `{program}` is not installed, nothing was tested");
    }
    found
}

/// Runs `etcdctl` against `address`; returns its output, panics if it fails.
pub fn etcdctl(address: &str, args: &[&str]) -> String {
    let output = etcdctl_command(address, args).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "etcdctl {args:?}: {text}{errors}");
    text
}

pub fn etcdctl_command(address: &str, args: &[&str]) -> Command {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").arg("--endpoints").arg(address).args(args);
    command
}

/// A child process that does not outlive the test.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A real etcd with one member.
pub struct Etcd {
    pub address: String,
    _process: Guard,
    _dir: tempfile::TempDir,
}

impl Etcd {
    pub async fn start() -> Option<Etcd> {
        if !is_installed("etcd") || !is_installed("etcdctl") {
            return None;
        }
        for _ in 0..5 {
            if let Some(etcd) = Etcd::try_start().await {
                return Some(etcd);
            }
        }
        panic!("etcd does not start");
    }

    /// Another test may take the free ports before etcd does; then it ends, and there is another try.
    async fn try_start() -> Option<Etcd> {
        let dir = tempfile::tempdir().unwrap();
        let free = || StdListener::bind("127.0.0.1:0").unwrap();
        let (client, peer) = (free(), free());
        let address = client.local_addr().unwrap().to_string();
        let (client_url, peer_url) = (format!("http://{address}"), format!("http://{}", peer.local_addr().unwrap()));
        drop((client, peer));
        let mut process = Command::new("etcd")
            .args(["--name", "m", "--unsafe-no-fsync", "--log-level", "fatal", "--data-dir"])
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("m={peer_url}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(Guard)
            .unwrap();
        let store = connect(&address).unwrap();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            if process.0.try_wait().unwrap().is_some() {
                return None;
            }
            if store.get("is it there").await.is_ok() {
                return Some(Etcd { address, _process: process, _dir: dir });
            }
        }
        None
    }

    /// Makes etcd ask for user and password.
    pub fn enable_auth(&self, password: &str) {
        etcdctl(&self.address, &["user", "add", &format!("root:{password}")]);
        etcdctl(&self.address, &["user", "grant-role", "root", "root"]);
        etcdctl(&self.address, &["auth", "enable"]);
    }
}
