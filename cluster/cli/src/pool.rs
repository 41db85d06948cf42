//! `blockyard pool`.

mod split;

use std::collections::BTreeSet;

use blockyard_client::metadata;
use cluster_proto::PoolId;
use cluster_proto::map::{ClusterMap, ImmediateCommit, PoolConfig, Scheme, keys};
use cluster_state::{Compare, StateStore, Txn};
use mon_core::health::PgCounts;
use mon_core::placement::ideal_shares;
use mon_core::usable;
use serde::Serialize;

use crate::args::{CommitMode, EcCode, PoolCommand, PoolCreate};
use crate::error::{CliError, Exit};
use crate::osd::change::last_removed;
use crate::output::{Output, table};
use crate::session::Session;
use crate::size::Size;

/// Attempts to get a pool number before giving up.
const ATTEMPTS_MAX: usize = 16;
/// Copies unless said otherwise.
const COPIES_DEFAULT: u8 = 3;

/// How a pool keeps its data, as shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Redundancy {
    /// So many copies.
    Replicas(u8),
    /// Data and parity shards.
    Ec(String),
}

impl From<Scheme> for Redundancy {
    fn from(scheme: Scheme) -> Self {
        match scheme {
            Scheme::Replicated { copies } => Redundancy::Replicas(copies),
            Scheme::Ec { data, parity } => Redundancy::Ec(format!("{data}+{parity}")),
        }
    }
}

impl std::fmt::Display for Redundancy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Redundancy::Replicas(copies) => write!(f, "{copies} copies"),
            Redundancy::Ec(code) => write!(f, "ec {code}"),
        }
    }
}

/// A pool as shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PoolView {
    id: u32,
    name: String,
    #[serde(flatten)]
    redundancy: Redundancy,
    min_size: u8,
    pg_count: u32,
    block_size: u32,
    immediate_commit: ImmediateCommit,
    pgs: PgCounts,
}

impl PoolView {
    /// All pools of a cluster.
    pub fn all(map: &ClusterMap) -> Vec<PoolView> {
        map.pools.iter().map(|(id, pool)| PoolView::new(map, *id, pool)).collect()
    }

    fn new(map: &ClusterMap, id: PoolId, pool: &PoolConfig) -> PoolView {
        PoolView {
            id: id.0,
            name: pool.name.clone(),
            redundancy: pool.scheme.into(),
            min_size: pool.min_size,
            pg_count: pool.pg_count,
            block_size: pool.block_size,
            immediate_commit: pool.immediate_commit,
            pgs: PgCounts::of_pool(map, id, Some(pool)),
        }
    }

    fn row(&self) -> [String; 8] {
        [
            self.id.to_string(),
            self.name.clone(),
            self.redundancy.to_string(),
            self.min_size.to_string(),
            match self.pgs.total {
                present if present == self.pg_count as usize => self.pg_count.to_string(),
                present => format!("{present} of {}", self.pg_count),
            },
            self.pgs.active.to_string(),
            Size(self.block_size.into()).to_string(),
            self.immediate_commit.to_string(),
        ]
    }
}

/// Runs a command.
pub async fn run(session: &Session, command: PoolCommand, out: Output) -> Result<(), CliError> {
    match command {
        PoolCommand::Ls => {
            let pools = PoolView::all(&session.map().await?);
            out.show(&pools, |pools| {
                let headings = [">ID", "NAME", "DATA", ">MIN", ">PGS", ">ACTIVE", ">OBJECT SIZE", "IMMEDIATE COMMIT"];
                table(headings, pools.iter().map(PoolView::row))
            })
        }
        PoolCommand::Create(options) => {
            let (name, dry_run) = (options.name.clone(), options.dry_run);
            let config = new_config(options);
            if dry_run {
                let map = session.map().await?;
                validate(&config).and_then(|()| check(&map, &config))?;
                let id = next_id(session, &map).await?;
                return out.show(&PoolView::new(&map, id, &config), |_| format!("pool {name:?} can be created"));
            }
            let id = create(session, &config).await?;
            let map = session.map().await?;
            out.show(&PoolView::new(&map, id, &config), |_| {
                format!("created pool {name:?}; its placement groups will be active in a moment")
            })
        }
        PoolCommand::SetPgCount { name, pg_count, dry_run } => {
            split::set_pg_count(session, &name, pg_count, dry_run, out).await
        }
        PoolCommand::Rm { name, yes, dry_run } => rm(session, &name, yes, dry_run, out).await,
    }
}

/// The configuration that is asked for.
fn new_config(options: PoolCreate) -> PoolConfig {
    let mut config = match options.ec {
        Some(EcCode { data, parity }) => PoolConfig::erasure_coded(&options.name, data, parity),
        None => PoolConfig::replicated(&options.name, options.replicas.unwrap_or(COPIES_DEFAULT)),
    };
    config.min_size = options.min_size.unwrap_or(config.min_size);
    config.pg_count = options.pg_count;
    if let Some(size) = options.block_size {
        config.block_size = u32::try_from(size.0).unwrap_or(u32::MAX);
    }
    config.immediate_commit = match options.immediate_commit {
        CommitMode::None => ImmediateCommit::None,
        CommitMode::Small => ImmediateCommit::Small,
        CommitMode::All => ImmediateCommit::All,
    };
    let rules = &mut config.placement;
    rules.failure_domain = options.failure_domain.unwrap_or(rules.failure_domain.clone());
    rules.root = options.root;
    rules.tags = options.tag;
    config
}

/// Removes a pool and its placement groups in one step; its number is not used again.
async fn rm(session: &Session, name: &str, yes: bool, dry_run: bool, out: Output) -> Result<(), CliError> {
    let map = session.map().await?;
    let Some((id, config)) = map.pool_by_name(name) else {
        return Err(CliError::not_found(format!("there is no pool {name:?}: 'blockyard pool ls' lists them")));
    };
    let images: Vec<_> = metadata::images(&*session.store).await?.into_iter().filter(|i| i.meta.pool == id).collect();
    if let Some(first) = images.first() {
        return Err(CliError::new(
            Exit::Needed,
            format!(
                "cannot remove pool {name:?}: it has {} image{} ({} first): remove them with 'blockyard image rm'",
                images.len(),
                if images.len() == 1 { "" } else { "s" },
                first.meta.name
            ),
        ));
    }
    let view = PoolView::new(&map, id, config);
    if dry_run {
        return out.show(&view, |view| format!("pool {name:?} with {} placement groups can be removed", view.pg_count));
    }
    CliError::unless_confirmed(yes, format!("removing pool {name:?} deletes whatever its placement groups hold"))?;
    let last = session.store.get(keys::LAST_POOL).await?;
    let highest = last_removed(&*session.store, keys::LAST_POOL).await?.max(id.0);
    let index = keys::image_names(id);
    let txn = Txn::new()
        .when(Compare::ModRevision {
            key: keys::LAST_POOL.into(),
            revision: last.map_or(0, |entry| entry.mod_revision),
        })
        .when(Compare::Exists(keys::pool(id)))
        .put(keys::LAST_POOL, json(&highest)?)
        .delete(keys::pool(id))
        .delete_prefix(index);
    let txn = ["map", "activation", "history"]
        .iter()
        .fold(txn, |txn, group| txn.delete_prefix(format!("{}{group}/{id}/", keys::PGS)))
        .delete_prefix(format!("{}{id}/", keys::SCRUBS))
        .delete_prefix(format!("{}{id}/", keys::SCRUBBED));
    if !session.store.txn(txn).await?.succeeded {
        return Err(CliError::conflict(format!("pool {name:?} was changed by somebody else meanwhile: try again")));
    }
    out.show(&serde_json::json!({ "id": id, "name": name, "removed": true }), |_| format!("removed pool {name:?}"))
}

fn validate(config: &PoolConfig) -> Result<(), CliError> {
    config.validate().map_err(|e| CliError::usage(format!("cannot create pool {:?}: {e}", config.name)))
}

async fn create(session: &Session, config: &PoolConfig) -> Result<PoolId, CliError> {
    validate(config)?;
    for _ in 0..ATTEMPTS_MAX {
        let map = session.map().await?;
        check(&map, config)?;
        let id = next_id(session, &map).await?;
        if put_new(&*session.store, id, config).await? {
            return Ok(id);
        }
    }
    Err(CliError::conflict(format!("cannot create pool {:?}: too many others at once, try again", config.name)))
}

/// Writes the configuration of a new pool. False if there is a pool of this number.
pub async fn put_new(store: &dyn StateStore, id: PoolId, config: &PoolConfig) -> Result<bool, CliError> {
    let key = keys::pool(id);
    let txn = Txn::new().when(Compare::Absent(key.clone())).put(key, json(config)?);
    Ok(store.txn(txn).await?.succeeded)
}

/// A value of the schema as JSON.
pub fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, CliError> {
    serde_json::to_vec(value).map_err(|e| CliError::failed(format!("cannot write a value as JSON: {e}")))
}

/// Pool numbers are not used twice.
async fn next_id(session: &Session, map: &ClusterMap) -> Result<PoolId, CliError> {
    let removed = last_removed(&*session.store, keys::LAST_POOL).await?;
    let last = map.pools.keys().copied().chain(map.pgs.keys().map(|pg| pg.pool)).map(|id| id.0).max();
    Ok(PoolId(last.unwrap_or(0).max(removed).saturating_add(1)))
}

/// Whether the cluster can have such a pool.
fn check(map: &ClusterMap, config: &PoolConfig) -> Result<(), CliError> {
    if map.pool_by_name(&config.name).is_some() {
        return Err(CliError::conflict(format!("there is a pool {:?} already: choose another name", config.name)));
    }
    let mut with = map.clone();
    let id = PoolId(u32::MAX);
    with.pools.insert(id, config.clone());
    if let Err(problem) = ideal_shares(&with, id, &usable(&with, &BTreeSet::new())) {
        return Err(CliError::usage(format!("cannot create pool {:?}: {}", config.name, problem.message)));
    }
    Ok(())
}
