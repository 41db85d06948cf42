//! Whether the parity of an erasure-coded object fits its data, and what is done where it does not. docs/scrub.md gives the reasons.
//!
//! Members told the sums of their shards when they verified them; `ec/parity.rs` compares those. What may be rewritten is parity only, computed
//! from the data that clients read: without asking, if a parity shard that fits the data says that the data is right; otherwise only if
//! an operator asked for it.

use cluster_proto::ids::{ObjectId, Version};
use cluster_proto::layout::SectorRange;
use cluster_proto::map::Scheme;
use cluster_proto::shard::{ShardIndex, ShardOp, ShardOutcome, Sums};

use super::{Scrub, Stage};
use crate::ec::{Comparison, EcOp, Misfit, PartMask, Purpose, ShardRead, ShardSums, sums_for};
use crate::op::{Kind, OpId, bits};
use crate::osd::Osd;
use crate::pg::Pg;

/// Rows that are read and rewritten at once: with all shards of the widest object 8 MiB.
const ROWS_AT_ONCE: u32 = 64;
/// Ranges of rows that a notice names.
const RANGES_TOLD: usize = 8;

/// What was seen of an object's parity.
#[derive(Debug, Default)]
pub(super) struct Parity {
    /// What members told of their shards.
    sums: Vec<ShardSums>,
    /// Members whose shards were repaired were asked again.
    asked_again: bool,
    /// Whether the comparison was made.
    is_compared: bool,
    /// The version of the shards that were compared.
    version: Version,
    /// What is yet to be rewritten.
    misfits: Vec<Misfit>,
    /// Rows that did not fit.
    pub rows: u64,
    /// Rewriting the last of the misfits failed somewhere.
    failed: bool,
}

impl Parity {
    /// A member verified its shard.
    pub fn told(&mut self, peer: usize, part: u8, outcome: ShardOutcome) {
        if let ShardOutcome::Verified { version, extents, kind, sums } = outcome {
            self.sums.retain(|other| other.peer != peer);
            self.sums.push(ShardSums { peer, part, version, extents, kind, sums });
        }
    }
}

/// Rows in pieces of which one at a time is rewritten. The last comes first.
fn pieces(misfit: &Misfit) -> impl Iterator<Item = Misfit> {
    let (parts, end) = (misfit.parts, misfit.rows.end());
    let starts = (misfit.rows.start..end).step_by(ROWS_AT_ONCE as usize);
    starts.map(move |start| Misfit { rows: SectorRange::new(start, ROWS_AT_ONCE.min(end - start)), parts })
}

/// The first ranges, as people read them.
pub(super) fn named(ranges: &[SectorRange]) -> String {
    let name = |range: &SectorRange| match (range.start, range.end() - 1) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    let names: Vec<_> = ranges.iter().take(RANGES_TOLD).map(name).collect();
    let more = if ranges.len() > RANGES_TOLD { " and more" } else { "" };
    format!("{}{more}", names.join(", "))
}

/// The first rows that do not fit, as people read them.
fn named_rows(misfits: &[&Misfit]) -> String {
    named(&misfits.iter().map(|misfit| misfit.rows).collect::<Vec<_>>())
}

/// Shards in a mask.
fn parts(mask: PartMask) -> impl Iterator<Item = u8> {
    bits(mask.into()).map(|part| part as u8)
}

impl Osd {
    /// What members are to tell of an intact object.
    pub(super) fn scrub_sums(&mut self, id: OpId) -> Sums {
        let scheme = self.ops.get_mut(id).and_then(|op| self.pgs.get(&op.pg)).map(|pg| pg.scheme);
        match scheme {
            Some(Scheme::Replicated { copies }) if copies > 1 => Sums::Whole,
            Some(scheme) => self.code.get(scheme).map_or(Sums::None, |code| sums_for(&code)),
            None => Sums::None,
        }
    }

    /// All damage of the object was seen to.
    pub(super) fn scrub_parity(&mut self, shard: &dyn ShardIndex, id: OpId) {
        let sums = self.scrub_sums(id);
        let Some(op) = self.ops.get_mut(id) else { return };
        let (Some(pg), Kind::Scrub(scrub)) = (self.pgs.get(&op.pg), &mut op.kind) else { return };
        if sums == Sums::None || scrub.unrepaired > 0 && !scrub.parity.is_compared {
            return self.scrub_end(shard, id);
        }
        let silent = pg.acting() & !scrub.parity.sums.iter().fold(0, |mask, told| mask | 1 << told.peer);
        if silent != 0 && scrub.errors > 0 && !scrub.parity.asked_again {
            scrub.parity.asked_again = true;
            scrub.stage = Stage::Verifying;
            let object = scrub.object;
            return self.send_to(shard, id, silent, ShardOp::Verify { object, sums });
        }
        if !scrub.parity.is_compared {
            self.scrub_parity_compare(id);
        }
        self.scrub_parity_reread(shard, id);
    }

    /// Finds the rows that do not fit, and decides what is to be rewritten; of copies, the sectors that differ.
    fn scrub_parity_compare(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let (Some(pg), Kind::Scrub(scrub)) = (self.pgs.get(&op.pg), &mut op.kind) else { return };
        scrub.parity.is_compared = true;
        let (object, told) = (scrub.object, std::mem::take(&mut scrub.parity.sums));
        if !pg.is_coded() {
            return self.scrub_compare_copies(id, &told);
        }
        scrub.parity.version = told.first().map_or(Version::NONE, |told| told.version);
        let Some(code) = self.code.get(pg.scheme) else { return };
        let Some(comparison) = Comparison::new(&code, &told) else { return };
        let misfits = comparison.misfits();
        if misfits.is_empty() {
            return;
        }
        let (all_data, computed) = (comparison.has_all_data(), comparison.computed());
        let is_asked_for = pg.scrubs.rewrites_parity();
        // A parity shard that fits says that the data is right.
        let may_rewrite = |misfit: &&Misfit| all_data && (is_asked_for || misfit.parts != computed);
        let (known, unknown): (Vec<&Misfit>, Vec<&Misfit>) = misfits.iter().partition(may_rewrite);
        let suspect = unknown.first().and_then(|misfit| comparison.suspect(misfit.rows.start));
        let mut notices = Vec::new();
        if !known.is_empty() {
            let shards = pg.named_parts(known.iter().fold(0, |mask, misfit| mask | misfit.parts));
            let rows = named_rows(&known);
            notices.push(format!(
                "object {object}: parity does not fit the data in rows {rows} of {shards}: computed anew"
            ));
        }
        if !unknown.is_empty() {
            notices.push(not_rewritten(pg, object, &unknown, suspect));
        }
        let count = |misfits: &[&Misfit]| misfits.iter().map(|misfit| u64::from(misfit.rows.count)).sum::<u64>();
        let Some(Kind::Scrub(scrub)) = self.ops.get_mut(id).map(|op| &mut op.kind) else { return };
        scrub.parity.rows = count(&known) + count(&unknown);
        scrub.errors += scrub.parity.rows;
        scrub.unrepaired += count(&unknown);
        scrub.parity.misfits = known.into_iter().flat_map(pieces).collect();
        notices.into_iter().for_each(|text| self.notice(text));
    }

    /// Reads the data of the next rows whose parity is computed anew.
    fn scrub_parity_reread(&mut self, shard: &dyn ShardIndex, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let (Some(pg), Kind::Scrub(scrub)) = (self.pgs.get(&op.pg), &mut op.kind) else { return };
        let Some(misfit) = scrub.parity.misfits.last() else { return self.scrub_end(shard, id) };
        let (object, sectors) = (scrub.object, misfit.rows);
        let sources: Option<Vec<(u8, usize)>> =
            (0..pg.scheme.copies_needed() as u8).map(|part| Some((part, pg.peer_of_shard(part.into())?))).collect();
        let Some(sources) = sources else {
            // The member was there when shards were compared: the round is about to end.
            return self.scrub_end(shard, id);
        };
        let read = |&(part, peer): &(u8, usize)| ShardRead { part, peer, sectors, got: None };
        let purpose = Purpose::Repair { part: 0, peer: 0 };
        let plan = EcOp::new(purpose, sectors, sources.iter().map(read).collect(), true);
        scrub.parity.failed = false;
        scrub.stage = Stage::Rereading(Box::new(plan));
        for (part, peer) in sources {
            self.send_to_peer(shard, id, peer, ShardOp::Read { object: object.shard(part), sectors });
        }
    }

    /// The data is there, or cannot be had.
    pub(super) fn scrub_parity_rewrite(&mut self, shard: &dyn ShardIndex, id: OpId, plan: &EcOp) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let (Some(pg), Kind::Scrub(scrub)) = (self.pgs.get(&op.pg), &mut op.kind) else { return };
        let Some(misfit) = scrub.parity.misfits.last() else { return };
        let (object, version, scheme) = (scrub.object, scrub.parity.version, pg.scheme);
        let targets: Vec<(u8, Option<usize>)> =
            parts(misfit.parts).map(|part| (part, pg.peer_of_shard(part.into()))).collect();
        let wanted: Vec<u8> = targets.iter().map(|(part, _)| *part).collect();
        let is_complete = plan.reads.iter().all(|read| read.got.is_some());
        let computed = if is_complete { self.compute(scheme, plan, &wanted) } else { Vec::new() };
        let made = targets.into_iter().zip(computed).filter_map(|((part, peer), made)| {
            let (data, crcs) = made.got?;
            Some((peer?, ShardOp::Repair { object: object.shard(part), version, sectors: plan.rows, data, crcs }))
        });
        let repairs: Vec<_> = made.collect();
        if repairs.is_empty() {
            return self.scrub_parity_rewritten(shard, id, false);
        }
        let Some(scrub) = self.scrub_mut(id) else { return };
        scrub.stage = Stage::Rewriting;
        for (peer, repair) in repairs {
            self.send_to_peer(shard, id, peer, repair);
        }
    }

    /// Rows were rewritten, or could not be.
    pub(super) fn scrub_parity_rewritten(&mut self, shard: &dyn ShardIndex, id: OpId, done: bool) {
        let Some(scrub) = self.scrub_mut(id) else { return };
        let Some(misfit) = scrub.parity.misfits.pop() else { return };
        let (object, rows) = (scrub.object, misfit.rows);
        if done && !scrub.parity.failed {
            self.stats.repaired_sectors += u64::from(rows.count * misfit.parts.count_ones());
        } else {
            scrub.unrepaired += u64::from(rows.count);
            let rows = named(&[misfit.rows]);
            self.notice(format!("object {object}: the parity of rows {rows} could not be computed anew"));
        }
        self.scrub_parity_reread(shard, id);
    }
}

impl Scrub {
    /// A member read data for parity to be computed from.
    pub(super) fn parity_read(&mut self, peer: usize, outcome: ShardOutcome) {
        let version = self.parity.version;
        let Stage::Rereading(plan) = &mut self.stage else { return };
        if let ShardOutcome::Read { version: found, data, crcs } = outcome
            && found == version
            && let Some(read) = plan.reads.iter_mut().find(|read| read.peer == peer)
        {
            read.got = Some((data, crcs));
        }
    }

    /// A member rewrote its parity, or did not.
    pub(super) fn parity_written(&mut self, outcome: &ShardOutcome) {
        self.parity.failed |= *outcome != ShardOutcome::Done;
    }
}

impl Pg {
    /// Shards and who has them, as people read it.
    fn named_parts(&self, mask: PartMask) -> String {
        let name = |part: u8| match self.peer_of_shard(part.into()).map(|peer| self.peers()[peer].osd) {
            Some(osd) => format!("shard {part} on osd {osd}"),
            None => format!("shard {part}"),
        };
        parts(mask).map(name).collect::<Vec<_>>().join(", ")
    }
}

/// Says that, and why, parity that does not fit is left as it is.
fn not_rewritten(pg: &Pg, object: ObjectId, misfits: &[&Misfit], suspect: Option<u8>) -> String {
    let rows = named_rows(misfits);
    let suspect = suspect.map(|part| format!(" (all but {} fit each other)", pg.named_parts(1 << part)));
    let suspect = suspect.unwrap_or_default();
    let id = pg.scope().pg;
    format!(
        "object {object}: parity does not fit the data in rows {rows}{suspect}, which of them is wrong is not known: \
         'blockyard pg repair {id} --parity-from-data' computes the parity anew"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn misfit(start: u32, count: u32) -> Misfit {
        Misfit { rows: SectorRange::new(start, count), parts: 5 }
    }

    #[test]
    fn rows_are_rewritten_in_pieces() {
        let found: Vec<_> = pieces(&misfit(3, 130)).collect();
        assert_eq!(found, [misfit(3, 64), misfit(67, 64), misfit(131, 2)]);
        assert_eq!(pieces(&misfit(9, 64)).collect::<Vec<_>>(), [misfit(9, 64)]);
    }

    #[test]
    fn rows_are_named_up_to_a_bound() {
        let all: Vec<_> = (0..20).map(|i| misfit(10 * i, 1 + i % 2)).collect();
        let few: Vec<_> = all.iter().take(3).collect();
        assert_eq!(named_rows(&few), "0, 10-11, 20");
        let many = named_rows(&all.iter().collect::<Vec<_>>());
        assert_eq!(many, "0, 10-11, 20, 30-31, 40, 50-51, 60, 70-71 and more");
    }
}
