//! The client's side of the protocol for tests, written apart from the crate's own layouts: messages to send, and a
//! reader of what the server sends that says it in words.

#![allow(missing_docs, dead_code)]

use std::collections::BTreeMap;

pub const FIXED_NEWSTYLE: u32 = 1;
pub const NO_ZEROES: u32 = 2;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;
pub const OPT_LIST_META_CONTEXT: u32 = 9;
pub const OPT_SET_META_CONTEXT: u32 = 10;
pub const OPT_EXTENDED_HEADERS: u32 = 11;

pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_CACHE: u16 = 5;
pub const CMD_WRITE_ZEROES: u16 = 6;
pub const CMD_BLOCK_STATUS: u16 = 7;

pub fn option_header(code: u32, len: u32) -> Vec<u8> {
    [&b"IHAVEOPT"[..], &code.to_be_bytes(), &len.to_be_bytes()].concat()
}

pub fn option(code: u32, data: &[u8]) -> Vec<u8> {
    [option_header(code, data.len() as u32), data.to_vec()].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

pub fn info_data(name: &str, items: &[u16]) -> Vec<u8> {
    let items_bytes = items.iter().flat_map(|item| item.to_be_bytes());
    let mut data = string(name);
    data.extend((items.len() as u16).to_be_bytes());
    data.extend(items_bytes);
    data
}

pub fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

/// The header of a request.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u64,
}

impl Header {
    pub fn encode(&self, extended: bool) -> Vec<u8> {
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        if extended {
            bytes.extend(self.len.to_be_bytes())
        } else {
            bytes.extend((self.len as u32).to_be_bytes())
        }
        bytes
    }
}

/// Takes the server's bytes apart.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    greeted: bool,
    /// Bytes of the answer to `EXPORT_NAME` that was asked for.
    pub export_answer_len: Option<usize>,
    /// Lengths of the reads that were asked for, by cookie: a simple reply does not tell.
    pub reads: BTreeMap<u64, u64>,
    structured: bool,
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Hex, with long runs of one byte shortened.
pub fn hex(bytes: &[u8]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut plain = String::new();
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        let run = rest.iter().take_while(|&&byte| byte == first).count();
        let taken = if run > 16 {
            parts.extend((!plain.is_empty()).then(|| std::mem::take(&mut plain)));
            parts.push(format!("({first:02x} x {run})"));
            run
        } else {
            plain.push_str(&format!("{first:02x}"));
            1
        };
        rest = &rest[taken..];
    }
    parts.extend((!plain.is_empty()).then_some(plain));
    parts.join(" ")
}

impl Decoder {
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether nothing is left over.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next whole message: its bytes and what they mean.
    pub fn next_message(&mut self) -> Option<(Vec<u8>, String)> {
        let (len, meaning) = self.message()?;
        let rest = self.buffer.split_off(len);
        Some((std::mem::replace(&mut self.buffer, rest), meaning))
    }

    fn message(&mut self) -> Option<(usize, String)> {
        let bytes = &self.buffer;
        if !self.greeted {
            assert!(bytes.len() < 18 || bytes.starts_with(b"NBDMAGICIHAVEOPT"), "greeting");
            self.greeted = bytes.len() >= 18;
            return self.greeted.then(|| (18, format!("greeting, flags {:#x}", be(&bytes[16..18]))));
        }
        if let Some(len) = self.export_answer_len.filter(|&len| bytes.len() >= len) {
            self.export_answer_len = None;
            return Some((len, format!("export, size {}, flags {:#x}", be(&bytes[..8]), be(&bytes[8..10]))));
        }
        match be(bytes.get(..4)?) {
            0x0003_e889 => option_reply(bytes),
            0x6744_6698 => self.simple_reply(),
            0x668e_33ef => chunk(bytes, false),
            0x6e8a_278c => chunk(bytes, true),
            magic => panic!("server sent {magic:#x}"),
        }
    }

    fn simple_reply(&self) -> Option<(usize, String)> {
        let header = self.buffer.get(..16)?;
        let (error, cookie) = (be(&header[4..8]), be(&header[8..16]));
        let data = if error == 0 && !self.structured { self.reads.get(&cookie).copied().unwrap_or(0) } else { 0 };
        self.buffer.get(..16 + data as usize)?;
        Some((16 + data as usize, format!("simple reply, cookie {cookie}, error {error}, {data} bytes")))
    }

    /// From here on replies to reads are chunks.
    pub fn expect_chunks(&mut self) {
        self.structured = true;
    }
}

fn option_reply(bytes: &[u8]) -> Option<(usize, String)> {
    let header = bytes.get(..20)?;
    assert_eq!(be(&header[..8]), 0x3_e889_0455_65a9, "magic");
    let (option, kind, len) = (be(&header[8..12]), be(&header[12..16]), be(&header[16..20]) as usize);
    let data = bytes.get(20..20 + len)?;
    let text = |data: &[u8]| String::from_utf8(data.to_vec()).expect("text is UTF-8");
    let meaning = match kind {
        1 => "ACK".to_owned(),
        2 => format!("SERVER {:?}", text(&data[4..])),
        3 => info(data),
        4 => format!("META_CONTEXT {} {:?}", be(&data[..4]), text(&data[4..])),
        _ => format!("{} {:?}", error_name(kind), text(data)),
    };
    Some((20 + len, format!("reply to option {option}: {meaning}")))
}

fn error_name(kind: u64) -> String {
    let name = match kind & 0x7fff_ffff {
        1 => "UNSUP",
        2 => "POLICY",
        3 => "INVALID",
        6 => "UNKNOWN",
        9 => "TOO_BIG",
        10 => "EXT_HEADER_REQD",
        _ => panic!("error reply {kind:#x}"),
    };
    format!("ERR_{name}")
}

fn info(data: &[u8]) -> String {
    let text = || String::from_utf8(data[2..].to_vec()).expect("text is UTF-8");
    match (be(&data[..2]), data.len()) {
        (0, 12) => format!("INFO export, size {}, flags {:#x}", be(&data[2..10]), be(&data[10..12])),
        (1, _) => format!("INFO name {:?}", text()),
        (2, _) => format!("INFO description {:?}", text()),
        (3, 14) => {
            let sizes = [2, 6, 10].map(|at| be(&data[at..at + 4]));
            format!("INFO block size, minimum {}, preferred {}, maximum {}", sizes[0], sizes[1], sizes[2])
        }
        (kind, len) => panic!("info {kind} of {len} bytes"),
    }
}

fn chunk(bytes: &[u8], extended: bool) -> Option<(usize, String)> {
    let header_len = if extended { 32 } else { 20 };
    let header = bytes.get(..header_len)?;
    let (flags, kind, cookie) = (be(&header[4..6]), be(&header[6..8]), be(&header[8..16]));
    let len = be(&header[if extended { 24 } else { 16 }..]) as usize;
    let payload = bytes.get(header_len..header_len + len)?;
    let meaning = match kind {
        0 => "none".to_owned(),
        1 => format!("data at {}, {} bytes", be(&payload[..8]), len - 8),
        5 => format!("block status {}:{}", be(&payload[..4]), extents(&payload[4..], 4)),
        6 => {
            assert_eq!(be(&payload[4..8]) as usize * 16, len - 8, "count of extents");
            format!("block status {}:{}", be(&payload[..4]), extents(&payload[8..], 8))
        }
        0x8001 => {
            let text = String::from_utf8(payload[6..].to_vec()).expect("text is UTF-8");
            assert_eq!(be(&payload[4..6]) as usize, text.len(), "length of the message");
            format!("error {} {text:?}", be(&payload[..4]))
        }
        _ => panic!("chunk {kind:#x}"),
    };
    let word = if extended { "extended chunk" } else { "chunk" };
    let done = if flags == 1 { ", done" } else { "" };
    Some((header_len + len, format!("{word}, cookie {cookie}{done}: {meaning}")))
}

fn extents(list: &[u8], field: usize) -> String {
    let pairs = list.chunks(2 * field).map(|pair| (be(&pair[..field]), be(&pair[field..])));
    pairs.map(|(len, flags)| format!(" {len}/{flags}")).collect()
}
