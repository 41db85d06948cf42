//! A request/response echo over the reactor: the yardstick for what the network alone costs.
//!
//! `echo server ADDR`, then `echo client ADDR --depth N --seconds S --request BYTES --reply BYTES`. Each request says in
//! its first 8 bytes how long it is and how long its reply shall be. The server copies every request's bytes once, as a
//! server that stores them must. Both sides print their CPU time (user and system, whole process) per operation.

use std::collections::HashMap;
use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cluster_io::{ConnId, Event, Reactor, ReactorConfig};

const HEADER: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let number = |name: &str, default: usize| option(name).map_or(Ok(default), |v| v.parse());
    match (arguments.first().map(String::as_str), arguments.get(1)) {
        (Some("server"), Some(addr)) => serve(addr.parse()?),
        (Some("client"), Some(addr)) => {
            let load = Load {
                depth: number("--depth", 1)?.max(1),
                seconds: number("--seconds", 3)?.max(1) as u64,
                request: number("--request", 64)?.max(HEADER),
                reply: number("--reply", 64)?.max(1),
            };
            Client::run(addr.parse()?, load)
        }
        _ => {
            Err("usage: echo server ADDR | echo client ADDR [--depth N] [--seconds S] [--request B] [--reply B]".into())
        }
    }
}

fn reactor() -> Result<Reactor, cluster_io::Error> {
    let default = ReactorConfig::default();
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    Reactor::new(ReactorConfig {
        receive_buffers: number("ECHO_BUFFERS").map_or(default.receive_buffers, |n| n as u16),
        receive_buffer_bytes: number("ECHO_BUFFER_BYTES").unwrap_or(default.receive_buffer_bytes),
        ..default
    })
}

/// User and system time of this process in seconds, in steps of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// The server's view of one connection.
#[derive(Default)]
struct Peer {
    header: Vec<u8>,
    /// Bytes of the current request still to come.
    left: usize,
    reply: usize,
    payload: Vec<u8>,
}

impl Peer {
    /// Takes bytes in, appends the replies they complete; the number of those.
    fn handle(&mut self, mut bytes: &[u8], zeroes: &mut Vec<u8>, out: &mut Vec<u8>) -> u64 {
        let mut count = 0;
        while !bytes.is_empty() {
            if self.left == 0 {
                bytes = self.handle_header(bytes);
                continue;
            }
            let (now, rest) = bytes.split_at(self.left.min(bytes.len()));
            self.payload.extend_from_slice(now);
            self.left -= now.len();
            bytes = rest;
            if self.left == 0 {
                self.payload.clear();
                zeroes.resize(zeroes.len().max(self.reply), 0);
                out.extend_from_slice(&zeroes[..self.reply]);
                count += 1;
            }
        }
        count
    }

    fn handle_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (now, rest) = bytes.split_at((HEADER - self.header.len()).min(bytes.len()));
        self.header.extend_from_slice(now);
        if let Ok(header) = <[u8; HEADER]>::try_from(&self.header[..]) {
            let [a, b, c, d, e, f, g, h] = header;
            self.left = (u32::from_le_bytes([a, b, c, d]) as usize).clamp(HEADER + 1, 64 << 20) - HEADER;
            self.reply = (u32::from_le_bytes([e, f, g, h]) as usize).min(64 << 20);
            self.header.clear();
        }
        rest
    }
}

fn serve(addr: SocketAddr) -> Result<(), Box<dyn Error>> {
    let mut r = reactor()?;
    let listener = r.listen_tcp(addr)?;
    println!("listening on {}", r.local_addr(listener).ok_or("no address")?);
    let mut peers: HashMap<ConnId, Peer> = HashMap::new();
    let (mut count, mut cpu, mut zeroes) = (0, 0.0, Vec::new());
    let mut before = r.counters();
    loop {
        while let Some(event) = r.next_event() {
            match event {
                Event::Accepted { conn, .. } => {
                    peers.insert(conn, Peer::default());
                    (count, cpu, before) = (0, cpu_seconds(), r.counters());
                }
                Event::Received { conn, data } => {
                    let Some(peer) = peers.get_mut(&conn) else { continue };
                    r.send_with(conn, |out| count += peer.handle(&data, &mut zeroes, out));
                }
                Event::Closed { conn, .. } => {
                    peers.remove(&conn);
                    report("server", count, cpu_seconds() - cpu, before, &r);
                }
                _ => {}
            }
        }
        r.turn(None)?;
    }
}

fn report(side: &str, count: u64, cpu: f64, before: cluster_io::Counters, r: &Reactor) {
    let (after, n) = (r.counters(), count.max(1) as f64);
    let (turns, enters) = (after.turns - before.turns, after.enters - before.enters);
    let (per_op, per_turn) = (turns as f64 / n, enters as f64 / turns.max(1) as f64);
    println!("  {side}: cpu {:.2} us/op, {per_op:.3} turns/op, {per_turn:.4} enters/turn", cpu * 1e6 / n);
}

struct Load {
    depth: usize,
    seconds: u64,
    request: usize,
    reply: usize,
}

struct Client {
    load: Load,
    request: Vec<u8>,
    /// When the outstanding requests were queued; replies come in the same order.
    started: std::collections::VecDeque<Instant>,
    /// Bytes of the next reply already here.
    partial: usize,
    latencies_ns: Vec<u32>,
}

impl Client {
    fn run(addr: SocketAddr, load: Load) -> Result<(), Box<dyn Error>> {
        let mut request = vec![0; load.request.max(HEADER + 1)];
        request[..4].copy_from_slice(&(load.request.max(HEADER + 1) as u32).to_le_bytes());
        request[4..8].copy_from_slice(&(load.reply as u32).to_le_bytes());
        let mut r = reactor()?;
        let conn = r.connect_tcp(addr);
        let mut client = Client {
            load,
            request,
            started: Default::default(),
            partial: 0,
            latencies_ns: Vec::with_capacity(1 << 24),
        };
        (0..client.load.depth).for_each(|_| client.send(&mut r, conn));
        let (begin, cpu, before) = (Instant::now(), cpu_seconds(), r.counters());
        let end = begin + Duration::from_secs(client.load.seconds);
        while r.now() < end {
            while let Some(event) = r.next_event() {
                match event {
                    Event::Received { data, .. } => client.handle(&mut r, conn, data.len()),
                    Event::Closed { error, .. } => return Err(format!("the connection ended: {error:?}").into()),
                    _ => {}
                }
            }
            r.turn(Some(end))?;
        }
        let (elapsed, cpu) = (begin.elapsed(), cpu_seconds() - cpu);
        client.print(elapsed);
        report("client", client.latencies_ns.len() as u64, cpu, before, &r);
        Ok(())
    }

    fn send(&mut self, r: &mut Reactor, conn: ConnId) {
        r.send_bytes(conn, &self.request);
        self.started.push_back(Instant::now());
    }

    fn handle(&mut self, r: &mut Reactor, conn: ConnId, bytes: usize) {
        self.partial += bytes;
        while self.partial >= self.load.reply {
            self.partial -= self.load.reply;
            if let Some(started) = self.started.pop_front() {
                self.latencies_ns.push(started.elapsed().as_nanos() as u32);
            }
            self.send(r, conn);
        }
    }

    fn print(&mut self, elapsed: Duration) {
        let all = &mut self.latencies_ns;
        all.sort_unstable();
        let at = |part: f64| all.get((all.len() as f64 * part) as usize).map_or(0.0, |ns| f64::from(*ns) / 1e3);
        let mean = all.iter().map(|ns| f64::from(*ns)).sum::<f64>() / all.len().max(1) as f64 / 1e3;
        println!(
            "depth {} request {} reply {}: {:.0} ops/s, mean {mean:.1} us, p50 {:.1}, p99 {:.1}",
            self.load.depth,
            self.load.request,
            self.load.reply,
            all.len() as f64 / elapsed.as_secs_f64(),
            at(0.5),
            at(0.99)
        );
    }
}
