//! `blockyard up` as a process, in a data directory of its own.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Done, Nbd, blockyard, eventually, run};

/// Longest start. The promise is 5 s on a quiet machine; tests run on busy ones.
const START_MAX: Duration = Duration::from_secs(15);
/// Longest stop.
const STOP_MAX: Duration = Duration::from_secs(15);

/// A folder that vanishes with the value, where there is room.
///
/// # Panics
/// If there is none.
pub fn scratch() -> TempDir {
    scratch_in(&std::env::var_os("E2E_DIR").map_or_else(std::env::temp_dir, PathBuf::from))
}

/// The same in a folder of one's choice.
///
/// # Panics
/// If none can be made there.
pub fn scratch_in(base: &Path) -> TempDir {
    let made = tempfile::Builder::new().prefix("blockyard-").tempdir_in(base);
    made.unwrap_or_else(|e| panic!("{}: {e}", base.display()))
}

/// A running `blockyard up`.
struct Process {
    child: Child,
    endpoints: Value,
}

/// A cluster. Nothing is left of it when it is dropped.
pub struct Cluster {
    folder: TempDir,
    options: Vec<String>,
    process: Option<Process>,
    /// How long the last start took.
    pub started_in: Duration,
}

impl Cluster {
    /// With everything as it is without options, but free ports.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With these options.
    ///
    /// # Panics
    /// If it is not ready in 15 s.
    pub fn start_with(options: &[&str]) -> Self {
        Self::start_in(scratch(), options)
    }

    /// With its data in a folder, which goes with it.
    ///
    /// # Panics
    /// As [`Self::start_with`].
    pub fn start_in(folder: TempDir, options: &[&str]) -> Self {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut cluster = Self { folder, options, process: None, started_in: Duration::ZERO };
        cluster.start_again();
        cluster
    }

    /// Starts it where it is stopped.
    ///
    /// # Panics
    /// As [`Self::start_with`].
    pub fn start_again(&mut self) {
        self.start_unwaited();
        let begin = Instant::now();
        let end = begin + START_MAX;
        loop {
            if let Some(endpoints) = self.announced() {
                self.started_in = begin.elapsed();
                if let Some(process) = &mut self.process {
                    process.endpoints = endpoints;
                }
                return;
            }
            let ended = self.process.as_mut().and_then(|process| process.child.try_wait().ok().flatten());
            assert!(ended.is_none(), "blockyard up ended: {ended:?}\n{}", self.log());
            assert!(Instant::now() < end, "not ready after {START_MAX:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it and does not wait until it is ready.
    ///
    /// # Panics
    /// If it runs already, or the system refuses.
    pub fn start_unwaited(&mut self) {
        assert!(self.process.is_none(), "the cluster runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log");
        let mut command = bound_to_us(&blockyard());
        command.args(["up", "--ports", "auto", "--data-dir"]).arg(self.data_dir()).args(&self.options);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        let child = command.spawn().expect("a process");
        self.process = Some(Process { child, endpoints: Value::Null });
    }

    /// Content of `up.json` if it is from the process that runs now.
    fn announced(&self) -> Option<Value> {
        let bytes = std::fs::read(self.data_dir().join("up.json")).ok()?;
        let endpoints: Value = serde_json::from_slice(&bytes).expect("up.json is complete whenever it is there");
        (endpoints["pid"].as_u64() == Some(self.pid().into())).then_some(endpoints)
    }

    /// What `up.json` said when it became ready.
    pub fn endpoints(&self) -> &Value {
        self.process.as_ref().map_or(&Value::Null, |process| &process.endpoints)
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A path beside the data directory, for files of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log_path(&self) -> PathBuf {
        self.path("log")
    }

    /// Everything that `blockyard up` wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The process.
    ///
    /// # Panics
    /// If none runs.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the cluster runs").child.id()
    }

    /// Address of the NBD server.
    ///
    /// # Panics
    /// If the cluster is not ready.
    pub fn nbd(&self) -> SocketAddr {
        self.endpoints()["nbd"].as_str().and_then(|nbd| nbd.parse().ok()).expect("an address of NBD")
    }

    /// Address of the state store.
    pub fn etcd(&self) -> String {
        self.endpoints()["etcd"].as_str().unwrap_or_default().to_owned()
    }

    /// URI of an export.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.nbd())
    }

    /// A connection to an export.
    ///
    /// # Panics
    /// If there is none to be had.
    #[track_caller]
    pub fn connect(&self, export: &str) -> Nbd {
        Nbd::connect(self.nbd(), export).unwrap_or_else(|e| panic!("cannot connect to {export}: {e}\n{}", self.log()))
    }

    /// Runs a `blockyard` command on this cluster.
    pub fn blockyard(&self, args: &[&str]) -> Done {
        let dir = self.data_dir();
        let dir = dir.to_str().expect("a path of characters");
        run(blockyard(), ["--cluster", dir].iter().chain(args))
    }

    /// `blockyard status --json`.
    pub fn status(&self) -> Value {
        self.blockyard(&["status", "--json"]).json()
    }

    /// Kills it as a crash would.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("the cluster runs");
        let _ = process.child.kill();
        process.child.wait().expect("it was killed");
    }

    /// Asks it to stop and waits for it.
    ///
    /// # Panics
    /// If it does not run, or does not stop in 15 s.
    pub fn terminate(&mut self) -> ExitStatus {
        let pid = self.pid().to_string();
        run("kill", ["-TERM", pid.as_str()]).ok();
        let status = eventually(STOP_MAX.as_secs(), "blockyard up stops on SIGTERM", || {
            self.process.as_mut().and_then(|process| process.child.try_wait().expect("a status"))
        });
        self.process = None;
        status
    }

    /// Asks it to stop, and makes sure that it did so in good order.
    ///
    /// # Panics
    /// If not.
    pub fn stop(&mut self) {
        let status = self.terminate();
        assert!(status.success(), "blockyard up ended with {status} (signal {:?})\n{}", status.signal(), self.log());
    }

    /// File of an OSD.
    pub fn osd_file(&self, id: u32) -> PathBuf {
        self.data_dir().join(format!("osd.{id}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("what blockyard up said:\n{}", self.log());
        }
    }
}

/// A command that ends when the thread that starts it does, so that nothing is left of a killed test.
fn bound_to_us(program: &Path) -> Command {
    if !Path::new("/usr/bin/setpriv").exists() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// How a `blockyard up` that must not become ready ended.
pub struct Refused {
    /// What it left.
    pub done: Done,
    /// How long that took.
    pub after: Duration,
}

/// Runs `blockyard up` with exactly these options, which must end by itself.
pub fn try_up(options: &[&str]) -> Refused {
    let begin = Instant::now();
    let done = run(blockyard(), ["up"].iter().chain(options));
    Refused { done, after: begin.elapsed() }
}
