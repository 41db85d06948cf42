//! Follows the cluster and writes what the plan says.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use cluster_proto::map::{ClusterMap, keys};
use cluster_state::{Change, Compare, Mirror, StateError, StateStore, Txn, watch_forever};
use mon_core::{PgChange, Plan, Problem, plan};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::leader::Leading;
use crate::view::View;

/// Changes that come together are planned together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Pause after a transaction that failed or whose conditions did not hold.
const RETRY: Duration = Duration::from_millis(200);
/// PGs changed by one transaction. Each has two conditions and at most two changes, and etcd takes 128 of each.
const PGS_PER_TXN: usize = 50;

pub(crate) struct Monitor {
    store: Arc<dyn StateStore>,
    elected: watch::Receiver<Option<Leading>>,
    publish: watch::Sender<Arc<ClusterMap>>,
    view: View,
    mirrors: [Mirror; 3],
    /// When to plan next, if something changed.
    plan_at: Option<Instant>,
    /// Our own last write; nothing is planned from a view that is older.
    written: i64,
    reported: BTreeSet<String>,
}

impl Monitor {
    pub fn new(
        store: Arc<dyn StateStore>,
        elected: watch::Receiver<Option<Leading>>,
        publish: watch::Sender<Arc<ClusterMap>>,
    ) -> Self {
        let mirrors = View::RANGES.map(|range| watch_forever(store.clone(), range));
        Self {
            store,
            elected,
            publish,
            view: View::new(),
            mirrors,
            plan_at: None,
            written: 0,
            reported: BTreeSet::new(),
        }
    }

    /// Follows and plans for ever.
    pub async fn run(mut self) -> Infallible {
        loop {
            let plan_at = self.plan_at;
            let [configs, osds, pgs] = &mut self.mirrors;
            let (range, event) = tokio::select! {
                event = configs.next() => (keys::CONFIG, event),
                event = osds.next() => (keys::OSDS, event),
                event = pgs.next() => (keys::PGS, event),
                Ok(()) = self.elected.changed() => {
                    self.plan_within(DEBOUNCE);
                    continue;
                }
                () = sleep_until(plan_at.unwrap_or_else(Instant::now)), if plan_at.is_some() => {
                    self.plan_at = None;
                    self.plan().await;
                    continue;
                }
            };
            self.view.handle_event(range, event);
            if self.view.is_complete() {
                self.publish.send_replace(Arc::new(self.view.map().clone()));
                self.plan_within(DEBOUNCE);
            }
        }
    }

    fn plan_within(&mut self, delay: Duration) {
        self.plan_at.get_or_insert_with(|| Instant::now() + delay);
    }

    async fn plan(&mut self) {
        let Some(leading) = *self.elected.borrow() else { return };
        // An own write that the view does not show yet comes with an event, and that leads here again.
        if !self.view.is_complete() || self.view.range_revision(keys::PGS) < self.written {
            return;
        }
        let plan = plan(self.view.map());
        self.report(&plan.problems);
        if plan.changes.is_empty() {
            return;
        }
        match self.apply(leading, &plan).await {
            Ok(true) => tracing::info!("{}", summary(&plan)),
            Ok(false) => self.plan_within(RETRY),
            Err(error) => {
                tracing::warn!("PG maps could not be written, trying again: {error}");
                self.plan_within(RETRY);
            }
        }
    }

    /// Logs problems when they appear and when they are gone.
    fn report(&mut self, problems: &[Problem]) {
        let present: BTreeSet<_> = problems.iter().map(Problem::to_string).collect();
        for gone in self.reported.difference(&present) {
            tracing::info!("no longer: {gone}");
        }
        for new in present.difference(&self.reported) {
            tracing::warn!("{new}");
        }
        self.reported = present;
    }

    /// Writes the changes. False if something had changed meanwhile, or we do not lead any more.
    async fn apply(&mut self, leading: Leading, plan: &Plan) -> Result<bool, StateError> {
        for changes in plan.changes.chunks(PGS_PER_TXN) {
            let result = self.store.txn(self.transaction(leading, changes)).await?;
            if !result.succeeded {
                return Ok(false);
            }
            self.written = result.revision;
        }
        Ok(true)
    }

    fn transaction(&self, leading: Leading, changes: &[PgChange]) -> Txn {
        let unchanged = |key: String| Compare::ModRevision { revision: self.view.revision(&key), key };
        let conditions = changes.iter().flat_map(PgChange::unchanged).map(unchanged);
        let writes = changes.iter().flat_map(PgChange::writes).map(|(key, value)| match value {
            Some(value) => Change::Put { key, value, lease: None },
            None => Change::Delete { key },
        });
        Txn {
            when: std::iter::once(leading.condition()).chain(conditions).collect(),
            then: writes.collect(),
            or_read: Vec::new(),
        }
    }
}

fn summary(plan: &Plan) -> String {
    let created = plan.changes.iter().filter(|change| change.map.epoch.0 == 1).count();
    let renewed = plan.changes.len() - created;
    match (created, renewed) {
        (created, 0) => format!("created {created} PGs"),
        (0, renewed) => format!("{renewed} PGs begin a new interval"),
        (created, renewed) => format!("created {created} PGs, {renewed} PGs begin a new interval"),
    }
}
