//! A connection to a cluster.

use std::ops::Range;
use std::sync::Arc;

use buffer::Buffer;
use cluster_client::{ClientOptions, ImageId, ImageOp, ImageOptions, ImageReply};
use cluster_io::entropy;
use cluster_proto::auth::Credentials;
use cluster_proto::map::ImageMeta;
use cluster_proto::{ClientId, Status, Uuid};
use cluster_state::StateStore;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use crate::error::{Error, ErrorKind};
use crate::feed::cluster_id;
use crate::image::Image;
use crate::metadata::{self, ImageInfo, object_count};
use crate::shard::{self, Answer, Command, Commands};

/// Data under way in all operations of one client, in units of [`PERMIT_BYTES`]; callers wait beyond that.
const PERMITS: usize = (512 << 20) / PERMIT_BYTES as usize;
/// What one permit stands for. Bytes.
const PERMIT_BYTES: u64 = 4096;
/// Objects that one step of a deletion deletes.
const DELETE_STEP: u32 = 4096;

/// A connection to a cluster: one thread that talks to the OSDs, and a follower of the cluster state on the caller's tokio
/// runtime. Clones share both; they end with the last clone and the last open [`Image`].
///
/// When the state store is away, I/O goes on with what is known.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<dyn StateStore>,
    cluster: Uuid,
    commands: Commands,
    permits: Arc<Semaphore>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.commands.send(Command::Stop);
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client(cluster {})", self.inner.cluster)
    }
}

impl Client {
    /// Connects to the cluster whose state `state` holds. OSDs are connected to as they are needed.
    ///
    /// Must be called within a tokio runtime (with time enabled) that lives as long as the client is used.
    ///
    /// # Errors
    /// `NotFound`: there is no cluster in the store. `State`: the store cannot be reached. `Environment`: no io_uring, or no
    /// thread can be started.
    pub async fn connect(state: Arc<dyn StateStore>) -> Result<Client, Error> {
        Self::connect_with(state, None).await
    }

    /// The same, to a cluster that has a key.
    ///
    /// # Errors
    /// As [`Client::connect`]. A key that is wrong or missing is no error here: OSDs refuse the connections, the log says so, and
    /// operations wait.
    pub async fn connect_with(state: Arc<dyn StateStore>, credentials: Option<Credentials>) -> Result<Client, Error> {
        let cluster = cluster_id(&*state).await?;
        let id = ClientId(entropy::random_u64()?.max(1));
        let options = ClientOptions { id, cluster, credentials };
        let commands = shard::start(options, state.clone(), &Handle::current()).await?;
        let permits = Arc::new(Semaphore::new(PERMITS));
        Ok(Client { inner: Arc::new(Inner { state, cluster, commands, permits }) })
    }

    /// Identity of the cluster.
    pub fn cluster(&self) -> Uuid {
        self.inner.cluster
    }

    /// The state store.
    pub fn state(&self) -> &Arc<dyn StateStore> {
        &self.inner.state
    }

    /// Opens an image by the names of its pool and itself. Several handles to one image may be open at once.
    ///
    /// # Errors
    /// `NotFound`: there is no such pool or image. `Removed`: it is being removed. `State`.
    pub async fn open(&self, pool: &str, name: &str) -> Result<Image, Error> {
        let info = metadata::image(&**self.state(), pool, name).await?;
        info.refuse_removing()?;
        Image::open(self, info).await
    }

    /// Makes a thin image of `size` bytes. See [`metadata::create_image`].
    ///
    /// # Errors
    /// Those of [`metadata::create_image`].
    pub async fn create_image(&self, pool: &str, name: &str, size: u64) -> Result<ImageInfo, Error> {
        metadata::create_image(&**self.state(), pool, name, size).await
    }

    /// Gives an image another size. Growing is immediate. When it shrinks, the size changes first and then what lies behind
    /// is deleted; `progress` is told how many objects of how many are done. A shrink that was interrupted is finished by
    /// the next resize, to whatever size.
    ///
    /// Open images notice within moments, through their state; a writer that has not noticed yet may still write behind
    /// the new end.
    ///
    /// # Errors
    /// `NotFound`, `Removed`, `Invalid` for a bad size, `Conflict`, `State`, and those of a deletion.
    pub async fn resize_image(
        &self,
        pool: &str,
        name: &str,
        size: u64,
        progress: impl FnMut(u32, u32),
    ) -> Result<ImageInfo, Error> {
        let state = &**self.state();
        let info = metadata::image(state, pool, name).await?;
        if info.meta.removing {
            return Err(Error::new(ErrorKind::Removed, format!("image {} is being removed", info.path())));
        }
        let largest = info.meta.size.max(info.meta.shrinking_from.unwrap_or(0));
        // What is left of an earlier shrink must be gone before the image covers it again.
        let keep = size.min(info.meta.size);
        if largest <= keep {
            return metadata::update_image(state, &info, ImageMeta { size, ..info.meta.clone() }).await;
        }
        let meta = ImageMeta { size: keep, shrinking_from: Some(largest), ..info.meta.clone() };
        let info = metadata::update_image(state, &info, meta).await?;
        self.trim(&info, keep, largest, progress).await?;
        let meta = ImageMeta { size, shrinking_from: None, ..info.meta.clone() };
        metadata::update_image(state, &info, meta).await
    }

    /// Removes an image and all its data; `progress` is told how many objects of how many are deleted. Whoever has it open
    /// sees it end. A removal that was interrupted is finished by calling this again.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `State`, and those of a deletion.
    pub async fn remove_image(&self, pool: &str, name: &str, progress: impl FnMut(u32, u32)) -> Result<(), Error> {
        let state = &**self.state();
        let info = metadata::image(state, pool, name).await?;
        let meta = ImageMeta { removing: true, ..info.meta.clone() };
        let info = metadata::update_image(state, &info, meta).await?;
        let end = info.object_count();
        self.with_raw(&info, async |id| self.delete_range(id, 0..end, progress).await).await?;
        metadata::forget_image(state, &info).await
    }

    /// Deletes what lies between two sizes.
    async fn trim(&self, info: &ImageInfo, from: u64, to: u64, progress: impl FnMut(u32, u32)) -> Result<(), Error> {
        let block = info.pool_config.block_size;
        let whole = object_count(from, block)..object_count(to, block);
        let rest = (u64::from(whole.start) * u64::from(block)).min(to) - from;
        self.with_raw(info, async |id| {
            if rest > 0 {
                let zero = ImageOp::WriteZeroes { offset: from, len: rest, keep_allocated: false };
                self.run(id, rest, zero, || format!("clear the end of image {}", info.path())).await?;
            }
            self.delete_range(id, whole, progress).await
        })
        .await
    }

    /// Opens an image with all that it may still hold, whatever its metadata allows.
    async fn with_raw<T>(
        &self,
        info: &ImageInfo,
        work: impl AsyncFnOnce(ImageId) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let size = info.meta.size.max(info.meta.shrinking_from.unwrap_or(0));
        let id = self.open_raw(ImageOptions { size, read_only: false, ..info.options() }).await?;
        let result = work(id).await;
        self.command(Command::Close(id));
        result
    }

    pub(crate) async fn delete_range(
        &self,
        id: ImageId,
        objects: Range<u32>,
        mut progress: impl FnMut(u32, u32),
    ) -> Result<(), Error> {
        let total = objects.len() as u32;
        for first in objects.clone().step_by(DELETE_STEP as usize) {
            progress(first - objects.start, total);
            let end = first.saturating_add(DELETE_STEP).min(objects.end);
            self.run(id, 0, ImageOp::DeleteObjects { first, end }, || format!("delete objects {first} to {end}"))
                .await?;
        }
        progress(total, total);
        Ok(())
    }

    pub(crate) async fn open_raw(&self, options: ImageOptions) -> Result<ImageId, Error> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Open { options, reply });
        answer.await.map_err(|_| Error::closed())
    }

    pub(crate) fn commands(&self) -> &Commands {
        &self.inner.commands
    }

    pub(crate) fn command(&self, command: Command) {
        self.inner.commands.send(command);
    }

    /// Carries out an operation that moves `bytes`. Dropping the future leaves it running, with nobody to tell.
    pub(crate) async fn run(
        &self,
        image: ImageId,
        bytes: u64,
        op: ImageOp,
        what: impl FnOnce() -> String,
    ) -> Result<ImageReply, Error> {
        let cost = bytes.div_ceil(PERMIT_BYTES).clamp(1, PERMITS as u64) as u32;
        let permits = self.inner.permits.clone().acquire_many_owned(cost).await.map_err(|_| Error::closed())?;
        let (reply, outcome) = oneshot::channel();
        self.command(Command::Run { image, op, answer: Answer { reply, _permits: permits } });
        match outcome.await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(status)) => Err(Error::operation(status, what)),
            Err(_) => Err(Error::closed()),
        }
    }
}

/// An answer of another kind than the operation has: never, unless the core is broken.
pub(crate) fn strange(what: impl FnOnce() -> String) -> Error {
    debug_assert!(false, "the core answered with something else");
    Error::operation(Status::Io, what)
}

/// One buffer of several.
pub(crate) fn join(mut pieces: Vec<Buffer>, len: usize) -> Buffer {
    if pieces.len() == 1 {
        return pieces.pop().unwrap_or_default();
    }
    let mut all = buffer::BufferMut::for_overwrite(len);
    let mut at = 0;
    for piece in pieces {
        all[at..at + piece.len()].copy_from_slice(&piece);
        at += piece.len();
    }
    all.freeze()
}
