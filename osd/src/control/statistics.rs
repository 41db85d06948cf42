//! The OSD's statistics key, and what it has scrubbed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use cluster_proto::map::{LatencyStats, PgScrub, keys};
use cluster_proto::{OsdId, PgId};
use cluster_state::{StateStore, Txn};
use osd_core::{Latencies, OP_CLASSES};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::live::Live;

/// How often statistics are written, if they changed.
const INTERVAL: Duration = Duration::from_secs(2);

/// Latencies are those of so many intervals.
const LATENCY_INTERVALS: usize = 5;

/// What was counted some intervals ago, oldest first.
#[derive(Default)]
struct Recent(VecDeque<Latencies>);

impl Recent {
    /// Quantiles of what was counted of late.
    fn take(&mut self, now: &Latencies) -> Vec<LatencyStats> {
        let nothing = Latencies::default();
        let before = self.0.front().unwrap_or(&nothing);
        let mut found = Vec::new();
        for ((at, now), (_, before)) in now.places().into_iter().zip(before.places()) {
            for (i, class) in OP_CLASSES.into_iter().enumerate() {
                let late = now[i].since(&before[i]);
                let (p50_us, p99_us) = (late.quantile_us(0.5), late.quantile_us(0.99));
                let (at, op) = (at.to_owned(), class.name().to_owned());
                found.push(LatencyStats { at, op, count: late.count(), p50_us, p99_us });
            }
        }
        found.retain(|stats| stats.count > 0);
        self.0.push_back(now.clone());
        if self.0.len() > LATENCY_INTERVALS {
            self.0.pop_front();
        }
        found
    }
}

/// Writes what was scrubbed to the cluster state, where the next primary, or our next run, finds it. What fails is tried again at the next
/// interval, because it is not seen to be there.
async fn record_scrubs(id: OsdId, state: &dyn StateStore, scrubs: &[(PgId, PgScrub)]) {
    for (pg, done) in scrubs {
        let value = serde_json::to_vec(done).unwrap_or_default();
        if let Err(error) = state.txn(Txn::new().put(keys::scrubbed(*pg), value)).await {
            return tracing::debug!(osd = id.0, "a scrub is not recorded: {error}");
        }
    }
}

/// Writes statistics for ever.
pub(super) async fn run(id: OsdId, state: &dyn StateStore, live: watch::Receiver<Live>) -> Infallible {
    let mut written = Vec::new();
    let mut recent = Recent::default();
    loop {
        sleep(INTERVAL).await;
        let mut now = live.borrow().clone();
        record_scrubs(id, state, &now.unrecorded_scrubs).await;
        now.stats.latencies = recent.take(&now.latencies);
        let value = now.statistics();
        if value == written {
            continue;
        }
        match state.txn(Txn::new().put(keys::osd_stats(id), value.clone())).await {
            Ok(_) => written = value,
            // Statistics are late then; the mirrors report the outage.
            Err(error) => tracing::debug!(osd = id.0, "statistics not written: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_last_intervals() {
        let (mut recent, mut all) = (Recent::default(), Latencies::default());
        all.client[0].add(100);
        let first = recent.take(&all);
        assert_eq!((first.len(), first[0].count, &first[0].at[..], &first[0].op[..]), (1, 1, "client", "read"));
        assert!((100..=125).contains(&first[0].p99_us));
        all.store[1].add(1_000_000);
        let second = recent.take(&all);
        assert_eq!(second.iter().map(|s| (&s.at[..], s.count)).collect::<Vec<_>>(), [("store", 1)]);
        assert!((0..LATENCY_INTERVALS - 1).all(|_| recent.take(&all).len() == 1));
        assert_eq!(recent.take(&all), []);
    }
}
