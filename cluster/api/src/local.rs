//! An open image in the caller's own thread.

use std::collections::VecDeque;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use cluster_client::{ClientOptions, ImageId, ImageOp, ImageReply};
use cluster_io::{Reactor, ReactorConfig, entropy};
use cluster_proto::auth::Credentials;
use cluster_proto::{ClientId, Status};
use cluster_state::StateStore;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::driver::ClientDriver;
use crate::error::Error;
use crate::feed::{MapFeed, cluster_id};
use crate::image::ImageState;
use crate::metadata::{self, ImageInfo};
use crate::watch::follow;

/// An open image with a client of its own inside the calling thread: for programs that make load (fio, the benchmark) and
/// want neither a thread nor a queue between themselves and the OSDs. It has its own ring, and stays on its thread.
///
/// ```text
/// image.submit(tag, op);
/// loop {
///     while let Some((tag, result)) = image.poll_reply() { .. }
///     image.turn(until)?;
/// }
/// ```
///
/// The cluster state is followed on the tokio runtime within which it was opened, which must go on running (on another thread).
pub struct LocalImage {
    io: Reactor,
    driver: ClientDriver,
    feed: MapFeed,
    image: ImageId,
    info: ImageInfo,
    states: mpsc::Receiver<ImageState>,
    follower: JoinHandle<()>,
    replies: VecDeque<(u64, Result<ImageReply, Status>)>,
}

impl Drop for LocalImage {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl LocalImage {
    /// Opens an image by the names of its pool and itself. OSDs are connected to as they are needed.
    ///
    /// # Errors
    /// `NotFound`: there is no such cluster, pool or image. `Removed`: it is being removed. `State`: the store cannot be reached.
    /// `Environment`: no io_uring. A wrong key is no error here: see [`LocalImage::last_notice`].
    pub async fn open(
        state: Arc<dyn StateStore>,
        credentials: Option<Credentials>,
        pool: &str,
        name: &str,
    ) -> Result<Self, Error> {
        let cluster = cluster_id(&*state).await?;
        let info = metadata::image(&*state, pool, name).await?;
        info.refuse_removing()?;
        let io = Reactor::new(ReactorConfig::default())?;
        let id = ClientId(entropy::random_u64()?.max(1));
        let mut driver = ClientDriver::new(ClientOptions { id, cluster, credentials });
        let feed = MapFeed::spawn(&Handle::current(), state.clone(), io.waker());
        let image = driver.client_mut().open(info.options());
        let (sender, states) = mpsc::channel();
        let waker = io.waker();
        let follower = tokio::spawn(follow(state, info.layer, info.meta.size, move |state| {
            // If nobody listens any more, the follower is about to be ended.
            let _ = sender.send(state);
            waker.wake();
        }));
        Ok(Self { io, driver, feed, image, info, states, follower, replies: VecDeque::new() })
    }

    /// The image as it was when it was opened.
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// How long [`LocalImage::turn`] looks for answers before it sleeps; at first it does not. Latency for processor time.
    pub fn set_busy_poll(&mut self, time: Duration) {
        self.io.set_busy_poll(time);
    }

    /// Queues an operation; its answer carries `tag`. The next [`LocalImage::turn`] sends it.
    pub fn submit(&mut self, tag: u64, op: ImageOp) {
        self.driver.client_mut().submit(self.image, tag, op);
    }

    /// Next answer that is there.
    pub fn poll_reply(&mut self) -> Option<(u64, Result<ImageReply, Status>)> {
        self.replies.pop_front()
    }

    /// Sends what is queued and waits until something happens or `until` has come; not at all if there are answers. All that with
    /// one system call. May return without an answer, at any time.
    ///
    /// # Errors
    /// `Environment`: the ring failed.
    pub fn turn(&mut self, until: Instant) -> Result<(), Error> {
        self.take_changes();
        self.driver.pump(&mut self.io);
        self.take_replies();
        let now = self.io.now();
        let until = if self.replies.is_empty() { until.min(self.driver.deadline()) } else { now };
        self.io.turn(Some(until))?;
        while let Some(event) = self.io.next_event() {
            self.driver.handle_event(&mut self.io, event);
        }
        self.take_replies();
        Ok(())
    }

    /// Why an OSD and this client refused each other last, if they ever did: a wrong key, say. Operations wait meanwhile.
    pub fn last_notice(&self) -> Option<&str> {
        self.driver.last_notice()
    }

    fn take_changes(&mut self) {
        while let Some(changes) = self.feed.poll() {
            self.driver.handle_changes(&self.io, changes);
        }
        while let Ok(state) = self.states.try_recv() {
            let client = self.driver.client_mut();
            if state.removed { client.set_removed(self.image) } else { client.set_size(self.image, state.size) }
        }
    }

    fn take_replies(&mut self) {
        while let Some((_, tag, result)) = self.driver.client_mut().poll_reply() {
            self.replies.push_back((tag, result));
        }
    }
}
