//! The figures as tables.

use comfy_table::Table;

use super::Figures;
use super::failover::{Failover, Range};
use super::history::{Latency, Phase};
use super::recovery::Recovery;
use super::store::{Memory, Start};
use super::up::UpStart;
use crate::load::median;
use crate::report::{number, table};

const MIB: f64 = 1024.0 * 1024.0;
/// What tells noise from results.
const PAUSED: &str = "paused: the longest time in which the client itself did not run";
/// Longest bar of a histogram. Characters.
const BAR_MAX: usize = 40;

/// Prints what was measured.
pub fn print(figures: &Figures) {
    if !figures.recovery.is_empty() {
        println!("{}", recoveries(&figures.recovery));
        println!("{}", clients(&figures.recovery));
        println!(
            "latencies of 4 KiB operations that one client starts at fixed times, in us, from when they are due; {PAUSED}"
        );
    }
    if !figures.failover.is_empty() {
        println!("{}", failovers(&figures.failover));
        println!(
            "stall: the longest operation of each time; calm: just before; return: while the OSD came back. ms; {PAUSED}"
        );
        figures.failover.iter().for_each(|failover| println!("\n{}", histogram(failover)));
    }
    if !figures.memory.is_empty() {
        println!("{}", memory(&figures.memory));
        println!(
            "per TiB: extrapolated; growth between a quarter and all of what was stored, and what a start with it takes more than without"
        );
    }
    if !figures.starts.is_empty() {
        println!("{}", starts(&figures.starts));
        println!(
            "ready: registered in the cluster; served: a client's read is answered. From the start of the process, medians"
        );
    }
    if !figures.up.is_empty() {
        println!("{}", ups(&figures.up));
    }
}

fn recoveries(recoveries: &[Recovery]) -> Table {
    let mut table = table(&[
        "scheme",
        "recovered",
        "missed MB",
        "recovered MB",
        "objects",
        "seconds",
        "MB/s",
        "seconds from start",
    ]);
    for r in recoveries {
        let mut cells = vec![r.scheme.as_str().into(), r.what.into()];
        let (missed, recovered) = (r.missed_bytes as f64 / 1e6, r.recovered_bytes as f64 / 1e6);
        cells.extend([(missed, 0), (recovered, 0), (r.recovered_objects as f64, 0)].map(number));
        cells.extend([(r.seconds, 2), (r.mb_per_s, 0), (r.seconds_from_start, 2)].map(number));
        table.add_row(cells);
    }
    table
}

fn clients(recoveries: &[Recovery]) -> Table {
    let mut table = table(&[
        "scheme",
        "recovered",
        "phase",
        "seconds",
        "reads",
        "mean us",
        "p50",
        "p99",
        "max",
        "writes",
        "mean us",
        "p50",
        "p99",
        "max",
        "paused",
    ]);
    for r in recoveries {
        for phase in &r.phases {
            let Phase { phase, seconds, read, write, paused_us } = phase;
            let mut cells = vec![r.scheme.as_str().into(), r.what.into(), phase.as_str().into(), number((*seconds, 1))];
            cells.extend([read, write].into_iter().flat_map(latency).chain([(*paused_us, 0)]).map(number));
            table.add_row(cells);
        }
    }
    table
}

fn latency(l: &Latency) -> [(f64, usize); 5] {
    [(l.operations as f64, 0), (l.mean_us, 0), (l.p50_us, 0), (l.p99_us, 0), (l.max_us, 0)]
}

fn failovers(failovers: &[Failover]) -> Table {
    let mut table = table(&[
        "scheme",
        "failure",
        "times",
        "stall p50",
        "p90",
        "p99",
        "max",
        "paused max",
        "calm median",
        "return median",
        "return max",
    ]);
    for f in failovers {
        let mut cells = vec![f.scheme.as_str().into(), f.failure.into(), number((f.times as f64, 0))];
        let max = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
        let (calm, back) = (median(f.calm_ms.clone()), median(f.return_ms.clone()));
        cells.extend([f.p50_ms, f.p90_ms, f.p99_ms, f.max_ms, max(&f.paused_ms)].map(|ms| number((ms, 0))));
        cells.extend([calm, back, max(&f.return_ms)].map(|ms| number((ms, 1))));
        table.add_row(cells);
    }
    table
}

/// The ranges from the first to the last that is not empty.
fn histogram(failover: &Failover) -> String {
    let ranges = &failover.histogram;
    let is_filled = |range: &Range| range.count > 0;
    let (first, last) = (ranges.iter().position(is_filled), ranges.iter().rposition(is_filled));
    let most = ranges.iter().map(|range| range.count).max().unwrap_or(0).max(1);
    let mut text = format!("{}, {}: client stalls", failover.scheme, failover.failure);
    let filled = first.zip(last).map_or(&ranges[..0], |(first, last)| &ranges[first..=last]);
    for range in filled {
        let end = range.up_to_ms.map_or_else(|| "longer".into(), |ms| format!("<= {ms} ms"));
        let bar = "#".repeat((range.count * BAR_MAX).div_ceil(most));
        text += &format!("\n{end:>10} {:>4} {bar}", range.count);
    }
    text
}

fn memory(memories: &[Memory]) -> Table {
    let mut table = table(&[
        "stored as",
        "MiB",
        "objects",
        "resident MiB: empty",
        "full",
        "after a start",
        "tables MiB: full",
        "GiB per TiB: growth",
        "of tables",
        "after a start",
    ]);
    for m in memories {
        let (Some(empty), Some(full)) = (m.points.first(), m.points.last()) else { continue };
        let mut cells = vec![m.shape.into(), number((m.stored_bytes as f64 / MIB, 0)), number((m.objects as f64, 0))];
        let sizes = [empty.resident_bytes, full.resident_bytes, m.resident_after_start, full.tables_bytes];
        cells.extend(sizes.map(|bytes| number((bytes as f64 / MIB, 1))));
        cells.extend(
            [m.resident_gib_per_tib, m.tables_gib_per_tib, m.after_start_gib_per_tib].map(|gib| number((gib, 2))),
        );
        table.add_row(cells);
    }
    table
}

fn starts(starts: &[Start]) -> Table {
    let mut table = table(&["OSD with", "MiB", "after", "written since MiB", "ready ms", "served ms"]);
    for s in starts {
        let mut cells = vec![s.shape.into(), number((s.stored_bytes as f64 / MIB, 0)), s.after.into()];
        cells.extend([(s.written_bytes as f64 / MIB, 0), (s.ready_median_ms, 0), (s.served_median_ms, 0)].map(number));
        table.add_row(cells);
    }
    table
}

fn ups(ups: &[UpStart]) -> Table {
    let mut table = table(&["'blockyard up' after", "image served after ms"]);
    for up in ups {
        table.add_row(vec![up.after.into(), number((up.served_median_ms, 0))]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_shows_what_there_is_in_proportion() {
        let counts = [(Some(50), 0), (Some(100), 3), (Some(200), 0), (Some(400), 12), (None, 1)];
        let failover = Failover {
            scheme: "3".into(),
            failure: "kill -9",
            times: 16,
            p50_ms: 0.0,
            p90_ms: 0.0,
            p99_ms: 0.0,
            max_ms: 0.0,
            histogram: counts.map(|(up_to_ms, count)| Range { up_to_ms, count }).into(),
            stalls_ms: Vec::new(),
            paused_ms: Vec::new(),
            calm_ms: Vec::new(),
            return_ms: Vec::new(),
        };
        let lines = [
            "3, kill -9: client stalls",
            " <= 100 ms    3 ##########",
            " <= 200 ms    0 ",
            " <= 400 ms   12 ########################################",
            "    longer    1 ####",
        ];
        assert_eq!(histogram(&failover), lines.join("\n"));
    }
}
