//! Recovery of erasure-coded objects: what too few shards got is taken back, what is missing computed.

use std::collections::BTreeSet;

use buffer::BufferMut;
use cluster_proto::SECTOR;
use cluster_proto::crc::{ZERO_SECTOR_CRC, crc32c};
use cluster_proto::ids::Version;
use cluster_proto::layout::SectorRange;
use cluster_proto::shard::{ObjectContent, ShardIndex, ShardOp, ShardOutcome};
use erasure::Code;

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
            return self.ec_undo_or_fail(shard, id);
        };
        // What we know of changes is of our own shard, up to the version that it has.
        let own = pg.own();
        let patch = (missing.stale >> own & 1 == 0).then(|| pg.patch_base(&object, own)).flatten();
        let sectors = patch.as_ref().map(|(_, sectors)| sectors.clone());
        if let Some(recovery) = self.recovery_mut(id) {
            recovery.stage = Stage::Gathering { asked: shards.clone(), patch };
            recovery.gathered.clear();
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

    /// Too few shards of the version that counts can be read. If it was never acknowledged nor shown, and can be taken back, the one
    /// before counts.
    fn ec_undo_or_fail(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some(pg_id) = self.ops.get_mut(id).map(|op| op.pg) else { return };
        let past = self.past_intervals(pg_id);
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let peers = pg.peers().to_vec();
        let (needed, allowed) = (pg.scheme.copies_needed(), pg.is_unacknowledged(&object, &past));
        let undone = allowed && pg.missing.get_mut(&object).is_some_and(|missing| missing.undo_staged(&peers, needed));
        if !undone {
            self.notice(format!("object {object}: too few shards can be read"));
            return self.recovery_failed(shard, id);
        }
        self.notice(format!("object {object}: an unacknowledged change is damaged and is taken back"));
        if let Some(recovery) = self.recovery_mut(id) {
            recovery.damaged.clear();
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
        match outcome {
            ShardOutcome::Fetched { version, content } if Some(version) == wanted => {
                recovery.gathered.push((part, content));
            }
            // Damaged: without this shard, then. Reads and scrubs repair it.
            _ => recovery.damaged.push((part, peer)),
        }
        if !settled {
            return;
        }
        if recovery.gathered.len() < asked.len() {
            return self.ec_gather_shards(shard, id);
        }
        self.ec_rebuild(shard, id);
    }

    /// Computes the missing shards, or what of them changed, and sends them to their members.
    fn ec_rebuild(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some(recovery) = self.recovery_mut(id) else { return };
        let stage = std::mem::replace(&mut recovery.stage, Stage::Copying);
        let Stage::Gathering { patch, .. } = stage else { return };
        let gathered = std::mem::take(&mut recovery.gathered);
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let Some(missing) = pg.missing.get(&object) else { return };
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

/// A shard computed from others. Sectors that come out as zeroes become holes.
fn rebuilt(code: &Code, gathered: &[(u8, ObjectContent)], part: u8) -> ObjectContent {
    let used: BTreeSet<u32> = gathered.iter().flat_map(|(_, c)| c.extents.iter().flat_map(|e| e.iter())).collect();
    let dense: Vec<(usize, BufferMut)> =
        gathered.iter().map(|(number, content)| (usize::from(*number), spread(content, &used))).collect();
    let present: Vec<(usize, &[u8])> = dense.iter().map(|(number, data)| (*number, &data[..])).collect();
    let mut out = BufferMut::for_overwrite(used.len() * SECTOR);
    let done = code.reconstruct(&present, &[part.into()], &mut [&mut out[..]]);
    debug_assert!(done.is_ok(), "as many different shards as the code needs");
    let mut content = ObjectContent { requests: gathered[0].1.requests.clone(), ..ObjectContent::default() };
    let mut kept = BufferMut::for_overwrite(out.len());
    let mut len = 0;
    for (sector, data) in used.into_iter().zip(out.chunks_exact(SECTOR)) {
        let crc = crc32c(data);
        if crc == ZERO_SECTOR_CRC && data.iter().all(|byte| *byte == 0) {
            continue;
        }
        kept[len..len + SECTOR].copy_from_slice(data);
        len += SECTOR;
        content.crcs.push(crc);
        match content.extents.last_mut() {
            Some(last) if last.end() == sector => last.count += 1,
            _ => content.extents.push(SectorRange::new(sector, 1)),
        }
    }
    content.data = kept.freeze().slice(..len);
    content
}

/// The chosen sectors of a shard, zeroes where it has none.
fn spread(content: &ObjectContent, chosen: &BTreeSet<u32>) -> BufferMut {
    let mut out = BufferMut::zeroed(chosen.len() * SECTOR);
    let mut of_extents =
        content.extents.iter().flat_map(|e| e.iter()).zip(content.data.chunks_exact(SECTOR)).peekable();
    for (sector, to) in chosen.iter().zip(out.chunks_exact_mut(SECTOR)) {
        if let Some((_, data)) = of_extents.next_if(|(at, _)| at == sector) {
            to.copy_from_slice(data);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use buffer::Buffer;
    use cluster_proto::crc::sector_crcs;

    fn content(sectors: &[(u32, u8)]) -> ObjectContent {
        let data: Vec<u8> = sectors.iter().flat_map(|(_, fill)| vec![*fill; SECTOR]).collect();
        ObjectContent {
            extents: sectors.iter().map(|(at, _)| SectorRange::new(*at, 1)).collect(),
            crcs: sector_crcs(&data),
            data: Buffer::copy_of(&data),
            ..ObjectContent::default()
        }
    }

    #[test]
    fn a_shard_with_holes_comes_back() {
        let code = Code::new(2, 1).unwrap();
        let (a, b) = (content(&[(1, 5), (7, 9)]), content(&[(1, 3)]));
        let parity = rebuilt(&code, &[(0, a.clone()), (1, b.clone())], 2);
        assert_eq!(parity.extents, [SectorRange::new(1, 1), SectorRange::new(7, 1)]);
        assert_eq!((parity.data[0], parity.data[SECTOR]), (5 ^ 3, 9));
        let back = rebuilt(&code, &[(0, a), (2, parity)], 1);
        assert_eq!((back.extents.clone(), back.crcs.clone()), (b.extents, b.crcs), "the zero sector is a hole again");
        assert_eq!(back.data[..], b.data[..]);
    }
}
