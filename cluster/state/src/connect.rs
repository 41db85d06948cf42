//! From what a person writes on the command line to a store.

use std::sync::Arc;

use crate::error::StateError;
use crate::etcd::{EtcdConfig, EtcdStore};
use crate::store::StateStore;

/// The store at a comma-separated list of endpoints: `host:port` or `http(s)://host:port` each. Does not wait until the
/// store can be reached. Must be called within a tokio runtime.
///
/// # Errors
/// `Invalid`: the list is empty, or an entry is no endpoint.
pub fn connect(spec: &str) -> Result<Arc<dyn StateStore>, StateError> {
    Ok(Arc::new(EtcdStore::new(EtcdConfig::from_spec(spec)?)?))
}
