//! The embedded store as a server of etcd's v3 API (gRPC over plain HTTP/2), so that `etcdctl`, further daemons and any
//! etcd client use it exactly as they would use etcd. There is no authentication: listen on a loopback address.

mod info;
mod kv;
mod lease;
mod limited;
mod watch;
mod wire;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch as tokio_watch;
use tonic::Status;
use tonic::transport::Server;

use crate::convert;
use crate::core::{CoreError, StateCore};
use crate::embedded::EmbeddedStore;
use crate::error::{StateError, StateErrorKind};
use crate::limits::{MESSAGE_BYTES_MAX, STREAMS_PER_CONNECTION_MAX};
use crate::pb;
use crate::pb::cluster_server::ClusterServer;
use crate::pb::kv_server::KvServer;
use crate::pb::lease_server::LeaseServer;
use crate::pb::maintenance_server::MaintenanceServer;
use crate::pb::watch_server::WatchServer;

/// How often a silent connection is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long it has to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long clients that do not read may hold up the end.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Serves `store` on `listener` until `shutdown` is ready; then ends all streams, finishes the requests under way and
/// returns. The store stays open.
///
/// # Errors
/// The listener failed.
pub async fn serve_etcd(
    store: EmbeddedStore,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), StateError> {
    let address = listener.local_addr().map_err(|error| serve_error("an unknown address", &error))?;
    let (stop, stopped) = tokio_watch::channel(false);
    let mut overdue = stopped.clone();
    let service = Service { store, address, stopped };
    let stopping = async move {
        shutdown.await;
        stop.send_replace(true);
    };
    let serve = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .add_service(KvServer::new(service.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(WatchServer::new(service.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(LeaseServer::new(service.clone()))
        .add_service(ClusterServer::new(service.clone()))
        .add_service(MaintenanceServer::new(service))
        .serve_with_incoming_shutdown(limited::connections(listener), stopping);
    let grace = async {
        until_stopped(&mut overdue).await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    tokio::select! {
        served = serve => served.map_err(|error| serve_error(&address.to_string(), &error)),
        () = grace => Ok(()),
    }
}

/// Ready when the server has been asked to stop.
async fn until_stopped(stopped: &mut tokio_watch::Receiver<bool>) {
    // An error means that the server is gone altogether.
    let _ = stopped.wait_for(|&stopped| stopped).await;
}

fn serve_error(address: &str, error: &dyn std::error::Error) -> StateError {
    StateError::unavailable(format!("cannot serve the state store on {address}: {error}; try another port"))
}

/// What all services share.
#[derive(Clone)]
struct Service {
    store: EmbeddedStore,
    address: SocketAddr,
    /// Becomes true when the server ends; streams have to end then.
    stopped: tokio_watch::Receiver<bool>,
}

impl Service {
    fn header(&self, revision: i64) -> Option<pb::ResponseHeader> {
        let id = self.store.id();
        Some(pb::ResponseHeader { cluster_id: id, member_id: id, revision, raft_term: 1 })
    }

    /// Runs a request on the state; returns its result and the revision after it.
    async fn call<R: Send + 'static>(
        &self,
        request: impl FnOnce(&mut StateCore) -> Result<R, CoreError> + Send + 'static,
    ) -> Result<(R, Option<pb::ResponseHeader>), Status> {
        let run = move |core: &mut StateCore| request(core).map(|result| (result, core.revision()));
        let (result, revision) = self.store.call(run).await.map_err(store_status)?.map_err(core_status)?;
        Ok((result, self.header(revision)))
    }
}

/// The status for a store that cannot serve.
fn store_status(error: StateError) -> Status {
    match error.kind {
        StateErrorKind::Full => Status::resource_exhausted(error.context),
        _ => Status::unavailable(error.context),
    }
}

/// The status that etcd gives for a refused request.
fn core_status(error: CoreError) -> Status {
    let text = error.to_string();
    match error {
        CoreError::LeaseNotFound => Status::not_found(text),
        CoreError::LeaseExists => Status::failed_precondition(text),
        CoreError::LeaseTtl | CoreError::Compacted(_) | CoreError::FutureRevision => Status::out_of_range(text),
        error if convert::kind_of(error) == StateErrorKind::Full => Status::resource_exhausted(text),
        _ => Status::invalid_argument(text),
    }
}
