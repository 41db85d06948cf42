//! Looks for damage before anybody needs what is damaged, and repairs it. docs/scrub.md tells it as a whole.
//!
//! A scrub of a PG first compares the members' digests (*light*). A *deep* one then lets the stores of all members read and verify
//! every object ([`ShardOp::Verify`]: only the verdict crosses the network), and rewrites what is damaged from another copy, or as the
//! other shards say, if that has exactly the checksum that the damaged sectors had. Then it compares parity with data (`scrub/parity.rs`), or
//! copies with each other (`scrub/copies.rs`).
//!
//! Only primaries scrub, and only PGs in which nothing is missing. What is known of a scrub lives with the PG: one that was interrupted
//! by a new round goes on where it was.

mod copies;
mod parity;

use std::collections::VecDeque;

use cluster_proto::crc::Crcs;
use cluster_proto::ids::{ObjectId, PgId, Version};
use cluster_proto::layout::SectorRange;
use cluster_proto::limits::{DIGEST_BUCKETS, SECTORS_PER_OBJECT_MAX};
use cluster_proto::link::Millis;
use cluster_proto::locks::{Access, Hold};
use cluster_proto::map::{PgScrub, ScrubRequest};
use cluster_proto::shard::{Buckets, Digests, ShardIndex, ShardOp, ShardOutcome, Unreadable};
use cluster_proto::wire::{Message, PeerInfo};

use self::parity::Parity;
use crate::ec::{EcOp, Purpose, ShardRead};
use crate::op::{Kind, OpId, PeerMask, bits};
use crate::osd::Osd;
use crate::pg::Pg;

/// While clients are served, one object is verified in so long. Milliseconds.
const BUSY_MS: Millis = 500;
/// A comparison that found a difference is repeated after so long, before it is believed. Milliseconds.
const DOUBT_MS: Millis = 1_000;
/// So many comparisons in a row must find differences.
const DOUBTS: u32 = 3;
/// The first scrubs of PGs are spread over this share of the interval, the others follow an interval later each.
const FIRST_SHARE: u64 = 8;

/// How much scrubbing goes on at once: one object of all PGs that this OSD leads.
#[derive(Default)]
pub(crate) struct ScrubPace {
    running: u32,
    /// When the next object may begin although clients are served.
    next: Millis,
    /// The PG that had its turn last.
    last: Option<PgId>,
}

/// What a PG's primary knows of its scrubs.
#[derive(Default)]
pub(crate) struct PgScrubs {
    /// When we began to lead the PG.
    since: Option<Millis>,
    done: PgScrub,
    /// The scrub under way.
    run: Option<Run>,
    /// Counts the changes of the PG that were sent out: a comparison during which one was is worth nothing.
    pub changes: u64,
}

/// A scrub of a PG under way.
struct Run {
    deep: bool,
    /// The request that it serves.
    request: Option<u64>,
    /// Parity that does not fit the data is computed anew, whatever is wrong.
    rewrites_parity: bool,
    compared: bool,
    comparison: Option<Comparison>,
    doubts: u32,
    /// Not compared again before.
    compare_at: Millis,
    /// Buckets of objects that were listed.
    bucket: usize,
    /// Objects of those buckets that are yet to be verified.
    objects: VecDeque<ObjectId>,
    /// An object is being verified.
    is_busy: bool,
    errors: u64,
    unrepaired: u64,
    /// Rows among the errors whose parity does not fit.
    parity: u64,
}

/// Digests of the members being collected.
struct Comparison {
    own: Box<Digests>,
    changes: u64,
    awaited: PeerMask,
    differing: Buckets,
    /// Somebody holds shards that it should not: its digests tell nothing.
    is_void: bool,
}

/// An object being verified, as an operation.
#[derive(Debug)]
pub(crate) struct Scrub {
    object: ObjectId,
    stage: Stage,
    /// What is yet to be repaired.
    damage: Vec<Damage>,
    errors: u64,
    unrepaired: u64,
    parity: Parity,
}

/// Damaged sectors of one member.
#[derive(Debug)]
struct Damage {
    peer: usize,
    version: Version,
    sectors: SectorRange,
    /// What intact sectors have.
    crcs: Crcs,
    /// Peers that are of no use for the repair, the damaged one included.
    useless: PeerMask,
}

#[derive(Debug)]
enum Stage {
    /// Waiting for changes of the object that are under way.
    Locking,
    Verifying,
    /// Reading what the last of the damaged ranges is to be repaired from.
    Gathering(Box<EcOp>),
    Repairing,
    /// Reading the data of rows whose parity does not fit it.
    Rereading(Box<EcOp>),
    /// Writing that parity.
    Rewriting,
}

impl Damage {
    fn new(peer: usize, version: Version, sectors: SectorRange, crcs: &[u32]) -> Self {
        Self { peer, version, sectors, crcs: crcs.into(), useless: 1 << peer }
    }

    /// Both halves: what cannot be repaired at once may be in parts, each from another copy.
    fn halves(&self) -> Option<[Damage; 2]> {
        let half = self.sectors.count / 2;
        let (left, right) = self.crcs.split_at_checked(half as usize).filter(|_| half > 0)?;
        let start = self.sectors.start;
        Some([
            Damage::new(self.peer, self.version, SectorRange::new(start, half), left),
            Damage::new(self.peer, self.version, SectorRange::new(start + half, self.sectors.count - half), right),
        ])
    }
}

/// What a member reports as damaged, range by range.
fn damages(peer: usize, version: Version, sectors: &[SectorRange], crcs: &[u32]) -> Vec<Damage> {
    let mut rest = crcs;
    let mut found = Vec::with_capacity(sectors.len());
    for range in sectors {
        let (own, after) = rest.split_at(rest.len().min(range.count as usize));
        rest = after;
        found.push(Damage::new(peer, version, *range, own));
    }
    found
}

/// A number that spreads PGs over an interval: the same in every run of every OSD.
fn phase(pg: PgId, span: Millis) -> Millis {
    let mixed = (u64::from(pg.pool.0) << 32 | u64::from(pg.index)).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(mixed) * u128::from(span)) >> 64) as Millis
}

/// Whether a scrub of this interval is due: so long (in seconds) after the one before, if there was one; else at some time of the first
/// part of the interval, which begins with `led_ms`, the time since when we lead the PG.
fn is_due(pg: PgId, led_ms: Millis, passed: Option<u64>, interval_seconds: u32) -> bool {
    let interval = u64::from(interval_seconds);
    let first = phase(pg, interval * 1000 / FIRST_SHARE);
    interval > 0 && passed.map_or(led_ms >= first, |passed| passed >= interval)
}

impl Run {
    fn new(deep: bool) -> Self {
        Self {
            deep,
            request: None,
            rewrites_parity: false,
            compared: false,
            comparison: None,
            doubts: 0,
            compare_at: 0,
            bucket: 0,
            objects: VecDeque::new(),
            is_busy: false,
            errors: 0,
            unrepaired: 0,
            parity: 0,
        }
    }

    fn asked_for(request: &ScrubRequest) -> Self {
        let (rewrites_parity, request, deep) = (request.parity_from_data, Some(request.requested), request.deep);
        Self { request, rewrites_parity, ..Self::new(deep) }
    }

    fn is_verified(&self) -> bool {
        !self.deep || (self.bucket == DIGEST_BUCKETS && self.objects.is_empty() && !self.is_busy)
    }
}

impl PgScrubs {
    /// The round is over: what was asked will not be answered.
    pub fn round_ended(&mut self) {
        if let Some(run) = &mut self.run {
            run.comparison = None;
            run.is_busy = false;
        }
    }

    /// Whether the scrub under way computes parity anew that does not fit the data, whatever is wrong.
    fn rewrites_parity(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.rewrites_parity)
    }

    /// The PG is split: what is under way begins anew in each part. They were scrubbed when the whole was.
    pub fn split_off(&mut self) -> Self {
        self.run = None;
        Self { since: self.since, done: PgScrub { served: None, ..self.done }, ..Self::default() }
    }

    /// The PG has other objects than before: what is under way begins anew.
    pub fn merged(&mut self) {
        self.run = None;
    }

    /// Somebody else leads the PG now.
    pub fn lost(&mut self) {
        let changes = self.changes;
        *self = Self { changes, ..Self::default() };
    }

    /// What was done, if anything was.
    pub fn done(&self) -> Option<PgScrub> {
        self.done.light.map(|_| self.done)
    }

    /// What the cluster state says: of what another primary did, or our last run.
    fn learn(&mut self, recorded: &PgScrub) {
        if recorded.light > self.done.light {
            self.done = *recorded;
        }
    }
}

impl Pg {
    /// Whether everything of the PG is where it should be, as far as is known, and its members can be asked.
    fn can_be_scrubbed(&self) -> bool {
        self.is_primary() && self.is_writable() && self.missing.is_empty() && self.recoveries == 0
    }

    /// Whether a member's digests can be compared: it holds its own shard only.
    fn holds_own_only(&self, peer: usize, parts: u32) -> bool {
        !self.is_coded() || self.peers()[peer].shard.is_some_and(|shard| parts & !(1 << shard) == 0)
    }
}

impl Osd {
    /// Begins and ends scrubs, and keeps them going.
    pub(crate) fn poll_scrubs(&mut self, now: Millis, shard: &dyn ShardIndex) {
        let led: Vec<PgId> = self.pgs.iter().filter(|(_, pg)| pg.can_be_scrubbed()).map(|(id, _)| *id).collect();
        for id in led {
            self.scrub_schedule(now, id);
            self.scrub_compare(now, shard, id);
            self.scrub_finish(now, id);
        }
        if self.held.is_empty() || self.scrub.next <= now {
            self.scrub.next = now + BUSY_MS;
            self.scrub_more(shard);
        }
    }

    /// Begins the scrub that is asked for or due. A request begins anew what was under way without being asked for.
    fn scrub_schedule(&mut self, now: Millis, id: PgId) {
        let (light, deep) = (self.map.settings.scrub_interval_seconds, self.map.settings.deep_scrub_interval_seconds);
        let request = self.map.scrubs.get(&id).copied();
        let unix = self.unix_time(now);
        let recorded = self.map.scrubbed.get(&id);
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        let scrubs = &mut pg.scrubs;
        recorded.into_iter().for_each(|recorded| scrubs.learn(recorded));
        let led = now - *scrubs.since.get_or_insert(now);
        if let Some(request) = request.filter(|request| scrubs.done.served != Some(request.requested)) {
            let serves = scrubs.run.as_ref().is_some_and(|run| run.request == Some(request.requested));
            // The object at hand, if there is one, is verified to its end first.
            let is_busy = scrubs.run.as_ref().is_some_and(|run| run.is_busy || run.comparison.is_some());
            if !serves && !is_busy {
                scrubs.run = Some(Run::asked_for(&request));
            }
            return;
        }
        // A time of the future, by a clock that was wrong once, must not put scrubs off for ever.
        let passed = |last: Option<u64>| last.map(|last| unix.checked_sub(last).unwrap_or(u64::MAX));
        if scrubs.run.is_none() {
            if is_due(id, led, passed(scrubs.done.deep), deep) {
                scrubs.run = Some(Run::new(true));
            } else if is_due(id, led, passed(scrubs.done.light), light) {
                scrubs.run = Some(Run::new(false));
            }
        }
    }

    /// The time of day. Seconds since 1970.
    fn unix_time(&self, now: Millis) -> u64 {
        self.options.started_unix + now.saturating_sub(self.options.started) / 1000
    }

    fn scrub_finish(&mut self, now: Millis, id: PgId) {
        let time = self.unix_time(now);
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        let Some(run) = pg.scrubs.run.take_if(|run| run.compared && run.is_verified()) else { return };
        let done = &mut pg.scrubs.done;
        done.light = Some(time);
        done.deep = if run.deep { Some(time) } else { done.deep };
        (done.errors, done.unrepaired, done.parity) = (run.errors, run.unrepaired, run.parity);
        done.served = run.request.or(done.served);
        if run.request.is_some() || run.errors > 0 {
            let kind = if run.deep { "deep" } else { "light" };
            let Run { errors, unrepaired, parity, .. } = run;
            let rows = if parity > 0 { format!(" ({parity} of them rows of wrong parity)") } else { String::new() };
            self.notice(format!("pg {id}: {kind} scrub ended, {errors} errors found{rows}, {unrepaired} not repaired"));
        }
    }

    // ---- light: the members' digests

    /// Asks the members for their digests, when nothing changes. The question is that of peering, in the present round, which its members
    /// answer without stopping anything.
    fn scrub_compare(&mut self, now: Millis, shard: &dyn ShardIndex, id: PgId) {
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        let query = pg.query_message();
        let (own, acting, changes) = (pg.own(), pg.acting(), pg.scrubs.changes);
        let scope = pg.scope();
        let is_void = !pg.holds_own_only(own, shard.parts(scope));
        let is_quiet = pg.local_mutations == 0 && pg.commits.is_empty();
        let Some(run) = &mut pg.scrubs.run else { return };
        let is_wanted = !run.compared && run.comparison.is_none() && run.compare_at <= now;
        if !is_wanted || !is_quiet || self.ops.ids().any(|(_, op)| op.pg == id && op.remotes != 0) {
            return;
        }
        let others: Vec<_> = bits(acting & !(1 << own)).map(|peer| pg.peers()[peer]).collect();
        let digests = Box::new(shard.digests(scope));
        let Some(run) = self.pgs.get_mut(&id).and_then(|pg| pg.scrubs.run.as_mut()) else { return };
        if others.is_empty() {
            run.compared = true;
            return;
        }
        let awaited = acting & !(1 << own);
        run.comparison = Some(Comparison { own: digests, changes, awaited, differing: Buckets::default(), is_void });
        for peer in others {
            // Without a connection the round is about to end.
            if let Some(link) = self.links.ready_peer(&peer) {
                self.send(link, Message::PeerQuery(query));
            }
        }
    }

    /// A member's digests arrived while the PG is active.
    pub(crate) fn scrub_compared(
        &mut self,
        now: Millis,
        shard: &mut dyn ShardIndex,
        id: PgId,
        peer: usize,
        info: &PeerInfo,
    ) {
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        let is_void = !pg.holds_own_only(peer, info.parts);
        let changes = pg.scrubs.changes;
        let Some(run) = &mut pg.scrubs.run else { return };
        let Some(comparison) = run.comparison.as_mut().filter(|c| c.awaited >> peer & 1 == 1) else { return };
        comparison.awaited &= !(1 << peer);
        comparison.is_void |= is_void;
        comparison.differing = comparison.differing.union(Buckets::differing(&comparison.own, &info.digests));
        if comparison.awaited != 0 {
            return;
        }
        let Some(comparison) = run.comparison.take() else { return };
        if comparison.is_void || comparison.changes != changes {
            run.compare_at = if comparison.is_void { now + DOUBT_MS } else { now };
            return;
        }
        if comparison.differing.is_empty() {
            run.compared = true;
            return;
        }
        run.doubts += 1;
        run.compare_at = now + DOUBT_MS;
        if run.doubts >= DOUBTS {
            let count = comparison.differing.0.iter().map(|word| word.count_ones()).sum::<u32>();
            run.compared = true;
            run.errors += u64::from(count);
            self.stats.scrub_errors += u64::from(count);
            self.notice(format!(
                "pg {id}: members differ in {count} of {DIGEST_BUCKETS} parts, they are brought together"
            ));
            self.begin_round(now, shard, id);
        }
    }

    // ---- deep: every object

    /// Whether another object may begin.
    fn scrub_has_room(&self) -> bool {
        self.scrub.running == 0 && !self.recovery.is_running()
    }

    /// Begins with the next object, if there is one: of what is asked for first, then of each PG in turn.
    fn scrub_more(&mut self, shard: &dyn ShardIndex) {
        while self.scrub_has_room() {
            let wants = |pg: &Pg| {
                let run = pg.scrubs.run.as_ref().filter(|run| run.compared && !run.is_verified());
                run.filter(|_| pg.can_be_scrubbed()).map(|run| run.request.is_none())
            };
            let last = self.scrub.last;
            let turns = self.pgs.iter().filter_map(|(id, pg)| Some((wants(pg)?, Some(*id) <= last, *id)));
            let Some((_, _, id)) = turns.min() else { return };
            self.scrub.last = Some(id);
            if let Some(object) = self.next_object(shard, id) {
                self.scrub_object(id, object);
            }
        }
    }

    /// The next object to verify. Buckets without objects are passed over.
    fn next_object(&mut self, shard: &dyn ShardIndex, id: PgId) -> Option<ObjectId> {
        let pg = self.pgs.get_mut(&id)?;
        let scope = pg.scope();
        let run = pg.scrubs.run.as_mut()?;
        let digests = shard.digests(scope);
        while run.objects.is_empty() {
            let bucket = (run.bucket..DIGEST_BUCKETS).find(|bucket| digests[*bucket] != 0);
            run.bucket = bucket.map_or(DIGEST_BUCKETS, |bucket| bucket + 1);
            let mut buckets = Buckets::default();
            buckets.insert(bucket?);
            let heads = shard.list(scope, &buckets);
            run.objects = heads.iter().filter(|head| !head.deleted).map(|head| head.object.whole()).collect();
        }
        run.objects.front().copied()
    }

    fn scrub_object(&mut self, id: PgId, object: ObjectId) {
        let (damage, parity) = (Vec::new(), Parity::default());
        let scrub = Scrub { object, stage: Stage::Locking, damage, errors: 0, unrepaired: 0, parity };
        let op = self.new_op(id, Kind::Scrub(Box::new(scrub)));
        self.scrub.running += 1;
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        if let Some(run) = &mut pg.scrubs.run {
            run.is_busy = true;
        }
        let all = SectorRange::new(0, SECTORS_PER_OBJECT_MAX);
        if pg.locks.acquire(object, Hold { op, sectors: all, access: Access::Copy }) {
            self.ready.push_back(op);
        }
    }

    fn scrub_mut(&mut self, id: OpId) -> Option<&mut Scrub> {
        match self.ops.get_mut(id)? {
            crate::op::Op { kind: Kind::Scrub(scrub), .. } => Some(scrub),
            _ => None,
        }
    }

    /// The object stands still: all members verify it.
    pub(crate) fn scrub_start(&mut self, shard: &dyn ShardIndex, id: OpId) {
        let sums = self.scrub_sums(id);
        let Some(pg_id) = self.ops.get_mut(id).map(|op| op.pg) else { return };
        let Some(scrub) = self.scrub_mut(id) else { return };
        let object = scrub.object;
        scrub.stage = Stage::Verifying;
        let Some(pg) = self.pgs.get(&pg_id) else { return };
        let exists = shard.head(&pg.name_at(object, pg.own())).is_some_and(|head| !head.deleted);
        if !exists {
            return self.scrub_end(shard, id);
        }
        let acting = pg.acting();
        self.send_to(shard, id, acting, ShardOp::Verify { object, sums });
    }

    pub(crate) fn scrub_step(&mut self, shard: &mut dyn ShardIndex, id: OpId, peer: usize, outcome: ShardOutcome) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let settled = op.is_settled();
        let part = self.pgs.get(&op.pg).and_then(|pg| pg.peers().get(peer)?.shard);
        let Kind::Scrub(scrub) = &mut op.kind else { return };
        let object = scrub.object;
        match &mut scrub.stage {
            Stage::Locking => debug_assert!(false, "nothing was asked yet"),
            Stage::Verifying => match outcome {
                ShardOutcome::Corrupt { version, sectors, crcs } => {
                    scrub.errors += sectors.iter().map(|bad| u64::from(bad.count)).sum::<u64>();
                    scrub.damage.extend(damages(peer, version, &sectors, &crcs));
                }
                ShardOutcome::Done => {}
                ShardOutcome::Verified { .. } => scrub.parity.told(peer, part.unwrap_or(0) as u8, outcome),
                other => self.notice(format!("object {object}: a member could not verify it: {other:?}")),
            },
            Stage::Gathering(plan) => {
                let version = scrub.damage.last().map_or(Version::NONE, |damage| damage.version);
                match outcome {
                    ShardOutcome::Read { version: found, data, crcs } if found == version => {
                        if let Some(read) = plan.reads.iter_mut().find(|read| read.peer == peer) {
                            read.got = Some((data, crcs));
                        }
                    }
                    _ => scrub.damage.iter_mut().last().into_iter().for_each(|damage| damage.useless |= 1 << peer),
                }
            }
            Stage::Repairing => {
                let repaired = outcome == ShardOutcome::Done;
                if let Some(damage) = scrub.damage.pop() {
                    self.scrub_repaired(id, object, &damage, repaired);
                }
            }
            Stage::Rereading(_) => scrub.parity_read(peer, outcome),
            Stage::Rewriting => scrub.parity_written(&outcome),
        }
        if settled {
            self.scrub_go_on(shard, id);
        }
    }

    /// All answers of a step are there.
    fn scrub_go_on(&mut self, shard: &dyn ShardIndex, id: OpId) {
        let Some(scrub) = self.scrub_mut(id) else { return };
        match std::mem::replace(&mut scrub.stage, Stage::Verifying) {
            Stage::Gathering(plan) if plan.reads.iter().all(|read| read.got.is_some()) => {
                self.scrub_repair(shard, id, &plan);
            }
            Stage::Rereading(plan) => self.scrub_parity_rewrite(shard, id, &plan),
            Stage::Rewriting => self.scrub_parity_rewritten(shard, id, true),
            _ => self.scrub_gather(shard, id),
        }
    }

    /// Asks for what the next damaged range can be repaired from. What nobody has is given up, sector by sector.
    fn scrub_gather(&mut self, shard: &dyn ShardIndex, id: OpId) {
        let Some(pg_id) = self.ops.get_mut(id).map(|op| op.pg) else { return };
        loop {
            let Some(scrub) = self.scrub_mut(id) else { return };
            let object = scrub.object;
            let Some(damage) = scrub.damage.last() else { return self.scrub_parity(shard, id) };
            let (useless, sectors) = (damage.useless, damage.sectors);
            let is_whole = damage.crcs.len() == sectors.count as usize;
            let Some(pg) = self.pgs.get(&pg_id) else { return };
            let sources = pg.repair_sources(&object, useless).filter(|_| is_whole);
            let Some(sources) = sources else {
                self.scrub_split(id);
                continue;
            };
            let read = |&(part, peer): &(u8, usize)| ShardRead { part, peer, sectors, got: None };
            let purpose = Purpose::Repair { part: 0, peer: 0 };
            let plan = EcOp::new(purpose, sectors, sources.iter().map(read).collect(), true);
            if let Some(scrub) = self.scrub_mut(id) {
                scrub.stage = Stage::Gathering(Box::new(plan));
            }
            for (part, peer) in sources {
                self.send_to_peer(shard, id, peer, ShardOp::Read { object: object.shard(part), sectors });
            }
            return;
        }
    }

    /// The last damaged range cannot be repaired as a whole: in halves, perhaps; a single sector is given up.
    fn scrub_split(&mut self, id: OpId) {
        let Some(scrub) = self.scrub_mut(id) else { return };
        let object = scrub.object;
        let Some(damage) = scrub.damage.pop() else { return };
        match damage.halves() {
            Some(halves) => scrub.damage.extend(halves),
            None => self.scrub_repaired(id, object, &damage, false),
        }
    }

    /// A damaged range is repaired, or cannot be.
    fn scrub_repaired(&mut self, id: OpId, object: ObjectId, damage: &Damage, repaired: bool) {
        let count = u64::from(damage.sectors.count);
        let osd = self.ops.get_mut(id).and_then(|op| self.pgs.get(&op.pg)).map(|pg| pg.peers()[damage.peer].osd);
        let osd = osd.unwrap_or(self.options.id);
        if repaired {
            self.stats.repaired_sectors += count;
            return self.notice(format!("object {object}: scrub repaired {count} damaged sectors on osd {osd}"));
        }
        if let Some(scrub) = self.scrub_mut(id) {
            scrub.unrepaired += count;
        }
        let sectors = damage.sectors;
        self.notice(format!("object {object}: sectors {sectors:?} on osd {osd} are damaged and cannot be repaired"));
    }

    /// Rewrites the damaged sectors with what was gathered, if that is what they were.
    fn scrub_repair(&mut self, shard: &dyn ShardIndex, id: OpId, plan: &EcOp) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Some(pg) = self.pgs.get(&op.pg) else { return };
        let Kind::Scrub(scrub) = &op.kind else { return };
        let Some(damage) = scrub.damage.last() else { return };
        let (object, peer) = (pg.name_at(scrub.object, damage.peer), damage.peer);
        let (version, sectors, scheme, coded) = (damage.version, damage.sectors, pg.scheme, pg.is_coded());
        let computed = if coded { self.compute(scheme, plan, &[object.part]) } else { Vec::new() };
        let made = if coded { computed.first() } else { plan.reads.first() };
        let made = made.and_then(|read| read.got.clone());
        let Some(scrub) = self.scrub_mut(id) else { return };
        let Some(damage) = scrub.damage.last_mut() else { return };
        match made {
            Some((data, crcs)) if crcs == damage.crcs || coded && is_as_stored(&crcs, &damage.crcs) => {
                scrub.stage = Stage::Repairing;
                self.send_to_peer(shard, id, peer, ShardOp::Repair { object, version, sectors, data, crcs });
            }
            // Another content, although intact: nobody can say from here what is right. Of copies, another one may still fit.
            _ if !coded => {
                damage.useless |= plan.reads.iter().fold(0, |mask, read| mask | 1 << read.peer);
                self.scrub_gather(shard, id);
            }
            _ => {
                self.scrub_split(id);
                self.scrub_gather(shard, id);
            }
        }
    }

    fn scrub_end(&mut self, shard: &dyn ShardIndex, id: OpId) {
        let Some(op) = self.ops.remove(id) else { return };
        let Kind::Scrub(scrub) = op.kind else { return };
        self.scrub.running -= 1;
        self.stats.scrubbed_objects += 1;
        self.stats.scrub_errors += scrub.errors;
        self.stats.scrub_unrepaired += scrub.unrepaired;
        let Some(pg) = self.pgs.get_mut(&op.pg) else { return };
        if let Some(run) = &mut pg.scrubs.run {
            run.is_busy = false;
            run.errors += scrub.errors;
            run.unrepaired += scrub.unrepaired;
            run.parity += scrub.parity.rows;
            run.objects.pop_front_if(|object| *object == scrub.object);
        }
        self.ready.extend(pg.locks.release(scrub.object, id));
        if self.held.is_empty() {
            self.scrub_more(shard);
        }
    }

    /// A scrub of an object is given up with its round.
    pub(crate) fn scrub_dropped(&mut self, id: OpId) {
        if self.scrub_mut(id).is_some() {
            self.scrub.running -= 1;
        }
    }
}

impl Pg {
    /// From whom a damaged shard can be repaired: a copy, or as many shards as make up the others.
    fn repair_sources(&self, object: &ObjectId, useless: PeerMask) -> Option<Vec<(u8, usize)>> {
        if !self.is_coded() {
            return self.sources(object).find(|peer| useless >> peer & 1 == 0).map(|peer| vec![(0, peer)]);
        }
        let part_at = |peer: usize| self.peers()[peer].shard.map(|part| (part as u8, peer));
        let but: Vec<(u8, usize)> = bits(useless).filter_map(part_at).collect();
        self.enough_shards(object, &but)
    }
}

/// Whether computed sectors have the checksums that were stored, as far as these were known when they were stored.
fn is_as_stored(computed: &[u32], stored: &[u32]) -> bool {
    let fits = |(computed, stored): (&u32, &u32)| computed == stored || *stored == Unreadable::UNKNOWN;
    computed.len() == stored.len() && computed.iter().zip(stored).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::ids::PoolId;

    fn pg(index: u32) -> PgId {
        PgId { pool: PoolId(1), index }
    }

    #[test]
    fn pgs_take_turns_over_the_interval() {
        let week = 604_800;
        let span = u64::from(week) * 1000 / FIRST_SHARE;
        let times: Vec<_> = (0..64).map(|index| phase(pg(index), span)).collect();
        assert!(times.iter().all(|at| *at < span));
        for quarter in 0..4 {
            let within = times.iter().filter(|at| **at * 4 / span == quarter).count();
            assert!((10..=22).contains(&within), "{within} of 64 in quarter {quarter}");
        }
        assert!(is_due(pg(7), times[7], None, week) && !is_due(pg(7), times[7] - 1, None, week));
        assert!(is_due(pg(7), 0, Some(60), 60) && !is_due(pg(7), u64::MAX, Some(59), 60));
        assert!(!is_due(pg(7), u64::MAX, None, 0) && !is_due(pg(7), 0, Some(u64::MAX), 0), "never");
    }

    #[test]
    fn what_is_recorded_counts_if_it_is_newer() {
        let mut scrubs = PgScrubs::default();
        let recorded = PgScrub { light: Some(70), deep: Some(60), served: Some(5), ..PgScrub::default() };
        scrubs.learn(&recorded);
        assert_eq!(scrubs.done(), Some(recorded));
        scrubs.done.light = Some(71);
        scrubs.learn(&recorded);
        assert_eq!(scrubs.done().and_then(|done| done.light), Some(71));
        scrubs.lost();
        assert_eq!(scrubs.done(), None);
    }

    #[test]
    fn damage_is_taken_apart_down_to_sectors() {
        let crcs = [1, 2, 3, 4];
        let ranges = [SectorRange::new(3, 1), SectorRange::new(7, 3)];
        let mut found = damages(2, Version(5), &ranges, &crcs);
        assert_eq!(found[0].crcs[..], [1]);
        assert!(found[0].halves().is_none());
        found[1].useless = 0b111;
        let [left, right] = found[1].halves().unwrap();
        assert_eq!((left.sectors, &left.crcs[..]), (SectorRange::new(7, 1), &[2][..]));
        assert_eq!((right.sectors, &right.crcs[..]), (SectorRange::new(8, 2), &[3, 4][..]));
        assert_eq!(right.useless, 0b100, "the other sources count again");
    }

    #[test]
    fn a_report_with_too_few_checksums_is_no_base_for_a_repair() {
        let found = damages(0, Version(5), &[SectorRange::new(0, 4), SectorRange::new(9, 1)], &[1, 2, 3]);
        assert_eq!(found.iter().map(|damage| damage.crcs.len()).collect::<Vec<_>>(), [3, 0]);
    }
}
