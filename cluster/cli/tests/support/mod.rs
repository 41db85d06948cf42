//! Running the command, and comparing what it prints with what was reviewed.
#![allow(dead_code)]

pub mod cluster;

use std::path::Path;
use std::process::{Command, Stdio};

/// What a run of the command left.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Stdout as JSON of a run that succeeded.
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

/// The command with arguments, without anything of the caller's environment that it looks at.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockyard"));
    command.args(args).stdin(Stdio::null()).env("COLUMNS", "110");
    let ours = |name: &str| name.starts_with("BLOCKYARD_") || ["NOTIFY_SOCKET", "WATCHDOG_USEC"].contains(&name);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        command.env_remove(name);
    }
    command
}

/// Runs the command to its end.
pub fn blockyard(args: &[&str]) -> Run {
    let output = command(args).output().expect("the command can be run");
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Compares with `tests/golden/NAME.txt`; `UPDATE=1` rewrites it.
pub fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, text).expect("the golden file can be written");
    }
    let reviewed = std::fs::read_to_string(&path).expect("a golden file; UPDATE=1 makes it");
    assert_eq!(text, reviewed, "{name} differs; UPDATE=1 accepts it");
}
