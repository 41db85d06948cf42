//! Settings of this machine: command line over environment over configuration file over defaults.
//!
//! The file is TOML, or JSON if its name ends so. What it says is checked as strictly as the command line: an unknown
//! name or a value out of range is refused, never repaired.

use std::path::{Path, PathBuf};

use cluster_io::secret;
use cluster_proto::auth::{ClusterKey, Credentials};
use cluster_state::{ClientIdentity, Credentials as EtcdCredentials, EtcdConfig};
use serde::{Deserialize, Serialize};

use crate::args::node::{Durability, EtcdSettings, GatewaySettings, MonitorSettings, OsdSettings};
use crate::error::{CliError, io_failed};
use crate::output::{Output, print};
use crate::size::Size;

/// The cluster that is meant if none is named.
pub const CLUSTER_DEFAULT: &str = "./blockyard-data";

/// Everything that the configuration file may hold.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct NodeSettings {
    /// The cluster: as `--cluster`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// File with the cluster's key, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Encrypt the connections to OSDs; needs a key.
    #[serde(skip_serializing_if = "is_default")]
    pub encrypt: bool,
    /// How to be let in by its state store.
    pub etcd: EtcdSettings,
    /// OSDs of this machine.
    #[serde(skip_serializing_if = "is_default")]
    pub osd: OsdSettings,
    /// Monitor of this machine.
    #[serde(skip_serializing_if = "is_default")]
    pub mon: MonitorSettings,
    /// Gateway of this machine.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway: GatewaySettings,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl NodeSettings {
    /// Reads a configuration file.
    pub fn read(path: &Path) -> Result<NodeSettings, CliError> {
        let text = std::fs::read_to_string(path).map_err(|e| io_failed("read the configuration file", path, &e))?;
        let parsed = if path.extension().is_some_and(|extension| extension == "json") {
            serde_json::from_str(&text).map_err(|e| e.to_string())
        } else {
            toml::from_str(&text).map_err(|e| e.to_string())
        };
        parsed.map_err(|why| CliError::usage(format!("cannot use the configuration file {}: {why}", path.display())))
    }

    /// The cluster that is meant.
    pub fn cluster(&self) -> &str {
        self.cluster.as_deref().unwrap_or(CLUSTER_DEFAULT)
    }

    /// What belongs to the cluster's key, if there is one.
    pub fn credentials(&self) -> Result<Option<Credentials>, CliError> {
        let Some(path) = &self.key_file else {
            return match self.encrypt {
                true => Err(CliError::usage("encryption needs the cluster's key: give --key-file too")),
                false => Ok(None),
            };
        };
        Ok(Some(Credentials { key: read_key(path)?, encrypt: self.encrypt }))
    }

    /// Shows what is in force.
    pub fn dump(&self, out: Output) -> Result<(), CliError> {
        if out.json {
            return out.show(self, |_| String::new());
        }
        let text = toml::to_string(self).map_err(|e| CliError::failed(format!("cannot write the settings: {e}")))?;
        print(&text)
    }
}

/// The key in a key file.
pub fn read_key(path: &Path) -> Result<ClusterKey, CliError> {
    let text = secret::read(path).map_err(|e| CliError::failed(e.to_string()))?;
    let wrong = "it holds no cluster key, which is 64 hexadecimal digits";
    text.parse().map_err(|_| CliError::usage(format!("cannot use {}: {wrong}", path.display())))
}

impl EtcdSettings {
    /// How to connect to these endpoints.
    pub fn config(&self, spec: &str) -> Result<EtcdConfig, CliError> {
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some(ClientIdentity { cert_file: cert.clone(), key_file: key.clone() }),
            (None, None) => None,
            _ => {
                return Err(CliError::usage(
                    "a certificate for etcd needs its key: give both --etcd-cert and --etcd-key",
                ));
            }
        };
        let credentials = match (&self.user, &self.password_file) {
            (Some(user), Some(file)) => Some(EtcdCredentials { user: user.clone(), password: password(file)? }),
            (None, None) => None,
            _ => {
                let both = "give both --etcd-user and --etcd-password-file";
                return Err(CliError::usage(format!("a user of etcd needs a password: {both}")));
            }
        };
        let (ca_file, server_name) = (self.ca.clone(), self.server_name.clone());
        Ok(EtcdConfig { ca_file, identity, server_name, credentials, ..EtcdConfig::from_spec(spec)? })
    }
}

fn password(file: &PathBuf) -> Result<String, CliError> {
    let text = std::fs::read_to_string(file).map_err(|e| io_failed("read the password for etcd from", file, &e))?;
    match text.lines().next() {
        Some(password) if !password.is_empty() => Ok(password.to_owned()),
        _ => Err(CliError::usage(format!("the first line of {}, the password for etcd, is empty", file.display()))),
    }
}

/// An error unless `value` is inside the bounds.
fn within<T: PartialOrd + Copy + std::fmt::Display>(name: &str, value: T, min: T, max: T) -> Result<(), CliError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(CliError::usage(format!("{name} is {value}: give {min} to {max}")))
}

/// An error unless others can connect to it.
fn not_unspecified(name: &str, address: Option<std::net::SocketAddr>) -> Result<(), CliError> {
    match address.filter(|address| address.ip().is_unspecified()) {
        Some(address) => Err(CliError::usage(format!("{name} is {address}: others cannot connect to that"))),
        None => Ok(()),
    }
}

impl OsdSettings {
    /// The same with the defaults of what has one.
    pub fn effective(self) -> Self {
        self.or(Self {
            durability: Some(Durability::Auto),
            memory: Some(Size(1 << 30)),
            discard_min: Some(Size(1 << 20)),
            lease_ttl_s: Some(5),
            slow_operation_ms: Some(1000),
            busy_poll_us: Some(0),
            ..Self::default()
        })
    }

    /// Checks every bound.
    pub fn validate(&self) -> Result<(), CliError> {
        self.memory.map_or(Ok(()), |n| within("memory", n, Size(64 << 20), Size(1 << 40)))?;
        self.discard_min.map_or(Ok(()), |n| within("discard-min", n, Size(0), Size(1 << 30)))?;
        self.lease_ttl_s.map_or(Ok(()), |n| within("lease-ttl-s", n, 1, 60))?;
        self.slow_operation_ms.map_or(Ok(()), |n| within("slow-operation-ms", n, 0, 3_600_000))?;
        self.busy_poll_us.map_or(Ok(()), |n| within("busy-poll-us", n, 0, 1_000_000))?;
        not_unspecified("advertise", self.advertise)?;
        if self.advertise.is_none() {
            return not_unspecified("listen", self.listen).map_err(|e| {
                CliError::usage(format!("{e} without advertise: say under which address others reach it"))
            });
        }
        Ok(())
    }
}

impl MonitorSettings {
    /// The same with the defaults of what has one.
    pub fn effective(self) -> Self {
        self.or(Self { name: Some(host_name()), lease_ttl_s: Some(5), metrics: None })
    }

    /// Checks every bound.
    pub fn validate(&self) -> Result<(), CliError> {
        self.lease_ttl_s.map_or(Ok(()), |n| within("lease-ttl-s", n, 1, 60))?;
        match &self.name {
            Some(name) if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) => {
                Err(CliError::usage(format!("name is {name:?}: give 1 to 255 bytes of text")))
            }
            _ => Ok(()),
        }
    }
}

impl GatewaySettings {
    /// The same with the defaults of what has one.
    pub fn effective(self) -> Self {
        self.or(Self {
            nbd: vec![([127, 0, 0, 1], 10809).into()],
            connections_max: Some(1024),
            stop_timeout_ms: Some(2000),
            busy_poll_us: Some(0),
            lease_ttl_s: Some(5),
            ..Self::default()
        })
    }

    /// Checks every bound.
    pub fn validate(&self) -> Result<(), CliError> {
        self.connections_max.map_or(Ok(()), |n| within("connections-max", n, 1, 65_536))?;
        self.stop_timeout_ms.map_or(Ok(()), |n| within("stop-timeout-ms", n, 0, 60_000))?;
        self.busy_poll_us.map_or(Ok(()), |n| within("busy-poll-us", n, 0, 1_000_000))?;
        self.lease_ttl_s.map_or(Ok(()), |n| within("lease-ttl-s", n, 1, 60))
    }
}

/// The name of this machine.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<NodeSettings, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        NodeSettings::read(&path).map_err(|e| e.to_string())
    }

    const TOML: &str = r#"
        cluster = "10.0.0.1:2379,10.0.0.2:2379"
        [etcd]
        ca = "/etc/ca.pem"
        server-name = "etcd"
        [osd]
        listen = "10.0.0.7:0"
        memory = "2G"
        discard-min = 0
        durability = "write-through"
        [gateway]
        nbd = ["0.0.0.0:10809"]
    "#;

    #[test]
    fn both_formats_say_the_same_and_what_is_dumped_is_read_again() {
        let settings = read("a.toml", TOML).unwrap();
        assert_eq!(settings.cluster(), "10.0.0.1:2379,10.0.0.2:2379");
        assert_eq!((settings.osd.memory, settings.osd.discard_min), (Some(Size(2 << 30)), Some(Size(0))));
        let json = serde_json::to_string(&settings).unwrap();
        assert_eq!(read("a.json", &json).unwrap(), settings);
        assert_eq!(read("b.toml", &toml::to_string(&settings).unwrap()).unwrap(), settings);
        let effective = settings.osd.clone().effective();
        assert_eq!((effective.lease_ttl_s, effective.durability), (Some(5), Some(Durability::WriteThrough)));
        assert_eq!(read("empty.toml", "").unwrap(), NodeSettings::default());
    }

    #[test]
    fn what_is_not_known_or_out_of_range_is_refused() {
        for (text, word) in [
            ("clster = 'x'", "clster"),
            ("[osd]\nmemory = '1X'", "1X"),
            ("[osd]\nlisten = 'here'", "listen"),
            ("[gateway]\nnbd = '1.2.3.4:1'", "nbd"),
            ("[etcd]\npassword = 'secret'", "password"),
        ] {
            let why = read("a.toml", text).unwrap_err();
            assert!(why.contains(word) && why.contains("a.toml"), "{why}");
        }
        let listen = |text: &str| Some(text.parse().unwrap());
        let bad = OsdSettings { listen: listen("0.0.0.0:0"), ..OsdSettings::default() };
        assert!(bad.validate().is_err());
        assert!(OsdSettings { advertise: listen("10.0.0.1:0"), ..bad }.validate().is_ok());
        assert!(OsdSettings { memory: Some(Size(1)), ..OsdSettings::default() }.validate().is_err());
        assert!(OsdSettings { lease_ttl_s: Some(61), ..OsdSettings::default() }.validate().is_err());
        assert!(GatewaySettings { connections_max: Some(0), ..GatewaySettings::default() }.validate().is_err());
        assert!(MonitorSettings { name: Some(String::new()), ..MonitorSettings::default() }.validate().is_err());
        assert!(OsdSettings::default().effective().validate().is_ok());
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = read("a.toml", TOML).unwrap();
        let line = OsdSettings { memory: Some(Size(64 << 20)), ..OsdSettings::default() };
        let both = line.or(file.osd);
        assert_eq!((both.memory, both.listen), (Some(Size(64 << 20)), Some("10.0.0.7:0".parse().unwrap())));
        let line = GatewaySettings { nbd_unix: vec!["/run/nbd".into()], ..GatewaySettings::default() };
        let both = line.or(file.gateway).effective();
        assert!(both.nbd.is_empty() && both.nbd_unix.len() == 1, "listeners are replaced as a whole");
    }

    #[test]
    fn a_secret_comes_from_a_file_and_halves_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "secret\nmore\n").unwrap();
        let settings = EtcdSettings { user: Some("root".into()), ..EtcdSettings::default() };
        assert!(settings.config("a:1").is_err());
        let settings = EtcdSettings { password_file: Some(file.clone()), ..settings };
        assert_eq!(settings.config("a:1").unwrap().credentials.unwrap().password, "secret");
        assert!(EtcdSettings { cert: Some(file.clone()), ..EtcdSettings::default() }.config("a:1").is_err());
        std::fs::write(&file, "\n").unwrap();
        assert!(settings.config("a:1").unwrap_err().to_string().contains("empty"));
    }
}
