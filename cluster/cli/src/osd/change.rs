//! `blockyard osd rm`, `reweight` and `tag`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster_proto::map::{ClusterMap, Interval, OsdConfig, OsdStats, keys, parse};
use cluster_proto::{OsdId, PgId};
use cluster_state::{Compare, StateStore, Txn};
use mon_core::health::{PgState, pg_state};
use mon_core::placement::all_targets;
use mon_core::usable;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::statistics;
use crate::args::OsdReweight;
use crate::error::{CliError, Exit};
use crate::output::Output;
use crate::pool::json;
use crate::session::Session;
use crate::size::Size;

/// How long the monitor may take to give the places of a removed OSD to others.
const SUCCESSORS_MAX: Duration = Duration::from_secs(5);
/// Pause between two looks at the cluster.
const PAUSE: Duration = Duration::from_millis(100);
/// Attempts to change a value before giving up.
const ATTEMPTS_MAX: usize = 16;

/// The highest number that `key` says was removed; 0 if none was.
pub async fn last_removed(store: &dyn StateStore, key: &str) -> Result<u32, CliError> {
    let Some(entry) = store.get(key).await? else { return Ok(0) };
    parse(key, &entry.value).map_err(|e| CliError::failed(e.to_string()))
}

/// Why a placement group needs an OSD.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// It serves the PG.
    Serves,
    /// It should serve the PG.
    Target,
    /// It may be the only one that has some writes of a past interval.
    History,
}

/// The PGs that refer to an OSD, and why.
pub fn references(map: &ClusterMap, id: OsdId) -> BTreeMap<PgId, Need> {
    let mut found: BTreeMap<_, _> = needed_past(map, id).map(|pg| (pg, Need::History)).collect();
    for (pg, present) in &map.pgs {
        if present.shard_of(id).is_some() {
            found.insert(*pg, Need::Serves);
        } else if present.target.contains(&id) {
            found.insert(*pg, Need::Target);
        }
    }
    found
}

/// The PGs whose past intervals may have left something on an OSD alone.
fn needed_past(map: &ClusterMap, id: OsdId) -> impl Iterator<Item = PgId> {
    // All data of a clean PG is on the members of its present interval: what was before does not matter any more.
    let is_clean = |pg: &PgId| map.pgs.get(pg).is_some_and(|map_of| pg_state(map, *pg, map_of) == PgState::Active);
    let is_member = move |intervals: &[Interval]| intervals.iter().any(|past| past.osds().any(|osd| osd == id));
    let past = map.histories.iter().filter(move |(pg, intervals)| is_member(intervals) && !is_clean(pg));
    past.map(|(pg, _)| *pg)
}

/// What is shown of a removal.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Removal {
    id: OsdId,
    removed: bool,
    /// PGs that need it.
    serves: usize,
    target: usize,
    history: usize,
    #[serde(flatten)]
    given_up: Option<GivenUp>,
}

/// What became of the PGs that needed an OSD that was given up.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct GivenUp {
    /// Its place is still to be given to somebody else: what they wait for is not known before.
    waiting: usize,
    /// Nobody else has all of their data: they stay unavailable, because to go on would be to show zeroes.
    lost: usize,
}

/// Removes an OSD.
pub async fn rm(session: &Session, id: OsdId, force: bool, dry_run: bool, out: Output) -> Result<(), CliError> {
    let map = session.map().await?;
    let needs = references(&map, id);
    let count = |need| needs.values().filter(|found| **found == need).count();
    let (serves, target, history) = (count(Need::Serves), count(Need::Target), count(Need::History));
    let is_configured = map.osd_configs.contains_key(&id);
    // What one had that was removed before may still be given up.
    let gives_up = force && !needs.is_empty();
    if !(is_configured || gives_up) {
        return Err(CliError::not_found(format!("there is no OSD {id}: 'blockyard osd ls' lists them")));
    }
    if dry_run {
        let removal = Removal { id, removed: false, serves, target, history, given_up: None };
        return out.show(&removal, |_| format!("OSD {id} is needed by {}", needed(&needs, serves, target, history)));
    }
    if map.osds.contains_key(&id) {
        return Err(CliError::conflict(format!("cannot remove OSD {id}: it runs, stop it first")));
    }
    if !needs.is_empty() && !force {
        return Err(CliError::new(
            Exit::Needed,
            format!(
                "cannot remove OSD {id}: {} need it; run it with 'blockyard osd reweight {id} 0' until its data is \
                 elsewhere, or give --force, which may lose data",
                needed(&needs, serves, target, history)
            ),
        ));
    }
    if is_configured {
        remove(session, id).await?;
    }
    let given_up = if gives_up { Some(give_up(session, id).await?) } else { None };
    out.show(&Removal { id, removed: is_configured, serves, target, history, given_up }, |removal| {
        let mut text = if removal.removed { format!("removed OSD {id}\n") } else { format!("gave OSD {id} up\n") };
        let GivenUp { waiting, lost } = removal.given_up.unwrap_or_default();
        if waiting > 0 {
            text += &format!(
                "{waiting} placement groups have nobody else yet: start OSDs that have their data, and repeat this command\n"
            );
        }
        if lost > 0 {
            text += &format!("{lost} placement groups stay unavailable: nobody else has all of their data\n");
        }
        text
    })
}

/// Has the placement groups go on without what only this OSD, which is removed, may have.
async fn give_up(session: &Session, id: OsdId) -> Result<GivenUp, CliError> {
    let deadline = Instant::now() + SUCCESSORS_MAX;
    let (map, waiting) = loop {
        let map = session.map().await?;
        let waiting = map.pgs.values().filter(|present| present.shard_of(id).is_some()).count();
        if waiting == 0 || map.osds.is_empty() || Instant::now() >= deadline {
            break (map, waiting);
        }
        sleep(PAUSE).await;
    };
    let mut lost = 0;
    for pg in needed_past(&map, id) {
        let copies = map.pools.get(&pg.pool).map_or(1, |pool| pool.scheme.copies_needed());
        lost += usize::from(!forget_in_history(session, &keys::pg_history(pg), id, copies).await?);
    }
    Ok(GivenUp { waiting, lost })
}

/// False, and nothing is forgotten, if nobody would be left who has all of the data.
async fn forget_in_history(session: &Session, key: &str, id: OsdId, copies: usize) -> Result<bool, CliError> {
    for _ in 0..ATTEMPTS_MAX {
        // Gone: so is the placement group.
        let Some(entry) = session.store.get(key).await? else { return Ok(true) };
        let past: Vec<Interval> = parse(key, &entry.value).map_err(|e| CliError::failed(e.to_string()))?;
        let Some(past) = Interval::all_without(&past, id, copies) else { return Ok(false) };
        let unchanged = Compare::ModRevision { key: key.to_owned(), revision: entry.mod_revision };
        if session.store.txn(Txn::new().when(unchanged).put(key, json(&past)?)).await?.succeeded {
            return Ok(true);
        }
    }
    Err(CliError::conflict(format!("OSD {id} is removed, but others change {key} all the time: repeat this command")))
}

fn needed(needs: &BTreeMap<PgId, Need>, serves: usize, target: usize, history: usize) -> String {
    let (n, plural) = (needs.len(), if needs.len() == 1 { "" } else { "s" });
    let some = needs.keys().take(3).map(PgId::to_string).collect::<Vec<_>>().join(", ");
    let names = if n > 3 { format!("{some}, ..") } else { some };
    let why = format!("{serves} served by it, {target} placed on it, {history} with writes that it may have alone");
    if n == 0 { "no placement group".into() } else { format!("{n} placement group{plural} ({names}: {why})") }
}

async fn remove(session: &Session, id: OsdId) -> Result<(), CliError> {
    let key = keys::osd_config(id);
    for _ in 0..ATTEMPTS_MAX {
        let last = session.store.get(keys::LAST_OSD).await?;
        let highest = last_removed(&*session.store, keys::LAST_OSD).await?.max(id.0);
        let revision = last.map_or(0, |entry| entry.mod_revision);
        let txn = Txn::new()
            .when(Compare::Absent(keys::osd(id)))
            .when(Compare::ModRevision { key: keys::LAST_OSD.into(), revision })
            .put(keys::LAST_OSD, json(&highest)?)
            .delete(&key)
            .delete(keys::osd_stats(id));
        if session.store.txn(txn).await?.succeeded {
            return Ok(());
        }
        if session.store.get(&keys::osd(id)).await?.is_some() {
            return Err(CliError::conflict(format!("cannot remove OSD {id}: it has just been started, stop it first")));
        }
    }
    Err(CliError::conflict(format!("cannot remove OSD {id}: too many others change the cluster at once, try again")))
}

/// Changes the configuration of an OSD.
async fn update(session: &Session, id: OsdId, change: impl Fn(&mut OsdConfig)) -> Result<OsdConfig, CliError> {
    let key = keys::osd_config(id);
    for _ in 0..ATTEMPTS_MAX {
        let Some(entry) = session.store.get(&key).await? else {
            session.require_cluster().await?;
            return Err(CliError::not_found(format!("there is no OSD {id}: 'blockyard osd ls' lists them")));
        };
        let mut config: OsdConfig = parse(&key, &entry.value).map_err(|e| CliError::failed(e.to_string()))?;
        change(&mut config);
        config.validate().map_err(|e| CliError::usage(format!("cannot change OSD {id}: {e}")))?;
        let unchanged = Compare::ModRevision { key: key.clone(), revision: entry.mod_revision };
        if session.store.txn(Txn::new().when(unchanged).put(&key, json(&config)?)).await?.succeeded {
            return Ok(config);
        }
    }
    Err(CliError::conflict(format!("cannot change OSD {id}: others change it at the same time, try again")))
}

/// What a change of weights moves.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Moves {
    /// PGs whose OSDs change.
    pub pgs: usize,
    /// Copies or shards that are made on another OSD.
    pub shards: usize,
    /// Bytes of them, as far as statistics tell.
    pub bytes: u64,
}

/// What the monitor would do about `after`, compared with what is planned about `before` anyway.
pub fn moves(before: &ClusterMap, after: &ClusterMap, stats: &BTreeMap<OsdId, OsdStats>) -> Moves {
    let present: BTreeMap<_, _> = before.pgs.iter().map(|(pg, present)| (*pg, present.target.clone())).collect();
    let targets = |map: &ClusterMap| {
        let mut targets = present.clone();
        for (pool, sets) in all_targets(map, &usable(map, &BTreeSet::new()), &present) {
            let numbered = (0..).zip(sets.unwrap_or_default());
            targets.extend(numbered.map(|(index, set)| (PgId { pool, index }, set)));
        }
        targets
    };
    let (old, new) = (targets(before), targets(after));
    let mut moves = Moves::default();
    for (pg, target) in &new {
        let Some(planned) = old.get(pg) else { continue };
        let added = target.iter().filter(|osd| !planned.contains(osd)).count();
        moves.pgs += usize::from(added > 0);
        moves.shards += added;
        moves.bytes += added as u64 * shard_bytes(before, planned, stats);
    }
    moves
}

/// Bytes that a PG has on each of these OSDs, if all PGs of an OSD are equally large.
fn shard_bytes(map: &ClusterMap, osds: &[OsdId], stats: &BTreeMap<OsdId, OsdStats>) -> u64 {
    let share = |osd: &OsdId| {
        let used = stats.get(osd)?.space.used;
        let pgs = map.pgs.values().filter(|pg| pg.target.contains(osd)).count() as u64;
        used.checked_div(pgs)
    };
    let shares: Vec<_> = osds.iter().filter_map(share).collect();
    shares.iter().sum::<u64>().checked_div(shares.len() as u64).unwrap_or(0)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Reweighted {
    id: OsdId,
    weight: f64,
    reweight: f64,
    changed: bool,
    moves: Moves,
}

/// Changes a weight, or the factor that corrects it.
pub async fn reweight(session: &Session, options: OsdReweight, out: Output) -> Result<(), CliError> {
    let OsdReweight { id, factor, weight, dry_run } = options;
    let change = |config: &mut OsdConfig| {
        config.weight = weight.unwrap_or(config.weight);
        config.reweight = factor.unwrap_or(config.reweight);
    };
    let map = session.map().await?;
    let mut after = map.clone();
    let Some(config) = after.osd_configs.get_mut(&id) else {
        return Err(CliError::not_found(format!("there is no OSD {id}: 'blockyard osd ls' lists them")));
    };
    change(config);
    config.validate().map_err(|e| CliError::usage(format!("cannot change OSD {id}: {e}")))?;
    let (weight, reweight) = (config.weight, config.reweight);
    let moves = moves(&map, &after, &statistics(session).await?);
    if !dry_run {
        update(session, id, change).await?;
    }
    out.show(&Reweighted { id, weight, reweight, changed: !dry_run, moves }, |done| {
        let moves = &done.moves;
        let what = if dry_run { "would get" } else { "has" };
        let moved = format!("{} placement groups change, {} move", moves.pgs, Size(moves.bytes));
        format!("OSD {id} {what} weight {weight} times {reweight}: {moved}")
    })
}

/// Each word once, in the order of their first places.
pub fn distinct(words: &[String]) -> Vec<String> {
    let mut once = Vec::new();
    for word in words {
        if !once.contains(word) {
            once.push(word.clone());
        }
    }
    once
}

/// Changes tags.
pub async fn tag(session: &Session, id: OsdId, add: &[String], remove: &[String], out: Output) -> Result<(), CliError> {
    let config = update(session, id, |config| {
        config.tags.retain(|tag| !remove.contains(tag));
        config.tags = distinct(&[&config.tags[..], add].concat());
    })
    .await?;
    let shown = serde_json::json!({ "id": id, "tags": config.tags });
    out.show(&shown, |_| match config.tags.is_empty() {
        true => format!("OSD {id} has no tags now"),
        false => format!("OSD {id} has the tags {} now", config.tags.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use cluster_proto::map::{Activation, Member, OsdState, PgMap, PoolConfig};
    use cluster_proto::{Epoch, Incarnation, PoolId};

    use super::*;

    #[test]
    fn everything_that_refers_to_an_osd_is_found() {
        let mut map = ClusterMap::default();
        let pg = |index| PgId { pool: PoolId(1), index };
        let run = |id| Member { osd: OsdId(id), incarnation: Incarnation(1) };
        let put = |map: &mut ClusterMap, index, present: &[u32], target: &[u32]| {
            let acting = present.iter().map(|id| Some(run(*id))).collect();
            let target = target.iter().copied().map(OsdId).collect();
            let present = PgMap {
                epoch: Epoch(2),
                primary: OsdId(present[0]),
                acting,
                target,
                dead: Vec::new(),
                unfenced: Vec::new(),
                pg_count: None,
            };
            map.pgs.insert(pg(index), present);
        };
        put(&mut map, 0, &[1, 2], &[1, 2]);
        put(&mut map, 1, &[2, 3], &[1, 3]);
        put(&mut map, 2, &[2, 3], &[2, 3]);
        let acting = vec![Some(OsdId(1)), None, Some(OsdId(4))];
        let past = Interval { epoch: Epoch(1), acting, complete: Vec::new(), min_size: 1 };
        map.histories.insert(pg(2), vec![past]);
        let expected = BTreeMap::from([(pg(0), Need::Serves), (pg(1), Need::Target), (pg(2), Need::History)]);
        assert_eq!(references(&map, OsdId(1)), expected);
        assert_eq!(references(&map, OsdId(4)).into_values().collect::<Vec<_>>(), [Need::History]);
        assert!(references(&map, OsdId(5)).is_empty());

        // Once the PG is clean, its past does not matter.
        map.pools.insert(PoolId(1), PoolConfig::replicated("a", 2));
        for id in 2..=3 {
            let address = "127.0.0.1:1".parse().unwrap();
            map.osds.insert(OsdId(id), OsdState { address, incarnation: Incarnation(1), started: 0 });
        }
        let acting = map.pgs[&pg(2)].acting.clone();
        let complete = vec![OsdId(2), OsdId(3)];
        map.activations.insert(pg(2), Activation { epoch: Epoch(2), acting, complete, min_size: 2 });
        assert!(references(&map, OsdId(4)).is_empty());
    }
}
