//! A cluster of many processes: etcd, monitors, OSDs and a gateway, as on many machines.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::etcd::{Certificates, Etcd};
use crate::netns::Network;
use crate::process::Process;
use crate::{Done, Nbd, blockyard, eventually, run, scratch, scratch_in};

/// Longest start of a daemon. Tests run on busy machines.
const START_MAX: Duration = Duration::from_secs(20);

/// What to start.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// OSDs, numbered from 1, each a host of its own.
    pub osds: u32,
    /// Size of their files.
    pub osd_size: String,
    /// Monitors.
    pub monitors: u32,
    /// Etcd has TLS and asks for a certificate.
    pub tls: bool,
    /// Each OSD, monitor and gateway is in a network namespace of its own.
    pub network: bool,
    /// Further options of every OSD.
    pub osd_options: Vec<String>,
    /// Where its folder is made; else where those of all tests are.
    pub folder: Option<PathBuf>,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self {
            osds: 3,
            osd_size: "1G".into(),
            monitors: 1,
            tls: false,
            network: false,
            osd_options: Vec::new(),
            folder: None,
        }
    }
}

/// A cluster of processes. Nothing is left of it when it is dropped.
pub struct Fleet {
    /// Running daemons by name: `osd.1`, `mon.1`, `gateway`. Dropped first.
    daemons: BTreeMap<String, Process>,
    /// Its state store.
    pub etcd: Etcd,
    /// Options by which every command is let in.
    access: Vec<String>,
    nbd: Option<SocketAddr>,
    options: FleetOptions,
    /// The network between the daemons, if it can be cut.
    pub network: Option<Network>,
    folder: TempDir,
}

impl Fleet {
    /// Starts etcd, creates the cluster, and starts everything. There is no pool yet.
    ///
    /// # Panics
    /// If something is not ready in time.
    pub fn start(options: FleetOptions) -> Self {
        let mut fleet = Self::start_etcd(options);
        fleet.blockyard(&["init"]).ok();
        for id in 1..=fleet.options.monitors {
            fleet.start_monitor(id);
        }
        for id in 1..=fleet.options.osds {
            fleet.prepare_osd(id);
            fleet.start_osd(id);
        }
        fleet.start_gateway();
        fleet
    }

    /// The same with a pool `default` of this redundancy, like `["--replicas", "3"]`, and an image `demo`.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_with_pool(options: FleetOptions, redundancy: &[&str], image_size: &str) -> Self {
        let fleet = Self::start(options);
        fleet.create("demo", image_size, &[&["--pg-count", "32"], redundancy].concat());
        fleet
    }

    /// Creates pool `default` with these options and an image, and waits until it is exported.
    ///
    /// # Panics
    /// If something is refused or not there in time.
    pub fn create(&self, image: &str, size: &str, pool: &[&str]) {
        self.blockyard(&[&["pool", "create", "default"], pool].concat()).ok();
        self.blockyard(&["image", "create", image, "--size", size]).ok();
        self.wait_active(30);
        eventually(20, "the image is exported", || Nbd::connect(self.nbd(), image).ok());
    }

    /// Only etcd.
    ///
    /// # Panics
    /// If it does not serve.
    pub fn start_etcd(options: FleetOptions) -> Self {
        let folder = options.folder.as_deref().map_or_else(scratch, scratch_in);
        let network = options.network.then(Network::make);
        let address = network.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), Network::outside);
        let certificates = options.tls.then(|| Certificates::make(folder.path()));
        let etcd = Etcd::start(folder.path(), address, certificates.clone());
        let mut access = vec!["--cluster".to_owned(), etcd.endpoint()];
        if let Some(files) = certificates {
            for (option, name) in [("--etcd-ca", "ca.pem"), ("--etcd-cert", "client.pem"), ("--etcd-key", "client.key")]
            {
                access.extend([option.to_owned(), files.path(name)]);
            }
            access.extend(["--etcd-server-name".to_owned(), "etcd.test".to_owned()]);
        }
        Self { daemons: BTreeMap::new(), etcd, access, nbd: None, options, network, folder }
    }

    /// Adds options to all further commands.
    pub fn add_access(&mut self, options: &[&str]) {
        self.access.extend(options.iter().map(|option| (*option).to_owned()));
    }

    /// A path for files of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// File of an OSD.
    pub fn osd_file(&self, id: u32) -> PathBuf {
        self.path(&format!("osd.{id}.store"))
    }

    fn osd_file_name(&self, id: u32) -> String {
        self.osd_file(id).to_str().expect("a path of characters").to_owned()
    }

    /// Makes an empty OSD of a new file.
    ///
    /// # Panics
    /// If that is refused, or it gets another number.
    #[track_caller]
    pub fn prepare_osd(&mut self, id: u32) {
        let (file, host) = (self.osd_file_name(id), format!("host{id}"));
        let line = ["osd", "prepare", &file, "--size", &self.options.osd_size, "--host", &host, "--json"];
        let made = self.blockyard(&line).json();
        assert_eq!(made["id"], id, "{made}");
    }

    /// Starts a daemon and returns what it says when it is ready.
    ///
    /// # Panics
    /// With its messages, if it is not ready in 20 s.
    #[track_caller]
    pub fn start_daemon(&mut self, name: &str, args: &[&str]) -> Value {
        self.start_daemon_unwaited(name, args);
        self.wait_ready(name)
    }

    /// Starts a daemon.
    ///
    /// # Panics
    /// If it runs already.
    #[track_caller]
    pub fn start_daemon_unwaited(&mut self, name: &str, args: &[&str]) {
        assert!(!self.daemons.contains_key(name), "{name} runs already");
        let mut line = self.access.clone();
        line.push("--json".into());
        line.extend(args.iter().map(|arg| (*arg).to_owned()));
        let netns = self.network.as_mut().map(|network| network.node(name));
        let process = Process::start(self.folder.path(), name, &blockyard(), &line, netns.as_deref());
        self.daemons.insert(name.to_owned(), process);
    }

    /// Waits until a daemon is ready.
    ///
    /// # Panics
    /// With its messages, if it is not in 20 s.
    #[track_caller]
    pub fn wait_ready(&mut self, name: &str) -> Value {
        let line = self.daemon(name).wait_line(START_MAX);
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{name} said {line:?}, which is no JSON: {e}"))
    }

    /// Starts a prepared OSD.
    ///
    /// # Panics
    /// As [`Self::start_daemon`].
    #[track_caller]
    pub fn start_osd(&mut self, id: u32) -> Value {
        self.start_osd_unwaited(id);
        self.wait_ready(&format!("osd.{id}"))
    }

    /// Starts a prepared OSD and does not wait until it is ready.
    ///
    /// # Panics
    /// If it runs already.
    #[track_caller]
    pub fn start_osd_unwaited(&mut self, id: u32) {
        let file = self.osd_file_name(id);
        let options = self.options.osd_options.clone();
        let metrics = self.metrics_address(&format!("osd.{id}"));
        let line = ["osd", "run", &file, "--metrics", &metrics].into_iter().chain(options.iter().map(String::as_str));
        self.start_daemon_unwaited(&format!("osd.{id}"), &line.collect::<Vec<_>>());
    }

    /// Starts a monitor.
    ///
    /// # Panics
    /// As [`Self::start_daemon`].
    #[track_caller]
    pub fn start_monitor(&mut self, id: u32) -> Value {
        let name = format!("mon.{id}");
        let metrics = self.metrics_address(&name);
        self.start_daemon(&name, &["mon", "--name", &name, "--metrics", &metrics])
    }

    /// Starts the gateway, on the address it had before if there was one.
    ///
    /// # Panics
    /// As [`Self::start_daemon`].
    #[track_caller]
    pub fn start_gateway(&mut self) -> Value {
        let metrics = self.metrics_address("gateway");
        let nbd = self.nbd.map_or_else(|| metrics.clone(), |nbd| nbd.to_string());
        let ready = self.start_daemon("gateway", &["gateway", "--nbd", &nbd, "--metrics", &metrics]);
        self.nbd = ready["nbd"][0].as_str().and_then(|nbd| nbd.parse().ok());
        ready
    }

    /// Any port on the address of a daemon.
    fn metrics_address(&mut self, name: &str) -> String {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let ip = self.network.as_mut().map_or(local, |network| network.address(name));
        SocketAddr::new(ip, 0).to_string()
    }

    /// A running daemon.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn daemon(&mut self, name: &str) -> &mut Process {
        self.daemons.get_mut(name).unwrap_or_else(|| panic!("{name} does not run"))
    }

    /// The running daemons.
    pub fn daemons(&self) -> impl Iterator<Item = (&str, &Process)> {
        self.daemons.iter().map(|(name, process)| (name.as_str(), process))
    }

    /// Takes a running daemon out.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn take(&mut self, name: &str) -> Process {
        self.daemons.remove(name).unwrap_or_else(|| panic!("{name} does not run"))
    }

    /// Kills a daemon as a crash would.
    #[track_caller]
    pub fn kill(&mut self, name: &str) {
        self.take(name).kill();
    }

    /// Stops a daemon in good order.
    #[track_caller]
    pub fn stop(&mut self, name: &str) {
        self.take(name).stop();
    }

    /// Runs a `blockyard` command on this cluster.
    pub fn blockyard(&self, args: &[&str]) -> Done {
        run(blockyard(), self.access.iter().map(String::as_str).chain(args.iter().copied()))
    }

    /// `blockyard status --json`. Tries again while the state store is too busy to answer.
    pub fn status(&self) -> Value {
        const UNREACHABLE: i32 = 3;
        let mut done = self.blockyard(&["status", "--json"]);
        for _ in 0..5 {
            if done.status == UNREACHABLE {
                done = self.blockyard(&["status", "--json"]);
            }
        }
        done.json()
    }

    /// Waits until all PGs serve and all data is where it should be.
    ///
    /// # Panics
    /// With the status, if they do not within `seconds`.
    #[track_caller]
    pub fn wait_active(&self, seconds: u64) {
        self.wait_status(seconds, "all placement groups serve, with all data", |status| {
            let pgs = &status["pgs"];
            pgs["total"].as_u64() > Some(0) && pgs["active"] == pgs["total"]
        });
    }

    /// Waits until all PGs serve, though some data may not be where it should be.
    ///
    /// # Panics
    /// With the status, if they do not within `seconds`.
    #[track_caller]
    pub fn wait_served(&self, seconds: u64) {
        self.wait_status(seconds, "all placement groups serve, degraded or not", |status| {
            let count = |state: &str| status["pgs"][state].as_u64().unwrap_or_default();
            count("total") > 0 && count("active") + count("degraded") == count("total")
        });
    }

    /// Waits until so many OSDs run and all PGs have got used to lacking the others.
    ///
    /// # Panics
    /// With the status, if they do not within `seconds`.
    #[track_caller]
    pub fn wait_degraded(&self, seconds: u64, up: u32) {
        self.wait_status(seconds, "the others serve", |status| {
            status["osds"]["up"] == up && status["pgs"]["degraded"] == status["pgs"]["total"]
        });
    }

    /// Waits until the status is as wanted.
    ///
    /// # Panics
    /// With the status, if it is not within `seconds`.
    #[track_caller]
    pub fn wait_status(&self, seconds: u64, what: &str, is_wanted: impl Fn(&Value) -> bool) {
        let end = std::time::Instant::now() + Duration::from_secs(seconds);
        loop {
            let status = self.status();
            if is_wanted(&status) {
                return;
            }
            assert!(std::time::Instant::now() < end, "waited {seconds} s in vain: {what}\n{status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Address of the NBD server.
    ///
    /// # Panics
    /// If there was no gateway yet.
    pub fn nbd(&self) -> SocketAddr {
        self.nbd.expect("a gateway was started")
    }

    /// A connection to an export.
    ///
    /// # Panics
    /// If there is none to be had.
    #[track_caller]
    pub fn connect(&self, export: &str) -> Nbd {
        Nbd::connect(self.nbd(), export).unwrap_or_else(|e| panic!("cannot connect to {export}: {e}"))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (name, daemon) in &self.daemons {
                let log = daemon.log();
                let tail = log.len().saturating_sub(6000);
                let tail = (tail..log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(log.len());
                eprintln!("---- what {name} said last:\n{}", &log[tail..]);
            }
        }
    }
}
