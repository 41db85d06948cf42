//! The exhaustive crash-point test: for every prefix of the device-write sequence of several workloads, and for losses,
//! tearing and reorderings of what was not safe at that moment, the store must recover to the state after some prefix of
//! the submitted mutations that contains every acknowledged one; and go on; and survive the next crash.

mod support;

use std::rc::Rc;

use blockstore::{Durability, StoreState};
use cluster_proto::Status;
use cluster_proto::shard::{Origin, ShardOp, ShardOutcome};
use cluster_proto::{SectorRange, Version};
use support::Rng;
use support::device::{Device, Fate};
use support::driver::{Driver, formatted};
use support::model::{Model, object, write};

/// What is known of a run when it is cut.
struct Run {
    /// State after each prefix of the mutations that were submitted and not refused.
    states: Rc<Vec<Model>>,
    /// Mutations that a power cut must leave: reported durable, or before a sync that was.
    acknowledged: usize,
    /// Mutations that were reported at all, lazy ones too: the death of the process alone must leave them.
    written: usize,
    steps: u64,
    device: Device,
}

#[derive(Clone, Copy)]
struct Workload {
    seed: u64,
    bytes: u64,
    log: u64,
    objects: u32,
    sectors: u32,
    ops: usize,
    batch: u64,
    fill: bool,
    /// Of 100 writes, so many need not be durable when reported; and there are syncs.
    lazy: u64,
}

/// Plays a workload on top of `base` until the device has taken `stop` writes and flushes.
fn play(w: &Workload, base: &Model, device: Device, stop: Option<u64>) -> (Run, u64) {
    let mut rng = Rng(w.seed);
    let mut driver = Driver::start(device, w.seed);
    driver.run();
    assert_eq!(driver.store.state(), StoreState::Running);
    driver.device.steps = 0;
    driver.stop_at = stop;
    let mut ahead = base.clone();
    let mut counter = 1000 + base.objects.values().map(|o| o.version.0).max().unwrap_or(0);
    let mut submitted: Vec<(u64, ShardOp)> = Vec::new();
    let mut syncs = Vec::new();
    for _ in 0..w.ops {
        for _ in 0..1 + rng.below(w.batch) {
            let mut op = ahead.random_op(&mut rng, w.objects, w.sectors, &mut counter);
            make_lazy(&mut op, w.lazy > 0 && rng.chance(w.lazy));
            let tag = driver.submit(op.clone());
            driver.issue();
            // Refused at once: it never was.
            if !matches!(driver.outcomes.get(&tag), Some(ShardOutcome::Failed(_))) {
                ahead.apply(&op);
                submitted.push((tag, op));
            }
        }
        let steps = rng.below(2 * w.batch + 2);
        (0..steps).for_each(|_| _ = driver.step());
        if w.lazy > 0 && rng.chance(12) {
            syncs.push(driver.submit(ShardOp::Sync));
        }
        if rng.chance(5) {
            driver.store.handle_idle();
            driver.issue();
        }
    }
    if stop.is_none() {
        driver.rest();
    }
    // Mutations refused while they waited inside (no space) had no effect.
    submitted.retain(|(tag, _)| match driver.outcomes.get(tag) {
        Some(ShardOutcome::Failed(Status::NoSpace | Status::Retry | Status::Invalid)) => false,
        Some(ShardOutcome::Failed(status)) => panic!("{status}"),
        _ => true,
    });
    let upto = |last: Option<u64>| submitted.iter().filter(|(tag, _)| last.is_some_and(|last| *tag <= last)).count();
    let is_done = |tag: &u64| driver.outcomes.get(tag) == Some(&ShardOutcome::Done);
    let tags = || submitted.iter().map(|(tag, _)| *tag);
    let acknowledged = upto(tags().chain(syncs.iter().copied()).filter(is_done).max());
    let written = upto(tags().filter(|tag| driver.outcomes.contains_key(tag)).max()).max(acknowledged);
    let mut states = vec![base.clone()];
    for (_, op) in &submitted {
        let mut next = states[states.len() - 1].clone();
        next.apply(op);
        states.push(next);
    }
    let steps = driver.device.steps;
    (Run { states: Rc::new(states), acknowledged, written, steps, device: driver.device }, steps)
}

fn make_lazy(op: &mut ShardOp, is_lazy: bool) {
    if let ShardOp::Write { lazy, .. } | ShardOp::Zero { lazy, .. } = op {
        *lazy = is_lazy;
    }
}

/// Fills the store with objects that the workload does not touch, until only overwrites pass: then every freed sector is
/// wanted again at once.
fn fill(mut model: Model, device: Device) -> (Model, Device) {
    let mut driver = Driver::open(device, 8);
    let mut version = 1_000_000;
    for count in [16, 4, 1] {
        for n in 10..60 {
            version += 1;
            let sectors = SectorRange::new(count, count);
            let op = write(object(n), Version(version), sectors, Origin::NONE);
            if driver.call(op.clone()) == ShardOutcome::Done {
                model.apply(&op);
            }
        }
    }
    assert_eq!(driver.call(write(object(9), Version(1), SectorRange::new(0, 1), Origin::NONE)), NO_SPACE);
    // A little room, so that overwrites of one object need not wait for each other.
    let sectors = SectorRange::new(0, 1024);
    let room =
        ShardOp::Zero { object: object(10), version: Version(version + 1), sectors, origin: Origin::NONE, lazy: false };
    assert_eq!(driver.call(room.clone()), ShardOutcome::Done);
    model.apply(&room);
    driver.rest();
    (model, driver.device.after_kill())
}

const NO_SPACE: ShardOutcome = ShardOutcome::Failed(Status::NoSpace);

/// Recovers and finds which prefix it is.
fn recover(run: &Run, device: Device, what: &str) -> (Driver, usize) {
    let mut driver = Driver::start(device, 5);
    driver.run();
    assert_eq!(driver.store.state(), StoreState::Running, "{what}");
    let matching =
        (run.acknowledged..run.states.len()).find(|&p| run.states[p].differs_from_index(&driver.store).is_none());
    let Some(prefix) = matching else {
        let lost = run.states[run.acknowledged].differs_from_index(&driver.store);
        panic!("{what}: no prefix of {}..{} fits; against the first: {lost:?}", run.acknowledged, run.states.len());
    };
    // Objects that the workload leaves alone are read now and then.
    let most = if run.steps.is_multiple_of(16) { u32::MAX } else { 10 };
    assert_eq!(run.states[prefix].differs_in_data(&mut driver, most), None, "{what}: prefix {prefix}");
    (driver, prefix)
}

/// The fates to be tried for the writes that are not safe: everything lost, everything kept, each one lost, each one the
/// only one kept, each one torn in several ways, and random mixtures.
fn fates(device: &Device, rng: &mut Rng, mixtures: usize) -> Vec<Vec<Fate>> {
    let n = device.cache.len();
    let mut all = vec![vec![Fate::Lost; n], vec![Fate::Kept; n]];
    for i in 0..n {
        for (rest, own) in [(Fate::Kept, Fate::Lost), (Fate::Lost, Fate::Kept)] {
            let mut one = vec![rest; n];
            one[i] = own;
            all.push(one);
        }
        let atoms = device.cache[i].atoms();
        for cut in [1, atoms / 2, atoms - 1] {
            for front in [true, false] {
                let mut torn = vec![Fate::Kept; n];
                torn[i] = Fate::Torn((0..atoms).map(|a| (a < cut) == front).collect());
                all.push(torn);
            }
        }
    }
    for _ in 0..mixtures {
        let one = device.cache.iter().map(|w| match rng.below(3) {
            0 => Fate::Lost,
            1 => Fate::Kept,
            _ => Fate::Torn((0..w.atoms()).map(|_| rng.chance(50)).collect()),
        });
        all.push(one.collect());
    }
    all
}

fn thin(mut all: Vec<Vec<Fate>>, most: usize, rng: &mut Rng) -> Vec<Vec<Fate>> {
    while all.len() > most {
        let at = 2 + rng.below(all.len() as u64 - 2) as usize;
        all.swap_remove(at);
    }
    all
}

/// Crashes a workload at every device write; goes on from some of the recovered stores and crashes those too. `warm_up`
/// operations come before, so that space and log are used for the second time.
fn attack(w: Workload, warm_up: usize, durability: Durability, per_point: usize) -> (u64, u64) {
    let mut rng = Rng(w.seed ^ 77);
    let fresh = formatted(w.bytes, w.log, durability, 3);
    let before = Workload { ops: warm_up, seed: w.seed ^ 99, ..w };
    let (warm, _) = play(&before, &Model::default(), fresh, None);
    let mut base = warm.states.last().expect("at least the first").clone();
    let mut device = warm.device.after_kill();
    if w.fill {
        (base, device) = fill(base, device);
    }
    let (whole, steps) = play(&w, &base, device.clone(), None);
    assert_eq!(whole.written + 1, whole.states.len());
    let (mut recoveries, mut cuts, mut undone) = (0, 0, 0);
    for stop in 1..=steps {
        let (run, _) = play(&w, &base, device.clone(), Some(stop));
        let fates = thin(fates(&run.device, &mut rng, 6), per_point, &mut rng);
        for (i, fate) in fates.into_iter().enumerate() {
            let what = format!("seed {} {durability:?} stop {stop} fate {fate:?}", w.seed);
            let (driver, prefix) = recover(&run, run.device.after_cut(&fate), &what);
            recoveries += 1;
            cuts += u64::from(driver.store.stats().cut > 0);
            if i == stop as usize % per_point {
                recoveries += second_crash(&w, &run.states[prefix], driver.device, &mut rng, &what);
            } else {
                undone += take_back(&run.states[prefix], driver, &what);
            }
        }
    }
    assert!(undone > 50, "only {undone} staged changes were taken back after a recovery");
    (recoveries, cuts)
}

/// Takes every staged change back, which shows what was kept; returns how many there were.
fn take_back(state: &Model, mut driver: Driver, what: &str) -> u64 {
    let mut model = state.clone();
    let staged: Vec<_> = state.objects.iter().filter(|(_, own)| own.staged.is_some()).collect();
    for (id, own) in &staged {
        let rollback = ShardOp::Rollback { object: **id, version: own.version };
        assert_eq!(driver.call(rollback.clone()), ShardOutcome::Done, "{what}");
        model.apply(&rollback);
    }
    if !staged.is_empty() {
        assert_eq!(model.differs_from_index(&driver.store), None, "{what}, then taken back");
        assert_eq!(model.differs_in_data(&mut driver, 10), None, "{what}, then taken back");
    }
    staged.len() as u64
}

/// The store goes on after a recovery, with other operations, and crashes again; at last it is killed while recovering.
fn second_crash(w: &Workload, base: &Model, device: Device, rng: &mut Rng, what: &str) -> u64 {
    let next = Workload { seed: w.seed ^ rng.next(), ops: 3, ..*w };
    let (run, _) = play(&next, base, device, Some(1 + rng.below(12)));
    let mut count = 0;
    for fate in thin(fates(&run.device, rng, 3), 5, rng) {
        let what = format!("{what}, then seed {} fate {fate:?}", next.seed);
        count += crash_in_recovery(&run, run.acknowledged, run.device.after_cut(&fate), rng, &what);
    }
    // The process alone dies: what it wrote is visible to the next one, but not yet safe.
    let what = format!("{what}, then seed {} killed", next.seed);
    count + crash_in_recovery(&run, run.written, run.device.after_kill(), rng, &what)
}

/// Crashes at a write of the recovery itself: the state that was shown must stay.
fn crash_in_recovery(run: &Run, least: usize, device: Device, rng: &mut Rng, what: &str) -> u64 {
    let (_, first) = recover(&Run { acknowledged: least, ..run_of(run) }, device.clone(), what);
    let mut recovering = Driver::start(device, 6);
    recovering.stop_at = Some(1 + rng.below(4));
    recovering.run();
    let shown = recovering.store.state() == StoreState::Running;
    let least = Run { acknowledged: if shown { first } else { run.acknowledged }, ..run_of(run) };
    let mut count = 1;
    for fate in thin(fates(&recovering.device, rng, 2), 3, rng) {
        let what = format!("{what}, killed in recovery, fate {fate:?}");
        recover(&least, recovering.device.after_cut(&fate), &what);
        count += 1;
    }
    count
}

fn run_of(run: &Run) -> Run {
    Run { states: run.states.clone(), device: Device::new(0, run.device.durability), ..*run }
}

const SMALL: Workload = Workload {
    seed: 1,
    bytes: 3 << 20,
    log: 128 << 10,
    objects: 6,
    sectors: 40,
    ops: 12,
    batch: 6,
    fill: false,
    lazy: 0,
};
const BOTH: [Durability; 2] = [Durability::WriteThrough, Durability::Flush];

#[test]
fn every_crash_of_a_mixed_workload_recovers_to_a_prefix() {
    for durability in BOTH {
        let (recoveries, cuts) = attack(Workload { seed: 1, ..SMALL }, 0, durability, 24);
        assert!(recoveries > 200 && cuts > 20, "{recoveries} recoveries, {cuts} with a cut: too few to mean anything");
    }
}

#[test]
fn every_crash_on_a_full_device_recovers_to_a_prefix() {
    for durability in BOTH {
        for seed in 31..=33 {
            let w = Workload { seed, bytes: 1 << 20, objects: 4, sectors: 48, ops: 10, ..SMALL };
            let (recoveries, cuts) = attack(w, 60, durability, 12);
            assert!(recoveries > 200 && cuts > 5, "{recoveries} recoveries, {cuts} with a cut");
        }
    }
}

#[test]
fn every_crash_while_sectors_are_reused_at_once_recovers_to_a_prefix() {
    for durability in BOTH {
        for seed in 51..=52 {
            let w = Workload { seed, bytes: 1 << 20, objects: 2, sectors: 5, ops: 12, fill: true, ..SMALL };
            let (recoveries, cuts) = attack(w, 12, durability, 10);
            assert!(recoveries > 200 && cuts > 5, "{recoveries} recoveries, {cuts} with a cut");
        }
    }
}

#[test]
fn every_crash_while_the_log_wraps_recovers_to_a_prefix() {
    for durability in BOTH {
        for seed in 41..=42 {
            let w = Workload { seed, batch: 2, ops: 30, objects: 3, ..SMALL };
            let (recoveries, cuts) = attack(w, 40, durability, 8);
            assert!(recoveries > 200 && cuts > 5, "{recoveries} recoveries, {cuts} with a cut");
        }
    }
}

#[test]
fn every_crash_of_single_writes_recovers_to_a_prefix() {
    for durability in BOTH {
        let w = Workload { seed: 21, batch: 1, ops: 30, objects: 2, sectors: 6, ..SMALL };
        let (recoveries, cuts) = attack(w, 5, durability, 30);
        assert!(recoveries > 200 && cuts > 5, "{recoveries} recoveries, {cuts} with a cut");
    }
}

#[test]
fn every_crash_of_a_lazy_workload_recovers_to_a_prefix_with_all_that_was_synced() {
    for durability in BOTH {
        for lazy in [60, 100] {
            let (recoveries, cuts) = attack(Workload { seed: 3, lazy, ..SMALL }, 0, durability, 24);
            assert!(recoveries > 200 && cuts > 20, "{recoveries} recoveries, {cuts} with a cut");
        }
    }
}

#[test]
fn every_crash_of_a_lazy_workload_on_a_full_device_recovers_to_a_prefix() {
    for durability in BOTH {
        let full = Workload { seed: 34, bytes: 1 << 20, objects: 4, sectors: 48, ops: 10, lazy: 80, ..SMALL };
        let reuse = Workload { seed: 54, bytes: 1 << 20, objects: 2, sectors: 5, fill: true, lazy: 90, ..SMALL };
        for (w, warm_up) in [(full, 60), (reuse, 12)] {
            let (recoveries, cuts) = attack(w, warm_up, durability, 12);
            assert!(recoveries > 200 && cuts > 5, "{recoveries} recoveries, {cuts} with a cut");
        }
    }
}

#[test]
fn every_crash_of_a_lazy_workload_while_the_log_wraps_recovers_to_a_prefix() {
    for durability in BOTH {
        let w = Workload { seed: 43, batch: 2, ops: 30, objects: 3, lazy: 85, ..SMALL };
        let (recoveries, cuts) = attack(w, 40, durability, 8);
        assert!(recoveries > 200 && cuts > 5, "{recoveries} recoveries, {cuts} with a cut");
    }
}
