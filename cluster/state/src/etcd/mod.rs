//! The store in an etcd cluster (or an embedded store served by another process; the two are not told apart).
//!
//! The client is our own, over tonic: it needs a tenth of the API, and must know for every failure whether a write may
//! have been carried out, which the public client crate does not tell.

mod config;
mod endpoints;
mod fault;
mod watch;
mod wire;

use std::sync::Arc;

use async_trait::async_trait;
use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub use config::{ClientIdentity, Credentials, EtcdConfig};

use crate::convert;
use crate::core::{KeyRange, Op, RangeOp, check_form};
use crate::error::{StateError, StateErrorKind};
use crate::limits::{ANSWER_BYTES_MAX, PAGE_KEYS};
use crate::pb;
use crate::pb::kv_client::KvClient;
use crate::pb::lease_client::LeaseClient;
use crate::pb::watch_client::WatchClient;
use crate::store::{KeyValue, LeaseId, Snapshot, StateStore, Txn, TxnResult, Watch};
use endpoints::{Connection, Endpoints, Repeat};
use watch::{EtcdWatch, entry};

/// How often a range is begun anew because its revision was compacted while it was read page by page.
const RANGE_ATTEMPTS: usize = 3;

/// A state store in etcd. Clones share their connections. Belongs to the tokio runtime in which it was made.
#[derive(Clone)]
pub struct EtcdStore {
    endpoints: Arc<Endpoints>,
}

impl EtcdStore {
    /// A store at these endpoints. Connections are made when they are needed, so this does not tell whether etcd is
    /// there. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `Invalid`: an endpoint is no address, or a certificate file cannot be read.
    pub fn new(config: EtcdConfig) -> Result<Self, StateError> {
        Ok(Self { endpoints: Arc::new(Endpoints::new(config)?) })
    }

    async fn page(&self, what: &str, op: &RangeOp) -> Result<pb::RangeResponse, StateError> {
        let request = wire::range_request(op);
        let read = |connection| {
            let request = request.clone();
            async move { kv(connection).range(request).await }
        };
        self.endpoints.call(what, Repeat::Harmless, read).await
    }

    /// Reads a range page by page at one revision.
    async fn range_once(&self, what: &str, prefix: &str) -> Result<Snapshot, StateError> {
        let mut op = RangeOp { limit: PAGE_KEYS, ..RangeOp::new(KeyRange::prefix(prefix.as_bytes())) };
        let mut snapshot = Snapshot::default();
        loop {
            let page = match self.page(what, &op).await {
                Err(error) if error.kind == StateErrorKind::TooLarge && op.limit > 1 => {
                    op.limit = (op.limit / 4).max(1);
                    continue;
                }
                page => page?,
            };
            if op.revision == 0 {
                op.revision = header_revision(page.header.as_ref());
                snapshot.revision = op.revision;
            }
            let last = page.kvs.last().map(|kv| kv.key.clone());
            snapshot.entries.extend(page.kvs.into_iter().map(entry).filter_map(|entry| convert::key_value(&entry)));
            match last.filter(|_| page.more) {
                Some(last) => op.keys = after(&op.keys, &last),
                None => return Ok(snapshot),
            }
        }
    }

    async fn open_watch(
        &self,
        prefix: &str,
        from_revision: i64,
    ) -> Result<(mpsc::Sender<pb::WatchRequest>, Streaming<pb::WatchResponse>), StateError> {
        let create = wire::watch_request(&KeyRange::prefix(prefix.as_bytes()), from_revision.max(1));
        let (requests, _) = mpsc::channel(1);
        let slot = std::sync::Mutex::new(requests);
        let open = |connection| {
            let (requests, receiver) = mpsc::channel(1);
            *slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = requests;
            let create = create.clone();
            let stream = tokio_stream::once(create).chain(ReceiverStream::new(receiver));
            async move {
                let mut request = Request::new(stream);
                // A member that is cut off from its cluster ends the watch instead of staying silent.
                request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
                WatchClient::new(connection).max_decoding_message_size(ANSWER_BYTES_MAX).watch(request).await
            }
        };
        let what = format!("watch the keys under `{prefix}`");
        let answers = self.endpoints.call(&what, Repeat::Harmless, open).await?;
        Ok((slot.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner), answers))
    }

    async fn watch_created(&self, prefix: &str, answers: &mut Streaming<pb::WatchResponse>) -> Result<i64, StateError> {
        let failed = |kind, why: &str| {
            let location = self.location();
            let advice = convert::advice(kind);
            StateError::new(kind, format!("cannot watch `{prefix}` in the state store {location}: {why}; {advice}"))
        };
        match timeout(self.endpoints.request_timeout(), answers.message()).await {
            Ok(Ok(Some(created))) if created.created && created.canceled && created.compact_revision == 0 => {
                Err(failed(StateErrorKind::Denied, &created.cancel_reason))
            }
            Ok(Ok(Some(created))) => Ok(header_revision(created.header.as_ref())),
            Ok(Ok(None)) => Err(failed(StateErrorKind::Unavailable, "the server ended it")),
            Ok(Err(status)) => Err(failed(StateErrorKind::Unavailable, status.message())),
            Err(_) => Err(failed(StateErrorKind::Unavailable, "there was no answer in time")),
        }
    }
}

fn kv(connection: Connection) -> KvClient<Connection> {
    KvClient::new(connection).max_decoding_message_size(ANSWER_BYTES_MAX)
}

fn header_revision(header: Option<&pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// What is left of `keys` after `last`.
fn after(keys: &KeyRange, last: &[u8]) -> KeyRange {
    let next: Bytes = [last, &[0]].concat().into();
    match keys {
        KeyRange::Between(_, end) => KeyRange::Between(next, end.clone()),
        KeyRange::Key(_) | KeyRange::From(_) => KeyRange::From(next),
    }
}

/// One message of the answering stream, as if the call were an ordinary one.
async fn first_answer<R>(stream: Response<Streaming<R>>) -> Result<Response<R>, Status> {
    let answer = stream.into_inner().message().await?;
    answer.map(Response::new).ok_or_else(|| Status::unavailable("the server ended the stream"))
}

fn read_result(response: pb::ResponseOp) -> Option<KeyValue> {
    match response.response {
        Some(pb::response_op::Response::ResponseRange(range)) => {
            range.kvs.into_iter().next().and_then(|kv| convert::key_value(&entry(kv)))
        }
        _ => None,
    }
}

#[async_trait]
impl StateStore for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StateError> {
        let op = RangeOp::new(KeyRange::Key(key.as_bytes().to_vec().into()));
        let what = format!("read `{key}`");
        check_form(&Op::Range(op.clone())).map_err(|error| convert::core_error(&what, &self.location(), error))?;
        let found = self.page(&what, &op).await?.kvs.into_iter().next();
        Ok(found.and_then(|kv| convert::key_value(&entry(kv))))
    }

    async fn range(&self, prefix: &str) -> Result<Snapshot, StateError> {
        let what = format!("read the keys under `{prefix}`");
        for _ in 1..RANGE_ATTEMPTS {
            match self.range_once(&what, prefix).await {
                Err(error) if error.kind == StateErrorKind::Compacted => {}
                result => return result,
            }
        }
        self.range_once(&what, prefix).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, StateError> {
        let what = convert::txn_name(&txn);
        // A transaction that only reads and compares may be repeated.
        let repeat = if txn.then.is_empty() { Repeat::Harmless } else { Repeat::Harmful };
        let op = Op::Txn(convert::txn_op(txn));
        check_form(&op).map_err(|error| convert::core_error(&what, &self.location(), error))?;
        let Op::Txn(txn) = op else { unreachable!("made just above") };
        let request = wire::txn_request(&txn);
        let write = |connection| {
            let request = request.clone();
            async move { kv(connection).txn(request).await }
        };
        let answer = self.endpoints.call(&what, repeat, write).await?;
        let revision = header_revision(answer.header.as_ref());
        let succeeded = answer.succeeded;
        let read = if succeeded { Vec::new() } else { answer.responses.into_iter().map(read_result).collect() };
        Ok(TxnResult { succeeded, revision, read })
    }

    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Watch, StateError> {
        let (requests, mut answers) = self.open_watch(prefix, from_revision).await?;
        let store_revision = self.watch_created(prefix, &mut answers).await.inspect_err(|_| self.endpoints.rotate())?;
        let endpoints = self.endpoints.clone();
        let on_loss = Box::new(move || endpoints.rotate());
        let source = EtcdWatch { answers, _requests: requests, location: self.location(), on_loss };
        Ok(Watch::new(store_revision, source))
    }

    async fn lease_grant(&self, ttl_s: u32) -> Result<LeaseId, StateError> {
        convert::check_ttl(ttl_s)?;
        let request = pb::LeaseGrantRequest { ttl: ttl_s.into(), id: 0 };
        // Done twice it leaves a lease that nobody keeps alive, which ends by itself.
        let grant = |connection| async move { LeaseClient::new(connection).lease_grant(request).await };
        let answer = self.endpoints.call("grant a lease", Repeat::Harmless, grant).await?;
        Ok(LeaseId(answer.id))
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<bool, StateError> {
        let keep = |connection| async move {
            let (requests, receiver) = mpsc::channel(1);
            let first = pb::LeaseKeepAliveRequest { id: lease.0 };
            let stream = tokio_stream::once(first).chain(ReceiverStream::new(receiver));
            let answer = first_answer(LeaseClient::new(connection).lease_keep_alive(stream).await?).await;
            drop(requests);
            answer
        };
        Ok(self.endpoints.call("keep a lease alive", Repeat::Harmless, keep).await?.ttl > 0)
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StateError> {
        let request = pb::LeaseRevokeRequest { id: lease.0 };
        let revoke = |connection| async move { LeaseClient::new(connection).lease_revoke(request).await };
        match self.endpoints.call("revoke a lease", Repeat::Harmless, revoke).await {
            Err(error) if error.kind != StateErrorKind::LeaseNotFound => Err(error),
            _ => Ok(()),
        }
    }

    async fn compact(&self, revision: i64) -> Result<(), StateError> {
        let request = pb::CompactionRequest { revision, physical: false };
        let compact = |connection| async move { kv(connection).compact(request).await };
        match self.endpoints.call("compact the history", Repeat::Harmless, compact).await {
            Err(error) if error.kind != StateErrorKind::Compacted => Err(error),
            _ => Ok(()),
        }
    }

    fn location(&self) -> String {
        self.endpoints.location()
    }
}
