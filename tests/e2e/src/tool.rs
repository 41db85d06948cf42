//! Programs: ours and other people's.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Longest run of a program. Seconds.
const RUN_MAX: u32 = 300;
/// Exit status of `timeout` after that.
const TIMED_OUT: i32 = 124;

/// What a program that has ended left.
#[derive(Clone, Debug)]
pub struct Done {
    /// Program and arguments.
    pub line: String,
    /// Its exit status, -1 if a signal ended it.
    pub status: i32,
    /// Its output.
    pub stdout: String,
    /// Its messages.
    pub stderr: String,
}

impl Done {
    /// This, if it succeeded.
    ///
    /// # Panics
    /// With everything that it wrote, if not.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status == 0, "{} ended with {}\n{}\n{}", self.line, self.status, self.stdout, self.stderr);
        self
    }

    /// Its output as JSON.
    ///
    /// # Panics
    /// If it failed, or the output is no JSON.
    #[track_caller]
    pub fn json(self) -> Value {
        let done = self.ok();
        serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{}: no JSON ({e}): {}", done.line, done.stdout))
    }

    /// Makes sure that it failed with this exit code and that its messages say all of this.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn refused(self, status: i32, words: &[&str]) -> Self {
        let said = words.iter().all(|word| self.stderr.contains(word));
        assert!(
            self.status == status && said,
            "{} ended with {} instead of {status}, or did not say {words:?}:\n{}\n{}",
            self.line,
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }
}

/// Runs a program to its end.
///
/// # Panics
/// If it cannot be started, or does not end in 300 seconds.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Done {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", &RUN_MAX.to_string()]).arg(program.as_ref()).args(args).stdin(Stdio::null());
    let words: Vec<_> = command.get_args().skip(3).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let line = words.join(" ");
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {line}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let done = Done {
        line,
        status: output.status.code().unwrap_or(-1),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    };
    assert!(done.status != TIMED_OUT, "{} did not end within {RUN_MAX} s\n{}\n{}", done.line, done.stdout, done.stderr);
    done
}

/// Top folder of the workspace.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The command under test.
///
/// # Panics
/// If it is not there.
pub fn blockyard() -> PathBuf {
    let beside = || Some(std::env::current_exe().ok()?.with_file_name("blockyard")).filter(|path| path.is_file());
    let path = std::env::var_os("BLOCKYARD_BIN").map(PathBuf::from).or_else(beside);
    let path = path.unwrap_or_else(|| workspace().join("target/release/blockyard"));
    let advice = "build it with 'cargo build --release', or name another in BLOCKYARD_BIN";
    path.canonicalize().unwrap_or_else(|e| panic!("cannot test {}: {e}: {advice}", path.display()))
}

/// Whether all these programs are there. What is missing is skipped loudly, and is a failure if `CI=true`.
///
/// # Panics
/// If one is missing and `CI=true`.
#[must_use]
pub fn have(programs: &[&str]) -> bool {
    let folders =
        || std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = |name: &&&str| folders().chain(system.clone()).any(|folder| folder.join(name).is_file());
    let Some(missing) = programs.iter().find(|name| !found(name)) else { return true };
    let why = format!("the program {missing} is missing");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}: install it ('./test' does)");
    skip(&why);
    false
}

/// Says loudly that the rest of a test is skipped.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {why}", thread.name().unwrap_or("a test"));
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("E2E_SKIPS") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| writeln!(file, "{line}"));
    }
}

/// SHA-256 of a file.
///
/// # Panics
/// If it cannot be read.
pub fn sha256(path: &Path) -> String {
    let sum = run("sha256sum", [path]).ok().stdout;
    sum.split(' ').next().unwrap_or_default().to_owned()
}
