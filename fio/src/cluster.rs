//! An image of a cluster as a target: fio's thread talks to the OSDs, one more thread follows the cluster state.
//!
//! Next hop of a write: `cluster/client/src/write.rs`.

use std::time::{Duration, Instant};

use blockyard_client::{Client, LocalImage, metadata};
use cluster_client::ImageOp;
use cluster_io::entropy;
use tokio::runtime::{Builder, Runtime};

use crate::access::Access;
use crate::error::Error;
use crate::settings::{AccessOptions, ImageChoice};
use crate::target::{BLOCK, Reply, Target};

/// How long the cluster may take for its first answer. Later ones are waited for as long as it takes.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(30);
/// How long it may take when OSDs have refused this client: the reason may pass, but hardly ever does.
const REFUSED_MAX: Duration = Duration::from_secs(2);
/// How long removing a temporary image may take.
const REMOVAL_MAX: Duration = Duration::from_secs(60);
/// How long the control plane's thread may take to end.
const STOP_MAX: Duration = Duration::from_secs(2);

/// Size of the image that is meant. Bytes. Leaves no thread behind, so that the process may fork afterwards.
pub(crate) fn look(access: &AccessOptions, pool: &str, image: &ImageChoice) -> Result<u64, Error> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(cannot_start)?;
    runtime.block_on(async {
        let access = Access::new(access)?;
        blockyard_client::feed::cluster_id(&*access.state).await?;
        match image {
            ImageChoice::Named(name) => Ok(metadata::image(&*access.state, pool, name).await?.meta.size),
            ImageChoice::Temporary(size) => Ok(metadata::pool(&*access.state, pool).await.map(|_| *size)?),
        }
    })
}

fn cannot_start(error: std::io::Error) -> Error {
    Error::new(format!("cannot start the thread that follows the cluster: {error}"))
}

/// An open image.
pub(crate) struct ClusterTarget {
    image: LocalImage,
    access: Access,
    /// Removed at the end.
    temporary: bool,
    runtime: Runtime,
}

impl ClusterTarget {
    /// Opens an image, or makes one, and waits until the cluster answers.
    ///
    /// # Errors
    /// The cluster, pool or image is not there, does not let this client in, or does not answer.
    pub fn open(access: &AccessOptions, pool: &str, image: &ImageChoice, busy_poll: Duration) -> Result<Self, Error> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("blockyard-map")
            .enable_all()
            .build()
            .map_err(cannot_start)?;
        let guard = runtime.enter();
        let access = Access::new(access)?;
        let (name, temporary) = match image {
            ImageChoice::Named(name) => (name.clone(), false),
            ImageChoice::Temporary(size) => {
                let name = format!("fio-{:016x}", entropy::random_u64()?);
                runtime.block_on(metadata::create_image(&*access.state, pool, &name, *size))?;
                (name, true)
            }
        };
        let opening = LocalImage::open(access.state.clone(), access.credentials.clone(), pool, &name);
        let mut image = runtime.block_on(opening)?;
        image.set_busy_poll(busy_poll);
        drop(guard);
        let mut target = Self { image, access, temporary, runtime };
        match target.first_answer() {
            Ok(()) => Ok(target),
            Err(error) => Err(target.take_back(error)),
        }
    }

    /// Reads a little, to find out whether the cluster lets us in at all.
    fn first_answer(&mut self) -> Result<(), Error> {
        let len = self.image.info().meta.size.min(BLOCK);
        self.image.submit(0, ImageOp::Read { offset: 0, len });
        let begin = Instant::now();
        loop {
            // Damaged data is an answer too: whoever reads it is told.
            if self.image.poll_reply().is_some() {
                return Ok(());
            }
            let path = self.image.info().path();
            match self.image.last_notice() {
                Some(why) if begin.elapsed() > REFUSED_MAX => {
                    return Err(Error::new(format!("cannot use image {path}: {why}")));
                }
                _ if begin.elapsed() > FIRST_ANSWER_MAX => {
                    let advice = "'blockyard status' tells what it lacks";
                    return Err(Error::new(format!(
                        "cannot use image {path}: the cluster did not answer within {} s; {advice}",
                        FIRST_ANSWER_MAX.as_secs()
                    )));
                }
                _ => self.image.turn(Instant::now() + Duration::from_millis(100))?,
            }
        }
    }

    /// The image could not be used: removes it if it was made for this, which is easy, for nothing was ever written to it.
    fn take_back(self, error: Error) -> Error {
        let Self { image, access, temporary, runtime } = self;
        let mut error = error;
        if temporary && let Err(left) = runtime.block_on(metadata::forget_image(&*access.state, image.info())) {
            error = Error::new(format!("{error}; the new image {} was left behind: {left}", image.info().path()));
        }
        drop(image);
        runtime.shutdown_timeout(STOP_MAX);
        error
    }
}

/// Removes an image with its data.
async fn remove(access: &Access, pool: &str, name: &str) -> Result<(), Error> {
    let client = Client::connect_with(access.state.clone(), access.credentials.clone()).await?;
    Ok(client.remove_image(pool, name, |_, _| {}).await?)
}

impl Target for ClusterTarget {
    fn size(&self) -> u64 {
        self.image.info().meta.size
    }

    fn unit(&self) -> u64 {
        BLOCK
    }

    fn submit(&mut self, tag: u64, op: ImageOp) {
        self.image.submit(tag, op);
    }

    fn poll_reply(&mut self) -> Option<Reply> {
        self.image.poll_reply()
    }

    fn turn(&mut self, until: Instant) -> Result<(), Error> {
        Ok(self.image.turn(until)?)
    }

    fn close(self: Box<Self>) -> Result<(), Error> {
        let Self { image, access, temporary, runtime } = *self;
        let info = image.info().clone();
        drop(image);
        let removed = if temporary {
            let removal = remove(&access, &info.pool_config.name, &info.meta.name);
            let timely = async { tokio::time::timeout(REMOVAL_MAX, removal).await };
            runtime.block_on(timely).unwrap_or_else(|_| Err(Error::new("the cluster does not answer")))
        } else {
            Ok(())
        };
        runtime.shutdown_timeout(STOP_MAX);
        removed.map_err(|error| {
            let path = info.path();
            Error::new(format!(
                "the temporary image {path} was left behind: {error}; 'blockyard image rm {path}' removes it"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_is_not_there_is_an_error_at_once() {
        let access = AccessOptions { etcd: Some("127.0.0.1:1".into()), ..AccessOptions::default() };
        let image = ImageChoice::Named("a".into());
        let error = look(&access, "default", &image).unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:1"), "{error}");
        let access = AccessOptions { etcd: Some("/nowhere".into()), ..AccessOptions::default() };
        let error =
            ClusterTarget::open(&access, "default", &image, Duration::ZERO).err().expect("no cluster").to_string();
        assert!(error.contains("no cluster runs on /nowhere"), "{error}");
    }
}
