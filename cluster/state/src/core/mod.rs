//! The state machine of a store: keys with revisions, transactions, leases, and the history for watches. Pure: time is
//! an argument, and nothing here waits, writes or draws random numbers.
//!
//! Three drivers use it: [`crate::MemoryStore`] and [`crate::EmbeddedStore`] (from one thread each, which makes the
//! changes durable before it answers), and the simulator (directly). The meaning of each operation is etcd's.
//!
//! Only the newest version of each key is kept, with the events of the recent past beside it: an earlier revision is
//! read by undoing events. So the common reads cost nothing extra, and memory is bounded without a compaction schedule.

mod check;
mod history;
mod key_range;
mod lease;
mod op;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use prost::bytes::Bytes;

pub(crate) use check::check_form;
pub use history::{Event, Events};
pub use key_range::KeyRange;
pub use lease::LeaseInfo;
pub use op::{
    CompareOp, CompareTarget, CoreError, DeleteOp, Entry, Op, OpResult, PutOp, RangeOp, Relation, SortTarget, TxnOp,
};

use crate::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, STORE_BYTES_MAX};
use history::History;
use lease::Leases;

/// A change of the state, for the driver to make durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// A key was written.
    Put(Entry),
    /// A key was deleted.
    Delete(Bytes),
    /// A lease was granted.
    Lease {
        /// Its id.
        id: i64,
        /// Its time to live. Seconds.
        ttl_s: u32,
    },
    /// A lease has ended.
    LeaseGone(i64),
}

/// The durable part of the state, to start from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The last revision.
    pub revision: i64,
    /// The last lease id that was chosen.
    pub last_lease_id: i64,
    /// All keys.
    pub entries: Vec<Entry>,
    /// All leases with their time to live in seconds.
    pub leases: Vec<(i64, u32)>,
}

/// The state machine. See the module's documentation.
pub struct StateCore {
    revision: i64,
    keys: BTreeMap<Bytes, Entry>,
    bytes: usize,
    history: History,
    leases: Leases,
    now_ms: u64,
    journal: Option<Vec<Delta>>,
}

impl Default for StateCore {
    fn default() -> Self {
        Self::new()
    }
}

impl StateCore {
    /// An empty store. Its revision is 1, as that of a fresh etcd.
    pub fn new() -> Self {
        Self {
            revision: 1,
            keys: BTreeMap::new(),
            bytes: 0,
            history: History::starting_at(2),
            leases: Leases::default(),
            now_ms: 0,
            journal: None,
        }
    }

    /// The store as it was, at time `now_ms`: each lease has its full time again, and the history is empty.
    ///
    /// # Errors
    /// The image contradicts itself (a key names a lease that is not there, or a later revision).
    pub fn restore(image: Image, now_ms: u64) -> Result<Self, CoreError> {
        let mut core = Self { revision: image.revision.max(1), now_ms, ..Self::new() };
        core.history = History::starting_at(core.revision + 1);
        core.leases.set_last_id(image.last_lease_id);
        image.leases.iter().for_each(|&(id, ttl_s)| core.leases.insert(id, ttl_s, now_ms));
        for entry in image.entries {
            if entry.lease != 0 && !core.leases.contains(entry.lease) {
                return Err(CoreError::LeaseNotFound);
            }
            if entry.mod_revision > core.revision {
                return Err(CoreError::FutureRevision);
            }
            core.leases.rebind(&entry.key, 0, entry.lease);
            core.bytes += entry.weight();
            core.keys.insert(entry.key.clone(), entry);
        }
        debug_assert!(core.check_invariants());
        Ok(core)
    }

    /// Starts to record changes for [`StateCore::poll_deltas`].
    pub fn record_deltas(&mut self) {
        self.journal.get_or_insert_default();
    }

    /// The changes since the last call, in order.
    pub fn poll_deltas(&mut self) -> Vec<Delta> {
        self.journal.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The last revision.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The oldest revision from which a watch can start.
    pub fn first_revision(&self) -> i64 {
        self.history.first()
    }

    /// Keys in the store.
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// Memory that the keys and values stand for. Bytes.
    pub fn key_bytes(&self) -> usize {
        self.bytes
    }

    /// The last lease id that was chosen; part of the durable state.
    pub fn last_lease_id(&self) -> i64 {
        self.leases.last_id()
    }

    /// One key, as it is now.
    pub fn entry(&self, key: &[u8]) -> Option<&Entry> {
        self.keys.get(key)
    }

    /// Carries out a request: completely, or not at all if there is an error.
    ///
    /// # Errors
    /// Any [`CoreError`] that concerns keys and transactions.
    pub fn handle_op(&mut self, op: &Op) -> Result<OpResult, CoreError> {
        check_form(op)?;
        let mut path = Vec::new();
        self.decide(op, &mut path);
        let mut put_bytes = 0;
        self.check_state(op, &mut path.iter(), &mut put_bytes)?;
        if put_bytes > 0 && self.bytes + put_bytes > STORE_BYTES_MAX {
            return Err(CoreError::NoSpace);
        }
        let revision = self.revision + 1;
        let mut changed = false;
        let result = self.execute(op, &mut path.iter(), revision, &mut changed);
        self.finish_revision(revision, changed);
        Ok(result)
    }

    /// Records, in the order in which execution meets them, whether each transaction's conditions hold.
    fn decide(&self, op: &Op, path: &mut Vec<bool>) {
        let Op::Txn(txn) = op else { return };
        let holds = txn.compare.iter().all(|compare| self.holds(compare));
        path.push(holds);
        branch(txn, holds).iter().for_each(|op| self.decide(op, path));
    }

    fn holds(&self, compare: &CompareOp) -> bool {
        let mut entries = self.entries(&compare.keys).peekable();
        if entries.peek().is_some() {
            return entries.all(|entry| compare_entry(compare, entry));
        }
        !matches!(compare.target, CompareTarget::Value(_)) && compare_entry(compare, &Entry::default())
    }

    fn entries(&self, keys: &KeyRange) -> impl Iterator<Item = &Entry> {
        keys.bounds().into_iter().flat_map(|bounds| self.keys.range::<[u8], _>(bounds)).map(|(_, entry)| entry)
    }

    /// Refuses what would fail in the middle of execution; sums up the memory that puts may need.
    fn check_state<'p>(
        &self,
        op: &Op,
        path: &mut impl Iterator<Item = &'p bool>,
        put_bytes: &mut usize,
    ) -> Result<(), CoreError> {
        match op {
            Op::Range(range) => self.check_revision(range.revision),
            Op::Delete(_) => Ok(()),
            Op::Put(put) => {
                *put_bytes += self.check_put(put)?;
                Ok(())
            }
            Op::Txn(txn) => {
                let holds = path.next().copied().unwrap_or_default();
                for op in branch(txn, holds) {
                    self.check_state(op, path, put_bytes)?;
                }
                Ok(())
            }
        }
    }

    fn check_revision(&self, revision: i64) -> Result<(), CoreError> {
        match revision {
            revision if revision > self.revision => Err(CoreError::FutureRevision),
            revision if revision > 0 && revision != self.revision && revision < self.history.readable() => {
                Err(CoreError::Compacted(self.history.first()))
            }
            _ => Ok(()),
        }
    }

    fn check_put(&self, put: &PutOp) -> Result<usize, CoreError> {
        let present = self.keys.get(&put.key);
        if (put.ignore_value || put.ignore_lease) && present.is_none() {
            return Err(CoreError::KeyNotFound);
        }
        if put.lease != 0 && !self.leases.contains(put.lease) {
            return Err(CoreError::LeaseNotFound);
        }
        Ok(Entry { key: put.key.clone(), value: put.value.clone(), ..Entry::default() }.weight())
    }

    fn execute<'p>(
        &mut self,
        op: &Op,
        path: &mut impl Iterator<Item = &'p bool>,
        revision: i64,
        changed: &mut bool,
    ) -> OpResult {
        match op {
            Op::Range(range) => self.range(range),
            Op::Put(put) => {
                *changed = true;
                self.put(put, revision)
            }
            Op::Delete(delete) => {
                let prev = self.delete(&delete.keys, revision);
                *changed |= !prev.is_empty();
                OpResult::Delete { deleted: prev.len(), prev: if delete.prev_kv { prev } else { Vec::new() } }
            }
            Op::Txn(txn) => {
                let succeeded = path.next().copied().unwrap_or_default();
                let ops = branch(txn, succeeded).iter();
                let mut results = Vec::new();
                for op in ops {
                    results.push(self.execute(op, path, revision, changed));
                }
                OpResult::Txn { succeeded, results }
            }
        }
    }

    fn range(&self, op: &RangeOp) -> OpResult {
        let in_bounds =
            |(low, high): (i64, i64), value: i64| (low == 0 || low <= value) && (high == 0 || value <= high);
        let mut entries = self.entries_at(&op.keys, op.revision);
        let count = entries.len();
        if op.count_only {
            return OpResult::Range { entries: Vec::new(), more: false, count };
        }
        entries.retain(|entry| {
            in_bounds(op.mod_revisions, entry.mod_revision) && in_bounds(op.create_revisions, entry.create_revision)
        });
        sort(&mut entries, op.sort_by, op.descending);
        let more = op.limit > 0 && entries.len() > op.limit;
        if more {
            entries.truncate(op.limit);
        }
        if op.keys_only {
            entries.iter_mut().for_each(|entry| entry.value = Bytes::new());
        }
        OpResult::Range { entries, more, count }
    }

    /// The entries of `keys` as they were in `revision` (0 = now), by key.
    fn entries_at(&self, keys: &KeyRange, revision: i64) -> Vec<Entry> {
        if revision <= 0 || revision >= self.revision {
            return self.entries(keys).cloned().collect();
        }
        let mut then: BTreeMap<&Bytes, &Entry> = self.entries(keys).map(|entry| (&entry.key, entry)).collect();
        for event in self.history.newest_first_after(revision).filter(|event| keys.contains(&event.entry.key)) {
            match &event.prev {
                Some(prev) => then.insert(&prev.key, prev),
                None => then.remove(&event.entry.key),
            };
        }
        then.into_values().cloned().collect()
    }

    fn put(&mut self, put: &PutOp, revision: i64) -> OpResult {
        let prev = self.keys.get(&put.key).cloned();
        let mut entry = Entry {
            key: put.key.clone(),
            value: put.value.clone(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: put.lease,
        };
        if let Some(prev) = &prev {
            entry.create_revision = prev.create_revision;
            entry.version = prev.version + 1;
            if put.ignore_value {
                entry.value = prev.value.clone();
            }
            if put.ignore_lease {
                entry.lease = prev.lease;
            }
        }
        self.leases.rebind(&entry.key, prev.as_ref().map_or(0, |prev| prev.lease), entry.lease);
        self.bytes = self.bytes + entry.weight() - prev.as_ref().map_or(0, Entry::weight);
        self.keys.insert(entry.key.clone(), entry.clone());
        self.note(Delta::Put(entry.clone()));
        self.history.push(Event { deleted: false, entry, prev: prev.clone() });
        OpResult::Put { prev: prev.filter(|_| put.prev_kv) }
    }

    fn delete(&mut self, keys: &KeyRange, revision: i64) -> Vec<Entry> {
        let doomed: Vec<Bytes> = self.entries(keys).map(|entry| entry.key.clone()).collect();
        doomed.into_iter().filter_map(|key| self.delete_key(key, revision)).collect()
    }

    fn delete_key(&mut self, key: Bytes, revision: i64) -> Option<Entry> {
        let prev = self.keys.remove(&key)?;
        self.leases.rebind(&key, prev.lease, 0);
        self.bytes -= prev.weight();
        self.note(Delta::Delete(key.clone()));
        let entry = Entry { key, mod_revision: revision, ..Entry::default() };
        self.history.push(Event { deleted: true, entry, prev: Some(prev.clone()) });
        Some(prev)
    }

    fn note(&mut self, delta: Delta) {
        if let Some(journal) = &mut self.journal {
            journal.push(delta);
        }
    }

    fn finish_revision(&mut self, revision: i64, changed: bool) {
        if changed {
            self.revision = revision;
            self.history.trim();
        }
        debug_assert!(self.check_invariants());
    }

    /// Events of `keys` in revision `from` and later: whole revisions, about [`BATCH_EVENTS_MAX`] events at most.
    ///
    /// # Errors
    /// [`CoreError::Compacted`] if the history begins later.
    pub fn events(&self, from: i64, keys: &KeyRange) -> Result<Events, CoreError> {
        self.history.events(from, keys, self.revision, BATCH_EVENTS_MAX, BATCH_BYTES_MAX)
    }

    /// Forgets the events of all revisions before `revision`.
    ///
    /// # Errors
    /// `revision` is in the future, or already forgotten.
    pub fn compact(&mut self, revision: i64) -> Result<(), CoreError> {
        if revision > self.revision {
            return Err(CoreError::FutureRevision);
        }
        if revision < self.history.first() {
            return Err(CoreError::Compacted(self.history.first()));
        }
        self.history.forget_before(revision);
        Ok(())
    }

    /// Creates a lease of `ttl_s` seconds with this id (0 = choose one) and returns its id and real time to live.
    ///
    /// # Errors
    /// The id is taken, the time is too long, or there are too many leases.
    pub fn lease_grant(&mut self, id: i64, ttl_s: i64) -> Result<(i64, u32), CoreError> {
        let (id, ttl_s) = self.leases.grant(id, ttl_s, self.now_ms)?;
        self.note(Delta::Lease { id, ttl_s });
        Ok((id, ttl_s))
    }

    /// Gives a lease its full time again and returns it in seconds; `None` if there is no such lease.
    pub fn lease_keep_alive(&mut self, id: i64) -> Option<u32> {
        self.leases.keep_alive(id, self.now_ms)
    }

    /// Ends a lease and deletes its keys, in one revision.
    ///
    /// # Errors
    /// There is no such lease.
    pub fn lease_revoke(&mut self, id: i64) -> Result<(), CoreError> {
        let keys = self.leases.remove(id).ok_or(CoreError::LeaseNotFound)?;
        self.note(Delta::LeaseGone(id));
        let revision = self.revision + 1;
        let changed = !keys.is_empty();
        for key in keys {
            self.delete_key(key, revision);
        }
        self.finish_revision(revision, changed);
        Ok(())
    }

    /// What is known about a lease.
    pub fn lease(&self, id: i64) -> Option<LeaseInfo> {
        self.leases.info(id, self.now_ms)
    }

    /// All leases.
    pub fn leases(&self) -> Vec<i64> {
        self.leases.ids().collect()
    }

    /// Lets time pass: leases whose time is over end.
    pub fn handle_time(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        while let Some(id) = self.leases.expired(self.now_ms) {
            let revoked = self.lease_revoke(id);
            debug_assert_eq!(revoked, Ok(()));
        }
    }

    /// When [`StateCore::handle_time`] has something to do next. Milliseconds.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.leases.next_deadline_ms()
    }

    /// Whether the state agrees with itself. Looks at each key only in small stores, so that tests stay fast.
    pub fn check_invariants(&self) -> bool {
        let entry_is_sound = |(key, entry): (&Bytes, &Entry)| {
            *key == entry.key
                && 0 < entry.create_revision
                && entry.create_revision <= entry.mod_revision
                && entry.mod_revision <= self.revision
                && entry.version > 0
                && (entry.lease == 0 || self.leases.contains(entry.lease))
        };
        let keys_are_sound = self.keys.len() > 64
            || (self.keys.iter().all(entry_is_sound)
                && self.bytes == self.keys.values().map(Entry::weight).sum::<usize>());
        self.history.first() <= self.revision + 1 && self.leases.check_invariants() && keys_are_sound
    }
}

fn branch(txn: &TxnOp, holds: bool) -> &[Op] {
    if holds { &txn.success } else { &txn.failure }
}

fn compare_entry(compare: &CompareOp, entry: &Entry) -> bool {
    let order = match &compare.target {
        CompareTarget::Version(value) => entry.version.cmp(value),
        CompareTarget::CreateRevision(value) => entry.create_revision.cmp(value),
        CompareTarget::ModRevision(value) => entry.mod_revision.cmp(value),
        CompareTarget::Lease(value) => entry.lease.cmp(value),
        CompareTarget::Value(value) => entry.value.cmp(value),
    };
    match compare.relation {
        Relation::Equal => order.is_eq(),
        Relation::NotEqual => order.is_ne(),
        Relation::Greater => order.is_gt(),
        Relation::Less => order.is_lt(),
    }
}

fn sort(entries: &mut [Entry], by: SortTarget, descending: bool) {
    match by {
        SortTarget::Key => {}
        SortTarget::Version => entries.sort_by_key(|entry| entry.version),
        SortTarget::CreateRevision => entries.sort_by_key(|entry| entry.create_revision),
        SortTarget::ModRevision => entries.sort_by_key(|entry| entry.mod_revision),
        SortTarget::Value => entries.sort_by(|a, b| a.value.cmp(&b.value)),
    }
    if descending {
        entries.reverse();
    }
}
