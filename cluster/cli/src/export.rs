//! `blockyard export`.

use std::collections::BTreeMap;

use blockyard_client::metadata;
use cluster_proto::map::{ExportConfig, keys, parse};
use cluster_state::{Compare, Txn};
use serde::Serialize;

use crate::args::{ExportCommand, ImageSpec};
use crate::error::CliError;
use crate::output::{Output, table};
use crate::pool::json;
use crate::session::Session;

/// An export as shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ExportView {
    name: String,
    pool: String,
    image: String,
    read_only: bool,
    /// It is there because the image is.
    implicit: bool,
    description: String,
}

impl ExportView {
    fn row(&self) -> [String; 4] {
        let image = ImageSpec { pool: self.pool.clone(), name: self.image.clone() };
        let access = if self.read_only { "read-only" } else { "read-write" };
        let about = if self.implicit { "(the image itself)".to_owned() } else { self.description.clone() };
        [self.name.clone(), image.to_string(), access.into(), about]
    }
}

/// Runs a command.
pub async fn run(session: &Session, command: ExportCommand, out: Output) -> Result<(), CliError> {
    session.require_cluster().await?;
    match command {
        ExportCommand::Ls => {
            let exports = list(session).await?;
            out.show(&exports, |exports| {
                table(["NAME", "IMAGE", "ACCESS", "DESCRIPTION"], exports.iter().map(ExportView::row))
            })
        }
        ExportCommand::Add { name, image, read_only, description } => {
            let config = ExportConfig { pool: image.pool, image: image.name, read_only, description };
            add(session, &name, config, out).await
        }
        ExportCommand::Rm { name } => rm(session, &name, out).await,
    }
}

async fn list(session: &Session) -> Result<Vec<ExportView>, CliError> {
    let mut exports = BTreeMap::new();
    for info in metadata::images(&*session.store).await?.into_iter().filter(|info| !info.meta.removing) {
        let image = ImageSpec { pool: info.pool_config.name, name: info.meta.name };
        let name = image.export_name();
        let view = ExportView {
            name: name.clone(),
            pool: image.pool,
            image: image.name,
            read_only: info.meta.read_only,
            implicit: true,
            description: String::new(),
        };
        exports.insert(name, view);
    }
    for entry in session.store.range(keys::EXPORTS).await?.entries {
        let name = entry.key.strip_prefix(keys::EXPORTS).and_then(keys::decode);
        let config = parse::<ExportConfig>(&entry.key, &entry.value);
        let (Some(name), Ok(config)) = (name, config) else {
            tracing::error!("ignored a bad value in the cluster state: {}", entry.key);
            continue;
        };
        let view = ExportView {
            name: name.clone(),
            pool: config.pool,
            image: config.image,
            read_only: config.read_only,
            implicit: false,
            description: config.description,
        };
        exports.insert(name, view);
    }
    Ok(exports.into_values().collect())
}

async fn add(session: &Session, name: &str, config: ExportConfig, out: Output) -> Result<(), CliError> {
    let bad = |e: &dyn std::fmt::Display| CliError::usage(format!("cannot add export {name:?}: {e}"));
    // An export's name obeys the rules for names of images.
    let named = ExportConfig { image: name.to_owned(), ..config.clone() };
    named.validate().and_then(|()| config.validate()).map_err(|e| bad(&e))?;
    metadata::image(&*session.store, &config.pool, &config.image).await?;
    let key = keys::export(name);
    let txn = Txn::new().when(Compare::Absent(key.clone())).put(key, json(&config)?);
    if !session.store.txn(txn).await?.succeeded {
        return Err(CliError::conflict(format!(
            "there is an export {name:?} already: remove it with 'blockyard export rm {name}' first"
        )));
    }
    let view = ExportView {
        name: name.to_owned(),
        pool: config.pool,
        image: config.image,
        read_only: config.read_only,
        implicit: false,
        description: config.description,
    };
    out.show(&view, |view| format!("image {} is exported as {}", view.row()[1], view.name))
}

async fn rm(session: &Session, name: &str, out: Output) -> Result<(), CliError> {
    let key = keys::export(name);
    let txn = Txn::new().when(Compare::Exists(key.clone())).delete(key);
    if !session.store.txn(txn).await?.succeeded {
        return Err(CliError::not_found(format!(
            "there is no export {name:?} that was added: 'blockyard export ls' lists them"
        )));
    }
    out.show(&serde_json::json!({ "name": name, "removed": true }), |_| format!("removed export {name}"))
}
