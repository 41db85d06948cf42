//! The embedded store: a whole state store in this process, durable in one file or only in memory.

mod disk;
mod engine;

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use async_trait::async_trait;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::convert;
use crate::core::{CoreError, KeyRange, Op, OpResult, RangeOp, StateCore};
use crate::error::{StateError, WatchError};
use crate::limits::REQUESTS_IN_FLIGHT_MAX;
use crate::store::{KeyValue, LeaseId, Snapshot, StateStore, Txn, TxnResult, Watch, WatchBatch, WatchSource};
use engine::{Engine, Job};

/// A state store inside this process. A cheap handle: clones share one store, which closes with its last handle.
///
/// One thread owns the [`StateCore`]; requests go to it through a queue that holds at most
/// [`REQUESTS_IN_FLIGHT_MAX`], so callers of any runtime can use it, and requests that wait together share one fsync.
/// [`crate::serve_etcd`] offers the same store to other processes.
#[derive(Clone)]
pub struct EmbeddedStore {
    inner: Arc<Inner>,
}

struct Inner {
    jobs: Sender<Job>,
    permits: Arc<Semaphore>,
    revision: watch::Receiver<i64>,
    thread: Mutex<Option<JoinHandle<()>>>,
    location: String,
    id: u64,
}

impl EmbeddedStore {
    /// Opens the store in `dir` (its file is `state.redb`), or makes a new one. Reads everything, so it may take a
    /// moment. Leases that were alive when the store stopped get their full time again.
    ///
    /// # Errors
    /// `InUse` if any process has it open, `Corrupt` if the file is damaged, `Full` or `Unavailable` if the disk refuses.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StateError> {
        let dir = dir.as_ref();
        let (engine, id) = Engine::open(dir.to_owned())?;
        Self::start(engine, dir.display().to_string(), id)
    }

    /// A new store in memory only, for tests.
    pub fn in_memory() -> Self {
        // The thread is all that can fail here, and without threads nothing of this program works.
        Self::start(Engine::in_memory(), "memory".into(), random_id()).expect("a thread can be started")
    }

    fn start(engine: Engine, location: String, id: u64) -> Result<Self, StateError> {
        let (jobs, receiver) = std::sync::mpsc::channel();
        let revision = engine.revision();
        let thread = thread::Builder::new()
            .name("state-store".into())
            .spawn(move || engine.run(&receiver))
            .map_err(|error| StateError::unavailable(format!("cannot start the thread of the state store: {error}")))?;
        let permits = Arc::new(Semaphore::new(REQUESTS_IN_FLIGHT_MAX));
        let thread = Mutex::new(Some(thread));
        Ok(Self { inner: Arc::new(Inner { jobs, permits, revision, thread, location, id }) })
    }

    /// Ends the store: requests under way are finished, later ones are refused, watches end, the file is free again.
    pub async fn close(&self) {
        let inner = self.inner.clone();
        // Joining waits for at most one commit, but must not hold up the caller's runtime.
        let _ = tokio::task::spawn_blocking(move || inner.stop()).await;
    }

    /// Random number that identifies this store's data.
    pub(crate) fn id(&self) -> u64 {
        self.inner.id
    }

    /// Tells the last durable revision.
    pub(crate) fn revision(&self) -> watch::Receiver<i64> {
        self.inner.revision.clone()
    }

    /// Runs `request` on the state and returns its result when everything it saw and did is durable.
    pub(crate) async fn call<R: Send + 'static>(
        &self,
        request: impl FnOnce(&mut StateCore) -> R + Send + 'static,
    ) -> Result<R, StateError> {
        let permit = self.inner.permits.clone().acquire_owned().await.map_err(|_| self.closed())?;
        let (tell, told) = oneshot::channel();
        let run = move |core: &mut StateCore| {
            let result = request(core);
            let reply = move |outcome: Result<(), StateError>| {
                drop(permit);
                // The caller may have stopped waiting; the request is carried out all the same.
                let _ = tell.send(outcome.map(|()| result));
            };
            Box::new(reply) as engine::Reply
        };
        self.inner.jobs.send(Job::Run(Box::new(run))).map_err(|_| self.closed())?;
        told.await.map_err(|_| self.closed())?
    }

    fn closed(&self) -> StateError {
        StateError::unavailable(format!("the embedded state store in {} is closed", self.inner.location))
    }

    async fn core_call<R: Send + 'static>(
        &self,
        what: &str,
        request: impl FnOnce(&mut StateCore) -> Result<R, CoreError> + Send + 'static,
    ) -> Result<R, StateError> {
        let result = self.call(request).await?;
        result.map_err(|error| convert::core_error(what, &self.inner.location, error))
    }

    async fn read(&self, what: String, keys: KeyRange) -> Result<Snapshot, StateError> {
        let read = move |core: &mut StateCore| Ok((core.handle_op(&Op::Range(RangeOp::new(keys)))?, core.revision()));
        let (result, revision) = self.core_call(&what, read).await?;
        let OpResult::Range { entries, .. } = result else { return Ok(Snapshot::default()) };
        Ok(Snapshot { revision, entries: entries.iter().filter_map(convert::key_value).collect() })
    }
}

impl Inner {
    fn stop(&self) {
        // A thread that has already ended has no receiver; then there is nothing to tell it.
        let _ = self.jobs.send(Job::Close);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the state store in {} ended with a panic", self.location);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A number that is different in each store. It need not be secret.
fn random_id() -> u64 {
    RandomState::new().hash_one(std::process::id()) | 1
}

#[async_trait]
impl StateStore for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StateError> {
        let keys = KeyRange::Key(key.as_bytes().to_vec().into());
        Ok(self.read(format!("read `{key}`"), keys).await?.entries.pop())
    }

    async fn range(&self, prefix: &str) -> Result<Snapshot, StateError> {
        self.read(format!("read the keys under `{prefix}`"), KeyRange::prefix(prefix.as_bytes())).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, StateError> {
        let what = convert::txn_name(&txn);
        let op = Op::Txn(convert::txn_op(txn));
        let (result, revision) = self.core_call(&what, move |core| Ok((core.handle_op(&op)?, core.revision()))).await?;
        Ok(convert::txn_result(result, revision))
    }

    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Watch, StateError> {
        let keys = KeyRange::prefix(prefix.as_bytes());
        let store_revision = self.call(|core| core.revision()).await?;
        let source = EmbeddedWatch { store: self.clone(), revision: self.revision(), keys, next: from_revision.max(1) };
        Ok(Watch::new(store_revision, source))
    }

    async fn lease_grant(&self, ttl_s: u32) -> Result<LeaseId, StateError> {
        convert::check_ttl(ttl_s)?;
        let (id, _) = self.core_call("grant a lease", move |core| core.lease_grant(0, ttl_s.into())).await?;
        Ok(LeaseId(id))
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<bool, StateError> {
        Ok(self.call(move |core| core.lease_keep_alive(lease.0)).await?.is_some())
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StateError> {
        match self.call(move |core| core.lease_revoke(lease.0)).await? {
            Ok(()) | Err(CoreError::LeaseNotFound) => Ok(()),
            Err(error) => Err(convert::core_error("revoke a lease", &self.inner.location, error)),
        }
    }

    async fn compact(&self, revision: i64) -> Result<(), StateError> {
        match self.call(move |core| core.compact(revision)).await? {
            Ok(()) | Err(CoreError::Compacted(_)) => Ok(()),
            Err(error) => Err(convert::core_error("compact the history", &self.inner.location, error)),
        }
    }

    fn location(&self) -> String {
        self.inner.location.clone()
    }
}

struct EmbeddedWatch {
    store: EmbeddedStore,
    revision: watch::Receiver<i64>,
    keys: KeyRange,
    next: i64,
}

#[async_trait]
impl WatchSource for EmbeddedWatch {
    async fn next(&mut self) -> Result<WatchBatch, WatchError> {
        loop {
            let next = self.next;
            if self.revision.wait_for(|&revision| revision >= next).await.is_err() {
                return Err(self.store.closed().into());
            }
            let keys = self.keys.clone();
            let found = self.store.call(move |core| core.events(next, &keys)).await?;
            let found = found.map_err(|error| match error {
                CoreError::Compacted(first_available) => WatchError::Compacted { first_available },
                error => convert::core_error("watch", &self.store.inner.location, error).into(),
            })?;
            self.next = found.through + 1;
            let events: Vec<_> = found.events.iter().filter_map(convert::watch_event).collect();
            if !events.is_empty() {
                return Ok(WatchBatch { revision: found.through, events });
            }
        }
    }
}
