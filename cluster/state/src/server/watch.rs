//! Service Watch: any number of watches on one stream.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Service, store_status, wire};
use crate::core::{CoreError, Events, KeyRange};
use crate::limits::WATCHES_PER_STREAM_MAX;
use crate::pb;
use crate::pb::watch_create_request::FilterType;
use crate::pb::watch_request::RequestUnion;
use crate::pb::watch_server::Watch;

/// Answers of one stream that may wait for a slow client; then its watches wait, and end as compacted at the worst.
const ANSWERS_WAITING_MAX: usize = 16;
/// How often a quiet watch that asked for it learns the store's revision. etcd's interval.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
/// Watch id in an answer that concerns the whole stream.
const ALL_WATCHES: i64 = -1;

type Answers = mpsc::Sender<Result<pb::WatchResponse, Status>>;

#[tonic::async_trait]
impl Watch for Service {
    type WatchStream = ReceiverStream<Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (answers, stream) = mpsc::channel(ANSWERS_WAITING_MAX);
        let revision = self.store.revision();
        let mut stopped = self.stopped.clone();
        let last = answers.clone();
        let watches = Watches { service: self.clone(), answers, revision, watchers: BTreeMap::new(), last_id: 0 };
        tokio::spawn(async move {
            let status = tokio::select! {
                status = watches.run(request.into_inner()) => status,
                () = super::until_stopped(&mut stopped) => Some(Status::unavailable("etcdserver: server stopped")),
            };
            if let Some(status) = status {
                // Without room the client does not listen, and without a receiver it has left.
                let _ = last.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

struct Watcher {
    keys: KeyRange,
    next: i64,
    puts: bool,
    deletes: bool,
    prev_kv: bool,
    progress: bool,
}

/// All watches of one stream. The store tells when there is a new revision; each watch then asks for what it has not
/// yet told. The client is gone when its answers can no longer be sent, or its requests end.
struct Watches {
    service: Service,
    answers: Answers,
    revision: watch::Receiver<i64>,
    watchers: BTreeMap<i64, Watcher>,
    last_id: i64,
}

impl Watches {
    /// Serves the stream to its end; returns the status to end it with, if the client is still there.
    async fn run(mut self, mut requests: Streaming<pb::WatchRequest>) -> Option<Status> {
        let mut progress = interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        loop {
            let done = tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(pb::WatchRequest { request_union: Some(request) })) => self.handle_request(request).await,
                    Ok(Some(_)) => Ok(()),
                    Ok(None) | Err(_) => return None,
                },
                changed = self.revision.changed() => match changed {
                    Ok(()) => self.tell_events().await,
                    Err(_) => Err(Status::unavailable("etcdserver: server stopped")),
                },
                _ = progress.tick() => self.tell_progress().await,
            };
            if let Err(status) = done {
                return Some(status);
            }
        }
    }

    async fn handle_request(&mut self, request: RequestUnion) -> Result<(), Status> {
        match request {
            RequestUnion::CreateRequest(create) => self.create(create).await,
            RequestUnion::CancelRequest(cancel) => self.cancel(cancel.watch_id).await,
            RequestUnion::ProgressRequest(_) => {
                self.tell_events().await?;
                self.answer(pb::WatchResponse { watch_id: ALL_WATCHES, ..self.response(ALL_WATCHES) }).await
            }
        }
    }

    fn response(&self, watch_id: i64) -> pb::WatchResponse {
        let header = self.service.header(*self.revision.borrow());
        pb::WatchResponse { header, watch_id, ..pb::WatchResponse::default() }
    }

    async fn answer(&self, response: pb::WatchResponse) -> Result<(), Status> {
        self.answers.send(Ok(response)).await.map_err(|_| Status::cancelled("the client has left"))
    }

    async fn create(&mut self, request: pb::WatchCreateRequest) -> Result<(), Status> {
        if let Err(reason) = self.check_create(&request) {
            let refused = pb::WatchResponse { created: true, canceled: true, ..self.response(ALL_WATCHES) };
            return self.answer(pb::WatchResponse { cancel_reason: reason.into(), ..refused }).await;
        }
        let id = self.choose_id(request.watch_id);
        let filters = |kind: FilterType| request.filters.contains(&(kind as i32));
        let created = pb::WatchResponse { created: true, ..self.response(id) };
        let revision = created.header.map_or(0, |header| header.revision);
        let watcher = Watcher {
            puts: !filters(FilterType::Noput),
            deletes: !filters(FilterType::Nodelete),
            prev_kv: request.prev_kv,
            progress: request.progress_notify,
            next: if request.start_revision > 0 { request.start_revision } else { revision + 1 },
            keys: KeyRange::from_wire(request.key, request.range_end),
        };
        self.watchers.insert(id, watcher);
        self.answer(created).await?;
        self.tell_watch(id).await
    }

    fn check_create(&self, request: &pb::WatchCreateRequest) -> Result<(), &'static str> {
        if self.watchers.len() >= WATCHES_PER_STREAM_MAX {
            return Err("etcdserver: too many watches on this stream");
        }
        if request.watch_id != 0 && self.watchers.contains_key(&request.watch_id) {
            return Err("mvcc: duplicate watch ID provided on the WatchStream");
        }
        if request.key.is_empty() && request.range_end.is_empty() {
            return Err("etcdserver: key is not provided");
        }
        Ok(())
    }

    fn choose_id(&mut self, wanted: i64) -> i64 {
        if wanted != 0 {
            return wanted;
        }
        let id = (self.last_id..).find(|id| !self.watchers.contains_key(id)).unwrap_or(i64::MAX);
        self.last_id = id + 1;
        id
    }

    async fn cancel(&mut self, id: i64) -> Result<(), Status> {
        if self.watchers.remove(&id).is_none() {
            return Ok(());
        }
        self.answer(pb::WatchResponse { canceled: true, ..self.response(id) }).await
    }

    async fn tell_events(&mut self) -> Result<(), Status> {
        let ids: Vec<i64> = self.watchers.keys().copied().collect();
        for id in ids {
            self.tell_watch(id).await?;
        }
        Ok(())
    }

    /// Tells one watch everything up to the present.
    async fn tell_watch(&mut self, id: i64) -> Result<(), Status> {
        loop {
            let newest = *self.revision.borrow();
            let Some(watcher) = self.watchers.get(&id) else { return Ok(()) };
            let (next, keys) = (watcher.next, watcher.keys.clone());
            if next > newest {
                return Ok(());
            }
            let found = self.service.store.call(move |core| core.events(next, &keys)).await.map_err(store_status)?;
            match found {
                Ok(found) => self.tell_found(id, found).await?,
                Err(CoreError::Compacted(first)) => return self.end_compacted(id, first).await,
                Err(error) => return Err(super::core_status(error)),
            }
        }
    }

    async fn tell_found(&mut self, id: i64, found: Events) -> Result<(), Status> {
        let Some(watcher) = self.watchers.get_mut(&id) else { return Ok(()) };
        watcher.next = found.through + 1;
        let (puts, deletes, prev_kv) = (watcher.puts, watcher.deletes, watcher.prev_kv);
        let wanted = found.events.into_iter().filter(|event| if event.deleted { deletes } else { puts });
        let events: Vec<pb::Event> = wanted.map(|event| wire::event(event, prev_kv)).collect();
        if events.is_empty() {
            return Ok(());
        }
        let header = self.service.header(found.through);
        self.answer(pb::WatchResponse { header, watch_id: id, events, ..pb::WatchResponse::default() }).await
    }

    async fn end_compacted(&mut self, id: i64, first: i64) -> Result<(), Status> {
        self.watchers.remove(&id);
        let cancel_reason = CoreError::Compacted(first).to_string();
        let ended = pb::WatchResponse { canceled: true, compact_revision: first, ..self.response(id) };
        self.answer(pb::WatchResponse { cancel_reason, ..ended }).await
    }

    async fn tell_progress(&mut self) -> Result<(), Status> {
        self.tell_events().await?;
        let ids = self.watchers.iter().filter(|(_, watcher)| watcher.progress).map(|(&id, _)| id);
        for id in ids.collect::<Vec<_>>() {
            self.answer(self.response(id)).await?;
        }
        Ok(())
    }
}
