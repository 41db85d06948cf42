//! The durable side of the embedded store: one redb file with three tables.
//!
//! | table | key | value |
//! |---|---|---|
//! | `keys` | key | create revision, mod revision, version, lease (i64, little-endian each), then the value |
//! | `leases` | id | time to live, seconds |
//! | `meta` | name | `format`, `revision`, `last-lease-id`, `store-id` |
//!
//! One redb transaction holds the changes of all requests that were waiting together; redb makes it durable with one
//! fsync and finds an unfinished one by checksum after a crash.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use prost::bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::core::{Delta, Entry, Image};
use crate::error::{StateError, StateErrorKind};

const KEYS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("keys");
const LEASES: TableDefinition<i64, u32> = TableDefinition::new("leases");
const META: TableDefinition<&str, i64> = TableDefinition::new("meta");

/// Version of the tables above.
const FORMAT: i64 = 1;
/// Name of the file in the store's directory.
pub(super) const FILE: &str = "state.redb";
/// Bytes in front of the value in table `keys`.
const ENTRY_HEADER: usize = 32;
/// Memory redb may use for pages; the state itself is in memory anyway. Bytes.
const CACHE_BYTES: usize = 4 << 20;

/// What a store file holds.
pub(super) struct Loaded {
    pub(super) image: Image,
    /// Random, chosen when the file was made.
    pub(super) store_id: u64,
}

/// An open store file.
pub(super) struct Disk {
    path: PathBuf,
    database: Database,
}

impl Disk {
    /// Opens the file in `dir`, or makes both, and reads everything.
    pub(super) fn open(dir: &Path) -> Result<(Self, Loaded), StateError> {
        let path = dir.join(FILE);
        fs::create_dir_all(dir).map_err(|error| io_error("create the directory of", &path, &error))?;
        if !path.exists() {
            make_database(&path)?;
        }
        // redb checks what it reads, but it is not our code: a panic on a broken file must stay an error.
        let opened = catch_unwind(AssertUnwindSafe(|| open_database(&path)));
        opened.unwrap_or_else(|_| Err(corrupt(&path, "reading it failed unexpectedly")))
    }

    /// Makes changes durable.
    pub(super) fn commit(&self, deltas: &[Delta], revision: i64, last_lease_id: i64) -> Result<(), StateError> {
        self.try_commit(deltas, revision, last_lease_id).map_err(|error| redb_error("commit to", &self.path, &error))
    }

    fn try_commit(&self, deltas: &[Delta], revision: i64, last_lease_id: i64) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut keys = transaction.open_table(KEYS)?;
            let mut leases = transaction.open_table(LEASES)?;
            let mut meta = transaction.open_table(META)?;
            for delta in deltas {
                match delta {
                    Delta::Put(entry) => drop(keys.insert(&entry.key[..], &encode_entry(entry)[..])?),
                    Delta::Delete(key) => drop(keys.remove(&key[..])?),
                    Delta::Lease { id, ttl_s } => drop(leases.insert(id, ttl_s)?),
                    Delta::LeaseGone(id) => drop(leases.remove(id)?),
                }
            }
            meta.insert("revision", revision)?;
            meta.insert("last-lease-id", last_lease_id)?;
        }
        Ok(transaction.commit()?)
    }
}

/// Makes an empty store. It gets its name when it is complete, so that a process that dies on the way leaves nothing that
/// the next one would take for a store.
fn make_database(path: &Path) -> Result<(), StateError> {
    let unfinished = path.with_extension(format!("{:016x}.unfinished", super::random_id()));
    // Secrets will be in here: only the owner may read it.
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&unfinished);
    drop(file.map_err(|error| io_error("create", path, &error))?);
    let made = fill_database(&unfinished).and_then(|()| match fs::hard_link(&unfinished, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(io_error("create", path, &error)),
        _ => sync_directory(path),
    });
    let _ = fs::remove_file(&unfinished);
    made
}

fn fill_database(path: &Path) -> Result<(), StateError> {
    let database =
        Database::builder().create(path).map_err(|error| redb_error("create", path, &redb::Error::from(error)))?;
    create_tables(&database).map_err(|error| redb_error("write", path, &error))
}

fn open_database(path: &Path) -> Result<(Disk, Loaded), StateError> {
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .open(path)
        .map_err(|error| redb_error("open", path, &redb::Error::from(error)))?;
    let loaded = load(&database, path)?;
    remove_unfinished(path);
    Ok((Disk { path: path.to_owned(), database }, loaded))
}

/// Removes what processes left behind that died while they made the store.
fn remove_unfinished(path: &Path) {
    let dir = path.parent().and_then(|dir| fs::read_dir(dir).ok());
    for entry in dir.into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "unfinished") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn create_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        transaction.open_table(KEYS)?;
        transaction.open_table(LEASES)?;
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("revision", 1)?;
        meta.insert("last-lease-id", 0)?;
        meta.insert("store-id", super::random_id().cast_signed())?;
    }
    Ok(transaction.commit()?)
}

/// Makes the file's name durable, too.
fn sync_directory(path: &Path) -> Result<(), StateError> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| io_error("sync the directory of", path, &error))
}

fn load(database: &Database, path: &Path) -> Result<Loaded, StateError> {
    let failed = |error| redb_error("read", path, &error);
    let read = database.begin_read().map_err(|error| failed(error.into()))?;
    let meta = read.open_table(META).map_err(|error| failed(error.into()))?;
    let number = |name: &str| match meta.get(name) {
        Ok(Some(value)) => Ok(value.value()),
        Ok(None) => Err(corrupt(path, format!("it has no `{name}`"))),
        Err(error) => Err(failed(error.into())),
    };
    let format = number("format")?;
    if format != FORMAT {
        return Err(corrupt(path, format!("its format is {format}, and this program knows only {FORMAT}")));
    }
    let mut image =
        Image { revision: number("revision")?, last_lease_id: number("last-lease-id")?, ..Image::default() };
    image.leases = load_leases(&read).map_err(failed)?;
    for row in load_keys(&read).map_err(failed)? {
        image.entries.push(row.ok_or_else(|| corrupt(path, "a key has no header"))?);
    }
    Ok(Loaded { image, store_id: number("store-id")?.cast_unsigned() })
}

fn load_leases(read: &redb::ReadTransaction) -> Result<Vec<(i64, u32)>, redb::Error> {
    let rows = read.open_table(LEASES)?;
    rows.iter()?.map(|row| row.map(|(id, ttl_s)| (id.value(), ttl_s.value())).map_err(redb::Error::from)).collect()
}

fn load_keys(read: &redb::ReadTransaction) -> Result<Vec<Option<Entry>>, redb::Error> {
    let rows = read.open_table(KEYS)?;
    rows.iter()?
        .map(|row| row.map(|(key, value)| decode_entry(key.value(), value.value())).map_err(redb::Error::from))
        .collect()
}

fn encode_entry(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ENTRY_HEADER + entry.value.len());
    for number in [entry.create_revision, entry.mod_revision, entry.version, entry.lease] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&entry.value);
    bytes
}

fn decode_entry(key: &[u8], bytes: &[u8]) -> Option<Entry> {
    let (header, value) = bytes.split_at_checked(ENTRY_HEADER)?;
    let (numbers, _) = header.as_chunks::<8>();
    let number = |index: usize| numbers.get(index).copied().map(i64::from_le_bytes);
    Some(Entry {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        create_revision: number(0)?,
        mod_revision: number(1)?,
        version: number(2)?,
        lease: number(3)?,
    })
}

/// Says that the file's content is wrong.
pub(super) fn corrupt(path: &Path, why: impl std::fmt::Display) -> StateError {
    let path = path.display();
    let context = format!("the state store {path} cannot be used: {why}; restore it from an export or a copy");
    StateError::new(StateErrorKind::Corrupt, context)
}

fn redb_error(what: &str, path: &Path, error: &redb::Error) -> StateError {
    match error {
        redb::Error::Io(io) if io.kind() == ErrorKind::InvalidData => corrupt(path, io),
        redb::Error::Io(io) => io_error(what, path, io),
        redb::Error::DatabaseAlreadyOpen => StateError::new(
            StateErrorKind::InUse,
            format!("the state store {} is in use by another process; stop that one first", path.display()),
        ),
        redb::Error::PreviousIo => StateError::unavailable(format!(
            "cannot {what} the state store {}: an earlier write failed; free space or repair the disk",
            path.display()
        )),
        error => corrupt(path, error),
    }
}

fn io_error(what: &str, path: &Path, error: &std::io::Error) -> StateError {
    let path = path.display();
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => StateError::new(
            StateErrorKind::Full,
            format!("cannot {what} the state store {path}: {error}; free space on that file system"),
        ),
        _ => StateError::unavailable(format!(
            "cannot {what} the state store {path}: {error}; check the directory and its disk"
        )),
    }
}
