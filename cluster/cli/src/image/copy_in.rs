//! `blockyard image import`: a raw file into an image.

use blockyard_client::{Buffer, ErrorKind, Image, metadata};
use cluster_proto::SECTOR;
use futures::stream::{FuturesUnordered, StreamExt};
use indicatif::ProgressBar;
use serde::Serialize;

use super::overwrites;
use super::source::{Source, data_runs};
use crate::args::ImportOptions;
use crate::error::CliError;
use crate::output::{Output, progress_bytes};
use crate::session::Session;
use crate::size::Size;

/// Bytes read from the source at once: a whole number of objects of any size.
const CHUNK: usize = 4 << 20;
/// Writes under way at once.
const WRITES_MAX: usize = 32;

/// What was imported.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Imported {
    image: String,
    size: u64,
    /// Length of the file.
    bytes: u64,
    /// Bytes of it that were written, not being zeroes.
    written: u64,
    /// Whether both were read again and found equal.
    verified: bool,
}

/// Imports.
pub async fn import(session: &Session, options: &ImportOptions, out: Output) -> Result<(), CliError> {
    let mut source = Source::open(&options.file)?;
    if options.verify && source.len().is_none() {
        return Err(CliError::usage("cannot verify an import of the standard input: it can be read only once"));
    }
    let client = session.client().await?;
    let created = prepare(session, options, &source).await?;
    let image = client.open(&options.image.pool, &options.image.name).await?;
    let bar = progress_bytes("importing", source.len().unwrap_or(image.size()));
    let copied = Import { image: &image, source: &mut source, fresh: created, bar: &bar }.run().await;
    bar.finish_and_clear();
    let mut imported = copied?;
    if options.verify {
        verify(&image, &mut source).await?;
        imported.verified = true;
    }
    imported.image = options.image.to_string();
    out.show(&imported, |done| {
        let checked = if done.verified { ", compared: equal" } else { "" };
        format!("imported {} into image {}, {} of it data{checked}", Size(done.bytes), done.image, Size(done.written))
    })
}

/// Finds or creates the image. True if it is new.
async fn prepare(session: &Session, options: &ImportOptions, source: &Source) -> Result<bool, CliError> {
    let spec = &options.image;
    match metadata::image(&*session.store, &spec.pool, &spec.name).await {
        Ok(info) => {
            if options.size.is_some_and(|size| size.0 != info.meta.size) {
                return Err(CliError::usage(format!(
                    "image {spec} exists with {} bytes: leave --size out, or resize it first",
                    info.meta.size
                )));
            }
            check_fits(source, info.meta.size, &spec.to_string())?;
            if !options.yes {
                return Err(overwrites(format!("image {spec}")));
            }
            Ok(false)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let size = match (options.size, source.len()) {
                (Some(size), _) => size.0,
                (None, Some(len)) => len.max(1).next_multiple_of(SECTOR as u64),
                (None, None) => {
                    return Err(CliError::usage(format!(
                        "cannot create image {spec}: the standard input does not tell its length, give --size"
                    )));
                }
            };
            check_fits(source, size, &spec.to_string())?;
            metadata::create_image(&*session.store, &spec.pool, &spec.name, size).await?;
            Ok(true)
        }
        Err(error) => Err(error.into()),
    }
}

fn check_fits(source: &Source, size: u64, image: &str) -> Result<(), CliError> {
    match source.len() {
        Some(len) if len > size => Err(too_long(image, len, size)),
        _ => Ok(()),
    }
}

fn too_long(image: &str, len: u64, size: u64) -> CliError {
    CliError::usage(format!("{len} bytes do not fit into image {image} of {size} bytes: make it larger first"))
}

/// An import under way.
struct Import<'a> {
    image: &'a Image,
    source: &'a mut Source,
    /// The image was just created: what is not written reads as zeroes.
    fresh: bool,
    bar: &'a ProgressBar,
}

impl Import<'_> {
    async fn run(self) -> Result<Imported, CliError> {
        let size = self.image.size();
        let mut writes = FuturesUnordered::new();
        let (mut at, mut written) = (0, 0);
        while let Some(data) = self.source.next_data(at) {
            // Chunks keep their alignment, so that no write crosses more objects than it must.
            let start = data - data % CHUNK as u64;
            let start = start.max(at);
            self.clear(at, start).await?;
            let until_boundary = CHUNK - (start % CHUNK as u64) as usize;
            let chunk = self.source.read_chunk(start, until_boundary)?.freeze();
            at = start;
            if chunk.is_empty() {
                break;
            }
            let end = start + chunk.len() as u64;
            if end > size {
                return Err(too_long(&self.image.info().path(), end, size));
            }
            let mut done = 0;
            for run in data_runs(&chunk) {
                self.clear(start + done, start + run.start as u64).await?;
                done = run.end as u64;
                written += run.len() as u64;
                writes.push(write(self.image, start + run.start as u64, chunk.slice(run)));
                while writes.len() >= WRITES_MAX {
                    writes.next().await.transpose()?;
                }
            }
            self.clear(start + done, end).await?;
            at = end;
            self.bar.set_position(at);
        }
        while writes.next().await.transpose()?.is_some() {}
        self.clear(at, size).await?;
        self.image.flush().await?;
        let bytes = self.source.len().unwrap_or(at);
        Ok(Imported { size, bytes, written, ..Imported::default() })
    }

    /// Makes a range of an existing image read as zeroes.
    async fn clear(&self, from: u64, to: u64) -> Result<(), CliError> {
        if !self.fresh && from < to {
            self.image.write_zeroes(from, to - from, false).await?;
        }
        Ok(())
    }
}

async fn write(image: &Image, offset: u64, data: Buffer) -> Result<(), CliError> {
    Ok(image.write_at(offset, data).await?)
}

/// Reads both again and compares.
async fn verify(image: &Image, source: &mut Source) -> Result<(), CliError> {
    let len = source.len().unwrap_or(0);
    let bar = progress_bytes("verifying", len);
    let mut at = 0;
    loop {
        let chunk = source.read_chunk(at, CHUNK)?;
        if chunk.is_empty() {
            break;
        }
        let stored = image.read_at(at, chunk.len()).await?;
        if let Some(differs) = stored.iter().zip(chunk.iter()).position(|(a, b)| a != b) {
            let path = image.info().path();
            let at = at + differs as u64;
            return Err(CliError::failed(format!(
                "image {path} differs from the file at byte {at}: was either written to meanwhile? Import it again"
            )));
        }
        at += chunk.len() as u64;
        bar.set_position(at);
    }
    bar.finish_and_clear();
    Ok(())
}
