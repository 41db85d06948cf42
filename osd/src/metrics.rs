//! Metrics of the OSDs of one process, in Prometheus' text format.

use std::fmt::Write;

use cluster_proto::OsdId;

use osd_core::OP_CLASSES;

use crate::live::Live;

/// A number of an OSD: name, kind, help, and where it is.
type Metric = (&'static str, &'static str, &'static str, fn(&Live) -> u64);

const METRICS: &[Metric] = &[
    ("reads_total", "counter", "Client reads answered", |l| l.stats.reads),
    ("writes_total", "counter", "Client changes answered", |l| l.stats.writes),
    ("read_bytes_total", "counter", "Bytes read for clients", |l| l.stats.read_bytes),
    ("written_bytes_total", "counter", "Bytes written for clients", |l| l.stats.write_bytes),
    ("crc_errors_total", "counter", "Sectors that did not match their checksum", |l| l.stats.crc_errors),
    ("repaired_sectors_total", "counter", "Damaged sectors rewritten from another copy", |l| l.stats.repaired_sectors),
    ("lost_sectors_total", "counter", "Sectors that nobody could read of objects copied", |l| l.stats.lost_sectors),
    ("io_errors_total", "counter", "Device errors", |l| l.stats.io_errors),
    ("recovered_objects_total", "counter", "Objects copied to bring members to the same state", |l| {
        l.stats.recovered_objects
    }),
    ("patched_objects_total", "counter", "Of these, those of which only changed sectors were written", |l| {
        l.stats.patched_objects
    }),
    ("recovered_bytes_total", "counter", "Bytes written to members for that", |l| l.stats.recovered_bytes),
    ("objects_degraded", "gauge", "Objects of PGs that it leads that some member lacks", |l| l.stats.objects_degraded),
    ("scrubbed_objects_total", "counter", "Objects that deep scrubs verified", |l| l.stats.scrubbed_objects),
    ("scrub_errors_total", "counter", "Damaged sectors and differences that scrubs found", |l| l.stats.scrub_errors),
    ("scrub_unrepaired_total", "counter", "Damaged sectors that scrubs could not repair", |l| l.stats.scrub_unrepaired),
    ("device_writes_total", "counter", "Writes to the device: data and log", |l| {
        l.store.data_writes + l.store.log_writes
    }),
    ("device_written_bytes_total", "counter", "Bytes written to the device: data, log and checkpoints", |l| {
        l.store.data_bytes_written + l.store.log_bytes_written + l.store.checkpoint_bytes_written
    }),
    ("device_flushes_total", "counter", "Flushes of the device", |l| l.store.flushes),
    ("device_reads_total", "counter", "Reads of data from the device", |l| l.store.reads),
    ("memory_bytes", "gauge", "Memory of the store's index, free map and requests", |l| l.store.memory_bytes),
    ("system_calls_total", "counter", "System calls of the data path", |l| l.reactor.system_calls),
    ("space_bytes", "gauge", "Size of the data area", |l| l.stats.space.total),
    ("used_bytes", "gauge", "Used part of the data area", |l| l.stats.space.used),
    ("objects", "gauge", "Objects stored", |l| l.stats.space.objects),
    ("pgs_active", "gauge", "PGs that it leads and serves", |l| l.stats.pgs_active.into()),
    ("pgs_inactive", "gauge", "PGs that it leads and does not serve", |l| l.stats.pgs_inactive.into()),
    ("connections", "gauge", "Open connections", |l| l.connections as u64),
    ("paused_connections", "gauge", "Connections that do not take their answers", |l| l.paused_connections as u64),
    ("requests_held", "gauge", "Client requests being worked on", |l| l.held_requests as u64),
    ("store_operations", "gauge", "Operations that the store has not finished", |l| l.store_operations as u64),
];

/// What these OSDs do, as their threads published it last.
pub fn to_prometheus(osds: &[(OsdId, Live)]) -> String {
    let mut out = String::new();
    for (name, kind, help, value) in METRICS {
        let name = format!("blockyard_osd_process_{name}");
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} {kind}");
        for (id, live) in osds {
            let _ = writeln!(out, "{name}{{osd=\"{id}\"}} {}", value(live));
        }
    }
    put_latencies(&mut out, osds);
    out
}

fn put_latencies(out: &mut String, osds: &[(OsdId, Live)]) {
    let name = "blockyard_osd_process_latency_seconds";
    let help =
        "Time that operations took: requests of clients, operations at other members, operations of the own store";
    let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} histogram");
    for (id, live) in osds {
        for (place, by_class) in live.latencies.places() {
            for (class, histogram) in OP_CLASSES.into_iter().zip(by_class) {
                let labels = format!("osd=\"{id}\",at=\"{place}\",op=\"{}\"", class.name());
                histogram.put_prometheus(out, name, &labels);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_osd_has_each_metric_once() {
        let mut live = Live::default();
        live.stats.reads = 7;
        let text = to_prometheus(&[(OsdId(1), Live::default()), (OsdId(2), live)]);
        assert!(text.contains("blockyard_osd_process_reads_total{osd=\"2\"} 7\n"), "{text}");
        assert!(!text.contains("_bucket"), "nothing has been counted");
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples, 2 * METRICS.len());
    }

    #[test]
    fn latencies_say_where_and_of_what() {
        let mut live = Live::default();
        live.latencies.member[1].add(1_000);
        let text = to_prometheus(&[(OsdId(2), live)]);
        let name = "blockyard_osd_process_latency_seconds";
        let labels = "osd=\"2\",at=\"member\",op=\"write\"";
        assert!(text.contains(&format!("{name}_bucket{{{labels},le=\"0.001024\"}} 1\n")), "{text}");
        assert!(text.contains(&format!("{name}_bucket{{{labels},le=\"0.000512\"}} 0\n")), "{text}");
        assert!(text.contains(&format!("{name}_sum{{{labels}}} 0.001\n")), "{text}");
    }
}
