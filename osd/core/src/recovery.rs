//! Brings objects to the members that lack them, while the PG serves clients.
//!
//! A recovery holds its object against changes, not against reads. Replicated: the object is fetched from a member that
//! has it, ourselves if we do; of a member that missed only changes we know of, only those sectors are replaced. A source with damaged
//! sectors is repaired first, from whatever copy has content with the right checksum. Erasure-coded: what too few shards got is taken
//! back, then the missing shards are computed from others. What nobody can read is in the end passed on as what it is
//! (docs/decisions/0008), so that the rest has its redundancy back.

use std::collections::{BTreeSet, VecDeque};

use cluster_proto::ids::{ClientId, ObjectId, OsdId, PgId, Version};
use cluster_proto::layout::SectorRange;
use cluster_proto::limits::{SECTORS_PER_OBJECT_MAX, WIRE_REQUESTS_MAX};
use cluster_proto::link::Millis;
use cluster_proto::locks::{Access, Hold};
use cluster_proto::map::Interval;
use cluster_proto::shard::{AppliedRequest, ObjectContent, ShardIndex, ShardOp, ShardOutcome, Unreadable};

use crate::op::{Kind, OpId, PeerMask, bits};
use crate::osd::Osd;
use crate::pg::{Missing, Pg};

/// Objects under way at once in one PG.
const PER_PG: u32 = 4;
/// A recovery that failed is tried again after so long. Milliseconds.
const RETRY_MS: Millis = 2_000;
/// For so long it is tried to read what nobody can read. Microseconds.
const PATIENCE_US: u64 = 30_000_000;

/// An object on its way to members.
#[derive(Debug)]
pub(crate) struct Recovery {
    pub object: ObjectId,
    pub stage: Stage,
    /// Sources that turned out to be of no use.
    pub tried: PeerMask,
    /// Sectors that no peer can read.
    pub lost: BTreeSet<u32>,
    /// What cannot be read is passed on as such.
    pub passes_on: bool,
    /// Sectors that were rewritten at their sources.
    pub repaired: BTreeSet<(usize, u32)>,
    /// The version that counts was never acknowledged and cannot be read: the content of this older one takes its place.
    pub undoing: Option<Version>,
    /// Shards of an erasure-coded object, with their peers, that cannot be read as a whole.
    pub damaged: Vec<(u8, usize)>,
    /// All shards there are have been asked for, to make of each row what can be made: those that were.
    pub by_rows: Option<Vec<(u8, usize)>>,
    /// Some member could not be given the object.
    pub failed: bool,
    /// What it is taken to cost, until it is known. Bytes.
    pub estimate: u64,
    /// Shards gathered of an erasure-coded object.
    pub gathered: Vec<(u8, ObjectContent)>,
    /// Shards of it in other versions, which may have some rows as they are in this one.
    pub others: Vec<(u8, ObjectContent)>,
}

/// The version that all members have who lack an object, and the sectors in which it differs from ours.
pub(crate) type Patch = (Version, Vec<SectorRange>);

/// How far a [`Recovery`] is. Numbers are those of peers.
#[derive(Debug)]
pub(crate) enum Stage {
    /// Waiting for changes of the object that are under way.
    Locking,
    /// Taking back what too few shards got.
    RollingBack,
    /// Asking `from` for the object; with `patch`, for what changed since a version.
    Fetching { from: usize, patch: Option<Patch> },
    /// Asking holders of shards for them; with `patch`, for what changed since a version.
    Gathering { asked: Vec<(u8, usize)>, patch: Option<Patch> },
    /// `from` has damaged sectors: asking others for the first of these, in whatever version. `repaired`: some others were.
    Salvaging { from: usize, damage: VecDeque<Unreadable>, asked: PeerMask, repaired: bool },
    /// Rewriting a damaged sector of `from`; these are still damaged.
    Repairing { from: usize, damage: VecDeque<Unreadable> },
    /// Writing to the members that lag behind.
    Copying,
}

impl Pg {
    /// The next object to recover in the background.
    fn next_missing(&mut self) -> Option<ObjectId> {
        let fits = |missing: &Missing| missing.running.is_none() && !missing.is_unfound && !missing.failed;
        let after = match self.cursor {
            Some(object) => self.missing.range((std::ops::Bound::Excluded(object), std::ops::Bound::Unbounded)),
            None => self.missing.range(..),
        };
        let found = after.into_iter().find(|(_, missing)| fits(missing)).map(|(object, _)| *object);
        self.cursor = found;
        found
    }

    /// Whether a version of an object may be shown to clients before all members have it: it will be found again, whoever peers
    /// next.
    pub fn is_safe_to_show(&self, object: &ObjectId, past: &[Interval]) -> bool {
        let Some(missing) = self.missing.get(object) else { return true };
        if missing.is_unfound || self.lets_down(missing) {
            return false;
        }
        if self.holders(object).count_ones() >= self.min_size as u32 {
            return true;
        }
        let holders = missing.holders();
        let has = |osd| self.peer_of(osd).is_some_and(|peer| holders >> peer & 1 == 1);
        past.iter().any(|interval| {
            let complete = interval.complete.iter().all(|osd| has(*osd)) && !interval.complete.is_empty();
            complete && interval.osds().filter(|osd| has(*osd)).count() >= usize::from(interval.min_size)
        })
    }

    /// Whether a version that cannot be read was never acknowledged nor shown. In every past interval so many of its members, or one of
    /// those who had everything, were seen without it in this round that it cannot have counted there.
    pub fn is_unacknowledged(&self, object: &ObjectId, past: &[Interval]) -> bool {
        let Some(missing) = self.missing.get(object) else { return false };
        let newer = |s: &crate::pg::Shard| s.version >= missing.version;
        let lacks = |osd: &OsdId| {
            let Some(peer) = self.peer_of(*osd).filter(|peer| self.listed >> peer & 1 == 1) else { return false };
            !missing.shards.iter().any(|s| usize::from(s.peer) == peer && newer(s))
        };
        let did_not_count = |interval: &Interval| {
            let lacking = interval.osds().filter(lacks).count();
            interval.complete.iter().any(lacks) || interval.osds().count() - lacking < usize::from(interval.min_size)
        };
        let present = self.promised_interval();
        let mut all = past.iter().chain(&present);
        let known = all.clone().any(|interval| interval.epoch == missing.version.epoch());
        known && all.all(did_not_count) && !self.is_safe_to_show(object, past)
    }

    /// Who may have objects that members lack, and was not asked for them in this round.
    fn unasked<'a>(&'a self, past: &'a [Interval]) -> impl Iterator<Item = OsdId> + 'a {
        let was_listed = |osd: &OsdId| self.peer_of(*osd).is_some_and(|peer| self.listed >> peer & 1 == 1);
        past.iter().flat_map(Interval::osds_left).filter(move |osd| !was_listed(osd))
    }

    /// Below `min_size`: whether a version can be shown, because everybody had it when the last interval that accepted changes began.
    pub fn is_settled(&self, version: Version, past: &[Interval]) -> bool {
        let Some(last) = past.iter().max_by_key(|interval| interval.epoch) else { return version == Version::NONE };
        version.epoch() < last.epoch && last.osds().all(|osd| last.complete.contains(&osd))
    }
}

impl Osd {
    /// Keeps recoveries of a PG going, those that failed a while ago too.
    pub(crate) fn recover(&mut self, now: Millis, id: PgId) {
        let Some(pg) = self.pgs.get_mut(&id).filter(|pg| pg.is_active()) else { return };
        if pg.retry_at <= now {
            pg.retry_at = now + RETRY_MS;
            pg.cursor = None;
            pg.missing.values_mut().for_each(|missing| missing.failed = false);
            let wanted = |(object, missing): (&ObjectId, &Missing)| (!missing.waiting.is_empty()).then_some(*object);
            let wanted: Vec<ObjectId> = pg.missing.iter().filter_map(wanted).collect();
            wanted.into_iter().for_each(|object| self.recover_now(id, object));
        }
        self.recover_more(id);
    }

    /// Goes on with recoveries that waited for the end of a rest.
    pub(crate) fn recovery_rested(&mut self) {
        self.recovery.rested();
        let incomplete: Vec<PgId> =
            self.pgs.iter().filter(|(_, pg)| !pg.missing.is_empty()).map(|(id, _)| *id).collect();
        incomplete.into_iter().for_each(|id| self.recover_more(id));
    }

    fn recover_more(&mut self, id: PgId) {
        loop {
            let Some(pg) = self.pgs.get_mut(&id).filter(|pg| pg.is_active() && pg.recoveries < PER_PG) else { return };
            if !self.recovery.has_room(self.now_us) {
                return;
            }
            let Some(object) = pg.next_missing() else { return };
            self.recover_now(id, object);
        }
    }

    /// Recovers an object that somebody waits for, or whose turn it is.
    pub(crate) fn recover_now(&mut self, id: PgId, object: ObjectId) {
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        let Some(missing) = pg.missing.get(&object) else { return };
        if missing.running.is_some() || missing.is_unfound || missing.failed {
            return;
        }
        let recovery = Recovery {
            object,
            estimate: self.recovery.begin(),
            stage: Stage::Locking,
            tried: 0,
            lost: BTreeSet::new(),
            passes_on: false,
            repaired: BTreeSet::new(),
            undoing: None,
            damaged: Vec::new(),
            by_rows: None,
            failed: false,
            gathered: Vec::new(),
            others: Vec::new(),
        };
        let op = self.new_op(id, Kind::Recovery(Box::new(recovery)));
        let Some(pg) = self.pgs.get_mut(&id) else { return };
        pg.recoveries += 1;
        if let Some(missing) = pg.missing.get_mut(&object) {
            missing.running = Some(op);
        }
        let all = SectorRange::new(0, SECTORS_PER_OBJECT_MAX);
        if pg.locks.acquire(object, Hold { op, sectors: all, access: Access::Copy }) {
            self.ready.push_back(op);
        }
    }

    /// The object of a recovery stands still.
    pub(crate) fn recovery_start(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some((pg, object)) = self.recovery_of(id) else { return };
        if pg.is_coded() {
            return self.ec_recovery_start(shard, id);
        }
        let stale = pg.missing.get(&object).map_or(0, |missing| missing.stale);
        if stale == 0 {
            return self.recovery_finish(shard, id);
        }
        self.fetch_object(shard, id);
    }

    pub(crate) fn recovery_of(&mut self, id: OpId) -> Option<(&mut Pg, ObjectId)> {
        let op = self.ops.get_mut(id)?;
        let Kind::Recovery(recovery) = &op.kind else { return None };
        let object = recovery.object;
        Some((self.pgs.get_mut(&op.pg)?, object))
    }

    pub(crate) fn recovery_mut(&mut self, id: OpId) -> Option<&mut Recovery> {
        match self.ops.get_mut(id)? {
            crate::op::Op { kind: Kind::Recovery(recovery), .. } => Some(recovery),
            _ => None,
        }
    }

    /// Asks the next peer that has the object; ourselves first, if we do.
    fn fetch_object(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some((tried, undoing)) = self.recovery_mut(id).map(|recovery| (recovery.tried, recovery.undoing)) else {
            return;
        };
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let is_left = |peer: &usize| tried >> peer & 1 == 0;
        let from = match undoing {
            None => pg.sources(&object).find(is_left),
            Some(older) => pg.missing.get(&object).and_then(|missing| missing.with(older).find(is_left)),
        };
        let Some(from) = from else {
            return self.undo_or_fail(shard, id);
        };
        let patch = pg.patch_base(&object, from).filter(|_| undoing.is_none());
        let ask = match &patch {
            Some((_, sectors)) => ShardOp::FetchPart { object, sectors: sectors.clone() },
            None => ShardOp::Fetch { object },
        };
        if let Some(recovery) = self.recovery_mut(id) {
            recovery.tried |= 1 << from;
            recovery.stage = Stage::Fetching { from, patch };
        }
        self.send_to_peer(shard, id, from, ask);
    }

    pub(crate) fn recovery_step(&mut self, shard: &mut dyn ShardIndex, id: OpId, peer: usize, outcome: ShardOutcome) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let (pg, settled) = (op.pg, op.is_settled());
        let Kind::Recovery(recovery) = &mut op.kind else { return };
        let counts = self.pgs.get(&pg).and_then(|pg| pg.missing.get(&recovery.object)).map(|missing| missing.version);
        let version = recovery.undoing.or(counts).unwrap_or(Version::NONE);
        match (&mut recovery.stage, outcome) {
            (Stage::RollingBack, outcome) => self.ec_rolled_back(shard, id, peer, settled, &outcome),
            (Stage::Gathering { .. }, outcome) => self.ec_gathered(shard, id, peer, settled, outcome),
            (Stage::Fetching { from, patch }, ShardOutcome::Fetched { version: found, content })
                if found == version =>
            {
                let (from, patch) = (*from, patch.take());
                let is_new = |unreadable: &&Unreadable| !recovery.lost.contains(&unreadable.sector);
                let damage: VecDeque<_> = content.unreadable.iter().filter(is_new).copied().collect();
                let is_in_vain = damage.iter().any(|u| recovery.repaired.contains(&(from, u.sector)));
                if !damage.is_empty() && !is_in_vain {
                    recovery.stage = Stage::Salvaging { from, damage, asked: 1 << from, repaired: false };
                    return self.salvage(shard, id);
                }
                if is_in_vain || !content.unreadable.is_empty() && !recovery.passes_on {
                    return self.fetch_object(shard, id);
                }
                recovery.lost = content.unreadable.iter().map(|unreadable| unreadable.sector).collect();
                match recovery.undoing {
                    Some(older) => self.undo(shard, id, older, *content),
                    None => self.copy_to_stale(shard, id, version, patch, *content),
                }
            }
            (Stage::Salvaging { from, damage, .. }, ShardOutcome::Read { data, crcs, .. })
                if damage.front().is_some_and(|wanted| crcs[..] == [wanted.crc]) =>
            {
                let (from, object, mut damage) = (*from, recovery.object, std::mem::take(damage));
                let sector = damage.pop_front().map_or(0, |unreadable| unreadable.sector);
                recovery.stage = Stage::Repairing { from, damage };
                recovery.repaired.insert((from, sector));
                let sectors = SectorRange::new(sector, 1);
                self.send_to_peer(shard, id, from, ShardOp::Repair { object, version, sectors, data, crcs });
            }
            (Stage::Salvaging { .. }, _) => self.salvage(shard, id),
            (Stage::Repairing { from, damage }, ShardOutcome::Done) => {
                let (from, object, damage) = (*from, recovery.object, std::mem::take(damage));
                recovery.stage = Stage::Salvaging { from, damage, asked: 1 << from, repaired: true };
                self.stats.repaired_sectors += 1;
                self.notice(format!("object {object}: repaired a damaged sector from another copy"));
                self.salvage(shard, id);
            }
            (Stage::Fetching { .. } | Stage::Repairing { .. }, _) => self.fetch_object(shard, id),
            (Stage::Copying, ShardOutcome::Done) => self.copied(shard, id, Some(peer), settled),
            (Stage::Copying, other) => {
                recovery.failed = true;
                self.notice(format!("pg {pg}: a copy of an object could not be written: {other:?}"));
                self.copied(shard, id, None, settled);
            }
            (Stage::Locking, _) => debug_assert!(false, "nothing was asked yet"),
        }
    }

    /// The version that counts is on a peer with damaged sectors. Other versions may still have the same content there: asks
    /// the next peer for the next of them. When all were asked for, goes on with this source if it was repaired.
    fn salvage(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some(peers) = self.recovery_of(id).map(|(pg, _)| pg.peers().len()) else { return };
        loop {
            let Some(recovery) = self.recovery_mut(id) else { return };
            let object = recovery.object;
            let Stage::Salvaging { from, damage, asked, repaired } = &mut recovery.stage else { return };
            let Some(wanted) = damage.front().copied() else {
                recovery.tried &= !(u64::from(*repaired) << *from);
                return self.fetch_object(shard, id);
            };
            let Some(next) = (0..peers).find(|peer| *asked >> peer & 1 == 0) else {
                damage.pop_front();
                *asked = 1 << *from;
                recovery.lost.insert(wanted.sector);
                // It was agreed on others.
                recovery.passes_on = false;
                continue;
            };
            *asked |= 1 << next;
            if self.is_reachable(id, next) {
                let sectors = SectorRange::new(wanted.sector, 1);
                return self.send_to_peer(shard, id, next, ShardOp::Read { object, sectors });
            }
        }
    }

    /// Whether a peer outside the acting set can be asked at all.
    fn is_reachable(&mut self, id: OpId, peer: usize) -> bool {
        let Some(op) = self.ops.get_mut(id) else { return false };
        let Some(pg) = self.pgs.get(&op.pg) else { return false };
        peer == pg.own() || self.links.ready_peer(&pg.peers()[peer]).is_some()
    }

    /// No source can be read as a whole. If the version was never acknowledged nor shown, nothing is lost with it: the next older one, possibly
    /// "does not exist", takes its place. Otherwise what cannot be read is passed on as that, if it is certain.
    fn undo_or_fail(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let pg_id = op.pg;
        let past = self.past_intervals(pg_id);
        let Some(undoing) = self.recovery_mut(id).map(|recovery| recovery.undoing) else { return };
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let Some(missing) = pg.missing.get(&object) else { return };
        let older = missing.shards.iter().filter(|s| s.version < missing.version).max_by_key(|s| s.version).copied();
        if undoing.is_some() || !pg.is_unacknowledged(&object, &past) {
            if !self.passes_on(id, &past) {
                return self.recovery_failed(shard, id);
            }
            let Some(recovery) = self.recovery_mut(id) else { return };
            (recovery.passes_on, recovery.tried) = (true, 0);
            return self.fetch_object(shard, id);
        }
        let Some(older) = older.filter(|shard| !shard.deleted) else {
            let content = ObjectContent { deleted: true, ..ObjectContent::default() };
            return self.undo(shard, id, Version::NONE, content);
        };
        if let Some(recovery) = self.recovery_mut(id) {
            (recovery.undoing, recovery.tried) = (Some(older.version), 0);
            recovery.lost.clear();
        }
        self.fetch_object(shard, id);
    }

    /// OSDs that do not run and may come back with objects of a PG: former members, and those that are to be members and were not given up.
    pub(crate) fn absent(&self, id: PgId, past: &[Interval]) -> BTreeSet<OsdId> {
        let target = self.map.pgs.get(&id).into_iter().flat_map(|map| map.target.iter().copied());
        let target = target.filter(|osd| self.map.osd_configs.contains_key(osd));
        let all = past.iter().flat_map(Interval::osds_left).chain(target);
        all.filter(|osd| !self.map.osds.contains_key(osd)).collect()
    }

    /// Whether it is certain that what of an object could not be read will not be: everybody was asked who may have it, and for long enough. Says
    /// so, or what is waited for.
    pub(crate) fn passes_on(&mut self, id: OpId, past: &[Interval]) -> bool {
        let now_us = self.now_us;
        let Some(recovery) = self.recovery_mut(id) else { return false };
        let (lost, already) = (recovery.lost.clone(), recovery.passes_on);
        let Some(pg_id) = self.ops.get_mut(id).map(|op| op.pg) else { return false };
        let mut silent = self.absent(pg_id, past);
        let Some((pg, object)) = self.recovery_of(id) else { return false };
        silent.extend(pg.unasked(past));
        let Some(missing) = pg.missing.get_mut(&object) else { return false };
        if lost.is_empty() || already {
            self.notice(format!("pg {pg_id}: no member can give object {object}"));
            return false;
        }
        let known = missing.unreadable.take().filter(|(_, sectors)| lost.is_subset(sectors));
        let what = format!("pg {pg_id}: object {object}: nobody can read sectors {lost:?}");
        let (since, is_new) = (known.as_ref().map_or(now_us, |(since, _)| *since), known.is_none());
        missing.unreadable = Some((since, lost));
        let holders: Vec<usize> = missing.shards.iter().map(|shard| usize::from(shard.peer)).collect();
        if !silent.is_empty() {
            if is_new {
                let osds = silent.iter().map(|osd| osd.to_string()).collect::<Vec<_>>().join(", ");
                self.warn(format!("{what}; OSD {osds} may have them: start it, or give it up (osd rm --force)"));
            }
            return false;
        }
        let all_reachable = holders.into_iter().all(|peer| self.is_reachable(id, peer));
        if !all_reachable || now_us < since + PATIENCE_US {
            if is_new {
                self.warn(format!("{what}; tried again for {} s", PATIENCE_US / 1_000_000));
            }
            return false;
        }
        true
    }

    /// Puts the content of an older version on all members as a new one, together with a mark that the requests that made
    /// the lost version have not taken effect: their clients will send them again.
    fn undo(&mut self, shard: &mut dyn ShardIndex, id: OpId, older: Version, mut content: ObjectContent) {
        content.requests.truncate(WIRE_REQUESTS_MAX - 1);
        content.requests.push(AppliedRequest::undone_above(older));
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let (version, stale) = (pg.next_version(), pg.acting());
        if let Some(missing) = pg.missing.get_mut(&object) {
            (missing.version, missing.deleted, missing.stale) = (version, content.deleted, stale);
            // If no member can be given it, the next attempt begins here again.
            missing.shards.retain(|shard| shard.version <= older);
        }
        self.notice(format!("object {object}: an unacknowledged change is damaged and was undone"));
        if let Some(recovery) = self.recovery_mut(id) {
            recovery.undoing = None;
        }
        self.copy_to_stale(shard, id, version, None, content);
    }

    /// The object's content arrived: on to those who lack it.
    fn copy_to_stale(
        &mut self,
        shard: &mut dyn ShardIndex,
        id: OpId,
        version: Version,
        patch: Option<Patch>,
        content: ObjectContent,
    ) {
        let Some(recovery) = self.recovery_mut(id) else { return };
        recovery.stage = Stage::Copying;
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let stale = pg.missing.get(&object).map_or(0, |missing| missing.stale);
        let bytes = content.data.len() as u64;
        if stale == 0 {
            return self.recovery_finish(shard, id);
        }
        if content.unreadable.is_empty()
            && let Some(missing) = pg.missing.get_mut(&object)
        {
            missing.unreadable = None;
        }
        self.stats.patched_objects += u64::from(patch.is_some());
        let change = restoring(object, version, patch, content);
        self.recovery_cost(id, bytes * u64::from(stale.count_ones()));
        self.send_to(shard, id, stale, change);
    }

    /// So many bytes are about to be written to members.
    pub(crate) fn recovery_cost(&mut self, id: OpId, bytes: u64) {
        self.stats.recovered_bytes += bytes;
        let estimate = self.recovery_mut(id).map_or(0, |recovery| std::mem::take(&mut recovery.estimate));
        self.recovery.cost(estimate, bytes);
    }

    /// A member has the object now, or could not be given it.
    fn copied(&mut self, shard: &mut dyn ShardIndex, id: OpId, peer: Option<usize>, settled: bool) {
        let failed = self.recovery_mut(id).is_some_and(|recovery| recovery.failed);
        let Some((pg, object)) = self.recovery_of(id) else { return };
        if let Some(peer) = peer {
            let part = pg.name_at(object, peer).part;
            if let Some(missing) = pg.missing.get_mut(&object) {
                missing.restored(peer, part);
            }
        }
        if settled && failed {
            self.recovery_failed(shard, id);
        } else if settled {
            self.recovery_finish(shard, id);
        }
    }

    /// Some member could not be given the object. It is tried again later; requests that can do without it go on.
    pub(crate) fn recovery_failed(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some((pg, object)) = self.recovery_of(id) else { return };
        if let Some(missing) = pg.missing.get_mut(&object) {
            missing.failed = true;
        }
        self.recovery_end(shard, id);
    }

    pub(crate) fn recovery_finish(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let coded = pg.is_coded();
        if let Some(missing) = pg.missing.get(&object)
            && coded
            && missing.stale == 0
            && missing.shards.iter().any(|s| s.version == missing.version && s.staged_over.is_some())
        {
            pg.commits.insert(object, missing.version);
        }
        if pg.missing.get(&object).is_some_and(|missing| missing.stale == 0) {
            self.tell_losses(id);
            let Some((pg, _)) = self.recovery_of(id) else { return };
            let waiting = pg.missing.remove(&object).map(|missing| missing.waiting).unwrap_or_default();
            self.stats.recovered_objects += 1;
            self.wake(shard, waiting);
        }
        self.recovery_end(shard, id);
    }

    /// A recovery has copied what could be read.
    fn tell_losses(&mut self, id: OpId) {
        let Some(recovery) = self.recovery_mut(id).filter(|recovery| recovery.passes_on) else { return };
        let (object, lost) = (recovery.object, std::mem::take(&mut recovery.lost));
        self.stats.lost_sectors += lost.len() as u64;
        self.warn(format!("object {object}: sectors {lost:?} are lost, and copied as that: write them anew"));
    }

    /// Lets requests try again that waited for their object.
    fn wake(&mut self, shard: &mut dyn ShardIndex, waiting: Vec<OpId>) {
        for op in waiting {
            self.enqueue(shard, op);
        }
    }

    fn recovery_end(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some(op) = self.ops.remove(id) else { return };
        let Kind::Recovery(recovery) = op.kind else { return };
        self.recovery.end(recovery.estimate);
        self.recovery.rest(op.began_us, self.now_us);
        let Some(pg) = self.pgs.get_mut(&op.pg) else { return };
        pg.recoveries -= 1;
        if let Some(missing) = pg.missing.get_mut(&recovery.object) {
            missing.running = None;
        }
        self.ready.extend(pg.locks.release(recovery.object, id));
        if pg.missing.is_empty() {
            self.became_complete(shard, op.pg);
        }
        self.recover_more(op.pg);
    }

    /// A recovery is given up with its round.
    pub(crate) fn recovery_dropped(&mut self, id: OpId) {
        if let Some(estimate) = self.recovery_mut(id).map(|recovery| recovery.estimate) {
            self.recovery.end(estimate);
        }
    }

    /// An operation of the cluster's own whose outcome does not matter.
    pub(crate) fn in_background(&mut self, shard: &dyn ShardIndex, pg: PgId, members: PeerMask, op: ShardOp) {
        if members != 0 {
            let id = self.new_op(pg, Kind::Background);
            self.send_to(shard, id, members, op);
        }
    }

    /// Commits staged changes that all members have, if these are so many that the changes may be kept for good.
    pub(crate) fn commit_staged(&mut self, shard: &dyn ShardIndex, id: PgId) {
        let Some(pg) = self.pgs.get_mut(&id).filter(|pg| pg.is_writable()) else { return };
        for (object, version) in std::mem::take(&mut pg.commits) {
            let Some(members) = self.pgs.get(&id).map(|pg| pg.holders(&object)) else { return };
            self.in_background(shard, id, members, ShardOp::Commit { object, version });
        }
    }
}

impl Pg {
    /// If all members that lack the object have one version of it, since which `from`, that is we, knows what changed: that
    /// version and those sectors.
    pub fn patch_base(&self, object: &ObjectId, from: usize) -> Option<Patch> {
        if from != self.own() {
            return None;
        }
        let missing = self.missing.get(object).filter(|missing| !missing.deleted)?;
        let part = |peer| self.name_at(*object, peer).part;
        let mut bases = bits(missing.stale).map(|peer| missing.shard_at(peer, part(peer)).filter(|s| !s.deleted));
        let base = bases.next()??.version;
        if !bases.all(|shard| shard.is_some_and(|shard| shard.version == base)) {
            return None;
        }
        let sectors = self.dirty.since(object, base)?;
        (!sectors.is_empty()).then(|| (base, sectors.to_vec()))
    }
}

/// What brings a member's object to a version: the change of what it lacks, or the whole.
pub(crate) fn restoring(
    object: ObjectId,
    version: Version,
    patch: Option<Patch>,
    mut content: ObjectContent,
) -> ShardOp {
    if let Some((base, sectors)) = patch {
        return ShardOp::Patch { object, base, version, sectors, content: Box::new(content) };
    }
    forget_others(&mut content);
    ShardOp::Restore { object, version, content: Box::new(content) }
}

/// A member that is given a whole copy may remember requests that nobody else carried out, and whose changes are not in the copy: they did not
/// take effect. Of so many requests that the copy does not list them all, only those newer than the oldest listed can be told.
fn forget_others(content: &mut ObjectContent) {
    let requests = &mut content.requests;
    let mut above = Version::NONE;
    if requests.len() >= WIRE_REQUESTS_MAX {
        let entries = requests.iter().enumerate().filter(|(_, request)| request.client != ClientId(0));
        if let Some((oldest, _)) = entries.min_by_key(|(_, request)| request.version) {
            above = requests.remove(oldest).version;
        }
    }
    requests.insert(0, AppliedRequest::undone_above(above));
}
