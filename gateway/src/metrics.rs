//! Counters and latency histograms per export and kind of operation. The thread owns and counts them without locks, and
//! publishes copies.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use cluster_proto::latency::Histogram;
use gateway_core::{VolumeOp, VolumeReply};

/// A kind of operation on a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpKind {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush.
    Flush,
    /// Discard.
    Discard,
    /// Write zeroes.
    WriteZeroes,
    /// Compare and write.
    CompareAndWrite,
    /// Block status.
    BlockStatus,
}

/// All kinds, in the order of [`ExportStats::ops`].
pub const OP_KINDS: [OpKind; 7] = [
    OpKind::Read,
    OpKind::Write,
    OpKind::Flush,
    OpKind::Discard,
    OpKind::WriteZeroes,
    OpKind::CompareAndWrite,
    OpKind::BlockStatus,
];

impl OpKind {
    pub(crate) fn of(op: &VolumeOp) -> Self {
        match op {
            VolumeOp::Read { .. } => OpKind::Read,
            VolumeOp::Write { .. } => OpKind::Write,
            VolumeOp::Flush => OpKind::Flush,
            VolumeOp::Discard { .. } => OpKind::Discard,
            VolumeOp::WriteZeroes { .. } => OpKind::WriteZeroes,
            VolumeOp::CompareAndWrite { .. } => OpKind::CompareAndWrite,
            VolumeOp::BlockStatus { .. } => OpKind::BlockStatus,
        }
    }

    /// The kind as a label of metrics.
    pub fn label(self) -> &'static str {
        match self {
            OpKind::Read => "read",
            OpKind::Write => "write",
            OpKind::Flush => "flush",
            OpKind::Discard => "discard",
            OpKind::WriteZeroes => "write_zeroes",
            OpKind::CompareAndWrite => "compare_and_write",
            OpKind::BlockStatus => "block_status",
        }
    }
}

/// Bytes that an operation concerns.
pub(crate) fn op_bytes(op: &VolumeOp) -> u64 {
    match op {
        VolumeOp::Read { len, .. } => (*len).into(),
        VolumeOp::Write { data, .. } | VolumeOp::CompareAndWrite { data, .. } => data.len() as u64,
        VolumeOp::Discard { len, .. } | VolumeOp::WriteZeroes { len, .. } | VolumeOp::BlockStatus { len, .. } => *len,
        VolumeOp::Flush => 0,
    }
}

/// Operations of one kind on one export since the gateway's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpStats {
    /// Answered, failed ones included.
    pub count: u64,
    /// Failed.
    pub errors: u64,
    /// Bytes that they concerned.
    pub bytes: u64,
    /// Times from request to answer.
    pub latency: Histogram,
}

impl OpStats {
    fn add(&mut self, bytes: u64, latency_us: u64, failed: bool) {
        self.count += 1;
        self.errors += u64::from(failed);
        self.bytes += bytes;
        self.latency.add(latency_us);
    }
}

/// One export that somebody is or was attached to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExportStats {
    /// Connections attached to it now.
    pub attached: u32,
    /// By kind, in the order of [`OP_KINDS`].
    pub ops: [OpStats; OP_KINDS.len()],
}

impl ExportStats {
    pub(crate) fn add(&mut self, kind: OpKind, bytes: u64, latency_us: u64, reply: &VolumeReply) {
        let failed = matches!(reply, VolumeReply::Failed(_));
        self.ops[kind as usize].add(bytes, latency_us, failed);
    }
}

/// What a gateway has done since its start. Published about once a second while there is something new.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GatewayStats {
    /// Names of all exports.
    pub names: Arc<BTreeSet<String>>,
    /// Connections now.
    pub connections: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections turned away because there were too many.
    pub refused: u64,
    /// Requests under way now.
    pub in_flight: u64,
    /// Answered changes in lazy pools that are not durable yet.
    pub unsynced: u64,
    /// Exports that somebody is or was attached to.
    pub exports: BTreeMap<String, ExportStats>,
}

impl GatewayStats {
    /// The same in the text format of Prometheus.
    pub fn to_prometheus(&self) -> String {
        let mut out = String::new();
        for (name, kind, help, value) in [
            ("connections", "gauge", "Connections now", self.connections),
            ("connections_accepted_total", "counter", "Connections accepted", self.accepted),
            ("connections_refused_total", "counter", "Connections turned away", self.refused),
            ("requests_in_flight", "gauge", "Requests under way now", self.in_flight),
            ("unsynced_changes", "gauge", "Answered changes in lazy pools that are not durable yet", self.unsynced),
        ] {
            let _ = writeln!(out, "# HELP blockyard_gateway_{name} {help}.\n# TYPE blockyard_gateway_{name} {kind}");
            let _ = writeln!(out, "blockyard_gateway_{name} {value}");
        }
        self.put_counters(&mut out);
        self.put_latency(&mut out);
        out
    }

    fn ops(&self) -> impl Iterator<Item = (String, &OpStats)> {
        self.exports.iter().flat_map(|(name, export)| {
            let labels = |kind: OpKind| format!("export=\"{}\",op=\"{}\"", escape(name), kind.label());
            OP_KINDS.into_iter().map(move |kind| (labels(kind), &export.ops[kind as usize]))
        })
    }

    fn put_counters(&self, out: &mut String) {
        type Counter = fn(&OpStats) -> u64;
        let metrics: [(&str, &str, Counter); 3] = [
            ("ops", "Operations answered", |op| op.count),
            ("errors", "Operations failed", |op| op.errors),
            ("bytes", "Bytes that operations concerned", |op| op.bytes),
        ];
        for (name, help, value) in metrics {
            let name = format!("blockyard_gateway_{name}_total");
            let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} counter");
            for (labels, op) in self.ops() {
                let _ = writeln!(out, "{name}{{{labels}}} {}", value(op));
            }
        }
    }

    fn put_latency(&self, out: &mut String) {
        let name = "blockyard_gateway_latency_seconds";
        let _ = writeln!(out, "# HELP {name} Time from request to answer.\n# TYPE {name} histogram");
        self.ops().for_each(|(labels, op)| op.latency.put_prometheus(out, name, &labels));
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_has_its_labels() {
        let mut stats = ExportStats::default();
        for latency in [0, 1, 2, 3, 4, 1_000_000_000] {
            stats.add(OpKind::Write, 512, latency, &VolumeReply::Done);
        }
        let write = &stats.ops[OpKind::Write as usize];
        assert_eq!((write.count, write.bytes, write.errors), (6, 6 * 512, 0));
        assert_eq!(write.latency.count(), 6);
        let exports = BTreeMap::from([("a\"b".to_owned(), stats)]);
        let text = GatewayStats { exports, ..GatewayStats::default() }.to_prometheus();
        let bucket = "blockyard_gateway_latency_seconds_bucket{export=\"a\\\"b\",op=\"write\",le=\"0.000002\"} 2";
        assert!(text.contains(bucket), "{text}");
        assert!(text.contains("blockyard_gateway_ops_total{export=\"a\\\"b\",op=\"write\"} 6"));
    }
}
