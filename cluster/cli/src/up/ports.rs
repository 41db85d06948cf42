//! Ports on the loopback interface.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use crate::args::Ports;
use crate::error::CliError;

/// etcd's own port.
const ETCD: u16 = 2379;
/// NBD's own port (IANA).
const NBD: u16 = 10809;
/// Port for metrics.
const METRICS: u16 = 9899;

/// What is bound before anything is touched, so that a port in use leaves no trace.
#[derive(Debug)]
pub struct Listeners {
    /// For the state store.
    pub etcd: TcpListener,
    /// For metrics.
    pub metrics: TcpListener,
    /// Where the gateway shall serve NBD; it binds by itself.
    pub nbd: SocketAddr,
}

impl Listeners {
    /// Binds the ports.
    pub fn bind(ports: Ports) -> Result<Listeners, CliError> {
        let port = |own| if ports == Ports::Auto { 0 } else { own };
        let etcd = listen("the state store (etcd)", port(ETCD))?;
        let metrics = listen("metrics", port(METRICS))?;
        // Only tried, to fail early. The gateway waits for a killed predecessor's port if need be.
        drop(listen("NBD", port(NBD))?);
        Ok(Listeners { etcd, metrics, nbd: address(port(NBD)) })
    }
}

fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn listen(what: &str, port: u16) -> Result<TcpListener, CliError> {
    let address = address(port);
    let listener = TcpListener::bind(address).map_err(|e| failed(what, address, &e))?;
    listener.set_nonblocking(true).map_err(|e| failed(what, address, &e))?;
    Ok(listener)
}

fn failed(what: &str, address: SocketAddr, error: &io::Error) -> CliError {
    let (why, advice) = match error.kind() {
        io::ErrorKind::AddrInUse => ("the port is in use".to_owned(), ": stop what uses it, or give --ports auto"),
        io::ErrorKind::PermissionDenied => (error.to_string(), ": give --ports auto"),
        _ => (error.to_string(), ""),
    };
    CliError::failed(format!("cannot serve {what} on {address}: {why}{advice}"))
}
