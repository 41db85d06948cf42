//! Messages to bytes and back.

use buffer::{Buffer, BufferMut};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use super::codec::{DecodeError, Reader, put};
use super::header::{HEAD_CRC_OFFSET, HEADER_LEN, MAGIC, RawHeader, Sizes};
use super::{
    Deposed, Hello, Message, Opener, PeerInfo, PeerList, PeerObjects, PeerQuery, Proof, Refusal, Reply, Request,
    SubReply, SubRequest, Welcome,
};
use crate::crc::{Crcs, crc32c};
use crate::layout::SECTOR;

/// Payload of a message and its checksums.
pub(super) type Payload<'a> = Option<(&'a Buffer, &'a Crcs)>;

/// Appends everything of a message but its payload to `out`, and returns the payload, to be sent right behind.
pub fn encode(message: &Message, out: &mut Vec<u8>) -> Option<Buffer> {
    let start = out.len();
    let header = RawHeader {
        magic: MAGIC,
        kind: kind(message),
        flags: 0,
        body_len: 0.into(),
        payload_len: 0.into(),
        head_crc: 0.into(),
        id: id(message).into(),
        reserved: 0.into(),
    };
    put(out, &header);
    let payload = put_body(message, out);
    let body_len = (out.len() - start - HEADER_LEN).next_multiple_of(8);
    out.resize(start + HEADER_LEN + body_len, 0);
    let payload = payload.filter(|(data, _)| !data.is_empty());
    if let Some((_, crcs)) = payload {
        for crc in crcs {
            out.extend_from_slice(&crc.to_le_bytes());
        }
    }
    let payload_len = payload.map_or(0, |(data, _)| data.len());
    let header = RawHeader { body_len: (body_len as u16).into(), payload_len: (payload_len as u32).into(), ..header };
    out[start..start + HEADER_LEN].copy_from_slice(header.as_bytes());
    let crc = crc32c(&out[start..]);
    out[start + HEAD_CRC_OFFSET..start + HEAD_CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
    payload.map(|(data, _)| data.clone())
}

fn kind(message: &Message) -> u8 {
    match message {
        Message::Hello(_) => 1,
        Message::Welcome(_) => 2,
        Message::Refuse(_) => 3,
        Message::Ping => 4,
        Message::Pong { .. } => 5,
        Message::Proof(_) => 6,
        Message::Request(_) => 10,
        Message::Reply(_) => 11,
        Message::SubRequest(_) => 20,
        Message::SubReply(_) => 21,
        Message::PeerQuery(_) => 30,
        Message::PeerInfo(_) => 31,
        Message::PeerList(_) => 32,
        Message::PeerObjects(_) => 33,
        Message::Deposed(_) => 34,
    }
}

fn id(message: &Message) -> u64 {
    match message {
        Message::Request(m) => m.seq,
        Message::Reply(m) => m.seq,
        Message::SubRequest(m) => m.id,
        Message::SubReply(m) => m.id,
        _ => 0,
    }
}

fn put_body<'a>(message: &'a Message, out: &mut Vec<u8>) -> Payload<'a> {
    match message {
        Message::Request(m) => return m.put(out),
        Message::Reply(m) => return m.put(out),
        Message::SubRequest(m) => return m.put(out),
        Message::SubReply(m) => return m.put(out),
        Message::Hello(m) => m.put(out),
        Message::Welcome(m) => m.put(out),
        Message::Proof(m) => m.put(out),
        Message::Refuse(m) => m.put(out),
        Message::PeerQuery(m) => m.put(out),
        Message::PeerInfo(m) => m.put(out),
        Message::PeerList(m) => m.put(out),
        Message::PeerObjects(m) => m.put(out),
        Message::Deposed(m) => m.put(out),
        Message::Pong { free_bytes } => out.extend_from_slice(&free_bytes.to_le_bytes()),
        Message::Ping => {}
    }
    None
}

/// Where the decoder stands between two calls.
enum Stage {
    /// Collecting the head (header, body, checksum list) in `partial`.
    Head,
    /// The head is complete in `partial`; the payload is being filled, and is verified while what was copied is still in the cache.
    Payload { payload: BufferMut, filled: usize, verified: usize },
}

/// Turns a byte stream into messages. Memory is bounded by one message (and one sealed record), and until
/// [`Decoder::introduce`] by a few hundred bytes.
///
/// A head that arrives whole is parsed where it lies; a payload is copied once, into the page-aligned buffer that the
/// device write or the reader takes.
pub struct Decoder {
    partial: Vec<u8>,
    stage: Stage,
    introduced: bool,
    opener: Option<Box<Opener>>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder for a fresh connection: the first message must be small and without payload.
    pub fn new() -> Self {
        Self { partial: Vec::new(), stage: Stage::Head, introduced: false, opener: None }
    }

    /// Who the peer is has been settled, and proved if it must be: from here on it may send what it likes, sealed if there
    /// are keys. To be called between the message that settled it and the next [`Decoder::decode`].
    pub fn introduce(&mut self, opener: Option<Opener>) {
        debug_assert!(self.partial.is_empty(), "in the middle of a message");
        self.introduced = true;
        self.opener = opener.map(Box::new);
    }

    /// Has [`Decoder::introduce`] been called? If not, carry out what the core wants after each single message.
    pub fn is_introduced(&self) -> bool {
        self.introduced
    }

    /// Takes bytes from the front of `input` and returns the next message, if it is complete. Call until it returns
    /// `None` (then `input` is used up).
    ///
    /// # Errors
    /// The stream is not this protocol, is damaged, or breaks a bound; the connection must be closed.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Message>, DecodeError> {
        let Some(mut opener) = self.opener.take() else { return self.decode_plain(input) };
        let result = self.decode_sealed(&mut opener, input);
        self.opener = Some(opener);
        result
    }

    fn decode_sealed(&mut self, opener: &mut Opener, input: &mut &[u8]) -> Result<Option<Message>, DecodeError> {
        loop {
            let mut plain = opener.unread();
            if !plain.is_empty() {
                let message = self.decode_plain(&mut plain)?;
                let left = plain.len();
                opener.keep(left);
                if message.is_some() {
                    return Ok(message);
                }
            }
            if !opener.collect(input)? {
                return Ok(None);
            }
        }
    }

    fn decode_plain(&mut self, input: &mut &[u8]) -> Result<Option<Message>, DecodeError> {
        if matches!(self.stage, Stage::Head) {
            if self.partial.is_empty()
                && let Some(done) = self.decode_in_place(input)?
            {
                return done;
            }
            if matches!(self.stage, Stage::Head) && !self.collect_head(input)? {
                return Ok(None);
            }
        }
        self.collect_payload(input)
    }

    /// The fast path: the whole head lies in `input`. `None` when it does not, or when a payload must be collected.
    fn decode_in_place(
        &mut self,
        input: &mut &[u8],
    ) -> Result<Option<Result<Option<Message>, DecodeError>>, DecodeError> {
        let bytes = *input;
        let Ok((header, _)) = RawHeader::ref_from_prefix(bytes) else { return Ok(None) };
        let sizes = header.sizes(self.introduced)?;
        if bytes.len() < sizes.head() {
            return Ok(None);
        }
        let (head, rest) = bytes.split_at(sizes.head());
        verify_head(head)?;
        if rest.len() >= sizes.payload {
            let (payload, rest) = rest.split_at(sizes.payload);
            *input = rest;
            let payload = if payload.is_empty() { Buffer::new() } else { Buffer::copy_of(payload) };
            verify_payload(&payload, head, HEADER_LEN + sizes.body)?;
            return Ok(Some(read_message(head, sizes, payload).map(Some)));
        }
        self.partial.extend_from_slice(head);
        *input = rest;
        self.stage = Stage::Payload { payload: BufferMut::for_overwrite(sizes.payload), filled: 0, verified: 0 };
        Ok(None)
    }

    /// Collects the head piece by piece; true when it is complete and the stage is `Payload`.
    fn collect_head(&mut self, input: &mut &[u8]) -> Result<bool, DecodeError> {
        loop {
            let want = match RawHeader::ref_from_prefix(&self.partial) {
                Ok((header, _)) => header.sizes(self.introduced)?.head(),
                Err(_) => HEADER_LEN,
            };
            let n = (want - self.partial.len()).min(input.len());
            self.partial.extend_from_slice(&input[..n]);
            *input = &input[n..];
            if self.partial.len() < want {
                return Ok(false);
            }
            if want > HEADER_LEN || self.head_sizes()?.head() == HEADER_LEN {
                break;
            }
        }
        verify_head(&self.partial)?;
        let payload = BufferMut::for_overwrite(self.head_sizes()?.payload);
        self.stage = Stage::Payload { payload, filled: 0, verified: 0 };
        Ok(true)
    }

    fn head_sizes(&self) -> Result<Sizes, DecodeError> {
        let (header, _) =
            RawHeader::ref_from_prefix(&self.partial).map_err(|_| DecodeError { field: "header", offset: 0 })?;
        header.sizes(self.introduced)
    }

    fn collect_payload(&mut self, input: &mut &[u8]) -> Result<Option<Message>, DecodeError> {
        let Stage::Payload { payload, filled, verified } = &mut self.stage else { return Ok(None) };
        let n = (payload.len() - *filled).min(input.len());
        payload[*filled..*filled + n].copy_from_slice(&input[..n]);
        *filled += n;
        *input = &input[n..];
        let whole = *filled / SECTOR * SECTOR;
        let list_at = self.partial.len() - (payload.len() - *verified) / SECTOR * 4;
        verify_payload(&payload[*verified..whole], &self.partial, list_at)?;
        *verified = whole;
        if *filled < payload.len() {
            return Ok(None);
        }
        let sizes = self.head_sizes()?;
        let Stage::Payload { payload, .. } = std::mem::replace(&mut self.stage, Stage::Head) else {
            return Ok(None);
        };
        let payload = if sizes.payload == 0 { Buffer::new() } else { payload.freeze() };
        let message = read_message(&self.partial, sizes, payload)?;
        self.partial.clear();
        Ok(Some(message))
    }
}

/// Verifies whole sectors of a payload by their checksums, which lie in the head from byte `list_at` on.
fn verify_payload(data: &[u8], head: &[u8], list_at: usize) -> Result<(), DecodeError> {
    let list = &head[list_at..];
    let is_good = |(sector, crc): (&[u8], &[u8; 4])| crc32c(sector) == u32::from_le_bytes(*crc);
    if data.chunks_exact(SECTOR).zip(list.as_chunks().0).all(is_good) {
        Ok(())
    } else {
        Err(DecodeError { field: "payload checksum", offset: list_at })
    }
}

/// A complete message whose head and payload have been verified.
fn read_message(head: &[u8], sizes: Sizes, payload: Buffer) -> Result<Message, DecodeError> {
    let (header, rest) = RawHeader::ref_from_prefix(head).map_err(|_| DecodeError { field: "header", offset: 0 })?;
    let (body, list) = rest.split_at(sizes.body);
    let crcs: Crcs = list.as_chunks().0.iter().map(|c| u32::from_le_bytes(*c)).collect();
    read_body(header, body, payload, crcs)
}

fn verify_head(head: &[u8]) -> Result<(), DecodeError> {
    let error = DecodeError { field: "header checksum", offset: HEAD_CRC_OFFSET };
    let Ok((header, rest)) = RawHeader::ref_from_prefix(head) else { return Err(error) };
    let stored = header.head_crc.get();
    let mut first = [0; HEADER_LEN];
    first.copy_from_slice(RawHeader { head_crc: 0.into(), ..*header }.as_bytes());
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&first);
    digest.update(rest);
    if digest.finalize() as u32 == stored { Ok(()) } else { Err(error) }
}

fn read_body(header: &RawHeader, body: &[u8], data: Buffer, crcs: Crcs) -> Result<Message, DecodeError> {
    let id = header.id.get();
    let mut r = Reader::new(body);
    let carries_payload = matches!(header.kind, 10 | 11 | 20 | 21);
    if !carries_payload && !data.is_empty() {
        return Err(DecodeError { field: "payload length", offset: 8 });
    }
    let message = match header.kind {
        1 => Message::Hello(Hello::read(&mut r)?),
        2 => Message::Welcome(Welcome::read(&mut r)?),
        3 => Message::Refuse(Refusal::read(&mut r)?),
        4 => Message::Ping,
        5 => Message::Pong { free_bytes: r.take::<U64>("free bytes")?.get() },
        6 => Message::Proof(Proof::read(&mut r)?),
        10 => Message::Request(Request::read(id, &mut r, data, crcs)?),
        11 => Message::Reply(Reply::read(id, &mut r, data, crcs)?),
        20 => Message::SubRequest(SubRequest::read(id, &mut r, data, crcs)?),
        21 => Message::SubReply(SubReply::read(id, &mut r, data, crcs)?),
        30 => Message::PeerQuery(PeerQuery::read(&mut r)?),
        31 => Message::PeerInfo(PeerInfo::read(&mut r)?),
        32 => Message::PeerList(PeerList::read(&mut r)?),
        33 => Message::PeerObjects(PeerObjects::read(&mut r)?),
        34 => Message::Deposed(Deposed::read(&mut r)?),
        _ => return Err(DecodeError { field: "kind of message", offset: 4 }),
    };
    r.finish()?;
    Ok(message)
}
