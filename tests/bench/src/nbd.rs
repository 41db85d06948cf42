//! Load through the NBD door: one connection, simple replies.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Result, bail};
use buffer::Buffer;
use cluster_io::{ConnId, Event, Reactor, ReactorConfig};

use crate::load::{Io, Target};

const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const HAVE_OPTION: u64 = 0x4948_4156_454f_5054;

/// A connection in transmission.
pub struct Nbd {
    io: Reactor,
    conn: ConnId,
    payload: Buffer,
    /// Data that the answer to a slot's request carries.
    expected: Vec<usize>,
    head: Vec<u8>,
    /// Data of the present answer still to come, and its slot.
    left: Option<(usize, usize)>,
}

impl Nbd {
    /// Connects to an export.
    ///
    /// # Errors
    /// The server is not there or does not have the export.
    pub fn connect(address: SocketAddr, export: &str, payload: Buffer) -> Result<Self> {
        let mut io = Reactor::new(ReactorConfig::default())?;
        let conn = io.connect_tcp(address);
        let mut hello = Vec::from(3u32.to_be_bytes());
        hello.extend_from_slice(&HAVE_OPTION.to_be_bytes());
        hello.extend_from_slice(&1u32.to_be_bytes());
        hello.extend_from_slice(&(export.len() as u32).to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        io.send_bytes(conn, &hello);
        // Greeting (18 bytes), then size and flags (10).
        let mut got = 0;
        while got < 28 {
            io.turn(None)?;
            while let Some(event) = io.next_event() {
                match event {
                    Event::Received { data, .. } => got += data.len(),
                    Event::Closed { error, .. } => bail!("the NBD server does not serve {export:?}: {error:?}"),
                    _ => {}
                }
            }
        }
        Ok(Self { io, conn, payload, expected: vec![0; 4096], head: Vec::new(), left: None })
    }

    fn take(&mut self, mut bytes: &[u8], done: &mut Vec<usize>) -> Result<()> {
        loop {
            if let Some((slot, left)) = self.left {
                let n = left.min(bytes.len());
                bytes = &bytes[n..];
                if n < left {
                    self.left = Some((slot, left - n));
                    return Ok(());
                }
                self.left = None;
                done.push(slot);
            }
            if bytes.is_empty() {
                return Ok(());
            }
            let n = (16 - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.head.len() == 16 {
                let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| self.head[at + i]));
                if word(0) != REPLY || word(4) != 0 {
                    bail!("the NBD server answered {:x?}", self.head);
                }
                let slot = word(12) as usize;
                self.left = Some((slot, self.expected[slot]));
                self.head.clear();
            }
        }
    }
}

impl Target for Nbd {
    fn start(&mut self, io: Io) {
        let mut head = [0; 28];
        head[..4].copy_from_slice(&REQUEST.to_be_bytes());
        head[7] = io.write.into();
        head[8..16].copy_from_slice(&(io.slot as u64).to_be_bytes());
        head[16..24].copy_from_slice(&io.offset.to_be_bytes());
        head[24..].copy_from_slice(&io.len.to_be_bytes());
        self.io.send_bytes(self.conn, &head);
        if io.write {
            self.io.send_buffer(self.conn, self.payload.slice(..io.len as usize));
        }
        self.expected[io.slot] = if io.write { 0 } else { io.len as usize };
    }

    fn turn(&mut self, until: Instant, done: &mut Vec<usize>) -> Result<()> {
        self.io.turn(Some(until))?;
        while let Some(event) = self.io.next_event() {
            match event {
                Event::Received { data, .. } => self.take(&data, done)?,
                Event::Closed { error, .. } => bail!("the NBD server went away: {error:?}"),
                _ => {}
            }
        }
        Ok(())
    }
}
