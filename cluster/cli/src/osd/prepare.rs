//! `blockyard osd prepare`: a number in the cluster, and an empty store under it.
//!
//! The number is taken first, with weight 0, so that no two stores ever get the same; the weight comes last, so that
//! nothing is placed on an OSD whose store is not complete. What is interrupted leaves an OSD without weight, which
//! `osd rm` removes.

use std::path::PathBuf;

use cluster_proto::map::{ClusterMap, OsdConfig, keys};
use cluster_proto::{OsdId, Uuid};
use cluster_state::{Compare, Txn};
use osd::{ErrorKind, PrepareOptions, Prepared};
use serde::Serialize;
use tokio::task::spawn_blocking;

use super::change::{distinct, last_removed, references};
use crate::args::OsdPrepare;
use crate::error::{CliError, Exit};
use crate::output::Output;
use crate::pool::json;
use crate::session::Session;
use crate::settings::host_name;
use crate::size::Size;

/// Attempts to get a number before giving up.
const ATTEMPTS_MAX: usize = 32;

/// A prepared OSD as shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct PreparedView {
    id: OsdId,
    path: PathBuf,
    bytes: u64,
    store: Uuid,
    weight: f64,
    host: String,
    tags: Vec<String>,
}

/// Prepares an OSD, or several that share a drive.
pub async fn prepare(session: &Session, options: OsdPrepare, out: Output) -> Result<(), CliError> {
    let map = session.map().await?;
    let Some(cluster) = map.cluster.as_ref().map(|info| info.id) else { return session.require_cluster().await };
    let reserved = OsdConfig {
        host: options.host.clone().unwrap_or_else(host_name),
        tags: distinct(&options.tag),
        ..OsdConfig::new(0.0)
    };
    let wanted = OsdConfig { weight: options.weight.unwrap_or(0.0), ..reserved.clone() };
    wanted.validate().map_err(|e| CliError::usage(format!("cannot prepare {}: {e}", options.path.display())))?;
    if options.osds_per_device == 1 {
        let view = prepare_one(session, &options, reserved, cluster).await?;
        return out
            .show(&view, |view| format!("{}; run it with 'blockyard osd run {}'", view.text(), view.path.display()));
    }
    let views = prepare_divided(session, &options, &reserved, cluster).await?;
    out.show(&views, |views| {
        let paths: Vec<_> = views.iter().map(|view| view.path.display().to_string()).collect();
        let lines: String = views.iter().map(|view| view.text() + "\n").collect();
        format!("{lines}run them in one process with 'blockyard osd run {}'", paths.join(" "))
    })
}

impl PreparedView {
    fn text(&self) -> String {
        format!("prepared {} ({}) as OSD {}", self.path.display(), Size(self.bytes), self.id)
    }
}

async fn prepare_one(
    session: &Session,
    options: &OsdPrepare,
    reserved: OsdConfig,
    cluster: Uuid,
) -> Result<PreparedView, CliError> {
    let (id, revision) = reserve(session, options.id, &reserved).await?;
    let prepared = match format(options, id, cluster).await {
        Ok(prepared) => prepared,
        Err(error) => {
            release(session, id, revision).await;
            return Err(error);
        }
    };
    let weight = options.weight.unwrap_or(prepared.bytes as f64 / (1u64 << 40) as f64);
    let config = OsdConfig { weight, store: Some(prepared.store), ..reserved };
    let key = keys::osd_config(id);
    let txn = Txn::new().when(Compare::ModRevision { key: key.clone(), revision }).put(key, json(&config)?);
    if !session.store.txn(txn).await?.succeeded {
        return Err(CliError::conflict(format!(
            "OSD {id} was changed by somebody else while {} was prepared for it: prepare it again with --yes",
            options.path.display()
        )));
    }
    let (path, bytes, store) = (options.path.clone(), prepared.bytes, prepared.store);
    Ok(PreparedView { id, path, bytes, store, weight, host: config.host, tags: config.tags })
}

/// Divides a device and prepares what it is divided into.
async fn prepare_divided(
    session: &Session,
    options: &OsdPrepare,
    reserved: &OsdConfig,
    cluster: Uuid,
) -> Result<Vec<PreparedView>, CliError> {
    let (path, count, force) = (options.path.clone(), options.osds_per_device, options.yes);
    let divided = spawn_blocking(move || osd::divide(&path, count, force)).await;
    let divided = divided.map_err(|e| CliError::failed(format!("dividing {} failed: {e}", options.path.display())))?;
    let divided = divided.map_err(refused)?;
    let mut views: Vec<PreparedView> = Vec::new();
    for path in &divided.partitions {
        // That nothing is lost here was seen to before the device was divided.
        let options = OsdPrepare { path: path.clone(), yes: true, ..options.clone() };
        match prepare_one(session, &options, reserved.clone(), cluster).await {
            Ok(view) => views.push(view),
            Err(error) => {
                let made: String = views.iter().map(|view| format!("\n{}", view.text())).collect();
                let (rest, advice) =
                    (path.display(), "and those behind it can still be prepared, one by one, with --yes");
                return Err(CliError::new(error.exit, format!("{error}: {rest} {advice}{made}")));
            }
        }
    }
    Ok(views)
}

/// Takes a number. Returns it with the revision of its configuration.
async fn reserve(session: &Session, id: Option<OsdId>, config: &OsdConfig) -> Result<(OsdId, i64), CliError> {
    for _ in 0..ATTEMPTS_MAX {
        let map = session.map().await?;
        let last = last_removed(&*session.store, keys::LAST_OSD).await?;
        let id = match id {
            Some(id) => check_unused(&map, id, last)?,
            None => next_free(&map, last),
        };
        let key = keys::osd_config(id);
        let txn = Txn::new().when(Compare::Absent(key.clone())).put(key, json(config)?);
        let result = session.store.txn(txn).await?;
        if result.succeeded {
            return Ok((id, result.revision));
        }
    }
    Err(CliError::conflict("cannot get a number for the OSD: too many others are prepared at once, try again"))
}

fn check_unused(map: &ClusterMap, id: OsdId, last: u32) -> Result<OsdId, CliError> {
    if map.osd_configs.contains_key(&id) || map.osds.contains_key(&id) {
        return Err(CliError::conflict(format!("there is an OSD {id} already: leave --id out to get a free number")));
    }
    if id.0 <= last || !references(map, id).is_empty() {
        return Err(CliError::conflict(format!(
            "the number {id} belonged to an OSD that was removed, and its store may still be around: leave --id out to \
             get a fresh number"
        )));
    }
    Ok(id)
}

/// Numbers are not used twice as long as anything tells of them.
fn next_free(map: &ClusterMap, last: u32) -> OsdId {
    let placed = map.pgs.values().flat_map(|pg| pg.target.iter().copied().chain(pg.members().map(|(_, m)| m.osd)));
    let past = map.histories.values().flatten().flat_map(|interval| interval.osds());
    let known = map.osd_configs.keys().chain(map.osds.keys()).copied();
    let highest = known.chain(placed).chain(past).map(|id| id.0).max().unwrap_or(0);
    OsdId(highest.max(last).saturating_add(1))
}

async fn format(options: &OsdPrepare, id: OsdId, cluster: Uuid) -> Result<Prepared, CliError> {
    let prepare = PrepareOptions {
        path: options.path.clone(),
        bytes: options.size.map(|size| size.0),
        id,
        cluster,
        force: options.yes,
    };
    let prepared = spawn_blocking(move || osd::prepare(&prepare)).await;
    let prepared = prepared.map_err(|e| CliError::failed(format!("preparing OSD {id} failed: {e}")))?;
    prepared.map_err(refused)
}

fn refused(error: osd::Error) -> CliError {
    match error.kind() {
        ErrorKind::Occupied => CliError::new(Exit::Unconfirmed, format!("{error} with --yes")),
        ErrorKind::Locked => CliError::new(Exit::Conflict, error.to_string()),
        ErrorKind::TooSmall | ErrorKind::Missing | ErrorKind::Invalid => CliError::usage(error.to_string()),
        _ => CliError::failed(error.to_string()),
    }
}

/// Gives the number back, if the store can be reached; else an OSD without weight stays.
async fn release(session: &Session, id: OsdId, revision: i64) {
    let key = keys::osd_config(id);
    let txn = Txn::new().when(Compare::ModRevision { key: key.clone(), revision }).delete(key);
    if session.store.txn(txn).await.is_err() {
        tracing::warn!("the number {id} stays taken: 'blockyard osd rm {id}' frees it");
    }
}

#[cfg(test)]
mod tests {
    use cluster_proto::map::{Interval, PgMap};
    use cluster_proto::{Epoch, PgId, PoolId};

    use super::*;

    #[test]
    fn numbers_are_fresh() {
        let mut map = ClusterMap::default();
        assert_eq!(next_free(&map, 0), OsdId(1));
        assert_eq!(next_free(&map, 7), OsdId(8));
        map.osd_configs.insert(OsdId(2), OsdConfig::new(1.0));
        assert_eq!(next_free(&map, 0), OsdId(3));
        let pg = PgId { pool: PoolId(1), index: 0 };
        map.pgs.insert(
            pg,
            PgMap {
                epoch: Epoch(1),
                primary: OsdId(0),
                acting: Vec::new(),
                target: vec![OsdId(4)],
                dead: Vec::new(),
                unfenced: Vec::new(),
                pg_count: None,
            },
        );
        assert_eq!(next_free(&map, 0), OsdId(5));
        map.histories.insert(
            pg,
            vec![Interval { epoch: Epoch(1), acting: vec![Some(OsdId(9))], complete: Vec::new(), min_size: 1 }],
        );
        assert_eq!(next_free(&map, 0), OsdId(10));
        assert!(check_unused(&map, OsdId(2), 0).is_err() && check_unused(&map, OsdId(9), 0).is_err());
        assert!(check_unused(&map, OsdId(6), 6).is_err());
        assert_eq!(check_unused(&map, OsdId(6), 5), Ok(OsdId(6)));
    }
}
