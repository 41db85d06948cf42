//! What the system tells of block devices, and making it see new partitions.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Unit of sizes in `/sys`, whatever the device's blocks are. Bytes.
const SYSFS_SECTOR: u64 = 512;

/// A block device, by its number.
#[derive(Clone, Debug)]
pub struct BlockDevice {
    /// Its folder in `/sys`.
    folder: PathBuf,
}

/// A partition of a block device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Partition {
    /// Its place below `/dev`.
    pub path: PathBuf,
    /// Its size. Bytes.
    pub bytes: u64,
    number: u32,
    device: String,
}

impl BlockDevice {
    /// The device with this number (`st_rdev`).
    pub fn new(number: u64) -> Self {
        let folder = PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number)));
        // An entry is a link into the folder of the device, which lies in that of the whole disk if it is a partition.
        Self { folder: fs::canonicalize(&folder).unwrap_or(folder) }
    }

    /// Whether it is a part of another one.
    pub fn is_partition(&self) -> bool {
        self.folder.join("partition").exists()
    }

    /// Unit of transfers, in bytes. 4096 if the system does not tell.
    pub fn logical_block(&self) -> u32 {
        self.queue("logical_block_size").parse().unwrap_or(4096)
    }

    /// An attribute of its queue; a partition has those of the whole disk.
    pub(crate) fn queue(&self, name: &str) -> String {
        let own = self.folder.join("queue");
        let queue = if own.is_dir() { own } else { self.folder.join("../queue") };
        attribute(&queue.join(name)).unwrap_or_default()
    }

    /// Its partitions, by number.
    ///
    /// # Errors
    /// `/sys` cannot be read.
    pub fn partitions(&self) -> io::Result<Vec<Partition>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            // What vanishes meanwhile is none.
            found.extend(partition(&entry?.path()));
        }
        found.sort_unstable_by_key(|partition| partition.number);
        Ok(found)
    }
}

fn attribute(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn partition(folder: &Path) -> Option<Partition> {
    let number = attribute(&folder.join("partition"))?.parse().ok()?;
    let bytes = attribute(&folder.join("size"))?.parse::<u64>().ok()?.checked_mul(SYSFS_SECTOR)?;
    let device = attribute(&folder.join("dev"))?;
    let event = attribute(&folder.join("uevent"))?;
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(Partition { path: Path::new("/dev").join(name), bytes, number, device })
}

impl Partition {
    /// Whether it can be opened by its path.
    pub fn is_ready(&self) -> bool {
        let is_it = |number| format!("{}:{}", libc::major(number), libc::minor(number)) == self.device;
        fs::metadata(&self.path).is_ok_and(|meta| meta.file_type().is_block_device() && is_it(meta.rdev()))
    }
}

/// Makes the kernel read a device's partition table again.
///
/// # Errors
/// What the kernel says: a partition is in use, or the device cannot have any.
pub fn reread_partitions(device: &File) -> io::Result<()> {
    /// `BLKRRPART` of linux/fs.h.
    const REREAD: libc::Ioctl = 0x125f;
    // SAFETY: the descriptor is open, and this request has no argument.
    match unsafe { libc::ioctl(device.as_raw_fd(), REREAD) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
