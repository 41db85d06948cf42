//! Dividing a drive that one OSD does not use up: a GPT partition for each of several OSDs.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blockstore::Geometry;
use cluster_io::BlockDevice;
use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{OperatingSystem, Type};
use uuid::Uuid;

use crate::content::find_content;
use crate::prepare::{O_EXCL, failed, lock, open};
use crate::{Error, ErrorKind};

/// What marks a partition as an OSD's, so that nothing else takes it for its own.
const PARTITION_TYPE: Uuid = Uuid::from_u128(0x4d1d_9ed4_6a67_4b0e_9c3b_2f5a_b10c_0a5d);
/// Partitions begin and end at multiples of this. Bytes.
const ALIGNMENT: u64 = 1 << 20;
/// How long the system may take to show new partitions.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// A device that was divided.
#[derive(Debug)]
pub struct Divided {
    /// The partitions, in order.
    pub partitions: Vec<PathBuf>,
    /// Keeps udev from looking at the device, and so from making its partitions anew, until they are prepared.
    _lock: File,
}

/// Divides a block device into `count` partitions of equal size. Returns when they can be used. Its former content is lost.
///
/// # Errors
/// `Occupied` if there is anything but zeroes at its beginning or where a partition would begin and `force` is not set, `Locked` if it is
/// in use, `TooSmall`, `Invalid` for what cannot be divided, or `System` for whatever the kernel says.
pub fn divide(path: &Path, count: u32, force: bool) -> Result<Divided, Error> {
    let meta = fs::metadata(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::new(ErrorKind::Missing, format!("{} does not exist", path.display())),
        _ => failed(path, "look at", &e),
    })?;
    if !meta.file_type().is_block_device() {
        let text = format!("{} is no block device: only those are divided; make several files instead", path.display());
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let device = BlockDevice::new(meta.rdev());
    if device.is_partition() {
        let text = format!("{} is a partition: divide the whole device, or prepare it for one OSD", path.display());
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let held = open(path, 0)?;
    lock(&held, path)?;
    let mut file = open(path, O_EXCL)?;
    let bytes = file.seek(SeekFrom::End(0)).map_err(|e| failed(path, "find the size of", &e))?;
    let pieces = pieces(bytes, count).ok_or_else(|| {
        let text = format!("{} is too small for {count} OSDs: it has {} MiB", path.display(), bytes >> 20);
        Error::new(ErrorKind::TooSmall, text)
    })?;
    if !force {
        for start in std::iter::once(0).chain(pieces.iter().map(|piece| piece.start)) {
            check_empty(path, &mut file, start)?;
        }
    }
    // Before anything is written: what cannot have partitions, or has some in use, says so.
    let reread = |file: &File| cluster_io::reread_partitions(file).map_err(|e| failed(path, "have partitions on", &e));
    reread(&file)?;
    write_table(&mut file, bytes, device.logical_block(), &pieces).map_err(|e| failed(path, "divide", &e))?;
    reread(&file)?;
    // Who has the whole device for himself keeps others from its partitions.
    drop(file);
    Ok(Divided { partitions: await_partitions(path, &device, &pieces)?, _lock: held })
}

/// Where the partitions lie, in bytes: behind the table and before its copy. `None` if one would be too small for an OSD.
fn pieces(bytes: u64, count: u32) -> Option<Vec<Range<u64>>> {
    let room = (bytes / ALIGNMENT).checked_sub(2)?;
    let len = room / u64::from(count) * ALIGNMENT;
    Geometry::plan(len, None)?;
    Some((0..u64::from(count)).map(|n| ALIGNMENT + n * len..ALIGNMENT + (n + 1) * len).collect())
}

fn check_empty(path: &Path, file: &mut File, start: u64) -> Result<(), Error> {
    file.seek(SeekFrom::Start(start)).map_err(|e| failed(path, "read", &e))?;
    match find_content(file).map_err(|e| failed(path, "read", &e))? {
        None => Ok(()),
        Some(found) => {
            let text = format!(
                "{} holds {found} at {} MiB, which dividing it would destroy: choose another device, or force it",
                path.display(),
                start >> 20
            );
            Err(Error::new(ErrorKind::Occupied, text))
        }
    }
}

fn write_table(file: &mut File, bytes: u64, block: u32, pieces: &[Range<u64>]) -> io::Result<()> {
    let size = if block == 4096 { LogicalBlockSize::Lb4096 } else { LogicalBlockSize::Lb512 };
    let block = u64::from(block);
    let rest = u32::try_from(bytes / block - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(rest).overwrite_lba0(file).map_err(io::Error::other)?;
    let config = GptConfig::new().writable(true).logical_block_size(size);
    let mut table = config.create_from_device(file, None).map_err(io::Error::other)?;
    for (number, piece) in (1..).zip(pieces) {
        let kind = Type { guid: PARTITION_TYPE, os: OperatingSystem::None };
        let (first, count) = (piece.start / block, (piece.end - piece.start) / block);
        table.add_partition_at("blockyard-osd", number, first, count, kind, 0).map_err(io::Error::other)?;
    }
    table.write().map_err(io::Error::other)?.sync_all()
}

/// Waits until the partitions are there to be opened.
fn await_partitions(path: &Path, device: &BlockDevice, pieces: &[Range<u64>]) -> Result<Vec<PathBuf>, Error> {
    let deadline = Instant::now() + PATIENCE;
    let sizes: Vec<u64> = pieces.iter().map(|piece| piece.end - piece.start).collect();
    loop {
        let found = device.partitions().map_err(|e| failed(path, "find the partitions of", &e))?;
        if found.iter().map(|partition| partition.bytes).eq(sizes.iter().copied()) && found.iter().all(|p| p.is_ready())
        {
            return Ok(found.into_iter().map(|partition| partition.path).collect());
        }
        if Instant::now() >= deadline {
            let text = format!(
                "{} is divided, but after {} s the system does not show its partitions below /dev: once it does, prepare \
                 each of them as an OSD",
                path.display(),
                PATIENCE.as_secs()
            );
            return Err(Error::new(ErrorKind::System, text));
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_equal_aligned_and_between_the_two_tables() {
        for (bytes, block) in [(64 << 20, 512), ((64 << 20) + 512, 512), (100_000_000 / 4096 * 4096, 4096)] {
            let pieces = pieces(bytes, 3).expect("large enough");
            let mut file = tempfile::tempfile().expect("a file");
            file.set_len(bytes).expect("made longer");
            write_table(&mut file, bytes, block, &pieces).expect("a table");
            let size = if block == 4096 { LogicalBlockSize::Lb4096 } else { LogicalBlockSize::Lb512 };
            let table = GptConfig::new().logical_block_size(size).open_from_device(file).expect("both tables");
            table.backup_header().expect("the copy at the end");
            let block = u64::from(block);
            let found: Vec<_> =
                table.partitions().values().map(|p| p.first_lba * block..(p.last_lba + 1) * block).collect();
            assert_eq!(found, pieces);
            assert!(table.partitions().values().all(|p| p.part_type_guid.guid == PARTITION_TYPE));
            assert!(
                pieces.iter().all(|p| p.start % ALIGNMENT == 0 && p.end - p.start == pieces[0].end - pieces[0].start)
            );
            assert!(pieces[2].end <= bytes - ALIGNMENT && bytes - pieces[2].end < 5 * ALIGNMENT);
        }
        assert_eq!(pieces(10 << 20, 8), None);
        assert_eq!(pieces(1 << 20, 2), None);
    }

    #[test]
    fn files_are_not_divided() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let kind = |path: &Path| divide(path, 2, true).expect_err("refused").kind();
        assert_eq!(kind(file.path()), ErrorKind::Invalid);
        assert_eq!(kind(Path::new("/dev/nowhere")), ErrorKind::Missing);
    }
}
