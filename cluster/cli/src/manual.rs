//! Shell completions and man pages, from the same definitions as the command line.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Args;
use crate::error::{CliError, io_failed};
use crate::output::print;

/// Prints the completions for a shell.
pub fn completions(shell: Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "blockyard", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes one page per command into `dir`.
pub fn pages(dir: &Path) -> Result<(), CliError> {
    std::fs::create_dir_all(dir).map_err(|e| io_failed("create", dir, &e))?;
    clap_mangen::generate_to(Args::command(), dir).map_err(|e| io_failed("write man pages to", dir, &e))
}
