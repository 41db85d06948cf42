//! `blockyard pool set-pg-count`.

use std::collections::{BTreeMap, BTreeSet};

use cluster_proto::map::{ClusterMap, OsdStats, PgMap, PoolConfig, keys, parse};
use cluster_proto::{OsdId, PgId, PoolId};
use cluster_state::{Compare, Txn};
use mon_core::dry_run::{Moves, dry_run};
use mon_core::{check_pg_count, usable};
use serde::Serialize;

use super::json;
use crate::error::CliError;
use crate::osd::statistics;
use crate::output::Output;
use crate::session::Session;
use crate::size::Size;

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Change {
    id: PoolId,
    name: String,
    pg_count: u32,
    pg_count_before: u32,
    changed: bool,
    moves: Moves,
}

/// Changes the number of placement groups that a pool shall have.
pub async fn set_pg_count(
    session: &Session,
    name: &str,
    pg_count: u32,
    only_show: bool,
    out: Output,
) -> Result<(), CliError> {
    let map = session.map().await?;
    let Some((id, before)) = map.pool_by_name(name) else {
        return Err(CliError::not_found(format!("there is no pool {name:?}: 'blockyard pool ls' lists them")));
    };
    check(&map, id, before, pg_count)?;
    let mut after = map.clone();
    after.pools.insert(id, PoolConfig { pg_count, ..before.clone() });
    let moves = moves(&after, &statistics(session).await?);
    let pg_count_before = before.pg_count;
    if !only_show {
        write(session, id, pg_count_before, pg_count).await?;
    }
    let change = Change { id, name: name.to_owned(), pg_count, pg_count_before, changed: !only_show, moves };
    out.show(&change, |change| {
        let Moves { shards, bytes } = change.moves;
        let will = if only_show { "would" } else { "will" };
        format!(
            "pool {name:?} {will} have {pg_count} placement groups instead of {pg_count_before}; {shards} copies of those, {}, {will} \
             move then",
            Size(bytes)
        )
    })
}

fn check(map: &ClusterMap, id: PoolId, before: &PoolConfig, pg_count: u32) -> Result<(), CliError> {
    let refused = |why: String| {
        CliError::usage(format!("cannot change the number of placement groups of pool {:?}: {why}", before.name))
    };
    check_pg_count(before.pg_count, pg_count).map_err(refused)?;
    // While an earlier change is under way, there are others too.
    let present: BTreeSet<u32> =
        map.pgs.iter().filter(|(pg, _)| pg.pool == id).filter_map(|(_, own)| own.pg_count).collect();
    let mut others = present.into_iter().filter(|count| *count != pg_count);
    others.try_for_each(|count| check_pg_count(count, pg_count)).map_err(refused)?;
    if map.pgs.iter().any(|(pg, present)| pg.pool == id && present.pg_count.is_none()) {
        let why = "their maps were written by an older monitor: start one of this version first".to_owned();
        return Err(CliError::conflict(refused(why).to_string()));
    }
    Ok(())
}

/// Writes the configuration, if the number is what it was.
async fn write(session: &Session, id: PoolId, before: u32, pg_count: u32) -> Result<(), CliError> {
    let key = keys::pool(id);
    let changed = || CliError::conflict(format!("pool {id} was changed by somebody else meanwhile: try again"));
    let entry = session.store.get(&key).await?.ok_or_else(changed)?;
    let config: PoolConfig = parse(&key, &entry.value).map_err(|e| CliError::failed(e.to_string()))?;
    if config.pg_count != before {
        return Err(changed());
    }
    let unchanged = Compare::ModRevision { key: key.clone(), revision: entry.mod_revision };
    let txn = Txn::new().when(unchanged).put(key, json(&PoolConfig { pg_count, ..config })?);
    if session.store.txn(txn).await?.succeeded { Ok(()) } else { Err(changed()) }
}

/// What moves when all PGs are split or merged: each part is where the whole is, until it is placed; a whole is where its first part is, to
/// which the others move.
fn moves(after: &ClusterMap, stats: &BTreeMap<OsdId, OsdStats>) -> Moves {
    let mut served: BTreeMap<OsdId, u64> = BTreeMap::new();
    after.pgs.values().flat_map(|present| &present.target).for_each(|osd| *served.entry(*osd).or_default() += 1);
    let of_osd = |osd: &OsdId| stats.get(osd)?.space.used.checked_div(*served.get(osd)?);
    let bytes_of = |present: &PgMap| {
        let held: Vec<u64> = present.target.iter().filter_map(of_osd).collect();
        held.iter().sum::<u64>().checked_div(held.len() as u64).unwrap_or(0)
    };
    let (mut layout, mut bytes, mut gathered) = (BTreeMap::new(), BTreeMap::new(), Moves::default());
    for (id, pool) in &after.pools {
        for index in 0..pool.pg_count {
            let Some(whole) = after.present_pg(*id, index) else { continue };
            let (Some(present), Some(scope)) = (after.pgs.get(&whole), after.scope(whole)) else { continue };
            layout.insert(PgId { pool: *id, index }, present.target.clone());
            let part = bytes_of(present) / u64::from(pool.pg_count / scope.count).max(1);
            bytes.insert(PgId { pool: *id, index }, part);
        }
        for (pg, present) in after.pgs.iter().filter(|(pg, _)| pg.pool == *id && pg.index >= pool.pg_count) {
            let first = PgId { pool: *id, index: pg.index % pool.pg_count };
            let (Some(target), held) = (layout.get(&first), bytes_of(present)) else { continue };
            let to = target.iter().filter(|osd| !present.target.contains(osd)).count() as u64;
            gathered.shards += to;
            gathered.bytes = gathered.bytes.saturating_add(to * held);
            *bytes.entry(first).or_default() += held;
        }
    }
    let Moves { shards, bytes } = dry_run(after, &usable(after, &BTreeSet::new()), &layout, &bytes, stats).total;
    Moves { shards: shards + gathered.shards, bytes: bytes.saturating_add(gathered.bytes) }
}
