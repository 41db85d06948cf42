//! Every message survives the wire at any fragmentation; nothing else gets through.

use buffer::Buffer;
use cluster_proto::crc::sector_crcs;
use cluster_proto::ids::*;
use cluster_proto::layout::{SECTOR, SectorRange};
use cluster_proto::shard::*;
use cluster_proto::status::Status;
use cluster_proto::wire::*;
use proptest::prelude::*;
use uuid::Uuid;

fn hello() -> Message {
    Message::Hello(Hello {
        protocol: PROTOCOL,
        cluster: Uuid::from_u128(7),
        role: Role::Client(ClientId(9)),
        incarnation: Incarnation(3),
        target: OsdId(2),
        security: Security::Encrypted,
        nonce: Nonce([7; 32]),
    })
}

fn welcome(security: Security, proof: Option<Proof>) -> Welcome {
    let hello = Hello {
        protocol: PROTOCOL,
        cluster: Uuid::from_u128(7),
        role: Role::Osd(OsdId(2)),
        incarnation: Incarnation(4),
        target: OsdId(2),
        security,
        nonce: Nonce([6; 32]),
    };
    Welcome { hello, proof }
}

fn object() -> ObjectId {
    ObjectId { pool: PoolId(1), lineage: LayerId(4), layer: LayerId(5), index: 6, part: 0 }
}

fn filled(sectors: usize, seed: u8) -> (Buffer, cluster_proto::crc::Crcs) {
    let bytes: Vec<u8> = (0..sectors * SECTOR).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
    (Buffer::copy_of(&bytes), sector_crcs(&bytes))
}

/// One of each kind, with every field set to something telling.
fn samples() -> Vec<Message> {
    let pg = PgId { pool: PoolId(1), index: 3 };
    let query = PeerQuery { pg, epoch: Epoch(4), round: 2 };
    let version = Version::new(Epoch(4), 77);
    let origin = Origin { client: ClientId(9), seq: 100, floor: 90 };
    let (data, crcs) = filled(2, 1);
    let content = ObjectContent {
        deleted: false,
        extents: vec![SectorRange::new(0, 1), SectorRange::new(9, 1)],
        data: data.clone(),
        crcs: crcs.clone(),
        unreadable: vec![Unreadable { sector: 9, crc: 0x1234_5678 }],
        requests: vec![AppliedRequest { client: ClientId(9), seq: 5, version }],
    };
    let two = SectorRange::new(3, 2);
    let one = SectorRange::new(3, 1);
    let request = |op| {
        let only_in_epoch = matches!(op, RequestOp::Sync);
        let (object, epoch) = (object(), Epoch(4));
        Message::Request(Request { seq: 100, floor: 90, epoch, only_in_epoch, pg: 3, object, op })
    };
    let reply = |body| {
        let unsynced = matches!(body, ReplyBody::Empty);
        Message::Reply(Reply { seq: 100, status: Status::Ok, version, unsynced, body })
    };
    let sub = |op| Message::SubRequest(SubRequest { id: 8, pg, epoch: Epoch(4), round: 2, op });
    let outcome = |outcome| Message::SubReply(SubReply { id: 8, outcome, free_bytes: 1 << 40 });
    let object = object();
    vec![
        Message::Welcome(welcome(Security::Open, None)),
        Message::Welcome(welcome(Security::Proved, Some(Proof([9; 32])))),
        Message::Proof(Proof([8; 32])),
        Message::Refuse(Refusal::Cluster),
        Message::Ping,
        Message::Pong { free_bytes: 1 << 40 },
        request(RequestOp::Read(two)),
        request(RequestOp::Write { sectors: two, data: data.clone(), crcs: crcs.clone() }),
        request(RequestOp::Zero(two)),
        request(RequestOp::CompareAndWrite { sectors: one, data: data.clone(), crcs: crcs.clone() }),
        request(RequestOp::Delete),
        request(RequestOp::Sync),
        request(RequestOp::Allocation(two)),
        reply(ReplyBody::Empty),
        reply(ReplyBody::Data { data: data.clone(), crcs: crcs.clone() }),
        reply(ReplyBody::Allocation(vec![Allocation { count: 4, data: true }, Allocation { count: 1, data: false }])),
        sub(ShardOp::Read { object, sectors: two }),
        sub(ShardOp::Fetch { object }),
        sub(ShardOp::Write {
            object,
            version,
            sectors: two,
            data: data.clone(),
            crcs: crcs.clone(),
            origin,
            lazy: true,
        }),
        sub(ShardOp::Zero { object, version, sectors: two, origin, lazy: false }),
        sub(ShardOp::Zero { object, version, sectors: two, origin, lazy: true }),
        sub(ShardOp::Delete { object, version, origin }),
        sub(ShardOp::Collect { object, version }),
        sub(ShardOp::Restore { object, version, content: content.clone().into() }),
        sub(ShardOp::Repair { object, version, sectors: two, data: data.clone(), crcs: crcs.clone() }),
        sub(ShardOp::Sync),
        sub(ShardOp::FetchPart { object, sectors: vec![one, SectorRange::new(9, 2)] }),
        sub(ShardOp::Patch {
            object: object.shard(2),
            base: Version::new(Epoch(3), 1),
            version,
            sectors: vec![SectorRange::new(0, 2), SectorRange::new(9, 1)],
            content: content.clone().into(),
        }),
        sub(ShardOp::Stage {
            object: object.shard(31),
            version,
            sectors: two,
            rows: SectorRange::new(2, 7),
            data: data.clone(),
            crcs: crcs.clone(),
            origin,
        }),
        sub(ShardOp::Stage {
            object,
            version,
            sectors: two,
            rows: two,
            data: Buffer::default(),
            crcs: cluster_proto::crc::Crcs::new(),
            origin,
        }),
        sub(ShardOp::Commit { object, version }),
        sub(ShardOp::Rollback { object, version }),
        sub(ShardOp::Drop { object, version }),
        sub(ShardOp::Verify { object: object.shard(3), sums: Sums::None }),
        sub(ShardOp::Verify { object, sums: Sums::Whole }),
        sub(ShardOp::Verify { object, sums: Sums::Planes }),
        outcome(ShardOutcome::Done),
        outcome(ShardOutcome::Verified {
            version,
            extents: vec![SectorRange::new(0, 1), two],
            kind: Sums::Whole,
            sums: vec![1, 2, 3],
        }),
        outcome(ShardOutcome::Verified {
            version,
            extents: vec![SectorRange::new(1023, 1)],
            kind: Sums::Planes,
            sums: (0..8).collect(),
        }),
        outcome(ShardOutcome::Verified { version, extents: Vec::new(), kind: Sums::Planes, sums: Vec::new() }),
        outcome(ShardOutcome::Written),
        outcome(ShardOutcome::Read { version, data, crcs }),
        outcome(ShardOutcome::Fetched { version, content: content.into() }),
        outcome(ShardOutcome::Corrupt {
            version,
            sectors: [two].into_iter().collect(),
            crcs: [7, 8].into_iter().collect(),
        }),
        outcome(ShardOutcome::Failed(Status::NoSpace)),
        Message::PeerQuery(query),
        Message::PeerInfo(PeerInfo {
            query,
            digests: Box::new(std::array::from_fn(|i| i as u64)),
            free_bytes: 5,
            lease_ms: 9,
            parts: 6,
        }),
        Message::Deposed(Deposed { pg, epoch: Epoch(5) }),
        Message::PeerList(PeerList { query, buckets: Buckets([1, 2, 3, 4]) }),
        Message::PeerObjects(PeerObjects {
            query,
            more: true,
            heads: vec![
                ObjectHead { object, version, deleted: true, staged_over: None },
                ObjectHead { object: object.shard(3), version, deleted: false, staged_over: Some(Version::NONE) },
            ],
        }),
    ]
}

fn to_bytes(messages: &[Message]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        if let Some(payload) = encode(message, &mut out) {
            out.extend_from_slice(&payload);
        }
    }
    out
}

fn decode_in(chunks: impl Iterator<Item = Vec<u8>>) -> Result<Vec<Message>, DecodeError> {
    let mut decoder = Decoder::new();
    let mut got = Vec::new();
    for chunk in chunks {
        let mut input = &chunk[..];
        while let Some(message) = decoder.decode(&mut input)? {
            if matches!(message, Message::Hello(_)) {
                decoder.introduce(None);
            }
            got.push(message);
        }
        assert!(input.is_empty(), "a decoder that wants more has taken everything");
    }
    Ok(got)
}

fn conversation() -> Vec<Message> {
    let mut all = vec![hello()];
    all.extend(samples());
    all
}

#[test]
fn every_message_survives_whole_and_byte_by_byte() {
    let all = conversation();
    let bytes = to_bytes(&all);
    assert_eq!(decode_in([bytes.clone()].into_iter()).unwrap(), all);
    assert_eq!(decode_in(bytes.chunks(1).map(<[u8]>::to_vec)).unwrap(), all);
}

#[test]
fn a_large_payload_in_pieces_is_verified_to_its_end() {
    let (data, crcs) = filled(40, 7);
    let body = ReplyBody::Data { data, crcs };
    let reply = Message::Reply(Reply { seq: 9, status: Status::Ok, version: Version::NONE, unsynced: false, body });
    let all = vec![hello(), reply, Message::Ping];
    let bytes = to_bytes(&all);
    let ping = to_bytes(&all[2..]).len();
    for piece in [1000, SECTOR, 10_007, 100_000] {
        let decoded = |bytes: &[u8]| decode_in(bytes.chunks(piece).map(<[u8]>::to_vec));
        assert!(decoded(&bytes).unwrap() == all, "in pieces of {piece}");
        for at in (0..40).map(|sector| bytes.len() - ping - 1 - sector * SECTOR) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(decoded(&damaged).unwrap_err().field, "payload checksum", "byte {at}");
        }
    }
}

#[test]
fn a_hello_alone_does_not_lift_the_bounds() {
    let mut decoder = Decoder::new();
    let large = samples().into_iter().find(|m| to_bytes(std::slice::from_ref(m)).len() > 512).unwrap();
    let bytes = to_bytes(&[hello(), large]);
    let mut input = &bytes[..];
    assert_eq!(decoder.decode(&mut input), Ok(Some(hello())));
    assert!(!decoder.is_introduced());
    assert!(decoder.decode(&mut input).is_err());
}

#[test]
fn the_introduction_of_another_version_can_be_read() {
    let Message::Hello(ours) = hello() else { unreachable!("it is a hello") };
    let theirs = Hello { protocol: PROTOCOL + 1, ..ours };
    let mut bytes = to_bytes(&[Message::Hello(theirs)]);
    // Everything behind the frozen part means something else there, and there is more of it.
    bytes[HEADER_LEN + 3..HEADER_LEN + 8].fill(0xFF);
    bytes.splice(HEADER_LEN + 48.., [0xEE; 64]);
    bytes[6..8].copy_from_slice(&112u16.to_le_bytes());
    bytes[12..16].fill(0);
    let crc = cluster_proto::crc::crc32c(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    let expected = Hello { security: Security::Open, nonce: Nonce::ZERO, ..theirs };
    assert_eq!(decode_in([bytes].into_iter()).unwrap(), [Message::Hello(expected)]);
}

#[test]
fn nothing_large_is_taken_from_a_stranger() {
    for message in samples().iter().filter(|m| !matches!(m, Message::Welcome(_))) {
        let bytes = to_bytes(std::slice::from_ref(message));
        if bytes.len() > 512 {
            assert!(decode_in([bytes].into_iter()).is_err(), "{message:?}");
        }
    }
}

#[test]
fn any_flipped_bit_is_noticed() {
    let bytes = to_bytes(&conversation());
    // Every byte of all heads and a sample of the payload bytes.
    for at in (0..bytes.len()).filter(|i| i % 97 == 0 || *i < 2000) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        match decode_in([damaged].into_iter()) {
            Err(_) => {}
            // A length that grew makes the decoder wait for more: then it has not delivered everything.
            Ok(got) => assert!(got.len() < conversation().len(), "byte {at} was changed unnoticed"),
        }
    }
}

/// What a member says of a verified object, with one field of its answer changed.
fn verified_but(at: usize, value: u32) -> Result<Vec<Message>, DecodeError> {
    let version = Version::new(Epoch(3), 1);
    let extents = vec![SectorRange::new(0, 1), SectorRange::new(3, 2)];
    answered_but(ShardOutcome::Verified { version, extents, kind: Sums::Whole, sums: vec![1, 2, 3] }, at, value)
}

/// An answer of which the word at a place of its body is another.
fn answered_but(outcome: ShardOutcome, at: usize, value: u32) -> Result<Vec<Message>, DecodeError> {
    let mut bytes = to_bytes(&[Message::SubReply(SubReply { id: 8, outcome, free_bytes: 0 })]);
    bytes[HEADER_LEN + at..HEADER_LEN + at + 4].copy_from_slice(&value.to_le_bytes());
    bytes[12..16].fill(0);
    let payload = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
    let crc = cluster_proto::crc::crc32c(&bytes[..bytes.len() - payload]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    decode_in([to_bytes(&[hello()]), bytes].into_iter())
}

#[test]
fn sums_are_those_of_the_sectors_named() {
    // Extents are counted at byte 4 of the answer, the kind of sums is at 28; the first extent is at 36.
    assert_eq!(verified_but(4, 2).unwrap().len(), 2);
    for (at, value) in [(4, 3), (4, u32::MAX), (28, 2), (28, 3), (40, 3), (40, 4), (44, 0), (48, 1022), (48, u32::MAX)]
    {
        assert!(verified_but(at, value).is_err(), "{value} at {at}");
    }
}

#[test]
fn unreadable_sectors_are_among_those_of_the_object() {
    let (data, crcs) = filled(3, 1);
    let extents = vec![SectorRange::new(0, 1), SectorRange::new(3, 2)];
    let unreadable = [0, 4].map(|sector| Unreadable { sector, crc: 7 }).into();
    let content = ObjectContent { extents, data, crcs, unreadable, ..ObjectContent::default() };
    let fetched = ShardOutcome::Fetched { version: Version::new(Epoch(3), 1), content: content.into() };
    // Counted at byte 32 of the answer; behind two extents, at 52, the first.
    assert_eq!(answered_but(fetched.clone(), 32, 2).unwrap().len(), 2);
    for (at, value) in [(32, 1), (32, 3), (32, u32::MAX), (52, 1), (52, 4), (52, u32::MAX), (60, 0), (60, 5)] {
        assert!(answered_but(fetched.clone(), at, value).is_err(), "{value} at {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_fragmentation_gives_the_same_messages(cuts in prop::collection::vec(1usize..6000, 1..400)) {
        let all = conversation();
        let bytes = to_bytes(&all);
        let mut rest = &bytes[..];
        let mut chunks = Vec::new();
        let mut cuts = cuts.into_iter().cycle();
        while !rest.is_empty() {
            let n = cuts.next().unwrap_or(1).min(rest.len());
            chunks.push(rest[..n].to_vec());
            rest = &rest[n..];
        }
        prop_assert_eq!(decode_in(chunks.into_iter()).unwrap(), all);
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..2000), introduced: bool) {
        let mut stream = if introduced { to_bytes(&[hello()]) } else { Vec::new() };
        stream.extend_from_slice(b"BYD1");
        stream.extend_from_slice(&noise);
        let _ = decode_in([stream].into_iter());
    }

    /// Bodies with valid checksums but arbitrary content: what a hostile peer sends.
    #[test]
    fn hostile_bodies_never_panic(kind in 1u8..40, body in prop::collection::vec(any::<u8>(), 0..40), sectors in 0usize..3) {
        let mut head = vec![0u8; HEADER_LEN];
        head[..4].copy_from_slice(&MAGIC);
        head[4] = kind;
        let body_len = body.len() * 8;
        head[6..8].copy_from_slice(&(body_len as u16).to_le_bytes());
        head[8..12].copy_from_slice(&((sectors * SECTOR) as u32).to_le_bytes());
        for b in body {
            head.extend_from_slice(&[b, 0, 0, 0, b & 3, 0, 0, 0]);
        }
        let (data, crcs) = filled(sectors, 3);
        for crc in crcs {
            head.extend_from_slice(&crc.to_le_bytes());
        }
        let crc = cluster_proto::crc::crc32c(&head);
        head[12..16].copy_from_slice(&crc.to_le_bytes());
        head.extend_from_slice(&data);
        let _ = decode_in([to_bytes(&[hello()]), head].into_iter());
    }
}
