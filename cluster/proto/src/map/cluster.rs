//! The cluster state as every daemon and client holds it in memory, fed key by key.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use super::keys;
use super::{
    Activation, ClusterSettings, Interval, OsdConfig, OsdState, PgMap, PgScrub, PlacementTree, PoolConfig,
    ScrubRequest, Suspicion,
};
use crate::ids::{ObjectId, OsdId, PgId, PoolId};
use crate::layout::PgScope;

/// A value or key that breaks the schema.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0}")]
pub struct SchemaError(pub String);

impl SchemaError {
    /// An error unless `ok`.
    pub(super) fn check(ok: bool, message: impl FnOnce() -> String) -> Result<(), SchemaError> {
        if ok { Ok(()) } else { Err(SchemaError(message())) }
    }
}

/// Reads a JSON value of the state.
///
/// # Errors
/// The value is not of this type; names the key.
pub fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, SchemaError> {
    serde_json::from_slice(value).map_err(|e| SchemaError(format!("{key} has an invalid value: {e}")))
}

/// Identity of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ClusterInfo {
    /// Random, given at creation; in every superblock and every introduction.
    pub id: Uuid,
    /// Seconds since 1970.
    pub created: u64,
    /// Version of this schema.
    pub schema: u32,
}

/// What [`ClusterMap::apply`] changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapChange {
    /// Nothing that is kept here.
    None,
    /// The cluster's identity.
    Cluster,
    /// Settings of the whole cluster.
    Settings,
    /// The placement tree.
    Tree,
    /// A pool.
    Pool(PoolId),
    /// Configuration of an OSD.
    OsdConfig(OsdId),
    /// Liveness or address of an OSD.
    Osd(OsdId),
    /// Interval, activation or history of a PG.
    Pg(PgId),
    /// A scrub that an operator asked for, or what has been scrubbed.
    Scrub(PgId),
    /// What an OSD reports of others.
    Suspicion(OsdId),
}

/// What daemons and clients know of the cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterMap {
    /// Identity.
    pub cluster: Option<ClusterInfo>,
    /// Settings of the whole cluster.
    pub settings: ClusterSettings,
    /// Where OSDs stand.
    pub tree: PlacementTree,
    /// Pools.
    pub pools: BTreeMap<PoolId, PoolConfig>,
    /// Configured OSDs.
    pub osd_configs: BTreeMap<OsdId, OsdConfig>,
    /// Running OSDs.
    pub osds: BTreeMap<OsdId, OsdState>,
    /// Present intervals.
    pub pgs: BTreeMap<PgId, PgMap>,
    /// Activation records.
    pub activations: BTreeMap<PgId, Activation>,
    /// Past intervals that may have accepted writes.
    pub histories: BTreeMap<PgId, Vec<Interval>>,
    /// Scrubs that operators asked for; only OSDs watch it.
    pub scrubs: BTreeMap<PgId, ScrubRequest>,
    /// What has been scrubbed; only OSDs watch it.
    pub scrubbed: BTreeMap<PgId, PgScrub>,
    /// What OSDs report of others; only monitors watch it.
    pub suspicions: BTreeMap<OsdId, Suspicion>,
}

/// Sets or removes an entry.
fn put<K: Ord + Copy, V>(
    map: &mut BTreeMap<K, V>,
    id: K,
    key: &str,
    value: Option<&[u8]>,
    read: impl FnOnce(&[u8]) -> Result<V, SchemaError>,
) -> Result<(), SchemaError> {
    match value {
        Some(bytes) => {
            let parsed = read(bytes).map_err(|e| SchemaError(format!("{key}: {e}")))?;
            map.insert(id, parsed);
        }
        None => {
            map.remove(&id);
        }
    }
    Ok(())
}

/// A value of which there is one; its default if it is deleted.
fn whole<T: DeserializeOwned + Default>(
    key: &str,
    value: Option<&[u8]>,
    validate: impl FnOnce(&T) -> Result<(), SchemaError>,
) -> Result<T, SchemaError> {
    let Some(bytes) = value else { return Ok(T::default()) };
    let parsed = parse(key, bytes)?;
    validate(&parsed).map_err(|e| SchemaError(format!("{key}: {e}")))?;
    Ok(parsed)
}

fn number(key: &str, text: &str) -> Result<u32, SchemaError> {
    text.parse().map_err(|_| SchemaError(format!("{key} is not a key of this schema")))
}

/// A PG as keys name it: pool and index.
fn pg_number(key: &str, text: &str) -> Result<PgId, SchemaError> {
    let Some((pool, index)) = text.split_once('/') else {
        return Err(SchemaError(format!("{key} is not a key of this schema")));
    };
    Ok(PgId { pool: PoolId(number(key, pool)?), index: number(key, index)? })
}

impl ClusterMap {
    /// Takes one key's new value (`None`: deleted). Keys outside `config/`, `osd/`, `pg/`, `scrub/` and `suspect/` change nothing.
    ///
    /// # Errors
    /// The key or value breaks the schema; the previous value stays.
    pub fn apply(&mut self, key: &str, value: Option<&[u8]>) -> Result<MapChange, SchemaError> {
        if key == keys::CLUSTER {
            // Losing this key must not change who we are.
            if let Some(bytes) = value {
                self.cluster = Some(parse(key, bytes)?);
            }
            return Ok(MapChange::Cluster);
        }
        if let Some(rest) = key.strip_prefix(keys::CONFIG) {
            return self.apply_config(key, rest, value);
        }
        if let Some(rest) = key.strip_prefix(keys::OSDS) {
            let id = OsdId(number(key, rest)?);
            put(&mut self.osds, id, key, value, |v| parse(key, v))?;
            return Ok(MapChange::Osd(id));
        }
        if let Some(rest) = key.strip_prefix(keys::SUSPICIONS) {
            let id = OsdId(number(key, rest)?);
            put(&mut self.suspicions, id, key, value, |v| parse(key, v))?;
            return Ok(MapChange::Suspicion(id));
        }
        if let Some(rest) = key.strip_prefix(keys::SCRUBBED) {
            let pg = pg_number(key, rest)?;
            put(&mut self.scrubbed, pg, key, value, |v| parse(key, v))?;
            return Ok(MapChange::Scrub(pg));
        }
        if let Some(rest) = key.strip_prefix(keys::SCRUBS) {
            let pg = pg_number(key, rest)?;
            put(&mut self.scrubs, pg, key, value, |v| parse(key, v))?;
            return Ok(MapChange::Scrub(pg));
        }
        if let Some(rest) = key.strip_prefix(keys::PGS) {
            return self.apply_pg(key, rest, value);
        }
        Ok(MapChange::None)
    }

    fn apply_config(&mut self, key: &str, rest: &str, value: Option<&[u8]>) -> Result<MapChange, SchemaError> {
        match rest {
            "settings" => {
                self.settings = whole(key, value, ClusterSettings::validate)?;
                return Ok(MapChange::Settings);
            }
            "tree" => {
                self.tree = whole(key, value, PlacementTree::validate)?;
                return Ok(MapChange::Tree);
            }
            _ => {}
        }
        if let Some(id) = rest.strip_prefix("pool/") {
            let id = PoolId(number(key, id)?);
            put(&mut self.pools, id, key, value, |v| {
                let pool: PoolConfig = parse(key, v)?;
                pool.validate()?;
                Ok(pool)
            })?;
            return Ok(MapChange::Pool(id));
        }
        if let Some(id) = rest.strip_prefix("osd/") {
            let id = OsdId(number(key, id)?);
            put(&mut self.osd_configs, id, key, value, |v| {
                let config: OsdConfig = parse(key, v)?;
                config.validate()?;
                Ok(config)
            })?;
            return Ok(MapChange::OsdConfig(id));
        }
        Ok(MapChange::None)
    }

    fn apply_pg(&mut self, key: &str, rest: &str, value: Option<&[u8]>) -> Result<MapChange, SchemaError> {
        let Some((group, pg)) = rest.split_once('/') else {
            return Err(SchemaError(format!("{key} is not a key of this schema")));
        };
        let pg = pg_number(key, pg)?;
        match group {
            "map" => put(&mut self.pgs, pg, key, value, |v| {
                let map: PgMap = parse(key, v)?;
                map.validate()?;
                Ok(map)
            })?,
            "activation" => put(&mut self.activations, pg, key, value, |v| parse(key, v))?,
            "history" => put(&mut self.histories, pg, key, value, |v| parse(key, v))?,
            _ => return Err(SchemaError(format!("{key} is not a key of this schema"))),
        }
        Ok(MapChange::Pg(pg))
    }

    /// Which objects are in a PG; none if that is not known.
    pub fn scope(&self, pg: PgId) -> Option<PgScope> {
        let count = self.pgs.get(&pg)?.pg_count.or_else(|| self.pools.get(&pg.pool).map(|pool| pool.pg_count))?;
        (count > pg.index).then_some(PgScope { pg, count })
    }

    /// The PG that holds an object; none if that is not known.
    pub fn pg_of(&self, object: &ObjectId) -> Option<PgId> {
        self.holder(object.pool, |count| object.pg(count))
    }

    /// The PG that holds, will be split into, or will be part of number `index` of the PGs that a pool shall have.
    pub fn present_pg(&self, pool: PoolId, index: u32) -> Option<PgId> {
        self.holder(pool, |count| PgId { pool, index: index % count })
    }

    /// Among as many PGs as there shall be first, then among fewer, as long as they are not split: the PG that says itself to be one of so many.
    fn holder(&self, pool: PoolId, among: impl Fn(u32) -> PgId) -> Option<PgId> {
        let wished = self.pools.get(&pool)?.pg_count;
        let counts = (2..=wished).filter(|part| wished.is_multiple_of(*part)).map(|part| wished / part);
        let is_one_of = |count: u32| {
            let pg = among(count);
            self.scope(pg).is_some_and(|scope| scope.count == count).then_some(pg)
        };
        self.finer_holder(wished, &among).or_else(|| counts.into_iter().find_map(is_one_of))
    }

    /// Among so many PGs, or more, as long as they are not merged. The PG that will have the object has some others of the same future PG
    /// now, if it is there, and says how many there are.
    fn finer_holder(&self, mut count: u32, among: impl Fn(u32) -> PgId) -> Option<PgId> {
        loop {
            let pg = among(count);
            let present = self.scope(pg)?.count;
            if present == count {
                return Some(pg);
            }
            if present < count || !present.is_multiple_of(count) {
                return None;
            }
            count = present;
        }
    }

    /// The pool of this name.
    pub fn pool_by_name(&self, name: &str) -> Option<(PoolId, &PoolConfig)> {
        self.pools.iter().find(|(_, pool)| pool.name == name).map(|(id, pool)| (*id, pool))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LayerId;

    #[test]
    fn a_bad_value_leaves_the_old_one_in_force() {
        let mut map = ClusterMap::default();
        let key = keys::pool(PoolId(1));
        let good = serde_json::to_vec(&PoolConfig::replicated("default", 3)).unwrap();
        assert_eq!(map.apply(&key, Some(&good)), Ok(MapChange::Pool(PoolId(1))));
        for bad in [
            &b"{}"[..],
            b"not json",
            br#"{"name":"x","scheme":{"replicated":{"copies":99}},"min-size":1,"pg-count":64,"block-size":1048576}"#,
        ] {
            assert!(map.apply(&key, Some(bad)).is_err());
            assert_eq!(map.pools[&PoolId(1)].width(), 3);
        }
        assert!(map.apply("/blockyard/pg/map/1", Some(b"{}")).is_err());
        assert_eq!(map.apply("/blockyard/image/layer/1", Some(b"{}")), Ok(MapChange::None));
        assert_eq!(map.apply(&key, None), Ok(MapChange::Pool(PoolId(1))));
        assert!(map.pools.is_empty());
    }

    #[test]
    fn a_scrub_is_asked_for_by_pg() {
        let mut map = ClusterMap::default();
        let pg = PgId { pool: PoolId(1), index: 17 };
        let key = keys::scrub(pg);
        assert_eq!(key, "/blockyard/scrub/1/17");
        assert_eq!(map.apply(&key, Some(br#"{"deep":true,"requested":9}"#)), Ok(MapChange::Scrub(pg)));
        for bad in [&b"{}"[..], br#"{"deep":true}"#] {
            assert!(map.apply(&key, Some(bad)).is_err());
        }
        assert!(map.apply("/blockyard/scrub/1/17/x", Some(b"{}")).is_err());
        assert_eq!(map.scrubs[&pg], ScrubRequest { deep: true, requested: 9, parity_from_data: false });
        let done = br#"{"light":7,"served":9}"#;
        assert_eq!(map.apply("/blockyard/scrub/done/1/17", Some(done)), Ok(MapChange::Scrub(pg)));
        assert_eq!(map.scrubbed[&pg], PgScrub { light: Some(7), served: Some(9), ..PgScrub::default() });
        assert_eq!(keys::scrubbed(pg), "/blockyard/scrub/done/1/17");
        assert_eq!(map.apply(&key, None), Ok(MapChange::Scrub(pg)));
        assert!(map.scrubs.is_empty());
    }

    #[test]
    fn tree_and_settings_are_one_value_each() {
        let mut map = ClusterMap::default();
        let tree = br#"{"nodes":{"r1":{"level":"rack"},"h1":{"level":"host","parent":"r1"}}}"#;
        assert_eq!(map.apply(keys::TREE, Some(tree)), Ok(MapChange::Tree));
        assert_eq!(map.apply(keys::SETTINGS, Some(br#"{"down-out-seconds":30}"#)), Ok(MapChange::Settings));
        for bad in [&br#"{"nodes":{"h1":{"level":"host","parent":"r1"}}}"#[..], b"7", br#"{"levels":[]}"#] {
            assert!(map.apply(keys::TREE, Some(bad)).is_err());
        }
        assert!(map.apply(keys::SETTINGS, Some(br#"{"down-out-seconds":0}"#)).is_err());
        assert_eq!((map.tree.nodes.len(), map.settings.down_out_seconds), (2, 30));
        assert_eq!(map.apply(keys::TREE, None), Ok(MapChange::Tree));
        assert!(map.tree.nodes.is_empty());
    }

    #[test]
    fn an_object_is_in_one_pg_while_some_are_split() {
        let pool = PoolId(1);
        let mut map = ClusterMap::default();
        let layer = crate::layout::LayerRef { pool, lineage: LayerId(3), layer: LayerId(3) };
        let holders = |map: &ClusterMap| -> Vec<_> {
            let found = (0..64).map(|index| map.pg_of(&layer.object(index)));
            found.map(|pg| pg.map(|pg| pg.index)).collect()
        };
        let put = |map: &mut ClusterMap, index: u32, count: Option<u32>| {
            let count = count.map_or(String::new(), |count| format!(r#","pg-count":{count}"#));
            let value =
                format!(r#"{{"epoch":1,"primary":1,"acting":[{{"osd":1,"incarnation":1}}],"target":[1]{count}}}"#);
            map.apply(&keys::pg_map(PgId { pool, index }), Some(value.as_bytes())).unwrap();
        };
        map.pools.insert(pool, PoolConfig { pg_count: 4, ..PoolConfig::replicated("default", 3) });
        assert!(holders(&map).iter().all(Option::is_none));
        (0..4).for_each(|index| put(&mut map, index, (index > 1).then_some(4)));
        let before = holders(&map);
        assert!(before.iter().zip(0..).all(|(pg, index)| *pg == Some(layer.object(index).pg(4).index)));
        // Who hears of a part only, and of the configuration later, waits for what it does not know.
        put(&mut map, 1, Some(12));
        for (index, (now, before)) in (0..).zip(holders(&map).iter().zip(&before)) {
            let has_part = layer.object(index).pg(12).index == 1;
            let expected = if *before == Some(1) { has_part.then_some(1) } else { *before };
            assert_eq!(*now, expected);
        }
        [0, 2, 3].into_iter().for_each(|index| put(&mut map, index, Some(4)));
        [5, 9].into_iter().for_each(|index| put(&mut map, index, Some(12)));
        map.pools.get_mut(&pool).unwrap().pg_count = 12;
        for (index, now) in (0..).zip(holders(&map)) {
            let expected = if before[index as usize] == Some(1) {
                layer.object(index).pg(12).index
            } else {
                before[index as usize].unwrap()
            };
            assert_eq!(now, Some(expected));
        }
        assert_eq!(map.present_pg(pool, 10).unwrap().index, 2);
        assert_eq!(map.present_pg(pool, 9).unwrap().index, 9);
        assert_eq!(map.scope(PgId { pool, index: 9 }).unwrap().count, 12);
    }

    #[test]
    fn an_object_is_in_one_pg_while_some_are_merged() {
        let pool = PoolId(1);
        let mut map = ClusterMap::default();
        let layer = crate::layout::LayerRef { pool, lineage: LayerId(3), layer: LayerId(3) };
        let put = |map: &mut ClusterMap, index: u32, count: u32| {
            let value = format!(
                r#"{{"epoch":1,"primary":1,"acting":[{{"osd":1,"incarnation":1}}],"target":[1],"pg-count":{count}}}"#
            );
            map.apply(&keys::pg_map(PgId { pool, index }), Some(value.as_bytes())).unwrap();
        };
        let remove = |map: &mut ClusterMap, index| map.apply(&keys::pg_map(PgId { pool, index }), None).unwrap();
        map.pools.insert(pool, PoolConfig { pg_count: 12, ..PoolConfig::replicated("default", 3) });
        (0..12).for_each(|index| put(&mut map, index, 12));
        let holder = |map: &ClusterMap, index| map.pg_of(&layer.object(index)).map(|pg| pg.index);
        for wished in [12, 4, 2, 1, 24] {
            map.pools.get_mut(&pool).unwrap().pg_count = wished;
            assert!((0..64).all(|index| holder(&map, index) == Some(layer.object(index).pg(12).index)), "{wished}");
        }
        // Some are merged on the way to two, others not; one map is on its way.
        put(&mut map, 0, 4);
        (4..12).step_by(4).for_each(|index| _ = remove(&mut map, index));
        remove(&mut map, 7);
        let expected = |index: u32| match layer.object(index).pg(12).index {
            all if all % 4 == 0 => Some(0),
            7 => None,
            one => Some(one),
        };
        for wished in [2, 4, 12] {
            map.pools.get_mut(&pool).unwrap().pg_count = wished;
            assert!((0..64).all(|index| holder(&map, index) == expected(index)), "{wished}");
        }
        put(&mut map, 11, 8);
        assert_eq!(map.scope(PgId { pool, index: 11 }), None, "number 11 of 8");
    }

    #[test]
    fn values_of_before_still_read() {
        let mut map = ClusterMap::default();
        map.apply(&keys::osd_config(OsdId(1)), Some(br#"{"weight":2.5}"#)).unwrap();
        assert_eq!(map.osd_configs[&OsdId(1)], OsdConfig::new(2.5));
        let full = br#"{"weight":2,"reweight":0.5,"host":"h1","tags":["ssd"]}"#;
        map.apply(&keys::osd_config(OsdId(1)), Some(full)).unwrap();
        assert_eq!(map.osd_configs[&OsdId(1)].effective_weight(), 1.0);
        for bad in [&br#"{"weight":-1}"#[..], br#"{"weight":1,"reweight":1.5}"#, br#"{"weight":1,"tags":["a","a"]}"#] {
            assert!(map.apply(&keys::osd_config(OsdId(1)), Some(bad)).is_err());
        }
    }
}
