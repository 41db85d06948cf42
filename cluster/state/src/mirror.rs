//! Follows a prefix for ever: the state now, then every change, with no gap, whatever happens to the connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::error::{StateError, WatchError};
use crate::store::{Snapshot, StateStore, Watch, WatchBatch};

/// Waiting time after the first failure; doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest waiting time between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What [`Mirror::next`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorEvent {
    /// This is everything under the prefix; forget what was known before. The first event, and again when the store
    /// no longer knew what had happened in between (long outage, restart of an embedded store, restored backup).
    Reset(Snapshot),
    /// Changes since the event before.
    Batch(WatchBatch),
}

enum State {
    /// The range has to be read.
    Unread,
    /// Everything before `next` has been told; there is no watch. `fresh`: by the range that was just read.
    Unwatched { next: i64, fresh: bool },
    /// Everything before `next` has been told, and the rest comes from `watch`.
    Watching { next: i64, watch: Watch },
}

/// An endless, gap-free view of the keys under a prefix. Made by [`watch_forever`].
pub struct Mirror {
    store: Arc<dyn StateStore>,
    prefix: String,
    state: State,
    backoff: Duration,
    retry_at: Option<Instant>,
    outage: Option<StateError>,
}

/// Follows `prefix` in `store`. Nothing is asked before the first [`Mirror::next`].
pub fn watch_forever(store: Arc<dyn StateStore>, prefix: impl Into<String>) -> Mirror {
    let prefix = prefix.into();
    Mirror { store, prefix, state: State::Unread, backoff: BACKOFF_MIN, retry_at: None, outage: None }
}

impl Mirror {
    /// The next event: first a [`MirrorEvent::Reset`], then changes in the order of their revisions. Waits as long as
    /// it takes; failures are logged once per outage and retried. Cancel-safe: nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> MirrorEvent {
        loop {
            if let Some(at) = self.retry_at {
                sleep_until(at).await;
                self.retry_at = None;
            }
            match self.step().await {
                Ok(Some(event)) => return event,
                Ok(None) => {}
                Err(error) => self.fail(error),
            }
        }
    }

    /// The error that keeps the mirror from following at the moment.
    pub fn outage(&self) -> Option<&StateError> {
        self.outage.as_ref()
    }

    async fn step(&mut self) -> Result<Option<MirrorEvent>, StateError> {
        match &mut self.state {
            State::Unread => {
                let snapshot = self.store.range(&self.prefix).await?;
                self.state = State::Unwatched { next: snapshot.revision + 1, fresh: true };
                Ok(Some(MirrorEvent::Reset(snapshot)))
            }
            State::Unwatched { next, fresh } => {
                let (next, fresh) = (*next, *fresh);
                let watch = self.store.watch(&self.prefix, next).await?;
                // A store that is behind what it told us earlier was put back to an older state. (Right after a range it
                // can only be an etcd follower that lags behind its leader.)
                let went_back = !fresh && watch.store_revision() + 1 < next;
                self.state = if went_back { State::Unread } else { State::Watching { next, watch } };
                self.recovered();
                Ok(None)
            }
            State::Watching { next, watch } => match watch.next().await {
                Ok(batch) => {
                    debug_assert!(batch.events.first().is_none_or(|event| event.revision() >= *next));
                    *next = batch.revision + 1;
                    Ok(Some(MirrorEvent::Batch(batch)))
                }
                Err(WatchError::Compacted { .. }) => {
                    self.state = State::Unread;
                    Ok(None)
                }
                Err(WatchError::Lost(error)) => {
                    self.state = State::Unwatched { next: *next, fresh: false };
                    Err(error)
                }
            },
        }
    }

    fn recovered(&mut self) {
        self.backoff = BACKOFF_MIN;
        if self.outage.take().is_some() {
            tracing::info!("following `{}` in the state store {} again", self.prefix, self.store.location());
        }
    }

    fn fail(&mut self, error: StateError) {
        if self.outage.is_none() {
            tracing::warn!("not following `{}` for the moment: {error}", self.prefix);
        }
        self.outage = Some(error);
        self.retry_at = Some(Instant::now() + self.backoff);
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }
}
