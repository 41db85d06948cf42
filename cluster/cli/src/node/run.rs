//! `blockyard osd run`, `blockyard mon` and `blockyard gateway`: some of the daemons as a process of their own.
//!
//! Each says when it is ready, on stdout and to systemd; that is when it is registered in the cluster, or for a monitor
//! when it has read the cluster's state. An outage of the state store is waited out, at the start too.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use cluster_proto::map::{ClusterInfo, GatewayState, OsdConfig, OsdState, keys, parse};
use cluster_proto::{Incarnation, OsdId, Uuid};
use cluster_state::{StateErrorKind, StateStore};
use gateway::{GatewayHandle, GatewayOptions};
use mon::MonConfig;
use osd::{DurabilityOption, Live, OsdOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::signals::Signals;
use super::{Node, adopt, notify};
use crate::args::node::{Durability, GatewayRun, GatewaySettings, MonitorRun, OsdRun, OsdSettings};
use crate::error::CliError;
use crate::output::Output;
use crate::session::{self, Session};
use crate::settings::NodeSettings;

/// How often the state store is asked whether we are registered.
const INTERVAL: Duration = Duration::from_millis(50);
/// Pause after the state store could not be reached.
const RETRY: Duration = Duration::from_millis(500);
/// How often people are told what is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long stopping may take, without what a gateway needs.
const STOP_MAX: Duration = Duration::from_secs(10);

/// What a daemon that is ready tells.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Ready {
    daemon: &'static str,
    pid: u32,
    cluster: Uuid,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    osds: Vec<ReadyOsd>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nbd: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<SocketAddr>,
}

/// An OSD that is ready.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ReadyOsd {
    id: OsdId,
    path: PathBuf,
    address: SocketAddr,
}

impl Ready {
    fn new(daemon: &'static str, cluster: Uuid, metrics: Option<SocketAddr>) -> Self {
        Self { daemon, pid: std::process::id(), cluster, osds: Vec::new(), nbd: Vec::new(), metrics }
    }

    fn text(&self) -> String {
        let mut text = format!("{} is ready: cluster {}\n", self.daemon, self.cluster);
        for osd in &self.osds {
            text += &format!("  osd {} on {}: {}\n", osd.id, osd.path.display(), osd.address);
        }
        self.nbd.iter().for_each(|nbd| text += &format!("  nbd {nbd}\n"));
        self.metrics.iter().for_each(|metrics| text += &format!("  metrics http://{metrics}/metrics\n"));
        text
    }
}

/// Runs what `start` starts until a signal comes or something fails.
async fn daemon(out: Output, start: impl AsyncFnOnce(&mut Node) -> Result<Ready, CliError>) -> Result<(), CliError> {
    let mut signals = Signals::new()?;
    let mut node = Node::default();
    let served = tokio::select! {
        served = serve(&mut node, out, start) => served,
        () = signals.next() => Ok(()),
    };
    notify::stopping();
    let stop_max = STOP_MAX + node.gateway.as_ref().map_or(Duration::ZERO, GatewayHandle::stop_max);
    let stopped = tokio::select! {
        stopped = timeout(stop_max, node.stop()) => match stopped {
            Ok(failures) if failures.is_empty() => Ok(()),
            Ok(failures) => Err(CliError::failed(failures.join("; "))),
            Err(_) => Err(CliError::failed(format!("it did not stop within {} s", stop_max.as_secs()))),
        },
        () = signals.next() => Err(CliError::failed("stopped at once, as asked for by a second signal")),
    };
    served.and(stopped)
}

/// Returns only when something has failed.
async fn serve(
    node: &mut Node,
    out: Output,
    start: impl AsyncFnOnce(&mut Node) -> Result<Ready, CliError>,
) -> Result<(), CliError> {
    let ready = start(node).await?;
    notify::ready();
    out.line(&ready, Ready::text)?;
    let osds = node.osds.iter().map(|osd| osd.live_receiver()).collect();
    tokio::select! {
        failure = node.failed() => Err(failure),
        never = keep_watchdog(osds) => match never {},
    }
}

/// Tells systemd that we are alive as long as every OSD's thread shows that it is.
async fn keep_watchdog(mut osds: Vec<watch::Receiver<Live>>) -> Infallible {
    let Some(interval) = notify::watchdog_interval() else { return std::future::pending().await };
    loop {
        sleep(interval).await;
        if osds.iter().all(|live| live.has_changed().unwrap_or(false)) {
            osds.iter_mut().for_each(watch::Receiver::mark_unchanged);
            notify::alive();
        } else {
            tracing::error!("the thread of an OSD has shown no sign of life for {interval:?}");
        }
    }
}

/// The cluster in the state store. Waits as long as the store cannot be reached.
async fn await_cluster(session: &Session) -> Result<ClusterInfo, CliError> {
    let mut tell_at = Instant::now();
    loop {
        match session.store.get(keys::CLUSTER).await {
            Ok(Some(entry)) => {
                return parse(keys::CLUSTER, &entry.value).map_err(|e| CliError::failed(e.to_string()));
            }
            Ok(None) => return Err(session::no_cluster(&*session.store)),
            Err(error) if error.kind == StateErrorKind::Unavailable => {
                if Instant::now() >= tell_at {
                    tell_at = Instant::now() + PATIENCE;
                    eprintln!("waiting for the state store: {error}");
                }
                sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until a key of the state store is what `is_ours` accepts.
async fn await_registration<T: DeserializeOwned>(store: &dyn StateStore, key: &str, is_ours: impl Fn(&T) -> bool) {
    let mut tell_at = Instant::now() + PATIENCE;
    loop {
        if let Ok(Some(entry)) = store.get(key).await
            && parse::<T>(key, &entry.value).is_ok_and(|found| is_ours(&found))
        {
            return;
        }
        if Instant::now() >= tell_at {
            tell_at = Instant::now() + PATIENCE;
            eprintln!("waiting: not registered in the state store {} yet", store.location());
        }
        sleep(INTERVAL).await;
    }
}

/// Fails if something that runs fails before `registered` is ready.
async fn unless_failed(node: &mut Node, registered: impl Future<Output = ()>) -> Result<(), CliError> {
    tokio::select! {
        () = registered => Ok(()),
        failure = node.failed() => Err(failure),
    }
}

/// Binds the address for metrics, before anything is started.
fn bind_metrics(address: Option<SocketAddr>) -> Result<Option<(SocketAddr, tokio::net::TcpListener)>, CliError> {
    let Some(address) = address else { return Ok(None) };
    let bound = std::net::TcpListener::bind(address).and_then(|l| l.set_nonblocking(true).map(|()| l));
    let listener = bound.map_err(|e| CliError::failed(format!("cannot serve metrics on {address}: {e}")))?;
    adopt("metrics", listener).map(Some)
}

// ---- OSDs

/// Runs OSDs.
pub async fn osd(options: OsdRun, file: NodeSettings, out: Output) -> Result<(), CliError> {
    let settings = options.settings.or(file.osd.clone()).effective();
    settings.validate()?;
    if options.dump_config {
        return NodeSettings { osd: settings, mon: Default::default(), gateway: Default::default(), ..file }.dump(out);
    }
    let stores = identify(&options.paths)?;
    if stores.len() > 1 && settings.listen.is_some_and(|listen| listen.port() != 0) {
        return Err(CliError::usage("several OSDs cannot listen on one port: give port 0, or run them one by one"));
    }
    daemon(out, async |node| start_osds(node, &stores, &settings, &file).await).await
}

/// A prepared device.
struct PreparedStore {
    path: PathBuf,
    cluster: Uuid,
    id: OsdId,
    store: Uuid,
}

fn identify(paths: &[PathBuf]) -> Result<Vec<PreparedStore>, CliError> {
    let mut stores: Vec<PreparedStore> = Vec::new();
    for path in paths {
        let found = osd::identify(path).map_err(|e| CliError::failed(e.to_string()))?;
        if let Some(other) = stores.iter().find(|other| other.id == found.osd) {
            let (one, two) = (other.path.display(), path.display());
            return Err(CliError::usage(format!("{one} and {two} are both OSD {}: leave one out", found.osd)));
        }
        stores.push(PreparedStore { path: path.clone(), cluster: found.cluster, id: found.osd, store: found.store });
    }
    Ok(stores)
}

async fn start_osds(
    node: &mut Node,
    stores: &[PreparedStore],
    settings: &OsdSettings,
    file: &NodeSettings,
) -> Result<Ready, CliError> {
    let metrics = bind_metrics(settings.metrics)?;
    let session = session::connect(file)?;
    let cluster = await_cluster(&session).await?.id;
    check_owner(stores, cluster, &session)?;
    for store in stores {
        check_configured(&session, store).await?;
    }
    let listen = match settings.listen {
        Some(listen) => listen,
        None => SocketAddr::new(own_address(file)?, 0),
    };
    let options = stores.iter().map(|store| osd_options(store, settings, listen, &session)).collect();
    node.start_osds(options).await?;
    let mut ready = Ready::new("osd", cluster, metrics.as_ref().map(|(address, _)| *address));
    if let Some((_, listener)) = metrics {
        let exports = node.exports();
        node.start_metrics(listener, exports);
    }
    let runs: Vec<_> = node.osds.iter().map(|osd| (osd.id(), osd.incarnation())).collect();
    unless_failed(node, await_osds(&*session.store, &runs)).await?;
    for (osd, store) in node.osds.iter().zip(stores) {
        ready.osds.push(ReadyOsd { id: osd.id(), path: store.path.clone(), address: osd.address() });
    }
    Ok(ready)
}

async fn await_osds(store: &dyn StateStore, runs: &[(OsdId, Incarnation)]) {
    for (id, run) in runs {
        await_registration(store, &keys::osd(*id), |found: &OsdState| found.incarnation == *run).await;
    }
}

/// An OSD that is configured with another store is a stale one: its successor has the number.
async fn check_configured(session: &Session, store: &PreparedStore) -> Result<(), CliError> {
    let (id, path) = (store.id, store.path.display());
    let key = keys::osd_config(id);
    let Some(entry) = session.store.get(&key).await? else {
        tracing::warn!(osd = id.0, "OSD {id} is not configured and gets no new data: it was removed from the cluster");
        return Ok(());
    };
    let config: OsdConfig = parse(&key, &entry.value).map_err(|e| CliError::failed(e.to_string()))?;
    match config.store.filter(|configured| *configured != store.store) {
        Some(other) => Err(CliError::failed(format!(
            "the store on {path} ({}) is not the one that OSD {id} has now ({other}): it is stale, take it away or \
             prepare it as a new OSD",
            store.store
        ))),
        None => Ok(()),
    }
}

fn check_owner(stores: &[PreparedStore], cluster: Uuid, session: &Session) -> Result<(), CliError> {
    match stores.iter().find(|store| store.cluster != cluster) {
        Some(store) => Err(CliError::failed(format!(
            "{} belongs to cluster {}, but the state store {} holds cluster {cluster}: check the path and --cluster",
            store.path.display(),
            store.cluster,
            session.store.location()
        ))),
        None => Ok(()),
    }
}

fn osd_options(store: &PreparedStore, settings: &OsdSettings, listen: SocketAddr, session: &Session) -> OsdOptions {
    let defaults =
        OsdOptions::new(&store.path, store.id, store.cluster, listen, session.store.clone(), Handle::current());
    OsdOptions {
        advertise: settings.advertise,
        credentials: session.credentials.clone(),
        durability: match settings.durability {
            Some(Durability::WriteThrough) => DurabilityOption::WriteThrough,
            Some(Durability::Flush) => DurabilityOption::Flush,
            Some(Durability::Auto) | None => DurabilityOption::Auto,
        },
        memory_bytes_max: settings.memory.map_or(defaults.memory_bytes_max, |size| size.0),
        discard_sectors_min: settings.discard_min.map_or(defaults.discard_sectors_min, |size| {
            u32::try_from(size.0.div_ceil(cluster_proto::SECTOR as u64)).unwrap_or(u32::MAX)
        }),
        lease_ttl_s: settings.lease_ttl_s.unwrap_or(defaults.lease_ttl_s),
        slow_operation_ms: settings.slow_operation_ms.unwrap_or(defaults.slow_operation_ms),
        busy_poll: settings.busy_poll_us.map_or(defaults.busy_poll, |us| Duration::from_micros(us.into())),
        ..defaults
    }
}

/// The address of this machine from which the state store is reached: what others, who reach it too, most likely reach.
fn own_address(file: &NodeSettings) -> Result<IpAddr, CliError> {
    let spec = session::endpoints(file.cluster())?;
    let advice = "say where to listen with --listen";
    for endpoint in spec.split(',') {
        let bare = endpoint.trim().rsplit("://").next().unwrap_or_default().trim_end_matches('/').to_owned();
        let Some(target) = bare.to_socket_addrs().ok().and_then(|mut found| found.next()) else { continue };
        let any: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let route = UdpSocket::bind(any).and_then(|socket| socket.connect(target).and_then(|()| socket.local_addr()));
        if let Ok(address) = route {
            return Ok(address.ip());
        }
    }
    Err(CliError::failed(format!("cannot find out which address of this machine reaches {spec}: {advice}")))
}

// ---- monitor

/// Runs a monitor.
pub async fn monitor(options: MonitorRun, file: NodeSettings, out: Output) -> Result<(), CliError> {
    let settings = options.settings.or(file.mon.clone()).effective();
    settings.validate()?;
    if options.dump_config {
        return NodeSettings { mon: settings, osd: Default::default(), gateway: Default::default(), ..file }.dump(out);
    }
    daemon(out, async |node| {
        let metrics = bind_metrics(settings.metrics)?;
        let session = session::connect(&file)?;
        let cluster = await_cluster(&session).await?.id;
        let ready = Ready::new("mon", cluster, metrics.as_ref().map(|(address, _)| *address));
        let config = MonConfig {
            name: settings.name.clone().unwrap_or_default(),
            lease_ttl_s: settings.lease_ttl_s.unwrap_or(5),
            credentials: session.credentials.clone(),
            metrics: metrics.map(|(_, listener)| listener),
            more_metrics: None,
        };
        node.start_monitor(session.store, config);
        Ok(ready)
    })
    .await
}

// ---- gateway

/// Runs a gateway.
pub async fn gateway(options: GatewayRun, file: NodeSettings, out: Output) -> Result<(), CliError> {
    let settings = options.settings.or(file.gateway.clone()).effective();
    settings.validate()?;
    if options.dump_config {
        return NodeSettings { gateway: settings, osd: Default::default(), mon: Default::default(), ..file }.dump(out);
    }
    daemon(out, async |node| start_gateway(node, &settings, &file).await).await
}

async fn start_gateway(node: &mut Node, settings: &GatewaySettings, file: &NodeSettings) -> Result<Ready, CliError> {
    let metrics = bind_metrics(settings.metrics)?;
    let session = session::connect(file)?;
    let cluster = await_cluster(&session).await?.id;
    node.start_gateway(gateway_options(settings, cluster, &session)).await?;
    let mut ready = Ready::new("gateway", cluster, metrics.as_ref().map(|(address, _)| *address));
    if let Some((_, listener)) = metrics {
        let exports = node.exports();
        node.start_metrics(listener, exports);
    }
    if let Some(gateway) = &node.gateway {
        ready.nbd.extend(gateway.nbd_addresses().iter().map(SocketAddr::to_string));
        ready.nbd.extend(settings.nbd_unix.iter().map(|path| format!("unix:{}", path.display())));
        let run = gateway.incarnation();
        let key = format!("{}{run}", keys::GATEWAYS);
        unless_failed(node, await_registration(&*session.store, &key, move |g: &GatewayState| g.incarnation == run))
            .await?;
    }
    Ok(ready)
}

fn gateway_options(settings: &GatewaySettings, cluster: Uuid, session: &Session) -> GatewayOptions {
    let defaults = GatewayOptions::new(cluster, session.store.clone(), Handle::current());
    GatewayOptions {
        nbd_tcp: settings.nbd.clone(),
        nbd_unix: settings.nbd_unix.clone(),
        credentials: session.credentials.clone(),
        connections_max: settings.connections_max.unwrap_or(defaults.connections_max),
        busy_poll: settings.busy_poll_us.map_or(defaults.busy_poll, |us| Duration::from_micros(us.into())),
        stop_timeout: settings.stop_timeout_ms.map_or(defaults.stop_timeout, Duration::from_millis),
        lease_ttl_s: settings.lease_ttl_s.unwrap_or(defaults.lease_ttl_s),
        ..defaults
    }
}
