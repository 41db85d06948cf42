//! Recovery of erasure-coded objects: what too few shards got is taken back, what is missing computed.

use std::collections::BTreeSet;

use cluster_proto::ids::Version;
use cluster_proto::shard::{ObjectContent, ShardIndex, ShardOp, ShardOutcome};

use super::rows::{proven, rebuilt};
use crate::op::{OpId, bits};
use crate::osd::Osd;
use crate::pg::{Pg, Shard};
use crate::recovery::{Stage, restoring};

impl Pg {
    /// Whether a shard has to make way for the version that counts: by being turned back, or, of a member, by being dropped. A member that was
    /// given a version which nobody else kept, while too few were present to accept changes, has it for good.
    fn is_to_go_back(&self, shard: &Shard, version: Version) -> bool {
        let acts = self.peers()[usize::from(shard.peer)].shard.is_some();
        shard.is_ahead_of(version) || (acts && shard.version > version)
    }
}

impl Osd {
    /// The object stands still: first everybody goes back to the version that counts who can.
    pub(crate) fn ec_recovery_start(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let Some(missing) = pg.missing.get(&object) else { return self.recovery_finish(shard, id) };
        let version = missing.version;
        // One operation at a time per peer: who has several such shards is asked again.
        let mut peers = BTreeSet::new();
        let newer = missing.shards.iter().filter(|s| pg.is_to_go_back(s, version));
        let back: Vec<_> = newer.filter(|s| peers.insert(s.peer)).copied().collect();
        if back.is_empty() {
            return self.ec_gather_shards(shard, id);
        }
        if let Some(recovery) = self.recovery_mut(id) {
            recovery.stage = Stage::RollingBack;
        }
        for s in back {
            let (object, newer) = (object.shard(s.part), s.version);
            let back = match s.is_ahead_of(version) {
                true => ShardOp::Rollback { object, version: newer },
                false => ShardOp::Drop { object, version: newer },
            };
            self.send_to_peer(shard, id, s.peer.into(), back);
        }
    }

    pub(crate) fn ec_rolled_back(
        &mut self,
        shard: &mut dyn ShardIndex,
        id: OpId,
        peer: usize,
        settled: bool,
        outcome: &ShardOutcome,
    ) {
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let own_part = pg.name_at(object, peer).part;
        let acts = pg.peers()[peer].shard.is_some();
        let Some(missing) = pg.missing.get(&object) else { return };
        let version = missing.version;
        let newer = |s: &Shard| usize::from(s.peer) == peer && pg.is_to_go_back(s, version);
        let at = missing.shards.iter().position(newer);
        let Some(missing) = pg.missing.get_mut(&object) else { return };
        if *outcome == ShardOutcome::Done {
            if let Some(at) = at {
                let shard = &mut missing.shards[at];
                // Dropped, or turned back.
                let before = shard.staged_over.take().filter(|before| *before <= version);
                shard.version = before.unwrap_or_default();
                let (part, back) = (shard.part, shard.version);
                if back == Version::NONE {
                    missing.shards.remove(at);
                }
                if acts && part == own_part && back == version {
                    missing.stale &= !(1 << peer);
                }
            }
        } else if let Some(recovery) = self.recovery_mut(id) {
            recovery.failed = true;
        }
        if settled {
            match self.recovery_mut(id).is_some_and(|recovery| recovery.failed) {
                true => self.recovery_failed(shard, id),
                false => self.ec_recovery_start(shard, id),
            }
        }
    }

    /// Asks for as many shards as make up the object.
    fn ec_gather_shards(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some(but) = self.recovery_mut(id).map(|recovery| recovery.damaged.clone()) else { return };
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let Some(missing) = pg.missing.get(&object) else { return };
        if missing.stale == 0 {
            return self.recovery_finish(shard, id);
        }
        let shards = if missing.deleted {
            let source = missing.shards.iter().find(|s| s.deleted && s.version == missing.version);
            source.map(|s| vec![(s.part, usize::from(s.peer))])
        } else {
            pg.enough_shards(&object, &but)
        };
        let Some(shards) = shards else {
            return self.ec_gather_all(shard, id);
        };
        if let Some(recovery) = self.recovery_mut(id) {
            recovery.gathered.clear();
        }
        self.ec_ask(shard, id, shards);
    }

    /// Too few shards can be read as a whole: asks for all there are, as far as they can be read.
    fn ec_gather_all(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        if let Some(recovery) = self.recovery_mut(id).filter(|recovery| recovery.by_rows.is_none()) {
            recovery.by_rows = Some(Vec::new());
            recovery.gathered.clear();
            recovery.others.clear();
        }
        if !self.ec_ask_rest(shard, id, |s, version| s.version == version) {
            self.ec_rebuild_rows(shard, id);
        }
    }

    /// Asks for those of the shards that were not asked for yet, each peer for one at a time. Whether there were any.
    fn ec_ask_rest(
        &mut self,
        shard: &mut dyn ShardIndex,
        id: OpId,
        is_wanted: impl Fn(&Shard, Version) -> bool,
    ) -> bool {
        let Some((pg, object)) = self.recovery_of(id) else { return false };
        let Some(missing) = pg.missing.get(&object) else { return false };
        let wanted = missing.shards.iter().filter(|s| !s.deleted && is_wanted(s, missing.version));
        let wanted: Vec<_> = wanted.map(|s| (s.part, usize::from(s.peer))).collect();
        let Some(asked) = self.recovery_mut(id).and_then(|recovery| recovery.by_rows.as_mut()) else { return false };
        let mut peers = BTreeSet::new();
        let next = wanted.into_iter().filter(|shard| !asked.contains(shard) && peers.insert(shard.1));
        let next: Vec<_> = next.collect();
        asked.extend_from_slice(&next);
        let is_any = !next.is_empty();
        if is_any {
            self.ec_ask(shard, id, next);
        }
        is_any
    }

    /// All shards that can be read are there: what of the rows can be made of them?
    fn ec_rebuild_rows(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let (scheme, stale) = (pg.scheme, pg.missing.get(&object).map_or(0, |missing| missing.stale));
        let parts: Vec<u8> = bits(stale).map(|peer| pg.name_at(object, peer).part).collect();
        let Some(code) = self.code.get(scheme) else { return };
        let lost_of = |gathered: &[(u8, ObjectContent)]| -> BTreeSet<u32> {
            let lost = parts.iter().flat_map(|part| rebuilt(&code, gathered, *part).unreadable);
            lost.map(|unreadable| unreadable.sector).collect()
        };
        let Some(recovery) = self.recovery_mut(id) else { return };
        let there: BTreeSet<u8> = recovery.gathered.iter().map(|(part, _)| *part).collect();
        recovery.lost.clear();
        if there.len() < code.data() {
            // Not even where there are holes can be known.
            return self.ec_undo_or_fail(shard, id);
        }
        let lost = lost_of(&recovery.gathered);
        if !lost.is_empty() && self.ec_ask_rest(shard, id, |s, version| s.version != version) {
            return;
        }
        let Some(recovery) = self.recovery_mut(id) else { return };
        if !lost.is_empty() {
            let proven = proven(&code, &recovery.gathered, &recovery.others, &lost);
            recovery.gathered.extend(proven);
            recovery.lost = lost_of(&recovery.gathered);
        }
        if !recovery.lost.is_empty() {
            return self.ec_undo_or_fail(shard, id);
        }
        self.ec_rebuild(shard, id);
    }

    /// Asks for shards, or what is to be patched of them.
    fn ec_ask(&mut self, shard: &mut dyn ShardIndex, id: OpId, shards: Vec<(u8, usize)>) {
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let Some(missing) = pg.missing.get(&object) else { return };
        // What we know of changes is of our own shard, up to the version that it has.
        let own = pg.own();
        let patch = (missing.stale >> own & 1 == 0).then(|| pg.patch_base(&object, own)).flatten();
        let sectors = patch.as_ref().map(|(_, sectors)| sectors.clone());
        if let Some(recovery) = self.recovery_mut(id) {
            recovery.stage = Stage::Gathering { asked: shards.clone(), patch };
        }
        for (part, peer) in shards {
            let object = object.shard(part);
            let ask = match &sectors {
                Some(sectors) => ShardOp::FetchPart { object, sectors: sectors.clone() },
                None => ShardOp::Fetch { object },
            };
            self.send_to_peer(shard, id, peer, ask);
        }
    }

    /// Of some rows of the version that counts too few shards can be read. If it was never acknowledged nor shown, and can be taken back, the one
    /// before counts. Otherwise what cannot be read is passed on as that, if it is certain.
    fn ec_undo_or_fail(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some(pg_id) = self.ops.get_mut(id).map(|op| op.pg) else { return };
        let past = self.past_intervals(pg_id);
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let peers = pg.peers().to_vec();
        let (needed, allowed) = (pg.scheme.copies_needed(), pg.is_unacknowledged(&object, &past));
        let undone = allowed && pg.missing.get_mut(&object).is_some_and(|missing| missing.undo_staged(&peers, needed));
        if !undone && self.passes_on(id, &past) {
            if let Some(recovery) = self.recovery_mut(id) {
                recovery.passes_on = true;
            }
            return self.ec_rebuild(shard, id);
        }
        if !undone {
            return self.recovery_failed(shard, id);
        }
        self.notice(format!("object {object}: an unacknowledged change is damaged and is taken back"));
        if let Some(recovery) = self.recovery_mut(id) {
            recovery.damaged.clear();
            recovery.by_rows = None;
        }
        self.ec_recovery_start(shard, id);
    }

    pub(crate) fn ec_gathered(
        &mut self,
        shard: &mut dyn ShardIndex,
        id: OpId,
        peer: usize,
        settled: bool,
        outcome: ShardOutcome,
    ) {
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let wanted = pg.missing.get(&object).map(|missing| missing.version);
        let Some(recovery) = self.recovery_mut(id) else { return };
        let Stage::Gathering { asked, .. } = &recovery.stage else { return };
        let Some(part) = asked.iter().find(|(_, from)| *from == peer).map(|(part, _)| *part) else { return };
        let (asked, by_rows) = (asked.len(), recovery.by_rows.is_some());
        match outcome {
            ShardOutcome::Fetched { version, content }
                if Some(version) == wanted && (by_rows || content.unreadable.is_empty()) =>
            {
                recovery.gathered.push((part, *content));
            }
            ShardOutcome::Fetched { content, .. } if by_rows && !content.deleted => {
                recovery.others.push((part, *content))
            }
            // Damaged: without this shard, then. Reads and scrubs repair it.
            _ => recovery.damaged.push((part, peer)),
        }
        if !settled {
            return;
        }
        if by_rows {
            return self.ec_gather_all(shard, id);
        }
        if recovery.gathered.len() < asked {
            return self.ec_gather_shards(shard, id);
        }
        self.ec_rebuild(shard, id);
    }

    /// Computes the missing shards, or what of them changed, and sends them to their members.
    fn ec_rebuild(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some(recovery) = self.recovery_mut(id) else { return };
        let stage = std::mem::replace(&mut recovery.stage, Stage::Copying);
        let Stage::Gathering { patch, .. } = stage else { return };
        let (gathered, is_lossless) = (std::mem::take(&mut recovery.gathered), recovery.lost.is_empty());
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let Some(missing) = pg.missing.get_mut(&object) else { return };
        if is_lossless {
            missing.unreadable = None;
        }
        let (version, deleted, stale, scheme) = (missing.version, missing.deleted, missing.stale, pg.scheme);
        let targets: Vec<_> = bits(stale).map(|peer| (peer, pg.name_at(object, peer))).collect();
        let Some(code) = self.code.get(scheme) else { return };
        let mut bytes = 0;
        for (peer, name) in targets {
            let content = match deleted {
                true => ObjectContent { requests: gathered[0].1.requests.clone(), deleted, ..ObjectContent::default() },
                false => rebuilt(&code, &gathered, name.part),
            };
            bytes += content.data.len() as u64;
            self.send_to_peer(shard, id, peer, restoring(name, version, patch.clone(), content));
        }
        self.stats.patched_objects += u64::from(patch.is_some());
        self.recovery_cost(id, bytes);
    }
}
