//! Lazy changes: reported when they are on the device, durable after a sync.

mod support;

use blockstore::Durability;
use cluster_proto::shard::{Origin, ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::{SectorRange, Version};
use support::device::{Device, Fate};
use support::driver::{Driver, formatted};
use support::model::{object, write};

fn lazy_write(n: u32, version: u64) -> ShardOp {
    let mut op = write(object(n), Version(version), SectorRange::new(0, 4), Origin::NONE);
    if let ShardOp::Write { lazy, .. } = &mut op {
        *lazy = true;
    }
    op
}

fn eager_write(n: u32, version: u64) -> ShardOp {
    write(object(n), Version(version), SectorRange::new(0, 4), Origin::NONE)
}

fn open(durability: Durability) -> Driver {
    Driver::open(formatted(4 << 20, 256 << 10, durability, 3), 7)
}

/// The version an object has after a power cut in which everything is lost that may be.
fn version_after_cut(device: &Device, n: u32) -> Option<Version> {
    let lost = vec![Fate::Lost; device.cache.len()];
    Driver::open(device.after_cut(&lost), 9).store.head(&object(n)).map(|head| head.version)
}

#[test]
fn a_lazy_change_is_reported_and_shown_without_a_flush_and_a_sync_flushes_once() {
    let mut driver = open(Durability::Flush);
    let before = driver.store.stats().flushes;
    for n in 0..8 {
        assert_eq!(driver.call(lazy_write(n, 5)), ShardOutcome::Written);
        assert_eq!(driver.store.head(&object(n)).map(|head| head.version), Some(Version(5)));
    }
    let ShardOutcome::Read { version, .. } =
        driver.call(ShardOp::Read { object: object(3), sectors: SectorRange::new(0, 4) })
    else {
        panic!("it reads")
    };
    assert_eq!((version, driver.store.stats().flushes), (Version(5), before));
    assert_eq!(version_after_cut(&driver.device, 3), None);
    assert_eq!(driver.call(ShardOp::Sync), ShardOutcome::Done);
    assert_eq!(driver.store.stats().flushes, before + 1);
    assert_eq!(version_after_cut(&driver.device, 3), Some(Version(5)));
    assert_eq!(driver.call(ShardOp::Sync), ShardOutcome::Done);
    assert_eq!(driver.store.stats().flushes, before + 1, "nothing is left to flush");
}

#[test]
fn a_device_that_writes_through_makes_lazy_changes_durable_at_once() {
    let mut driver = open(Durability::WriteThrough);
    assert_eq!(driver.call(lazy_write(1, 5)), ShardOutcome::Done);
    assert_eq!(version_after_cut(&driver.device, 1), Some(Version(5)));
}

#[test]
fn a_durable_change_takes_the_lazy_ones_before_it_along() {
    let mut driver = open(Durability::Flush);
    assert_eq!(driver.call(lazy_write(1, 5)), ShardOutcome::Written);
    assert_eq!(driver.call(eager_write(2, 6)), ShardOutcome::Done);
    assert_eq!(version_after_cut(&driver.device, 1), Some(Version(5)));
}

#[test]
fn a_lazy_change_behind_a_durable_one_is_not_reported_before_it() {
    let mut driver = open(Durability::Flush);
    let tags: Vec<_> =
        [lazy_write(1, 5), eager_write(2, 6), lazy_write(3, 7)].into_iter().map(|op| driver.submit(op)).collect();
    driver.run();
    assert_eq!(driver.finished, tags);
    // The flush that made the second durable may have covered the third as well.
    let outcomes: Vec<_> = tags.iter().map(|tag| driver.outcomes[tag].clone()).collect();
    assert_eq!(outcomes[1], ShardOutcome::Done);
    assert!(matches!(outcomes[2], ShardOutcome::Done | ShardOutcome::Written));
}

#[test]
fn a_quiet_store_and_a_clean_stop_leave_nothing_lazy_behind() {
    let mut driver = open(Durability::Flush);
    driver.call(lazy_write(1, 5));
    driver.rest();
    assert_eq!(version_after_cut(&driver.device, 1), Some(Version(5)));
    driver.call(lazy_write(1, 6));
    driver.store.begin_close();
    driver.run();
    assert_eq!(driver.store.state(), blockstore::StoreState::Closed);
    assert_eq!(version_after_cut(&driver.device, 1), Some(Version(6)));
}

#[test]
fn idleness_once_does_not_make_a_busy_store_flush_for_ever() {
    // Large enough that neither space nor the log asks for flushes.
    let mut driver = Driver::open(formatted(64 << 20, 4 << 20, Durability::Flush, 3), 7);
    driver.call(lazy_write(1, 5));
    driver.store.handle_idle();
    let before = driver.store.stats().flushes;
    for version in 6..200 {
        driver.submit(lazy_write(1, version));
        driver.step();
    }
    driver.run();
    let flushes = driver.store.stats().flushes - before;
    assert!((1..=4).contains(&flushes), "{flushes} flushes");
}

#[test]
fn lazy_overwrites_of_a_full_store_go_on_because_freed_space_is_recorded() {
    let mut driver = Driver::open(formatted(1 << 20, 128 << 10, Durability::Flush, 3), 7);
    let mut version = 0;
    for round in 0..40 {
        for n in 0..3 {
            version += 1;
            let outcome = driver.call(lazy_write(n, version));
            assert!(matches!(outcome, ShardOutcome::Written | ShardOutcome::Done), "round {round}: {outcome:?}");
        }
    }
}
