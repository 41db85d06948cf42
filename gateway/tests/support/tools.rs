//! Real clients as child processes. A tool that is not installed is skipped loudly, and a failure where `CI=true`.

use std::io::ErrorKind;
use std::process::Command;

pub struct Output {
    pub success: bool,
    pub stdout: String,
    pub all: String,
}

/// Runs a tool; `None` if it is not installed.
pub fn try_run(tool: &str, args: &[&str]) -> Option<Output> {
    let output = match Command::new(tool).args(args).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{tool} is not installed");
            eprintln!("SKIP: {tool} is not installed, so nothing was tested with it");
            return None;
        }
        other => other.expect("the tool starts"),
    };
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let all = format!("{tool} {args:?}\n{stdout}{}", String::from_utf8_lossy(&output.stderr));
    Some(Output { success: output.status.success(), stdout, all })
}

/// Runs a tool that must succeed; its standard output.
pub fn run(tool: &str, args: &[&str]) -> Option<String> {
    let output = try_run(tool, args)?;
    assert!(output.success, "{}", output.all);
    Some(output.stdout)
}
