//! The thread that owns the state: takes requests as they come, makes the changes of all that are waiting durable
//! together, and only then answers any of them. So nothing that was read or acknowledged can be lost in a crash.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::disk::{self, Disk, Loaded};
use crate::core::StateCore;
use crate::error::StateError;
use crate::limits::GROUP_COMMIT_MAX;

/// Tells a caller its result, once it is known whether the changes of this turn are durable.
pub(super) type Reply = Box<dyn FnOnce(Result<(), StateError>) + Send>;
/// A request: reads or changes the state.
pub(super) type Run = Box<dyn FnOnce(&mut StateCore) -> Reply + Send>;

/// What arrives in the thread.
pub(super) enum Job {
    /// A request.
    Run(Run),
    /// Ends the thread.
    Close,
}

/// The state and where it is made durable.
pub(super) struct Engine {
    started: Instant,
    dir: Option<PathBuf>,
    /// `None` after a failed write until the file could be opened again; always `None` in memory.
    disk: Option<Disk>,
    core: StateCore,
    durable: (i64, i64),
    revision: watch::Sender<i64>,
}

impl Engine {
    /// A store that lives as long as its thread.
    pub(super) fn in_memory() -> Self {
        Self::with(None, None, StateCore::new())
    }

    /// Opens a store; also returns its id.
    pub(super) fn open(dir: PathBuf) -> Result<(Self, u64), StateError> {
        let (disk, core, store_id) = load(&dir, 0)?;
        Ok((Self::with(Some(dir), Some(disk), core), store_id))
    }

    fn with(dir: Option<PathBuf>, disk: Option<Disk>, core: StateCore) -> Self {
        let durable = (core.revision(), core.last_lease_id());
        let revision = watch::Sender::new(core.revision());
        Self { started: Instant::now(), dir, disk, core, durable, revision }
    }

    /// Tells the last durable revision.
    pub(super) fn revision(&self) -> watch::Receiver<i64> {
        self.revision.subscribe()
    }

    /// Serves until all senders are gone or one of them asks to close.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let mut batch = Vec::new();
            match self.wait(jobs) {
                Ok(Job::Run(run)) => batch.push(run),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Job::Close) | Err(RecvTimeoutError::Disconnected) => return,
            }
            let mut open = true;
            while open && batch.len() < GROUP_COMMIT_MAX {
                match jobs.try_recv() {
                    Ok(Job::Run(run)) => batch.push(run),
                    Ok(Job::Close) => open = false,
                    Err(_) => break,
                }
            }
            self.turn(batch);
            if !open {
                return;
            }
        }
    }

    fn wait(&self, jobs: &Receiver<Job>) -> Result<Job, RecvTimeoutError> {
        match self.core.poll_timeout() {
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at_ms) => jobs.recv_timeout(Duration::from_millis(at_ms.saturating_sub(self.now_ms()))),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn turn(&mut self, batch: Vec<Run>) {
        if let Err(error) = self.reopen() {
            return self.refuse(batch, &error);
        }
        self.core.handle_time(self.now_ms());
        let replies: Vec<Reply> = batch.into_iter().map(|run| run(&mut self.core)).collect();
        let outcome = self.commit();
        if outcome.is_ok() {
            let revision = self.core.revision();
            self.revision.send_if_modified(|told| std::mem::replace(told, revision) != revision);
        }
        replies.into_iter().for_each(|reply| reply(outcome.clone()));
    }

    fn commit(&mut self) -> Result<(), StateError> {
        let now = (self.core.revision(), self.core.last_lease_id());
        let deltas = self.core.poll_deltas();
        if deltas.is_empty() && now == self.durable {
            return Ok(());
        }
        if let Some(disk) = &self.disk
            && let Err(error) = disk.commit(&deltas, now.0, now.1)
        {
            tracing::error!("{error}");
            // The state in memory is ahead of the disk. Nobody has seen it: go back to what is durable.
            self.disk = None;
            return Err(error);
        }
        self.durable = now;
        Ok(())
    }

    /// After a failed write: opens the file again and returns to the durable state.
    fn reopen(&mut self) -> Result<(), StateError> {
        let Some(dir) = self.dir.as_deref().filter(|_| self.disk.is_none()) else { return Ok(()) };
        let (disk, core, _) = load(dir, self.now_ms())?;
        self.durable = (core.revision(), core.last_lease_id());
        (self.disk, self.core) = (Some(disk), core);
        Ok(())
    }

    /// Answers requests that cannot even be tried. They run on a scratch state, because only they know whom to answer.
    fn refuse(&mut self, batch: Vec<Run>, error: &StateError) {
        if batch.is_empty() {
            // Only leases were waiting. Without a disk they cannot end; do not ask again before there is a request.
            self.core = StateCore::new();
        }
        let mut scratch = StateCore::new();
        batch.into_iter().for_each(|run| run(&mut scratch)(Err(error.clone())));
    }
}

fn load(dir: &std::path::Path, now_ms: u64) -> Result<(Disk, StateCore, u64), StateError> {
    let (disk, Loaded { image, store_id }) = Disk::open(dir)?;
    let restored = StateCore::restore(image, now_ms);
    let mut core = restored.map_err(|error| disk::corrupt(&dir.join(disk::FILE), error))?;
    core.record_deltas();
    Ok((disk, core, store_id))
}
