//! Counters of the cluster's OSDs, from their Prometheus endpoints.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};

/// OSDs publish their counters this often, at the latest.
const BEAT: Duration = Duration::from_millis(250);

/// Sums over all OSDs.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counters {
    /// System calls of the data path.
    pub calls: f64,
    /// Writes to devices.
    pub device_writes: f64,
    /// Bytes written to devices.
    pub device_bytes: f64,
}

impl Counters {
    /// The counters of a moment ago, once they are published.
    ///
    /// # Errors
    /// An endpoint does not answer.
    pub fn read(osds: &[SocketAddr]) -> Result<Self> {
        std::thread::sleep(BEAT);
        let [calls, device_writes, device_bytes] =
            totals(osds, ["system_calls_total", "device_writes_total", "device_written_bytes_total"])?;
        Ok(Self { calls, device_writes, device_bytes })
    }

    /// What was counted since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            calls: self.calls - before.calls,
            device_writes: self.device_writes - before.device_writes,
            device_bytes: self.device_bytes - before.device_bytes,
        }
    }
}

/// Sums of these metrics over all OSDs, as they were published last.
///
/// # Errors
/// An endpoint does not answer.
pub fn totals<const N: usize>(osds: &[SocketAddr], names: [&str; N]) -> Result<[f64; N]> {
    let mut totals = [0.0; N];
    for address in osds {
        let text = e2e::metrics(*address).with_context(|| format!("no metrics from {address}"))?;
        for (total, name) in totals.iter_mut().zip(names) {
            *total += e2e::sum(&text, &format!("blockyard_osd_process_{name}"));
        }
    }
    Ok(totals)
}
