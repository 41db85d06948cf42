//! One crash image for every row of the decision tables in docs/disk.md, named after the row.

mod support;

use blockstore::{DeviceError, Durability, Geometry, LogDamage, OpenError, StoreState};
use cluster_proto::shard::{Origin, ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::{SectorRange, Status, Version};
use support::device::{Device, Fate, Unsafe};
use support::driver::{Driver, formatted};
use support::model::{object, stage, write};

const BLOCK: u64 = 4096;

fn fresh() -> Driver {
    Driver::open(formatted(3 << 20, 128 << 10, Durability::Flush, 3), 1)
}

fn put(n: u32, version: u64) -> ShardOp {
    write(object(n), Version(version), SectorRange::new(0, 1), Origin::NONE)
}

fn geometry(driver: &Driver) -> Geometry {
    driver.store.superblock().expect("open").geometry
}

fn version(driver: &Driver, n: u32) -> u64 {
    driver.store.head(&object(n)).map_or(0, |h| h.version.0)
}

fn is_log(g: &Geometry, w: &Unsafe) -> bool {
    (g.log_offset..g.slots_offset).contains(&w.offset)
}

fn is_data(g: &Geometry, w: &Unsafe) -> bool {
    w.offset >= g.data_offset
}

/// Cuts the power; `kept` says which unsafe writes survive.
fn cut(driver: &Driver, kept: impl Fn(&Geometry, &Unsafe) -> bool) -> Device {
    let g = geometry(driver);
    let fates: Vec<_> = driver.device.cache.iter().map(|w| if kept(&g, w) { Fate::Kept } else { Fate::Lost }).collect();
    driver.device.after_cut(&fates)
}

fn reopen(device: Device) -> Driver {
    Driver::open(device, 2)
}

fn refused(device: Device) -> OpenError {
    let mut driver = Driver::start(device, 2);
    driver.run();
    match driver.store.state() {
        StoreState::Failed(error) => error,
        other => panic!("opened: {other:?}"),
    }
}

/// Offset of the log block that was written last.
fn last_log_block(driver: &Driver) -> u64 {
    let g = geometry(driver);
    driver.device.cache.iter().filter(|w| is_log(&g, w)).map(|w| w.offset).next_back().expect("a log write")
}

#[test]
fn next() {
    let mut d = fresh();
    assert_eq!(d.call(put(0, 1)), ShardOutcome::Done);
    assert_eq!(d.call(put(1, 2)), ShardOutcome::Done);
    let again = reopen(cut(&d, |_, _| false));
    assert_eq!((version(&again, 0), version(&again, 1)), (1, 2));
}

#[test]
fn new_generation() {
    let mut d = fresh();
    for i in 1..=5 {
        assert_eq!(d.call(put(i, u64::from(i))), ShardOutcome::Done);
        d = reopen(cut(&d, |_, _| false));
    }
    assert!((1..=5).all(|i| version(&d, i) == u64::from(i)));
    assert_eq!(d.store.stats().cut, 0);
}

#[test]
fn stale() {
    let mut d = fresh();
    // Round the ring several times: behind the end lie intact blocks of the previous round.
    for v in 1..=100 {
        assert_eq!(d.call(put(0, v)), ShardOutcome::Done);
    }
    let again = reopen(cut(&d, |_, _| false));
    assert_eq!((version(&again, 0), again.store.stats().cut), (100, 0));
}

#[test]
fn torn() {
    let mut d = fresh();
    assert_eq!(d.call(put(0, 1)), ShardOutcome::Done);
    d.submit(put(0, 2));
    d.issue();
    let at = last_log_block(&d);
    let mut device = d.device.after_cut(&vec![Fate::Kept; d.device.cache.len()]);
    device.medium.flip(at + 4000);
    assert_eq!(version(&reopen(device), 0), 1);
}

#[test]
fn overrun() {
    let mut d = fresh();
    let g = geometry(&d);
    let mut slots = vec![0; (g.segments_offset - g.slots_offset) as usize];
    d.device.medium.read(g.slots_offset, &mut slots);
    for v in 1..=100 {
        assert_eq!(d.call(put(0, v)), ShardOutcome::Done);
    }
    let mut device = cut(&d, |_, _| false);
    device.medium.write(g.slots_offset, &slots);
    assert!(matches!(refused(device), OpenError::Log(LogDamage::Overrun(_))));
}

#[test]
fn missing() {
    let mut d = fresh();
    let mut blocks = Vec::new();
    for v in 1..=6 {
        let tag = d.submit(put(0, v));
        d.issue();
        blocks.push(last_log_block(&d));
        d.run();
        assert_eq!(d.outcomes[&tag], ShardOutcome::Done);
    }
    for &at in &blocks[..5] {
        let mut device = cut(&d, |_, _| false);
        device.medium.flip(at + 70);
        assert!(matches!(refused(device), OpenError::Log(LogDamage::Missing { .. })), "{at}");
    }
}

#[test]
fn behind() {
    let mut d = fresh();
    assert_eq!(d.call(put(0, 1)), ShardOutcome::Done);
    // Two log writes in flight; the first is lost, the second arrives.
    d.submit(put(0, 2));
    d.issue();
    let first = last_log_block(&d);
    (0..40).for_each(|i| _ = d.submit(put(1, 3 + i)));
    d.issue();
    assert_ne!(first, last_log_block(&d));
    let again = reopen(cut(&d, |_, w| w.offset != first));
    assert_eq!((version(&again, 0), version(&again, 1)), (1, 0));
}

#[test]
fn truncated() {
    let mut d = Driver::open(formatted(16 << 20, 256 << 10, Durability::Flush, 3), 1);
    assert_eq!(d.call(put(0, 1)), ShardOutcome::Done);
    d.submit(write(object(0), Version(2), SectorRange::new(0, 600), Origin::NONE));
    d.submit(write(object(0), Version(3), SectorRange::new(0, 600), Origin::NONE));
    d.issue();
    let at = d.device.cache.iter().position(|w| is_log(&geometry(&d), w)).expect("log");
    assert!(d.device.cache[at].data.len() > BLOCK as usize, "blocks went out together");
    let mut fates = vec![Fate::Kept; d.device.cache.len()];
    let atoms = d.device.cache[at].atoms();
    // The first entry fits the first block, the second goes on in the next one.
    fates[at] = Fate::Torn((0..atoms).map(|a| a < 8).collect());
    let again = reopen(d.device.after_cut(&fates));
    assert_eq!((version(&again, 0), again.store.stats().cut), (2, 1));
}

#[test]
fn checkpointed() {
    let mut d = fresh();
    for v in 1..=60 {
        assert_eq!(d.call(put((v % 5) as u32, v)), ShardOutcome::Done);
    }
    assert!(d.store.stats().checkpoints > 0);
    let again = reopen(cut(&d, |_, _| false));
    assert!(again.store.stats().replayed < 60);
    assert!((56..=60).all(|v| version(&again, (v % 5) as u32) == v));
}

#[test]
fn confirmed() {
    let mut d = fresh();
    assert_eq!(d.call(put(0, 1)), ShardOutcome::Done);
    d.rest();
    let mut device = cut(&d, |_, _| false);
    device.medium.flip(geometry(&d).data_offset + 9);
    let mut again = reopen(device);
    assert_eq!(version(&again, 0), 1, "recorded as durable: not a reason to cut");
    let read = again.call(ShardOp::Read { object: object(0), sectors: SectorRange::new(0, 2) });
    let bad = [SectorRange::new(0, 1)];
    assert!(matches!(read, ShardOutcome::Corrupt { sectors, .. } if sectors.as_slice() == bad));
}

#[test]
fn verified() {
    let mut d = fresh();
    d.submit(put(0, 1));
    d.issue();
    let again = reopen(cut(&d, |_, _| true));
    assert_eq!((version(&again, 0), again.store.stats().cut), (1, 0));
}

#[test]
fn data_mismatch() {
    let mut d = fresh();
    assert_eq!(d.call(put(0, 1)), ShardOutcome::Done);
    d.submit(put(0, 2));
    d.submit(put(1, 3));
    d.issue();
    let again = reopen(cut(&d, |g, w| !is_data(g, w)));
    assert_eq!((version(&again, 0), version(&again, 1), again.store.stats().cut), (1, 0, 2));
}

/// What cannot be read may be whole, and acknowledged: it must not be taken for what a power cut tore.
#[test]
fn unreadable() {
    let mut d = fresh();
    assert_eq!(d.call(put(0, 1)), ShardOutcome::Done);
    let (g, device) = (geometry(&d), cut(&d, |_, _| true));
    let mut broken = device.clone();
    broken.bad_ranges.push(g.data_offset..g.data_offset + BLOCK);
    let mut refused = Driver::start(broken, 1);
    refused.run();
    assert_eq!(refused.store.state(), StoreState::Failed(OpenError::Unreadable { lsn: 1, error: DeviceError(5) }));
    let mut again = reopen(device);
    let read = again.call(ShardOp::Read { object: object(0), sectors: SectorRange::new(0, 1) });
    assert!(matches!(read, ShardOutcome::Read { version: Version(1), .. }), "nothing was given up meanwhile");
}

#[test]
fn voided() {
    let mut d = fresh();
    d.submit(put(0, 1));
    d.submit(put(1, 2));
    d.issue();
    let mut again = reopen(cut(&d, |g, w| !is_data(g, w)));
    assert_eq!((version(&again, 0), version(&again, 1)), (0, 0));
    // The same data reaches the same sectors, but its log block is lost: the old entries match again, and must not count.
    again.submit(put(0, 1));
    again.submit(put(1, 2));
    again.issue();
    let last = reopen(cut(&again, is_data));
    assert_eq!((version(&last, 0), version(&last, 1)), (0, 0));
}

#[test]
fn relocated() {
    let mut d = fresh();
    let g = geometry(&d);
    d.device.bad_ranges.push(g.data_offset..g.data_offset + BLOCK);
    let wide = write(object(0), Version(1), SectorRange::new(0, 3), Origin::NONE);
    assert_eq!(d.call(wide), ShardOutcome::Done);
    assert_eq!(d.call(put(1, 2)), ShardOutcome::Done);
    assert_eq!(d.store.stats().bad_sectors, 3);
    let mut again = reopen(cut(&d, |_, _| false));
    assert_eq!((version(&again, 0), version(&again, 1)), (1, 2));
    let read = again.call(ShardOp::Read { object: object(0), sectors: SectorRange::new(0, 3) });
    assert!(matches!(read, ShardOutcome::Read { .. }));
}

#[test]
fn cancelled() {
    let mut d = fresh();
    let g = geometry(&d);
    assert_eq!(d.call(put(0, 1)), ShardOutcome::Done);
    d.device.bad_ranges.push(g.data_offset..u64::MAX);
    let failed = d.submit(put(0, 2));
    let zero = d.submit(ShardOp::Delete { object: object(1), version: Version(3), origin: Origin::NONE });
    d.run();
    assert_eq!(d.outcomes[&failed], ShardOutcome::Failed(Status::Io));
    assert_eq!(d.outcomes[&zero], ShardOutcome::Done);
    assert_eq!((version(&d, 0), version(&d, 1)), (1, 3));
    let mut device = cut(&d, |_, _| false);
    device.bad_ranges.clear();
    let again = reopen(device);
    assert_eq!((version(&again, 0), version(&again, 1)), (1, 3));
}

/// An object that has a later change but not an earlier one would have the right version and the wrong content.
#[test]
fn what_is_behind_a_cancelled_change_of_the_object_is_cancelled_too() {
    let mut d = fresh();
    let g = geometry(&d);
    let zero = |n: u32, version: u64| ShardOp::Zero {
        object: object(n),
        version: Version(version),
        sectors: SectorRange::new(0, 1),
        origin: Origin::NONE,
        lazy: false,
    };
    assert_eq!(d.call(put(0, 1)), ShardOutcome::Done);
    assert_eq!(d.call(put(1, 1)), ShardOutcome::Done);
    d.device.bad_ranges.push(g.data_offset..u64::MAX);
    let failed = [put(0, 2), zero(0, 3), put(0, 4)].map(|op| d.submit(op));
    let other = d.submit(zero(1, 2));
    d.run();
    for tag in failed {
        assert_eq!(d.outcomes[&tag], ShardOutcome::Failed(Status::Io));
    }
    assert_eq!(d.outcomes[&other], ShardOutcome::Done);
    assert_eq!((version(&d, 0), version(&d, 1)), (1, 2));
    for keep in [false, true] {
        let mut device = cut(&d, |_, _| keep);
        device.bad_ranges.clear();
        let mut again = reopen(device);
        assert_eq!((version(&again, 0), version(&again, 1)), (1, 2));
        assert_eq!(again.call(put(0, 5)), ShardOutcome::Done);
    }
    // Who knows of the failure may change the object again.
    assert_eq!(d.call(zero(0, 5)), ShardOutcome::Done);
    assert_eq!(version(&d, 0), 5);
}

/// Entry k wrote a sector, entry n freed it, both in one block and acknowledged, so no block records k as durable yet. If a
/// later write reused the sector, the next recovery would take k for torn and cut it off.
#[test]
fn a_freed_sector_is_not_reused_before_that_is_recorded() {
    let mut d = Driver::open(formatted(1 << 20, 128 << 10, Durability::Flush, 3), 1);
    let wide = |n: u32, version: u64| write(object(n), Version(version), SectorRange::new(0, 4), Origin::NONE);
    (0..10).for_each(|n| assert_eq!(d.call(wide(n, 1)), ShardOutcome::Done));
    for count in [16, 4, 1] {
        let fill = |n: u32| write(object(n), Version(u64::from(count)), SectorRange::new(count, count), Origin::NONE);
        (10..60).for_each(|n| _ = d.call(fill(n)));
    }
    // Room to grow by a little, so that overwrites of one object need not wait for each other.
    let sectors = SectorRange::new(0, 1024);
    let room = ShardOp::Zero { object: object(10), version: Version(20), sectors, origin: Origin::NONE, lazy: false };
    assert_eq!(d.call(room), ShardOutcome::Done);
    d.rest();
    let both = [d.submit(wide(0, 2)), d.submit(wide(0, 3))];
    d.run();
    assert!(both.iter().all(|t| d.outcomes[t] == ShardOutcome::Done));
    // Takes every free sector; what does not fit waits.
    (1..10).for_each(|n| _ = d.submit(wide(n, 4)));
    d.issue();
    assert!(d.store.stats().free_sectors < 4 && d.store.stats().waiting > 0);
    let again = reopen(cut(&d, is_data));
    assert_eq!(version(&again, 0), 3);
}

/// The same for what a commit frees: the sectors of entry k were kept by a staged change, and the commit freed them.
#[test]
fn what_a_commit_frees_is_not_reused_before_that_is_recorded() {
    for ends in ["commit", "rollback"] {
        let mut d = Driver::open(formatted(1 << 20, 128 << 10, Durability::Flush, 3), 1);
        let wide = |n: u32, version: u64| write(object(n), Version(version), SectorRange::new(0, 4), Origin::NONE);
        (0..10).for_each(|n| assert_eq!(d.call(wide(n, 1)), ShardOutcome::Done));
        for count in [16, 4, 1] {
            let sectors = SectorRange::new(count, count);
            let fill = |n: u32| write(object(n), Version(u64::from(count)), sectors, Origin::NONE);
            (10..60).for_each(|n| _ = d.call(fill(n)));
        }
        let sectors = SectorRange::new(0, 1024);
        let room =
            ShardOp::Zero { object: object(10), version: Version(20), sectors, origin: Origin::NONE, lazy: false };
        assert_eq!(d.call(room), ShardOutcome::Done);
        d.rest();
        // New sectors, so that nothing is freed before: freed runs are let go in order.
        let (id, version) = (object(61), Version(3));
        let end = match ends {
            "commit" => ShardOp::Commit { object: id, version },
            _ => ShardOp::Rollback { object: id, version },
        };
        let own = SectorRange::new(0, 4);
        let all = [d.submit(wide(61, 2)), d.submit(stage(id, version, own, Origin::NONE)), d.submit(end)];
        d.run();
        assert!(all.iter().all(|t| d.outcomes[t] == ShardOutcome::Done));
        (1..10).for_each(|n| _ = d.submit(wide(n, 4)));
        d.issue();
        assert!(d.store.stats().free_sectors < 4 && d.store.stats().waiting > 0);
        let again = reopen(cut(&d, is_data));
        let expected = if ends == "commit" { 3 } else { 2 };
        assert_eq!((self::version(&again, 61), again.store.stats().staged), (expected, 0));
    }
}
