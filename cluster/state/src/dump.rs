//! Moves a part of the state between stores as lines of JSON: from the embedded store to etcd, or into a backup.

use serde::{Deserialize, Serialize};

use crate::error::{StateError, StateErrorKind};
use crate::limits::REQUEST_BYTES_MAX;
use crate::store::{Compare, KeyValue, StateStore, Txn};

/// Keys written by one transaction; etcd's default limit is 128 operations.
const TXN_KEYS_MAX: usize = 100;
/// Bytes written by one transaction, well below etcd's limit.
const TXN_BYTES_MAX: usize = REQUEST_BYTES_MAX / 4;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    /// The value as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// The value in hexadecimal, if it is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_hex: Option<String>,
}

/// All permanent keys under `prefix`, one JSON object `{"key":..,"value":..}` per line (`value_hex` if the value is no
/// UTF-8). Keys bound to a lease are left out: whoever holds the lease writes them again.
///
/// # Errors
/// Those of [`StateStore::range`].
pub async fn export(store: &dyn StateStore, prefix: &str) -> Result<String, StateError> {
    let snapshot = store.range(prefix).await?;
    let mut dump = String::new();
    for entry in snapshot.entries.into_iter().filter(|entry| entry.lease == 0) {
        let line = serde_json::to_string(&line_of(entry)).map_err(|error| bad_dump(0, &error))?;
        dump.push_str(&line);
        dump.push('\n');
    }
    Ok(dump)
}

fn line_of(entry: KeyValue) -> Line {
    match String::from_utf8(entry.value) {
        Ok(text) => Line { key: entry.key, value: Some(text), value_hex: None },
        Err(error) => {
            let hex = error.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            Line { key: entry.key, value: None, value_hex: Some(hex) }
        }
    }
}

/// Writes the keys of a dump and returns how many there were. Everything is checked before anything is written; no key
/// that exists is overwritten. Large dumps take several transactions: after an error some keys may have been written,
/// and can be deleted or left out of the next attempt.
///
/// # Errors
/// `Invalid`: a line is not understood, or a key of the dump exists already. Else those of [`StateStore::txn`].
pub async fn import(store: &dyn StateStore, dump: &str) -> Result<usize, StateError> {
    let mut entries = Vec::new();
    for (index, line) in dump.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        entries.push(parse(index + 1, line)?);
    }
    let count = entries.len();
    let (mut txn, mut bytes) = (Txn::new(), 0);
    for (key, value) in entries {
        let size = 2 * key.len() + value.len();
        if txn.then.len() >= TXN_KEYS_MAX || (bytes + size > TXN_BYTES_MAX && !txn.then.is_empty()) {
            write(store, std::mem::take(&mut txn)).await?;
            bytes = 0;
        }
        bytes += size;
        txn = txn.when(Compare::Absent(key.clone())).put(key, value);
    }
    if !txn.then.is_empty() {
        write(store, txn).await?;
    }
    Ok(count)
}

async fn write(store: &dyn StateStore, txn: Txn) -> Result<(), StateError> {
    let mut txn = txn;
    txn.or_read = txn.when.iter().filter_map(absent_key).collect();
    let result = store.txn(txn).await?;
    if result.succeeded {
        return Ok(());
    }
    let existing = result.read.into_iter().flatten().next().map(|entry| entry.key).unwrap_or_default();
    let location = store.location();
    Err(StateError::invalid(format!(
        "cannot import into the state store {location}: `{existing}` exists already; import into an empty store"
    )))
}

fn absent_key(compare: &Compare) -> Option<String> {
    match compare {
        Compare::Absent(key) => Some(key.clone()),
        _ => None,
    }
}

fn parse(number: usize, line: &str) -> Result<(String, Vec<u8>), StateError> {
    let line: Line = serde_json::from_str(line).map_err(|error| bad_dump(number, &error))?;
    match (line.value, line.value_hex) {
        (Some(text), None) => Ok((line.key, text.into_bytes())),
        (None, Some(hex)) => {
            from_hex(&hex).map(|value| (line.key, value)).ok_or_else(|| bad_dump(number, &"bad hexadecimal"))
        }
        _ => Err(bad_dump(number, &"it needs `value` or `value_hex`")),
    }
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |&[high, low]: &[u8; 2]| u8::try_from(digit(high)? << 4 | digit(low)?).ok();
    rest.is_empty().then(|| pairs.iter().map(byte).collect()).flatten()
}

fn bad_dump(line: usize, why: &dyn std::fmt::Display) -> StateError {
    let context = format!("line {line} of the dump of a state store is not understood: {why}; nothing was imported");
    StateError::new(StateErrorKind::Invalid, context)
}
