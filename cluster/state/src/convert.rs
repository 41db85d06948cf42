//! Between the trait's vocabulary (text keys, owned values) and the state machine's.

use prost::bytes::Bytes;

use crate::core::{
    CompareOp, CompareTarget, CoreError, DeleteOp, Entry, Event, KeyRange, Op, OpResult, PutOp, RangeOp, Relation,
    TxnOp,
};
use crate::error::{StateError, StateErrorKind};
use crate::limits::{LEASE_TTL_S_MAX, LEASE_TTL_S_MIN};
use crate::store::{Change, Compare, KeyValue, Txn, TxnResult, WatchEvent};

/// `None` for a key that is no UTF-8: none of ours.
fn key_text(key: &Bytes) -> Option<String> {
    let text = std::str::from_utf8(key).ok().map(str::to_owned);
    if text.is_none() {
        tracing::warn!("ignored a key in the state store that is no UTF-8: {key:?}");
    }
    text
}

pub(crate) fn key_value(entry: &Entry) -> Option<KeyValue> {
    Some(KeyValue {
        key: key_text(&entry.key)?,
        value: entry.value.to_vec(),
        create_revision: entry.create_revision,
        mod_revision: entry.mod_revision,
        version: entry.version,
        lease: entry.lease,
    })
}

pub(crate) fn watch_event(event: &Event) -> Option<WatchEvent> {
    if event.deleted {
        return Some(WatchEvent::Delete { key: key_text(&event.entry.key)?, revision: event.entry.mod_revision });
    }
    key_value(&event.entry).map(WatchEvent::Put)
}

fn single(key: String) -> KeyRange {
    KeyRange::Key(key.into())
}

fn compare_op(compare: Compare) -> CompareOp {
    let (key, target, relation) = match compare {
        Compare::Absent(key) => (key, CompareTarget::Version(0), Relation::Equal),
        Compare::Exists(key) => (key, CompareTarget::Version(0), Relation::Greater),
        Compare::ModRevision { key, revision } => (key, CompareTarget::ModRevision(revision), Relation::Equal),
        Compare::CreateRevision { key, revision } => (key, CompareTarget::CreateRevision(revision), Relation::Equal),
        Compare::Value { key, value } => (key, CompareTarget::Value(value.into()), Relation::Equal),
    };
    CompareOp { keys: single(key), target, relation }
}

fn change_op(change: Change) -> Op {
    match change {
        Change::Put { key, value, lease } => Op::Put(PutOp {
            key: key.into(),
            value: value.into(),
            lease: lease.map_or(0, |lease| lease.0),
            ..PutOp::default()
        }),
        Change::Delete { key } => Op::Delete(DeleteOp { keys: single(key), prev_kv: false }),
        Change::DeletePrefix { prefix } => {
            Op::Delete(DeleteOp { keys: KeyRange::prefix(prefix.as_bytes()), prev_kv: false })
        }
    }
}

pub(crate) fn txn_op(txn: Txn) -> TxnOp {
    TxnOp {
        compare: txn.when.into_iter().map(compare_op).collect(),
        success: txn.then.into_iter().map(change_op).collect(),
        failure: txn.or_read.into_iter().map(|key| Op::Range(RangeOp::new(single(key)))).collect(),
    }
}

pub(crate) fn txn_result(result: OpResult, revision: i64) -> TxnResult {
    let OpResult::Txn { succeeded, results } = result else {
        return TxnResult { succeeded: true, revision, read: Vec::new() };
    };
    let read = if succeeded { Vec::new() } else { results.iter().map(first_entry).collect() };
    TxnResult { succeeded, revision, read }
}

fn first_entry(result: &OpResult) -> Option<KeyValue> {
    match result {
        OpResult::Range { entries, .. } => entries.first().and_then(key_value),
        _ => None,
    }
}

/// Names a transaction in messages by the keys that it changes.
pub(crate) fn txn_name(txn: &Txn) -> String {
    let name = |change: &Change| match change {
        Change::Put { key, .. } => format!("write `{key}`"),
        Change::Delete { key } => format!("delete `{key}`"),
        Change::DeletePrefix { prefix } => format!("delete `{prefix}*`"),
    };
    match txn.then.as_slice() {
        [] => "check conditions".into(),
        [only] => name(only),
        [first, rest @ ..] => format!("{} and make {} more changes", name(first), rest.len()),
    }
}

pub(crate) fn check_ttl(ttl_s: u32) -> Result<(), StateError> {
    if (LEASE_TTL_S_MIN..=LEASE_TTL_S_MAX).contains(&ttl_s) {
        return Ok(());
    }
    let range = format!("{LEASE_TTL_S_MIN} to {LEASE_TTL_S_MAX}");
    Err(StateError::invalid(format!("cannot grant a lease of {ttl_s} s: a lease lasts {range} s")))
}

/// The kind of a refusal.
pub(crate) fn kind_of(error: CoreError) -> StateErrorKind {
    match error {
        CoreError::TooLarge | CoreError::TooManyOps => StateErrorKind::TooLarge,
        CoreError::NoSpace | CoreError::TooManyLeases => StateErrorKind::Full,
        CoreError::LeaseNotFound => StateErrorKind::LeaseNotFound,
        CoreError::Compacted(_) => StateErrorKind::Compacted,
        CoreError::EmptyKey
        | CoreError::DuplicateKey
        | CoreError::KeyNotFound
        | CoreError::ValueProvided
        | CoreError::LeaseProvided
        | CoreError::LeaseExists
        | CoreError::LeaseTtl
        | CoreError::FutureRevision => StateErrorKind::Invalid,
    }
}

/// What to do about an error of this kind.
pub(crate) fn advice(kind: StateErrorKind) -> &'static str {
    match kind {
        StateErrorKind::Unavailable => "check that the state store runs and can be reached",
        StateErrorKind::Unknown => "it may have been done: read before trying again",
        StateErrorKind::Invalid => "the request itself is wrong",
        StateErrorKind::TooLarge => "split it into smaller requests",
        StateErrorKind::Full => "delete what is not needed, or free space",
        StateErrorKind::LeaseNotFound => "the lease has ended; get a new one",
        StateErrorKind::Compacted => "read the range again",
        StateErrorKind::Denied => "check user, password and certificates",
        StateErrorKind::InUse => "stop the other process first",
        StateErrorKind::Corrupt => "restore it from an export or a copy",
    }
}

pub(crate) fn core_error(what: &str, location: &str, error: CoreError) -> StateError {
    let kind = kind_of(error);
    let text = error.to_string();
    let reason = text.strip_prefix("etcdserver: ").unwrap_or(&text);
    StateError::new(kind, format!("cannot {what} in the state store {location}: {reason}; {}", advice(kind)))
}
