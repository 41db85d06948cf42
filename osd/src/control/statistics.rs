//! The OSD's statistics key.

use std::convert::Infallible;
use std::time::Duration;

use cluster_proto::OsdId;
use cluster_proto::map::keys;
use cluster_state::{StateStore, Txn};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::live::Live;

/// How often statistics are written, if they changed.
const INTERVAL: Duration = Duration::from_secs(2);

/// Writes statistics for ever.
pub(super) async fn run(id: OsdId, state: &dyn StateStore, live: watch::Receiver<Live>) -> Infallible {
    let mut written = Vec::new();
    loop {
        sleep(INTERVAL).await;
        let value = live.borrow().statistics();
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
