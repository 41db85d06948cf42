//! Follows the cluster, finds out who runs, and writes what the plan says.
//!
//! Everything is looked at by all monitors, so that metrics are right everywhere; who leads also probes, withdraws the
//! registrations of OSDs that are gone, and writes plans.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use cluster_proto::OsdId;
use cluster_proto::auth::Credentials;
use cluster_proto::map::{ClusterMap, Member, keys};
use cluster_state::{Change, Compare, Mirror, StateError, StateStore, Txn, watch_forever};
use mon_core::liveness::{Liveness, Millis, Probe};
use mon_core::{PgChange, Plan, Problem, Running, plan, usable};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::absence::Absence;
use crate::leader::Leading;
use crate::probe::probe;
use crate::view::View;

/// Changes that come together are planned together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Pause after a transaction that failed or whose conditions did not hold.
const RETRY: Duration = Duration::from_millis(200);
/// Conditions, and changes, of one transaction: etcd takes 128 of each.
const OPS_PER_TXN: usize = 120;
/// What a monitor follows.
const RANGES: [&str; 4] = [keys::CONFIG, keys::OSDS, keys::PGS, keys::SUSPICIONS];

pub(crate) struct Monitor {
    store: Arc<dyn StateStore>,
    credentials: Option<Credentials>,
    elected: watch::Receiver<Option<Leading>>,
    publish: watch::Sender<Arc<ClusterMap>>,
    view: View,
    mirrors: [Mirror; 4],
    begin: Instant,
    liveness: Liveness,
    absence: Absence,
    probes: JoinSet<(Member, Probe)>,
    /// Registrations to delete.
    withdrawn: BTreeSet<Member>,
    /// When to look next.
    look_at: Option<Instant>,
    /// The map has changed since it was planned for.
    is_changed: bool,
    /// Who was planned for: who serves, and who may have data.
    planned: Option<(Running, BTreeSet<OsdId>)>,
    /// Our own last write; nothing is planned from a view that is older.
    written: i64,
    reported: BTreeSet<String>,
}

impl Monitor {
    pub fn new(
        store: Arc<dyn StateStore>,
        credentials: Option<Credentials>,
        elected: watch::Receiver<Option<Leading>>,
        publish: watch::Sender<Arc<ClusterMap>>,
    ) -> Self {
        let mirrors = RANGES.map(|range| watch_forever(store.clone(), range));
        Self {
            store,
            credentials,
            elected,
            publish,
            view: View::new(),
            mirrors,
            begin: Instant::now(),
            liveness: Liveness::default(),
            absence: Absence::default(),
            probes: JoinSet::new(),
            withdrawn: BTreeSet::new(),
            look_at: None,
            is_changed: true,
            planned: None,
            written: 0,
            reported: BTreeSet::new(),
        }
    }

    /// Follows and plans for ever.
    pub async fn run(mut self) -> Infallible {
        loop {
            let look_at = self.look_at;
            let [configs, osds, pgs, suspicions] = &mut self.mirrors;
            let (range, event) = tokio::select! {
                event = configs.next() => (keys::CONFIG, event),
                event = osds.next() => (keys::OSDS, event),
                event = pgs.next() => (keys::PGS, event),
                event = suspicions.next() => (keys::SUSPICIONS, event),
                Some(found) = self.probes.join_next() => {
                    if let Ok((run, found)) = found {
                        self.handle_probe(run, found).await;
                    }
                    continue;
                }
                Ok(()) = self.elected.changed() => {
                    self.enter_role();
                    continue;
                }
                () = sleep_until(look_at.unwrap_or_else(Instant::now)), if look_at.is_some() => {
                    self.look_at = None;
                    self.look().await;
                    continue;
                }
            };
            self.view.handle_event(range, event);
            self.is_changed = true;
            if self.view.is_complete() {
                self.publish.send_replace(Arc::new(self.view.map().clone()));
                self.look_within(DEBOUNCE);
            }
        }
    }

    /// Somebody else leads, or we do now: nothing is known but what is in the store.
    fn enter_role(&mut self) {
        self.liveness = Liveness::default();
        self.absence = Absence::default();
        self.probes = JoinSet::new();
        self.withdrawn.clear();
        self.planned = None;
        self.look_within(DEBOUNCE);
    }

    fn look_within(&mut self, delay: Duration) {
        let at = Instant::now() + delay;
        self.look_at = Some(self.look_at.map_or(at, |present| present.min(at)));
    }

    fn now(&self) -> Millis {
        self.begin.elapsed().as_millis() as Millis
    }

    async fn handle_probe(&mut self, run: Member, found: Probe) {
        tracing::debug!(osd = run.osd.0, incarnation = run.incarnation.0, ?found, "probed");
        self.liveness.handle_probe(self.now(), run, found);
        self.look().await;
    }

    /// Finds out who runs, and plans if anything is new.
    async fn look(&mut self) {
        let Some(leading) = *self.elected.borrow() else { return };
        if !self.view.is_complete() {
            return;
        }
        let now = self.now();
        self.liveness.handle_map(now, self.view.map());
        self.send_probes(now);
        let is_withdrawn = self.withdraw(leading).await;
        let running = self.liveness.running(self.view.map());
        let out = self.absence.out(now, self.view.map(), &running);
        let wakes = [self.liveness.poll_timeout(now), self.absence.timeout(now)];
        if let Some(wake) = wakes.into_iter().flatten().min() {
            self.look_within(Duration::from_millis(wake.saturating_sub(now)));
        }
        // Who may still find its registration may still serve.
        if is_withdrawn {
            self.plan(leading, running, &out).await;
        }
    }

    fn send_probes(&mut self, now: Millis) {
        let Some(cluster) = self.view.map().cluster.as_ref().map(|info| info.id) else { return };
        for (run, address) in self.liveness.poll(now) {
            let credentials = self.credentials.clone();
            self.probes.spawn(async move { (run, probe(cluster, credentials, run.osd, address).await) });
        }
    }

    /// Deletes the registrations of runs that are over. False if one may still be there.
    async fn withdraw(&mut self, leading: Leading) -> bool {
        self.withdrawn.extend(self.liveness.poll_withdrawn());
        for run in std::mem::take(&mut self.withdrawn) {
            let is_present = |state: &cluster_proto::map::OsdState| state.incarnation == run.incarnation;
            if !self.view.map().osds.get(&run.osd).is_some_and(is_present) {
                continue;
            }
            let key = keys::osd(run.osd);
            let revision = self.view.revision(&key);
            let txn = Txn::new()
                .when(leading.condition())
                .when(Compare::ModRevision { key: key.clone(), revision })
                .delete(key);
            match self.store.txn(txn).await {
                Ok(result) if result.succeeded => tracing::warn!(osd = run.osd.0, "OSD {} is down", run.osd),
                // Renewed or deleted meanwhile: the view will tell.
                Ok(_) => drop(self.withdrawn.insert(run)),
                Err(error) => {
                    tracing::warn!(osd = run.osd.0, "the registration of an OSD that is down stays for now: {error}");
                    self.withdrawn.insert(run);
                }
            }
        }
        if !self.withdrawn.is_empty() {
            self.look_within(RETRY);
        }
        self.withdrawn.is_empty()
    }

    async fn plan(&mut self, leading: Leading, running: Running, out: &BTreeSet<OsdId>) {
        // An own write that the view does not show yet comes with an event, and that leads here again.
        if self.view.range_revision(keys::PGS) < self.written {
            return;
        }
        let inputs = (running, usable(self.view.map(), out));
        if !self.is_changed && self.planned.as_ref() == Some(&inputs) {
            return;
        }
        let plan = plan(self.view.map(), &inputs.0, &inputs.1);
        self.report(&plan.problems);
        let done = match plan.changes.is_empty() {
            true => Ok(true),
            false => self.apply(leading, &plan).await,
        };
        match done {
            Ok(true) => {
                self.is_changed = false;
                self.planned = Some(inputs);
                if !plan.changes.is_empty() {
                    tracing::info!("{}", summary(&plan));
                }
            }
            Ok(false) => self.look_within(RETRY),
            Err(error) => {
                tracing::warn!("PG maps could not be written, trying again: {error}");
                self.look_within(RETRY);
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
        let mut rest = &plan.changes[..];
        while !rest.is_empty() {
            let (txn, taken) = self.transaction(leading, rest);
            let result = self.store.txn(txn).await?;
            if !result.succeeded {
                return Ok(false);
            }
            self.written = result.revision;
            rest = &rest[taken..];
        }
        Ok(true)
    }

    /// A transaction that makes as many of the changes as fit, and how many these are.
    fn transaction(&self, leading: Leading, changes: &[PgChange]) -> (Txn, usize) {
        let (mut unchanged, mut writes, mut taken) = (BTreeSet::new(), Vec::new(), 0);
        for change in changes {
            let together: BTreeSet<String> = unchanged.iter().cloned().chain(change.unchanged()).collect();
            let more = change.writes();
            let fits = together.len() < OPS_PER_TXN && writes.len() + more.len() <= OPS_PER_TXN;
            if taken > 0 && !fits {
                break;
            }
            unchanged = together;
            writes.extend(more);
            taken += 1;
        }
        let condition = |key: String| Compare::ModRevision { revision: self.view.revision(&key), key };
        let writes = writes.into_iter().map(|(key, value)| match value {
            Some(value) => Change::Put { key, value, lease: None },
            None => Change::Delete { key },
        });
        let when = std::iter::once(leading.condition()).chain(unchanged.into_iter().map(condition)).collect();
        (Txn { when, then: writes.collect(), or_read: Vec::new() }, taken)
    }
}

fn summary(plan: &Plan) -> String {
    let created = plan.changes.iter().filter(|change| change.map.epoch.0 == 1).count();
    let split = plan.changes.iter().filter(|change| !change.parts().is_empty()).count();
    let merging = plan.changes.iter().filter(|change| !change.merged().is_empty());
    let (whole, merged) = merging.fold((0, 0), |(whole, all), change| (whole + 1, all + 1 + change.merged().len()));
    let renewed = plan.changes.len() - created - split - whole;
    let what = [
        (created, format!("created {created} PGs")),
        (split, format!("{split} PGs are split")),
        (whole, format!("{merged} PGs become {whole}")),
        (renewed, format!("{renewed} PGs begin a new interval")),
    ];
    let what: Vec<String> = what.into_iter().filter(|(count, _)| *count > 0).map(|(_, text)| text).collect();
    what.join(", ")
}
