//! Activation records: an interval serves only after its record is durable in the state store.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster_proto::map::{PgMap, keys, parse};
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
    // At most one per PG: a newer record replaces an older one, and does not overtake the one being written.
    let mut waiting: BTreeMap<PgId, ActivationRequest> = BTreeMap::new();
    let mut busy: BTreeSet<PgId> = BTreeSet::new();
    loop {
        while running.len() < CONCURRENT_MAX
            && let Some(pg) = waiting.keys().find(|pg| !busy.contains(*pg)).copied()
            && let Some(request) = waiting.remove(&pg)
        {
            busy.insert(pg);
            running.push(make_durable(id, state, request));
        }
        tokio::select! {
            request = requests.recv() => match request {
                Some(request) => drop(waiting.insert(request.pg, request)),
                None => return,
            },
            Some((pg, command)) = running.next() => {
                busy.remove(&pg);
                commands.send(command).await;
            }
        }
    }
}

async fn make_durable(id: OsdId, state: &dyn StateStore, request: ActivationRequest) -> (PgId, Command) {
    let (pg, epoch) = (request.pg, request.record.epoch);
    let mut pause = PAUSE.0;
    loop {
        match attempt(state, &request).await {
            Ok(Some(ok)) => {
                if !ok {
                    tracing::info!(osd = id.0, %pg, %epoch, "the interval is over before it was activated");
                }
                return (pg, Command::Activated { pg, epoch, ok });
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
    let record = &request.record;
    if present.is_none_or(|map| map.epoch != record.epoch || map.acting != record.acting) {
        return Ok(Some(false));
    }
    let txn = Txn::new()
        .when(Compare::ModRevision { key, revision: entry.mod_revision })
        .put(keys::pg_activation(request.pg), serde_json::to_vec(record).unwrap_or_default());
    Ok(state.txn(txn).await?.succeeded.then_some(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::map::{Activation, Member};
    use cluster_proto::{Epoch, Incarnation, PoolId};
    use cluster_state::EmbeddedStore;

    const PG: PgId = PgId { pool: PoolId(1), index: 7 };

    fn record(epoch: u32) -> Activation {
        let acting = vec![Some(Member { osd: OsdId(1), incarnation: Incarnation(9) })];
        Activation { epoch: Epoch(epoch), acting, complete: vec![OsdId(1)], min_size: 1 }
    }

    async fn put_map(state: &EmbeddedStore, epoch: u32) {
        let (acting, target) = (record(epoch).acting, vec![OsdId(1)]);
        let map = PgMap {
            epoch: Epoch(epoch),
            primary: OsdId(1),
            acting,
            target,
            dead: Vec::new(),
            unfenced: Vec::new(),
            pg_count: None,
        };
        let value = serde_json::to_vec(&map).expect("JSON");
        state.txn(Txn::new().put(keys::pg_map(PG), value)).await.expect("memory");
    }

    #[tokio::test]
    async fn a_record_is_written_for_the_present_interval_only() {
        let state = EmbeddedStore::in_memory();
        let request = |epoch| ActivationRequest { pg: PG, record: record(epoch) };
        let written = || async {
            let entry = state.get(&keys::pg_activation(PG)).await.expect("memory")?;
            Some(serde_json::from_slice::<Activation>(&entry.value).expect("JSON").epoch.0)
        };
        assert_eq!(attempt(&state, &request(1)).await.expect("memory"), Some(false), "there is no map");
        put_map(&state, 2).await;
        for (epoch, ok) in [(1, false), (3, false), (2, true), (2, true)] {
            assert_eq!(attempt(&state, &request(epoch)).await.expect("memory"), Some(ok), "epoch {epoch}");
        }
        assert_eq!(written().await, Some(2));
        let other = ActivationRequest { pg: PG, record: Activation { acting: Vec::new(), ..record(2) } };
        assert_eq!(attempt(&state, &other).await.expect("memory"), Some(false), "other members");
        put_map(&state, 3).await;
        assert_eq!(attempt(&state, &request(2)).await.expect("memory"), Some(false));
        assert_eq!(written().await, Some(2));
    }
}
