//! The introduction of two sides: who is let in, who is refused and what both are told, and what an attacker can do with what
//! he has heard. `UPDATE=1 cargo test` rewrites the transcripts in `testdata/handshake`.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use cluster_proto::auth::{ClusterKey, Credentials, Introductions, Side};
use cluster_proto::ids::{ClientId, Incarnation, OsdId};
use cluster_proto::limits::WIRE_RECORD_MAX;
use cluster_proto::link::{Accepted, Accepting, Identity, Introduced, LinkId, Outgoing};
use cluster_proto::wire::*;
use proptest::prelude::*;
use uuid::Uuid;

const TARGET: OsdId = OsdId(3);

fn credentials(key: u8, encrypt: bool) -> Option<Credentials> {
    Some(Credentials { key: ClusterKey::from_bytes([key; 32]), encrypt })
}

fn client(credentials: Option<Credentials>) -> Identity {
    let role = Role::Client(ClientId(77));
    Identity { cluster: Uuid::from_u128(1), role, incarnation: Incarnation(5), credentials }
}

fn osd(credentials: Option<Credentials>) -> Identity {
    let role = Role::Osd(TARGET);
    Identity { cluster: Uuid::from_u128(1), role, incarnation: Incarnation(6), credentials }
}

/// A connecting side that has said hello.
fn connecting(identity: &Identity, nonce: u8) -> (Outgoing, Message) {
    let mut out = Outgoing::new(TARGET);
    out.poll(0, Some(SocketAddr::from(([127, 0, 0, 1], 1))), LinkId(1));
    let hello = out.handle_connected(identity, Nonce([nonce; 32])).unwrap();
    (out, hello)
}

fn accepting(nonce: u8) -> Accepting {
    Accepting::new(Nonce([nonce; 32]))
}

/// Both ends of a settled connection.
struct Settled {
    connecting: Introduced,
    accepting: Introduced,
}

fn settle(near: &Identity, far: &Identity) -> Settled {
    let (mut out, hello) = connecting(near, 1);
    let mut accepting = accepting(2);
    match accepting.handle(far, &hello) {
        Accepted::Introduced(accepting) => {
            let Some(Message::Welcome(welcome)) = &accepting.answer else { panic!("{accepting:?}") };
            let connecting = out.handle_welcome(0, near, welcome).unwrap();
            Settled { connecting, accepting }
        }
        Accepted::Answer(Message::Welcome(welcome)) => {
            let connecting = out.handle_welcome(0, near, &welcome).unwrap();
            match accepting.handle(far, connecting.answer.as_ref().unwrap()) {
                Accepted::Introduced(accepting) => Settled { connecting, accepting },
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    }
}

// ---- transcripts

fn line(text: &mut String, arrow: &str, message: &Message) {
    let what = match message {
        Message::Hello(h) => {
            format!("Hello version={} role={:?} target={} {:?}", h.protocol, h.role, h.target, h.security)
        }
        Message::Welcome(Welcome { hello: h, proof }) => {
            let proof = if proof.is_some() { "with proof" } else { "no proof" };
            format!("Welcome version={} role={:?} {:?} {proof}", h.protocol, h.role, h.security)
        }
        Message::Proof(_) => "Proof".into(),
        Message::Refuse(why) => format!("Refuse {why:?}: {why}"),
        other => format!("{other:?}"),
    };
    writeln!(text, "{arrow} {what}").unwrap();
}

fn ended(text: &mut String, side: &str, introduced: &Introduced) {
    let sealed = if introduced.session.is_some() { "sealed" } else { "plain" };
    writeln!(text, "{side} has introduced {:?}, {sealed} from here on", introduced.role).unwrap();
}

/// What two sides say to each other until both are content or one refuses; `meddle` may change what arrives.
fn transcript(near: &Identity, far: &Identity, meddle: impl Fn(&mut Message)) -> String {
    let mut text = String::new();
    let mut accepting = accepting(2);
    let (mut out, mut message) = connecting(near, 1);
    loop {
        meddle(&mut message);
        line(&mut text, "->", &message);
        let mut answer = match accepting.handle(far, &message) {
            Accepted::Answer(answer) => answer,
            Accepted::Refused(why) => Message::Refuse(why),
            Accepted::Left(_) => {
                text.push_str("accepting side closes\n");
                return text;
            }
            Accepted::Introduced(introduced) => {
                ended(&mut text, "accepting side", &introduced);
                let Some(answer) = introduced.answer else { return text };
                answer
            }
        };
        meddle(&mut answer);
        line(&mut text, "<-", &answer);
        let Message::Welcome(welcome) = answer else {
            text.push_str("both sides close\n");
            return text;
        };
        message = match out.handle_welcome(0, near, &welcome) {
            Err(why) => Message::Refuse(why),
            Ok(introduced) => {
                ended(&mut text, "connecting side", &introduced);
                let Some(answer) = introduced.answer else { return text };
                answer
            }
        };
    }
}

fn check(name: &str, got: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/handshake").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, got).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(got, expected, "{}: UPDATE=1 rewrites it", path.display());
}

#[test]
fn conversations_that_succeed() {
    let cases = [
        ("open", None, None),
        ("proved", credentials(1, false), credentials(1, false)),
        ("encrypted", credentials(1, true), credentials(1, true)),
        ("encrypted-for-connecting", credentials(1, true), credentials(1, false)),
        ("encrypted-for-accepting", credentials(1, false), credentials(1, true)),
    ];
    for (name, near, far) in cases {
        check(name, &transcript(&client(near), &osd(far), |_| {}));
    }
}

#[test]
fn every_refusal() {
    let guarded = || credentials(1, false);
    let of = |cluster: u128, identity: Identity| Identity { cluster: Uuid::from_u128(cluster), ..identity };
    let of_osd = |id: u32, identity: Identity| Identity { role: Role::Osd(OsdId(id)), ..identity };
    let version = |message: &mut Message| {
        if let Message::Hello(hello) = message {
            hello.protocol = PROTOCOL + 1;
        }
    };
    let answering_version = |message: &mut Message| {
        if let Message::Welcome(welcome) = message {
            welcome.hello.protocol = PROTOCOL + 1;
        }
    };
    let stripped = |message: &mut Message| match message {
        Message::Hello(hello) => hello.security = Security::Open,
        Message::Welcome(welcome) => (welcome.hello.security, welcome.proof) = (Security::Open, None),
        _ => {}
    };
    let lowered = |message: &mut Message| match message {
        Message::Hello(hello) => hello.security = Security::Proved,
        Message::Welcome(welcome) => welcome.hello.security = Security::Proved,
        _ => {}
    };
    let forged = |message: &mut Message| {
        if let Message::Proof(proof) = message {
            proof.0[31] ^= 1;
        }
    };
    let request = |message: &mut Message| {
        if let Message::Proof(_) = message {
            *message = Message::Ping;
        }
    };
    let cases = [
        ("refused-version", transcript(&client(None), &osd(None), version)),
        ("refused-answering-version", transcript(&client(None), &osd(None), answering_version)),
        ("refused-cluster", transcript(&of(2, client(guarded())), &osd(guarded()), |_| {})),
        ("refused-target", transcript(&client(guarded()), &of_osd(4, osd(guarded())), |_| {})),
        ("refused-key-missing", transcript(&client(None), &osd(guarded()), |_| {})),
        ("refused-key-unexpected", transcript(&client(guarded()), &osd(None), |_| {})),
        ("refused-key", transcript(&client(guarded()), &osd(credentials(2, false)), |_| {})),
        ("refused-key-encrypted", transcript(&client(credentials(1, true)), &osd(credentials(2, true)), |_| {})),
        ("refused-stripped-of-proofs", transcript(&client(guarded()), &osd(None), stripped)),
        ("refused-stripped-of-encryption", transcript(&client(credentials(1, true)), &osd(guarded()), lowered)),
        ("refused-forged-proof", transcript(&client(guarded()), &osd(guarded()), forged)),
        ("refused-something-else", transcript(&client(guarded()), &osd(guarded()), request)),
    ];
    for (name, got) in &cases {
        check(name, got);
        assert!(got.contains("Refuse "), "{name}: {got}");
    }
}

// ---- what is bound

/// Every single change of an introduction that its decoder would let pass.
fn changes(hello: &Hello) -> Vec<Hello> {
    let mut all = vec![
        Hello { protocol: hello.protocol ^ 1, ..*hello },
        Hello { cluster: Uuid::from_u128(2), ..*hello },
        Hello { role: Role::Client(ClientId(78)), ..*hello },
        Hello { role: Role::Osd(OsdId(77)), ..*hello },
        Hello { incarnation: Incarnation(hello.incarnation.0 ^ 1), ..*hello },
        Hello { target: OsdId(hello.target.0 ^ 1), ..*hello },
    ];
    all.extend([Security::Open, Security::Proved, Security::Encrypted].map(|security| Hello { security, ..*hello }));
    for byte in 0..Nonce::LEN {
        let mut nonce = hello.nonce;
        nonce.0[byte] ^= 0x80;
        all.push(Hello { nonce, ..*hello });
    }
    all.retain(|changed| changed != hello);
    all
}

#[test]
fn every_field_of_both_introductions_is_bound_by_both_proofs() {
    let key = ClusterKey::from_bytes([1; 32]);
    let hello = client(credentials(1, false)).hello(TARGET, Nonce([1; 32]));
    let welcome = osd(credentials(1, false)).hello(TARGET, Nonce([2; 32]));
    let both = Introductions { hello: &hello, welcome: &welcome };
    for side in [Side::Connecting, Side::Accepting] {
        let proof = both.proof(&key, side);
        assert!(both.is_proved(&key, side, &proof));
        assert!(!both.is_proved(&key, side.other(), &proof), "one side's proof is not the other's");
        assert!(!both.is_proved(&ClusterKey::from_bytes([2; 32]), side, &proof));
        assert!(!Introductions { hello: &welcome, welcome: &hello }.is_proved(&key, side, &proof));
        for changed in changes(&hello) {
            assert!(!Introductions { hello: &changed, ..both }.is_proved(&key, side, &proof), "{changed:?}");
        }
        for changed in changes(&welcome) {
            assert!(!Introductions { welcome: &changed, ..both }.is_proved(&key, side, &proof), "{changed:?}");
        }
        for bit in 0..Proof::LEN * 8 {
            let mut forged = proof;
            forged.0[bit / 8] ^= 1 << (bit % 8);
            assert!(!both.is_proved(&key, side, &forged));
        }
    }
}

// ---- attacks

#[test]
fn a_recorded_conversation_lets_nobody_in_again() {
    let (near, far) = (client(credentials(1, false)), osd(credentials(1, false)));
    let (mut out, hello) = connecting(&near, 1);
    let Accepted::Answer(Message::Welcome(welcome)) = accepting(2).handle(&far, &hello) else { panic!("no welcome") };
    let proof = out.handle_welcome(0, &near, &welcome).unwrap().answer.unwrap();
    // Against the OSD: the same hello and proof, another time.
    let mut again = accepting(3);
    assert!(matches!(again.handle(&far, &hello), Accepted::Answer(_)));
    assert!(matches!(again.handle(&far, &proof), Accepted::Refused(Refusal::Key)));
    assert!(matches!(again.handle(&far, &proof), Accepted::Refused(Refusal::NotHello)), "there is one attempt");
    // Against the client: the same welcome, another time.
    let (mut out, _) = connecting(&near, 4);
    assert_eq!(out.handle_welcome(0, &near, &welcome).err(), Some(Refusal::Key));
    assert_eq!(out.ready(), None);
}

#[test]
fn a_side_cannot_be_made_to_answer_for_itself() {
    // OSD 3 connects to what it takes for OSD 3's peer 4; the attacker has no key and hands everything back to OSD 3.
    let identity = osd(credentials(1, false));
    let mut out = Outgoing::new(OsdId(4));
    out.poll(0, Some(SocketAddr::from(([127, 0, 0, 1], 1))), LinkId(1));
    let Some(Message::Hello(hello)) = out.handle_connected(&identity, Nonce([1; 32])) else { panic!("no hello") };
    // As it is: it was meant for another.
    assert!(matches!(accepting(2).handle(&identity, &Message::Hello(hello)), Accepted::Refused(Refusal::Target)));
    // Turned around: the welcome that comes back is of the wrong OSD, and its proof is of other introductions.
    let turned = Hello { target: TARGET, role: Role::Osd(OsdId(4)), ..hello };
    let answer = accepting(2).handle(&identity, &Message::Hello(turned));
    let Accepted::Answer(Message::Welcome(welcome)) = answer else { panic!("{answer:?}") };
    assert_eq!(out.handle_welcome(0, &identity, &welcome).err(), Some(Refusal::Target));
    let renamed = Welcome { hello: Hello { role: Role::Osd(OsdId(4)), ..welcome.hello }, ..welcome };
    assert_eq!(out.handle_welcome(0, &identity, &renamed).err(), Some(Refusal::Key));
    // The accepting side's own proof is no proof of the connecting side.
    let mut victim = accepting(2);
    let Accepted::Answer(Message::Welcome(welcome)) = victim.handle(&identity, &Message::Hello(turned)) else {
        panic!("no welcome")
    };
    let reflected = victim.handle(&identity, &Message::Proof(welcome.proof.unwrap()));
    assert!(matches!(reflected, Accepted::Refused(Refusal::Key)));
}

#[test]
fn nothing_comes_before_a_proof() {
    let (near, far) = (client(credentials(1, false)), osd(credentials(1, false)));
    let (_, hello) = connecting(&near, 1);
    for early in [Message::Ping, hello.clone(), Message::Proof(Proof([0; 32]))] {
        let mut accepting = accepting(2);
        assert!(matches!(accepting.handle(&far, &hello), Accepted::Answer(_)));
        assert!(matches!(accepting.handle(&far, &early), Accepted::Refused(_)), "{early:?}");
    }
    for early in [Message::Ping, Message::Proof(Proof([0; 32]))] {
        assert!(matches!(accepting(2).handle(&far, &early), Accepted::Refused(Refusal::NotHello)), "{early:?}");
    }
}

// ---- sealed connections

fn put(sealer: Option<&mut Sealer>, message: &Message, out: &mut Vec<u8>) {
    match sealer {
        Some(sealer) => sealer.seal(message, out),
        None => {
            if let Some(payload) = encode(message, out) {
                out.extend_from_slice(&payload);
            }
        }
    }
}

/// A sealer and the decoder at the other end, in both directions.
fn sealed() -> [(Sealer, Decoder); 2] {
    let settled = settle(&client(credentials(1, true)), &osd(credentials(1, false)));
    let (near, far) = (settled.connecting.session.unwrap(), settled.accepting.session.unwrap());
    let decoder = |opener| {
        let mut decoder = Decoder::new();
        decoder.introduce(Some(opener));
        decoder
    };
    [(near.sealer, decoder(far.opener)), (far.sealer, decoder(near.opener))]
}

fn reply(bytes: usize) -> Message {
    let bytes: Vec<u8> = (0..bytes).map(|i| (i / 7) as u8).collect();
    let data = buffer::Buffer::copy_of(&bytes);
    let crcs = cluster_proto::crc::sector_crcs(&bytes);
    let version = cluster_proto::ids::Version::NONE;
    let body = ReplyBody::Data { data, crcs };
    Message::Reply(Reply { seq: 9, status: cluster_proto::Status::Ok, version, unsynced: false, body })
}

#[test]
fn sealed_messages_of_any_size_arrive_in_both_directions() {
    for (mut sealer, mut decoder) in sealed() {
        let sizes = [0, 4 << 10, 128 << 10, WIRE_RECORD_MAX, 4 << 20];
        let messages: Vec<_> = [Message::Ping].into_iter().chain(sizes.map(reply)).collect();
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| put(Some(&mut sealer), message, &mut bytes));
        let mut got = Vec::new();
        for mut chunk in bytes.chunks(50_021) {
            while let Some(message) = decoder.decode(&mut chunk).unwrap() {
                got.push(message);
            }
            assert!(chunk.is_empty());
        }
        assert!(got == messages);
    }
}

#[test]
fn a_sealed_connection_shows_nothing_and_takes_nothing_in_plain() {
    for (mut sealer, mut decoder) in sealed() {
        let mut bytes = Vec::new();
        put(Some(&mut sealer), &Message::Ping, &mut bytes);
        assert!(!bytes.windows(MAGIC.len()).any(|window| window == MAGIC));
        let mut plain = Vec::new();
        put(None, &Message::Ping, &mut plain);
        assert!(decoder.decode(&mut &plain[..]).is_err());
    }
}

#[test]
fn what_one_side_sealed_it_cannot_be_given_back() {
    let [(mut near, _), (_, mut near_decoder)] = sealed();
    let mut bytes = Vec::new();
    put(Some(&mut near), &Message::Ping, &mut bytes);
    assert!(near_decoder.decode(&mut &bytes[..]).is_err());
}

#[test]
fn channels_go_on_sealed_from_the_introduction_without_losing_a_byte() {
    let (near, far) = (client(credentials(1, true)), osd(credentials(1, true)));
    let (mut ours, mut theirs) = (Channel::new(), Channel::new());
    let (mut to_them, mut to_us) = (Vec::new(), Vec::new());
    let (mut out, hello) = connecting(&near, 1);
    let mut side = accepting(2);
    ours.encode(&hello, &mut to_them);
    let Ok(Some(hello)) = theirs.decode(&mut &to_them[..]) else { panic!("no hello") };
    let Accepted::Answer(welcome) = side.handle(&far, &hello) else { panic!("no answer") };
    theirs.encode(&welcome, &mut to_us);
    let Ok(Some(Message::Welcome(welcome))) = ours.decode(&mut &to_us[..]) else { panic!("no welcome") };
    let introduced = out.handle_welcome(0, &near, &welcome).unwrap();
    // The proof and the first message behind it arrive in one piece.
    to_them.clear();
    ours.encode(&introduced.answer.unwrap(), &mut to_them);
    ours.introduce(introduced.session);
    assert_eq!(ours.encode(&Message::Ping, &mut to_them), None);
    let mut arrived = &to_them[..];
    let Ok(Some(proof)) = theirs.decode(&mut arrived) else { panic!("no proof") };
    assert!(!theirs.is_introduced());
    let Accepted::Introduced(introduced) = side.handle(&far, &proof) else { panic!("not introduced") };
    theirs.introduce(introduced.session);
    assert_eq!(theirs.decode(&mut arrived), Ok(Some(Message::Ping)));
    assert_eq!(theirs.decode(&mut arrived), Ok(None));
    to_us.clear();
    theirs.encode(&Message::Pong { free_bytes: 7 }, &mut to_us);
    assert_eq!(ours.decode(&mut &to_us[..]), Ok(Some(Message::Pong { free_bytes: 7 })));
}

#[test]
fn every_connection_has_other_keys() {
    let seal = |nonces: (u8, u8)| {
        let (near, far) = (client(credentials(1, true)), osd(credentials(1, true)));
        let hello = near.hello(TARGET, Nonce([nonces.0; 32]));
        let welcome = far.hello(TARGET, Nonce([nonces.1; 32]));
        let both = Introductions { hello: &hello, welcome: &welcome };
        let mut session = both.session(near.credentials.as_ref().unwrap(), Side::Connecting).unwrap();
        let mut bytes = Vec::new();
        session.sealer.seal(&Message::Ping, &mut bytes);
        bytes
    };
    assert_eq!(seal((1, 2)), seal((1, 2)), "nothing but the arguments decides");
    assert_ne!(seal((1, 2)), seal((1, 3)));
    assert_ne!(seal((1, 2)), seal((4, 2)));
}

// ---- noise

fn introduction() -> impl Strategy<Value = Hello> {
    let role =
        prop_oneof![(1u32..9).prop_map(|id| Role::Osd(OsdId(id))), (1u64..9).prop_map(|id| Role::Client(ClientId(id)))];
    let security = prop_oneof![Just(Security::Open), Just(Security::Proved), Just(Security::Encrypted)];
    (1u16..4, 1u128..3, role, 0u64..3, 2u32..5, security, any::<[u8; 32]>()).prop_map(
        |(protocol, cluster, role, incarnation, target, security, nonce)| Hello {
            protocol,
            cluster: Uuid::from_u128(cluster),
            role,
            incarnation: Incarnation(incarnation),
            target: OsdId(target),
            security,
            nonce: Nonce(nonce),
        },
    )
}

/// What somebody without the key may say.
fn strange_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        introduction().prop_map(Message::Hello),
        (introduction(), any::<[u8; 32]>()).prop_map(|(hello, proof)| {
            let proof = hello.security.is_proved().then_some(Proof(proof));
            Message::Welcome(Welcome { hello, proof })
        }),
        any::<[u8; 32]>().prop_map(|proof| Message::Proof(Proof(proof))),
        Just(Message::Ping),
        Just(Message::Refuse(Refusal::Key)),
    ]
}

proptest! {
    #[test]
    fn without_the_key_nobody_gets_in(messages in prop::collection::vec(strange_message(), 1..6)) {
        let far = osd(credentials(1, true));
        let mut side = accepting(2);
        for message in &messages {
            prop_assert!(!matches!(side.handle(&far, message), Accepted::Introduced(_)));
        }
        let near = client(credentials(1, true));
        let (mut out, _) = connecting(&near, 1);
        for message in &messages {
            if let Message::Welcome(welcome) = message {
                prop_assert!(out.handle_welcome(0, &near, welcome).is_err());
            }
        }
        prop_assert_eq!(out.ready(), None);
    }

    /// A bit changed in the bytes of any of the three messages: whatever still is a message does not lead to an introduction.
    #[test]
    fn a_changed_bit_ends_the_introduction(which in 0usize..3, bit in 0usize..8 * 144, fix_crc: bool) {
        let (near, far) = (client(credentials(1, false)), osd(credentials(1, false)));
        let pass = |number: usize, message: &Message| -> Option<Message> {
            let mut bytes = Vec::new();
            put(None, message, &mut bytes);
            if number == which {
                let bit = bit % (bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                if fix_crc {
                    bytes[12..16].fill(0);
                    let crc = cluster_proto::crc::crc32c(&bytes);
                    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
                }
            }
            let got = Decoder::new().decode(&mut &bytes[..]).ok().flatten()?;
            // Fields of the header that mean nothing here, and checksums that were put right.
            (number != which || got != *message).then_some(got)
        };
        let (mut out, hello) = connecting(&near, 1);
        let mut side = accepting(2);
        let Some(hello) = pass(0, &hello) else { return Ok(()) };
        let Accepted::Answer(welcome) = side.handle(&far, &hello) else { return Ok(()) };
        let Some(Message::Welcome(welcome)) = pass(1, &welcome) else { return Ok(()) };
        let Ok(introduced) = out.handle_welcome(0, &near, &welcome) else { return Ok(()) };
        prop_assert_eq!(which, 2, "the client was content with changed introductions");
        let Some(proof) = pass(2, &introduced.answer.unwrap()) else { return Ok(()) };
        prop_assert!(!matches!(side.handle(&far, &proof), Accepted::Introduced(_)));
    }

    #[test]
    fn sealed_noise_never_panics_and_never_is_a_message(noise in prop::collection::vec(any::<u8>(), 0..3000), len in 1u32..2000) {
        for (_, mut decoder) in sealed() {
            let mut bytes = len.to_le_bytes().to_vec();
            bytes.extend_from_slice(&noise);
            let mut input = &bytes[..];
            prop_assert!(!matches!(decoder.decode(&mut input), Ok(Some(_))));
        }
    }

    #[test]
    fn sealed_messages_survive_any_fragmentation(cuts in prop::collection::vec(1usize..3000, 1..40)) {
        let [(mut sealer, mut decoder), _] = sealed();
        let messages = [Message::Ping, reply(8192), Message::Pong { free_bytes: 7 }, reply(300 << 10), Message::Ping];
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| put(Some(&mut sealer), message, &mut bytes));
        let (mut rest, mut got, mut cuts) = (&bytes[..], Vec::new(), cuts.into_iter().cycle());
        while !rest.is_empty() {
            let (mut chunk, later) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
            while let Some(message) = decoder.decode(&mut chunk).unwrap() {
                got.push(message);
            }
            rest = later;
        }
        prop_assert!(got == messages);
    }
}
