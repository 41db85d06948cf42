//! The PGs of an OSD: found by hash, since every message asks for one or another several times, and walked in order.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use cluster_proto::ids::PgId;
use rustc_hash::FxHashMap;

use super::Pg;

#[derive(Default)]
pub(crate) struct PgTable {
    pgs: FxHashMap<PgId, Box<Pg>>,
    order: BTreeSet<PgId>,
}

impl PgTable {
    pub fn get(&self, id: &PgId) -> Option<&Pg> {
        self.pgs.get(id).map(|pg| &**pg)
    }

    pub fn get_mut(&mut self, id: &PgId) -> Option<&mut Pg> {
        self.pgs.get_mut(id).map(|pg| &mut **pg)
    }

    pub fn contains_key(&self, id: &PgId) -> bool {
        self.pgs.contains_key(id)
    }

    pub fn insert(&mut self, id: PgId, pg: Pg) {
        self.order.insert(id);
        self.pgs.insert(id, Box::new(pg));
    }

    pub fn remove(&mut self, id: &PgId) -> Option<Pg> {
        self.order.remove(id);
        self.pgs.remove(id).map(|pg| *pg)
    }

    pub fn keys(&self) -> impl Iterator<Item = &PgId> {
        self.order.iter()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&PgId, &Pg)> {
        self.order.iter().filter_map(|id| Some((id, self.get(id)?)))
    }

    pub fn values(&self) -> impl Iterator<Item = &Pg> {
        self.iter().map(|(_, pg)| pg)
    }

    /// In no particular order.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Pg> {
        self.pgs.values_mut().map(|pg| &mut **pg)
    }

    pub fn range(&self, ids: RangeInclusive<PgId>) -> impl Iterator<Item = (&PgId, &Pg)> {
        self.order.range(ids).filter_map(|id| Some((id, self.get(id)?)))
    }
}

#[cfg(test)]
impl std::ops::Index<&PgId> for PgTable {
    type Output = Pg;

    fn index(&self, id: &PgId) -> &Pg {
        &self.pgs[id]
    }
}
