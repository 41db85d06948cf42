//! A thin blocking driver: one thread per connection moves bytes between a socket and a [`nbd::Session`] over RAM
//! disks. For tests and the example only; the gateway has its own.

#![allow(missing_docs)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use gateway_core::ram::{RamExports, RamVolume};
use gateway_core::{BlockDevice, Output, Session as _};
use nbd::{Limits, Session};

const READ_LEN: usize = 256 << 10;

pub type SharedExports = Arc<Mutex<RamExports>>;

/// What the driver needs of a socket.
pub trait Socket: Read + Write + Send + 'static {
    fn read_for(&self, timeout: Option<Duration>) -> io::Result<()>;
}

impl Socket for TcpStream {
    fn read_for(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_nodelay(true)?;
        self.set_read_timeout(timeout)
    }
}

impl Socket for UnixStream {
    fn read_for(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(timeout)
    }
}

pub fn serve_tcp(listener: TcpListener, exports: SharedExports) {
    listener.incoming().flatten().for_each(|socket| spawn(socket, Arc::clone(&exports)));
}

pub fn serve_unix(listener: UnixListener, exports: SharedExports) {
    listener.incoming().flatten().for_each(|socket| spawn(socket, Arc::clone(&exports)));
}

fn spawn(socket: impl Socket, exports: SharedExports) {
    thread::spawn(move || Connection::new(socket, exports).run());
}

struct Connection<S> {
    socket: S,
    exports: SharedExports,
    session: Session,
    volume: Option<RamVolume>,
    start: Instant,
    send: Vec<u8>,
    open: bool,
}

impl<S: Socket> Connection<S> {
    fn new(socket: S, exports: SharedExports) -> Self {
        let session = Session::new(0, Limits::default());
        Self { socket, exports, session, volume: None, start: Instant::now(), send: Vec::new(), open: true }
    }

    /// Until either side closes. What goes wrong at the socket ends the connection, as for any server.
    fn run(mut self) -> io::Result<()> {
        let mut received = vec![0; READ_LEN];
        self.turn()?;
        while self.open {
            let timeout =
                self.session.poll_timeout().map(|at| Duration::from_millis(at.saturating_sub(self.now()).max(1)));
            self.socket.read_for(timeout)?;
            match self.socket.read(&mut received) {
                Ok(0) => return Ok(()),
                Ok(len) => self.handle_bytes(&received[..len]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    self.session.handle_timeout(self.now());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            self.turn()?;
        }
        Ok(())
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn handle_bytes(&mut self, bytes: &[u8]) {
        let now = self.now();
        let exports = self.exports.lock().unwrap_or_else(PoisonError::into_inner);
        self.session.handle_bytes(now, &*exports, bytes);
    }

    /// Moves requests and replies until both sides are quiet, then sends.
    fn turn(&mut self) -> io::Result<()> {
        loop {
            while let Some(output) = self.session.poll_output() {
                self.handle_output(output)?;
            }
            let Some((tag, reply)) = self.volume.as_mut().and_then(BlockDevice::poll_reply) else { break };
            self.session.handle_reply(self.now(), tag, reply);
        }
        while let Some(event) = self.volume.as_mut().and_then(BlockDevice::poll_event) {
            self.session.handle_event(self.now(), event);
        }
        self.flush()
    }

    fn handle_output(&mut self, output: Output) -> io::Result<()> {
        match output {
            Output::Bytes(bytes) => self.send.extend_from_slice(&bytes),
            Output::Payload(payload) => self.send.extend_from_slice(&payload),
            Output::Attach(name) => {
                self.volume = self.exports.lock().unwrap_or_else(PoisonError::into_inner).attach(&name);
            }
            Output::Request { tag, op } => {
                let volume = self.volume.as_mut().ok_or(io::Error::other("request before attach"))?;
                volume.submit(tag, op);
            }
            Output::Close => self.open = false,
        }
        if self.send.len() > READ_LEN { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.write_all(&self.send)?;
        self.send.clear();
        Ok(())
    }
}
