//! Making an empty store of a file or block device.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blockstore::FormatOptions;
use cluster_proto::{OsdId, Uuid};

use crate::content::find_content;
use crate::{Error, ErrorKind};

/// What to prepare.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// A block device, or a file that exists or is created.
    pub path: PathBuf,
    /// Size of the file: a missing or shorter one is made so long, sparse. `None`: as it is. Not for block devices.
    pub bytes: Option<u64>,
    /// The OSD that will run on it.
    pub id: OsdId,
    /// Its cluster.
    pub cluster: Uuid,
    /// Overwrite whatever is on it.
    pub force: bool,
}

/// What was prepared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// Size of the device. Bytes.
    pub bytes: u64,
    /// The new store.
    pub store: Uuid,
}

/// Makes an empty store. A file that did not exist appears complete or not at all.
///
/// # Errors
/// `Occupied` if there is anything but zeroes on it and `force` is not set, `Locked` if it is in use, `Missing` if
/// there is no such file and no size was given, `TooSmall`, or `System` for whatever the kernel says.
pub fn prepare(options: &PrepareOptions) -> Result<Prepared, Error> {
    match std::fs::metadata(&options.path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => create(options),
        Err(e) => Err(failed(&options.path, "look at", &e)),
        Ok(meta) if meta.is_file() => overwrite(options, false),
        Ok(meta) if meta.file_type().is_block_device() => overwrite(options, true),
        Ok(_) => {
            let text = format!("{} is neither a regular file nor a block device", options.path.display());
            Err(Error::new(ErrorKind::System, text))
        }
    }
}

pub(crate) fn failed(path: &Path, what: &str, error: &io::Error) -> Error {
    Error::new(ErrorKind::System, format!("cannot {what} {}: {error}", path.display()))
}

/// Formats a new file under another name and then gives it its own.
fn create(options: &PrepareOptions) -> Result<Prepared, Error> {
    let path = &options.path;
    let Some(bytes) = options.bytes else {
        let text = format!("{} does not exist: say how large it shall be, to create it", path.display());
        return Err(Error::new(ErrorKind::Missing, text));
    };
    let mut unfinished = path.clone().into_os_string();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let made = create_as(&unfinished, bytes, options).and_then(|prepared| {
        std::fs::rename(&unfinished, path).map_err(|e| failed(path, "create", &e))?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|f| f.sync_all()).map_err(|e| failed(folder, "write to", &e))?;
        Ok(prepared)
    });
    if made.is_err() {
        // Nothing is lost if that fails too: the next attempt truncates it.
        let _ = std::fs::remove_file(&unfinished);
    }
    made
}

fn create_as(path: &Path, bytes: u64, options: &PrepareOptions) -> Result<Prepared, Error> {
    let mut how = OpenOptions::new();
    let file = how.read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = file.map_err(|e| failed(&options.path, "create", &e))?;
    file.set_len(bytes).map_err(|e| failed(&options.path, "extend", &e))?;
    write_format(&file, bytes, options)
}

/// Formats what exists, if nothing is on it or the caller insists.
fn overwrite(options: &PrepareOptions, is_block_device: bool) -> Result<Prepared, Error> {
    let path = &options.path;
    let mut file = open(path, if is_block_device { O_EXCL } else { 0 })?;
    lock(&file, path)?;
    let found = find_content(&mut file).map_err(|e| failed(path, "read", &e))?;
    if let Some(found) = found.filter(|_| !options.force) {
        let text = format!(
            "{} holds {found}, which preparing it would destroy: choose another device, or force it",
            path.display()
        );
        return Err(Error::new(ErrorKind::Occupied, text));
    }
    let mut bytes = file.seek(SeekFrom::End(0)).map_err(|e| failed(path, "find the size of", &e))?;
    if let Some(wanted) = options.bytes.filter(|&wanted| !is_block_device && wanted > bytes) {
        file.set_len(wanted).map_err(|e| failed(path, "extend", &e))?;
        bytes = wanted;
    }
    write_format(&file, bytes, options)
}

/// On a block device, without `O_CREAT`: not while it is mounted.
pub(crate) const O_EXCL: i32 = 0o200;

pub(crate) fn open(path: &Path, flags: i32) -> Result<File, Error> {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).map_err(|e| match e.kind() {
        io::ErrorKind::ResourceBusy => locked(path, "it is mounted or otherwise used by the system"),
        _ => failed(path, "open", &e),
    })
}

pub(crate) fn lock(file: &File, path: &Path) -> Result<(), Error> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(locked(path, "another process has it open; stop that first")),
        Err(TryLockError::Error(e)) => Err(failed(path, "lock", &e)),
    }
}

fn locked(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Locked, format!("cannot use {}: {why}", path.display()))
}

fn write_format(file: &File, bytes: u64, options: &PrepareOptions) -> Result<Prepared, Error> {
    let path = options.path.display();
    let store = Uuid::new_v4();
    let writes = blockstore::format(&FormatOptions {
        device_bytes: bytes,
        cluster: *options.cluster.as_bytes(),
        store: *store.as_bytes(),
        osd: options.id,
        log_bytes: None,
    })
    .map_err(|e| match e {
        blockstore::FormatError::TooSmall { .. } => Error::new(ErrorKind::TooSmall, format!("cannot use {path}: {e}")),
        blockstore::FormatError::NoStoreId => Error::new(ErrorKind::Invalid, format!("cannot prepare {path}: {e}")),
    })?;
    // Backwards: the superblock, which makes it a store, comes last.
    for write in writes.iter().rev() {
        file.write_all_at(&write.data, write.offset).map_err(|e| failed(&options.path, "write to", &e))?;
    }
    file.sync_all().map_err(|e| failed(&options.path, "write to", &e))?;
    Ok(Prepared { bytes, store })
}
