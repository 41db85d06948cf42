//! Load through the client library, in the benchmark's own thread.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use blockyard_client::LocalImage;
use buffer::Buffer;
use cluster_client::ImageOp;
use tokio::runtime::Handle;

use crate::load::{Io, Target};

/// An open image.
pub struct Library {
    image: LocalImage,
    payload: Buffer,
}

impl Library {
    /// Opens an image of pool `default` of the cluster whose state store is at `etcd`. The thread that does so uses it.
    ///
    /// # Errors
    /// The cluster or the image is not there.
    pub fn open(runtime: &Handle, etcd: &str, name: &str, payload: Buffer) -> Result<Self> {
        let _guard = runtime.enter();
        let state = cluster_state::connect(etcd)?;
        let image = runtime.block_on(LocalImage::open(state, None, "default", name))?;
        Ok(Self { image, payload })
    }

    /// Looks for answers so long before it sleeps.
    pub fn poll(&mut self, time: Duration) {
        self.image.set_busy_poll(time);
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
        self.image.submit(io.slot as u64, op);
    }

    fn turn(&mut self, until: Instant, done: &mut Vec<usize>) -> Result<()> {
        self.image.turn(until)?;
        while let Some((tag, reply)) = self.image.poll_reply() {
            if let Err(status) = reply {
                bail!("an operation failed: {status}");
            }
            done.push(tag as usize);
        }
        Ok(())
    }
}
