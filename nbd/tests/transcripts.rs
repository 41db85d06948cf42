//! Conversations with a session, one per file in `testdata`. Lines that begin with `>` are the script; everything
//! indented is what happened, generated: `C` bytes of the client, `S` messages of the server with their meaning, `V`
//! requests to the volume and its answers, and the close. `UPDATE=1 cargo test -p nbd --test transcripts` rewrites them.

mod client;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use client::{Decoder, Header, hex};
use gateway_core::ram::{Delivery, RamExports, RamVolume};
use gateway_core::{BlockDevice, Output, Session as _, Status, VolumeEvent, VolumeOp, VolumeReply};
use nbd::{Limits, Session};

struct Stage {
    exports: RamExports,
    limits: Limits,
    connected: bool,
    session: Session,
    volume: Option<RamVolume>,
    decoder: Decoder,
    now: u64,
    extended: bool,
    log: String,
}

/// The arguments of a directive: words, and `key=value`.
struct Args<'a>(Vec<&'a str>);

impl<'a> Args<'a> {
    fn word(&self, at: usize) -> &'a str {
        self.0.get(at).unwrap_or_else(|| panic!("argument {at} is missing in {:?}", self.0))
    }

    fn number(&self, at: usize) -> u64 {
        self.word(at).parse().unwrap_or_else(|_| panic!("argument {at} of {:?} is no number", self.0))
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    fn value_number(&self, key: &str, default: u64) -> u64 {
        self.value(key).map_or(default, |text| text.parse().expect("number"))
    }

    fn has(&self, word: &str) -> bool {
        self.0.contains(&word)
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex");
    digits.chunks(2).map(pair).collect()
}

fn command_flags(args: &Args<'_>) -> u16 {
    let names = ["fua", "no-hole", "df", "req-one", "fast-zero", "payload"];
    let bits = names.iter().enumerate().filter(|(_, name)| args.has(name)).map(|(bit, _)| 1 << bit);
    bits.sum::<u16>() | args.value_number("flags", 0) as u16
}

impl Stage {
    fn new() -> Self {
        let limits = Limits::default();
        Self {
            exports: RamExports::new(),
            connected: false,
            session: Session::new(0, limits.clone()),
            limits,
            volume: None,
            decoder: Decoder::default(),
            now: 0,
            extended: false,
            log: String::new(),
        }
    }

    fn run(&mut self, directive: &str) {
        let words: Vec<&str> = directive.split_whitespace().collect();
        let (name, args) = words.split_first().expect("an empty directive");
        let args = Args(args.to_vec());
        match *name {
            "export" => self.export(&args),
            "limits" => self.set_limits(&args),
            "connect" => {
                self.connected = true;
                self.session = Session::new(self.now, self.limits.clone());
            }
            "flags" => self.send(&(args.number(0) as u32).to_be_bytes()),
            "option" => self.option(&args),
            "bytes" => self.send(&unhex(&args.0.concat())),
            "time" => {
                self.now = args.number(0);
                self.session.handle_timeout(self.now);
            }
            "hold" => self.attached().set_delivery(Delivery::Held),
            "release" => self.release(args.number(0) as usize),
            "pieces" => self.attached().set_read_piece(args.number(0) as usize),
            "fail-next" => self.fail_next(args.word(0)),
            "resize" => self.attached().resize(args.number(0)),
            "remove" => self.attached().remove(),
            command => self.request(command, &args),
        }
        if self.connected {
            self.drain();
        }
    }

    fn attached(&mut self) -> &mut RamVolume {
        self.volume.as_mut().expect("a volume is attached")
    }

    fn export(&mut self, args: &Args<'_>) {
        let mut info = RamVolume::with_size(args.word(0), args.number(1)).info();
        info.read_only = args.has("ro");
        self.exports.add(RamVolume::new(info));
    }

    fn set_limits(&mut self, args: &Args<'_>) {
        let limits = &mut self.limits;
        limits.requests_in_flight_max = args.value_number("requests", limits.requests_in_flight_max as u64) as usize;
        limits.bytes_in_flight_max = args.value_number("bytes", limits.bytes_in_flight_max);
        limits.payload_len_max = args.value_number("payload", limits.payload_len_max.into()) as u32;
    }

    fn release(&mut self, at: usize) {
        let tag = self.attached().held()[at];
        assert!(self.attached().release(tag));
    }

    fn fail_next(&mut self, word: &str) {
        let all =
            [Status::Unsupported, Status::Invalid, Status::ReadOnly, Status::Medium, Status::Gone, Status::Failed];
        let status = all.into_iter().find(|status| format!("{status:?}") == word).expect("a status");
        self.attached().fail_next(status);
    }

    fn option(&mut self, args: &Args<'_>) {
        let export = args.value("name").unwrap_or("");
        let list = |key| args.value(key).unwrap_or("").split(',').filter(|text| !text.is_empty()).collect::<Vec<_>>();
        let items: Vec<u16> = list("items").iter().map(|item| item.parse().expect("number")).collect();
        let (info, meta) = (client::info_data(export, &items), client::meta_data(export, &list("queries")));
        let (code, mut data) = match args.word(0) {
            "export-name" => (client::OPT_EXPORT_NAME, export.as_bytes().to_vec()),
            "abort" => (client::OPT_ABORT, Vec::new()),
            "list" => (client::OPT_LIST, Vec::new()),
            "starttls" => (client::OPT_STARTTLS, Vec::new()),
            "info" => (client::OPT_INFO, info),
            "go" => (client::OPT_GO, info),
            "structured" => (client::OPT_STRUCTURED_REPLY, Vec::new()),
            "list-meta" => (client::OPT_LIST_META_CONTEXT, meta),
            "set-meta" => (client::OPT_SET_META_CONTEXT, meta),
            "extended" => (client::OPT_EXTENDED_HEADERS, Vec::new()),
            code => (code.parse().expect("an option"), Vec::new()),
        };
        data.extend(args.value("data").map(unhex).unwrap_or_default());
        data.extend(vec![b'x'; args.value_number("pad", 0) as usize]);
        match code {
            client::OPT_EXPORT_NAME => {
                self.decoder.export_answer_len = Some(args.value_number("answer", 134) as usize);
            }
            client::OPT_STRUCTURED_REPLY => self.decoder.expect_chunks(),
            client::OPT_EXTENDED_HEADERS => {
                self.decoder.expect_chunks();
                self.extended = true;
            }
            _ => {}
        }
        self.send(&client::option(code, &data));
    }

    fn request(&mut self, name: &str, args: &Args<'_>) {
        let names = ["read", "write", "disc", "flush", "trim", "cache", "zeroes", "status"];
        let known = names.iter().position(|known| *known == name);
        let command =
            known.unwrap_or_else(|| name.strip_prefix("command-").expect("a directive").parse().expect("number"));
        let command = command as u16;
        let or_zero = |at: usize| if args.0.len() > at { args.number(at) } else { 0 };
        let header =
            Header { flags: command_flags(args), command, cookie: or_zero(0), offset: or_zero(1), len: or_zero(2) };
        let mut bytes = header.encode(self.extended);
        if command == client::CMD_READ {
            self.decoder.reads.insert(header.cookie, header.len);
        }
        if command == client::CMD_WRITE || args.has("payload") {
            bytes.extend(vec![args.value_number("fill", 0xab) as u8; header.len as usize]);
        }
        self.send(&bytes);
    }

    fn send(&mut self, bytes: &[u8]) {
        writeln!(self.log, "  C {}", hex(bytes)).expect("strings do not fail");
        self.session.handle_bytes(self.now, &self.exports, bytes);
    }

    /// Lets session and volume talk until both are quiet.
    fn drain(&mut self) {
        loop {
            while let Some(output) = self.session.poll_output() {
                self.handle_output(output);
            }
            if let Some(event) = self.volume.as_mut().and_then(BlockDevice::poll_event) {
                self.session.handle_event(self.now, event.clone());
                self.note(&describe_event(&event));
            } else if let Some((tag, reply)) = self.volume.as_mut().and_then(BlockDevice::poll_reply) {
                self.note(&format!("V {tag:#x} {}", describe_reply(&reply)));
                self.session.handle_reply(self.now, tag, reply);
            } else {
                break;
            }
        }
        if self.session.is_saturated() {
            self.note("saturated");
        }
    }

    fn handle_output(&mut self, output: Output) {
        match output {
            Output::Bytes(bytes) => self.received(&bytes),
            Output::Payload(payload) => self.received(&payload),
            Output::Attach(name) => {
                self.note(&format!("V attach {name:?}"));
                self.volume = self.exports.attach(&name);
            }
            Output::Request { tag, op } => {
                self.note(&format!("V {tag:#x} {}", describe_op(&op)));
                self.attached().submit(tag, op);
            }
            Output::Close => self.note("close"),
        }
    }

    fn received(&mut self, bytes: &[u8]) {
        self.decoder.feed(bytes);
        while let Some((message, meaning)) = self.decoder.next_message() {
            self.note(&format!("S {}    {meaning}", hex(&message)));
        }
    }

    fn note(&mut self, line: &str) {
        writeln!(self.log, "  {line}").expect("strings do not fail");
    }
}

fn describe_op(op: &VolumeOp) -> String {
    match op {
        VolumeOp::Write { offset, data, fua } => {
            format!("Write {{ offset: {offset}, data: {}, fua: {fua} }} aligned: {}", hex(data), data.is_page_aligned())
        }
        other => format!("{other:?}"),
    }
}

fn describe_reply(reply: &VolumeReply) -> String {
    match reply {
        VolumeReply::Data(pieces) => {
            let lens: Vec<usize> = pieces.iter().map(|piece| piece.len()).collect();
            format!("answers Data, pieces {lens:?}")
        }
        other => format!("answers {other:?}"),
    }
}

fn describe_event(event: &VolumeEvent) -> String {
    format!("V event {event:?}")
}

/// The text of a transcript as it comes out now.
fn replay(text: &str) -> String {
    let mut stage = Stage::new();
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.starts_with("  ")) {
        out.push_str(line);
        out.push('\n');
        if let Some(directive) = line.strip_prefix('>') {
            stage.run(directive);
            out.push_str(&std::mem::take(&mut stage.log));
        }
    }
    assert!(stage.decoder.is_empty(), "the server sent part of a message");
    out
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let entries = fs::read_dir(folder).expect("testdata is there").map(|entry| entry.expect("readable").path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|ext| ext == "txt")).collect();
    files.sort();
    files
}

#[test]
fn transcripts_are_as_recorded() {
    let files = files();
    assert!(files.len() >= 10, "only {} transcripts found", files.len());
    for path in files {
        let recorded = fs::read_to_string(&path).expect("readable");
        let now = replay(&recorded);
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, now).expect("writable");
        } else {
            assert_eq!(now, recorded, "{} differs; UPDATE=1 rewrites it", path.display());
        }
    }
}
