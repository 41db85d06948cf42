//! Activation records on their way from the shard to the control plane. The shard must not wait, so what the channel
//! does not take stays here: at most one request per PG, since a newer interval replaces an older one.

use std::collections::BTreeMap;

use cluster_proto::PgId;
use cluster_proto::map::Activation;
use tokio::sync::mpsc;

/// A record that the core wants to be durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ActivationRequest {
    pub pg: PgId,
    pub record: Activation,
}

/// The shard's end of the way.
pub(crate) struct Activations {
    unsent: BTreeMap<PgId, ActivationRequest>,
    sender: mpsc::Sender<ActivationRequest>,
}

impl Activations {
    pub fn new(sender: mpsc::Sender<ActivationRequest>) -> Self {
        Self { unsent: BTreeMap::new(), sender }
    }

    pub fn push(&mut self, request: ActivationRequest) {
        self.unsent.insert(request.pg, request);
    }

    /// Hands over as many as the channel takes.
    pub fn flush(&mut self) {
        while let Some((pg, request)) = self.unsent.pop_first() {
            if let Err(mpsc::error::TrySendError::Full(request)) = self.sender.try_send(request) {
                self.unsent.insert(pg, request);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::{Epoch, PoolId};

    #[test]
    fn a_full_channel_keeps_the_newest_request_of_each_pg() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut activations = Activations::new(sender);
        let request = |index, epoch| ActivationRequest {
            pg: PgId { pool: PoolId(1), index },
            record: Activation { epoch: Epoch(epoch), acting: Vec::new(), complete: Vec::new(), min_size: 1 },
        };
        for (index, epoch) in [(0, 1), (1, 1), (1, 2), (2, 1)] {
            activations.push(request(index, epoch));
            activations.flush();
        }
        let mut got = Vec::new();
        while let Ok(request) = receiver.try_recv() {
            got.push((request.pg.index, request.record.epoch.0));
            activations.flush();
        }
        assert_eq!(got, [(0, 1), (1, 2), (2, 1)]);
    }
}
