//! Settings of one machine: options of the daemons and of the way to the state store. The same types are read from the
//! configuration file ([`crate::settings`]), so a setting has one name and one meaning in both places.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::size::Size;

/// Heading of the options about the state store.
const STORE: &str = "Options for etcd with TLS or users";

/// How to be let in by the state store. All of it is for real etcd; that of `blockyard up` asks for nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default, ClapArgs, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct EtcdSettings {
    /// Certificate authority of the etcd servers, PEM; turns TLS on [default: those the system trusts]
    #[arg(id = "etcd-ca", long = "etcd-ca", global = true, help_heading = STORE, env = "BLOCKYARD_ETCD_CA")]
    #[arg(value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Our certificate, PEM; turns TLS on. Needs --etcd-key
    #[arg(id = "etcd-cert", long = "etcd-cert", global = true, help_heading = STORE, env = "BLOCKYARD_ETCD_CERT")]
    #[arg(value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Our private key, PEM
    #[arg(id = "etcd-key", long = "etcd-key", global = true, help_heading = STORE, env = "BLOCKYARD_ETCD_KEY")]
    #[arg(value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Name that the servers' certificates must have [default: the endpoint's]
    #[arg(id = "etcd-server-name", long = "etcd-server-name", global = true, help_heading = STORE)]
    #[arg(env = "BLOCKYARD_ETCD_SERVER_NAME", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// User of etcd. Needs --etcd-password-file
    #[arg(id = "etcd-user", long = "etcd-user", global = true, help_heading = STORE, env = "BLOCKYARD_ETCD_USER")]
    #[arg(value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// File with the user's password: its first line
    #[arg(id = "etcd-password-file", long = "etcd-password-file", global = true, help_heading = STORE)]
    #[arg(env = "BLOCKYARD_ETCD_PASSWORD_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

impl EtcdSettings {
    /// These, and for what is not set here the `other` ones.
    pub fn or(self, other: Self) -> Self {
        Self {
            ca: self.ca.or(other.ca),
            cert: self.cert.or(other.cert),
            key: self.key.or(other.key),
            server_name: self.server_name.or(other.server_name),
            user: self.user.or(other.user),
            password_file: self.password_file.or(other.password_file),
        }
    }
}

/// When a write to the device counts as durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// After a flush, unless the device says that it has no volatile cache
    Auto,
    /// When the device says that it is written
    WriteThrough,
    /// After a flush
    Flush,
}

/// Settings of an OSD process.
#[derive(Clone, PartialEq, Eq, Debug, Default, ClapArgs, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct OsdSettings {
    /// Where to listen; port 0 is any free one [default: the address that reaches the state store, any port]
    #[arg(long, value_name = "ADDRESS", env = "BLOCKYARD_OSD_LISTEN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Where others reach it, if elsewhere; port 0 is the port it listens on
    #[arg(long, value_name = "ADDRESS", env = "BLOCKYARD_OSD_ADVERTISE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// When a write to the device counts as durable [default: auto]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
    /// Memory for metadata, above which new objects are refused [default: 1G; 64M to 1T]
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Freed runs of at least this size are given back to the device; 0 is never [default: 1M; up to 1G]
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard_min: Option<Size>,
    /// How long the cluster takes a dead OSD for alive if nobody notices, in seconds [default: 5; 1 to 60]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_ttl_s: Option<u32>,
    /// Operations that take so long are logged, with where the time went, in milliseconds; 0 is none [default: 1000; up to
    /// 3600000]
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_operation_ms: Option<u32>,
    /// How long it looks for work before it sleeps, in microseconds: lower latency for processor time [default: 0; up to 1000000]
    #[arg(long, value_name = "US")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy_poll_us: Option<u32>,
    /// Where to serve Prometheus metrics, at /metrics [default: nowhere]
    #[arg(long, value_name = "ADDRESS", env = "BLOCKYARD_OSD_METRICS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
}

impl OsdSettings {
    /// These, and for what is not set here the `other` ones.
    pub fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            advertise: self.advertise.or(other.advertise),
            durability: self.durability.or(other.durability),
            memory: self.memory.or(other.memory),
            slow_operation_ms: self.slow_operation_ms.or(other.slow_operation_ms),
            busy_poll_us: self.busy_poll_us.or(other.busy_poll_us),
            discard_min: self.discard_min.or(other.discard_min),
            lease_ttl_s: self.lease_ttl_s.or(other.lease_ttl_s),
            metrics: self.metrics.or(other.metrics),
        }
    }
}

/// Settings of a monitor process.
#[derive(Clone, PartialEq, Eq, Debug, Default, ClapArgs, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct MonitorSettings {
    /// Name under which it leads, for people [default: the host's name]
    #[arg(long, value_name = "NAME", env = "BLOCKYARD_MON_NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How long a dead leader blocks the next, in seconds [default: 5; 1 to 60]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_ttl_s: Option<u32>,
    /// Where to serve Prometheus metrics of the whole cluster, at /metrics [default: nowhere]
    #[arg(long, value_name = "ADDRESS", env = "BLOCKYARD_MON_METRICS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
}

impl MonitorSettings {
    /// These, and for what is not set here the `other` ones.
    pub fn or(self, other: Self) -> Self {
        Self {
            name: self.name.or(other.name),
            lease_ttl_s: self.lease_ttl_s.or(other.lease_ttl_s),
            metrics: self.metrics.or(other.metrics),
        }
    }
}

/// Settings of a gateway process.
#[derive(Clone, PartialEq, Eq, Debug, Default, ClapArgs, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct GatewaySettings {
    /// Where to serve NBD; repeat for more [default: 127.0.0.1:10809, unless there is --nbd-unix]
    #[arg(long, value_name = "ADDRESS", env = "BLOCKYARD_GATEWAY_NBD", value_delimiter = ',')]
    pub nbd: Vec<SocketAddr>,
    /// Unix socket to serve NBD on; repeat for more
    #[arg(long, value_name = "PATH")]
    pub nbd_unix: Vec<PathBuf>,
    /// Connections served at once [default: 1024; 1 to 65536]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<usize>,
    /// How long requests may take to end when it stops, in milliseconds [default: 2000; up to 60000]
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout_ms: Option<u64>,
    /// How long the cluster takes a dead gateway for alive, in seconds [default: 5; 1 to 60]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_ttl_s: Option<u32>,
    /// How long it looks for work before it sleeps, in microseconds: lower latency for processor time [default: 0; up to 1000000]
    #[arg(long, value_name = "US")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy_poll_us: Option<u32>,
    /// Where to serve Prometheus metrics, at /metrics [default: nowhere]
    #[arg(long, value_name = "ADDRESS", env = "BLOCKYARD_GATEWAY_METRICS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
}

impl GatewaySettings {
    /// These, and for what is not set here the `other` ones.
    pub fn or(self, other: Self) -> Self {
        let has_listeners = !self.nbd.is_empty() || !self.nbd_unix.is_empty();
        let (nbd, nbd_unix) = if has_listeners { (self.nbd, self.nbd_unix) } else { (other.nbd, other.nbd_unix) };
        Self {
            nbd,
            nbd_unix,
            connections_max: self.connections_max.or(other.connections_max),
            stop_timeout_ms: self.stop_timeout_ms.or(other.stop_timeout_ms),
            busy_poll_us: self.busy_poll_us.or(other.busy_poll_us),
            lease_ttl_s: self.lease_ttl_s.or(other.lease_ttl_s),
            metrics: self.metrics.or(other.metrics),
        }
    }
}

/// Options of `osd run`.
#[derive(Clone, Debug, ClapArgs)]
pub struct OsdRun {
    /// Prepared devices or files: one OSD each, all in this process
    #[arg(required_unless_present = "dump_config", value_name = "DEVICE")]
    pub paths: Vec<PathBuf>,
    /// Settings that the configuration file may also hold.
    #[command(flatten)]
    pub settings: OsdSettings,
    /// Print the settings in force and end
    #[arg(long)]
    pub dump_config: bool,
}

/// Options of `mon`.
#[derive(Clone, Debug, ClapArgs)]
pub struct MonitorRun {
    /// Settings that the configuration file may also hold.
    #[command(flatten)]
    pub settings: MonitorSettings,
    /// Print the settings in force and end
    #[arg(long)]
    pub dump_config: bool,
}

/// Options of `gateway`.
#[derive(Clone, Debug, ClapArgs)]
pub struct GatewayRun {
    /// Settings that the configuration file may also hold.
    #[command(flatten)]
    pub settings: GatewaySettings,
    /// Print the settings in force and end
    #[arg(long)]
    pub dump_config: bool,
}
