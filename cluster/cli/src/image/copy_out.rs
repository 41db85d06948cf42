//! `blockyard image export`: an image into a raw file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use blockyard_client::{Buffer, Image};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;

use super::overwrites;
use crate::args::ExportOptions;
use crate::error::{CliError, io_failed};
use crate::output::{Output, progress_bytes};
use crate::session::Session;
use crate::size::Size;

/// Bytes read from the image at once.
const CHUNK: u64 = 4 << 20;
/// Reads under way at once.
const READS_MAX: usize = 8;
/// How much of the image is asked at once where its data is. Bytes.
const STEP: u64 = 1 << 30;

/// What was exported.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Exported {
    image: String,
    size: u64,
    /// Bytes that hold data; the rest are holes.
    data: u64,
}

/// Where the bytes go, in ascending order.
enum Sink {
    /// A new file, under another name until it is complete. What is not written stays a hole.
    New { file: File, unfinished: PathBuf, path: PathBuf },
    /// Something that exists and is no regular file: zeroes must be written.
    Device { file: File, path: PathBuf },
    /// The standard output.
    Stream,
}

impl Sink {
    fn open(path: &Path, yes: bool) -> Result<Sink, CliError> {
        if path == Path::new("-") {
            return Ok(Sink::Stream);
        }
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {
                Err(CliError::usage(format!("cannot export to {}: it is a directory", path.display())))
            }
            Ok(_) if !yes => Err(overwrites(path.display().to_string())),
            Ok(meta) if !meta.is_file() => {
                let file = OpenOptions::new().write(true).open(path).map_err(|e| io_failed("open", path, &e))?;
                Ok(Sink::Device { file, path: path.to_owned() })
            }
            _ => {
                let mut unfinished = path.as_os_str().to_owned();
                unfinished.push(".unfinished");
                let unfinished = PathBuf::from(unfinished);
                let file = File::create(&unfinished).map_err(|e| io_failed("create", &unfinished, &e))?;
                Ok(Sink::New { file, unfinished, path: path.to_owned() })
            }
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), CliError> {
        match self {
            Sink::New { file, unfinished, .. } => {
                file.write_all_at(bytes, offset).map_err(|e| io_failed("write to", unfinished, &e))
            }
            Sink::Device { file, path } => {
                file.write_all_at(bytes, offset).map_err(|e| io_failed("write to", path, &e))
            }
            Sink::Stream => stream_write(bytes),
        }
    }

    fn hole(&mut self, offset: u64, len: u64) -> Result<(), CliError> {
        if matches!(self, Sink::New { .. }) {
            return Ok(());
        }
        let zeroes = vec![0; CHUNK.min(len) as usize];
        let mut done = 0;
        while done < len {
            let n = CHUNK.min(len - done);
            self.write(offset + done, &zeroes[..n as usize])?;
            done += n;
        }
        Ok(())
    }

    fn finish(&mut self, size: u64) -> Result<(), CliError> {
        match self {
            Sink::New { file, unfinished, path } => {
                file.set_len(size).and_then(|()| file.sync_all()).map_err(|e| io_failed("write to", unfinished, &e))?;
                std::fs::rename(&*unfinished, &*path).map_err(|e| io_failed("create", path, &e))
            }
            Sink::Device { file, path } => file.sync_all().map_err(|e| io_failed("write to", path, &e)),
            Sink::Stream => io::stdout().flush().map_err(|e| stream_failed(&e)),
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Sink::New { unfinished, .. } = self {
            // After `finish` there is nothing of this name any more.
            let _ = std::fs::remove_file(unfinished);
        }
    }
}

fn stream_write(bytes: &[u8]) -> Result<(), CliError> {
    io::stdout().write_all(bytes).map_err(|e| stream_failed(&e))
}

fn stream_failed(error: &io::Error) -> CliError {
    CliError::failed(format!("cannot write to the standard output: {error}"))
}

/// Exports.
pub async fn export(session: &Session, options: &ExportOptions, out: Output) -> Result<(), CliError> {
    let client = session.client().await?;
    let image = client.open(&options.image.pool, &options.image.name).await?;
    let mut sink = Sink::open(&options.file, options.yes)?;
    let size = image.size();
    let bar = progress_bytes("exporting", size);
    let mut data = 0;
    for start in (0..size).step_by(STEP as usize) {
        let extents = image.allocation(start, STEP.min(size - start)).await?;
        let mut at = start;
        for extent in extents {
            if extent.data {
                copy(&image, at, extent.len, &mut sink).await?;
                data += extent.len;
            } else {
                sink.hole(at, extent.len)?;
            }
            at += extent.len;
            bar.set_position(at);
        }
    }
    sink.finish(size)?;
    bar.finish_and_clear();
    if matches!(sink, Sink::Stream) {
        return Ok(());
    }
    let exported = Exported { image: options.image.to_string(), size, data };
    out.show(&exported, |done| {
        let file = options.file.display();
        format!("exported image {} to {file}: {}, {} of it data", done.image, Size(done.size), Size(done.data))
    })
}

/// Copies a range that holds data, reading ahead.
async fn copy(image: &Image, offset: u64, len: u64, sink: &mut Sink) -> Result<(), CliError> {
    let chunks = (offset..offset + len).step_by(CHUNK as usize);
    let read = async |at: u64| -> Result<(u64, Buffer), CliError> {
        let n = CHUNK.min(offset + len - at);
        Ok((at, image.read_at(at, n as usize).await?))
    };
    let mut reads = stream::iter(chunks.map(read)).buffered(READS_MAX);
    while let Some((at, bytes)) = reads.try_next().await? {
        sink.write(at, &bytes)?;
    }
    Ok(())
}
