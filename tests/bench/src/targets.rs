//! What operations may cost at most, and what they do cost.

use comfy_table::Cell;

use crate::report::{Row, number, table};

/// CPU time of both sides of a 4 KiB echo at depth 128 where the limits come from. Microseconds.
const REFERENCE_ECHO_US: f64 = 2.0;

/// What is limited.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Measure {
    /// Mean latency, over the echo's.
    Latency,
    /// CPU time of the client and all OSDs. Microseconds per operation.
    Cpu,
    /// The same per MiB of an operation of so many MiB.
    CpuPerMib(u32),
    /// What the NBD door adds to it.
    NbdExtra,
    /// Bytes written to devices per byte of the load.
    DeviceBytes,
}

/// What some case may cost.
pub struct Target {
    /// Of this scheme.
    pub scheme: &'static str,
    /// This load.
    pub case: &'static str,
    measure: Measure,
    limit: f64,
}

impl Target {
    /// What it costs.
    pub fn measured(&self, rows: &[Row]) -> Option<f64> {
        let door = if self.measure == Measure::NbdExtra { "nbd" } else { "library" };
        let row = rows.iter().find(|row| (&*row.scheme, &*row.case, &*row.door) == (self.scheme, self.case, door))?;
        match self.measure {
            Measure::Latency => Some(row.latency_ratio),
            Measure::Cpu => Some(row.cpu_us()),
            Measure::CpuPerMib(mib) => Some(row.cpu_us() / f64::from(mib)),
            Measure::NbdExtra => row.extra_us,
            Measure::DeviceBytes => Some(row.device_bytes),
        }
    }
}

const fn target(scheme: &'static str, case: &'static str, measure: Measure, limit: f64) -> Target {
    Target { scheme, case, measure, limit }
}

/// All of them.
pub const TARGETS: [Target; 12] = [
    target("3", "4k random read, depth 1", Measure::Latency, 1.5),
    target("3", "4k random write, depth 1", Measure::Latency, 3.3),
    target("3", "4k random read, depth 128", Measure::Cpu, 6.0),
    target("3", "4k random write, depth 128", Measure::Cpu, 20.0),
    target("1", "4k random write, depth 128", Measure::Cpu, 8.0),
    target("2+1", "4k random read, depth 1", Measure::Latency, 2.3),
    target("2+1", "4k random write, depth 1", Measure::Latency, 5.0),
    target("2+1", "4k random write, depth 128", Measure::Cpu, 32.0),
    target("3", "128k sequential write, depth 16", Measure::Cpu, 190.0),
    target("3", "4m sequential read, depth 4", Measure::CpuPerMib(4), 600.0),
    target("1", "4k random write, depth 32", Measure::DeviceBytes, 1.15),
    target("1", "4k random read, depth 32", Measure::NbdExtra, 4.0),
];

impl Measure {
    fn name(self) -> &'static str {
        match self {
            Measure::Latency => "mean latency / echo",
            Measure::Cpu => "CPU us per operation",
            Measure::CpuPerMib(_) => "CPU us per MiB",
            Measure::NbdExtra => "CPU us that NBD adds",
            Measure::DeviceBytes => "device bytes per byte",
        }
    }

    fn is_cpu(self) -> bool {
        matches!(self, Measure::Cpu | Measure::CpuPerMib(_) | Measure::NbdExtra)
    }
}

/// How much slower than the reference this machine was meanwhile: CPU time of the 4 KiB echoes taken at depth.
fn slowness(rows: &[Row]) -> Option<f64> {
    let echoes = rows.iter().filter(|row| row.case.starts_with("4k") && row.case.ends_with("depth 128"));
    let (sum, count) = echoes.fold((0.0, 0), |(sum, count), row| (sum + row.echo_cpu_us, count + 1));
    (count > 0).then(|| sum / f64::from(count) / REFERENCE_ECHO_US)
}

/// Prints those targets of which there is a figure.
pub fn print(rows: &[Row]) {
    let slowness = slowness(rows);
    let mut table = table(&["scheme", "case", "", "target", "measured", "at the reference's speed"]);
    for target in &TARGETS {
        let Some(figure) = target.measured(rows) else { continue };
        let mut cells = [target.scheme, target.case, target.measure.name()].map(Cell::new).to_vec();
        cells.extend([(target.limit, 2), (figure, 2)].map(number));
        cells.extend(slowness.filter(|_| target.measure.is_cpu()).map(|slowness| number((figure / slowness, 2))));
        table.add_row(cells);
    }
    if table.row_count() == 0 {
        return;
    }
    println!("{table}");
    if let Some(slowness) = slowness {
        println!(
            "the targets come from a machine where a 4 KiB echo at depth 128 takes {REFERENCE_ECHO_US} us of CPU time; here it took \
             {:.2}. 'at the reference's speed' is the figure divided by that ratio: an estimate, not a measurement",
            slowness * REFERENCE_ECHO_US
        );
    }
}
