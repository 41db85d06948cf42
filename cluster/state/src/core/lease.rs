//! Leases: who holds which keys, and when they end.

use std::collections::{BTreeMap, BTreeSet};

use prost::bytes::Bytes;

use super::op::CoreError;
use crate::limits::{LEASE_TTL_S_MAX, LEASE_TTL_S_MIN, LEASES_MAX};

struct Lease {
    ttl_s: u32,
    deadline_ms: u64,
    keys: BTreeSet<Bytes>,
}

/// What is known about a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Its time to live when it is kept alive. Seconds.
    pub ttl_s: u32,
    /// What is left of it. Seconds, rounded up.
    pub remaining_s: u32,
    /// The keys that end with it.
    pub keys: Vec<Bytes>,
}

/// All leases, by id and by deadline.
#[derive(Default)]
pub(super) struct Leases {
    leases: BTreeMap<i64, Lease>,
    deadlines: BTreeSet<(u64, i64)>,
    last_id: i64,
}

impl Leases {
    pub(super) fn contains(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = i64> + '_ {
        self.leases.keys().copied()
    }

    /// The last id that was chosen here; persisted, so that no id is ever chosen twice.
    pub(super) fn last_id(&self) -> i64 {
        self.last_id
    }

    pub(super) fn set_last_id(&mut self, last_id: i64) {
        self.last_id = self.last_id.max(last_id);
    }

    /// Creates a lease; `id` 0 lets us choose.
    pub(super) fn grant(&mut self, id: i64, ttl_s: i64, now_ms: u64) -> Result<(i64, u32), CoreError> {
        if ttl_s > LEASE_TTL_S_MAX.into() {
            return Err(CoreError::LeaseTtl);
        }
        if self.leases.len() >= LEASES_MAX {
            return Err(CoreError::TooManyLeases);
        }
        if id < 0 || self.leases.contains_key(&id) {
            return Err(CoreError::LeaseExists);
        }
        let id = if id == 0 { self.next_id() } else { id };
        let ttl_s = u32::try_from(ttl_s).unwrap_or(0).max(LEASE_TTL_S_MIN);
        self.insert(id, ttl_s, now_ms);
        Ok((id, ttl_s))
    }

    fn next_id(&mut self) -> i64 {
        self.last_id += 1;
        while self.leases.contains_key(&self.last_id) {
            self.last_id += 1;
        }
        self.last_id
    }

    pub(super) fn insert(&mut self, id: i64, ttl_s: u32, now_ms: u64) {
        let deadline_ms = now_ms + u64::from(ttl_s) * 1000;
        self.leases.insert(id, Lease { ttl_s, deadline_ms, keys: BTreeSet::new() });
        self.deadlines.insert((deadline_ms, id));
    }

    /// Gives a lease its full time again and returns it in seconds.
    pub(super) fn keep_alive(&mut self, id: i64, now_ms: u64) -> Option<u32> {
        let lease = self.leases.get_mut(&id)?;
        self.deadlines.remove(&(lease.deadline_ms, id));
        lease.deadline_ms = now_ms + u64::from(lease.ttl_s) * 1000;
        self.deadlines.insert((lease.deadline_ms, id));
        Some(lease.ttl_s)
    }

    /// Forgets a lease and returns its keys.
    pub(super) fn remove(&mut self, id: i64) -> Option<BTreeSet<Bytes>> {
        let lease = self.leases.remove(&id)?;
        self.deadlines.remove(&(lease.deadline_ms, id));
        Some(lease.keys)
    }

    pub(super) fn info(&self, id: i64, now_ms: u64) -> Option<LeaseInfo> {
        let lease = self.leases.get(&id)?;
        let remaining_ms = lease.deadline_ms.saturating_sub(now_ms);
        Some(LeaseInfo {
            ttl_s: lease.ttl_s,
            remaining_s: u32::try_from(remaining_ms.div_ceil(1000)).unwrap_or(u32::MAX),
            keys: lease.keys.iter().cloned().collect(),
        })
    }

    /// Moves a key from one lease to another; 0 = none.
    pub(super) fn rebind(&mut self, key: &Bytes, from: i64, to: i64) {
        if let Some(lease) = self.leases.get_mut(&from).filter(|_| from != to) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.leases.get_mut(&to) {
            lease.keys.insert(key.clone());
        }
    }

    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|&(deadline_ms, _)| deadline_ms)
    }

    /// A lease whose time is over.
    pub(super) fn expired(&self, now_ms: u64) -> Option<i64> {
        self.deadlines.first().filter(|&&(deadline_ms, _)| deadline_ms <= now_ms).map(|&(_, id)| id)
    }

    pub(super) fn check_invariants(&self) -> bool {
        self.leases.len() == self.deadlines.len()
            && self.leases.iter().all(|(&id, lease)| self.deadlines.contains(&(lease.deadline_ms, id)))
    }
}
