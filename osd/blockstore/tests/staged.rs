//! Changes that can be taken back, and the other operations of erasure-coded pools and of part-wise recovery.

mod support;

use blockstore::{Durability, StoreState};
use buffer::Buffer;
use cluster_proto::crc::sector_crcs;
use cluster_proto::ids::{ClientId, ObjectId, PgId, PoolId};
use cluster_proto::shard::{
    Allocation, AppliedRequest, Buckets, ObjectContent, ObjectHead, Origin, RequestState, ShardIndex, ShardOp,
    ShardOutcome, Unreadable,
};
use cluster_proto::{PgScope, SECTOR, SectorRange, Status, Version};
use support::device::Fate;
use support::driver::{Driver, formatted};
use support::model::{filled, object, stage, stage_hole, word, write};

const BOTH: [Durability; 2] = [Durability::WriteThrough, Durability::Flush];
const DONE: ShardOutcome = ShardOutcome::Done;

fn fresh(bytes: u64, durability: Durability) -> Driver {
    Driver::open(formatted(bytes, 128 << 10, durability, 3), 1)
}

fn range(start: u32, count: u32) -> SectorRange {
    SectorRange::new(start, count)
}

fn put(n: u32, version: u64, sectors: SectorRange) -> ShardOp {
    write(object(n), Version(version), sectors, Origin::NONE)
}

fn stage_by(n: u32, version: u64, sectors: SectorRange, client: u64) -> ShardOp {
    let origin = Origin { client: ClientId(client), seq: version, floor: 0 };
    stage(object(n), Version(version), sectors, origin)
}

fn staged(n: u32, version: u64, sectors: SectorRange) -> ShardOp {
    stage(object(n), Version(version), sectors, Origin::NONE)
}

fn commit(n: u32, version: u64) -> ShardOp {
    ShardOp::Commit { object: object(n), version: Version(version) }
}

fn rollback(n: u32, version: u64) -> ShardOp {
    ShardOp::Rollback { object: object(n), version: Version(version) }
}

fn drop_op(n: u32, version: u64) -> ShardOp {
    ShardOp::Drop { object: object(n), version: Version(version) }
}

fn delete(n: u32, version: u64) -> ShardOp {
    ShardOp::Delete { object: object(n), version: Version(version), origin: Origin::NONE }
}

fn head(d: &Driver, n: u32) -> Option<(u64, bool, Option<u64>)> {
    d.store.head(&object(n)).map(|h| (h.version.0, h.deleted, h.staged_over.map(|v| v.0)))
}

/// Version and content as a fetch shows it: sector, version that wrote it.
fn content(d: &mut Driver, n: u32) -> (u64, Vec<(u32, u64)>) {
    let ShardOutcome::Fetched { version, content } = d.call(ShardOp::Fetch { object: object(n) }) else {
        panic!("{n}")
    };
    let words = content.data.chunks_exact(4096).map(|s| u64::from_le_bytes(s[..8].try_into().expect("eight")) >> 16);
    (version.0, content.extents.iter().flat_map(|e| e.iter()).zip(words).collect())
}

/// The power fails with nothing in flight; what is safe stays.
fn reopened(d: &Driver) -> Driver {
    Driver::open(d.device.after_cut(&vec![Fate::Lost; d.device.cache.len()]), 2)
}

/// Writes to other objects until every partition has a new checkpoint.
fn checkpointed(d: &mut Driver, version: &mut u64) {
    let before = d.store.stats().checkpoints;
    while d.store.stats().checkpoints < before + 12 {
        *version += 1;
        assert_eq!(d.call(put(40, *version, range(0, 1))), DONE);
    }
}

#[test]
fn a_staged_change_shows_and_can_be_taken_back_or_kept() {
    for durability in BOTH {
        for keep in [true, false] {
            let mut d = fresh(3 << 20, durability);
            assert_eq!(d.call(put(0, 1, range(0, 4))), DONE);
            assert_eq!(d.call(stage_by(0, 2, range(2, 4), 9)), DONE);
            let new = vec![(0, 1), (1, 1), (2, 2), (3, 2), (4, 2), (5, 2)];
            assert_eq!(head(&d, 0), Some((2, false, Some(1))));
            assert_eq!(content(&mut d, 0), (2, new.clone()));
            assert_eq!(d.store.request(ClientId(9), 2), RequestState::Applied(Version(2)));
            let runs = d.store.allocation(&object(0), range(0, 8));
            assert_eq!(runs, [Allocation { count: 6, data: true }, Allocation { count: 2, data: false }]);
            assert_eq!((d.store.stats().staged, d.store.stats().kept_sectors), (1, 2));
            assert_eq!(d.call(rollback(0, 1)), DONE, "another version: no effect");
            assert_eq!(d.call(commit(0, 3)), DONE, "another version: no effect");
            assert_eq!(head(&d, 0), Some((2, false, Some(1))));
            assert_eq!(d.call(if keep { commit(0, 2) } else { rollback(0, 2) }), DONE);
            // Late duplicates of either.
            assert_eq!(d.call(rollback(0, 2)), DONE);
            assert_eq!(d.call(commit(0, 2)), DONE);
            let old = vec![(0, 1), (1, 1), (2, 1), (3, 1)];
            for _ in 0..2 {
                assert_eq!(content(&mut d, 0), if keep { (2, new.clone()) } else { (1, old.clone()) });
                assert_eq!(head(&d, 0), Some((if keep { 2 } else { 1 }, false, None)));
                let known = if keep { RequestState::Applied(Version(2)) } else { RequestState::Unknown };
                assert_eq!(d.store.request(ClientId(9), 2), known);
                assert_eq!((d.store.stats().staged, d.store.stats().kept_sectors), (0, 0));
                d = reopened(&d);
            }
        }
    }
}

#[test]
fn what_a_change_replaced_outlives_crashes_and_checkpoints() {
    for durability in BOTH {
        let mut d = fresh(3 << 20, durability);
        let mut version = 100;
        assert_eq!(d.call(put(0, 1, range(0, 3))), DONE);
        assert_eq!(d.call(stage_by(0, 2, range(1, 1), 9)), DONE);
        assert_eq!(d.call(stage_by(1, 3, range(0, 2), 9)), DONE);
        assert_eq!(d.call(delete(2, 4)), DONE);
        assert_eq!(d.call(stage_by(2, 5, range(0, 0), 9)), DONE);
        for round in 0..3 {
            if round > 0 {
                checkpointed(&mut d, &mut version);
                d.rest();
            }
            d = reopened(&d);
            assert!(round == 0 || d.store.stats().replayed < 100, "most came from checkpoints");
            let heads = [head(&d, 0), head(&d, 1), head(&d, 2)];
            assert_eq!(heads, [Some((2, false, Some(1))), Some((3, false, Some(0))), Some((5, false, Some(4)))]);
        }
        for (n, version) in [(0, 2), (1, 3), (2, 5)] {
            assert_eq!(d.store.request(ClientId(9), version), RequestState::Applied(Version(version)));
            assert_eq!(d.call(rollback(n, version)), DONE);
        }
        for _ in 0..2 {
            assert_eq!([head(&d, 0), head(&d, 1), head(&d, 2)], [Some((1, false, None)), None, Some((4, true, None))]);
            assert_eq!(content(&mut d, 0), (1, vec![(0, 1), (1, 1), (2, 1)]));
            assert!([2, 3, 5].iter().all(|&seq| d.store.request(ClientId(9), seq) == RequestState::Unknown));
            d = reopened(&d);
        }
    }
}

#[test]
fn a_later_change_commits_and_what_replaces_the_object_drops() {
    let zero = |n: u32, v: u64| {
        let (object, version, sectors) = (object(n), Version(v), range(1, 1));
        ShardOp::Zero { object, version, sectors, origin: Origin::NONE, lazy: false }
    };
    let patch = ShardOp::Patch {
        object: object(0),
        base: Version(2),
        version: Version(3),
        sectors: vec![range(1, 1)],
        content: Box::default(),
    };
    let restore = ShardOp::Restore { object: object(0), version: Version(3), content: Box::default() };
    let old = [(0, 2), (1, 1)];
    for (op, sectors) in [
        (staged(0, 3, range(1, 1)), vec![(0, 2), (1, 3)]),
        (put(0, 3, range(1, 1)), vec![(0, 2), (1, 3)]),
        (zero(0, 3), vec![(0, 2)]),
        (patch, vec![(0, 2)]),
        (delete(0, 3), vec![]),
        (restore, vec![]),
    ] {
        let mut d = fresh(3 << 20, Durability::Flush);
        assert_eq!(d.call(put(0, 1, range(0, 2))), DONE);
        assert_eq!(d.call(staged(0, 2, range(0, 1))), DONE);
        assert_eq!(content(&mut d, 0), (2, old.to_vec()));
        let is_stage = matches!(op, ShardOp::Stage { .. });
        assert_eq!(d.call(op.clone()), DONE, "{op:?}");
        assert_eq!(d.call(rollback(0, 2)), DONE);
        assert_eq!(content(&mut d, 0), (3, sectors), "{op:?}");
        assert_eq!(d.store.stats().kept_sectors, u64::from(is_stage), "{op:?}");
        d.rest();
        let stats = d.store.stats();
        let all = stats.free_sectors + stats.used_sectors + stats.kept_sectors;
        assert_eq!(all, d.store.superblock().expect("open").geometry.data_sectors, "nothing leaked: {op:?}");
        assert_eq!(d.call(rollback(0, 3)), DONE);
        assert!(!is_stage || content(&mut d, 0) == (2, old.to_vec()));
    }
}

#[test]
fn a_rollback_waits_for_the_change_it_takes_back() {
    let mut d = fresh(3 << 20, Durability::Flush);
    assert_eq!(d.call(put(0, 1, range(0, 2))), DONE);
    let tags = [
        d.submit(stage_by(0, 2, range(0, 1), 9)),
        d.submit(rollback(0, 2)),
        d.submit(stage_by(0, 3, range(1, 1), 9)),
        d.submit(commit(0, 3)),
        d.submit(drop_op(1, 0)),
        d.submit(put(0, 4, range(2, 1))),
    ];
    d.run();
    assert!(tags.iter().all(|tag| d.outcomes[tag] == DONE));
    assert!(d.finished.ends_with(&tags));
    assert_eq!(content(&mut d, 0), (4, vec![(0, 1), (1, 3), (2, 4)]));
    assert_eq!(d.store.request(ClientId(9), 2), RequestState::Unknown);
    assert_eq!(d.store.request(ClientId(9), 3), RequestState::Applied(Version(3)));
    // The version it had before counts again.
    assert_eq!(d.call(staged(0, 9, range(0, 1))), DONE);
    let tags = [d.submit(rollback(0, 9)), d.submit(put(0, 5, range(0, 1)))];
    d.run();
    assert!(tags.iter().all(|tag| d.outcomes[tag] == DONE));
}

#[test]
fn commits_share_log_blocks() {
    let mut d = Driver::open(formatted(64 << 20, 1 << 20, Durability::WriteThrough, 3), 1);
    for n in 0..80 {
        assert_eq!(d.call(staged(n, 1, range(0, 1))), DONE);
    }
    let before = d.store.stats();
    let tags: Vec<_> = (0..80).map(|n| d.submit(commit(n, 1))).collect();
    d.run();
    assert!(tags.iter().all(|tag| d.outcomes[tag] == DONE));
    let after = d.store.stats();
    assert_eq!(after.log_bytes_written - before.log_bytes_written, 4096);
    assert_eq!((after.data_writes, after.staged), (before.data_writes, 0));
}

#[test]
fn a_full_store_can_always_commit_and_roll_back() {
    for durability in BOTH {
        let mut d = fresh(1 << 20, durability);
        let mut version = 1;
        for n in 0..400 {
            version += 1;
            d.call(put(n / 8, version, range(n % 8, 1)));
        }
        assert_eq!(d.call(put(60, version, range(0, 2))), ShardOutcome::Failed(Status::NoSpace), "full");
        let used = d.store.stats().used_sectors;
        for round in 0..40u64 {
            // Overwrites by staged changes, all at once, as many as pass.
            let tags: Vec<_> = (0..20)
                .map(|n| (n, version + u64::from(n) + 1))
                .map(|(n, v)| (n, v, d.submit(staged(n, v, range(n % 8, 1)))))
                .collect();
            version += 20;
            d.run();
            let (mut passed, mut refused) = (Vec::new(), 0);
            for (n, v, tag) in tags {
                match &d.outcomes[&tag] {
                    ShardOutcome::Done => passed.push((n, v)),
                    ShardOutcome::Failed(Status::NoSpace) => refused += 1,
                    other => panic!("{other:?}"),
                }
            }
            assert!(passed.len() >= 4, "a little room is kept for overwrites: {passed:?}");
            assert!(refused > 0 || round > 0 || d.store.stats().free_sectors > 0);
            assert_eq!(d.store.stats().kept_sectors, passed.len() as u64);
            for (i, &(n, v)) in passed.iter().enumerate() {
                let op = if (i as u64 + round).is_multiple_of(2) { commit(n, v) } else { rollback(n, v) };
                assert_eq!(d.call(op), DONE);
            }
            assert_eq!((d.store.stats().kept_sectors, d.store.stats().used_sectors), (0, used));
            d.rest();
        }
    }
}

/// A staged change without data: needs no sector, frees with its commit, and until then what it replaced is promised to its rollback.
#[test]
fn a_full_store_can_stage_holes() {
    for durability in BOTH {
        let mut d = fresh(1 << 20, durability);
        let (mut objects, mut version) = (0, 1);
        while d.call(put(objects, 1, range(0, 8))) == DONE {
            objects += 1;
        }
        assert!(objects > 8, "some fit: {objects}");
        let hole = |n: u32, version: u64| stage_hole(object(n), Version(version), range(2, 4), Origin::NONE);
        let before = d.store.stats();
        for ends_by in [rollback as fn(u32, u64) -> ShardOp, commit] {
            version += 1;
            assert_eq!(d.call(hole(0, version)), DONE);
            let staged = d.store.stats();
            assert_eq!((staged.kept_sectors, staged.used_sectors), (4, before.used_sectors - 4));
            assert_eq!(content(&mut d, 0), (version, vec![(0, 1), (1, 1), (6, 1), (7, 1)]));
            assert_eq!(d.call(put(objects, version, range(0, 4))), ShardOutcome::Failed(Status::NoSpace));
            d.rest();
            d = reopened(&d);
            assert_eq!(d.call(put(objects, version, range(0, 4))), ShardOutcome::Failed(Status::NoSpace));
            assert_eq!(d.call(ends_by(0, version)), DONE);
            d.rest();
        }
        assert_eq!(content(&mut d, 0), (version, vec![(0, 1), (1, 1), (6, 1), (7, 1)]));
        assert_eq!(d.store.stats().used_sectors, before.used_sectors - 4);
        assert_eq!(d.call(put(objects, version, range(0, 4))), DONE, "there is room again");
    }
}

#[test]
fn too_many_staged_objects_are_busy_and_commits_help() {
    let mut d = Driver::open(formatted(4 << 20, 128 << 10, Durability::Flush, 3), 1);
    let most = d.store.superblock().expect("open").geometry.staged_max() as u32;
    for n in 0..most {
        assert_eq!(d.call(staged(n, 1, range(0, 0))), DONE);
    }
    assert_eq!(d.call(staged(most, 1, range(0, 0))), ShardOutcome::Failed(Status::Busy));
    assert_eq!(d.call(put(most, 1, range(0, 1))), DONE, "other changes are not concerned");
    assert_eq!(d.call(commit(0, 1)), DONE);
    assert_eq!(d.call(staged(most, 2, range(0, 0))), DONE);
}

#[test]
fn a_staged_change_that_cannot_be_written_changes_nothing() {
    let mut d = fresh(3 << 20, Durability::Flush);
    let data = d.store.superblock().expect("open").geometry.data_offset;
    assert_eq!(d.call(put(0, 1, range(0, 2))), DONE);
    assert_eq!(d.call(stage_by(0, 2, range(0, 1), 9)), DONE);
    d.device.bad_ranges.push(data..u64::MAX);
    let (failed, late) = (d.submit(stage_by(0, 3, range(1, 1), 9)), d.submit(commit(0, 3)));
    let empty = d.submit(stage_by(1, 1, range(0, 0), 9));
    d.run();
    assert_eq!(d.outcomes[&failed], ShardOutcome::Failed(Status::Io));
    assert_eq!((&d.outcomes[&late], &d.outcomes[&empty]), (&DONE, &DONE));
    for durable in [false, true] {
        assert_eq!(head(&d, 0), Some((2, false, Some(1))), "not even the earlier change was committed");
        assert_eq!(head(&d, 1), Some((1, false, Some(0))));
        assert_eq!(d.store.request(ClientId(9), 3), RequestState::Unknown);
        if !durable {
            d.device.bad_ranges.clear();
            d = reopened(&d);
        }
    }
    assert_eq!(d.call(rollback(0, 3)), DONE);
    assert_eq!(d.call(rollback(0, 2)), DONE);
    assert_eq!(content(&mut d, 0), (1, vec![(0, 1), (1, 1)]));
}

#[test]
fn what_waits_for_a_change_that_fails_finds_the_object_as_it_is() {
    let mut d = fresh(3 << 20, Durability::Flush);
    let data = d.store.superblock().expect("open").geometry.data_offset;
    assert_eq!(d.call(put(0, 1, range(0, 2))), DONE);
    assert_eq!(d.call(stage_by(1, 1, range(0, 1), 9)), DONE);
    d.device.bad_ranges.push(data..u64::MAX);
    let tags = [
        d.submit(put(0, 2, range(0, 1))),
        d.submit(patch(0, 2, 3, &[range(1, 1)], &[])),
        d.submit(put(1, 2, range(0, 1))),
        d.submit(rollback(1, 1)),
        d.submit(put(0, 3, range(0, 1))),
        d.submit(drop_op(0, 1)),
    ];
    d.run();
    let outcomes: Vec<_> = tags.iter().map(|t| d.outcomes[t].clone()).collect();
    let io = ShardOutcome::Failed(Status::Io);
    let retry = ShardOutcome::Failed(Status::Retry);
    assert_eq!(outcomes, [io.clone(), retry.clone(), io, DONE, retry, DONE]);
    for _ in 0..2 {
        assert_eq!((head(&d, 0), head(&d, 1)), (None, None));
        assert_eq!(d.store.request(ClientId(8), 3), RequestState::Unknown);
        assert_eq!(d.store.request(ClientId(9), 1), RequestState::Unknown);
        d = reopened(&d);
    }
}

#[test]
fn a_staged_change_that_moved_can_be_taken_back() {
    let mut d = fresh(3 << 20, Durability::Flush);
    let data = d.store.superblock().expect("open").geometry.data_offset;
    assert_eq!(d.call(put(0, 1, range(0, 2))), DONE);
    // The next sectors of the device are bad.
    d.device.bad_ranges.push(data + 2 * 4096..data + 3 * 4096);
    assert_eq!(d.call(staged(0, 2, range(0, 2))), DONE);
    assert_eq!(d.store.stats().bad_sectors, 2);
    d = reopened(&d);
    assert_eq!(content(&mut d, 0), (2, vec![(0, 2), (1, 2)]));
    assert_eq!(d.call(rollback(0, 2)), DONE);
    assert_eq!(content(&mut d, 0), (1, vec![(0, 1), (1, 1)]));
}

#[test]
fn damage_of_what_is_kept_is_found_when_it_is_shown_again() {
    let mut d = fresh(3 << 20, Durability::Flush);
    let data = d.store.superblock().expect("open").geometry.data_offset;
    assert_eq!(d.call(put(0, 1, range(0, 2))), DONE);
    assert_eq!(d.call(staged(0, 2, range(0, 2))), DONE);
    d.rest();
    d.device.medium.flip(data + 4096 + 77);
    assert_eq!(content(&mut d, 0).0, 2);
    assert_eq!(d.call(rollback(0, 2)), DONE);
    let ShardOutcome::Fetched { version: Version(1), content } = d.call(ShardOp::Fetch { object: object(0) }) else {
        panic!("the object is there")
    };
    let [first, second] = [0, 1].map(|s| filled([word(Version(1), s)].into_iter()));
    assert_eq!(content.unreadable, [Unreadable { sector: 1, crc: sector_crcs(&second)[0] }]);
    assert_eq!(content.data[..], [&first[..], &[0; SECTOR]].concat());
    let outcome = d.call(ShardOp::Read { object: object(0), sectors: range(0, 2) });
    assert!(matches!(outcome, ShardOutcome::Corrupt { sectors, .. } if sectors.as_slice() == [range(1, 1)]));
}

/// A patch of these ranges; data only in `extents`.
fn patch(n: u32, base: u64, version: u64, sectors: &[SectorRange], extents: &[SectorRange]) -> ShardOp {
    let data = filled(extents.iter().flat_map(|e| e.iter()).map(|s| word(Version(version), s)));
    let crcs = sector_crcs(&data);
    let requests = vec![AppliedRequest { client: ClientId(8), seq: version, version: Version(version) }];
    let content = ObjectContent { extents: extents.to_vec(), data, crcs, requests, ..ObjectContent::default() };
    ShardOp::Patch {
        object: object(n),
        base: Version(base),
        version: Version(version),
        sectors: sectors.to_vec(),
        content: content.into(),
    }
}

#[test]
fn a_patch_brings_exactly_its_base_forward() {
    let mut d = fresh(3 << 20, Durability::Flush);
    assert_eq!(d.call(put(0, 5, range(0, 6))), DONE);
    let sectors = [range(1, 1), range(2, 1), range(4, 4)];
    let refused = d.call(patch(0, 4, 9, &sectors, &[]));
    assert_eq!(refused, ShardOutcome::Failed(Status::Retry));
    assert_eq!(d.store.request(ClientId(8), 9), RequestState::Unknown);
    assert_eq!(d.call(patch(0, 5, 9, &sectors, &[range(1, 2), range(7, 1)])), DONE);
    for _ in 0..2 {
        assert_eq!(content(&mut d, 0), (9, vec![(0, 5), (1, 9), (2, 9), (3, 5), (7, 9)]));
        assert_eq!(d.store.request(ClientId(8), 9), RequestState::Applied(Version(9)));
        d = reopened(&d);
    }
    // It waits for what is pending, and then fits or does not.
    let tags = [
        d.submit(put(0, 10, range(0, 1))),
        d.submit(patch(0, 9, 11, &[range(0, 1)], &[])),
        d.submit(patch(0, 10, 12, &[range(0, 1)], &[])),
        d.submit(patch(0, 12, 13, &[], &[])),
    ];
    d.run();
    let outcomes: Vec<_> = tags.iter().map(|t| d.outcomes[t].clone()).collect();
    assert_eq!(outcomes, [DONE, ShardOutcome::Failed(Status::Retry), DONE, DONE]);
    assert_eq!(content(&mut d, 0), (13, vec![(1, 9), (2, 9), (3, 5), (7, 9)]));
    // An object that does not exist has no version.
    assert_eq!(d.call(patch(1, 0, 2, &[range(3, 1)], &[range(3, 1)])), DONE);
    assert_eq!(content(&mut d, 1), (2, vec![(3, 2)]));
}

#[test]
fn parts_fetched_and_patched_make_a_copy_equal() {
    let mut d = fresh(3 << 20, Durability::Flush);
    for (v, sectors) in [(1, range(0, 10)), (2, range(3, 2)), (3, range(12, 3)), (4, range(14, 4))] {
        assert_eq!(d.call(put(0, v, sectors)), DONE);
    }
    let zero = ShardOp::Zero {
        object: object(0),
        version: Version(5),
        sectors: range(6, 2),
        origin: Origin::NONE,
        lazy: false,
    };
    assert_eq!(d.call(zero), DONE);
    // Part 1 of the same object missed everything after the first write.
    assert_eq!(object(1), object(0).shard(1));
    assert_eq!(d.call(put(1, 1, range(0, 10))), DONE);
    let sectors = vec![range(3, 2), range(6, 2), range(11, 7)];
    let fetched = d.call(ShardOp::FetchPart { object: object(0), sectors: sectors.clone() });
    let ShardOutcome::Fetched { version: Version(5), content: part } = fetched else { panic!("{fetched:?}") };
    assert_eq!(part.extents, [range(3, 2), range(12, 6)]);
    let (base, version) = (Version(1), Version(5));
    assert_eq!(d.call(ShardOp::Patch { object: object(1), base, version, sectors, content: part }), DONE);
    assert_eq!(content(&mut d, 1), content(&mut d, 0));
    let whole = |d: &mut Driver, sectors| d.call(ShardOp::FetchPart { object: object(0), sectors });
    assert_eq!(whole(&mut d, vec![range(0, 1024)]), d.call(ShardOp::Fetch { object: object(0) }));
    let none = whole(&mut d, vec![]);
    assert!(matches!(none, ShardOutcome::Fetched { version: Version(5), content } if content.extents.is_empty()));
}

#[test]
fn parts_of_one_object_are_strangers_that_share_a_pg() {
    let mut d = fresh(3 << 20, Durability::Flush);
    let part = |part: u8| object(0).shard(part);
    for p in [0, 3, 31] {
        let op =
            stage(part(p), Version(1), range(p.into(), 1), Origin { client: ClientId(4), seq: p.into(), floor: 0 });
        assert_eq!(d.call(op), DONE);
    }
    assert_eq!(d.call(ShardOp::Commit { object: part(3), version: Version(1) }), DONE);
    assert_eq!(d.call(ShardOp::Rollback { object: part(31), version: Version(1) }), DONE);
    for _ in 0..2 {
        let heads = [part(0), part(3)].map(|object| d.store.head(&object).expect("stored"));
        let expected =
            |object: ObjectId, staged_over| ObjectHead { object, version: Version(1), deleted: false, staged_over };
        assert_eq!(heads, [expected(part(0), Some(Version::NONE)), expected(part(3), None)]);
        assert_eq!(d.store.head(&part(31)), None);
        let known = [0, 3, 31].map(|seq| d.store.request(ClientId(4), seq));
        let applied = RequestState::Applied(Version(1));
        assert_eq!(known, [applied, applied, RequestState::Unknown]);
        let count = support::model::PG_COUNT;
        assert_eq!(d.store.list(PgScope { pg: part(0).pg(count), count }, &Buckets::ALL), heads);
        let read = d.call(ShardOp::Read { object: part(3), sectors: range(3, 1) });
        assert!(matches!(read, ShardOutcome::Read { data, .. } if data == filled([word(Version(1), 3)].into_iter())));
        d = reopened(&d);
    }
}

#[test]
fn a_drop_leaves_nothing_behind() {
    let mut d = fresh(3 << 20, Durability::Flush);
    assert_eq!(d.call(put(0, 1, range(0, 2))), DONE);
    assert_eq!(d.call(staged(1, 2, range(0, 2))), DONE);
    assert_eq!(d.call(delete(2, 3)), DONE);
    for (n, wrong) in [(0, 9), (1, 0), (2, 2)] {
        assert_eq!(d.call(drop_op(n, wrong)), DONE);
    }
    assert_eq!(d.store.space().objects, 3);
    for (n, version) in [(0, 1), (1, 2), (2, 3)] {
        assert_eq!(d.call(drop_op(n, version)), DONE);
    }
    for _ in 0..2 {
        assert_eq!(d.store.space().objects, 0);
        let count = support::model::PG_COUNT;
        let pgs = (0..count).map(|index| PgScope { pg: PgId { pool: PoolId(1), index }, count });
        assert!(pgs.into_iter().all(|pg| d.store.digests(pg) == [0; 256] && d.store.tombstones(pg).is_empty()));
        d.rest();
        assert_eq!(d.store.space().used, 0);
        d = reopened(&d);
    }
    assert_eq!(d.call(put(0, 1, range(0, 1))), DONE, "an old version is news again");
}

#[test]
fn senseless_changes_are_invalid() {
    let mut d = fresh(3 << 20, Durability::Flush);
    assert_eq!(d.call(put(0, 5, range(0, 1))), DONE);
    let (id, version, data) = (object(0), Version(6), Buffer::zeroed(4096));
    let crcs = sector_crcs(&data);
    let by = Origin { client: ClientId(1), seq: 70_000, floor: 0 };
    let content = |extents: Vec<SectorRange>| {
        let data = Buffer::zeroed(4096 * extents.iter().map(|e| e.count as usize).sum::<usize>());
        ObjectContent { crcs: sector_crcs(&data), data, extents, ..ObjectContent::default() }
    };
    let wrong = |sectors: Vec<SectorRange>, content: ObjectContent| {
        let (base, version) = (Version(5), Version(6));
        ShardOp::Patch { object: object(0), base, version, sectors, content: content.into() }
    };
    let ops = [
        staged(0, 5, range(0, 1)),
        stage(id, version, range(0, 1), by),
        stage(id, version, range(1024, 1), Origin::NONE),
        ShardOp::Stage {
            object: id,
            version,
            sectors: range(0, 0),
            rows: range(0, 1),
            data,
            crcs,
            origin: Origin::NONE,
        },
        wrong(vec![range(3, 2), range(4, 1)], content(vec![])),
        wrong(vec![range(3, 0)], content(vec![])),
        wrong(vec![range(1020, 5)], content(vec![])),
        wrong(vec![range(3, 1)], content(vec![range(3, 2)])),
        wrong(vec![range(3, 1), range(5, 1)], content(vec![range(3, 3)])),
        wrong(vec![range(3, 1)], ObjectContent { deleted: true, ..ObjectContent::default() }),
        wrong((0..129).map(|i| range(i * 2, 1)).collect(), content(vec![])),
        patch(0, 5, 5, &[], &[]),
        ShardOp::FetchPart { object: id, sectors: vec![range(3, 2), range(4, 1)] },
        ShardOp::FetchPart { object: id, sectors: vec![range(u32::MAX, u32::MAX)] },
        ShardOp::FetchPart { object: id, sectors: (0..129).map(|i| range(i * 2, 1)).collect() },
    ];
    for op in ops {
        assert_eq!(d.call(op.clone()), ShardOutcome::Failed(Status::Invalid), "{op:?}");
    }
    assert_eq!((head(&d, 0), d.store.state()), (Some((5, false, None)), StoreState::Running));
}
