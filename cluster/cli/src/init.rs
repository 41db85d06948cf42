//! `blockyard init`: a cluster's identity, which everything of it carries.

use std::time::{SystemTime, UNIX_EPOCH};

use cluster_proto::Uuid;
use cluster_proto::map::{ClusterInfo, keys, parse};
use cluster_state::{Compare, StateStore, Txn};

use crate::args::InitOptions;
use crate::error::CliError;
use crate::output::Output;
use crate::pool::json;
use crate::session::Session;

/// Version of the schema of the cluster state.
const SCHEMA: u32 = 1;

/// Gives the store its identity, unless it has one. Returns it, and whether it is new.
pub async fn identity(store: &dyn StateStore, id: Option<Uuid>) -> Result<(ClusterInfo, bool), CliError> {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let info = ClusterInfo { id: id.unwrap_or_else(Uuid::new_v4), created, schema: SCHEMA };
    let txn =
        Txn::new().when(Compare::Absent(keys::CLUSTER.into())).put(keys::CLUSTER, json(&info)?).or_read(keys::CLUSTER);
    let result = store.txn(txn).await?;
    let Some(entry) = result.read.into_iter().flatten().next() else { return Ok((info, true)) };
    let found: ClusterInfo = parse(keys::CLUSTER, &entry.value).map_err(|e| CliError::failed(e.to_string()))?;
    if found.schema > SCHEMA {
        return Err(CliError::failed(format!(
            "the state store {} was written by a newer version of Blockyard (schema {}): use that one",
            store.location(),
            found.schema
        )));
    }
    Ok((found, false))
}

/// Creates a cluster.
pub async fn init(session: &Session, options: &InitOptions, out: Output) -> Result<(), CliError> {
    let (store, place) = (&*session.store, session.store.location());
    if store.get(keys::CLUSTER).await?.is_none() && !store.range(keys::ROOT).await?.entries.is_empty() {
        return Err(CliError::conflict(format!(
            "the state store {place} holds parts of a cluster without its identity, {}: restore that from a backup, or \
             delete everything under {}",
            keys::CLUSTER,
            keys::ROOT
        )));
    }
    let (info, is_new) = identity(store, options.id).await?;
    if !is_new {
        return Err(CliError::conflict(format!(
            "the state store {place} holds cluster {} already: use that, or name another store with --cluster",
            info.id
        )));
    }
    out.show(&info, |info| {
        format!(
            "created cluster {}\nNext: 'blockyard mon', then 'blockyard osd prepare' and 'osd run' on each machine",
            info.id
        )
    })
}
