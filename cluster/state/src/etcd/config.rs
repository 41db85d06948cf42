//! Where etcd is and how to be let in.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Identity, Uri};

use crate::error::StateError;

/// How a [`crate::EtcdStore`] connects.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// `host:port`, `http://host:port` or `https://host:port`; at least one.
    pub endpoints: Vec<String>,
    /// User and password, if etcd asks for them.
    pub credentials: Option<Credentials>,
    /// Certificate authority of the servers, PEM; without it the system's are trusted.
    pub ca_file: Option<PathBuf>,
    /// Certificate and key of this client, PEM.
    pub identity: Option<ClientIdentity>,
    /// Name that the servers' certificates must have, if it is not the endpoint's.
    pub server_name: Option<String>,
    /// How long a request may take, all attempts together.
    pub request_timeout: Duration,
}

/// A user of etcd.
#[derive(Clone)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Files by which this client proves who it is.
#[derive(Clone, Debug)]
pub struct ClientIdentity {
    /// Certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Private key, PEM.
    pub key_file: PathBuf,
}

impl EtcdConfig {
    /// Connects to these endpoints without credentials, with 5 s for a request.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        let endpoints = endpoints.into_iter().map(Into::into).collect();
        Self {
            endpoints,
            credentials: None,
            ca_file: None,
            identity: None,
            server_name: None,
            request_timeout: Duration::from_secs(5),
        }
    }

    /// Reads a comma-separated list of endpoints.
    ///
    /// # Errors
    /// `Invalid`: the list is empty, or an entry is no endpoint.
    pub fn from_spec(spec: &str) -> Result<Self, StateError> {
        let endpoints = spec.split(',').map(str::trim).filter(|endpoint| !endpoint.is_empty());
        let config = Self::new(endpoints);
        config.uris().map(|_| config.clone())
    }

    /// The endpoints as addresses with a scheme.
    pub(super) fn uris(&self) -> Result<Vec<Uri>, StateError> {
        if self.endpoints.is_empty() {
            return Err(StateError::invalid("no endpoint of the state store was given; say host:port[,host:port ..]"));
        }
        self.endpoints.iter().map(|endpoint| self.uri(endpoint)).collect()
    }

    fn uri(&self, endpoint: &str) -> Result<Uri, StateError> {
        let bad = |why: &str| {
            let wanted = "say host:port, http://host:port or https://host:port";
            StateError::invalid(format!("`{endpoint}` is no endpoint of a state store: {why}; {wanted}"))
        };
        let scheme = if self.ca_file.is_some() || self.identity.is_some() { "https" } else { "http" };
        let full = if endpoint.contains("://") { endpoint.to_owned() } else { format!("{scheme}://{endpoint}") };
        let uri: Uri = full.parse().map_err(|_| bad("it is no address"))?;
        match (uri.scheme_str(), uri.port_u16(), uri.host()) {
            (Some("http" | "https"), Some(1..), Some(host)) if !host.is_empty() => Ok(uri),
            (Some("http" | "https"), ..) => Err(bad("it has no port")),
            _ => Err(bad("its scheme is unknown")),
        }
    }

    /// How to encrypt.
    pub(super) fn tls(&self) -> Result<ClientTlsConfig, StateError> {
        let mut tls = match &self.ca_file {
            Some(file) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(file)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some(identity) = &self.identity {
            tls = tls.identity(Identity::from_pem(read(&identity.cert_file)?, read(&identity.key_file)?));
        }
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        Ok(tls)
    }
}

fn read(file: &Path) -> Result<Vec<u8>, StateError> {
    std::fs::read(file).map_err(|error| {
        StateError::invalid(format!(
            "cannot read {} for TLS to the state store: {error}; check the path",
            file.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked() {
        let config = EtcdConfig::from_spec(" 127.0.0.1:2379, http://[::1]:1 ,https://etcd.example:2379,").unwrap();
        let uris: Vec<String> = config.uris().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(uris, ["http://127.0.0.1:2379/", "http://[::1]:1/", "https://etcd.example:2379/"]);
        for bad in ["", " , ", "localhost", "http://localhost", "ftp://a:1", "a:0", "a:b", "a:70000", "://:1"] {
            let error = EtcdConfig::from_spec(bad).unwrap_err();
            assert_eq!(error.kind, crate::StateErrorKind::Invalid, "{bad}: {error}");
        }
    }

    #[test]
    fn passwords_stay_out_of_logs() {
        let credentials = Credentials { user: "root".into(), password: "hidden".into() };
        assert!(!format!("{credentials:?}").contains("hidden"));
    }
}
