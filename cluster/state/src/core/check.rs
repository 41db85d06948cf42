//! What can be said about a request without looking at the state: sizes, counts, keys changed twice.

use std::collections::BTreeSet;

use super::key_range::KeyRange;
use super::op::{CoreError, Op, PutOp, TxnOp};
use crate::limits::{KEY_BYTES_MAX, REQUEST_BYTES_MAX, TXN_DEPTH_MAX, TXN_OPS_MAX};

/// Sums up a request while walking through it.
#[derive(Default)]
struct Totals {
    ops: usize,
    bytes: usize,
}

impl Totals {
    fn add(&mut self, ops: usize, bytes: usize) -> Result<(), CoreError> {
        self.ops += ops;
        self.bytes += bytes;
        if self.ops > TXN_OPS_MAX {
            return Err(CoreError::TooManyOps);
        }
        if self.bytes > REQUEST_BYTES_MAX {
            return Err(CoreError::TooLarge);
        }
        Ok(())
    }
}

/// Checks the form of a request.
pub(crate) fn check_form(op: &Op) -> Result<(), CoreError> {
    check_op(op, 0, &mut Totals::default())?;
    match op {
        Op::Txn(txn) => {
            changed_keys(&txn.success)?;
            changed_keys(&txn.failure).map(drop)
        }
        _ => Ok(()),
    }
}

fn check_op(op: &Op, depth: usize, totals: &mut Totals) -> Result<(), CoreError> {
    match op {
        Op::Range(range) => check_keys(&range.keys, totals),
        Op::Delete(delete) => check_keys(&delete.keys, totals),
        Op::Put(put) => check_put(put, totals),
        Op::Txn(txn) => check_txn(txn, depth + 1, totals),
    }
}

fn check_txn(txn: &TxnOp, depth: usize, totals: &mut Totals) -> Result<(), CoreError> {
    if depth > TXN_DEPTH_MAX {
        return Err(CoreError::TooManyOps);
    }
    totals.add(1, 0)?;
    for compare in &txn.compare {
        check_keys(&compare.keys, totals)?;
    }
    txn.success.iter().chain(&txn.failure).try_for_each(|op| check_op(op, depth, totals))
}

fn check_keys(keys: &KeyRange, totals: &mut Totals) -> Result<(), CoreError> {
    let (start, end) = keys.to_wire();
    if start.is_empty() {
        return Err(CoreError::EmptyKey);
    }
    if start.len() > KEY_BYTES_MAX || end.len() > KEY_BYTES_MAX {
        return Err(CoreError::TooLarge);
    }
    totals.add(1, start.len() + end.len())
}

fn check_put(put: &PutOp, totals: &mut Totals) -> Result<(), CoreError> {
    check_keys(&KeyRange::Key(put.key.clone()), totals)?;
    totals.add(0, put.value.len())?;
    match put {
        PutOp { ignore_value: true, value, .. } if !value.is_empty() => Err(CoreError::ValueProvided),
        PutOp { ignore_lease: true, lease, .. } if *lease != 0 => Err(CoreError::LeaseProvided),
        _ => Ok(()),
    }
}

/// The keys that a branch may put and the ranges that it may delete, both with all nested branches.
#[derive(Default)]
struct Changed<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Vec<&'a KeyRange>,
}

impl<'a> Changed<'a> {
    fn put(&mut self, key: &'a [u8]) -> Result<(), CoreError> {
        let duplicate = self.puts.contains(key) || self.deletes.iter().any(|keys| keys.contains(key));
        if duplicate {
            return Err(CoreError::DuplicateKey);
        }
        self.puts.insert(key);
        Ok(())
    }
}

/// Refuses a branch that could change a key twice. The two branches of a nested transaction exclude each other.
fn changed_keys(ops: &[Op]) -> Result<Changed<'_>, CoreError> {
    let mut changed = Changed::default();
    changed.deletes.extend(ops.iter().filter_map(|op| match op {
        Op::Delete(delete) => Some(&delete.keys),
        _ => None,
    }));
    for op in ops {
        let Op::Txn(txn) = op else { continue };
        let success = changed_keys(&txn.success)?;
        let failure = changed_keys(&txn.failure)?;
        let only_failure: Vec<_> = failure.puts.difference(&success.puts).copied().collect();
        success.puts.into_iter().chain(only_failure).try_for_each(|key| changed.put(key))?;
        changed.deletes.extend(success.deletes.into_iter().chain(failure.deletes));
    }
    for op in ops {
        if let Op::Put(put) = op {
            changed.put(&put.key)?;
        }
    }
    Ok(changed)
}
