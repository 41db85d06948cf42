//! Telling systemd how far we are, if it asked for that (`Type=notify`).

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Everything serves.
pub fn ready() {
    notify("READY=1");
}

/// The end has begun.
pub fn stopping() {
    notify("STOPPING=1");
}

/// How often systemd wants to hear that we are alive (`WatchdogSec=`), halved; `None`: it does not.
pub fn watchdog_interval() -> Option<Duration> {
    let for_us = env::var("WATCHDOG_PID").ok().is_none_or(|pid| pid == std::process::id().to_string());
    let period_us: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    Some(Duration::from_micros(period_us / 2)).filter(|interval| for_us && !interval.is_zero())
}

/// We are alive.
pub fn alive() {
    notify("WATCHDOG=1");
}

fn notify(state: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!("cannot tell systemd {state}: {error}");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        let name = format!("blockyard-test-{}", std::process::id());
        let hidden = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(OsStr::new(&format!("@{name}")), "STOPPING=1").unwrap();
        let mut bytes = [0; 32];
        let n = receiver.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..n], b"READY=1");
        let n = hidden.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..n], b"STOPPING=1");
    }
}
