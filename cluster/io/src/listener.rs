//! Listening sockets, TCP and Unix.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::event::{ConnId, Event, ListenerId, PeerAddr};
use crate::net::Net;
use crate::op::{self, Key, Kind};
use crate::reactor::Core;
use crate::ring::Completion;
use crate::slots::{SlotId, Slots};
use crate::takeover::patiently;
use crate::{Error, ErrorKind};

const BACKLOG: i32 = 1024;
/// Pause before accepting again after an error, for instance because the process is out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A socket file that disappears with its listener, unless somebody replaced it.
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

struct Listener {
    socket: Socket,
    address: Option<SocketAddr>,
    file: Option<SocketFile>,
    accepting: bool,
    closed: bool,
}

/// All listeners of a reactor.
#[derive(Default)]
pub(crate) struct Listeners {
    slots: Slots<Listener>,
    retries: Vec<(Instant, SlotId)>,
}

impl Listeners {
    pub(crate) fn listen_tcp(&mut self, core: &mut Core, addr: SocketAddr) -> Result<ListenerId, Error> {
        let socket = patiently(is_in_use, || bind_tcp(addr)).map_err(|e| refused("listen on", &addr.to_string(), e))?;
        let address = socket.local_addr().ok().and_then(|a| a.as_socket());
        Ok(self.start(core, Listener { socket, address, file: None, accepting: false, closed: false }))
    }

    pub(crate) fn listen_unix(&mut self, core: &mut Core, path: &Path) -> Result<ListenerId, Error> {
        let shown = path.display().to_string();
        patiently(|e: &Error| e.kind() == ErrorKind::AddressInUse, || remove_stale(path))?;
        let socket = bind_unix(path).map_err(|e| refused("listen on", &shown, e))?;
        let meta = std::fs::symlink_metadata(path).map_err(|e| Error::os(format!("cannot look at {shown}"), e))?;
        let file = Some(SocketFile { path: path.to_owned(), identity: (meta.dev(), meta.ino()) });
        Ok(self.start(core, Listener { socket, address: None, file, accepting: false, closed: false }))
    }

    fn start(&mut self, core: &mut Core, listener: Listener) -> ListenerId {
        let id = self.slots.insert(listener);
        self.accept(core, id);
        ListenerId(id)
    }

    fn accept(&mut self, core: &mut Core, id: SlotId) {
        let Some(listener) = self.slots.get_mut(id).filter(|l| !l.closed && !l.accepting) else { return };
        listener.accepting = true;
        op::accept(&mut core.ring, id, listener.socket.as_raw_fd());
    }

    pub(crate) fn local_addr(&self, id: ListenerId) -> Option<SocketAddr> {
        self.slots.get(id.0).filter(|l| !l.closed)?.address
    }

    pub(crate) fn is_open(&self, id: ListenerId) -> bool {
        self.slots.get(id.0).is_some_and(|l| !l.closed)
    }

    pub(crate) fn close(&mut self, core: &mut Core, id: ListenerId) {
        let Some(listener) = self.slots.get_mut(id.0).filter(|l| !l.closed) else { return };
        listener.closed = true;
        listener.file = None;
        // Refuses new peers at once; the descriptor itself lives until the accept has ended.
        let _ = listener.socket.shutdown(std::net::Shutdown::Both);
        if listener.accepting {
            core.ring.cancel(Key::new(Kind::Accept, id.0));
        } else {
            self.slots.remove(id.0);
        }
    }

    pub(crate) fn handle_accept(&mut self, core: &mut Core, net: &mut Net, completion: Completion) {
        let id = completion.key.slot;
        let accepted = accepted_socket(completion);
        let Some(listener) = self.slots.get_mut(id) else { return };
        listener.accepting = completion.more();
        let closed = listener.closed;
        match accepted {
            Ok(socket) if !closed => adopt(core, net, ListenerId(id), socket),
            Err(e) if !closed && !is_passing(&e) => self.retries.push((core.now + ACCEPT_RETRY, id)),
            _ => {}
        }
        self.accept_unless_waiting(core, id);
        if closed && !completion.more() {
            self.slots.remove(id);
        }
    }

    fn accept_unless_waiting(&mut self, core: &mut Core, id: SlotId) {
        if self.retries.iter().all(|(_, waiting)| *waiting != id) {
            self.accept(core, id);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.retries.iter().map(|(at, _)| *at).min()
    }

    pub(crate) fn expire(&mut self, core: &mut Core) {
        while let Some(i) = self.retries.iter().position(|(at, _)| *at <= core.now) {
            let (_, id) = self.retries.swap_remove(i);
            self.accept(core, id);
        }
    }
}

fn adopt(core: &mut Core, net: &mut Net, listener: ListenerId, socket: Socket) {
    // A peer that is gone already has no address, and its end will be noticed by the first receive.
    let peer = socket.peer_addr().ok().and_then(|a| a.as_socket()).map_or(PeerAddr::Unix, PeerAddr::Tcp);
    let conn = ConnId(net.adopt(core, socket));
    core.events.push_back(Event::Accepted { listener, conn, peer });
}

/// The socket that an accept gave us; dropping it closes it.
pub(crate) fn accepted_socket(completion: Completion) -> io::Result<Socket> {
    let fd = completion.outcome()? as i32;
    // SAFETY: the kernel installed this descriptor for this completion; nobody else owns it.
    Ok(Socket::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Whether the error concerned one peer only, so that accepting goes on at once.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR | libc::EAGAIN | libc::EPERM | libc::EPROTO))
}

fn is_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

fn bind_tcp(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Net::tcp_socket(Domain::for_address(addr))?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn bind_unix(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Removes a socket file that nobody listens on; leaves everything else alone.
fn remove_stale(path: &Path) -> Result<(), Error> {
    let shown = path.display();
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        let text = format!("cannot listen on {shown}: a file that is not a socket is in the way");
        return Err(Error::new(ErrorKind::AddressInUse, text, None));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|e| Error::os(format!("cannot remove the stale socket {shown}"), e))
        }
        _ => Err(in_use(&shown.to_string(), None)),
    }
}

fn in_use(address: &str, source: Option<io::Error>) -> Error {
    let text = format!("cannot listen on {address}: it is in use by another process; stop that or choose another");
    Error::new(ErrorKind::AddressInUse, text, source)
}

fn refused(verb: &str, address: &str, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::AddrInUse => in_use(address, Some(source)),
        _ => Error::os(format!("cannot {verb} {address}"), source),
    }
}
