//! `blockyard config`: raw values under `config/`, checked against the schema, and the settings of the cluster one by one.

use std::collections::BTreeMap;

use cluster_proto::map::{ClusterMap, MapChange, PoolConfig, keys};
use cluster_proto::{OsdId, PoolId};
use cluster_state::{Compare, KeyValue, Txn};
use serde_json::Value;

use crate::args::ConfigCommand;
use crate::error::CliError;
use crate::output::{Output, print};
use crate::session::Session;
use crate::setting::{self, Setting, settings_table, views};

/// Runs a command.
pub async fn run(session: &Session, command: ConfigCommand, out: Output) -> Result<(), CliError> {
    session.require_cluster().await?;
    match command {
        ConfigCommand::Ls => {
            let entries = session.store.range(keys::CONFIG).await?.entries;
            let mut values: BTreeMap<_, _> = entries.iter().map(|entry| (short(&entry.key), value_of(entry))).collect();
            let settings = session.map().await?.settings;
            if !out.json {
                values.remove(short(keys::SETTINGS));
                let others: String = values.iter().map(|(key, value)| format!("{key} {value}\n")).collect();
                return print(&format!("{}\n{others}", settings_table(&settings)));
            }
            let all = serde_json::to_value(views(&settings)).unwrap_or_default();
            values.insert("all-settings", all);
            out.show(&values, |_| String::new())
        }
        ConfigCommand::Get { key } => match Setting::find(&key) {
            Some(found) => setting::get(session, found, out).await,
            None => get(session, &key).await,
        },
        ConfigCommand::Set { key, value } => match Setting::find(&key) {
            Some(found) => setting::set(session, found, &value, out).await,
            None => set(session, &full(&key), &value, out).await,
        },
        ConfigCommand::Reset { key } => match Setting::find(&key) {
            Some(found) => setting::reset(session, found, out).await,
            None => Err(CliError::usage(format!(
                "there is no setting {key:?} of the cluster: 'blockyard config ls' lists them"
            ))),
        },
    }
}

async fn get(session: &Session, key: &str) -> Result<(), CliError> {
    let entry = session.store.get(&full(key)).await?;
    let entry = entry
        .ok_or_else(|| CliError::not_found(format!("there is no value {key:?}: 'blockyard config ls' lists them")))?;
    print(&format!("{}\n", value_of(&entry)))
}

fn short(key: &str) -> &str {
    key.strip_prefix(keys::CONFIG).unwrap_or(key)
}

/// Takes keys with and without their prefix.
fn full(key: &str) -> String {
    format!("{}{}", keys::CONFIG, short(key))
}

fn value_of(entry: &KeyValue) -> Value {
    serde_json::from_slice(&entry.value)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&entry.value).into_owned()))
}

async fn set(session: &Session, key: &str, value: &str, out: Output) -> Result<(), CliError> {
    let map = session.map().await?;
    check(&map, key, value.as_bytes()).map_err(|why| CliError::usage(format!("cannot set {}: {why}", short(key))))?;
    let revision = session.store.get(key).await?.map_or(0, |entry| entry.mod_revision);
    let txn = Txn::new().when(Compare::ModRevision { key: key.into(), revision }).put(key, value.trim().as_bytes());
    if !session.store.txn(txn).await?.succeeded {
        return Err(CliError::conflict(format!("{} was changed by somebody else meanwhile: try again", short(key))));
    }
    let shown: Value = serde_json::from_str(value).unwrap_or_default();
    out.show(&serde_json::json!({ short(key): shown }), |_| format!("{} is {shown} now", short(key)))
}

/// Whether a value may be written: it obeys the schema, and no data is unmapped by it.
pub fn check(map: &ClusterMap, key: &str, value: &[u8]) -> Result<(), String> {
    let mut after = map.clone();
    match after.apply(key, Some(value)).map_err(|e| e.to_string())? {
        MapChange::Pool(id) => check_pool(map, &after, id),
        MapChange::OsdConfig(OsdId(0)) => Err("OSDs are numbered from 1".into()),
        MapChange::OsdConfig(_) | MapChange::Settings | MapChange::Tree => Ok(()),
        MapChange::Cluster => Err("the identity of a cluster cannot be changed".into()),
        MapChange::None | MapChange::Osd(_) | MapChange::Pg(_) | MapChange::Scrub(_) | MapChange::Suspicion(_) => {
            Err("there is no such setting: those that 'blockyard config ls' lists, pool/ID, osd/ID, settings and tree are known".into())
        }
    }
}

fn check_pool(before: &ClusterMap, after: &ClusterMap, id: PoolId) -> Result<(), String> {
    let Some(new) = after.pools.get(&id) else { return Ok(()) };
    if let Some((other, _)) = after.pools.iter().find(|(other, pool)| **other != id && pool.name == new.name) {
        return Err(format!("pool {other} has the name {:?} already", new.name));
    }
    let Some(old) = before.pools.get(&id) else {
        return Err(format!("there is no pool {id}: 'blockyard pool create' makes pools"));
    };
    let fixed = |p: &PoolConfig| (p.scheme, p.pg_count, p.block_size);
    if fixed(old) != fixed(new) {
        let hint = "'blockyard pool set-pg-count' raises the pg-count";
        return Err(format!("scheme, pg-count and block-size of a pool cannot be changed here: {hint}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cluster_proto::map::OsdConfig;

    use super::*;

    fn refused(map: &ClusterMap, key: &str, value: &str) -> String {
        check(map, &full(key), value.as_bytes()).unwrap_err()
    }

    #[test]
    fn what_would_unmap_data_is_refused() {
        let mut map = ClusterMap::default();
        map.pools.insert(PoolId(1), PoolConfig::replicated("a", 3));
        map.pools.insert(PoolId(2), PoolConfig::replicated("b", 3));
        map.osd_configs.insert(OsdId(1), OsdConfig::new(1.0));
        let pool = |change: fn(&mut PoolConfig)| {
            let mut pool = PoolConfig::replicated("a", 3);
            change(&mut pool);
            serde_json::to_string(&pool).unwrap()
        };
        assert_eq!(check(&map, &full("pool/1"), pool(|p| p.min_size = 1).as_bytes()), Ok(()));
        assert_eq!(check(&map, &full("osd/1"), br#"{"weight":2}"#), Ok(()));
        assert!(refused(&map, "pool/1", &pool(|p| p.pg_count = 128)).contains("cannot be changed"));
        assert!(refused(&map, "pool/1", &pool(|p| p.name = "b".into())).contains("has the name"));
        assert!(refused(&map, "pool/3", &pool(|p| p.name = "c".into())).contains("no pool 3"));
        assert!(refused(&map, "pool/1", "{}").contains("missing field"));
        assert!(refused(&map, "osd/1", r#"{"weight":-1}"#).contains("weight is -1"));
        assert!(refused(&map, "nonsense", "1").contains("no such setting"));
        assert!(refused(&map, "pool/x", "1").contains("not a key"));
    }
}
