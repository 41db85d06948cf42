//! Finding the cluster that a command is about.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cluster_proto::auth::Credentials;
use cluster_proto::map::{ClusterMap, keys};
use cluster_state::{EtcdConfig, EtcdStore, Snapshot, StateStore};
use mon::View;

use crate::error::{CliError, Exit, io_failed};
use crate::settings::NodeSettings;
use crate::up::Endpoints;

/// How long the state store may take for one request.
const REQUEST_MAX: Duration = Duration::from_secs(5);

/// A cluster's state store.
pub struct Session {
    /// The store.
    pub store: Arc<dyn StateStore>,
    /// The cluster's key, if it has one.
    pub credentials: Option<Credentials>,
}

/// Connects to the state store of the cluster that is meant.
pub fn connect(settings: &NodeSettings) -> Result<Session, CliError> {
    let spec = endpoints(settings.cluster())?;
    let config = EtcdConfig { request_timeout: REQUEST_MAX, ..settings.etcd.config(&spec)? };
    Ok(Session { store: Arc::new(EtcdStore::new(config)?), credentials: settings.credentials()? })
}

/// What to say about a state store without a cluster.
pub fn no_cluster(store: &dyn StateStore) -> CliError {
    CliError::not_found(format!(
        "the state store {} holds no cluster: create one with 'blockyard init' or 'blockyard up', or name another with \
         --cluster",
        store.location()
    ))
}

/// The etcd endpoints that `cluster` stands for: a data directory of `blockyard up`, or endpoints.
pub fn endpoints(cluster: &str) -> Result<String, CliError> {
    let dir = Path::new(cluster);
    let looks_like_endpoints = cluster.contains(':') && !cluster.starts_with(['.', '/']);
    if looks_like_endpoints && !dir.is_dir() {
        return Ok(cluster.to_owned());
    }
    let file: PathBuf = dir.join(Endpoints::FILE);
    match std::fs::read(&file) {
        Ok(bytes) => match serde_json::from_slice::<Endpoints>(&bytes) {
            Ok(endpoints) if is_gone(endpoints.pid) => Err(CliError::new(
                Exit::Unreachable,
                format!(
                    "the cluster on {} does not run any more (process {} was killed): start it again with 'blockyard up \
                     --data-dir {0}'",
                    dir.display(),
                    endpoints.pid
                ),
            )),
            Ok(endpoints) => Ok(endpoints.etcd),
            Err(e) => Err(CliError::failed(format!(
                "cannot understand {}: {e}: stop 'blockyard up' and start it again",
                file.display()
            ))),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(CliError::new(
            Exit::Unreachable,
            format!(
                "no cluster runs on {}: start one with 'blockyard up --data-dir {0}', or name another one with \
                 --cluster DIR or --cluster HOST:PORT of its state store",
                dir.display()
            ),
        )),
        Err(e) => Err(io_failed("read", &file, &e)),
    }
}

/// Whether there is no process of this number, as far as can be told.
fn is_gone(pid: u32) -> bool {
    Path::new("/proc/self").exists() && !Path::new(&format!("/proc/{pid}")).exists()
}

impl Session {
    /// The cluster map as it is now. Fails if there is no cluster in the store.
    pub async fn map(&self) -> Result<ClusterMap, CliError> {
        let view = self.view().await?;
        if view.map().cluster.is_none() {
            return Err(no_cluster(&*self.store));
        }
        Ok(view.map().clone())
    }

    async fn view(&self) -> Result<View, CliError> {
        let mut view = View::new();
        for range in View::RANGES {
            let snapshot: Snapshot = self.store.range(range).await?;
            view.reset(range, snapshot);
        }
        Ok(view)
    }

    /// Client for the data of images.
    pub async fn client(&self) -> Result<blockyard_client::Client, CliError> {
        Ok(blockyard_client::Client::connect_with(self.store.clone(), self.credentials.clone()).await?)
    }

    /// Fails unless there is a cluster in the store.
    pub async fn require_cluster(&self) -> Result<(), CliError> {
        if self.store.get(keys::CLUSTER).await?.is_some() {
            return Ok(());
        }
        self.map().await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_and_directories_are_told_apart() {
        assert_eq!(endpoints("127.0.0.1:2379").as_deref(), Ok("127.0.0.1:2379"));
        assert_eq!(endpoints("http://a:1,http://b:2").as_deref(), Ok("http://a:1,http://b:2"));
        let missing = endpoints("./no:where").unwrap_err();
        assert_eq!(missing.exit, Exit::Unreachable);
        assert!(missing.to_string().contains("no cluster runs on ./no:where"), "{missing}");
    }
}
