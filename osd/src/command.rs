//! What the control plane tells the shard, and how it gets there.

use cluster_io::Waker;
use cluster_proto::link::Millis;
use cluster_proto::{Epoch, PgId};
use tokio::sync::mpsc;

/// One key of the cluster state: its new value, or `None` if it was deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MapEvent {
    pub key: String,
    pub value: Option<Vec<u8>>,
}

/// What the control plane tells the shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    /// Changes of the cluster state, in order.
    Map(Vec<MapEvent>),
    /// An activation record is durable, or was refused.
    Activated { pg: PgId, epoch: Epoch, ok: bool },
    /// Our registration was found in the state store, by a question asked at this time on the process's clock.
    Registered { asked: Millis },
    /// It was not: somebody withdrew it, or its lease had ended.
    Unregistered,
}

/// The control plane's way to the shard.
#[derive(Clone)]
pub(crate) struct CommandSender {
    sender: mpsc::Sender<Command>,
    waker: Waker,
}

impl CommandSender {
    pub fn new(sender: mpsc::Sender<Command>, waker: Waker) -> Self {
        Self { sender, waker }
    }

    /// Hands a command over, and waits while the shard has enough of them. Nothing happens if it has ended.
    pub async fn send(&self, command: Command) {
        if self.sender.send(command).await.is_ok() {
            self.waker.wake();
        }
    }
}
