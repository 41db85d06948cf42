//! The state store and the monitor. The store is as plain as a store can be (keys, revisions, one log of changes), so that
//! what is simulated is its delays and silence; the monitor's plan is the real one.

use std::collections::{BTreeMap, BTreeSet};

use cluster_proto::map::{
    Activation, ClusterInfo, ClusterMap, Interval, Member, OsdConfig, PgMap, PoolConfig, Scheme, keys,
};
use cluster_proto::{OsdId, PgId, PoolId, Uuid};
use mon_core::liveness::Liveness;
use mon_core::usable;
use serde::Serialize;

/// The simulated cluster's id.
pub const CLUSTER: Uuid = Uuid::from_u128(0x5170);

/// A change of a key: its new value, none if it was deleted.
pub type Change = (String, Option<Vec<u8>>);

/// The state store, and the monitor's mirror of it.
#[derive(Default)]
pub struct Control {
    keys: BTreeMap<String, Vec<u8>>,
    /// Every change there ever was; its position is its revision.
    log: Vec<Change>,
    map: ClusterMap,
    mirrored: usize,
    /// The monitor's judgement of who runs.
    pub liveness: Liveness,
}

impl Control {
    /// A state store with the cluster's configuration.
    pub fn new(osds: u32, pool: &PoolConfig) -> Self {
        let mut control = Self::default();
        let info = ClusterInfo { id: CLUSTER, created: 0, schema: 1 };
        control.put(keys::CLUSTER, json(&info));
        for osd in 1..=osds {
            control.set_weight(OsdId(osd), 1.0);
        }
        control.put(&keys::pool(PoolId(1)), json(pool));
        control
    }

    /// Writes a key.
    pub fn put(&mut self, key: &str, value: Vec<u8>) {
        self.keys.insert(key.to_owned(), value.clone());
        self.log.push((key.to_owned(), Some(value)));
    }

    /// Deletes a key.
    pub fn delete(&mut self, key: &str) {
        if self.keys.remove(key).is_some() {
            self.log.push((key.to_owned(), None));
        }
    }

    /// The present value of a key.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.keys.get(key).map(Vec::as_slice)
    }

    /// Changes after the first `told`, and how many there are in all.
    pub fn changes_after(&self, told: usize) -> (&[Change], usize) {
        (&self.log[told..], self.log.len())
    }

    /// Makes the activation record durable, if the PG still has this epoch.
    pub fn activate(&mut self, pg: PgId, record: &Activation) -> bool {
        let map = self.get(&keys::pg_map(pg)).and_then(|v| serde_json::from_slice::<PgMap>(v).ok());
        let ok = map.is_some_and(|map| map.epoch == record.epoch);
        if ok {
            self.put(&keys::pg_activation(pg), json(record));
        }
        ok
    }

    /// The monitor sees the present state. Returns registrations to withdraw.
    pub fn look(&mut self, now: u64) -> Vec<Member> {
        self.mirror();
        self.liveness.handle_map(now, &self.map);
        self.liveness.poll_withdrawn()
    }

    fn mirror(&mut self) {
        for (key, value) in &self.log[self.mirrored..] {
            self.map.apply(key, value.as_deref()).expect("only valid values are written");
        }
        self.mirrored = self.log.len();
    }

    /// Configuration of an OSD's weight.
    pub fn set_weight(&mut self, osd: OsdId, weight: f64) {
        self.put(&keys::osd_config(osd), json(&OsdConfig::new(weight)));
    }

    /// Whether the pool can have so many PGs, from what it has now.
    pub fn can_have_pgs(&mut self, wished: u32) -> bool {
        self.mirror();
        let counts = self.map.pgs.values().filter_map(|present| present.pg_count);
        counts.into_iter().all(|count| count == wished || mon_core::check_pg_count(count, wished).is_ok())
    }

    /// How many PGs the pool shall have.
    pub fn set_pg_count(&mut self, pg_count: u32) {
        self.mirror();
        let config = PoolConfig { pg_count, ..self.map.pools[&PoolId(1)].clone() };
        self.put(&keys::pool(PoolId(1)), json(&config));
    }

    /// Whether the pool can be placed without an OSD.
    pub fn is_spare(&mut self, osd: OsdId) -> bool {
        self.mirror();
        let others = self.map.osd_configs.iter().filter(|(id, config)| **id != osd && config.weight > 0.0).count();
        self.map.pools.values().all(|pool| others >= pool.width())
    }

    /// Whether everything acknowledged is on others than this OSD and those that are lost.
    pub fn has_all_without(&mut self, osd: OsdId, is_lost: impl Fn(OsdId) -> bool) -> bool {
        self.mirror();
        let copies = self.scheme().copies_needed();
        let records = self.map.activations.values().map(Activation::interval);
        let past = self.map.histories.values().flatten().cloned().chain(records);
        let mut past = past.filter(|past| past.osds().any(|member| member == osd));
        past.all(|past| past.complete.iter().filter(|other| **other != osd && !is_lost(**other)).count() >= copies)
    }

    /// An operator gives up an OSD that is lost and not configured, as `osd rm --force` does, if others have its places.
    pub fn give_up(&mut self, osd: OsdId) -> bool {
        self.mirror();
        let copies = self.scheme().copies_needed();
        if self.map.osd_configs.contains_key(&osd) || self.map.pgs.values().any(|pg| pg.shard_of(osd).is_some()) {
            return false;
        }
        let mut given_up = false;
        for (pg, history) in self.map.histories.clone() {
            if let Some(left) = Interval::all_without(&history, osd, copies).filter(|left| *left != history) {
                self.put(&keys::pg_history(pg), json(&left));
                given_up = true;
            }
        }
        given_up
    }

    /// The monitor writes what must change. Returns that in words, and how often PGs became one.
    pub fn plan(&mut self) -> (Vec<String>, u64) {
        self.mirror();
        let plan = mon_core::plan(&self.map, &self.liveness.running(&self.map), &usable(&self.map, &BTreeSet::new()));
        for change in &plan.changes {
            for (key, value) in change.writes() {
                match value {
                    Some(value) => self.put(&key, value),
                    None => self.delete(&key),
                }
            }
        }
        let words = |change: &mon_core::PgChange| {
            let acting: Vec<u32> = change.map.acting.iter().map(|m| m.map_or(0, |m| m.osd.0)).collect();
            let PgMap { epoch, primary, target, .. } = &change.map;
            let parts: Vec<u32> = change.parts().iter().map(|part| part.index).collect();
            let merged: Vec<u32> = change.merged().iter().map(|part| part.index).collect();
            let split = if parts.is_empty() { String::new() } else { format!(", split off {parts:?}") };
            let merged = if merged.is_empty() { String::new() } else { format!(", merged with {merged:?}") };
            format!("pg {} epoch {epoch}: {acting:?} led by {primary}, target {target:?}{split}{merged}", change.pg)
        };
        let merges = plan.changes.iter().filter(|change| !change.merged().is_empty()).count();
        (plan.changes.iter().map(words).collect(), merges as u64)
    }

    /// Whether all data is where it should be.
    pub fn is_clean(&mut self) -> bool {
        self.mirror();
        let clean = |(pg, map): (&PgId, &PgMap)| {
            let record = self.map.activations.get(pg).filter(|record| record.epoch == map.epoch);
            record.is_some_and(|record| map.target.iter().all(|osd| record.complete.contains(osd)))
        };
        let wished = self.map.pools.values().map(|pool| pool.pg_count).sum::<u32>();
        // Whoever is looked at closely may yet lose its place.
        let is_calm = self.liveness.poll_timeout(0).is_none();
        is_calm && self.map.pgs.len() == wished as usize && self.map.pgs.iter().all(clean)
    }

    /// The pool, in words.
    pub fn pool(&mut self) -> String {
        self.mirror();
        let pool = &self.map.pools[&PoolId(1)];
        format!("{:?}, min-size {}, {} PGs", pool.scheme, pool.min_size, pool.pg_count)
    }

    /// How the pool keeps its objects.
    pub fn scheme(&mut self) -> Scheme {
        self.mirror();
        self.map.pools[&PoolId(1)].scheme
    }

    /// The present map.
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }
}

/// A value of the state.
pub fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("values of the schema are plain")
}
