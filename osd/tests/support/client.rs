//! A small blocking client: one connection, one request at a time unless told otherwise.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use buffer::Buffer;
use cluster_proto::auth::Credentials;
use cluster_proto::crc::{first_mismatch, sector_crcs};
use cluster_proto::ids::{ClientId, Epoch, Incarnation, ObjectId, OsdId};
use cluster_proto::link::{Identity, LinkId, Outgoing};
use cluster_proto::wire::{Channel, Message, Nonce, Refusal, Reply, ReplyBody, Request, RequestOp, Role};
use cluster_proto::{SECTOR, SectorRange, Status, Uuid};

/// How long a request is repeated.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Client {
    stream: TcpStream,
    channel: Channel,
    input: Vec<u8>,
    chunk: Vec<u8>,
    output: Vec<u8>,
    id: ClientId,
    seq: u64,
    pg_count: u32,
}

/// One sector's worth of recognisable bytes.
pub fn pattern(seed: u64, sectors: usize) -> Buffer {
    let mut state = seed | 1;
    let words = (0..sectors * SECTOR / 8).flat_map(|_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state ^ seed).to_le_bytes()
    });
    Buffer::copy_of(&words.collect::<Vec<u8>>())
}

impl Client {
    /// Connects, sends an introduction and brings it to an end.
    pub fn introduce(
        address: SocketAddr,
        cluster: Uuid,
        target: OsdId,
        id: u64,
        credentials: Option<Credentials>,
    ) -> Result<Self, Refusal> {
        let stream = TcpStream::connect(address).expect("the OSD listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        let mut client = Self {
            stream,
            channel: Channel::new(),
            input: Vec::new(),
            chunk: vec![0; 256 << 10],
            output: Vec::new(),
            id: ClientId(id),
            seq: 0,
            pg_count: super::PG_COUNT,
        };
        let role = Role::Client(client.id);
        let identity = Identity { cluster, role, incarnation: Incarnation(id), credentials };
        let mut out = Outgoing::new(target);
        out.poll(0, Some(address), LinkId(1));
        let nonce = Nonce(cluster_io::entropy::bytes().expect("the kernel has some"));
        client.send(&out.handle_connected(&identity, nonce).expect("it is connecting"));
        let introduced = match client.receive() {
            Message::Refuse(why) => return Err(why),
            Message::Welcome(welcome) => out.handle_welcome(0, &identity, &welcome)?,
            other => panic!("{other:?}"),
        };
        if let Some(answer) = introduced.answer {
            client.send(&answer);
        }
        client.channel.introduce(introduced.session);
        Ok(client)
    }

    pub fn send(&mut self, message: &Message) {
        self.output.clear();
        if let Some(payload) = self.channel.encode(message, &mut self.output) {
            self.output.extend_from_slice(&payload);
        }
        self.stream.write_all(&self.output).expect("the OSD takes it");
    }

    pub fn receive(&mut self) -> Message {
        loop {
            let mut rest = &self.input[..];
            let decoded = self.channel.decode(&mut rest).expect("the OSD keeps the protocol");
            let used = self.input.len() - rest.len();
            self.input.drain(..used);
            if let Some(message) = decoded {
                return message;
            }
            let n = self.stream.read(&mut self.chunk).expect("the OSD answers");
            assert!(n > 0, "the OSD closed the connection");
            self.input.extend_from_slice(&self.chunk[..n]);
        }
    }

    /// Sends a request without waiting; returns its number.
    pub fn begin(&mut self, object: ObjectId, op: RequestOp) -> u64 {
        self.seq += 1;
        self.begin_as(self.seq, object, op);
        self.seq
    }

    fn begin_as(&mut self, seq: u64, object: ObjectId, op: RequestOp) {
        let pg = object.pg(self.pg_count).index;
        // Everything is answered before a waiting request is sent; those that do not wait keep the window open.
        let floor = seq.saturating_sub(1000).max(1);
        self.send(&Message::Request(Request { seq, floor, epoch: Epoch(0), only_in_epoch: false, pg, object, op }));
    }

    pub fn next_reply(&mut self) -> Reply {
        match self.receive() {
            Message::Reply(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// Sends a request until it is served.
    pub fn call(&mut self, object: ObjectId, op: RequestOp) -> Reply {
        self.seq += 1;
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.begin_as(self.seq, object, op.clone());
            let reply = self.next_reply();
            assert_eq!(reply.seq, self.seq);
            if !reply.status.is_transient() {
                return reply;
            }
            assert!(Instant::now() < deadline, "still {}", reply.status);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn write(&mut self, object: ObjectId, start: u32, data: &Buffer) {
        let sectors = SectorRange::new(start, (data.len() / SECTOR) as u32);
        let op = RequestOp::Write { sectors, data: data.clone(), crcs: sector_crcs(data) };
        assert_eq!(self.call(object, op).status, Status::Ok);
    }

    pub fn compare_and_write(&mut self, object: ObjectId, start: u32, expected: &Buffer, new: &Buffer) -> Status {
        let both = Buffer::copy_of(&[&expected[..], &new[..]].concat());
        let sectors = SectorRange::new(start, (new.len() / SECTOR) as u32);
        let crcs = sector_crcs(&both);
        self.call(object, RequestOp::CompareAndWrite { sectors, data: both, crcs }).status
    }

    pub fn read(&mut self, object: ObjectId, start: u32, count: u32) -> Buffer {
        let reply = self.call(object, RequestOp::Read(SectorRange::new(start, count)));
        assert_eq!(reply.status, Status::Ok);
        let ReplyBody::Data { data, crcs } = reply.body else { panic!("{:?}", reply.body) };
        assert_eq!(first_mismatch(&data, &crcs), None);
        data
    }

    /// (count, holds data) of each run.
    pub fn allocation(&mut self, object: ObjectId, start: u32, count: u32) -> Vec<(u32, bool)> {
        let reply = self.call(object, RequestOp::Allocation(SectorRange::new(start, count)));
        let ReplyBody::Allocation(runs) = reply.body else { panic!("{:?}", reply.body) };
        runs.iter().map(|run| (run.count, run.data)).collect()
    }
}
