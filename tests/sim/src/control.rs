//! The state store and the monitor. The store is as plain as a store can be (keys, revisions, one log of changes), so that
//! what is simulated is its delays and silence; the monitor's plan is the real one.

use std::collections::BTreeMap;

use cluster_proto::map::{ClusterInfo, ClusterMap, OsdConfig, PoolConfig, keys};
use cluster_proto::{OsdId, PgId, PoolId, Uuid};
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
}

impl Control {
    /// A state store with the cluster's configuration.
    pub fn new(osds: u32, pool: &PoolConfig) -> Self {
        let mut control = Self::default();
        let info = ClusterInfo { id: CLUSTER, created: 0, schema: 1 };
        control.put(keys::CLUSTER, json(&info));
        for osd in 1..=osds {
            control.put(&keys::osd_config(OsdId(osd)), json(&OsdConfig::new(1.0)));
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
    pub fn activate(&mut self, pg: PgId, epoch: cluster_proto::Epoch, record: Vec<u8>) -> bool {
        let map = self.get(&keys::pg_map(pg)).and_then(|v| serde_json::from_slice::<cluster_proto::map::PgMap>(v).ok());
        let ok = map.is_some_and(|map| map.epoch == epoch);
        if ok {
            self.put(&keys::pg_activation(pg), record);
        }
        ok
    }

    /// The monitor looks at everything and writes what must change. True if it wrote.
    pub fn plan(&mut self) -> bool {
        for (key, value) in &self.log[self.mirrored..] {
            self.map.apply(key, value.as_deref()).expect("only valid values are written");
        }
        self.mirrored = self.log.len();
        let plan = mon_core::plan(&self.map);
        for change in &plan.changes {
            for (key, value) in change.writes() {
                match value {
                    Some(value) => self.put(&key, value),
                    None => self.delete(&key),
                }
            }
        }
        !plan.changes.is_empty()
    }
}

/// A value of the state.
pub fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("values of the schema are plain")
}
