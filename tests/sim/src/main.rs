//! `cargo run --release -p sim -- --seeds 0..2000`: runs seeds, prints what failed and how to repeat it.

use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use sim::faults::Fault;

/// Simulates clusters and checks what their clients see.
#[derive(Parser)]
struct Arguments {
    /// Seeds to run: FIRST..END (END not included), or one number.
    #[arg(long, default_value = "0..200", value_parser = parse_seeds)]
    seeds: Range<u64>,
    /// Of these, only seeds with a lazy pool.
    #[arg(long)]
    lazy: bool,
    /// Half of all faults are one of these.
    #[arg(long, value_delimiter = ',')]
    often: Vec<Fault>,
    /// Print every event.
    #[arg(long)]
    trace: bool,
    /// Seeds to run at the same time.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

impl Arguments {
    /// How to see a seed again.
    fn repeat(&self, seed: u64) -> String {
        let names = self.often.iter().filter_map(|fault| Some(fault.to_possible_value()?.get_name().to_owned()));
        let names = names.collect::<Vec<_>>().join(",");
        let often = if names.is_empty() { names } else { format!(" --often {names}") };
        format!("repeat with: cargo run --release -p sim -- --seeds {seed}{often} --trace")
    }
}

fn parse_seeds(text: &str) -> Result<Range<u64>, String> {
    let number = |s: &str| s.parse::<u64>().map_err(|_| format!("'{s}' is not a number"));
    match text.split_once("..") {
        Some((first, end)) => Ok(number(first)?..number(end)?),
        None => number(text).map(|n| n..n + 1),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let begin = Instant::now();
    let next = AtomicU64::new(arguments.seeds.start);
    let threads = if arguments.trace { 1 } else { arguments.threads.max(1) };
    let results: Vec<[u64; 12]> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| work(&next, &arguments))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or([0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])).collect()
    });
    let sum = |i: usize| results.iter().map(|r| r[i]).sum::<u64>();
    println!(
        "{} seeds in {:.1} s: {} operations answered, {} OSD crashes, {} objects recovered ({} of them by changed sectors), {} sectors repaired, {} objects \
         scrubbed, {} damaged sectors found by that, {} times more PGs, \
         {} times PGs became one, {} sectors lost",
        sum(0),
        begin.elapsed().as_secs_f64(),
        sum(2),
        sum(3),
        sum(4),
        sum(5),
        sum(6),
        sum(7),
        sum(8),
        sum(9),
        sum(10),
        sum(11),
    );
    println!("{} passed, {} failed", sum(0) - sum(1), sum(1));
    if sum(1) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs seeds until none is left. Counts seeds, failures, answers, crashes, recoveries, patches, repairs, scrubs, what they found, splits,
/// merges, losses.
fn work(next: &AtomicU64, arguments: &Arguments) -> [u64; 12] {
    let mut counts = [0; 12];
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= arguments.seeds.end {
            return counts;
        }
        if arguments.lazy && !sim::world::is_lazy(seed) {
            continue;
        }
        counts[0] += 1;
        let result = std::panic::catch_unwind(|| sim::world::run(seed, &arguments.often, arguments.trace));
        match result {
            Ok(Ok(report)) => {
                let found = [
                    report.answered,
                    report.crashes,
                    report.recovered,
                    report.patched,
                    report.repaired,
                    report.scrubbed,
                    report.scrub_errors,
                    report.splits,
                    report.merges,
                    report.lost,
                ];
                counts[2..].iter_mut().zip(found).for_each(|(sum, n)| *sum += n);
            }
            Ok(Err(why)) => {
                counts[1] += 1;
                println!("FAILED: {why}\n{}\n", arguments.repeat(seed));
            }
            Err(_) => {
                counts[1] += 1;
                println!("FAILED: seed {seed} panicked\n{}\n", arguments.repeat(seed));
            }
        }
    }
}
