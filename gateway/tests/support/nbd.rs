//! A small blocking NBD client: the oldest handshake, simple replies, one request at a time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const EINVAL: u32 = 22;

pub struct Client {
    pub stream: TcpStream,
    pub size: u64,
    pub flags: u16,
}

fn array<const N: usize>(stream: &mut TcpStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).expect("the gateway answers");
    bytes
}

impl Client {
    pub fn connect(address: SocketAddr, export: &str) -> Self {
        Self::try_connect(address, export).expect("there is such an export")
    }

    /// `None` if the gateway closes the connection, as it does where there is no such export.
    pub fn try_connect(address: SocketAddr, export: &str) -> Option<Self> {
        let mut stream = TcpStream::connect(address).expect("the gateway listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        let greeting: [u8; 18] = array(&mut stream);
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend_from_slice(b"IHAVEOPT");
        hello.extend_from_slice(&1u32.to_be_bytes());
        hello.extend_from_slice(&(export.len() as u32).to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        stream.write_all(&hello).expect("the gateway takes it");
        let mut bytes = [0; 10];
        stream.read_exact(&mut bytes).ok()?;
        let size = u64::from_be_bytes(bytes[..8].try_into().expect("8 bytes"));
        let flags = u16::from_be_bytes(bytes[8..].try_into().expect("2 bytes"));
        Some(Self { stream, size, flags })
    }

    pub fn send(&mut self, command: u16, cookie: u64, offset: u64, len: u32, payload: &[u8]) {
        self.send_flagged(0, command, cookie, offset, len, payload);
    }

    fn send_flagged(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, len: u32, payload: &[u8]) {
        let mut header = 0x2560_9513_u32.to_be_bytes().to_vec();
        header.extend_from_slice(&flags.to_be_bytes());
        header.extend_from_slice(&command.to_be_bytes());
        header.extend_from_slice(&cookie.to_be_bytes());
        header.extend_from_slice(&offset.to_be_bytes());
        header.extend_from_slice(&len.to_be_bytes());
        header.extend_from_slice(payload);
        self.stream.write_all(&header).expect("the gateway takes it");
    }

    /// Error number and cookie of the next reply.
    pub fn reply(&mut self) -> (u32, u64) {
        let bytes: [u8; 16] = array(&mut self.stream);
        assert_eq!(bytes[..4], 0x6744_6698_u32.to_be_bytes());
        let errno = u32::from_be_bytes(bytes[4..8].try_into().expect("4 bytes"));
        (errno, u64::from_be_bytes(bytes[8..].try_into().expect("8 bytes")))
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        self.send(1, offset, offset, data.len() as u32, data);
        match self.reply() {
            (0, _) => Ok(()),
            (errno, _) => Err(errno),
        }
    }

    /// A write that is to be durable when it is answered.
    pub fn write_fua(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        self.send_flagged(1, 1, offset, offset, data.len() as u32, data);
        match self.reply() {
            (0, _) => Ok(()),
            (errno, _) => Err(errno),
        }
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, u32> {
        self.send(0, offset, offset, len as u32, &[]);
        match self.reply() {
            (0, _) => {
                let mut data = vec![0; len];
                self.stream.read_exact(&mut data).expect("the gateway answers");
                Ok(data)
            }
            (errno, _) => Err(errno),
        }
    }

    pub fn flush(&mut self) -> Result<(), u32> {
        self.send(3, 0, 0, 0, &[]);
        match self.reply() {
            (0, _) => Ok(()),
            (errno, _) => Err(errno),
        }
    }

    /// A request that says nothing but whether the connection still serves.
    pub fn is_alive(&mut self) -> bool {
        self.read(u64::MAX, 1) == Err(EINVAL)
    }
}
