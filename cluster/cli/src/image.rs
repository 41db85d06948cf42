//! `blockyard image`.

mod copy_in;
mod copy_out;
mod source;

use blockyard_client::{ImageInfo, metadata};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::args::{ImageCommand, ImageSpec};
use crate::error::{CliError, Exit};
use crate::output::{Output, progress_count, table};
use crate::session::Session;
use crate::size::Size;

/// How much of an image is asked about at once when its usage is counted. Bytes.
const USAGE_STEP: u64 = 1 << 34;

/// An image as shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ImageView {
    name: String,
    pool: String,
    size: u64,
    block_size: u32,
    layer: u64,
    created: u64,
    read_only: bool,
    removing: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    shrinking_from: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<u64>,
}

impl ImageView {
    fn new(info: &ImageInfo) -> Self {
        Self {
            name: info.meta.name.clone(),
            pool: info.pool_config.name.clone(),
            size: info.meta.size,
            block_size: info.pool_config.block_size,
            layer: info.layer.0,
            created: info.meta.created,
            read_only: info.meta.read_only,
            removing: info.meta.removing,
            shrinking_from: info.meta.shrinking_from,
            used: None,
        }
    }

    fn spec(&self) -> ImageSpec {
        ImageSpec { pool: self.pool.clone(), name: self.name.clone() }
    }

    fn state(&self) -> &'static str {
        match (self.removing, self.shrinking_from, self.read_only) {
            (true, ..) => "being removed",
            (_, Some(_), _) => "being made smaller",
            (_, _, true) => "read-only",
            _ => "",
        }
    }

    fn row(&self) -> [String; 3] {
        [self.spec().to_string(), Size(self.size).to_string(), self.state().to_owned()]
    }

    fn text(&self) -> String {
        let used = self.used.map(|used| ["data".to_owned(), format!("{} ({used} bytes)", Size(used))]);
        let rows = [
            ["name".to_owned(), self.name.clone()],
            ["pool".to_owned(), self.pool.clone()],
            ["size".to_owned(), format!("{} ({} bytes)", Size(self.size), self.size)],
            ["object size".to_owned(), Size(self.block_size.into()).to_string()],
            ["layer".to_owned(), self.layer.to_string()],
            ["state".to_owned(), if self.state().is_empty() { "ready" } else { self.state() }.to_owned()],
        ];
        let text = table(["", ""], rows.into_iter().chain(used));
        text.trim_start_matches('\n').to_owned()
    }
}

/// Runs a command.
pub async fn run(session: &Session, command: ImageCommand, out: Output) -> Result<(), CliError> {
    session.require_cluster().await?;
    match command {
        ImageCommand::Create { image, size } => {
            let info = metadata::create_image(&*session.store, &image.pool, &image.name, size.0).await?;
            out.show(&ImageView::new(&info), |_| format!("created image {image}, {}", Size(info.meta.size)))
        }
        ImageCommand::Ls { pool } => ls(session, pool.as_deref(), out).await,
        ImageCommand::Info { image, usage } => info(session, &image, usage, out).await,
        ImageCommand::Resize { image, size, yes } => resize(session, &image, size, yes, out).await,
        ImageCommand::Rm { image, yes } => rm(session, &image, yes, out).await,
        ImageCommand::Import(options) => copy_in::import(session, &options, out).await,
        ImageCommand::Export(options) => copy_out::export(session, &options, out).await,
    }
}

async fn ls(session: &Session, pool: Option<&str>, out: Output) -> Result<(), CliError> {
    if let Some(pool) = pool {
        metadata::pool(&*session.store, pool).await?;
    }
    let images = metadata::images(&*session.store).await?;
    let wanted = images.iter().filter(|info| pool.is_none_or(|pool| info.pool_config.name == pool));
    let views: Vec<_> = wanted.map(ImageView::new).collect();
    out.show(&views, |views| table(["IMAGE", ">SIZE", "STATE"], views.iter().map(ImageView::row)))
}

async fn info(session: &Session, image: &ImageSpec, usage: bool, out: Output) -> Result<(), CliError> {
    let info = metadata::image(&*session.store, &image.pool, &image.name).await?;
    let mut view = ImageView::new(&info);
    if usage {
        view.used = Some(used(session, image).await?);
    }
    out.show(&view, ImageView::text)
}

/// Bytes of the image that hold data.
async fn used(session: &Session, image: &ImageSpec) -> Result<u64, CliError> {
    let client = session.client().await?;
    let image = client.open(&image.pool, &image.name).await?;
    let size = image.size();
    let mut used = 0;
    for offset in (0..size).step_by(USAGE_STEP as usize) {
        let extents = image.allocation(offset, USAGE_STEP.min(size - offset)).await?;
        used += extents.iter().filter(|extent| extent.data).map(|extent| extent.len).sum::<u64>();
    }
    Ok(used)
}

/// Tells a bar about objects done.
fn advance(bar: &ProgressBar) -> impl FnMut(u32, u32) + use<> {
    let bar = bar.clone();
    move |done, total| {
        bar.set_length(total.into());
        bar.set_position(done.into());
    }
}

async fn resize(session: &Session, image: &ImageSpec, size: Size, yes: bool, out: Output) -> Result<(), CliError> {
    let before = metadata::image(&*session.store, &image.pool, &image.name).await?;
    if size.0 < before.meta.size {
        let loss = Size(before.meta.size - size.0);
        CliError::unless_confirmed(yes, format!("resizing image {image} deletes the last {loss} of it"))?;
    }
    let bar = progress_count("deleting objects", 0);
    let resized = match session.client().await {
        Ok(client) => client.resize_image(&image.pool, &image.name, size.0, advance(&bar)).await,
        Err(error) => return Err(error),
    };
    bar.finish_and_clear();
    let info = resized?;
    out.show(&ImageView::new(&info), |_| format!("image {image} has {} now", Size(info.meta.size)))
}

async fn rm(session: &Session, image: &ImageSpec, yes: bool, out: Output) -> Result<(), CliError> {
    let info = metadata::image(&*session.store, &image.pool, &image.name).await?;
    CliError::unless_confirmed(yes, format!("removing image {image} deletes its data"))?;
    let bar = progress_count("deleting objects", info.object_count().into());
    let removed = session.client().await?.remove_image(&image.pool, &image.name, advance(&bar)).await;
    bar.finish_and_clear();
    removed?;
    out.show(&serde_json::json!({ "name": image.name, "pool": image.pool, "removed": true }), |_| {
        format!("removed image {image}")
    })
}

/// An error about an existing target that `--yes` would overwrite.
fn overwrites(what: String) -> CliError {
    CliError::new(Exit::Unconfirmed, format!("{what} exists: add --yes to overwrite it"))
}
