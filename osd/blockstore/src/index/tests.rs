//! The index alone: what changes do to objects, digests and checkpoints.

mod memory;

use super::*;
use crate::format::checkpoint::{Before, ContentReader};
use crate::format::log::{Change, Kind};
use cluster_proto::ids::{ClientId, LayerId, PgId, PoolId};
use cluster_proto::layout::PgScope;
use cluster_proto::limits::DIGEST_BUCKETS;
use cluster_proto::shard::{Buckets, Origin};

fn object(index: u32) -> ObjectId {
    ObjectId { pool: PoolId(1), lineage: LayerId(2), layer: LayerId(3), index, part: (index % 3) as u8 }
}

fn write(index: u32, version: u64, sectors: SectorRange, at: u64) -> Change {
    let mut change = Change::new(Kind::Write, object(index), Version(version), Origin::NONE, sectors);
    change.extents.push(Extent::new(sectors, at));
    change.crcs.extend((0..sectors.count).map(|i| (version as u32) << 16 | i));
    change
}

fn scope(index: u32, count: u32) -> PgScope {
    PgScope { pg: PgId { pool: PoolId(1), index }, count }
}

#[test]
fn what_is_kept_of_many_pgs_tells_of_fewer() {
    let mut index = Index::new(4);
    index.set_pool(PoolId(1), 3);
    for i in 0..50 {
        index.apply(&write(i, 5, SectorRange::new(0, 4), u64::from(i) * 4));
    }
    for i in 0..20 {
        index.apply(&Change::new(Kind::Delete, object(i), Version(7), Origin::NONE, SectorRange::new(0, 0)));
        index.apply(&stage(i + 20, 8, SectorRange::new(0, 1), 300 + u64::from(i)));
    }
    let told = |index: &Index, count| -> Vec<_> {
        let of = |scope| (index.digests_of(scope), index.tombstones(scope), index.staged(scope), index.parts(scope));
        (0..count).map(|n| of(scope(n, count))).collect()
    };
    let (one, three) = (told(&index, 1), told(&index, 3));
    assert_eq!((one[0].1.len(), one[0].2.len()), (20, 20));
    assert!(three.iter().all(|(digests, ..)| *digests != [0; DIGEST_BUCKETS]));
    assert!(!index.digests.is_kept(scope(0, 12)));
    // What is not kept is counted.
    let twelve = told(&index, 12);
    index.set_pool(PoolId(1), 12);
    assert_eq!((told(&index, 1), told(&index, 3), told(&index, 12)), (one, three.clone(), twelve.clone()));
    index.apply(&write(44, 9, SectorRange::new(0, 4), 900));
    assert_ne!(told(&index, 3), three);
    index.set_pool(PoolId(1), 3);
    assert_eq!(index.digests.pg_count(PoolId(1)), Some(12), "what is finer serves both");
    let (three, twelve) = (told(&index, 3), told(&index, 12));
    index.digests = DigestTable::default();
    index.set_pool(PoolId(1), 12);
    assert_eq!((told(&index, 3), told(&index, 12)), (three, twelve));
}

#[test]
fn digests_follow_every_change_and_match_a_recount() {
    let mut index = Index::new(4);
    index.set_pool(PoolId(1), 2);
    for i in 0..50 {
        index.apply(&write(i, 5, SectorRange::new(0, 4), u64::from(i) * 4));
        index.apply(&write(i, 6, SectorRange::new(1, 1), 1000 + u64::from(i)));
    }
    for i in 0..20 {
        index.apply(&Change::new(Kind::Delete, object(i), Version(7), Origin::NONE, SectorRange::new(0, 0)));
    }
    for i in 0..10 {
        index.apply(&Change::new(Kind::Collect, object(i), Version(7), Origin::NONE, SectorRange::new(0, 0)));
    }
    let kept: Vec<_> = (0..2).map(|i| index.digests().of(scope(i, 2))).collect();
    index.digests = DigestTable::default();
    index.set_pool(PoolId(1), 2);
    for (i, kept) in kept.iter().enumerate() {
        assert_ne!(*kept, [0; 256]);
        assert_eq!(*kept, index.digests().of(scope(i as u32, 2)));
    }
    let lists: Vec<_> = (0..2).map(|i| index.list(scope(i, 2), &Buckets::ALL)).collect();
    assert_eq!(lists.concat().len(), 40);
    assert_eq!((index.object_count(), index.sector_count()), (40, 120));
}

#[test]
fn overwriting_one_extent_in_place_equals_the_general_way() {
    let mut index = Index::new(1);
    index.set_pool(PoolId(1), 1);
    for start in 0..9 {
        index.apply(&write(0, 1 + u64::from(start), SectorRange::new(start * 3, 2), 100 - u64::from(start) * 10));
    }
    let effect = index.apply(&write(0, 50, SectorRange::new(9, 2), 500));
    assert_eq!(effect.freed.as_slice(), [crate::extent::Run { start: 70, count: 2 }]);
    let view = index.object(&object(0)).expect("stored");
    let parts: Vec<_> = view.parts(SectorRange::new(6, 8)).map(|(e, c)| (e.run().start, c[0] >> 16)).collect();
    assert_eq!((view.version, parts), (Version(50), vec![(80, 3), (500, 50), (60, 5)]));
    let kept = index.digests().of(scope(0, 1));
    index.digests = DigestTable::default();
    index.set_pool(PoolId(1), 1);
    assert_eq!(kept, index.digests().of(scope(0, 1)));
    assert_eq!(index.sector_count(), 18);
}

#[test]
fn however_an_object_breaks_up_each_sector_is_where_it_was_written() {
    const SECTORS: u32 = 64;
    let mut seed = 1u64;
    let mut random = |below: u32| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u32 % below
    };
    for round in 0..40 {
        let mut index = Index::new(1);
        // Where each sector lies, and its checksum.
        let mut model = vec![None; SECTORS as usize];
        let mut next = 0;
        for version in 1..200 {
            let start = random(SECTORS);
            let count = 1 + random(if version == 1 { SECTORS } else { 1 + round % 6 * 3 });
            let sectors = SectorRange::new(start, count.min(SECTORS - start));
            // Now and then the place behind the last one, so that neighbours join.
            next += u64::from(random(3)) * 5;
            let change =
                if random(3) == 0 { stage(0, version, sectors, next) } else { write(0, version, sectors, next) };
            let is_staged = change.kind == Kind::Stage;
            let effect = index.apply(&change);
            let mut replaced = Vec::new();
            for (i, at) in (sectors.start..sectors.end()).zip(next..) {
                let before = model[i as usize].replace((at, (version as u32) << 16 | (i - sectors.start)));
                replaced.extend(before.map(|(at, _)| at));
            }
            next += u64::from(sectors.count);
            let mut freed: Vec<_> = effect.freed.iter().flat_map(|run| run.start..run.end()).collect();
            if is_staged {
                assert_eq!(index.undo(&object(0)).map(|undo| undo.crcs.len()), Some(replaced.len()));
                freed.extend(
                    index
                        .apply(&Change::brief(Kind::Commit, object(0), Version(version)))
                        .freed
                        .iter()
                        .flat_map(|run| run.start..run.end()),
                );
            }
            freed.sort_unstable();
            replaced.sort_unstable();
            assert_eq!(freed, replaced);
            let view = index.object(&object(0)).expect("stored");
            assert_eq!(view.version, Version(version));
            assert!(
                view.extents().zip(view.extents().skip(1)).all(|(a, b)| !a.is_followed_by(b)),
                "all that can is joined"
            );
            let mut held = vec![None; SECTORS as usize];
            for (extent, crcs) in view.parts(SectorRange::new(0, SECTORS)) {
                let (own, run) = (extent.sectors(), extent.run());
                for ((i, at), crc) in (own.start..own.end()).zip(run.start..).zip(crcs) {
                    held[i as usize] = Some((at, *crc));
                }
            }
            assert_eq!(held, model);
            assert_eq!(index.sector_count(), model.iter().flatten().count() as u64);
        }
    }
}

#[test]
fn a_partition_survives_its_checkpoint() {
    let mut index = Index::new(2);
    for i in 0..30 {
        index.apply(&write(i, 5, SectorRange::new(i, 3), u64::from(i) * 3));
    }
    index.apply(&Change::new(Kind::Delete, object(3), Version(7), Origin::NONE, SectorRange::new(0, 0)));
    for i in 10..20 {
        index.apply(&stage(i, 8, SectorRange::new(i + 1, 4), 200 + u64::from(i) * 4));
    }
    index.apply(&stage(3, 9, SectorRange::new(0, 1), 190));
    index.apply(&stage(99, 9, SectorRange::new(0, 0), 0));
    index.set_pool(PoolId(1), 3);
    let mut loaded = Index::new(2);
    loaded.set_pool(PoolId(1), 3);
    for partition in 0..2 {
        let content = index.encode(partition);
        assert!(content.len() as u64 <= index.partition_bytes(partition) + 24);
        let mut reader = ContentReader::new(&content).expect("sensible");
        while let Some(stored) = reader.object().expect("sensible") {
            assert_eq!(loaded.load(1 - partition, &stored, 1000), Err(Senseless), "the wrong partition");
            loaded.load(partition, &stored, 1000).expect("sensible");
            assert_eq!(loaded.load(partition, &stored, 1000), Err(Senseless), "twice");
        }
        while let Some(undo) = reader.undo().expect("sensible") {
            assert_eq!(loaded.load_undo(1 - partition, &undo, 1000), Err(Senseless), "the wrong partition");
            loaded.load_undo(partition, &undo, 1000).expect("sensible");
            assert_eq!(loaded.load_undo(partition, &undo, 1000), Err(Senseless), "twice");
        }
    }
    for i in (0..30).chain([99]) {
        assert_eq!(index.undo(&object(i)), loaded.undo(&object(i)));
        assert_eq!(index.head(&object(i)), loaded.head(&object(i)));
        let (a, b) = (index.object(&object(i)).expect("stored"), loaded.object(&object(i)).expect("loaded"));
        assert_eq!((a.version, a.deleted, a.words), (b.version, b.deleted, b.words));
    }
    let counts = |i: &Index| (i.sector_count(), i.kept_count(), i.staged_count(), i.undo_bytes);
    assert_eq!(counts(&loaded), counts(&index));
    assert_eq!((index.kept_count(), index.staged_count()), (20, 12));
    for pg in (0..3).map(|index| scope(index, 3)) {
        assert_eq!(index.digests().of(pg), loaded.digests().of(pg));
    }
}

#[test]
fn a_repair_of_another_version_frees_its_own_data() {
    let mut index = Index::new(1);
    index.apply(&write(0, 5, SectorRange::new(0, 4), 0));
    let mut repair = write(0, 4, SectorRange::new(1, 1), 9);
    repair.kind = Kind::Repair;
    let effect = index.apply(&repair);
    assert!(effect.refused && effect.freed[0].start == 9);
    repair.version = Version(5);
    let effect = index.apply(&repair);
    assert!(!effect.refused && effect.freed[0].start == 1);
    assert_eq!(index.head(&object(0)).map(|h| h.version), Some(Version(5)));
}

fn stage(index: u32, version: u64, sectors: SectorRange, at: u64) -> Change {
    let mut change = Change { kind: Kind::Stage, ..write(index, version, SectorRange::new(0, 1), at) };
    (change.sectors, change.extents, change.crcs) = (sectors, Default::default(), Default::default());
    if sectors.count > 0 {
        change.extents.push(Extent::new(sectors, at));
        change.crcs.extend((0..sectors.count).map(|i| (version as u32) << 16 | i));
    }
    change
}

fn rollback(index: u32, version: u64) -> Change {
    Change::new(Kind::Rollback, object(index), Version(version), Origin::NONE, SectorRange::new(0, 1024))
}

/// Everything about an object, comparable.
fn shown(index: &Index, n: u32) -> Option<(ObjectHead, Vec<Extent>, Vec<u32>)> {
    let view = index.object(&object(n))?;
    Some((index.head(&object(n))?, view.extents().collect(), view.crcs().to_vec()))
}

#[test]
fn a_rollback_leads_back_exactly() {
    let mut index = Index::new(2);
    index.set_pool(PoolId(1), 1);
    let pg = scope(0, 1);
    index.apply(&write(0, 5, SectorRange::new(2, 6), 100));
    index.apply(&write(1, 5, SectorRange::new(0, 1), 120));
    index.apply(&Change::new(Kind::Delete, object(1), Version(6), Origin::NONE, SectorRange::new(0, 1024)));
    for (n, sectors) in
        [(0, 4..6), (0, 0..3), (0, 7..20), (0, 2..8), (0, 0..0), (1, 3..5), (1, 0..0), (2, 0..9), (2, 0..0)]
    {
        let sectors = SectorRange::new(sectors.start, sectors.end - sectors.start);
        let before = (shown(&index, n), index.digests().of(pg), index.sector_count(), index.object_count());
        assert!(index.apply(&stage(n, 9, sectors, 500)).freed.is_empty());
        let over = before.0.as_ref().map_or(Version::NONE, |(head, ..)| head.version);
        let head = index.head(&object(n)).expect("staged");
        assert_eq!((head.version, head.deleted, head.staged_over), (Version(9), false, Some(over)));
        assert_ne!(index.digests().of(pg), before.1);
        assert_eq!(index.apply(&rollback(n, 8)), Effect::default(), "another version");
        let freed: u32 = index.apply(&rollback(n, 9)).freed.iter().map(|r| r.count).sum();
        assert_eq!(freed, sectors.count);
        let after = (shown(&index, n), index.digests().of(pg), index.sector_count(), index.object_count());
        assert_eq!(after, before, "{n} {sectors:?}");
        assert_eq!((index.kept_count(), index.staged_count(), index.undo_bytes), (0, 0, 0));
    }
}

#[test]
fn whatever_ends_a_staged_change_frees_what_it_replaced() {
    let whole = SectorRange::new(0, 1024);
    let ends = [
        (Change::brief(Kind::Commit, object(0), Version(9)), vec![102], Some((9, 6))),
        (write(0, 10, SectorRange::new(4, 1), 600), vec![102, 502], Some((10, 6))),
        (stage(0, 10, SectorRange::new(4, 1), 600), vec![102], Some((10, 6))),
        (
            Change::new(Kind::Zero, object(0), Version(10), Origin::NONE, SectorRange::new(4, 1)),
            vec![102, 502],
            Some((10, 5)),
        ),
        (
            Change::new(Kind::Delete, object(0), Version(10), Origin::NONE, whole),
            vec![100, 102, 105, 500],
            Some((10, 0)),
        ),
        (
            Change::new(Kind::Restore, object(0), Version(10), Origin::NONE, whole),
            vec![100, 102, 105, 500],
            Some((10, 0)),
        ),
        (Change::brief(Kind::Drop, object(0), Version(9)), vec![100, 102, 105, 500], None),
        (Change::brief(Kind::Drop, object(0), Version(5)), vec![], Some((9, 6))),
        (Change::brief(Kind::Commit, object(0), Version(5)), vec![], Some((9, 6))),
        (Change::brief(Kind::Collect, object(0), Version(9)), vec![], Some((9, 6))),
    ];
    for (end, mut freed, left) in ends {
        let mut index = Index::new(1);
        index.apply(&write(0, 5, SectorRange::new(0, 6), 100));
        index.apply(&stage(0, 9, SectorRange::new(2, 3), 500));
        let effect = index.apply(&end);
        let mut got: Vec<_> = effect.freed.iter().map(|r| r.start).collect();
        got.sort_unstable();
        freed.sort_unstable();
        assert_eq!(got, freed, "{end:?}");
        let now = shown(&index, 0).map(|(head, _, crcs)| (head.version.0, crcs.len()));
        assert_eq!(now, left, "{end:?}");
        let counted: u32 = effect.freed.iter().map(|r| r.count).sum();
        let own: u64 = end.extents.iter().map(|e| u64::from(e.run().count)).sum();
        assert_eq!(index.sector_count() + index.kept_count() + u64::from(counted), 9 + own, "{end:?}");
    }
}

#[test]
fn repairs_reach_what_is_shown_and_not_what_is_kept() {
    let mut index = Index::new(1);
    index.apply(&write(0, 5, SectorRange::new(0, 6), 100));
    let before = shown(&index, 0);
    index.apply(&stage(0, 9, SectorRange::new(2, 3), 500));
    let repair = Change { kind: Kind::Repair, ..write(0, 9, SectorRange::new(3, 1), 700) };
    assert_eq!(index.apply(&repair).freed[0].start, 501);
    assert_eq!(index.head(&object(0)).and_then(|h| h.staged_over), Some(Version(5)));
    index.apply(&rollback(0, 9));
    assert_eq!(shown(&index, 0), before);
    index.apply(&Change::new(Kind::Delete, object(0), Version(10), Origin::NONE, SectorRange::new(0, 1024)));
    let repair = Change { kind: Kind::Repair, ..write(0, 10, SectorRange::new(3, 1), 700) };
    let effect = index.apply(&repair);
    assert!(effect.refused && effect.freed[0].start == 700, "a tombstone has nothing to repair");
}

#[test]
fn senseless_undos_are_refused() {
    let mut index = Index::new(1);
    index.apply(&write(0, 5, SectorRange::new(0, 6), 100));
    index.apply(&Change::new(Kind::Delete, object(1), Version(6), Origin::NONE, SectorRange::new(0, 1024)));
    let layer = LayerPart::of(&object(0));
    let origin = Origin { client: ClientId(1), seq: 2, floor: 0 };
    let good = Undo::of_nothing(Before::Live, Version(4), &origin);
    let with = |sectors: SectorRange, at: u64| {
        let mut undo = Undo { sectors: SectorRange::new(2, 3), ..good.clone() };
        undo.extents.push(Extent::new(sectors, at));
        undo.crcs.extend(sectors.iter());
        undo
    };
    let bad = [
        (0, Undo { version: Version(5), ..good.clone() }),
        (0, Undo { version: Version::NONE, ..good.clone() }),
        (0, Undo { before: Before::Absent, ..good.clone() }),
        (0, with(SectorRange::new(4, 2), 50)),
        (0, with(SectorRange::new(2, 3), 998)),
        (0, Undo { before: Before::Deleted, ..with(SectorRange::new(2, 3), 50) }),
        (0, Undo { crcs: Default::default(), ..with(SectorRange::new(2, 3), 50) }),
        (1, good.clone()),
        (3, good.clone()),
    ];
    let mut load = |n: u32, undo: &Undo| {
        let mut writer = ContentWriter::default();
        let number = writer.layer(LayerPart { part: (n % 3) as u8, ..layer });
        writer.undo(number, undo, n);
        let bytes = writer.finish();
        let stored = ContentReader::new(&bytes).expect("sensible").undo().expect("sensible").expect("one");
        index.load_undo(0, &stored, 1000)
    };
    for (n, undo) in bad {
        assert_eq!(load(n, &undo), Err(Senseless), "{undo:?}");
    }
    assert_eq!(load(0, &with(SectorRange::new(3, 2), 50)), Ok(()));
}

#[test]
fn walking_and_scanning_list_the_same() {
    for pg_count in [1, 3, 64] {
        let mut index = Index::new(8);
        for i in 0..2000 {
            let lineage = LayerId([2, 77, 901][i as usize % 3]);
            let own = ObjectId { lineage, layer: LayerId(3 + u64::from(i % 7)), index: i * 3, ..object(i) };
            index.apply(&Change::new(Kind::Zero, own, Version(5), Origin::NONE, SectorRange::new(0, 1)));
        }
        index.set_pool(PoolId(1), pg_count);
        let some = Buckets([0x8000_0000_0000_1001, 0, 7, 1 << 40]);
        let mut count = 0;
        for pg in (0..pg_count).map(|index| PgId { pool: PoolId(1), index }) {
            for buckets in [Buckets::ALL, some] {
                let sorted = |mut heads: Vec<ObjectHead>| {
                    heads.sort_unstable();
                    heads
                };
                let all = index.objects().map(|(head, ..)| head);
                let all = all.filter(|h| h.object.pg(pg_count) == pg && buckets.contains(digest_bucket(&h.object)));
                let all = sorted(all.collect());
                assert_eq!(sorted(index.walk(pg, pg_count, &buckets)), all);
                assert_eq!(sorted(index.scan(pg, pg_count, &buckets)), all);
                count += all.len();
            }
            assert!(index.list(PgScope { pg, count: pg_count }, &Buckets::default()).is_empty());
        }
        assert!(count > 2020, "{count}");
    }
}
