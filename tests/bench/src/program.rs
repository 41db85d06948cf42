//! Other people's programs.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// Makes sure that a program is there.
///
/// # Errors
/// It is not; with `advice`.
pub fn require(program: &str, advice: &str) -> Result<()> {
    let found = Command::new(program).arg("--help").stdin(Stdio::null()).output();
    found.with_context(|| format!("the program {program} is missing: {advice}")).map(drop)
}
