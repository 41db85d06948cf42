//! Two builds side by side: each runs a cluster of its own, and short slices of load go to them in turn. A machine whose
//! speed changes from minute to minute changes it for both, so the ratio of neighbouring slices says more than the figures.

use std::io::{BufRead, BufReader, Lines, Write, stdin};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use comfy_table::Cell;
use tokio::runtime::Handle;

use crate::awake::Awake;
use crate::matrix::{self, MatrixOptions};
use crate::report::{Row, number, table};

/// What is compared.
#[derive(Args)]
pub struct CompareOptions {
    /// Folder with the other build's 'bench' and 'blockyard': a copy of target/release from before a change.
    other: PathBuf,
    /// How data is kept: a number of copies, or DATA+PARITY shards.
    #[arg(long, default_value = "3")]
    scheme: String,
    /// Only the cases whose names contain this.
    #[arg(long, default_value = "4k random")]
    only: String,
    /// Slices per case and build.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(4..))]
    rounds: u32,
    /// Seconds per slice.
    #[arg(long, default_value = "0.6")]
    seconds: String,
    /// Size of the image. Bytes.
    #[arg(long, default_value = "536870912")]
    size: String,
    /// Keep the processors from sleeping.
    #[arg(long)]
    awake: bool,
}

/// Measures and prints the table.
///
/// # Errors
/// One of the builds failed.
pub fn run(options: &CompareOptions) -> Result<()> {
    let _awake = Awake::start(options.awake)?;
    let this = std::env::current_exe()?;
    let mut sides = [Side::start(&options.other.join("bench"), options)?, Side::start(&this, options)?];
    let mut rounds = Vec::new();
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        // Whoever comes second finds the machine as the first left it: they take turns in that, too.
        let [other, this] = &mut sides;
        rounds.push(match round % 2 {
            0 => [other.slice()?, this.slice()?],
            _ => {
                let second = this.slice()?;
                [other.slice()?, second]
            }
        });
    }
    print(&rounds)
}

/// One of the builds, with a cluster.
struct Side {
    process: Child,
    orders: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Side {
    fn start(bench: &Path, options: &CompareOptions) -> Result<Side> {
        let CompareOptions { scheme, only, seconds, size, .. } = options;
        let words = ["--runs", "1", "--doors", "library", "--schemes", scheme, "--only", only];
        let mut command = Command::new(bench);
        command.arg("slices").args(words).args(["--seconds", seconds, "--size", size]);
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", bench.display()))?;
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().context("no pipe")?).lines();
        Ok(Side { process, orders, answers })
    }

    /// One slice of each case.
    fn slice(&mut self) -> Result<Vec<Row>> {
        writeln!(self.orders.as_mut().context("no pipe")?)?;
        let answer = self.answers.next().context("a build ended early; what it said is above")??;
        Ok(serde_json::from_str(&answer)?)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // It ends with its input, and takes its cluster along.
        self.orders = None;
        let _ = self.process.wait();
    }
}

/// Starts a cluster and measures each case once for every line of input.
///
/// # Errors
/// A cluster failed.
pub fn serve(options: &MatrixOptions, runtime: &Handle) -> Result<()> {
    let mut lines = stdin().lines();
    matrix::slices(options, runtime, |rows| {
        if let Some(rows) = rows {
            println!("{}", serde_json::to_string(rows)?);
        }
        Ok(lines.next().transpose()?.is_some())
    })
}

/// A figure of a row.
type Figure = fn(&Row) -> f64;

/// What is compared of a row.
const FIGURES: [(&str, Figure); 5] = [
    ("CPU us per operation", Row::cpu_us),
    ("  of it the OSDs", |row| row.cpu_osds_us),
    ("mean latency, us", |row| row.mean_us),
    ("p99 latency, us", |row| row.p99_us),
    ("operations per second", |row| row.iops),
];

fn print(rounds: &[[Vec<Row>; 2]]) -> Result<()> {
    let mut table = table(&["case", "", "other", "this", "ratio", "quartiles of the ratio"]);
    let cases = rounds.first().map_or(0, |[other, _]| other.len());
    ensure!(cases > 0, "no case has such a name");
    for case in 0..cases {
        for (figure, of) in FIGURES {
            let pairs = rounds.iter().filter_map(|[other, this]| Some((of(other.get(case)?), of(this.get(case)?))));
            let (other, this): (Vec<f64>, Vec<f64>) = pairs.unzip();
            let ratios = quartiles(other.iter().zip(&this).map(|(other, this)| this / other).collect());
            let [_, other, _] = quartiles(other);
            let [_, this, _] = quartiles(this);
            let name = if figure == FIGURES[0].0 { &rounds[0][0][case].case } else { "" };
            let mut cells = vec![Cell::new(name), Cell::new(figure)];
            cells.extend([(other, 1), (this, 1), (ratios[1], 3)].map(number));
            cells.push(Cell::new(format!("{:.3} to {:.3}", ratios[0], ratios[2])));
            table.add_row(cells);
        }
    }
    println!("{table}");
    Ok(())
}

/// The quarter, half and three quarters of some numbers.
fn quartiles(mut numbers: Vec<f64>) -> [f64; 3] {
    numbers.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| numbers.get(numbers.len() * quarter / 4).copied().unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_few() {
        assert_eq!(quartiles(vec![4.0, 1.0, 3.0, 2.0]), [2.0, 3.0, 4.0]);
        assert_eq!(quartiles((0..9).map(f64::from).collect()), [2.0, 4.0, 6.0]);
    }
}
