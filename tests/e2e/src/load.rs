//! A load that knows what must be there afterwards, whatever happened to the server in between.
//!
//! Each piece of 512 bytes is in at most one request at a time, so after a crash it holds what was acknowledged last, or
//! what the request holds that was under way: nothing else. A write of whole sectors inside one object is there as a
//! whole or not at all.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{Command, Nbd, Random, UNIT, read_stamp, write_stamp};

/// What is atomic: whole sectors ...
const SECTOR_UNITS: u64 = 4096 / UNIT as u64;
/// ... inside one object.
const OBJECT_UNITS: u64 = (1 << 20) / UNIT as u64;

/// The shape of a load.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    /// For messages.
    pub name: &'static str,
    /// Requests under way at once.
    pub depth: usize,
    /// Longest request. Pieces.
    pub units_max: u64,
    /// Requests begin and end at multiples of this. Pieces.
    pub align: u64,
    /// Share of requests that write zeroes. Percent.
    pub zeroes: u64,
    /// Share of requests that read. Percent.
    pub reads: u64,
    /// Writes ask for durability one by one.
    pub fua: bool,
}

impl Pattern {
    /// Small and large, alone and many, aligned and not.
    pub const ALL: [Pattern; 5] = [
        Pattern { name: "one by one", depth: 1, units_max: 8, align: 8, zeroes: 0, reads: 0, fua: true },
        Pattern { name: "512 bytes and more", depth: 32, units_max: 20, align: 1, zeroes: 5, reads: 10, fua: false },
        Pattern { name: "sectors", depth: 32, units_max: 64, align: 8, zeroes: 5, reads: 20, fua: false },
        Pattern { name: "large", depth: 4, units_max: 2048, align: 8, zeroes: 10, reads: 5, fua: false },
        Pattern { name: "everything", depth: 16, units_max: 600, align: 1, zeroes: 20, reads: 20, fua: true },
    ];
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Request {
    first: u64,
    count: u64,
    /// Sequence number, 0 for zeroes, none for reads.
    writes: Option<u64>,
    issued: Instant,
}

impl Request {
    fn units(self) -> std::ops::Range<u64> {
        self.first..self.first + self.count
    }

    fn is_atomic(self) -> bool {
        let last = self.first + self.count - 1;
        self.first.is_multiple_of(SECTOR_UNITS)
            && self.count.is_multiple_of(SECTOR_UNITS)
            && self.first / OBJECT_UNITS == last / OBJECT_UNITS
    }
}

/// A part of an image that one connection writes to, and what is known of it.
#[derive(Debug)]
pub struct Lane {
    first: u64,
    /// Acknowledged sequence number of each piece; 0 is zeroes.
    acknowledged: Vec<u64>,
    busy: Vec<bool>,
    under_way: HashMap<u64, Request>,
    sequence: u64,
    random: Random,
    /// Writes acknowledged so far.
    pub writes: u64,
    /// The longest that a request took.
    pub slowest: Slowest,
}

/// The longest that a request took, since somebody looked.
#[derive(Clone, Debug, Default)]
pub struct Slowest(Arc<AtomicU64>);

impl Slowest {
    fn add(&self, took: Duration) {
        self.0.fetch_max(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// How long it took; counts anew from here.
    pub fn take(&self) -> Duration {
        Duration::from_micros(self.0.swap(0, Ordering::Relaxed))
    }
}

impl Lane {
    /// The bytes `offset..offset + len` of an image, which read as zeroes. Both are multiples of 1 MiB.
    pub fn new(offset: u64, len: u64, seed: u64) -> Self {
        let units = (len / UNIT as u64) as usize;
        Self {
            first: offset / UNIT as u64,
            acknowledged: vec![0; units],
            busy: vec![false; units],
            under_way: HashMap::new(),
            sequence: 0,
            random: Random::new(seed),
            writes: 0,
            slowest: Slowest::default(),
        }
    }

    /// Loads the connection until it breaks, and says so when something was written.
    ///
    /// # Panics
    /// If an answer is an error, or something read is not what must be there.
    pub fn run(&mut self, nbd: &mut Nbd, pattern: &Pattern, written: &AtomicBool) -> io::Error {
        let before = self.writes;
        loop {
            if let Err(e) = self.turn(nbd, pattern) {
                return e;
            }
            written.fetch_or(self.writes > before, Ordering::Relaxed);
        }
    }

    /// Loads the connection as long as `go` says, and then waits for all answers.
    ///
    /// # Panics
    /// As [`Self::run`], and if the connection breaks.
    pub fn run_while(&mut self, nbd: &mut Nbd, pattern: &Pattern, mut go: impl FnMut(&Lane) -> bool) {
        while go(self) {
            self.turn(nbd, pattern).unwrap_or_else(|e| panic!("{}: the connection broke: {e}", pattern.name));
        }
        while !self.under_way.is_empty() {
            self.take_answer(nbd, pattern).unwrap_or_else(|e| panic!("{}: the connection broke: {e}", pattern.name));
        }
    }

    fn turn(&mut self, nbd: &mut Nbd, pattern: &Pattern) -> io::Result<()> {
        while nbd.under_way() < pattern.depth {
            let Some(request) = self.choose(pattern) else { break };
            self.issue(nbd, request, pattern.fua)?;
        }
        self.take_answer(nbd, pattern)
    }

    fn take_answer(&mut self, nbd: &mut Nbd, pattern: &Pattern) -> io::Result<()> {
        let (cookie, answer) = nbd.receive()?;
        let request = self.under_way.remove(&cookie).expect("an answer to what was asked");
        let data = answer.unwrap_or_else(|e| panic!("{}: {request:?} failed: {e}", pattern.name));
        self.slowest.add(request.issued.elapsed());
        self.finish(request, &data);
        Ok(())
    }

    fn choose(&mut self, pattern: &Pattern) -> Option<Request> {
        (0..20).find_map(|_| {
            let pieces = 1 + self.random.below(pattern.units_max / pattern.align);
            let count = pieces * pattern.align;
            let places = (self.acknowledged.len() as u64 - count) / pattern.align + 1;
            let first = self.random.below(places) * pattern.align;
            if self.busy[first as usize..(first + count) as usize].contains(&true) {
                return None;
            }
            let writes = if self.random.percent(pattern.reads) {
                None
            } else if self.random.percent(pattern.zeroes) {
                Some(0)
            } else {
                self.sequence += 1;
                Some(self.sequence)
            };
            Some(Request { first, count, writes, issued: Instant::now() })
        })
    }

    fn issue(&mut self, nbd: &mut Nbd, request: Request, fua: bool) -> io::Result<()> {
        let len = request.count as usize * UNIT;
        let offset = (self.first + request.first) * UNIT as u64;
        request.units().for_each(|unit| self.busy[unit as usize] = true);
        let sent = match request.writes {
            None => nbd.send(Command::Read, offset, len, &[], false),
            Some(0) => nbd.send(Command::Zero, offset, len, &[], fua),
            Some(sequence) => {
                let mut data = vec![0; len];
                for (unit, bytes) in request.units().zip(data.chunks_exact_mut(UNIT)) {
                    write_stamp(bytes, self.first + unit, sequence);
                }
                nbd.send(Command::Write, offset, 0, &data, fua)
            }
        };
        // What could not be sent as a whole may have been taken nevertheless: it counts as under way.
        let cookie = *sent.as_ref().unwrap_or(&u64::MAX);
        self.under_way.insert(cookie, request);
        sent.map(drop)
    }

    fn finish(&mut self, request: Request, data: &[u8]) {
        request.units().for_each(|unit| self.busy[unit as usize] = false);
        match request.writes {
            Some(sequence) => {
                self.writes += 1;
                request.units().for_each(|unit| self.acknowledged[unit as usize] = sequence);
            }
            None => {
                for (unit, bytes) in request.units().zip(data.chunks_exact(UNIT)) {
                    let found = self.stamp(unit, bytes);
                    let expected = self.acknowledged[unit as usize];
                    assert!(found == expected, "byte {}: read number {found}, not {expected}", self.byte(unit));
                }
            }
        }
    }

    fn byte(&self, unit: u64) -> u64 {
        (self.first + unit) * UNIT as u64
    }

    fn stamp(&self, unit: u64, bytes: &[u8]) -> u64 {
        read_stamp(bytes, self.first + unit).unwrap_or_else(|why| panic!("byte {}: {why}", self.byte(unit)))
    }

    /// Reads everything after a crash and compares it with what was acknowledged and what was under way. Returns how many
    /// of the writes under way were carried out.
    ///
    /// # Panics
    /// If an acknowledged write is lost, an atomic one is there in part, or something is there that nobody wrote.
    pub fn check(&mut self, nbd: &mut Nbd) -> usize {
        let data = nbd.read_long(self.first * UNIT as u64, self.acknowledged.len() * UNIT).expect("everything is read");
        let found: Vec<_> = (0..).zip(data.chunks_exact(UNIT)).map(|(unit, bytes)| self.stamp(unit, bytes)).collect();
        let mut possible = HashMap::new();
        let under_way: Vec<_> = self.under_way.drain().map(|(_, request)| request).collect();
        let writes: Vec<_> = under_way.iter().filter_map(|request| Some((request, request.writes?))).collect();
        for (request, sequence) in &writes {
            possible.extend(request.units().map(|unit| (unit, *sequence)));
        }
        for (unit, (found, acknowledged)) in (0..).zip(found.iter().zip(&self.acknowledged)) {
            let late = possible.get(&unit);
            assert!(
                found == acknowledged || late == Some(found),
                "byte {}: number {found} is there; {acknowledged} was acknowledged, under way was {late:?}",
                self.byte(unit)
            );
        }
        let mut done = 0;
        for (request, sequence) in writes {
            let there = request.units().filter(|unit| found[*unit as usize] == sequence).count();
            let before = request.units().filter(|unit| self.acknowledged[*unit as usize] == sequence).count();
            let torn = there != request.count as usize && there != before;
            assert!(!(torn && request.is_atomic()), "a write is there in part: {request:?}, {there} pieces of it");
            done += usize::from(there == request.count as usize);
        }
        self.acknowledged = found;
        self.busy.fill(false);
        done
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{Arc, Mutex};
    use std::thread;

    use super::*;

    const LEN: usize = 4 << 20;
    type Bytes = Arc<Mutex<Vec<u8>>>;

    /// A server of plain memory that hangs up after so many requests.
    fn serve(bytes: &Bytes, requests: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, bytes) = (listener.local_addr().unwrap(), bytes.clone());
        thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            greet(&mut stream);
            (0..requests).try_for_each(|_| answer(&mut stream, &bytes))
        });
        address
    }

    fn greet(stream: &mut TcpStream) {
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
        let mut hello = [0; 4 + 16 + 4 + 1 + 4];
        stream.read_exact(&mut hello).unwrap();
        let reply = |kind: u32, data: &[u8]| {
            let head =
                [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &7u32.to_be_bytes(), &kind.to_be_bytes()].concat();
            [&head[..], &(data.len() as u32).to_be_bytes(), data].concat()
        };
        let export = [&[0, 0][..], &(LEN as u64).to_be_bytes(), &[0, 0x41]].concat();
        stream.write_all(&[reply(3, &export), reply(1, &[])].concat()).unwrap();
    }

    fn answer(stream: &mut TcpStream, bytes: &Bytes) -> io::Result<()> {
        let mut head = [0; 28];
        stream.read_exact(&mut head)?;
        let number = |range: std::ops::Range<usize>| head[range].iter().fold(0, |n, b| n << 8 | usize::from(*b));
        let (command, offset, len) = (number(6..8), number(16..24), number(24..28));
        let mut reply = [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &head[8..16]].concat();
        let mut bytes = bytes.lock().unwrap();
        match command {
            0 => reply.extend_from_slice(&bytes[offset..offset + len]),
            1 => stream.read_exact(&mut bytes[offset..offset + len])?,
            _ => bytes[offset..offset + len].fill(0),
        }
        stream.write_all(&reply)
    }

    /// What `check` says after a load of this pattern and what `damage` does.
    fn after(pattern: Pattern, damage: impl FnOnce(&mut Vec<u8>, &Lane)) -> Result<usize, String> {
        let bytes = Bytes::new(Mutex::new(vec![0; LEN]));
        let mut lane = Lane::new(1 << 20, 2 << 20, 1);
        let written = AtomicBool::new(false);
        lane.run(&mut Nbd::connect(serve(&bytes, 300), "x").unwrap(), &pattern, &written);
        assert!(written.into_inner());
        assert!(lane.writes > 100 && !lane.under_way.is_empty());
        damage(&mut bytes.lock().unwrap(), &lane);
        let mut nbd = Nbd::connect(serve(&bytes, 100), "x").unwrap();
        let checked = catch_unwind(AssertUnwindSafe(|| lane.check(&mut nbd)));
        checked.map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())
    }

    /// A piece that was written and is not being written to.
    fn settled(lane: &Lane) -> usize {
        let quiet = |unit: &usize| lane.acknowledged[*unit] > 0 && !lane.busy[*unit];
        (0..lane.busy.len()).find(quiet).unwrap() * UNIT + (1 << 20)
    }

    #[test]
    fn a_server_that_keeps_everything_passes() {
        for pattern in Pattern::ALL {
            assert!(after(pattern, |_, _| {}).is_ok(), "{}", pattern.name);
        }
    }

    #[test]
    fn lost_mixed_up_and_changed_pieces_are_noticed() {
        let pattern = Pattern::ALL[1];
        let lost = after(pattern, |bytes, lane| bytes[settled(lane)..][..UNIT].fill(0)).unwrap_err();
        assert!(lost.contains("number 0 is there"), "{lost}");
        let changed = after(pattern, |bytes, lane| bytes[settled(lane) + 99] ^= 1).unwrap_err();
        assert!(changed.contains("wrong from byte 99"), "{changed}");
        let moved = after(pattern, |bytes, lane| {
            let at = settled(lane);
            bytes.copy_within(at..at + UNIT, 3 << 19);
        });
        assert!(moved.unwrap_err().contains("no stamp of this place"));
    }

    #[test]
    fn a_write_in_part_is_noticed() {
        let torn = after(Pattern::ALL[2], |bytes, lane| {
            let atomic = |r: &&Request| r.is_atomic() && r.count > 8 && r.writes.is_some_and(|sequence| sequence > 0);
            let request = lane.under_way.values().find(atomic).unwrap();
            for unit in request.units() {
                let at = (lane.first + unit) as usize * UNIT;
                let sequence =
                    if unit < request.first + 8 { request.writes.unwrap() } else { lane.acknowledged[unit as usize] };
                bytes[at..at + UNIT].fill(0);
                if sequence > 0 {
                    write_stamp(&mut bytes[at..at + UNIT], lane.first + unit, sequence);
                }
            }
        });
        assert!(torn.unwrap_err().contains("in part"));
    }
}
