//! `tests/bench/run`: what a cluster costs, and how it behaves. Costs are medians over several runs; ratios are against an echo of
//! the same bytes over the same kind of socket with the same reactor, taken in the same run.

mod awake;
mod behaviour;
mod cluster;
mod compare;
mod cpu;
mod echo;
mod flame;
mod graph;
mod library;
mod load;
mod matrix;
mod metrics;
mod nbd;
mod program;
mod report;
mod scheme;
mod targets;

use std::time::Duration;

use anyhow::Result;
use behaviour::BehaviourOptions;
use clap::{Parser, Subcommand};
use compare::CompareOptions;
use matrix::MatrixOptions;

/// Measures what operations cost: the matrix of schemes, sizes and depths, through NBD and through the client library.
///
/// 'compare' measures two builds side by side; 'behaviour' what takes longer than an operation: recovery, fail-over, start-up, memory.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true, max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    matrix: MatrixOptions,
}

#[derive(Subcommand)]
enum Command {
    /// Measures recovery and its effect on clients, fail-over, memory per stored TiB, and start-up, with etcd and a process for each
    /// daemon.
    Behaviour(BehaviourOptions),
    /// Compares the cost of operations with that of another build: short slices of load go to clusters of both in turn.
    Compare(CompareOptions),
    /// One of the two builds of 'compare': measures once for each line of input.
    #[command(hide = true)]
    Slices(MatrixOptions),
    /// Keeps a processor awake.
    #[command(hide = true)]
    Spin { cpu: usize, parent: u32 },
    /// Serves the echo.
    #[command(hide = true)]
    EchoServer { busy_poll_us: u64 },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    match &arguments.command {
        Some(Command::Spin { cpu, parent }) => awake::spin(*cpu, *parent),
        Some(Command::EchoServer { busy_poll_us }) => echo::serve(Duration::from_micros(*busy_poll_us)),
        Some(Command::Compare(options)) => compare::run(options),
        Some(Command::Slices(options)) => compare::serve(options, runtime.handle()),
        Some(Command::Behaviour(options)) => behaviour::run(options, runtime.handle()),
        None => matrix::run(&arguments.matrix, runtime.handle()),
    }
}
