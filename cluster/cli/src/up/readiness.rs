//! Waiting until everything serves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use cluster_state::{EmbeddedStore, StateStore};
use mon::View;
use mon_core::health::{Health, health};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::bootstrap::Layout;
use super::directory::Endpoints;
use super::parts::Serving;
use crate::error::CliError;

/// How often the placement groups are looked at.
const INTERVAL: Duration = Duration::from_millis(20);
/// After this long without success people are told what is missing.
const PATIENCE: Duration = Duration::from_secs(3);
/// First bytes that an NBD server sends.
const NBD_MAGIC: &[u8; 8] = b"NBDMAGIC";

/// Waits until all placement groups serve, all images are exported and NBD answers. Returns where.
pub async fn wait(mut serving: Serving, store: &EmbeddedStore, layout: &Layout) -> Result<Endpoints, CliError> {
    active(store).await?;
    let images: Vec<_> = layout.images.iter().map(|(image, _)| image.export_name()).collect();
    let exported = serving.stats.wait_for(|stats| images.iter().all(|name| stats.names.contains(name))).await;
    exported.map(drop).map_err(|_| CliError::failed("the gateway has ended"))?;
    greeted(serving.nbd).await?;
    Ok(Endpoints {
        pid: std::process::id(),
        etcd: serving.etcd.to_string(),
        nbd: serving.nbd.to_string(),
        nbd_socket: serving.nbd_socket,
        metrics: serving.metrics.to_string(),
        images,
    })
}

/// Waits until all placement groups serve.
async fn active(store: &EmbeddedStore) -> Result<(), CliError> {
    let mut tell_at = Instant::now() + PATIENCE;
    loop {
        let health = judge(store).await?;
        if health.pgs.total > 0 && health.pgs.is_all_active() {
            return Ok(());
        }
        if Instant::now() >= tell_at {
            tell_at = Instant::now() + PATIENCE;
            eprintln!("waiting: {} of {} placement groups serve", health.pgs.active, health.pgs.total);
            health.problems.iter().for_each(|problem| eprintln!("  {problem}"));
        }
        sleep(INTERVAL).await;
    }
}

async fn judge(store: &EmbeddedStore) -> Result<Health, CliError> {
    let mut view = View::new();
    for range in View::RANGES {
        view.reset(range, store.range(range).await?);
    }
    Ok(health(view.map(), &BTreeMap::new()))
}

/// Makes sure that an NBD server answers.
async fn greeted(nbd: SocketAddr) -> Result<(), CliError> {
    let failed = |why: &dyn std::fmt::Display| CliError::failed(format!("NBD on {nbd} does not answer: {why}"));
    let mut greeting = [0; NBD_MAGIC.len()];
    let mut connection = TcpStream::connect(nbd).await.map_err(|e| failed(&e))?;
    connection.read_exact(&mut greeting).await.map_err(|e| failed(&e))?;
    if &greeting == NBD_MAGIC { Ok(()) } else { Err(failed(&"something else listens there")) }
}
