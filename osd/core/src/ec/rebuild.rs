//! Recovery of erasure-coded objects: what too few shards got is taken back, what is missing computed.

use std::collections::{BTreeMap, BTreeSet};

use buffer::{Buffer, BufferMut};
use cluster_proto::SECTOR;
use cluster_proto::crc::{ZERO_SECTOR_CRC, crc32c};
use cluster_proto::ids::Version;
use cluster_proto::layout::SectorRange;
use cluster_proto::shard::{ObjectContent, ShardIndex, ShardOp, ShardOutcome, Unreadable};
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
            return self.ec_gather_all(shard, id);
        };
        if let Some(recovery) = self.recovery_mut(id) {
            recovery.gathered.clear();
        }
        self.ec_ask(shard, id, shards);
    }

    /// Too few shards can be read as a whole: asks for all there are, as far as they can be read, each peer for one at a time.
    fn ec_gather_all(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let Some(missing) = pg.missing.get(&object) else { return };
        let has = |s: &&Shard| s.version == missing.version && !s.deleted;
        let all: Vec<_> = missing.shards.iter().filter(has).map(|s| (s.part, usize::from(s.peer))).collect();
        let Some(recovery) = self.recovery_mut(id) else { return };
        if recovery.by_rows.is_none() {
            recovery.gathered.clear();
        }
        let asked = recovery.by_rows.get_or_insert_default();
        let mut peers = BTreeSet::new();
        let next = all.into_iter().filter(|shard| !asked.contains(shard) && peers.insert(shard.1));
        let next: Vec<_> = next.collect();
        asked.extend_from_slice(&next);
        match next.is_empty() {
            true => self.ec_rebuild_rows(shard, id),
            false => self.ec_ask(shard, id, next),
        }
    }

    /// All shards that can be read are there: what of the rows can be made of them?
    fn ec_rebuild_rows(&mut self, shard: &mut dyn ShardIndex, id: OpId) {
        let Some((pg, object)) = self.recovery_of(id) else { return };
        let (scheme, stale) = (pg.scheme, pg.missing.get(&object).map_or(0, |missing| missing.stale));
        let parts: Vec<u8> = bits(stale).map(|peer| pg.name_at(object, peer).part).collect();
        let Some(code) = self.code.get(scheme) else { return };
        let Some(recovery) = self.recovery_mut(id) else { return };
        let there: BTreeSet<u8> = recovery.gathered.iter().map(|(part, _)| *part).collect();
        recovery.lost.clear();
        if there.len() < code.data() {
            // Not even where there are holes can be known.
            return self.ec_undo_or_fail(shard, id);
        }
        let lost = |part: &u8| rebuilt(&code, &recovery.gathered, *part).unreadable;
        recovery.lost = parts.iter().flat_map(lost).map(|unreadable| unreadable.sector).collect();
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
                recovery.gathered.push((part, content));
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

/// A shard computed from others, as many of each row as the code needs. Sectors that come out as zeroes become holes; rows of which too few are
/// readable are lost.
fn rebuilt(code: &Code, gathered: &[(u8, ObjectContent)], part: u8) -> ObjectContent {
    let used: BTreeSet<u32> = gathered.iter().flat_map(|(_, c)| c.extents.iter().flat_map(|e| e.iter())).collect();
    let mut rows: BTreeMap<u32, Row> = BTreeMap::new();
    for (sources, sectors) in by_sources(code, gathered, part, &used) {
        let dense: Vec<(usize, BufferMut)> =
            sources.iter().map(|at| (usize::from(gathered[*at].0), spread(&gathered[*at].1, &sectors))).collect();
        let present: Vec<(usize, &[u8])> = dense.iter().map(|(number, data)| (*number, &data[..])).collect();
        let mut out = BufferMut::for_overwrite(sectors.len() * SECTOR);
        let is_itself = present.first().filter(|(number, _)| *number == usize::from(part));
        if let Some((_, data)) = is_itself {
            out.copy_from_slice(data);
        }
        if is_itself.is_some() || code.reconstruct(&present, &[part.into()], &mut [&mut out[..]]).is_ok() {
            let out = out.freeze();
            let data = (0..).map(|at| out.slice(at * SECTOR..(at + 1) * SECTOR));
            rows.extend(sectors.into_iter().zip(data.map(Row::Data)));
        } else {
            rows.extend(sectors.into_iter().map(|sector| (sector, lost_row(gathered, part, sector))));
        }
    }
    let mut content = ObjectContent { requests: gathered[0].1.requests.clone(), ..ObjectContent::default() };
    let mut kept = BufferMut::for_overwrite(rows.len() * SECTOR);
    let mut len = 0;
    for (sector, row) in rows {
        let crc = match row {
            Row::Data(data) => {
                let crc = crc32c(&data);
                if crc == ZERO_SECTOR_CRC && data.iter().all(|byte| *byte == 0) {
                    continue;
                }
                kept[len..len + SECTOR].copy_from_slice(&data);
                crc
            }
            Row::Lost { crc } => {
                content.unreadable.push(Unreadable { sector, crc });
                kept[len..len + SECTOR].fill(0);
                ZERO_SECTOR_CRC
            }
        };
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

/// A sector of a shard that is computed.
enum Row {
    Data(Buffer),
    /// Too few shards can be read. The checksum is what one of them says the data had.
    Lost {
        crc: u32,
    },
}

fn lost_row(gathered: &[(u8, ObjectContent)], part: u8, sector: u32) -> Row {
    let own = gathered.iter().filter(|(number, _)| *number == part).flat_map(|(_, content)| &content.unreadable);
    Row::Lost { crc: own.filter(|u| u.sector == sector).map(|u| u.crc).next().unwrap_or(Unreadable::UNKNOWN) }
}

/// The sectors by the shards that they are computed from: as many as the code needs, or fewer if there are no more.
fn by_sources(
    code: &Code,
    gathered: &[(u8, ObjectContent)],
    part: u8,
    used: &BTreeSet<u32>,
) -> BTreeMap<Vec<usize>, BTreeSet<u32>> {
    let damaged: Vec<BTreeSet<u32>> =
        gathered.iter().map(|(_, content)| content.unreadable.iter().map(|u| u.sector).collect()).collect();
    let mut groups: BTreeMap<Vec<usize>, BTreeSet<u32>> = BTreeMap::new();
    for sector in used {
        let mut parts = BTreeSet::new();
        let readable = (0..gathered.len()).filter(|at| !damaged[*at].contains(sector));
        let mut sources: Vec<usize> = readable.filter(|at| parts.insert(gathered[*at].0)).collect();
        // The shard itself, where somebody else has it, counts most.
        sources.sort_by_key(|at| gathered[*at].0 != part);
        sources.truncate(code.data());
        groups.entry(sources).or_default().insert(*sector);
    }
    groups
}

/// The chosen sectors of a shard, zeroes where it has none.
fn spread(content: &ObjectContent, chosen: &BTreeSet<u32>) -> BufferMut {
    let mut out = BufferMut::zeroed(chosen.len() * SECTOR);
    let mut of_extents =
        content.extents.iter().flat_map(|e| e.iter()).zip(content.data.chunks_exact(SECTOR)).peekable();
    for (sector, to) in chosen.iter().zip(out.chunks_exact_mut(SECTOR)) {
        while of_extents.next_if(|(at, _)| at < sector).is_some() {}
        if let Some((_, data)) = of_extents.next_if(|(at, _)| at == sector) {
            to.copy_from_slice(data);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
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
    /// The same content, of which these sectors could not be read.
    fn damaged(mut content: ObjectContent, sectors: &[u32]) -> ObjectContent {
        let mut data = content.data.to_vec();
        let all: Vec<u32> = content.extents.iter().flat_map(|e| e.iter()).collect();
        for (at, sector) in all.into_iter().enumerate().filter(|(_, sector)| sectors.contains(sector)) {
            data[at * SECTOR..(at + 1) * SECTOR].fill(0);
            content
                .unreadable
                .push(Unreadable { sector, crc: std::mem::replace(&mut content.crcs[at], ZERO_SECTOR_CRC) });
        }
        content.data = Buffer::copy_of(&data);
        content
    }

    #[test]
    fn each_row_is_made_of_what_can_be_read_of_it() {
        let code = Code::new(2, 2).unwrap();
        let data = [content(&[(1, 5), (2, 6), (7, 9)]), content(&[(1, 3), (2, 4), (3, 8), (7, 2)])];
        let whole = [(0, data[0].clone()), (1, data[1].clone())];
        let parity = [2, 3].map(|part| rebuilt(&code, &whole, part));
        // Row 1 is readable on 1, 2, 3; row 2 on 0, 2, 3; row 3 on 1 and 3 (and a hole on 0); row 7 on 3 alone.
        let shards = [
            (0, damaged(data[0].clone(), &[1, 7])),
            (1, damaged(data[1].clone(), &[2, 7])),
            (2, damaged(parity[0].clone(), &[3, 7])),
            (3, parity[1].clone()),
        ];
        let first = rebuilt(&code, &shards, 0);
        assert_eq!(first.extents, [SectorRange::new(1, 2), SectorRange::new(7, 1)]);
        assert_eq!(first.data[..2 * SECTOR], data[0].data[..2 * SECTOR]);
        assert_eq!(first.unreadable, [Unreadable { sector: 7, crc: data[0].crcs[2] }]);
        assert_eq!((&first.data[2 * SECTOR..], first.crcs[2]), (&[0; SECTOR][..], ZERO_SECTOR_CRC));
        // Somebody has the shard itself, and too few others: it is taken as it is.
        assert_eq!(rebuilt(&code, &shards, 3).data[..], parity[1].data[..]);
        // In another's copy of a shard the row is intact.
        let more = [&shards[..], &[(0, damaged(data[0].clone(), &[1]))]].concat();
        let second = rebuilt(&code, &more, 1);
        assert_eq!((second.data[..] == data[1].data[..], second.unreadable.len()), (true, 0));
    }
}
