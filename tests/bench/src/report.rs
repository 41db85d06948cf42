//! What came of the measurements: rows, as a table and as JSON, and against those of an earlier run.

use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

/// One row of the table. Times in microseconds, CPU time per operation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Row {
    /// How data was kept.
    pub scheme: String,
    /// The load.
    pub case: String,
    /// What it went through.
    pub door: String,
    /// Operations per second.
    pub iops: f64,
    /// 10^6 bytes per second.
    pub mb_per_s: f64,
    /// Latencies.
    pub mean_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// CPU time of the thread that made the load.
    pub cpu_load_us: f64,
    pub cpu_gateway_us: f64,
    /// All OSDs together.
    pub cpu_osds_us: f64,
    /// Each OSD.
    pub cpu_each_osd_us: Vec<f64>,
    /// Monitor and state store.
    pub cpu_rest_us: f64,
    /// System calls of all OSDs' data paths, per operation.
    pub osd_calls: f64,
    /// Device writes of all OSDs, per operation.
    pub device_writes: f64,
    /// Bytes written to all devices, checkpoints and logs included, per byte of the load; 0 for reads.
    pub device_bytes: f64,
    /// The echo of the same bytes, in the same run.
    pub echo_mean_us: f64,
    /// Its CPU time, of both sides.
    #[serde(default)]
    pub echo_cpu_us: f64,
    /// Mean latency, over the echo's.
    pub latency_ratio: f64,
    /// Rate, over the echo's.
    pub rate_ratio: f64,
    /// CPU time beyond that of the library's run right after; only of other doors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_us: Option<f64>,
}

impl Row {
    /// CPU time of the load and all OSDs. Microseconds per operation.
    pub fn cpu_us(&self) -> f64 {
        self.cpu_load_us + self.cpu_gateway_us + self.cpu_osds_us
    }

    /// The same, over the echo's.
    fn cpu_ratio(&self) -> f64 {
        self.cpu_us() / self.echo_cpu_us
    }
}

/// The figures that are stored with the benchmark.
///
/// # Panics
/// Never: a test reads them.
pub fn stored() -> Vec<Row> {
    serde_json::from_str(include_str!("../baseline.json")).expect("what --json wrote")
}

/// Reads the rows of an earlier run.
///
/// # Errors
/// The file cannot be read or is something else.
pub fn load(path: &Path) -> Result<Vec<Row>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not what --json writes", path.display()))
}

/// An empty table.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(header);
    table
}

/// A cell with a number of so many decimals.
pub fn number((number, decimals): (f64, usize)) -> Cell {
    Cell::new(format!("{number:.decimals$}")).set_alignment(CellAlignment::Right)
}

/// Prints the table, with how latency and CPU time, both over the echo's, compare with those of the baseline's row.
pub fn print(rows: &[Row], baseline: &[Row]) {
    let header = [
        "scheme",
        "case",
        "door",
        "IOPS",
        "MB/s",
        "mean us",
        "p50",
        "p99",
        "p99.9",
        "cpu: load",
        "gateway",
        "osds",
        "calls",
        "dev. writes",
        "dev. bytes",
        "echo us",
        "echo cpu",
        "latency/echo",
        "cpu/echo",
        "rate/echo",
        "latency/base",
        "cpu/base",
    ];
    let mut table = table(&header);
    for row in rows {
        let mut numbers = vec![
            (row.iops, 0),
            (row.mb_per_s, 0),
            (row.mean_us, 1),
            (row.p50_us, 1),
            (row.p99_us, 1),
            (row.p999_us, 1),
            (row.cpu_load_us, 2),
            (row.cpu_gateway_us, 2),
            (row.cpu_osds_us, 2),
            (row.osd_calls, 2),
            (row.device_writes, 2),
            (row.device_bytes, 2),
            (row.echo_mean_us, 1),
            (row.echo_cpu_us, 2),
            (row.latency_ratio, 2),
            (row.cpu_ratio(), 2),
            (row.rate_ratio, 2),
        ];
        let same = |old: &&Row| (&old.scheme, &old.case, &old.door) == (&row.scheme, &row.case, &row.door);
        if let Some(old) = baseline.iter().find(same) {
            numbers.extend([(row.latency_ratio / old.latency_ratio, 2), (row.cpu_ratio() / old.cpu_ratio(), 2)]);
        }
        let mut cells = vec![Cell::new(&row.scheme), Cell::new(&row.case), Cell::new(&row.door)];
        cells.extend(numbers.into_iter().map(number));
        table.add_row(cells);
    }
    println!("{table}");
    println!(
        "cpu: microseconds of CPU time per operation; load = this program, osds = all OSDs together. calls, dev. writes: per \
         operation, all OSDs; dev. bytes: written to devices per byte of the load; base: latency/echo and cpu/echo over those of the baseline"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_figures_are_of_every_target() {
        let rows = stored();
        for target in &crate::targets::TARGETS {
            assert!(target.measured(&rows).is_some(), "{} {}", target.scheme, target.case);
        }
    }
}
