//! Changes of lazy pools: answered, but not yet safe from a loss of power. The client keeps a copy of each until it is synced, and
//! repeats it when the PG begins a new interval, because the members may have lost it in between (docs/peering.md, "Lazy pools").
//!
//! A kept change is *valid* as long as its PG is in the epoch in which it was sent: in one epoch the members and their runs are the
//! same, so nothing can have been lost. In another epoch it is *stale*: it is sent again, with its number, so that a primary that still has it
//! does not do it twice; until that is answered, requests that touch its sectors wait. A sync that began after the change was
//! answered, and that was carried out in the same epoch, makes the change durable: it is forgotten. As long as the client keeps
//! anything of a PG its requests are for one epoch only: one that came too late would otherwise be served before the repetitions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cluster_proto::ids::{ObjectId, PgId};
use cluster_proto::layout::SectorRange;
use cluster_proto::limits::{CLIENT_WINDOW, UNSYNCED_BYTES_MAX, UNSYNCED_MAX, UNSYNCED_MS_MAX};
use cluster_proto::link::Millis;
use cluster_proto::map::PgMap;
use cluster_proto::wire::{Reply, RequestOp};
use cluster_proto::{Epoch, PoolId, Status};

use crate::client::{Client, Output};
use crate::image::ImageId;
use crate::op::ImageReply;
use crate::request::{Part, PartId, PartState, Role};

/// A change that was answered and is not synced.
#[derive(Debug)]
struct Kept {
    object: ObjectId,
    sectors: SectorRange,
    request: RequestOp,
    pg: PgId,
    /// In which it took effect, or an earlier one.
    epoch: Epoch,
    /// Place in the order of answers.
    stamp: u64,
    answered: Millis,
    /// Perhaps lost: to be repeated, unless it is superseded.
    is_stale: bool,
    /// A removal of the whole object is under way, which need not find it: not repeated.
    is_superseded: bool,
}

impl Kept {
    fn bytes(&self) -> usize {
        payload_bytes(&self.request)
    }
}

fn payload_bytes(request: &RequestOp) -> usize {
    if let RequestOp::Write { data, .. } = request { data.len() } else { 0 }
}

/// Syncs of one PG.
#[derive(Default, Debug)]
struct PgSync {
    /// Of what is kept of the PG.
    stamps: BTreeSet<u64>,
    /// Everything answered up to this stamp is to be synced.
    wanted: u64,
    running: Option<PartId>,
}

/// A flush that waits for all changes up to a stamp.
#[derive(Debug)]
struct Flush {
    stamp: u64,
    image: ImageId,
    tag: u64,
}

/// Everything that is kept.
#[derive(Default, Debug)]
pub(crate) struct Unsynced {
    /// By number of the request.
    kept: BTreeMap<u64, Kept>,
    /// Numbers in the order of answers.
    by_stamp: BTreeMap<u64, u64>,
    bytes: usize,
    stale: usize,
    last_stamp: u64,
    pgs: BTreeMap<PgId, PgSync>,
    flushes: VecDeque<Flush>,
    /// A change could not be repeated: what the next flush reports.
    failed: Option<Status>,
}

impl Unsynced {
    /// Changes kept.
    pub fn count(&self) -> usize {
        self.kept.len()
    }

    /// Whether new changes have to wait.
    pub fn is_full(&self) -> bool {
        self.kept.len() >= UNSYNCED_MAX || self.bytes >= UNSYNCED_BYTES_MAX
    }

    fn is_half_full(&self) -> bool {
        self.kept.len() >= UNSYNCED_MAX / 2 || self.bytes >= UNSYNCED_BYTES_MAX / 2
    }

    /// Whether anything of a PG is kept.
    pub fn has_of(&self, pg: &PgId) -> bool {
        self.pgs.get(pg).is_some_and(|sync| !sync.stamps.is_empty())
    }

    fn insert(&mut self, seq: u64, kept: Kept) {
        self.bytes += kept.bytes();
        self.by_stamp.insert(kept.stamp, seq);
        self.pgs.entry(kept.pg).or_default().stamps.insert(kept.stamp);
        self.kept.insert(seq, kept);
    }

    fn remove(&mut self, seq: u64) -> Option<Kept> {
        let kept = self.kept.remove(&seq)?;
        self.bytes -= kept.bytes();
        self.stale -= usize::from(kept.is_stale);
        self.by_stamp.remove(&kept.stamp);
        self.leave(kept.pg, kept.stamp);
        Some(kept)
    }

    fn leave(&mut self, pg: PgId, stamp: u64) {
        if let Some(sync) = self.pgs.get_mut(&pg) {
            sync.stamps.remove(&stamp);
            if sync.stamps.is_empty() && sync.running.is_none() {
                self.pgs.remove(&pg);
            }
        }
    }

    /// A change is of another PG now.
    fn enter(&mut self, before: PgId, pg: PgId, stamp: u64) {
        if before != pg {
            let wanted = self.pgs.get(&before).map_or(0, |sync| sync.wanted);
            self.leave(before, stamp);
            let sync = self.pgs.entry(pg).or_default();
            sync.stamps.insert(stamp);
            sync.wanted = sync.wanted.max(wanted);
        }
    }

    fn by_stamp(&self, stamp: u64) -> Option<(u64, &Kept)> {
        let seq = *self.by_stamp.get(&stamp)?;
        Some((seq, self.kept.get(&seq)?))
    }

    /// PGs that want a sync and have none, each with some object of it.
    fn due(&self) -> Vec<(PgId, ObjectId)> {
        let due = |(pg, sync): (&PgId, &PgSync)| {
            let mut wanted = sync.stamps.range(..=sync.wanted).filter_map(|stamp| self.by_stamp(*stamp));
            let (_, kept) = wanted.find(|(_, kept)| !kept.is_superseded)?;
            sync.running.is_none().then_some((*pg, kept.object))
        };
        self.pgs.iter().filter_map(due).collect()
    }

    /// What a sync of a PG in this epoch, which covers the changes up to a stamp, has made durable.
    fn covered(&self, pg: PgId, epoch: Option<Epoch>, stamp: u64) -> Vec<u64> {
        let Some(sync) = self.pgs.get(&pg) else { return Vec::new() };
        let up_to = sync.stamps.range(..=stamp).filter_map(|stamp| self.by_stamp(*stamp));
        up_to.filter(|(_, kept)| !kept.is_stale && Some(kept.epoch) == epoch).map(|(seq, _)| seq).collect()
    }

    /// Whether a part has to wait for repetitions: of a change that it touches, or, for a sync, of any change of the PG. `removes`: it
    /// removes its whole object.
    pub fn is_in_the_way(&self, part: &Part, removes: bool) -> bool {
        if self.stale == 0 {
            return false;
        }
        let is_before = |seq: u64| !matches!(part.role, Role::Repeat) || seq < part.seq;
        let mut stale = self.kept.iter().filter(|(_, kept)| kept.is_stale && !(removes && kept.is_superseded));
        match (&part.role, part.request.sectors()) {
            (Role::Sync { pg, .. }, _) => stale.any(|(_, kept)| kept.pg == *pg),
            (_, Some(sectors)) => {
                stale.any(|(seq, kept)| kept.object == part.object && kept.sectors.overlaps(sectors) && is_before(*seq))
            }
            _ => false,
        }
    }

    /// The object is about to be removed as a whole, which is durable: what is kept of it need not be repeated any more.
    pub fn supersede(&mut self, object: &ObjectId) {
        for kept in self.kept.values_mut().filter(|kept| kept.object == *object && !kept.is_stale) {
            kept.is_superseded = true;
        }
    }

    /// The removal failed. Returns what has to be repeated after all.
    fn restore(&mut self, object: &ObjectId) -> Vec<u64> {
        let superseded = self.kept.iter_mut().filter(|(_, kept)| kept.object == *object && kept.is_superseded);
        let stale = superseded.filter_map(|(seq, kept)| {
            kept.is_superseded = false;
            kept.is_stale.then_some(*seq)
        });
        stale.collect()
    }
}

impl Client {
    /// Changes that were answered and may be lost with the power of too many servers until they are synced: by a
    /// [flush](crate::ImageOp::Flush), by [`Client::sync`], when there are many, or after 5 s.
    pub fn unsynced(&self) -> usize {
        self.unsynced.count()
    }

    /// Begins to sync everything answered so far. Whoever gives the client up waits until [`Client::unsynced`] is 0.
    pub fn sync(&mut self) {
        self.want_sync(self.unsynced.last_stamp);
    }

    /// Answers a flush when everything answered so far is durable.
    pub(crate) fn flush_start(&mut self, image: ImageId, tag: u64) {
        let stamp = self.unsynced.last_stamp;
        self.unsynced.flushes.push_back(Flush { stamp, image, tag });
        self.want_sync(stamp);
        self.finish_flushes();
    }

    fn finish_flushes(&mut self) {
        let oldest = self.unsynced.by_stamp.first_key_value().map_or(u64::MAX, |(stamp, _)| *stamp);
        while self.unsynced.flushes.front().is_some_and(|flush| flush.stamp < oldest) {
            let Some(flush) = self.unsynced.flushes.pop_front() else { return };
            let result = self.unsynced.failed.take().map_or(Ok(ImageReply::Done), Err);
            self.replies.push_back((flush.image, flush.tag, result));
        }
    }

    fn want_sync(&mut self, stamp: u64) {
        for sync in self.unsynced.pgs.values_mut() {
            sync.wanted = sync.wanted.max(stamp);
        }
        self.start_syncs();
    }

    /// Begins a sync of every PG that wants one and has none.
    fn start_syncs(&mut self) {
        for (pg, object) in self.unsynced.due() {
            let part = Part::new(0, object, Role::Sync { pg, stamp: None }, RequestOp::Sync);
            let id = self.parts.insert(part);
            if let Some(sync) = self.unsynced.pgs.get_mut(&pg) {
                sync.running = Some(id);
            }
            self.issue(id);
        }
    }

    /// What a sync that is being sent for the first time covers.
    pub(crate) fn sync_stamp(&self) -> u64 {
        self.unsynced.last_stamp
    }

    /// A sync was answered. What it covers is forgotten, unless another interval has begun.
    pub(crate) fn sync_finish(&mut self, id: PartId, reply: &Reply) {
        let Some(part) = self.parts.remove(id) else { return };
        let Role::Sync { pg, stamp } = part.role else { return };
        let covered = match stamp.filter(|_| reply.status == Status::Ok) {
            Some(stamp) => self.unsynced.covered(pg, part.epoch, stamp),
            None => Vec::new(),
        };
        for seq in covered {
            self.forget_kept(seq);
        }
        if let Some(sync) = self.unsynced.pgs.get_mut(&pg) {
            sync.running = None;
            if sync.stamps.is_empty() {
                self.unsynced.pgs.remove(&pg);
            }
        }
        self.unsynced_changed();
    }

    /// A change took effect, but is not durable. Not kept if its pool is gone.
    pub(crate) fn keep(&mut self, id: PartId) {
        let Some(part) = self.parts.get(id) else { return };
        let (Some(sectors), Some(epoch)) = (part.request.sectors(), part.epoch) else { return };
        let Some(pool) = self.map.pools.get(&part.object.pool) else { return self.window.remove(part.seq) };
        // If its PG was just split or merged, we have yet to hear which it is: then it is repeated there.
        let (pg, present) = self.pg_of(&part.object).unwrap_or((part.object.pg(pool.pg_count), Some(Epoch(0))));
        self.unsynced.last_stamp += 1;
        let kept = Kept {
            object: part.object,
            sectors,
            request: part.request.clone(),
            pg,
            epoch,
            stamp: self.unsynced.last_stamp,
            answered: self.now,
            is_stale: false,
            is_superseded: false,
        };
        let seq = part.seq;
        self.window.keep(seq);
        self.unsynced.insert(seq, kept);
        if present.is_none_or(|map| map != epoch) {
            self.repeat(seq);
            self.send_unsent();
        }
        if self.unsynced.is_full() {
            self.sync();
        } else if self.unsynced.is_half_full() {
            let stamp = self.unsynced.last_stamp;
            self.unsynced.pgs.entry(pg).or_default().wanted = stamp;
            self.start_syncs();
        }
    }

    /// A durable change was answered: what it covers completely need not be kept.
    pub(crate) fn forget_covered(&mut self, object: &ObjectId, sectors: SectorRange) {
        if self.unsynced.count() == 0 {
            return;
        }
        let is_covered = |kept: &Kept| {
            kept.object == *object && (!kept.is_stale || kept.is_superseded) && sectors.contains(kept.sectors)
        };
        let covered: Vec<u64> =
            self.unsynced.kept.iter().filter(|(_, kept)| is_covered(kept)).map(|(seq, _)| *seq).collect();
        let is_any = !covered.is_empty();
        for seq in covered {
            self.forget_kept(seq);
        }
        if is_any {
            self.unsynced_changed();
        }
    }

    fn forget_kept(&mut self, seq: u64) {
        if self.unsynced.remove(seq).is_some() {
            self.window.remove(seq);
        }
    }

    /// The map of a pool or PG has changed: whatever took effect in another interval is repeated.
    pub(crate) fn repeat_lost(&mut self, pool: PoolId) {
        if self.unsynced.count() == 0 {
            return;
        }
        if !self.map.pools.contains_key(&pool) {
            return self.pool_is_gone(pool);
        }
        let of_pool: Vec<(u64, ObjectId, PgId, Epoch)> = self
            .unsynced
            .kept
            .iter()
            .filter(|(_, kept)| kept.object.pool == pool && !kept.is_stale)
            .map(|(seq, kept)| (*seq, kept.object, kept.pg, kept.epoch))
            .collect();
        for (seq, object, pg, epoch) in of_pool {
            let is_there = self.pg_of(&object) == Some((pg, Some(epoch)));
            if !is_there {
                self.repeat(seq);
            }
        }
    }

    /// With the pool, what was changed in it is gone.
    fn pool_is_gone(&mut self, pool: PoolId) {
        let of_pool = |kept: &Kept| kept.object.pool == pool;
        let gone: Vec<u64> = self.unsynced.kept.iter().filter(|(_, kept)| of_pool(kept)).map(|(seq, _)| *seq).collect();
        for seq in gone {
            if let Some(id) = self.window.get(seq) {
                self.parts.remove(id);
            }
            self.forget_kept(seq);
        }
        let syncs: Vec<PgId> = self.unsynced.pgs.keys().filter(|pg| pg.pool == pool).copied().collect();
        for pg in syncs {
            let running = self.unsynced.pgs.remove(&pg).and_then(|sync| sync.running);
            if let Some(part) = running.and_then(|id| self.parts.remove(id)) {
                self.window.remove(part.seq);
            }
        }
        self.unsynced_changed();
    }

    /// A removal of a whole object failed: what it should have covered counts again.
    pub(crate) fn removal_failed(&mut self, object: &ObjectId) {
        let stale = self.unsynced.restore(object);
        stale.into_iter().for_each(|seq| self.repeat(seq));
    }

    /// PG of an object, and its epoch if there is a map.
    fn pg_of(&self, object: &ObjectId) -> Option<(PgId, Option<Epoch>)> {
        let pg = self.map.pg_of(object)?;
        Some((pg, self.map.pgs.get(&pg).map(|map: &PgMap| map.epoch)))
    }

    /// Sends a kept change again, unless a removal is to take its place.
    fn repeat(&mut self, seq: u64) {
        let Some(kept) = self.unsynced.kept.get_mut(&seq) else { return };
        self.unsynced.stale += usize::from(!std::mem::replace(&mut kept.is_stale, true));
        if kept.is_superseded {
            return;
        }
        let mut part = Part::new(0, kept.object, Role::Repeat, kept.request.clone());
        (part.seq, part.state) = (seq, PartState::Unsent);
        let id = self.parts.insert(part);
        self.window.reopen(seq, id);
        self.unsent.push_back(id);
    }

    /// A kept change was repeated.
    pub(crate) fn repeat_finish(&mut self, id: PartId, reply: &Reply) {
        let Some(part) = self.parts.remove(id) else { return };
        let (seq, present) = (part.seq, self.pg_of(&part.object));
        let Some(kept) = self.unsynced.kept.get_mut(&seq) else { return };
        self.window.keep(seq);
        if reply.status != Status::Ok {
            let text = format!("an answered change of object {} cannot be repeated: {}", part.object, reply.status);
            self.unsynced.failed = Some(reply.status);
            self.outputs.push_back(Output::Notice(text));
            self.forget_kept(seq);
        } else if !reply.unsynced {
            self.forget_kept(seq);
        } else if let (Some((pg, Some(epoch))), Some(sent)) = (present, part.epoch) {
            let (before, stamp) = (std::mem::replace(&mut kept.pg, pg), kept.stamp);
            (kept.epoch, kept.is_stale) = (sent, false);
            self.unsynced.stale -= 1;
            self.unsynced.enter(before, pg, stamp);
            if sent != epoch {
                self.repeat(seq);
            }
        } else {
            self.repeat(seq);
        }
        self.unsynced_changed();
    }

    /// Something kept is gone or was repeated: what waited for that goes on.
    fn unsynced_changed(&mut self) {
        self.start_syncs();
        self.finish_flushes();
        self.send_unsent();
        self.cut_more();
    }

    /// Syncs what has been kept for long, and what keeps numbers in use.
    pub(crate) fn sync_aged(&mut self) {
        let Some((_, seq)) = self.unsynced.by_stamp.first_key_value() else { return };
        let is_old = self.unsynced.kept.get(seq).is_some_and(|kept| kept.answered + UNSYNCED_MS_MAX <= self.now);
        if is_old || self.window.len() as u64 > CLIENT_WINDOW / 4 {
            self.sync();
        }
    }
}

#[cfg(test)]
mod tests;
