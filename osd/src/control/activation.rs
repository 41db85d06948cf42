//! Activation records: an interval serves only after its record is durable in the state store.

use std::collections::BTreeMap;
use std::time::Duration;

use cluster_proto::map::{Activation, PgMap, keys, parse};
use cluster_proto::{OsdId, PgId};
use cluster_state::{Compare, StateError, StateStore, Txn};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::activations::ActivationRequest;
use crate::command::{Command, CommandSender};

/// Records being written at once.
const CONCURRENT_MAX: usize = 64;
/// Shortest and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Makes records durable until the shard ends. Waits out outages of the store.
pub(super) async fn run(
    id: OsdId,
    state: &dyn StateStore,
    mut requests: mpsc::Receiver<ActivationRequest>,
    commands: &CommandSender,
) {
    let mut running = FuturesUnordered::new();
    // At most one per PG: a newer interval replaces an older one.
    let mut waiting: BTreeMap<PgId, ActivationRequest> = BTreeMap::new();
    loop {
        while running.len() < CONCURRENT_MAX
            && let Some((_, request)) = waiting.pop_first()
        {
            running.push(make_durable(id, state, request));
        }
        tokio::select! {
            request = requests.recv() => match request {
                Some(request) => drop(waiting.insert(request.pg, request)),
                None => return,
            },
            Some(command) = running.next() => commands.send(command).await,
        }
    }
}

async fn make_durable(id: OsdId, state: &dyn StateStore, request: ActivationRequest) -> Command {
    let (pg, epoch) = (request.pg, request.epoch);
    let mut pause = PAUSE.0;
    loop {
        match attempt(state, &request).await {
            Ok(Some(ok)) => {
                if !ok {
                    tracing::info!(osd = id.0, %pg, %epoch, "the interval is over before it was activated");
                }
                return Command::Activated { pg, epoch, ok };
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(osd = id.0, %pg, %epoch, "the activation has to wait: {error}");
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

/// Writes the record if the PG's map still has this interval. `None`: the map was changed meanwhile, look again.
async fn attempt(state: &dyn StateStore, request: &ActivationRequest) -> Result<Option<bool>, StateError> {
    let key = keys::pg_map(request.pg);
    let Some(entry) = state.get(&key).await? else { return Ok(Some(false)) };
    let present = parse::<PgMap>(&key, &entry.value).ok();
    if present.is_none_or(|map| map.epoch != request.epoch || map.acting != request.acting) {
        return Ok(Some(false));
    }
    let record = Activation { epoch: request.epoch, acting: request.acting.clone() };
    let txn = Txn::new()
        .when(Compare::ModRevision { key, revision: entry.mod_revision })
        .put(keys::pg_activation(request.pg), serde_json::to_vec(&record).unwrap_or_default());
    Ok(state.txn(txn).await?.succeeded.then_some(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::map::Member;
    use cluster_proto::{Epoch, Incarnation, PoolId};
    use cluster_state::EmbeddedStore;

    const PG: PgId = PgId { pool: PoolId(1), index: 7 };

    fn members() -> Vec<Member> {
        vec![Member { osd: OsdId(1), incarnation: Incarnation(9) }]
    }

    async fn put_map(state: &EmbeddedStore, epoch: u32) {
        let map = PgMap { epoch: Epoch(epoch), acting: members(), target: vec![OsdId(1)] };
        let value = serde_json::to_vec(&map).expect("JSON");
        state.txn(Txn::new().put(keys::pg_map(PG), value)).await.expect("memory");
    }

    #[tokio::test]
    async fn a_record_is_written_for_the_present_interval_only() {
        let state = EmbeddedStore::in_memory();
        let request = |epoch| ActivationRequest { pg: PG, epoch: Epoch(epoch), acting: members() };
        let record = || async {
            let entry = state.get(&keys::pg_activation(PG)).await.expect("memory")?;
            Some(serde_json::from_slice::<Activation>(&entry.value).expect("JSON").epoch.0)
        };
        assert_eq!(attempt(&state, &request(1)).await.expect("memory"), Some(false), "there is no map");
        put_map(&state, 2).await;
        for (epoch, ok) in [(1, false), (3, false), (2, true), (2, true)] {
            assert_eq!(attempt(&state, &request(epoch)).await.expect("memory"), Some(ok), "epoch {epoch}");
        }
        assert_eq!(record().await, Some(2));
        let other = ActivationRequest { acting: Vec::new(), ..request(2) };
        assert_eq!(attempt(&state, &other).await.expect("memory"), Some(false), "other members");
        put_map(&state, 3).await;
        assert_eq!(attempt(&state, &request(2)).await.expect("memory"), Some(false));
        assert_eq!(record().await, Some(2));
    }
}
