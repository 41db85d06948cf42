//! The yardstick: the same bytes over the same sockets with the same reactor, and nothing done with them.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cluster_io::{ConnId, Event, Reactor, ReactorConfig};

use crate::cpu;
use crate::load::{Io, Target};

/// What a request without payload, or an answer without data, takes on the wire. Bytes.
const SMALL: usize = 88;

/// Serves echoes until the process is ended, looking for work so long before it sleeps. Prints its address.
///
/// # Errors
/// The reactor failed.
pub fn serve(busy_poll: Duration) -> Result<()> {
    let mut io = Reactor::new(ReactorConfig::default())?;
    io.set_busy_poll(busy_poll);
    let listener = io.listen_tcp(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    println!("{}", io.local_addr(listener).context("no address")?);
    let mut peers: HashMap<ConnId, Peer> = HashMap::new();
    let zeroes = vec![0; 8 << 20];
    loop {
        while let Some(event) = io.next_event() {
            match event {
                Event::Accepted { conn, .. } => drop(peers.insert(conn, Peer::default())),
                Event::Closed { conn, .. } => drop(peers.remove(&conn)),
                Event::Received { conn, data } => {
                    let Some(peer) = peers.get_mut(&conn) else { continue };
                    for reply in peer.take(&data) {
                        io.send_bytes(conn, &zeroes[..reply.min(zeroes.len())]);
                    }
                }
                _ => {}
            }
        }
        io.turn(None)?;
    }
}

/// A connection of the server: each request begins with its length and that of the reply wanted.
#[derive(Default)]
struct Peer {
    head: Vec<u8>,
    left: usize,
    reply: usize,
    kept: Vec<u8>,
}

impl Peer {
    fn take(&mut self, mut bytes: &[u8]) -> Vec<usize> {
        let mut replies = Vec::new();
        while !bytes.is_empty() {
            if self.left == 0 {
                let n = (8 - self.head.len()).min(bytes.len());
                self.head.extend_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                if let Some((request, reply)) = self.head.split_first_chunk::<4>() {
                    let Some(reply) = reply.first_chunk::<4>() else { continue };
                    self.left = u32::from_le_bytes(*request) as usize - 8;
                    self.reply = u32::from_le_bytes(*reply) as usize;
                    self.head.clear();
                }
                continue;
            }
            let n = self.left.min(bytes.len());
            // One copy of the payload, as a server makes that stores it.
            self.kept.extend_from_slice(&bytes[..n]);
            self.left -= n;
            bytes = &bytes[n..];
            if self.left == 0 {
                self.kept.clear();
                replies.push(self.reply);
            }
        }
        replies
    }
}

/// An echo server in a process of its own.
pub struct Server {
    child: Child,
    address: SocketAddr,
    busy_poll: Duration,
}

impl Server {
    /// Starts one.
    ///
    /// # Errors
    /// The process could not be started.
    pub fn start(busy_poll: Duration) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("echo-server").arg(busy_poll.as_micros().to_string());
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let out = child.stdout.take().context("the echo server has no output")?;
        BufReader::new(out).read_line(&mut line)?;
        Ok(Self { address: line.trim().parse().context("the echo server did not start")?, child, busy_poll })
    }

    /// CPU time so far. Nanoseconds.
    pub fn cpu(&self) -> u64 {
        cpu::parts(&[self.child.id()]).values().sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Load on an echo server. Answers come in order.
pub struct Echo {
    io: Reactor,
    conn: ConnId,
    waiting: VecDeque<(usize, usize)>,
    got: usize,
    bytes: Vec<u8>,
}

impl Echo {
    /// Connects.
    ///
    /// # Errors
    /// The reactor failed.
    pub fn connect(server: &Server) -> Result<Self> {
        let mut io = Reactor::new(ReactorConfig::default())?;
        io.set_busy_poll(server.busy_poll);
        let conn = io.connect_tcp(server.address);
        Ok(Self { io, conn, waiting: VecDeque::new(), got: 0, bytes: vec![0; 8 << 20] })
    }
}

impl Target for Echo {
    fn start(&mut self, io: Io) {
        let (request, reply) =
            if io.write { (SMALL + io.len as usize, SMALL) } else { (SMALL, SMALL + io.len as usize) };
        self.bytes[..4].copy_from_slice(&(request as u32).to_le_bytes());
        self.bytes[4..8].copy_from_slice(&(reply as u32).to_le_bytes());
        self.io.send_bytes(self.conn, &self.bytes[..request]);
        self.waiting.push_back((io.slot, reply));
    }

    fn turn(&mut self, until: Instant, done: &mut Vec<usize>) -> Result<()> {
        self.io.turn(Some(until))?;
        while let Some(event) = self.io.next_event() {
            match event {
                Event::Received { data, .. } => self.got += data.len(),
                Event::Closed { error, .. } => bail!("the echo server went away: {error:?}"),
                _ => {}
            }
        }
        while let Some((slot, reply)) = self.waiting.front().copied().filter(|(_, reply)| *reply <= self.got) {
            self.got -= reply;
            self.waiting.pop_front();
            done.push(slot);
        }
        Ok(())
    }
}
