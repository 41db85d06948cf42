//! A small NBD client: fixed newstyle, `NBD_OPT_GO`, simple replies, any number of requests under way.

use std::collections::HashMap;
use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Error number of a refused write to a read-only export.
pub const PERMISSION_DENIED: i32 = 1;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
const FLAG_FUA: u16 = 1;

/// What can be asked of an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Read.
    Read = 0,
    /// Write.
    Write = 1,
    /// Flush.
    Flush = 3,
    /// Discard.
    Trim = 4,
    /// Write zeroes.
    Zero = 6,
}

/// A connection.
#[derive(Debug)]
pub struct Nbd {
    stream: TcpStream,
    /// Bytes to read for each request that is under way.
    pending: HashMap<u64, usize>,
    cookie: u64,
    /// Size of the export. Bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Smallest piece that may be read or written. Bytes.
    pub block_min: u32,
}

impl Nbd {
    /// Connects to an export.
    ///
    /// # Errors
    /// If the server cannot be reached, breaks the protocol or refuses the export.
    pub fn connect(address: SocketAddr, export: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut nbd = Self { stream, pending: HashMap::new(), cookie: 0, size: 0, flags: 0, block_min: 1 };
        nbd.handshake(export)?;
        Ok(nbd)
    }

    fn handshake(&mut self, export: &str) -> io::Result<()> {
        let greeting: [u8; 18] = self.array()?;
        check(&greeting[..16] == b"NBDMAGICIHAVEOPT", "it greets as no NBD server does")?;
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend_from_slice(OPTION_MAGIC);
        hello.extend_from_slice(&OPT_GO.to_be_bytes());
        hello.extend_from_slice(&(export.len() as u32 + 8).to_be_bytes());
        hello.extend_from_slice(&(export.len() as u32).to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        hello.extend_from_slice(&1u16.to_be_bytes());
        hello.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
        self.stream.write_all(&hello)?;
        while self.option_reply()? {}
        check(self.size > 0, "it told no size")
    }

    /// Takes one reply to the option. False when it was the last.
    fn option_reply(&mut self) -> io::Result<bool> {
        check(u64::from_be_bytes(self.array()?) == OPTION_REPLY_MAGIC, "an option reply has a wrong magic")?;
        let [_, kind, len] = [self.word()?, self.word()?, self.word()?];
        check(len < 1 << 16, "an option reply is too long")?;
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data)?;
        match kind {
            REP_ACK => Ok(false),
            REP_INFO => self.info(&data).map(|()| true),
            _ => Err(Error::other(format!("the export is refused ({kind:#x}): {}", String::from_utf8_lossy(&data)))),
        }
    }

    fn info(&mut self, data: &[u8]) -> io::Result<()> {
        match (data.first_chunk().map(|kind| u16::from_be_bytes(*kind)), data.len()) {
            (Some(INFO_EXPORT), 12) => {
                self.size = data[2..10].iter().fold(0, |n, b| n << 8 | u64::from(*b));
                self.flags = u16::from_be_bytes([data[10], data[11]]);
            }
            (Some(INFO_BLOCK_SIZE), 14) => self.block_min = data[2..6].iter().fold(0, |n, b| n << 8 | u32::from(*b)),
            _ => {}
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn word(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Whether the export is read-only.
    pub fn is_read_only(&self) -> bool {
        self.flags & 2 != 0
    }

    /// How long an answer is waited for; `None` is for ever.
    ///
    /// # Errors
    /// If the system refuses that.
    pub fn set_patience(&mut self, patience: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(patience)
    }

    /// Sends a request and returns its cookie. `payload` is for writes, `len` for the others.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn send(&mut self, command: Command, offset: u64, len: usize, payload: &[u8], fua: bool) -> io::Result<u64> {
        self.cookie += 1;
        let len = if command == Command::Write { payload.len() } else { len };
        let mut request = Vec::with_capacity(28 + payload.len());
        request.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        request.extend_from_slice(&(if fua { FLAG_FUA } else { 0 }).to_be_bytes());
        request.extend_from_slice(&(command as u16).to_be_bytes());
        request.extend_from_slice(&self.cookie.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&(len as u32).to_be_bytes());
        request.extend_from_slice(payload);
        self.stream.write_all(&request)?;
        self.pending.insert(self.cookie, if command == Command::Read { len } else { 0 });
        Ok(self.cookie)
    }

    /// Number of requests that are under way.
    pub fn under_way(&self) -> usize {
        self.pending.len()
    }

    /// Waits for the next answer: the request's cookie, the bytes that were read, or the error as the system's of that
    /// number.
    ///
    /// # Errors
    /// If the connection is gone, or with kind `WouldBlock` after the patience; then nothing was taken from the stream.
    pub fn receive(&mut self) -> io::Result<(u64, io::Result<Vec<u8>>)> {
        let magic = self.word()?;
        check(magic == REPLY_MAGIC, "a reply has a wrong magic")?;
        let errno = self.word()?;
        let cookie = u64::from_be_bytes(self.array()?);
        let len = self.pending.remove(&cookie).ok_or_else(|| broken("an answer to nothing that was asked"))?;
        if errno != 0 {
            return Ok((cookie, Err(Error::from_raw_os_error(errno as i32))));
        }
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data)?;
        Ok((cookie, Ok(data)))
    }

    fn call(&mut self, command: Command, offset: u64, len: usize, payload: &[u8]) -> io::Result<Vec<u8>> {
        check(self.pending.is_empty(), "other requests are under way")?;
        self.send(command, offset, len, payload, false)?;
        self.receive()?.1
    }

    /// Reads.
    ///
    /// # Errors
    /// If the server says so, or the connection is gone.
    pub fn read(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.call(Command::Read, offset, len, &[])
    }

    /// Writes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call(Command::Write, offset, 0, data).map(drop)
    }

    /// Discards.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn trim(&mut self, offset: u64, len: usize) -> io::Result<()> {
        self.call(Command::Trim, offset, len, &[]).map(drop)
    }

    /// Flushes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.call(Command::Flush, 0, 0, &[]).map(drop)
    }

    /// Reads a long range, several requests at a time.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_long(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        const PIECE: usize = 1 << 20;
        let mut data = vec![0; len];
        let mut places = HashMap::new();
        let (mut sent, mut received) = (0, 0);
        while received < len {
            while sent < len && self.pending.len() < 8 {
                let n = PIECE.min(len - sent);
                places.insert(self.send(Command::Read, offset + sent as u64, n, &[], false)?, sent);
                sent += n;
            }
            let (cookie, piece) = self.receive()?;
            let (at, piece) = (places[&cookie], piece?);
            data[at..at + piece.len()].copy_from_slice(&piece);
            received += piece.len();
        }
        Ok(data)
    }

    /// Writes a long range, several requests at a time.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write_long(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        for (i, piece) in data.chunks(1 << 20).enumerate() {
            if self.pending.len() == 8 {
                self.receive()?.1?;
            }
            self.send(Command::Write, offset + (i << 20) as u64, 0, piece, false)?;
        }
        while !self.pending.is_empty() {
            self.receive()?.1?;
        }
        Ok(())
    }
}

fn broken(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("the NBD server breaks the protocol: {why}"))
}

fn check(holds: bool, why: &str) -> io::Result<()> {
    if holds { Ok(()) } else { Err(broken(why)) }
}
