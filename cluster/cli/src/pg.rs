//! `blockyard pg`.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use cluster_proto::map::{
    Activation, ClusterMap, Interval, OsdStats, PgMap, PgScrub, Scheme, ScrubRequest, keys, parse,
};
use cluster_proto::{OsdId, PgId};
use cluster_state::Txn;
use mon_core::health::{PgState, pg_state};
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};

use crate::args::PgCommand;
use crate::error::CliError;
use crate::osd::statistics;
use crate::output::{Output, table};
use crate::session::Session;

/// A placement group as shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct PgView {
    #[serde(serialize_with = "as_text")]
    pg: PgId,
    pool: String,
    state: PgState,
    epoch: u32,
    primary: Option<OsdId>,
    /// By shard; `null` where nobody serves.
    acting: Vec<Option<OsdId>>,
    target: Vec<OsdId>,
}

fn as_text<S: Serializer>(pg: &PgId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(pg)
}

/// The state as JSON and people see it.
fn name_of(state: PgState) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(name)) => name,
        _ => format!("{state:?}").to_lowercase(),
    }
}

fn list(osds: impl IntoIterator<Item = Option<OsdId>>) -> String {
    let name = |osd: Option<OsdId>| osd.map_or_else(|| "-".to_owned(), |osd| osd.to_string());
    osds.into_iter().map(name).collect::<Vec<_>>().join(" ")
}

fn whole(osds: &[OsdId]) -> impl Iterator<Item = Option<OsdId>> {
    osds.iter().copied().map(Some)
}

impl PgView {
    fn new(map: &ClusterMap, pg: PgId, present: &PgMap) -> Self {
        Self {
            pg,
            pool: map.pools.get(&pg.pool).map(|pool| pool.name.clone()).unwrap_or_default(),
            state: pg_state(map, pg, present),
            epoch: present.epoch.0,
            primary: present.primary().map(|member| member.osd),
            acting: present.acting.iter().map(|member| member.map(|member| member.osd)).collect(),
            target: present.target.clone(),
        }
    }

    fn row(&self) -> [String; 6] {
        let mut now: Vec<_> = self.acting.iter().flatten().copied().collect();
        let mut then = self.target.clone();
        now.sort_unstable();
        then.sort_unstable();
        let target = if now == then { String::new() } else { list(whole(&self.target)) };
        [
            self.pg.to_string(),
            self.pool.clone(),
            name_of(self.state),
            self.epoch.to_string(),
            list(self.acting.iter().copied()),
            target,
        ]
    }
}

/// Runs a command.
pub async fn run(session: &Session, command: PgCommand, out: Output) -> Result<(), CliError> {
    let map = session.map().await?;
    match command {
        PgCommand::Ls { pool, osd, state } => ls(&map, pool.as_deref(), osd, state.as_deref(), out),
        PgCommand::Describe { pg } => describe(session, &map, pg, out).await,
        PgCommand::Scrub { pg, deep } => scrub(session, &map, pg, Wanted { deep, parity_from_data: false }, out).await,
        PgCommand::Repair { pg, parity_from_data } => {
            scrub(session, &map, pg, Wanted { deep: true, parity_from_data }, out).await
        }
    }
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How long ago something was, in the unit that says it best.
fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

fn scrub_text(scrubbed: Option<&PgScrub>, request: Option<ScrubRequest>) -> String {
    let now = seconds_since_1970();
    let when = |last: Option<u64>| last.map_or_else(|| "never".into(), |last| ago(now.saturating_sub(last)));
    let done = scrubbed.copied().unwrap_or_default();
    let mut text = format!("{}, deep {}", when(done.light), when(done.deep));
    if done.light.is_some() {
        let parity = (done.parity > 0).then(|| format!(" ({} of them rows of wrong parity)", done.parity));
        text +=
            &format!(": {} errors found{}, {} not repaired", done.errors, parity.unwrap_or_default(), done.unrepaired);
    }
    if let Some(request) = request.filter(|request| done.served != Some(request.requested)) {
        text += if request.deep { "; a deep one is asked for" } else { "; one is asked for" };
    }
    text
}

fn require(map: &ClusterMap, pg: PgId) -> Result<&PgMap, CliError> {
    let wrong = || CliError::not_found(format!("there is no placement group {pg}: 'blockyard pg ls' lists them"));
    map.pgs.get(&pg).ok_or_else(wrong)
}

/// What was asked for.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Asked {
    #[serde(serialize_with = "as_text")]
    pg: PgId,
    #[serde(flatten)]
    request: ScrubRequest,
}

/// What a scrub is to do.
struct Wanted {
    deep: bool,
    parity_from_data: bool,
}

/// Asks the placement group's primary for a scrub.
async fn scrub(session: &Session, map: &ClusterMap, pg: PgId, wanted: Wanted, out: Output) -> Result<(), CliError> {
    let Wanted { deep, parity_from_data } = wanted;
    require(map, pg)?;
    let pool = map.pools.get(&pg.pool);
    if parity_from_data && !pool.is_some_and(|pool| matches!(pool.scheme, Scheme::Ec { .. })) {
        return Err(CliError::usage(format!("placement group {pg} is of a replicated pool, which has no parity")));
    }
    let now = seconds_since_1970();
    let key = keys::scrub(pg);
    // Two requests within a second are two requests.
    let before: Option<ScrubRequest> = value(session, &key).await?;
    let requested = before.map_or(now, |before| now.max(before.requested + 1));
    let request = ScrubRequest { deep, requested, parity_from_data };
    let value = serde_json::to_vec(&request).map_err(|e| CliError::failed(e.to_string()))?;
    session.store.txn(Txn::new().put(key, value)).await?;
    out.show(&Asked { pg, request }, |_| {
        let kind = if deep { "deep" } else { "light" };
        format!("asked for a {kind} scrub of placement group {pg}: 'blockyard pg describe {pg}' tells what it found")
    })
}

fn ls(
    map: &ClusterMap,
    pool: Option<&str>,
    osd: Option<OsdId>,
    state: Option<&str>,
    out: Output,
) -> Result<(), CliError> {
    if let Some(pool) = pool.filter(|pool| map.pool_by_name(pool).is_none()) {
        return Err(CliError::not_found(format!("there is no pool {pool:?}: 'blockyard pool ls' lists them")));
    }
    let all = map.pgs.iter().map(|(pg, present)| PgView::new(map, *pg, present));
    let views: Vec<_> = all
        .filter(|view| pool.is_none_or(|pool| view.pool == pool))
        .filter(|view| osd.is_none_or(|osd| view.acting.contains(&Some(osd)) || view.target.contains(&osd)))
        .filter(|view| state.is_none_or(|state| name_of(view.state) == state))
        .collect();
    out.show(&views, |views| {
        table([">PG", "POOL", "STATE", ">EPOCH", "ACTING", "TO BE"], views.iter().map(PgView::row))
    })
}

/// Everything about a placement group.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Description<'a> {
    #[serde(flatten)]
    view: PgView,
    map: &'a PgMap,
    activation: Option<&'a Activation>,
    history: &'a [Interval],
    /// What was scrubbed last; `null` if it never was.
    scrubbed: Option<PgScrub>,
    /// The scrub that was asked for last; served when `scrubbed` has its time in `served`.
    scrub_request: Option<ScrubRequest>,
    members: BTreeMap<OsdId, MemberView>,
}

/// An OSD that has to do with it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct MemberView {
    /// It runs.
    up: bool,
    /// It runs in the run that the map names; `None` if the map does not name it.
    same_run: Option<bool>,
    address: Option<String>,
    used_bytes: Option<u64>,
    crc_errors: Option<u64>,
}

impl MemberView {
    fn new(map: &ClusterMap, stats: &BTreeMap<OsdId, OsdStats>, present: &PgMap, osd: OsdId) -> Self {
        let state = map.osds.get(&osd);
        let member = present.members().map(|(_, member)| member).find(|member| member.osd == osd);
        let stats = stats.get(&osd);
        Self {
            up: state.is_some(),
            same_run: member.map(|member| state.is_some_and(|state| state.incarnation == member.incarnation)),
            address: state.map(|state| state.address.to_string()),
            used_bytes: stats.map(|stats| stats.space.used),
            crc_errors: stats.map(|stats| stats.crc_errors),
        }
    }

    fn text(&self) -> String {
        match (self.up, self.same_run) {
            (false, _) => "down".into(),
            (true, Some(false)) => format!("restarted, {}", self.address.as_deref().unwrap_or_default()),
            (true, _) => format!("up, {}", self.address.as_deref().unwrap_or_default()),
        }
    }
}

/// A value of the state, if it is there and can be understood.
async fn value<T: DeserializeOwned>(session: &Session, key: &str) -> Result<Option<T>, CliError> {
    Ok(session.store.get(key).await?.and_then(|entry| parse(key, &entry.value).ok()))
}

async fn describe(session: &Session, map: &ClusterMap, pg: PgId, out: Output) -> Result<(), CliError> {
    let stats = &statistics(session).await?;
    let scrubbed = value(session, &keys::scrubbed(pg)).await?;
    let scrub_request = value(session, &keys::scrub(pg)).await?;
    let present = require(map, pg)?;
    let history = map.histories.get(&pg).map(Vec::as_slice).unwrap_or_default();
    let past = history.iter().flat_map(|interval| interval.osds());
    let now = present.members().map(|(_, member)| member.osd).chain(present.target.iter().copied());
    let members = now.chain(past).map(|osd| (osd, MemberView::new(map, stats, present, osd))).collect();
    let activation = map.activations.get(&pg);
    let view = PgView::new(map, pg, present);
    out.show(&Description { view, map: present, activation, history, scrubbed, scrub_request, members }, text)
}

fn text(description: &Description<'_>) -> String {
    let view = &description.view;
    let activation = match description.activation {
        Some(record) => {
            let osds = record.acting.iter().map(|member| member.map(|member| member.osd));
            format!("epoch {} by {}, complete {}", record.epoch, list(osds), list(whole(&record.complete)))
        }
        None => "never".into(),
    };
    let mut lines = vec![
        format!("pg          {} of pool {}", view.pg, view.pool),
        format!("state       {}", name_of(view.state)),
        format!("epoch       {}", view.epoch),
        format!("acting      {}, led by {}", list(view.acting.iter().copied()), list([view.primary])),
        format!("target      {}", list(whole(&view.target))),
        format!("activation  {activation}"),
        format!("scrub       {}", scrub_text(description.scrubbed.as_ref(), description.scrub_request)),
    ];
    lines.extend(
        description
            .history
            .iter()
            .map(|past| format!("past        epoch {} by {}", past.epoch, list(past.acting.iter().copied()))),
    );
    lines.extend(description.members.iter().map(|(osd, member)| format!("osd {osd:<7} {}", member.text())));
    lines.join("\n")
}
