//! `blockyard up`: a whole cluster in one process. An embedded state store that others reach through the etcd API, a
//! monitor, OSDs on sparse files, and a gateway.
//!
//! One thread (this one) runs the control plane of all of them; each OSD, the gateway and the state store have a thread of
//! their own. They know each other only through the state store and sockets, as in a cluster of many machines.

mod banner;
mod bootstrap;
mod directory;
mod parts;
mod ports;
mod readiness;

use std::time::Duration;

use cluster_proto::auth::Credentials;

use crate::args::UpOptions;
use crate::error::CliError;
use crate::node::notify;
use crate::node::signals::Signals;
use crate::output::{Output, print};
use directory::Directory;
pub use directory::Endpoints;
use parts::Parts;
use ports::Listeners;

/// Starts the cluster and serves until a signal comes or a part fails.
pub async fn up(options: UpOptions, credentials: Option<Credentials>, out: Output) -> Result<(), CliError> {
    let mut signals = Signals::new()?;
    let directory = Directory::open(&options.data_dir).await?;
    let listeners = Listeners::bind(options.ports)?;
    let mut parts = Parts::new(credentials, Duration::from_micros(options.busy_poll_us.into()));
    let served = tokio::select! {
        served = serve(&options, &directory, listeners, &mut parts, out) => served,
        () = signals.next() => Ok(()),
    };
    directory.withdraw();
    notify::stopping();
    let stopped = tokio::select! {
        stopped = parts.stop() => stopped,
        () = signals.next() => Err(CliError::failed("stopped at once, as asked for by a second signal")),
    };
    served.and(stopped)
}

/// Starts everything and returns only when a part has failed.
async fn serve(
    options: &UpOptions,
    directory: &Directory,
    listeners: Listeners,
    parts: &mut Parts,
    out: Output,
) -> Result<(), CliError> {
    let store = parts.open_store(directory).await?;
    let layout = bootstrap::bootstrap(&store, directory, options).await?;
    parts.start(directory, listeners, &layout).await?;
    let serving = parts.serving()?;
    let endpoints = tokio::select! {
        endpoints = readiness::wait(serving, &store, &layout) => endpoints?,
        failure = parts.failed() => return Err(failure),
    };
    directory.announce(&endpoints)?;
    notify::ready();
    if out.json {
        out.show(&endpoints, |_| String::new())?;
    } else {
        print(&banner::banner(&endpoints, &layout, &options.data_dir))?;
    }
    Err(parts.failed().await)
}
