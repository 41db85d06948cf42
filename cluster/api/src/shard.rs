//! The thread behind a client: its reactor, its connections, and the operations that wait for an answer.
//!
//! Requests come through a queue and a waker whose signals coalesce: all that was queued up to a wake-up is submitted
//! together, and goes out with one system call.

use std::sync::{Arc, mpsc};
use std::thread;

use cluster_client::{ClientOptions, ImageId, ImageOp, ImageOptions, ImageReply};
use cluster_io::{Reactor, ReactorConfig, Waker, clock};
use cluster_proto::Status;
use cluster_state::StateStore;
use slab::Slab;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::driver::ClientDriver;
use crate::error::{Error, ErrorKind};
use crate::feed::MapFeed;

/// How long the end may take for what is not durable yet. Milliseconds.
const LAST_SYNC_MS_MAX: u64 = 5_000;

/// Where the outcome of an operation goes.
pub(crate) struct Answer {
    pub reply: oneshot::Sender<Result<ImageReply, Status>>,
    /// Given back when the operation has ended, whether or not anybody still waits for it.
    pub _permits: OwnedSemaphorePermit,
}

/// What the thread is told.
pub(crate) enum Command {
    Open { options: ImageOptions, reply: oneshot::Sender<ImageId> },
    Close(ImageId),
    SetSize(ImageId, u64),
    SetRemoved(ImageId),
    Run { image: ImageId, op: ImageOp, answer: Answer },
    Stop,
}

/// The way to the thread.
#[derive(Clone)]
pub(crate) struct Commands {
    queue: mpsc::Sender<Command>,
    waker: Waker,
}

impl Commands {
    pub(crate) fn send(&self, command: Command) {
        // If the thread has ended, whoever waits for an answer learns it from that.
        let _ = self.queue.send(command);
        self.waker.wake();
    }
}

/// Starts the thread; it ends at [`Command::Stop`], when what was answered is durable.
pub(crate) async fn start(
    options: ClientOptions,
    state: Arc<dyn StateStore>,
    runtime: &Handle,
) -> Result<Commands, Error> {
    let (queue, commands) = mpsc::channel();
    let (tell, told) = oneshot::channel();
    let runtime = runtime.clone();
    let body = move || {
        let io = match Reactor::new(ReactorConfig::default()) {
            Ok(io) => io,
            Err(error) => return drop(tell.send(Err(error))),
        };
        let feed = MapFeed::spawn(&runtime, state, io.waker());
        let started = tell.send(Ok(io.waker())).is_ok();
        let shard = Shard { io, driver: ClientDriver::new(options), feed, commands, answers: Slab::new() };
        if started && let Err(error) = shard.run() {
            tracing::error!("the thread of a Blockyard client has failed: {error}");
        }
    };
    let spawned = thread::Builder::new().name("blockyard-client".into()).spawn(body);
    spawned.map_err(|e| Error::new(ErrorKind::Environment, format!("cannot start a thread: {e}")))?;
    let waker = told.await.map_err(|_| Error::closed())??;
    Ok(Commands { queue, waker })
}

struct Shard {
    io: Reactor,
    driver: ClientDriver,
    feed: MapFeed,
    commands: mpsc::Receiver<Command>,
    answers: Slab<Answer>,
}

impl Shard {
    fn run(mut self) -> Result<(), cluster_io::Error> {
        let mut stop_by = None;
        loop {
            while let Some(event) = self.io.next_event() {
                self.driver.handle_event(&mut self.io, event);
            }
            while let Some(changes) = self.feed.poll() {
                self.driver.handle_changes(&self.io, changes);
            }
            while let Ok(command) = self.commands.try_recv() {
                if let Command::Stop = command {
                    stop_by = Some(clock::now_ms() + LAST_SYNC_MS_MAX);
                    self.driver.client_mut().sync();
                }
                self.handle(command);
            }
            self.driver.pump(&mut self.io);
            self.answer();
            let unsynced = self.driver.client_mut().unsynced();
            if stop_by.is_some_and(|by| unsynced == 0 || clock::now_ms() >= by) {
                if unsynced > 0 {
                    tracing::warn!(
                        unsynced,
                        "a Blockyard client ends with changes that a loss of power may still undo"
                    );
                }
                return Ok(());
            }
            self.io.turn(Some(self.driver.deadline()))?;
        }
    }

    fn handle(&mut self, command: Command) {
        let client = self.driver.client_mut();
        match command {
            Command::Open { options, reply } => {
                let id = client.open(options);
                if reply.send(id).is_err() {
                    client.close(id);
                }
            }
            Command::Close(image) => client.close(image),
            Command::SetSize(image, size) => client.set_size(image, size),
            Command::SetRemoved(image) => client.set_removed(image),
            Command::Run { image, op, answer } => {
                let tag = self.answers.insert(answer);
                client.submit(image, tag as u64, op);
            }
            Command::Stop => {}
        }
    }

    fn answer(&mut self) {
        while let Some((_, tag, result)) = self.driver.client_mut().poll_reply() {
            if let Some(answer) = self.answers.try_remove(tag as usize) {
                // Nobody may be waiting any more.
                let _ = answer.reply.send(result);
            }
        }
    }
}
