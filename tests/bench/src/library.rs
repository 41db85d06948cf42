//! Load through the client library, in the benchmark's own thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use blockyard_client::driver::ClientDriver;
use blockyard_client::feed::{self, MapFeed};
use blockyard_client::metadata;
use buffer::Buffer;
use cluster_client::{ClientOptions, ImageId, ImageOp};
use cluster_io::{Reactor, ReactorConfig, entropy};
use cluster_proto::ClientId;
use cluster_state::StateStore;
use tokio::runtime::Runtime;

use crate::load::{Io, Target};

/// An open image.
pub struct Library {
    io: Reactor,
    driver: ClientDriver,
    feed: MapFeed,
    image: ImageId,
    payload: Buffer,
    started: bool,
}

impl Library {
    /// Opens an image of pool `default`.
    ///
    /// # Errors
    /// The cluster or the image is not there.
    pub fn open(runtime: &Runtime, state: Arc<dyn StateStore>, name: &str, payload: Buffer) -> Result<Self> {
        let io = Reactor::new(ReactorConfig::default())?;
        let cluster = runtime.block_on(feed::cluster_id(state.as_ref()))?;
        let info = runtime.block_on(metadata::image(state.as_ref(), "default", name))?;
        let id = ClientId(entropy::random_u64()? | 1);
        let mut driver = ClientDriver::new(ClientOptions { id, cluster, credentials: None });
        let feed = MapFeed::spawn(runtime.handle(), state, io.waker());
        let image = driver.client_mut().open(info.options());
        Ok(Self { io, driver, feed, image, payload, started: false })
    }
}

impl Target for Library {
    fn start(&mut self, io: Io) {
        let (offset, len) = (io.offset, u64::from(io.len));
        let op = if io.write {
            ImageOp::Write { offset, data: self.payload.slice(..io.len as usize) }
        } else {
            ImageOp::Read { offset, len }
        };
        self.driver.client_mut().submit(self.image, io.slot as u64, op);
    }

    fn turn(&mut self, until: Instant, done: &mut Vec<usize>) -> Result<()> {
        while done.is_empty() {
            while let Some(changes) = self.feed.poll() {
                self.driver.handle_changes(&self.io, changes);
                self.started = true;
            }
            self.driver.pump(&mut self.io);
            while let Some((_, tag, reply)) = self.driver.client_mut().poll_reply() {
                if let Err(status) = reply {
                    bail!("an operation failed: {status}");
                }
                done.push(tag as usize);
            }
            if !done.is_empty() {
                break;
            }
            if Instant::now() > until {
                bail!("the cluster does not answer");
            }
            self.io.turn(Some(self.driver.deadline().min(until + Duration::from_millis(1))))?;
            while let Some(event) = self.io.next_event() {
                self.driver.handle_event(&mut self.io, event);
            }
        }
        Ok(())
    }
}
