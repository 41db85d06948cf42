//! A watch on etcd: one stream with one watch.

use async_trait::async_trait;
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::convert;
use crate::core::{Entry, Event};
use crate::error::{StateError, WatchError};
use crate::pb;
use crate::store::{WatchBatch, WatchSource};

/// Called when the watch breaks, so that the next one tries another endpoint.
type OnLoss = Box<dyn Fn() + Send + Sync>;

pub(super) struct EtcdWatch {
    pub(super) answers: Streaming<pb::WatchResponse>,
    /// The server ends the watch when the requests end.
    pub(super) _requests: mpsc::Sender<pb::WatchRequest>,
    pub(super) location: String,
    pub(super) on_loss: OnLoss,
}

impl EtcdWatch {
    fn lost(&self, why: &str) -> WatchError {
        (self.on_loss)();
        StateError::unavailable(format!("the watch on the state store {} broke: {why}", self.location)).into()
    }
}

#[async_trait]
impl WatchSource for EtcdWatch {
    async fn next(&mut self) -> Result<WatchBatch, WatchError> {
        loop {
            let answer = match self.answers.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(self.lost("the server ended it")),
                Err(status) => return Err(self.lost(status.message())),
            };
            if answer.compact_revision > 0 {
                return Err(WatchError::Compacted { first_available: answer.compact_revision });
            }
            if answer.canceled {
                return Err(self.lost(&answer.cancel_reason));
            }
            if let Some(batch) = batch(answer) {
                return Ok(batch);
            }
        }
    }
}

/// The batch in an answer; `None` if it only tells that the watch is alive.
fn batch(answer: pb::WatchResponse) -> Option<WatchBatch> {
    let revision = answer.events.last()?.kv.as_ref()?.mod_revision;
    let events: Vec<_> = answer.events.into_iter().filter_map(event).collect();
    (!events.is_empty()).then_some(WatchBatch { revision, events })
}

fn event(event: pb::Event) -> Option<crate::WatchEvent> {
    let deleted = event.r#type == pb::event::EventType::Delete as i32;
    convert::watch_event(&Event { deleted, entry: entry(event.kv?), prev: None })
}

pub(super) fn entry(kv: pb::KeyValue) -> Entry {
    Entry {
        key: kv.key,
        value: kv.value,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}
