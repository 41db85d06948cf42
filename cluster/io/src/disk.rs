//! Disks: block devices and regular files, opened once, exclusively if asked, and probed for what a store must know.
#![allow(unsafe_code)]

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::block_device::BlockDevice;
use crate::takeover::patiently;
use crate::{Error, ErrorKind};

/// How to open a disk. The default opens an existing one, buffered and shared.
#[derive(Clone, Copy, Default, Debug)]
pub struct DiskOptions {
    /// For files: create it if it is missing, and extend it to this many bytes (sparse) if it is shorter. Never
    /// shrinks; ignored for block devices.
    pub create_bytes: Option<u64>,
    /// Bypass the page cache (`O_DIRECT`) if the file system can; [`DiskInfo::direct`] tells.
    pub direct: bool,
    /// Refuse if another process (or this one) has it open with this option, or if a block device is mounted.
    pub exclusive: bool,
}

/// What an open disk is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskInfo {
    /// Size in bytes at opening.
    pub bytes: u64,
    /// A block device, not a regular file.
    pub is_block_device: bool,
    /// Unit of transfers in bytes: offsets, lengths and (with `direct`) memory must be multiples of it. For files 4096
    /// with `direct`, else 1.
    pub logical_block: u32,
    /// Completed writes can be lost in a power failure until they are flushed: a device with a volatile cache, or a
    /// file, except one in memory (tmpfs).
    pub flush_needed: bool,
    /// The page cache is bypassed.
    pub direct: bool,
    /// Discarding frees something. For files it is tried, and does nothing where the file system cannot.
    pub discard: bool,
}

/// An open disk.
pub(crate) struct Disk {
    file: File,
    pub(crate) is_block_device: bool,
    /// Operations with the kernel: while there are some, the slot and its descriptor stay.
    pub(crate) in_flight: usize,
    pub(crate) closed: bool,
    /// A file of a file system in memory: it never makes anybody wait, while the ring would hand each write to one of its threads.
    pub(crate) in_memory: bool,
    /// The device has no discard command (before Linux 6.12): punch instead.
    pub(crate) punch_only: bool,
}

impl Disk {
    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Opens, locks, sizes and probes.
pub(crate) fn open(path: &Path, options: &DiskOptions) -> Result<(Disk, DiskInfo), Error> {
    let failed = |what: &str, e: io::Error| Error::os(format!("cannot {what} {}", path.display()), e);
    refuse_unsuitable(path)?;
    let (file, direct) = patiently(|e: &Error| e.kind() == ErrorKind::Locked, || claim(path, options))?;
    let meta = file.metadata().map_err(|e| failed("look at", e))?;
    let is_block_device = meta.file_type().is_block_device();
    if let Some(bytes) = options.create_bytes.filter(|bytes| !is_block_device && *bytes > meta.len()) {
        file.set_len(bytes).map_err(|e| failed("extend", e))?;
    }
    let bytes = (&file).seek(SeekFrom::End(0)).map_err(|e| failed("find the size of", e))?;
    let looked = |e| failed("look at the file system of", e);
    let in_memory = !is_block_device && is_in_memory(&file).map_err(looked)?;
    let info = match is_block_device {
        true => device_info(&meta, bytes, direct),
        false => file_info(bytes, direct, in_memory),
    };
    Ok((Disk { file, is_block_device, in_flight: 0, closed: false, in_memory, punch_only: !is_block_device }, info))
}

fn refuse_unsuitable(path: &Path) -> Result<(), Error> {
    let Ok(meta) = std::fs::metadata(path) else { return Ok(()) };
    if meta.is_file() || meta.file_type().is_block_device() {
        return Ok(());
    }
    let text = format!("{} is neither a regular file nor a block device", path.display());
    Err(Error::new(ErrorKind::Unsuitable, text, None))
}

/// Opens and locks; whether with `O_DIRECT`.
fn claim(path: &Path, options: &DiskOptions) -> Result<(File, bool), Error> {
    let (file, direct) = open_file(path, options).map_err(|e| open_failed(path, e))?;
    if options.exclusive {
        lock(&file, path)?;
    }
    Ok((file, direct))
}

/// Opens with `O_DIRECT` if wanted and possible; whether it was.
fn open_file(path: &Path, options: &DiskOptions) -> io::Result<(File, bool)> {
    let is_device = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
    // On a block device (and only there) O_EXCL without O_CREAT means: not while it is mounted.
    let exclusive = if is_device && options.exclusive { libc::O_EXCL } else { 0 };
    let open = |direct: i32| {
        let mut how = OpenOptions::new();
        how.read(true).write(true).create(options.create_bytes.is_some() && !is_device).mode(0o600);
        how.custom_flags(direct | exclusive).open(path)
    };
    if options.direct {
        match open(libc::O_DIRECT) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            other => return Ok((other?, true)),
        }
    }
    Ok((open(0)?, false))
}

fn open_failed(path: &Path, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::EBUSY) => locked(path, "it is mounted or otherwise used by the system"),
        _ => Error::os(format!("cannot open {}", path.display()), source),
    }
}

fn lock(file: &File, path: &Path) -> Result<(), Error> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(locked(path, "another process has it open; stop that first")),
        Err(TryLockError::Error(e)) => Err(Error::os(format!("cannot lock {}", path.display()), e)),
    }
}

fn locked(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Locked, format!("cannot use {}: {why}", path.display()), None)
}

fn file_info(bytes: u64, direct: bool, in_memory: bool) -> DiskInfo {
    let logical_block = if direct { 4096 } else { 1 };
    DiskInfo { bytes, is_block_device: false, logical_block, flush_needed: !in_memory, direct, discard: true }
}

fn is_in_memory(file: &File) -> io::Result<bool> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is open and `stat` is writable memory of the right type.
    if unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstatfs filled it (and all-zero is a valid value).
    let kind = unsafe { stat.assume_init() }.f_type;
    Ok(matches!(kind, TMPFS | RAMFS))
}

fn device_info(meta: &Metadata, bytes: u64, direct: bool) -> DiskInfo {
    let device = BlockDevice::new(meta.rdev());
    DiskInfo {
        bytes,
        is_block_device: true,
        logical_block: device.logical_block(),
        // Unknown means: flush. Losing data costs more than time.
        flush_needed: device.queue("write_cache") != "write through",
        direct,
        discard: device.queue("discard_max_bytes").parse::<u64>().is_ok_and(|max| max > 0),
    }
}
