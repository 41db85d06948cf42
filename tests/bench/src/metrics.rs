//! Counters of the cluster's OSDs, from its Prometheus endpoint.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
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
    /// The endpoint does not answer.
    pub fn read(metrics: SocketAddr) -> Result<Self> {
        std::thread::sleep(BEAT);
        let mut stream = TcpStream::connect(metrics).context("the metrics endpoint is not there")?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let sum = |name: &str| {
            let name = format!("blockyard_osd_process_{name}{{");
            let values = text.lines().filter(|line| line.starts_with(&name));
            values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Ok(Self {
            calls: sum("system_calls_total"),
            device_writes: sum("device_writes_total"),
            device_bytes: sum("device_written_bytes_total"),
        })
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
