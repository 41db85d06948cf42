//! Any bytes, cut anywhere: no panic, bounded memory, and the cuts do not change what comes out. [`fuzz_session`] is the
//! entry for a fuzzer as well.

mod client;

use std::collections::BTreeMap;

use client::{Decoder, Header};
use gateway_core::ram::{Delivery, RamExports, RamVolume};
use gateway_core::{BlockDevice, Output, Session as _, VolumeOp};
use nbd::limits::{OPTION_LEN_MAX, STRING_LEN_MAX};
use nbd::{Limits, Session};
use proptest::prelude::*;

const DISK: u64 = 64 << 10;
const PAYLOAD_MAX: u32 = 8 << 10;

fn limits() -> Limits {
    Limits {
        requests_in_flight_max: 4,
        bytes_in_flight_max: 16 << 10,
        payload_len_max: PAYLOAD_MAX,
        ..Limits::default()
    }
}

/// What a session gave out, with neighbouring bytes joined.
#[derive(Debug, PartialEq)]
enum Event {
    Bytes(Vec<u8>),
    Attach(String),
    Request(u64, VolumeOp),
    Close,
}

struct Run {
    exports: RamExports,
    session: Session,
    volume: Option<RamVolume>,
    delivery: Delivery,
    events: Vec<Event>,
    fed: usize,
}

impl Run {
    fn new(delivery: Delivery) -> Self {
        let exports = [RamVolume::with_size("demo", DISK)].into_iter().collect();
        let session = Session::new(0, limits());
        Self { exports, session, volume: None, delivery, events: Vec::new(), fed: 0 }
    }

    fn feed(&mut self, slice: &[u8]) {
        self.session.handle_bytes(0, &self.exports, slice);
        self.fed += slice.len();
        // An option or a payload is held once. These runs never stop reading, so all that was fed may be waiting, and a
        // parsed request takes a few times the memory of its header.
        let bound = OPTION_LEN_MAX as usize + PAYLOAD_MAX as usize + 4 * self.fed;
        assert!(self.session.memory_bytes() <= bound, "{} bytes held", self.session.memory_bytes());
        assert!(self.session.requests_in_flight() <= limits().requests_in_flight_max);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Bytes(bytes) => self.push_bytes(&bytes),
                Output::Payload(payload) => self.push_bytes(&payload),
                Output::Attach(name) => {
                    let mut volume = self.exports.attach(&name).expect("only exports are attached");
                    volume.set_delivery(self.delivery);
                    self.volume = Some(volume);
                    self.events.push(Event::Attach(name));
                }
                Output::Request { tag, op } => {
                    self.volume.as_mut().expect("attached before requests").submit(tag, op.clone());
                    self.events.push(Event::Request(tag, op));
                }
                Output::Close => self.events.push(Event::Close),
            }
        }
    }

    fn push_bytes(&mut self, bytes: &[u8]) {
        match self.events.last_mut() {
            Some(Event::Bytes(last)) => last.extend_from_slice(bytes),
            _ => self.events.push(Event::Bytes(bytes.to_vec())),
        }
    }

    fn is_closed(&self) -> bool {
        self.events.last() == Some(&Event::Close)
    }

    /// Answers one request.
    fn complete_one(&mut self) -> bool {
        let Some(volume) = self.volume.as_mut() else { return false };
        if let Some(&tag) = volume.held().first()
            && self.delivery == Delivery::Held
        {
            volume.release(tag);
        }
        let Some((tag, reply)) = volume.poll_reply() else { return false };
        self.session.handle_reply(0, tag, reply);
        self.drain();
        true
    }

    fn complete_all(&mut self) {
        while self.complete_one() {}
    }

    fn sent(&self) -> Vec<u8> {
        let bytes = self.events.iter().filter_map(|event| match event {
            Event::Bytes(bytes) => Some(bytes.as_slice()),
            _ => None,
        });
        bytes.collect::<Vec<_>>().concat()
    }
}

/// Feeds slices of the lengths that `cuts` gives, over and over; nothing is answered before all is in.
fn held_run(bytes: &[u8], cuts: &[usize]) -> Vec<Event> {
    let mut run = Run::new(Delivery::Held);
    run.drain();
    let mut rest = bytes;
    for cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (slice, tail) = rest.split_at(rest.len().min(*cut));
        run.feed(slice);
        rest = tail;
    }
    run.complete_all();
    assert!(run.is_closed() || run.session.requests_in_flight() == 0);
    run.events
}

/// Any bytes at all.
fn fuzz_session(bytes: &[u8]) {
    let seed = bytes.iter().fold(bytes.len() as u64, |sum, &byte| sum.rotate_left(5) ^ u64::from(byte));
    let cuts: Vec<usize> = (0..7).map(|n| 1 + (seed >> (n * 8)) as usize % 97).collect();
    let whole = held_run(bytes, &[bytes.len().max(1)]);
    assert_eq!(held_run(bytes, &[1]), whole, "byte by byte");
    assert_eq!(held_run(bytes, &cuts), whole, "cut at {cuts:?}");

    let mut run = Run::new(Delivery::Shuffled { seed });
    run.drain();
    for slice in bytes.chunks(cuts[0]) {
        run.feed(slice);
        if slice[0] % 2 == 0 {
            run.complete_one();
        }
    }
    run.complete_all();
}

fn greeting_answer() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![9 => 0u32..4, 1 => any::<u32>()].prop_map(|flags| flags.to_be_bytes().to_vec())
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![4 => Just("demo".to_owned()), 2 => Just(String::new()), 1 => "[a-z]{0,9}"]
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    let query = prop_oneof![Just("base:allocation"), Just("base:"), Just("x-none:")];
    let meta = (9u32..=10, name(), prop::collection::vec(query, 0..4));
    let info = (6u32..=7, name(), prop::collection::vec(0u16..5, 0..5));
    let odd = (0u32..14, prop::collection::vec(any::<u8>(), 0..40));
    prop_oneof![
        2 => info.prop_map(|(code, name, items)| client::option(code, &client::info_data(&name, &items))),
        2 => meta.prop_map(|(code, name, queries)| client::option(code, &client::meta_data(&name, &queries))),
        2 => prop_oneof![Just(8), Just(11), Just(3)].prop_map(|code| client::option(code, &[])),
        1 => odd.prop_map(|(code, data)| client::option(code, &data)),
        1 => Just(client::option(99, &[0; OPTION_LEN_MAX as usize + 1])),
    ]
}

fn requests(extended: bool) -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![6 => Just(0u16), 3 => 0u16..64, 1 => any::<u16>()];
    let command = prop_oneof![9 => 0u16..9, 1 => any::<u16>()];
    let offset = prop_oneof![8 => 0..DISK, 1 => any::<u64>()];
    let len = prop_oneof![8 => 0u64..6000, 1 => 0u64..20_000, 1 => 0..=DISK];
    (flags, command, any::<u64>(), offset, len).prop_map(move |(flags, command, cookie, offset, len)| {
        // A disconnect in every ninth request would leave little of most conversations.
        let command = if command == client::CMD_DISC && cookie % 16 != 0 { client::CMD_WRITE } else { command };
        let mut bytes = Header { flags, command, cookie, offset, len }.encode(extended);
        let has_payload = command == client::CMD_WRITE || extended && flags & 32 != 0;
        bytes.extend(has_payload.then(|| vec![cookie as u8; len as usize]).into_iter().flatten());
        bytes
    })
}

fn conversation() -> impl Strategy<Value = Vec<u8>> {
    let haggle = (greeting_answer(), prop::collection::vec(options(), 0..4));
    let go = Just(client::option(client::OPT_GO, &client::info_data("demo", &[3])));
    let mode = prop_oneof![
        Just((false, Vec::new())),
        Just((false, client::option(client::OPT_STRUCTURED_REPLY, &[]))),
        Just((true, client::option(client::OPT_EXTENDED_HEADERS, &[]))),
    ];
    (haggle, mode, go, any::<bool>())
        .prop_flat_map(|((flags, options), (extended, mode), go, is_broken)| {
            let head = [flags, options.concat(), mode, go].concat();
            let noise = prop::collection::vec(any::<u8>(), if is_broken { 0..60 } else { 0..1 });
            (Just(head), prop::collection::vec(requests(extended), 0..24), noise)
        })
        .prop_map(|(head, requests, noise)| [head, requests.concat(), noise].concat())
}

/// A request that is in order, for the test of content.
#[derive(Clone, Debug)]
enum Step {
    Read(u64, u64),
    Write(u64, Vec<u8>),
    Zeroes(u64, u64),
    Flush,
}

fn steps() -> impl Strategy<Value = Step> {
    let range = || (0..DISK - 6000, 0u64..6000);
    prop_oneof![
        3 => range().prop_map(|(offset, len)| Step::Read(offset, len)),
        3 => (0..DISK - 6000, prop::collection::vec(any::<u8>(), 0..6000)).prop_map(|(at, data)| Step::Write(at, data)),
        1 => range().prop_map(|(offset, len)| Step::Zeroes(offset, len)),
        1 => Just(Step::Flush),
    ]
}

/// The bytes of a step, and the content of the chunk that must come back, if any.
fn encode(step: &Step, cookie: u64, model: &mut [u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    let request = |command, offset, len| Header { flags: 0, command, cookie, offset, len }.encode(false);
    match step {
        Step::Read(offset, len) => {
            let content = model[*offset as usize..][..*len as usize].to_vec();
            (request(client::CMD_READ, *offset, *len), (*len > 0).then_some(content))
        }
        Step::Write(offset, data) => {
            model[*offset as usize..][..data.len()].copy_from_slice(data);
            ([request(client::CMD_WRITE, *offset, data.len() as u64), data.clone()].concat(), None)
        }
        Step::Zeroes(offset, len) => {
            model[*offset as usize..][..*len as usize].fill(0);
            (request(client::CMD_WRITE_ZEROES, *offset, *len), None)
        }
        Step::Flush => (request(client::CMD_FLUSH, 0, 0), None),
    }
}

/// Cookie of a reply, and its data if it is a chunk with data; replies of the handshake have none.
fn reply_of(message: &[u8]) -> Option<(u64, Option<Vec<u8>>)> {
    let cookie = |at: usize| u64::from_be_bytes(message[at..at + 8].try_into().expect("eight bytes"));
    match message[..4] {
        [0x67, 0x44, 0x66, 0x98] => {
            assert_eq!(message[4..8], [0; 4], "every request here is in order");
            Some((cookie(8), None))
        }
        [0x66, 0x8e, 0x33, 0xef] => {
            assert!(message[6] == 0 && message[7] <= 1, "a chunk without error");
            Some((cookie(8), message.get(28..).map(<[u8]>::to_vec)))
        }
        _ => None,
    }
}

proptest! {
    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz_session(&bytes);
    }

    #[test]
    fn conversations_do_not_depend_on_cuts(bytes in conversation()) {
        fuzz_session(&bytes);
    }

    #[test]
    fn damaged_conversations_do_no_harm(mut bytes in conversation(), at in any::<prop::sample::Index>(), byte: u8) {
        let at = at.index(bytes.len());
        bytes[at] = byte;
        fuzz_session(&bytes);
    }

    #[test]
    fn content_is_right_and_every_request_is_answered_once(
        steps in prop::collection::vec(steps(), 1..40),
        seed: u64,
        cut in 1usize..9000,
    ) {
        let mut model = vec![0; DISK as usize];
        let mut stream = [FLAGS.to_vec(), client::option(client::OPT_STRUCTURED_REPLY, &[])].concat();
        stream.extend(client::option(client::OPT_GO, &client::info_data("demo", &[])));
        let mut expected = BTreeMap::new();
        for (cookie, step) in steps.iter().enumerate() {
            let (bytes, content) = encode(step, cookie as u64, &mut model);
            stream.extend(bytes);
            expected.insert(cookie as u64, content);
        }
        let mut run = Run::new(Delivery::Shuffled { seed });
        run.drain();
        for slice in stream.chunks(cut) {
            run.feed(slice);
            run.complete_one();
        }
        run.complete_all();

        let mut decoder = Decoder::default();
        decoder.expect_chunks();
        decoder.feed(&run.sent());
        while let Some((message, meaning)) = decoder.next_message() {
            if let Some((cookie, content)) = reply_of(&message) {
                prop_assert_eq!(expected.remove(&cookie), Some(content), "{}", meaning);
            }
        }
        prop_assert!(decoder.is_empty() && expected.is_empty(), "no answer: {:?}", expected.keys());
        let disk = run.exports.volume("demo").expect("there").peek(0, DISK as usize);
        prop_assert!(disk == model, "content of the disk");
    }
}

const FLAGS: [u8; 4] = [0, 0, 0, 3];

fn started(extended: bool) -> Run {
    let mut run = Run::new(Delivery::Held);
    run.feed(&FLAGS);
    if extended {
        run.feed(&client::option(client::OPT_EXTENDED_HEADERS, &[]));
    }
    run.feed(&client::option(client::OPT_GO, &client::info_data("demo", &[])));
    run
}

#[test]
fn a_huge_refused_write_is_skipped_without_memory() {
    let mut run = started(false);
    let header = Header { flags: 0, command: client::CMD_WRITE, cookie: 1, offset: 0, len: u32::MAX.into() };
    run.feed(&header.encode(false));
    let events = run.events.len();
    let zeroes = vec![0; 1 << 20];
    let mut left = u32::MAX as usize;
    while left > 0 {
        let len = left.min(zeroes.len());
        run.session.handle_bytes(0, &run.exports, &zeroes[..len]);
        assert_eq!(run.session.memory_bytes(), 0);
        left -= len;
    }
    run.drain();
    assert!(run.events.len() == events, "the error joins the bytes before it");
    assert!(run.sent().ends_with(&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 1]), "ENOSPC");
    run.feed(&Header { flags: 0, command: client::CMD_FLUSH, cookie: 2, offset: 0, len: 0 }.encode(false));
    assert!(matches!(run.events.last(), Some(Event::Request(_, VolumeOp::Flush))), "in step afterwards");
}

#[test]
fn a_flood_of_list_options_ends_the_connection() {
    let mut run = Run::new(Delivery::Held);
    let exports = (0..100).map(|n| RamVolume::with_size(&format!("{n:0>width$}", width = STRING_LEN_MAX), 512));
    run.exports = exports.collect();
    run.feed(&FLAGS);
    let list = client::option(client::OPT_LIST, &[]);
    let replies = (0..200).take_while(|_| {
        run.feed(&list);
        !run.is_closed()
    });
    assert_eq!(replies.count(), 40, "16 MiB of replies of 412 KB");
    let sent = run.sent().len();
    run.feed(&list);
    assert_eq!(run.sent().len(), sent, "closed for good");
}

#[test]
fn an_endless_option_holds_no_memory_and_names_are_bounded() {
    let mut run = Run::new(Delivery::Held);
    run.feed(&FLAGS);
    run.feed(&client::option_header(client::OPT_GO, u32::MAX));
    run.feed(&[b'x'; 100_000]);
    assert_eq!(run.session.memory_bytes(), 0);

    for (len, name_len) in [(OPTION_LEN_MAX + 1, 0), (STRING_LEN_MAX as u32 + 1, STRING_LEN_MAX + 1)] {
        let mut run = Run::new(Delivery::Held);
        run.feed(&FLAGS);
        run.feed(&client::option_header(client::OPT_EXPORT_NAME, len));
        run.feed(&vec![b'x'; name_len]);
        assert!(run.is_closed(), "EXPORT_NAME of {len} bytes");
    }
}

#[test]
fn saturation_holds_back_what_is_above_the_bounds() {
    let mut run = started(false);
    let read = |cookie, len| Header { flags: 0, command: client::CMD_READ, cookie, offset: 0, len }.encode(false);
    let stream: Vec<u8> = (0..1000).flat_map(|cookie| read(cookie, 4096)).collect();
    assert!(!run.session.is_saturated());
    run.feed(&stream);
    assert!(run.session.is_saturated());
    assert_eq!(run.session.requests_in_flight(), 4);
    assert!(run.session.memory_bytes() <= 4 * stream.len());
    run.complete_all();
    assert!(!run.session.is_saturated());
    assert_eq!(run.session.memory_bytes(), 0);
    assert_eq!(run.events.iter().filter(|event| matches!(event, Event::Request(..))).count(), 1000);
}

#[test]
fn a_volume_that_returns_the_wrong_amount_gives_an_error_not_a_broken_stream() {
    use gateway_core::{Extent, VolumeReply};
    let wrong = [
        VolumeReply::Data(vec![buffer::Buffer::zeroed(15)]),
        VolumeReply::Data(Vec::new()),
        VolumeReply::Done,
        VolumeReply::Extents(vec![Extent { len: 16, data: true }]),
    ];
    for (cookie, answer) in wrong.into_iter().enumerate() {
        let mut run = started(true);
        let header = Header { flags: 0, command: client::CMD_READ, cookie: cookie as u64, offset: 0, len: 16 };
        run.feed(&header.encode(true));
        let Some(Event::Request(tag, _)) = run.events.last() else { panic!("a request") };
        let tag = *tag;
        run.session.handle_reply(0, tag, answer);
        run.drain();
        let mut decoder = Decoder::default();
        decoder.feed(&run.sent());
        let last = std::iter::from_fn(|| decoder.next_message()).last().expect("a reply").1;
        assert!(last.contains("error 5"), "{last}");
    }
}
