//! Devices that fail, rot or are full, and what the store says then.

mod support;

use blockstore::{DeviceOp, DeviceResult, Durability, OpenError, Store, StoreState, SuperblockError};
use buffer::Buffer;
use cluster_proto::crc::{crc32c, sector_crcs};
use cluster_proto::planes::{planes, remainder};
use cluster_proto::shard::{ObjectContent, Origin, ShardIndex, ShardOp, ShardOutcome, Sums, Unreadable};
use cluster_proto::{SectorRange, Status, Version};
use support::Rng;
use support::device::Device;
use support::driver::{Driver, config, formatted, reformat};
use support::model::{Model, filled, object, word, write};

const BOTH: [Durability; 2] = [Durability::WriteThrough, Durability::Flush];

fn fresh(bytes: u64) -> Driver {
    Driver::open(formatted(bytes, 128 << 10, Durability::Flush, 3), 1)
}

fn put(n: u32, version: u64, sectors: SectorRange) -> ShardOp {
    write(object(n), Version(version), sectors, Origin::NONE)
}

fn one(start: u32) -> SectorRange {
    SectorRange::new(start, 1)
}

fn read(n: u32, sectors: SectorRange) -> ShardOp {
    ShardOp::Read { object: object(n), sectors }
}

fn closed(mut driver: Driver) -> Device {
    driver.store.begin_close();
    driver.run();
    assert_eq!(driver.store.state(), StoreState::Closed);
    driver.device
}

fn state_of(device: Device) -> StoreState {
    let mut driver = Driver::start(device, 2);
    driver.run();
    driver.store.state()
}

#[test]
fn a_flipped_bit_anywhere_is_never_returned_as_data() {
    let mut rng = Rng(4);
    let mut model = Model::default();
    let mut d = fresh(2 << 20);
    let mut counter = 0;
    for _ in 0..60 {
        let op = model.random_op(&mut rng, 6, 30, &mut counter);
        if d.call(op.clone()) == ShardOutcome::Done {
            model.apply(&op);
        }
    }
    let device = closed(d);
    let (mut opened, mut refused, mut corrupt) = (0, 0, 0);
    for block in 0..device.bytes / 4096 {
        if !device.medium.blocks.contains_key(&block) {
            continue;
        }
        let mut bad = device.clone();
        bad.medium.flip(block * 4096 + rng.below(4096));
        let mut driver = Driver::start(bad, 2);
        driver.run();
        if driver.store.state() != StoreState::Running {
            assert!(matches!(driver.store.state(), StoreState::Failed(_)));
            refused += 1;
            continue;
        }
        opened += 1;
        if model.differs_from_index(&driver.store).is_some() {
            // Only the very last block of the log can be lost unnoticed, and it holds nothing but the clean stop.
            panic!("block {block}: the index changed silently");
        }
        for (id, own) in &model.objects {
            match driver.call(ShardOp::Fetch { object: *id }) {
                ShardOutcome::Fetched { content, .. } => {
                    corrupt += own.damage(&content).unwrap_or_else(|| panic!("block {block}: {own:?}, {content:?}"));
                }
                other => panic!("block {block}: {other:?}"),
            }
        }
    }
    assert!(opened > 50 && refused > 5 && corrupt > 20, "{opened} {refused} {corrupt}");
}

#[test]
fn a_corrupt_read_names_exactly_the_bad_sectors_and_repair_heals_them() {
    let mut d = fresh(3 << 20);
    assert_eq!(d.call(put(0, 1, SectorRange::new(0, 8))), ShardOutcome::Done);
    let data = d.store.superblock().expect("open").geometry.data_offset;
    d.rest();
    d.device.medium.flip(data + 2 * 4096 + 5);
    d.device.medium.flip(data + 3 * 4096 + 5);
    d.device.medium.flip(data + 6 * 4096 + 5);
    let outcome = d.call(read(0, SectorRange::new(1, 7)));
    let bad = [SectorRange::new(2, 2), one(6)];
    let ShardOutcome::Corrupt { version: Version(1), sectors, crcs } = outcome else { panic!("{outcome:?}") };
    assert_eq!(sectors.as_slice(), bad);
    assert_eq!(crcs, sector_crcs(&filled([2, 3, 6].into_iter().map(|s| word(Version(1), s)))));
    assert!(matches!(d.call(read(0, SectorRange::new(4, 2))), ShardOutcome::Read { .. }));
    assert_eq!(d.store.stats().crc_errors, 3);
    for sectors in bad {
        let data = filled(sectors.iter().map(|s| word(Version(1), s)));
        let crcs = sector_crcs(&data);
        let stale =
            ShardOp::Repair { object: object(0), version: Version(9), sectors, data: data.clone(), crcs: crcs.clone() };
        assert_eq!(d.call(stale), ShardOutcome::Failed(Status::Retry));
        let repair = ShardOp::Repair { object: object(0), version: Version(1), sectors, data, crcs };
        assert_eq!(d.call(repair), ShardOutcome::Done);
    }
    assert!(matches!(d.call(read(0, SectorRange::new(0, 8))), ShardOutcome::Read { version: Version(1), .. }));
}

#[test]
fn of_what_the_device_cannot_read_the_rest_is_read() {
    let mut d = fresh(3 << 20);
    let whole = SectorRange::new(0, 37);
    assert_eq!(d.call(put(0, 1, whole)), ShardOutcome::Done);
    d.rest();
    let at = |sector: u64| d.store.superblock().expect("open").geometry.data_offset + sector * 4096;
    let bad = [at(5)..at(6), at(20)..at(22)];
    d.device.bad_ranges.extend(bad);
    let unreadable = [one(5), one(20), one(21)];
    for ask in [read(0, whole), ShardOp::Verify { object: object(0), sums: Sums::Planes }] {
        let ShardOutcome::Corrupt { sectors, crcs, .. } = d.call(ask) else { panic!("nothing is made up") };
        assert_eq!(sectors.as_slice(), unreadable);
        assert_eq!(crcs, sector_crcs(&filled([5, 20, 21].into_iter().map(|s| word(Version(1), s)))));
    }
    let ShardOutcome::Fetched { content, .. } = d.call(ShardOp::Fetch { object: object(0) }) else {
        panic!("it is there")
    };
    assert_eq!(content.unreadable.iter().map(|u| u.sector).collect::<Vec<_>>(), [5, 20, 21]);
    let sectors = content.data.chunks_exact(4096).zip(whole.iter());
    for (found, sector) in sectors.filter(|(_, sector)| ![5, 20, 21].contains(sector)) {
        assert_eq!(*found, filled([word(Version(1), sector)].into_iter())[..], "sector {sector}");
    }
    assert!(matches!(d.call(read(0, SectorRange::new(6, 14))), ShardOutcome::Read { .. }));
}

#[test]
fn what_came_as_unreadable_stays_so_until_it_is_written() {
    let mut d = fresh(3 << 20);
    let words = |sectors: SectorRange| filled(sectors.iter().map(|s| word(Version(5), s)));
    let sectors = SectorRange::new(0, 8);
    let (data, crcs) = (words(sectors), sector_crcs(&words(sectors)));
    let unreadable: Vec<_> = [1, 2, 4, 6].map(|sector| Unreadable { sector, crc: crcs[sector as usize] }).into();
    let extents = vec![sectors];
    let content = ObjectContent { extents, data, crcs: crcs.clone(), unreadable, ..ObjectContent::default() };
    let restore = |content: ObjectContent| {
        let content = content.into();
        ShardOp::Restore { object: object(0), version: Version(5), content }
    };
    let wrong = |sectors: &[u32]| {
        let unreadable = sectors.iter().map(|sector| Unreadable { sector: *sector, crc: 0 }).collect();
        restore(ObjectContent { unreadable, ..content.clone() })
    };
    for sectors in [&[8][..], &[2, 1], &[1, 1], &[u32::MAX]] {
        assert_eq!(d.call(wrong(sectors)), ShardOutcome::Failed(Status::Invalid), "{sectors:?}");
    }
    assert_eq!(d.call(restore(content)), ShardOutcome::Done);
    let bad_in = |d: &mut Driver| match d.call(read(0, sectors)) {
        ShardOutcome::Corrupt { version: Version(_), sectors, crcs: found } => {
            let bad: Vec<u32> = sectors.iter().flat_map(|bad| bad.iter()).collect();
            assert!(bad.iter().zip(&found).all(|(at, crc)| *crc == crcs[*at as usize]), "what intact copies have");
            bad
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(bad_in(&mut d), [1, 2, 4, 6]);
    let sectors = one(2);
    let (data, repaired) = (words(sectors), sector_crcs(&words(sectors)));
    let repair = ShardOp::Repair { object: object(0), version: Version(5), sectors, data, crcs: repaired };
    assert_eq!(d.call(repair), ShardOutcome::Done);
    assert_eq!(d.call(put(0, 6, one(4))), ShardOutcome::Done);
    assert_eq!(bad_in(&mut d), [1, 6]);
    // Neither the log nor a checkpoint loses it.
    let mut again = Driver::open(d.device.after_kill(), 3);
    assert_eq!((bad_in(&mut again), again.store.stats().cut), (vec![1, 6], 0));
    again.store.begin_close();
    again.run();
    let mut last = Driver::open(again.device, 4);
    assert_eq!(bad_in(&mut last), [1, 6]);
    let zero =
        |sectors| ShardOp::Zero { object: object(0), version: Version(7), sectors, origin: Origin::NONE, lazy: false };
    assert_eq!(last.call(zero(SectorRange::new(1, 6))), ShardOutcome::Done);
    assert!(matches!(last.call(read(0, SectorRange::new(0, 8))), ShardOutcome::Read { .. }));
}

#[test]
fn verifying_finds_all_damage_and_hands_nothing_out() {
    let mut d = fresh(3 << 20);
    let verify = |n| ShardOp::Verify { object: object(n), sums: Sums::None };
    for (version, sectors) in [(1, SectorRange::new(0, 4)), (2, SectorRange::new(10, 4)), (3, one(2))] {
        assert_eq!(d.call(put(0, version, sectors)), ShardOutcome::Done);
    }
    assert_eq!((d.call(verify(0)), d.call(verify(7))), (ShardOutcome::Done, ShardOutcome::Done));
    let data = d.store.superblock().expect("open").geometry.data_offset;
    d.rest();
    // The first write lies at sectors 0 to 3 of the data area, the second at 4 to 7, the third at 8.
    for at in [1, 4, 5, 8] {
        d.device.medium.flip(data + at * 4096 + 77);
    }
    let ShardOutcome::Corrupt { version: Version(3), sectors, crcs } = d.call(verify(0)) else {
        panic!("damage unseen")
    };
    assert_eq!(sectors.iter().flat_map(|bad| bad.iter()).collect::<Vec<_>>(), [1, 2, 10, 11]);
    let words = [word(Version(1), 1), word(Version(3), 2), word(Version(2), 10), word(Version(2), 11)];
    assert_eq!(crcs, sector_crcs(&filled(words.into_iter())), "what an intact copy must have");
    assert_eq!(d.store.stats().crc_errors, 4);
}

#[test]
fn an_intact_object_is_summed_up_sector_by_sector() {
    let mut d = fresh(3 << 20);
    // Written in an order that leaves neighbours in different places.
    for (version, sectors) in [(1, SectorRange::new(0, 4)), (2, SectorRange::new(10, 4)), (3, one(2)), (4, one(4))] {
        assert_eq!(d.call(put(0, version, sectors)), ShardOutcome::Done);
    }
    let words = [(1, 0), (1, 1), (3, 2), (1, 3), (4, 4), (2, 10), (2, 11), (2, 12), (2, 13)];
    let data = filled(words.into_iter().map(|(version, at)| word(Version(version), at)));
    let sectors = || data.chunks_exact(4096);
    for kind in [Sums::Whole, Sums::Planes] {
        let outcome = d.call(ShardOp::Verify { object: object(0), sums: kind });
        let ShardOutcome::Verified { version, extents, kind: told, sums } = outcome else { panic!("{outcome:?}") };
        assert_eq!((version, told), (Version(4), kind));
        assert_eq!(extents, [SectorRange::new(0, 5), SectorRange::new(10, 4)]);
        let expected: Vec<u32> = match kind {
            Sums::Planes => sectors().flat_map(planes).collect(),
            _ => sectors().map(|sector| remainder(crc32c(sector))).collect(),
        };
        assert_eq!(sums, expected);
    }
    let none =
        ShardOutcome::Verified { version: Version::NONE, extents: Vec::new(), kind: Sums::Planes, sums: Vec::new() };
    assert_eq!(d.call(ShardOp::Verify { object: object(7), sums: Sums::Planes }), none);
    d.rest();
    let data = d.store.superblock().expect("open").geometry.data_offset;
    d.device.medium.flip(data + 77);
    let damaged = d.call(ShardOp::Verify { object: object(0), sums: Sums::Planes });
    assert!(matches!(damaged, ShardOutcome::Corrupt { .. }), "{damaged:?}");
}

#[test]
fn a_repair_may_fill_holes_and_change_content_and_lasts() {
    let mut d = fresh(3 << 20);
    assert_eq!(d.call(put(0, 1, SectorRange::new(0, 4))), ShardOutcome::Done);
    let sectors = SectorRange::new(2, 6);
    let data = filled((0..6).map(|i| word(Version(77), i)));
    let crcs = sector_crcs(&data);
    let repair = ShardOp::Repair { object: object(0), version: Version(1), sectors, data: data.clone(), crcs };
    // Together with a change that is pending: what the repair needs is then not known for certain.
    let tags = [d.submit(repair.clone()), d.submit(repair)];
    d.run();
    let device = closed(d);
    let mut d = Driver::start(device, 2);
    d.run();
    let ShardOutcome::Read { version: Version(1), data: found, .. } = d.call(read(0, sectors)) else {
        panic!("it can be read, of {tags:?}")
    };
    assert_eq!(found, data);
}

#[test]
fn an_unreadable_sector_is_corrupt_too() {
    let mut d = fresh(3 << 20);
    assert_eq!(d.call(put(0, 1, one(0))), ShardOutcome::Done);
    let data = d.store.superblock().expect("open").geometry.data_offset;
    d.device.bad_ranges.push(data..data + 4096);
    assert!(matches!(d.call(read(0, one(0))), ShardOutcome::Corrupt { .. }));
    assert_eq!(d.store.stats().io_errors, 1);
}

#[test]
fn a_store_whose_log_or_flush_fails_acknowledges_nothing_more() {
    for fail in [true, false] {
        let mut d = fresh(3 << 20);
        assert_eq!(d.call(put(0, 1, one(0))), ShardOutcome::Done);
        let g = d.store.superblock().expect("open").geometry;
        let tag = d.submit(put(0, 2, one(0)));
        let sync = d.submit(ShardOp::Sync);
        let mut tries = 0;
        while let Some(request) = d.store.poll_device() {
            let is_log = matches!(&request.op, DeviceOp::Write { offset, .. } if *offset < g.slots_offset);
            let is_flush = request.op == DeviceOp::Flush;
            tries += u32::from(is_log);
            let bad = if fail { is_log } else { is_flush };
            let result = if bad { Err(blockstore::DeviceError(5)) } else { Ok(()) };
            d.store.handle_device(request.token, DeviceResult::Done(result));
        }
        d.issue();
        assert_eq!(tries, if fail { 3 } else { 1 });
        assert!(matches!(d.store.state(), StoreState::Failed(OpenError::Device { .. })));
        assert_eq!(d.outcomes[&tag], ShardOutcome::Failed(Status::Io));
        assert_eq!(d.outcomes[&sync], ShardOutcome::Failed(Status::Io));
        assert_eq!(d.call(read(0, one(0))), ShardOutcome::Failed(Status::Io));
    }
}

#[test]
fn stores_that_cannot_be_opened_say_why() {
    let base = || formatted(3 << 20, 128 << 10, Durability::Flush, 3);
    assert!(matches!(state_of(base()), StoreState::Running));
    let mut one_copy = base();
    one_copy.medium.flip(100);
    assert!(matches!(state_of(one_copy.clone()), StoreState::Running), "the second copy serves");
    one_copy.medium.flip(60 * 1024 + 100);
    assert_eq!(state_of(one_copy), StoreState::Failed(OpenError::Superblock(SuperblockError::Damaged)));
    let mut shrunk = base();
    shrunk.bytes -= 4096;
    assert!(matches!(state_of(shrunk), StoreState::Failed(OpenError::DeviceTooSmall { .. })));
    let mut grown = base();
    grown.bytes *= 2;
    assert!(matches!(state_of(grown), StoreState::Running));
    let blank = Device::new(3 << 20, Durability::Flush);
    assert!(matches!(state_of(blank), StoreState::Failed(OpenError::Superblock(SuperblockError::Damaged))));
    assert!(matches!(state_of(Device::new(4096, Durability::Flush)), StoreState::Failed(_)));
}

#[test]
fn a_new_store_on_an_old_device_is_empty() {
    let mut d = fresh(3 << 20);
    for v in 1..100 {
        assert_eq!(d.call(put(v as u32 % 7, v, one(0))), ShardOutcome::Done);
    }
    let mut device = closed(d);
    reformat(&mut device, 128 << 10, 4);
    let mut again = Driver::open(device, 2);
    assert_eq!(again.store.space().objects, 0);
    assert_eq!(again.call(put(0, 1, one(0))), ShardOutcome::Done);
}

#[test]
fn a_full_store_refuses_growth_but_overwrites_frees_and_goes_on() {
    for durability in BOTH {
        let mut d = Driver::open(formatted(1 << 20, 128 << 10, durability, 3), 1);
        let mut version = 0;
        let mut full = 0;
        for n in 0..400 {
            version += 1;
            let outcome = d.call(put(n / 8, version, one(n % 8)));
            full += u32::from(outcome == ShardOutcome::Failed(Status::NoSpace));
        }
        assert!(full > 100, "{full}");
        let live = d.store.stats().used_sectors;
        for round in 0..300u32 {
            version += 1;
            assert_eq!(d.call(put(round % 5, version, one(round % 8))), ShardOutcome::Done, "overwrite {round}");
        }
        let many: Vec<_> = (0..40u32).map(|n| d.submit(put(n % 5, version + 1 + u64::from(n), one(n % 8)))).collect();
        version += 100;
        d.run();
        assert!(many.iter().all(|t| d.outcomes[t] == ShardOutcome::Done), "overwrites at depth");
        assert_eq!(d.store.stats().used_sectors, live);
        let delete = ShardOp::Delete { object: object(0), version: Version(version + 1), origin: Origin::NONE };
        assert_eq!(d.call(delete), ShardOutcome::Done);
        d.rest();
        assert_eq!(d.store.stats().quarantined_sectors, 0);
        assert_eq!(d.call(put(1, version + 2, SectorRange::new(20, 4))), ShardOutcome::Done, "space came back");
        assert_eq!(d.call(put(1, version + 3, SectorRange::new(0, 300))), ShardOutcome::Failed(Status::NoSpace));
    }
}

#[test]
fn the_objects_limit_spares_what_frees() {
    let mut d = fresh(1 << 20);
    let limit = d.store.superblock().expect("open").geometry.objects_max;
    let mut n = 0;
    while d.call(zeroless(n)) == ShardOutcome::Done {
        n += 1;
    }
    assert!(u64::from(n) < limit);
    let delete = |n: u32| ShardOp::Delete { object: object(n), version: Version(9), origin: Origin::NONE };
    assert_eq!(d.call(delete(n + 1)), ShardOutcome::Done, "even of an object never seen");
    assert_eq!(d.call(delete(0)), ShardOutcome::Done);
    assert_eq!(d.call(ShardOp::Collect { object: object(0), version: Version(9) }), ShardOutcome::Done);
}

fn zeroless(n: u32) -> ShardOp {
    put(n, 1, one(0))
}

#[test]
fn senseless_operations_are_invalid() {
    let mut d = fresh(3 << 20);
    assert_eq!(d.call(put(0, 5, one(0))), ShardOutcome::Done);
    let data = Buffer::zeroed(4096);
    let crcs = sector_crcs(&data);
    let (object, version) = (object(0), Version(6));
    let far = Origin { client: cluster_proto::ClientId(1), seq: 70_000, floor: 0 };
    let backwards = Origin { client: cluster_proto::ClientId(1), seq: 7, floor: 8 };
    let ops = [
        put(0, 5, one(0)),
        put(0, 4, one(0)),
        write(object, version, one(0), far),
        write(object, version, one(0), backwards),
        ShardOp::Write {
            object,
            version,
            sectors: SectorRange::new(0, 2),
            data: data.clone(),
            crcs: crcs.clone(),
            origin: Origin::NONE,
            lazy: false,
        },
        ShardOp::Write {
            object,
            version,
            sectors: one(1024),
            data: data.clone(),
            crcs: crcs.clone(),
            origin: Origin::NONE,
            lazy: false,
        },
        ShardOp::Zero {
            object,
            version,
            sectors: SectorRange::new(u32::MAX, u32::MAX),
            origin: Origin::NONE,
            lazy: false,
        },
        ShardOp::Zero { object, version, sectors: SectorRange::new(0, 0), origin: Origin::NONE, lazy: false },
        ShardOp::Read { object, sectors: SectorRange::new(1000, 100) },
        ShardOp::Delete { object, version: Version(5), origin: Origin::NONE },
        ShardOp::Restore {
            object,
            version,
            content: ObjectContent {
                extents: vec![one(3), one(2)],
                data: Buffer::zeroed(8192),
                crcs: sector_crcs(&Buffer::zeroed(8192)),
                ..ObjectContent::default()
            }
            .into(),
        },
        ShardOp::Restore {
            object,
            version,
            content: ObjectContent { deleted: true, extents: vec![one(3)], data, crcs, ..ObjectContent::default() }
                .into(),
        },
    ];
    for op in ops {
        assert_eq!(d.call(op.clone()), ShardOutcome::Failed(Status::Invalid), "{op:?}");
    }
    assert_eq!(d.store.head(&object).map(|h| h.version), Some(Version(5)));
}

#[test]
fn a_read_in_flight_keeps_its_sectors() {
    let mut d = Driver::open(formatted(1 << 20, 128 << 10, Durability::WriteThrough, 3), 1);
    assert_eq!(d.call(put(0, 1, one(0))), ShardOutcome::Done);
    let tag = d.submit(read(0, one(0)));
    let request = d.store.poll_device().expect("a read");
    let DeviceOp::Read { offset, len } = request.op else { panic!("{:?}", request.op) };
    // Every sector of the device is used again while the read is under way.
    for v in 2..600 {
        assert_eq!(d.call(put(0, v, one(0))), ShardOutcome::Done, "{v}");
        if d.store.stats().free_sectors < 20 {
            break;
        }
    }
    let mut bytes = buffer::BufferMut::for_overwrite(len);
    d.device.medium.read(offset, &mut bytes);
    d.store.handle_device(request.token, DeviceResult::Read(Ok(bytes)));
    d.run();
    let want = filled(std::iter::once(word(Version(1), 0)));
    assert!(matches!(&d.outcomes[&tag], ShardOutcome::Read { version: Version(1), data, .. } if *data == want));
    d.rest();
    assert_eq!(d.store.stats().quarantined_sectors, 0);
}

#[test]
fn small_writes_cost_what_was_promised() {
    // Depth 1: one data write and one log block each. Depth 32: log blocks are shared.
    let mut d = Driver::open(formatted(64 << 20, 1 << 20, Durability::WriteThrough, 3), 1);
    let before = d.store.stats();
    for v in 1..=100 {
        assert_eq!(d.call(put(0, v, one(v as u32 % 100))), ShardOutcome::Done);
    }
    let depth1 = d.store.stats();
    assert_eq!(depth1.data_writes - before.data_writes, 100);
    assert_eq!(depth1.log_bytes_written - before.log_bytes_written, 100 * 4096);
    let mut rng = Rng(3);
    let start = d.store.stats();
    for batch in 0..600u64 {
        for i in 0..32 {
            d.submit(put(rng.below(40) as u32, 1000 + batch * 32 + i, one(rng.below(256) as u32)));
        }
        d.run();
        d.outcomes.clear();
    }
    let end = d.store.stats();
    let data = (end.data_bytes_written - start.data_bytes_written) as f64;
    let log = (end.log_bytes_written - start.log_bytes_written) as f64;
    let checkpoints = (end.checkpoint_bytes_written - start.checkpoint_bytes_written) as f64;
    assert_eq!(data, 600.0 * 32.0 * 4096.0);
    assert!(log / data <= 0.05, "log {}", log / data);
    assert!(checkpoints / data <= 0.1, "checkpoints {}", checkpoints / data);
    assert!(end.checkpoints > start.checkpoints);
    assert!((end.data_writes - start.data_writes) < 600 * 4, "neighbours go out together");
}

#[test]
fn discards_do_not_hurt_live_data() {
    let mut model = Model::default();
    let mut rng = Rng(8);
    let mut counter = 0;
    let own = blockstore::StoreConfig { discard_sectors_min: 1, ..config(Durability::Flush) };
    let mut d = Driver::start_with(formatted(2 << 20, 128 << 10, Durability::Flush, 3), 4, own);
    d.run();
    let mut discarded = 0;
    for i in 0..400 {
        let op = model.random_op(&mut rng, 10, 40, &mut counter);
        if d.call(op.clone()) == ShardOutcome::Done {
            model.apply(&op);
        }
        if i % 3 == 0 {
            d.store.discard_unused();
            d.run();
            discarded += d.device.discarded.len();
        }
    }
    assert!(discarded > 0);
    assert_eq!(model.differs(&mut d), None);
}

#[test]
fn before_it_runs_a_store_asks_to_come_back() {
    let device = formatted(3 << 20, 128 << 10, Durability::Flush, 3);
    let mut store = Store::open(config(Durability::Flush), device.bytes);
    store.submit(7, ShardOp::Sync);
    assert_eq!(store.poll_outcome(), Some((7, ShardOutcome::Failed(Status::Retry))));
}
