//! Members that do not keep to reason: what they can make an OSD hold is bounded. And members that were full.

use crate::testing::Empty;
use crate::write::Need;
use crate::{Osd, OsdOptions, Output};
use cluster_proto::Uuid;
use cluster_proto::ids::{Epoch, Incarnation, LayerId, ObjectId, OsdId, PgId, PoolId, Version};
use cluster_proto::limits::{EARLY_QUERIES_MAX, PG_HEADS_MAX, WIRE_HEADS_MAX};
use cluster_proto::link::{Identity, LinkId, Outgoing};
use cluster_proto::map::{Member, OsdState, PgMap, PoolConfig, keys};
use cluster_proto::shard::{ObjectHead, Space};
use cluster_proto::wire::{Message, Nonce, PeerInfo, PeerObjects, PeerQuery, Role};

const CLUSTER: Uuid = Uuid::from_u128(7);

fn run_of(osd: u32) -> Incarnation {
    Incarnation(u64::from(osd) + 100)
}

fn osd(id: u32) -> Osd {
    Osd::new(OsdOptions {
        id: OsdId(id),
        cluster: CLUSTER,
        incarnation: run_of(id),
        started: 0,
        started_unix: 0,
        credentials: None,
        slow_operation_ms: 1_000,
    })
}

fn outputs(osd: &mut Osd) -> Vec<Output> {
    std::iter::from_fn(|| osd.poll_output()).collect()
}

fn sent(osd: &mut Osd) -> Option<Message> {
    let of = |output| if let Output::Send { message, .. } = output { Some(message) } else { None };
    outputs(osd).into_iter().find_map(of)
}

fn closed(osd: &mut Osd) -> Vec<LinkId> {
    let of = |output| if let Output::Close(link) = output { Some(link) } else { None };
    outputs(osd).into_iter().filter_map(of).collect()
}

/// OSD `id` connects to `osd`, which is OSD 1, and introduces itself.
fn caller(osd: &mut Osd, id: u32) -> LinkId {
    let link = osd.handle_accepted(0, Nonce([1; Nonce::LEN]));
    let role = Role::Osd(OsdId(id));
    let identity = Identity { cluster: CLUSTER, role, incarnation: run_of(id), credentials: None };
    let mut out = Outgoing::new(OsdId(1));
    out.poll(0, Some("127.0.0.1:1".parse().unwrap()), LinkId(0));
    let hello = out.handle_connected(&identity, Nonce([2; Nonce::LEN])).expect("an introduction");
    osd.handle_message(0, &mut Empty::default(), link, hello);
    assert!(outputs(osd).iter().any(|o| matches!(o, Output::Introduced { link: l, .. } if *l == link)));
    link
}

#[test]
fn who_asks_into_groups_without_end_is_sent_away_and_nobody_else() {
    let mut osd = osd(1);
    let (honest, greedy) = (caller(&mut osd, 2), caller(&mut osd, 3));
    let ask = |osd: &mut Osd, link, pool, index| {
        let query = PeerQuery { pg: PgId { pool: PoolId(pool), index }, epoch: Epoch(1), round: 1 };
        osd.handle_message(0, &mut Empty::default(), link, Message::PeerQuery(query));
    };
    (0..10).for_each(|index| ask(&mut osd, honest, 1, index));
    let rest = EARLY_QUERIES_MAX as u32 - 10;
    (0..rest).for_each(|index| ask(&mut osd, greedy, 2, index));
    ask(&mut osd, greedy, 2, 0);
    assert_eq!(closed(&mut osd), [], "as many as there may be");
    ask(&mut osd, honest, 1, 11);
    assert_eq!(closed(&mut osd), [greedy]);
    // With its connection everything went that it had asked.
    (0..rest - 1).for_each(|index| ask(&mut osd, honest, 3, index));
    assert_eq!(closed(&mut osd), []);
}

/// OSD 1 as the primary of a PG, with OSD 2 as the other member, which says that it holds something, and is asked for a list. Returns
/// the connection to it and the round.
fn listing(osd: &mut Osd) -> (LinkId, PeerQuery) {
    let pg = PgId { pool: PoolId(1), index: 0 };
    let member = |osd: u32| Some(Member { osd: OsdId(osd), incarnation: run_of(osd) });
    let map = PgMap {
        epoch: Epoch(1),
        primary: OsdId(1),
        acting: vec![member(1), member(2)],
        target: vec![OsdId(1), OsdId(2)],
        dead: Vec::new(),
        unfenced: Vec::new(),
        pg_count: None,
    };
    let state = OsdState { address: "127.0.0.1:1".parse().unwrap(), incarnation: run_of(2), started: 0 };
    let pool = PoolConfig { pg_count: 1, ..PoolConfig::replicated("p", 2) };
    let values = [
        (keys::pool(pg.pool), serde_json::to_vec(&pool)),
        (keys::osd(OsdId(2)), serde_json::to_vec(&state)),
        (keys::pg_map(pg), serde_json::to_vec(&map)),
    ];
    for (key, value) in values {
        osd.handle_map(0, &mut Empty::default(), &key, Some(&value.unwrap())).expect("it keeps the schema");
    }
    let of = |output| if let Output::Connect { link, .. } = output { Some(link) } else { None };
    let link = outputs(osd).into_iter().find_map(of).expect("it connects to the other member");
    osd.handle_connected(0, link, Nonce([3; Nonce::LEN]));
    let mut other = self::osd(2);
    let theirs = other.handle_accepted(0, Nonce([4; Nonce::LEN]));
    other.handle_message(0, &mut Empty::default(), theirs, sent(osd).expect("an introduction"));
    osd.handle_message(0, &mut Empty::default(), link, sent(&mut other).expect("a welcome"));
    let query = PeerQuery { pg, epoch: Epoch(1), round: 1 };
    let mut digests = Box::new([0; 256]);
    digests[0] = 1;
    let info = PeerInfo { query, digests, free_bytes: 0, lease_ms: 0, parts: 1 };
    osd.handle_message(0, &mut Empty::default(), link, Message::PeerInfo(info));
    assert!(outputs(osd).iter().any(|o| matches!(o, Output::Send { message: Message::PeerList(_), .. })));
    (link, query)
}

#[test]
fn a_list_without_end_fails_the_round() {
    let mut osd = osd(1);
    let (link, query) = listing(&mut osd);
    let layer = LayerId(1);
    let head = |index| ObjectHead {
        object: ObjectId { pool: PoolId(1), layer, lineage: layer, index, part: 0 },
        version: Version::new(Epoch(1), 1),
        deleted: false,
        staged_over: None,
    };
    let heads: Vec<_> = (0..WIRE_HEADS_MAX as u32).map(head).collect();
    let more = |osd: &mut Osd| {
        let objects = PeerObjects { query, more: true, heads: heads.clone() };
        osd.handle_message(0, &mut Empty::default(), link, Message::PeerObjects(objects));
    };
    (0..PG_HEADS_MAX / WIRE_HEADS_MAX).for_each(|_| more(&mut osd));
    assert_eq!(osd.pg_summaries()[0].state, "peering");
    assert!(outputs(&mut osd).is_empty());
    more(&mut osd);
    assert_eq!(osd.pg_summaries()[0].state, "stalled");
    let of = |output| if let Output::Notice(text) = output { Some(text) } else { None };
    let told = outputs(&mut osd).into_iter().find_map(of);
    assert!(told.is_some_and(|text| text.contains("osd 2 lists more than 2097152 objects")));
}

#[test]
fn a_member_that_was_full_is_written_to_again_once_it_has_space() {
    let mut osd = osd(1);
    let (link, query) = listing(&mut osd);
    let mut shard = Empty { space: Space { total: 1 << 30, ..Space::default() }, ..Empty::default() };
    let has_space = |osd: &Osd, shard: &Empty| osd.has_space(shard, query.pg, Need::ForGood(4096));
    assert!(!has_space(&osd, &shard), "it said so when it was asked for its digests");
    osd.handle_message(0, &mut shard, link, Message::Pong { free_bytes: 1 << 29 });
    assert!(has_space(&osd, &shard));
    osd.handle_message(0, &mut shard, link, Message::Pong { free_bytes: 1 << 20 });
    assert!(!has_space(&osd, &shard), "somebody else filled it");
}
