//! Which cluster is meant and how to be let in: options over the environment over the configuration file over defaults, with the
//! names and the meaning that they have for the command `blockyard`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cluster_io::secret;
use cluster_proto::auth::Credentials;
use cluster_state::{ClientIdentity, Credentials as EtcdCredentials, EtcdConfig, EtcdStore, StateStore};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::Error;
use crate::settings::AccessOptions;

/// The cluster that is meant if none is named.
const CLUSTER_DEFAULT: &str = "./blockyard-data";

/// A cluster that can be talked to.
pub(crate) struct Access {
    /// Its state.
    pub state: Arc<dyn StateStore>,
    /// Its key, if it has one.
    pub credentials: Option<Credentials>,
}

impl Access {
    /// Prepares the way; nothing is asked yet. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A file cannot be read, or is not what it should be.
    pub fn new(options: &AccessOptions) -> Result<Self, Error> {
        let sources = Sources::of(options)?;
        let config = sources.etcd.config(&endpoints(&sources.cluster)?)?;
        Ok(Self { state: Arc::new(EtcdStore::new(config)?), credentials: sources.credentials()? })
    }
}

/// The part of the configuration file that is about clients. That of daemons is left to them.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct ConfFile {
    cluster: Option<String>,
    key_file: Option<PathBuf>,
    encrypt: bool,
    etcd: EtcdSection,
    #[serde(rename = "osd")]
    _osd: IgnoredAny,
    #[serde(rename = "mon")]
    _mon: IgnoredAny,
    #[serde(rename = "gateway")]
    _gateway: IgnoredAny,
}

/// How to be let in by etcd.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct EtcdSection {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    server_name: Option<String>,
    user: Option<String>,
    password_file: Option<PathBuf>,
}

/// What is in force.
struct Sources {
    cluster: String,
    key_file: Option<PathBuf>,
    encrypt: bool,
    etcd: EtcdSection,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn failed(what: &str, path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(format!("cannot {what} {}: {why}", path.display()))
}

impl Sources {
    fn of(options: &AccessOptions) -> Result<Self, Error> {
        let path = options.conf.clone().or_else(|| variable("BLOCKYARD_CONFIG").map(PathBuf::from));
        let file = path.map_or_else(|| Ok(ConfFile::default()), |path| read_conf(&path))?;
        let cluster = options.etcd.clone().or_else(|| variable("BLOCKYARD_CLUSTER")).or(file.cluster);
        let key_file = options.key_file.clone().or_else(|| variable("BLOCKYARD_KEY_FILE").map(PathBuf::from));
        Ok(Self {
            cluster: cluster.unwrap_or_else(|| CLUSTER_DEFAULT.to_owned()),
            key_file: key_file.or(file.key_file),
            encrypt: options.encrypt || file.encrypt,
            etcd: file.etcd,
        })
    }

    fn credentials(&self) -> Result<Option<Credentials>, Error> {
        let Some(path) = &self.key_file else {
            return match self.encrypt {
                true => Err(Error::new("encryption needs the cluster's key: give blockyard_key_file too")),
                false => Ok(None),
            };
        };
        let text = secret::read(path)?;
        let wrong = "it holds no cluster key, which is 64 hexadecimal digits";
        let key = text.parse().map_err(|_| failed("use", path, wrong))?;
        Ok(Some(Credentials { key, encrypt: self.encrypt }))
    }
}

fn read_conf(path: &Path) -> Result<ConfFile, Error> {
    let text = std::fs::read_to_string(path).map_err(|e| failed("read the configuration file", path, e))?;
    if path.extension().is_some_and(|extension| extension == "json") {
        return serde_json::from_str(&text).map_err(|e| failed("use the configuration file", path, e));
    }
    toml::from_str(&text).map_err(|e| failed("use the configuration file", path, e))
}

impl EtcdSection {
    fn config(&self, spec: &str) -> Result<EtcdConfig, Error> {
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some(ClientIdentity { cert_file: cert.clone(), key_file: key.clone() }),
            (None, None) => None,
            _ => return Err(Error::new("a certificate for etcd needs its key: set both cert and key in [etcd]")),
        };
        let credentials = match (&self.user, &self.password_file) {
            (Some(user), Some(file)) => Some(EtcdCredentials { user: user.clone(), password: password(file)? }),
            (None, None) => None,
            _ => return Err(Error::new("a user of etcd needs a password: set both user and password-file in [etcd]")),
        };
        let (ca_file, server_name) = (self.ca.clone(), self.server_name.clone());
        Ok(EtcdConfig { ca_file, identity, server_name, credentials, ..EtcdConfig::from_spec(spec)? })
    }
}

fn password(path: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(path).map_err(|e| failed("read the password for etcd from", path, e))?;
    match text.lines().next().filter(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_owned()),
        None => Err(failed("take the password for etcd from", path, "its first line is empty")),
    }
}

/// The endpoints that a name of a cluster stands for: a data directory of `blockyard up`, or endpoints.
fn endpoints(cluster: &str) -> Result<String, Error> {
    #[derive(Deserialize)]
    struct Up {
        etcd: String,
    }
    let folder = Path::new(cluster);
    if cluster.contains(':') && !cluster.starts_with(['.', '/']) && !folder.is_dir() {
        return Ok(cluster.to_owned());
    }
    let path = folder.join("up.json");
    let text = std::fs::read(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::new(format!(
            "no cluster runs on {}: start one with 'blockyard up --data-dir {0}', or name another with blockyard_etcd",
            folder.display()
        )),
        _ => failed("read", &path, e),
    })?;
    let up: Up = serde_json::from_slice(&text).map_err(|e| failed("understand", &path, e))?;
    Ok(up.etcd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(name: &str, text: &str) -> Result<ConfFile, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read_conf(&path)
    }

    #[test]
    fn the_file_of_the_command_is_understood() {
        let text =
            "cluster = \"a:1\"\nkey-file = \"/k\"\nencrypt = true\n[etcd]\nca = \"/ca\"\n[osd]\nlisten = \"x\"\n";
        let file = conf("conf.toml", text).unwrap();
        assert_eq!((file.cluster.as_deref(), file.encrypt), (Some("a:1"), true));
        assert_eq!((file.key_file, file.etcd.ca), (Some("/k".into()), Some("/ca".into())));
        assert_eq!(conf("conf.json", r#"{"cluster":"b:1"}"#).unwrap().cluster.as_deref(), Some("b:1"));
        assert!(conf("conf.toml", "clutser = \"a:1\"").is_err());
        assert!(read_conf(Path::new("/nowhere/conf")).is_err());
    }

    #[test]
    fn half_a_way_in_is_refused() {
        let section = |text: &str| toml::from_str::<EtcdSection>(text).unwrap().config("a:1");
        assert!(section("").is_ok());
        assert!(section("cert = \"/c\"").is_err());
        assert!(section("user = \"u\"").is_err());
        let sources =
            |key_file, encrypt| Sources { cluster: String::new(), key_file, encrypt, etcd: EtcdSection::default() };
        assert!(sources(None, false).credentials().unwrap().is_none());
        assert!(sources(None, true).credentials().is_err());
        assert!(sources(Some("/nowhere/key".into()), false).credentials().is_err());
    }

    #[test]
    fn endpoints_and_directories_are_told_apart() {
        assert_eq!(endpoints("127.0.0.1:2379").as_deref(), Ok("127.0.0.1:2379"));
        assert_eq!(endpoints("http://a:1,http://b:2").as_deref(), Ok("http://a:1,http://b:2"));
        assert!(endpoints("./no:where").unwrap_err().to_string().contains("no cluster runs on ./no:where"));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("up.json"), r#"{"pid":1,"etcd":"127.0.0.1:7"}"#).unwrap();
        assert_eq!(endpoints(folder.path().to_str().unwrap()).as_deref(), Ok("127.0.0.1:7"));
    }
}
