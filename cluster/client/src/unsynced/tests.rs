//! A client of a lazy pool against a primary that does what the test says.

use buffer::Buffer;
use cluster_proto::ids::{ClientId, Incarnation, LayerId, OsdId};
use cluster_proto::layout::{LayerRef, SECTOR};
use cluster_proto::link::{Accepted, Accepting, Identity, LinkId};
use cluster_proto::map::{ImmediateCommit, Member, OsdState, PgMap, PoolConfig, keys};
use cluster_proto::wire::{Message, Nonce, ReplyBody, Request, Role as WireRole};
use cluster_proto::{Uuid, Version};

use super::*;
use crate::client::ClientOptions;
use crate::image::ImageOptions;
use crate::op::ImageOp;

const POOL: PoolId = PoolId(1);
const OSD: OsdId = OsdId(7);
const CLUSTER: Uuid = Uuid::from_u128(5);

struct Scene {
    client: Client,
    image: ImageId,
    link: LinkId,
    now: Millis,
    /// Requests that the primary has not answered.
    asked: Vec<Request>,
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain values")
}

impl Scene {
    /// A client with a connection to the primary of all PGs, in epoch 1.
    fn new() -> Scene {
        let mut client = Client::new(ClientOptions { id: ClientId(3), cluster: CLUSTER, credentials: None });
        let layer = LayerRef { pool: POOL, lineage: LayerId(1), layer: LayerId(1) };
        let image = client.open(ImageOptions { layer, size: 4 << 20, block_size: 1 << 20, read_only: false });
        let mut scene = Scene { client, image, link: LinkId(0), now: 0, asked: Vec::new() };
        scene.shall_have_pgs(1);
        let address = "127.0.0.1:1".parse().expect("address");
        scene.hear(&keys::osd(OSD), &json(&OsdState { address, incarnation: Incarnation(9), started: 1 }));
        scene.begin_epoch(1);
        // The first request opens the connection.
        scene.submit(1, ImageOp::Read { offset: 0, len: SECTOR as u64 });
        scene.connect();
        scene.answer_read();
        assert_eq!(scene.replies(), [(1, true)]);
        scene
    }

    fn hear(&mut self, key: &str, value: &[u8]) {
        self.client.handle_map(self.now, key, Some(value)).expect("valid");
        self.take_outputs();
    }

    fn begin_epoch(&mut self, epoch: u32) {
        self.begin_epoch_of(0, epoch, None);
    }

    fn shall_have_pgs(&mut self, pg_count: u32) {
        let lazy = PoolConfig { immediate_commit: ImmediateCommit::None, ..PoolConfig::replicated("lazy", 1) };
        self.hear(&keys::pool(POOL), &json(&PoolConfig { pg_count, ..lazy }));
    }

    fn begin_epoch_of(&mut self, index: u32, epoch: u32, pg_count: Option<u32>) {
        let us = Member { osd: OSD, incarnation: Incarnation(9) };
        let map = PgMap {
            epoch: Epoch(epoch),
            primary: OSD,
            acting: vec![Some(us)],
            target: vec![OSD],
            dead: Vec::new(),
            unfenced: Vec::new(),
            pg_count,
        };
        self.hear(&keys::pg_map(PgId { pool: POOL, index }), &json(&map));
    }

    fn connect(&mut self) {
        let role = WireRole::Osd(OSD);
        let osd = Identity { cluster: CLUSTER, role, incarnation: Incarnation(9), credentials: None };
        self.client.handle_connected(self.now, self.link, Nonce([1; 32]));
        let Some(Output::Send { message, .. }) = self.client.poll_output() else { panic!("it says hello") };
        let Accepted::Introduced(introduced) = Accepting::new(Nonce([2; 32])).handle(&osd, &message) else {
            panic!("it is accepted")
        };
        let welcome = introduced.answer.expect("a welcome");
        self.client.handle_message(self.now, self.link, welcome);
        self.take_outputs();
    }

    fn take_outputs(&mut self) {
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Connect { link, .. } => self.link = link,
                Output::Send { message: Message::Request(request), .. } => self.asked.push(request),
                _ => {}
            }
        }
    }

    fn submit(&mut self, tag: u64, op: ImageOp) {
        self.client.submit(self.image, tag, op);
        self.take_outputs();
    }

    fn write(&mut self, tag: u64, sector: u64) {
        let data = Buffer::copy_of(&vec![tag as u8; SECTOR]);
        self.submit(tag, ImageOp::Write { offset: sector * SECTOR as u64, data });
    }

    fn read(&mut self, tag: u64, sector: u64) {
        self.submit(tag, ImageOp::Read { offset: sector * SECTOR as u64, len: SECTOR as u64 });
    }

    /// Takes the oldest request without an answer.
    fn next(&mut self) -> Request {
        assert!(!self.asked.is_empty(), "nothing is asked");
        self.asked.remove(0)
    }

    fn reply(&mut self, request: &Request, status: Status, unsynced: bool, body: ReplyBody) {
        let reply = Reply { seq: request.seq, status, version: Version::NONE, unsynced, body };
        self.client.handle_message(self.now, self.link, Message::Reply(reply));
        self.take_outputs();
    }

    fn answer(&mut self, unsynced: bool) -> Request {
        let request = self.next();
        self.reply(&request, Status::Ok, unsynced, ReplyBody::Empty);
        request
    }

    fn answer_read(&mut self) -> Request {
        let request = self.next();
        let data = Buffer::zeroed(SECTOR);
        let crcs = cluster_proto::crc::sector_crcs(&data);
        self.reply(&request, Status::Ok, false, ReplyBody::Data { data, crcs });
        request
    }

    fn replies(&mut self) -> Vec<(u64, bool)> {
        std::iter::from_fn(|| self.client.poll_reply()).map(|(_, tag, result)| (tag, result.is_ok())).collect()
    }

    /// Lets time pass; the primary answers probes.
    fn wait(&mut self, millis: Millis) {
        for _ in 0..millis / 100 {
            self.now += 100;
            self.client.handle_timeout(self.now);
            self.take_outputs();
            self.client.handle_message(self.now, self.link, Message::Pong { free_bytes: 0 });
        }
    }
}

#[test]
fn what_is_durable_is_not_kept() {
    let mut scene = Scene::new();
    scene.write(2, 0);
    assert!(!scene.answer(false).only_in_epoch);
    scene.submit(3, ImageOp::Flush);
    assert_eq!(scene.replies(), [(2, true), (3, true)]);
    assert_eq!((scene.client.unsynced(), scene.asked.len()), (0, 0));
}

#[test]
fn a_new_interval_repeats_before_anything_that_touches_it() {
    let mut scene = Scene::new();
    scene.write(2, 0);
    let first = scene.answer(true);
    scene.write(3, 0);
    let second = scene.answer(true);
    assert!(second.only_in_epoch && second.seq > first.seq);
    assert_eq!((second.floor, scene.client.unsynced()), (first.seq, 2));
    scene.begin_epoch(2);
    // The older one first, under its number; the newer one waits for it.
    let again = scene.next();
    assert_eq!((again.seq, again.epoch, &again.op), (first.seq, Epoch(2), &first.op));
    assert!(again.only_in_epoch && scene.asked.is_empty());
    scene.read(4, 0);
    assert!(scene.asked.is_empty(), "the read waits");
    scene.read(5, 9);
    assert_eq!(scene.answer_read().epoch, Epoch(2));
    scene.reply(&again, Status::Ok, true, ReplyBody::Empty);
    assert_eq!(scene.answer(true).seq, second.seq);
    let read = scene.answer_read();
    assert!(read.only_in_epoch && matches!(read.op, RequestOp::Read(_)));
    assert_eq!(scene.replies().len(), 4);
    assert_eq!(scene.client.unsynced(), 2);
}

#[test]
fn a_flush_ends_with_a_sync_of_the_same_epoch() {
    let mut scene = Scene::new();
    scene.write(2, 0);
    let write = scene.answer(true);
    scene.submit(3, ImageOp::Flush);
    let sync = scene.next();
    assert!(sync.op == RequestOp::Sync && sync.only_in_epoch && sync.epoch == Epoch(1));
    // Its answer is late: a new interval began, and what it made durable there may be lost here.
    scene.begin_epoch(2);
    scene.reply(&sync, Status::Ok, false, ReplyBody::Empty);
    assert_eq!(scene.replies(), [(2, true)], "the flush goes on");
    let again = scene.answer(true);
    assert_eq!(again.seq, write.seq);
    let sync = scene.answer(false);
    assert!(sync.op == RequestOp::Sync && sync.epoch == Epoch(2));
    assert_eq!(scene.replies(), [(3, true)]);
    assert_eq!((scene.client.unsynced(), scene.client.window.len()), (0, 0));
}

#[test]
fn a_sync_covers_only_what_was_answered_before_it() {
    let mut scene = Scene::new();
    scene.write(2, 0);
    scene.answer(true);
    scene.submit(3, ImageOp::Flush);
    let sync = scene.next();
    scene.write(4, 1);
    scene.answer(true);
    scene.reply(&sync, Status::Ok, false, ReplyBody::Empty);
    assert_eq!(scene.replies(), [(2, true), (4, true), (3, true)]);
    assert_eq!(scene.client.unsynced(), 1);
}

#[test]
fn a_repeated_change_that_was_found_durable_is_kept_no_longer() {
    let mut scene = Scene::new();
    scene.write(2, 0);
    scene.answer(true);
    scene.submit(3, ImageOp::Flush);
    let sync = scene.next();
    scene.reply(&sync, Status::Retry, false, ReplyBody::Empty);
    scene.begin_epoch(2);
    scene.answer(false);
    assert_eq!(scene.replies(), [(2, true), (3, true)]);
    assert_eq!(scene.client.unsynced(), 0);
}

#[test]
fn a_removal_takes_the_place_of_what_it_covers() {
    let mut scene = Scene::new();
    scene.write(2, 0);
    scene.answer(true);
    scene.submit(3, ImageOp::DeleteObjects { first: 0, end: 1 });
    let removal = scene.next();
    scene.begin_epoch(2);
    assert!(scene.asked.is_empty(), "nothing is repeated");
    scene.read(4, 0);
    assert!(scene.asked.is_empty(), "but nothing may miss it either");
    scene.reply(&removal, Status::Retry, false, ReplyBody::Empty);
    scene.wait(400);
    assert_eq!(scene.answer(false).op, RequestOp::Delete);
    assert_eq!(scene.client.unsynced(), 0);
    scene.answer_read();
    assert_eq!(scene.replies(), [(2, true), (3, true), (4, true)]);
}

#[test]
fn a_removal_that_fails_brings_back_what_it_should_have_covered() {
    let mut scene = Scene::new();
    scene.write(2, 0);
    let write = scene.answer(true);
    scene.submit(3, ImageOp::DeleteObjects { first: 0, end: 1 });
    let removal = scene.next();
    scene.begin_epoch(2);
    scene.reply(&removal, Status::Io, false, ReplyBody::Empty);
    scene.wait(100);
    assert_eq!(scene.answer(true).seq, write.seq);
    assert_eq!((scene.replies(), scene.client.unsynced()), (vec![(2, true), (3, false)], 1));
}

#[test]
fn a_change_that_cannot_be_repeated_fails_the_flush() {
    let mut scene = Scene::new();
    scene.write(2, 0);
    scene.answer(true);
    scene.submit(3, ImageOp::Flush);
    let _sync = scene.next();
    scene.begin_epoch(2);
    let again = scene.next();
    scene.reply(&again, Status::Io, false, ReplyBody::Empty);
    assert_eq!(scene.replies(), [(2, true), (3, false)]);
}

#[test]
fn what_is_kept_is_bounded_in_number_and_time() {
    let mut scene = Scene::new();
    let (mut written, mut syncs) = (0, Vec::new());
    for n in 0..2 * UNSYNCED_MAX as u64 {
        scene.write(10 + n, n % 512);
        let asked = std::mem::take(&mut scene.asked);
        for request in asked {
            if request.op == RequestOp::Sync {
                syncs.push(request);
            } else {
                written += 1;
                scene.reply(&request, Status::Ok, true, ReplyBody::Empty);
            }
        }
    }
    assert_eq!((written, syncs.len()), (UNSYNCED_MAX, 1), "one sync is under way, and new changes wait");
    scene.reply(&syncs[0], Status::Ok, false, ReplyBody::Empty);
    assert!(!scene.asked.is_empty() && !scene.client.unsynced.is_full(), "it made room");

    let mut scene = Scene::new();
    scene.write(2, 0);
    scene.answer(true);
    scene.wait(UNSYNCED_MS_MAX - 200);
    assert!(scene.asked.is_empty());
    scene.wait(400);
    assert_eq!(scene.answer(false).op, RequestOp::Sync);
    assert_eq!(scene.client.unsynced(), 0);
}

#[test]
fn with_the_pool_everything_is_forgotten() {
    let mut scene = Scene::new();
    scene.write(2, 0);
    scene.answer(true);
    scene.submit(3, ImageOp::Flush);
    scene.begin_epoch(2);
    scene.client.handle_map(scene.now, &keys::pool(POOL), None).expect("valid");
    assert_eq!(scene.replies(), [(2, true), (3, true)]);
    assert_eq!((scene.client.unsynced(), scene.client.window.len()), (0, 0));
}

/// Two PGs in epoch 2, of which only the number that the object at sector 0 is in is of interest.
fn two_pgs(scene: &mut Scene) -> (u32, ObjectId) {
    scene.shall_have_pgs(2);
    (0..2).for_each(|index| scene.begin_epoch_of(index, 2, Some(2)));
    scene.write(2, 0);
    let object = scene.asked[0].object;
    (object.pg(2).index, object)
}

fn forget_map(scene: &mut Scene, index: u32) {
    scene.client.handle_map(scene.now, &keys::pg_map(PgId { pool: POOL, index }), None).expect("valid");
    scene.take_outputs();
}

#[test]
fn a_sync_of_a_pg_that_was_merged_ends_and_what_it_was_for_is_repeated() {
    for removal_comes_first in [false, true] {
        let mut scene = Scene::new();
        let (index, _) = two_pgs(&mut scene);
        let write = scene.answer(true);
        assert_eq!((write.pg, write.epoch), (index, Epoch(2)));
        scene.submit(3, ImageOp::Flush);
        let sync = scene.next();
        assert!(sync.op == RequestOp::Sync && sync.pg == index);
        scene.shall_have_pgs(1);
        if removal_comes_first {
            forget_map(&mut scene, 1);
        }
        scene.begin_epoch_of(0, 3, Some(1));
        forget_map(&mut scene, 1);
        let again = scene.next();
        assert_eq!((again.seq, again.pg, again.epoch), (write.seq, 0, Epoch(3)));
        // Its primary does not have it any more; then it is asked of who has.
        scene.reply(&sync, Status::Retry, false, ReplyBody::Empty);
        scene.wait(1_000);
        assert!(scene.asked.is_empty(), "first what may be lost");
        scene.reply(&again, Status::Ok, true, ReplyBody::Empty);
        scene.wait(1_000);
        while !scene.asked.is_empty() {
            let sync = scene.answer(false);
            assert!(sync.op == RequestOp::Sync && (sync.pg, sync.epoch) == (0, Epoch(3)));
        }
        assert_eq!(scene.replies(), [(2, true), (3, true)]);
        assert_eq!((scene.client.unsynced(), scene.client.window.len()), (0, 0));
    }
}

#[test]
fn what_is_answered_while_no_pg_has_its_object_is_kept_and_repeated() {
    let mut scene = Scene::new();
    let (index, object) = two_pgs(&mut scene);
    let write = scene.next();
    forget_map(&mut scene, index);
    assert_eq!(scene.client.map.pg_of(&object), None);
    scene.reply(&write, Status::Ok, true, ReplyBody::Empty);
    assert_eq!((scene.client.unsynced(), scene.asked.len()), (1, 0));
    scene.shall_have_pgs(1);
    scene.begin_epoch_of(0, 3, Some(1));
    let again = scene.answer(false);
    assert_eq!((again.seq, again.pg, again.epoch), (write.seq, 0, Epoch(3)));
    assert_eq!(scene.client.unsynced(), 0);
}
