//! `blockyard`: one command for everything. `blockyard up` is a whole cluster in one process ([`up`]); the rest looks at
//! and changes a running cluster through its state store, and moves data through the client library.
//!
//! Data goes to stdout, talk to stderr. Exit codes are in [`error`].

mod args;
mod config;
mod error;
mod export;
mod image;
mod manual;
mod osd;
mod output;
mod pool;
mod session;
mod size;
mod status;
mod up;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command, OsdCommand};
use crate::error::{CliError, Exit};
use crate::output::Output;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Nothing is left to be told if the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    start_log(args.verbose);
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", output::red("error"));
            error.exit.into()
        }
    }
}

/// Warnings and worse, unless asked for more by `--verbose` or `BLOCKYARD_LOG`.
fn start_log(verbose: u8) {
    let default = ["warn", "info", "debug", "trace"][usize::from(verbose).min(3)];
    let filter = tracing_subscriber::EnvFilter::try_from_env("BLOCKYARD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let ansi = output::has_color();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
}

fn run(args: Args) -> Result<(), CliError> {
    let out = Output { json: args.json };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::failed(format!("cannot start: the system refused a runtime: {e}")))?;
    let result = runtime.block_on(dispatch(args.command, &args.cluster, out));
    // A part that does not end must not keep the process.
    runtime.shutdown_background();
    result
}

async fn dispatch(command: Command, cluster: &str, out: Output) -> Result<(), CliError> {
    match command {
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { dir } => manual::pages(&dir),
        Command::Osd(OsdCommand::Dump(options)) => osd::dump(&options, out),
        Command::Osd(OsdCommand::Check(options)) => osd::check(&options, out),
        Command::Up(options) => up::up(options, out).await,
        Command::Status => status::status(&session::connect(cluster)?, out).await,
        Command::Pool(command) => pool::run(&session::connect(cluster)?, command, out).await,
        Command::Osd(OsdCommand::Ls) => osd::ls(&session::connect(cluster)?, out).await,
        Command::Image(command) => image::run(&session::connect(cluster)?, command, out).await,
        Command::Export(command) => export::run(&session::connect(cluster)?, command, out).await,
        Command::Config(command) => config::run(&session::connect(cluster)?, command, out).await,
    }
}
