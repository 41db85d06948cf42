//! `blockyard`: one command for everything. `blockyard up` is a whole cluster in one process ([`up`]); the rest looks at
//! and changes a running cluster through its state store, and moves data through the client library.
//!
//! Data goes to stdout, talk to stderr. Exit codes are in [`error`].

mod args;
mod config;
mod df;
mod error;
mod export;
mod image;
mod init;
mod key;
mod manual;
mod node;
mod osd;
mod output;
mod pg;
mod pool;
mod session;
mod setting;
mod settings;
mod size;
mod status;
mod up;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command, OsdCommand};
use crate::error::{CliError, Exit};
use crate::output::Output;
use crate::settings::NodeSettings;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Nothing is left to be told if the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    start_log(args.verbose + u8::from(is_daemon(&args.command)));
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", output::red("error"));
            error.exit.into()
        }
    }
}

/// Daemons of many machines tell more: nobody looks at them while they run.
fn is_daemon(command: &Command) -> bool {
    matches!(command, Command::Mon(_) | Command::Gateway(_) | Command::Osd(OsdCommand::Run(_)))
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
    let result = runtime.block_on(async {
        let settings = settings(&args)?;
        dispatch(args.command, settings, out).await
    });
    // A part that does not end must not keep the process.
    runtime.shutdown_background();
    result
}

/// What the configuration file says, with what the command line says about the cluster.
fn settings(args: &Args) -> Result<NodeSettings, CliError> {
    let file = args.config.as_deref().map(NodeSettings::read).transpose()?.unwrap_or_default();
    Ok(NodeSettings {
        cluster: args.cluster.clone().or(file.cluster),
        key_file: args.key_file.clone().or(file.key_file),
        encrypt: args.encrypt || file.encrypt,
        etcd: args.etcd.clone().or(file.etcd),
        ..file
    })
}

async fn dispatch(command: Command, settings: NodeSettings, out: Output) -> Result<(), CliError> {
    let connect = || session::connect(&settings);
    match command {
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { dir } => manual::pages(&dir),
        Command::Key(command) => key::run(&command, out),
        Command::Osd(OsdCommand::Dump(options)) => osd::dump(&options, out),
        Command::Osd(OsdCommand::Check(options)) => osd::check(&options, out),
        Command::Osd(OsdCommand::Run(options)) => node::run::osd(options, settings, out).await,
        Command::Mon(options) => node::run::monitor(options, settings, out).await,
        Command::Gateway(options) => node::run::gateway(options, settings, out).await,
        Command::Up(options) => up::up(options, settings.credentials()?, out).await,
        Command::Init(options) => init::init(&connect()?, &options, out).await,
        Command::Status => status::status(&connect()?, out).await,
        Command::Df => df::df(&connect()?, out).await,
        Command::Pg(command) => pg::run(&connect()?, command, out).await,
        Command::Pool(command) => pool::run(&connect()?, command, out).await,
        Command::Osd(OsdCommand::Ls) => osd::ls(&connect()?, out).await,
        Command::Osd(OsdCommand::Prepare(options)) => osd::prepare::prepare(&connect()?, options, out).await,
        Command::Osd(OsdCommand::Rm { id, force, dry_run }) => {
            osd::change::rm(&connect()?, id, force, dry_run, out).await
        }
        Command::Osd(OsdCommand::Reweight(options)) => osd::change::reweight(&connect()?, options, out).await,
        Command::Osd(OsdCommand::Tag { id, add, remove }) => {
            osd::change::tag(&connect()?, id, &add, &remove, out).await
        }
        Command::Image(command) => image::run(&connect()?, command, out).await,
        Command::Export(command) => export::run(&connect()?, command, out).await,
        Command::Config(command) => config::run(&connect()?, command, out).await,
    }
}
