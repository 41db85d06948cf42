//! A program that runs until it is killed or told to stop, with its output in a file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::{eventually, run};

/// Longest stop. Seconds.
const STOP_MAX: u64 = 15;

/// A running program. It is killed when this is dropped, and when the thread that started it ends.
pub struct Process {
    child: Child,
    /// Its standard output.
    out: PathBuf,
    /// Its messages, of its predecessors too.
    log: PathBuf,
    /// Where its own output begins.
    start: u64,
    stopped: bool,
}

impl Process {
    /// Starts a program. Its output goes to `NAME.out` and its messages to `NAME.log` in `folder`; both are added to. With
    /// `netns` it runs in that network namespace.
    ///
    /// # Panics
    /// If the system refuses.
    pub fn start(folder: &Path, name: &str, program: &Path, args: &[String], netns: Option<&str>) -> Self {
        let (out, log) = (folder.join(format!("{name}.out")), folder.join(format!("{name}.log")));
        let append = |path: &Path| File::options().create(true).append(true).open(path).expect("a file for output");
        let start = std::fs::metadata(&out).map_or(0, |meta| meta.len());
        let mut words: Vec<String> = Vec::new();
        if let Some(netns) = netns {
            words.extend(["ip", "netns", "exec", netns].map(str::to_owned));
        }
        if Path::new("/usr/bin/setpriv").exists() {
            words.extend(["setpriv", "--pdeathsig", "KILL"].map(str::to_owned));
        }
        words.push(program.to_str().expect("a path of characters").to_owned());
        words.extend_from_slice(args);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(append(&out)).stderr(append(&log));
        for name in ["BLOCKYARD_CLUSTER", "BLOCKYARD_CONFIG", "NOTIFY_SOCKET", "WATCHDOG_USEC"] {
            command.env_remove(name);
        }
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {}: {e}", words.join(" ")));
        Self { child, out, log, start, stopped: false }
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first whole line of its output, once there is one.
    pub fn first_line(&self) -> Option<String> {
        let bytes = std::fs::read(&self.out).ok()?;
        let own = bytes.get(self.start as usize..)?;
        let end = own.iter().position(|byte| *byte == b'\n')?;
        Some(String::from_utf8_lossy(&own[..end]).into_owned())
    }

    /// Waits for the first line of its output.
    ///
    /// # Panics
    /// With its messages, if it ends before, or takes longer.
    #[track_caller]
    pub fn wait_line(&mut self, longest: Duration) -> String {
        let end = Instant::now() + longest;
        loop {
            if let Some(line) = self.first_line() {
                return line;
            }
            let ended = self.ended();
            assert!(ended.is_none(), "it ended ({ended:?}) before it was ready:\n{}", self.log());
            assert!(Instant::now() < end, "it is not ready after {longest:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// If the system does not know.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a status")
    }

    /// Everything that it and its predecessors wrote to their standard errors.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal, like `TERM`.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&mut self, signal: &str) {
        run("kill", [format!("-{signal}"), self.pid().to_string()]).ok();
        self.stopped = signal == "STOP" || (self.stopped && signal != "CONT");
    }

    /// Kills it as a crash would, and waits until it is gone.
    ///
    /// # Panics
    /// If that is refused.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("it was killed");
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Panics
    /// If it does not end in good order, or not in 15 s.
    pub fn stop(mut self) {
        self.signal("TERM");
        let status = eventually(STOP_MAX, "it stops on SIGTERM", || self.ended());
        assert!(status.success(), "it ended with {status}:\n{}", self.log());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
