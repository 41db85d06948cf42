//! What is imported: a file or device with its holes, or a stream.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use blockyard_client::BufferMut;
use rustix::fs::SeekFrom as Sparse;
use rustix::io::Errno;

use crate::error::{CliError, io_failed};

/// Unit of zero detection. Bytes.
const SECTOR: usize = cluster_proto::SECTOR;
/// Zero sectors between two written runs that are written with them, rather than making two requests.
const GAP_SECTORS: usize = 8;

/// Bytes to import.
pub enum Source {
    /// A file or device, read where it holds data.
    File {
        /// It.
        file: File,
        /// For messages.
        path: PathBuf,
        /// Length in bytes.
        len: u64,
    },
    /// The standard input, of unknown length.
    Stream(io::Stdin),
}

impl Source {
    /// Opens a path; `-` is the standard input.
    pub fn open(path: &Path) -> Result<Source, CliError> {
        if path == Path::new("-") {
            return Ok(Source::Stream(io::stdin()));
        }
        let mut file = File::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => CliError::not_found(format!("there is no file {}", path.display())),
            _ => io_failed("open", path, &e),
        })?;
        if file.metadata().is_ok_and(|meta| meta.is_dir()) {
            return Err(CliError::usage(format!("cannot import {}: it is a directory", path.display())));
        }
        let len = file.seek(SeekFrom::End(0)).map_err(|e| io_failed("find the size of", path, &e))?;
        Ok(Source::File { file, path: path.to_owned(), len })
    }

    /// Length in bytes, if it is known.
    pub fn len(&self) -> Option<u64> {
        match self {
            Source::File { len, .. } => Some(*len),
            Source::Stream(_) => None,
        }
    }

    /// Reads up to `max` bytes that begin at `offset`. Empty at the end. A stream is read in order: `offset` must be where
    /// the last chunk ended.
    pub fn read_chunk(&mut self, offset: u64, max: usize) -> Result<BufferMut, CliError> {
        match self {
            Source::File { file, path, len } => {
                let n = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX).min(max);
                let mut chunk = BufferMut::for_overwrite(n);
                file.read_exact_at(&mut chunk, offset).map_err(|e| io_failed("read", path, &e))?;
                Ok(chunk)
            }
            Source::Stream(stdin) => {
                let mut bytes = Vec::with_capacity(max);
                let read = stdin.lock().take(max as u64).read_to_end(&mut bytes);
                read.map_err(|e| CliError::failed(format!("cannot read the standard input: {e}")))?;
                Ok(BufferMut::copy_of(&bytes))
            }
        }
    }

    /// Where data begins at or after `offset`; `None` if only a hole follows. Streams and file systems without holes have
    /// data everywhere.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        let Source::File { file, len, .. } = self else { return Some(offset) };
        match rustix::fs::seek(file, Sparse::Data(offset)) {
            Ok(found) => Some(found).filter(|found| found < len),
            Err(Errno::NXIO) => None,
            Err(_) => Some(offset).filter(|offset| offset < len),
        }
    }
}

/// Byte ranges of `chunk` that do not read as zeroes, in whole sectors but for the end.
pub fn data_runs(chunk: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (index, sector) in chunk.chunks(SECTOR).enumerate() {
        if is_zero(sector) {
            continue;
        }
        let at = index * SECTOR..index * SECTOR + sector.len();
        match runs.last_mut() {
            Some(last) if at.start - last.end <= GAP_SECTORS * SECTOR => last.end = at.end,
            _ => runs.push(at),
        }
    }
    runs
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn zero_sectors_are_left_out_and_small_gaps_are_bridged() {
        let mut chunk = vec![0; 100 * SECTOR + 10];
        assert!(data_runs(&chunk).is_empty());
        chunk[0] = 1;
        chunk[5 * SECTOR + 1] = 1;
        chunk[50 * SECTOR] = 1;
        chunk[100 * SECTOR + 9] = 1;
        assert_eq!(data_runs(&chunk), [0..6 * SECTOR, 50 * SECTOR..51 * SECTOR, 100 * SECTOR..100 * SECTOR + 10]);
    }

    #[test]
    fn holes_are_skipped() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(10 << 20).unwrap();
        let at = 5 << 20;
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[7; SECTOR]).unwrap();
        let mut source = Source::open(file.path()).unwrap();
        assert_eq!(source.len(), Some(10 << 20));
        // A file system without holes may find data at once.
        assert!(source.next_data(0).unwrap() <= at);
        let found = source.next_data(at + (1 << 20));
        assert!(found.is_none() || found == Some(at + (1 << 20)));
        assert_eq!(source.read_chunk(at, SECTOR).unwrap()[..], [7; SECTOR]);
        assert_eq!(source.read_chunk((10 << 20) - 5, 100).unwrap().len(), 5);
    }
}
