//! Random operations, random device order, reopening in between; the store must equal a plain map at all times.

mod support;

use blockstore::{Durability, StoreState};
use cluster_proto::Status;
use cluster_proto::shard::{ShardOp, ShardOutcome};
use support::Rng;
use support::driver::{Driver, formatted};
use support::model::Model;

fn play(
    seed: u64,
    bytes: u64,
    durability: Durability,
    objects: u32,
    sectors: u32,
    ops: usize,
) -> blockstore::StoreStats {
    let mut rng = Rng(seed);
    let mut model = Model::default();
    let mut counter = 0;
    let mut driver = Driver::open(formatted(bytes, 128 << 10, durability, 9), seed);
    for round in 0..4 {
        for _ in 0..ops {
            // Several mutations at once; the model applies each when it is known to have succeeded.
            let mut ahead = model.clone();
            let mut batch: Vec<(u64, ShardOp)> = Vec::new();
            for _ in 0..1 + rng.below(12) {
                let op = ahead.random_op(&mut rng, objects, sectors, &mut counter);
                ahead.apply(&op);
                batch.push((driver.submit(op.clone()), op));
                for _ in 0..rng.below(4) {
                    driver.step();
                }
            }
            driver.run();
            for (tag, op) in batch {
                match &driver.outcomes[&tag] {
                    ShardOutcome::Done => model.apply(&op),
                    ShardOutcome::Failed(Status::NoSpace | Status::Retry | Status::Invalid) => {}
                    other => panic!("seed {seed}: {op:?} ended with {other:?}"),
                }
            }
            assert_eq!(model.differs_from_index(&driver.store), None, "seed {seed}");
        }
        assert_eq!(model.differs(&mut driver), None, "seed {seed} round {round}");
        let device = if round % 2 == 0 {
            driver.store.begin_close();
            driver.run();
            assert_eq!(driver.store.state(), StoreState::Closed);
            driver.device.clone()
        } else {
            driver.device.after_kill()
        };
        let is_clean = round % 2 == 0;
        let stats = driver.store.stats();
        driver = Driver::open(device, seed + round);
        assert!(!is_clean || driver.store.stats().cut == 0);
        assert_eq!(model.differs(&mut driver), None, "seed {seed} round {round} after reopening");
        if round == 3 {
            return stats;
        }
    }
    unreachable!()
}

#[test]
fn the_store_equals_a_map_on_a_roomy_device() {
    for seed in 0..6 {
        for durability in [Durability::WriteThrough, Durability::Flush] {
            play(seed, 32 << 20, durability, 40, 64, 60);
        }
    }
}

#[test]
fn the_store_equals_a_map_when_space_runs_out() {
    let mut checkpoints = 0;
    for seed in 100..112 {
        for durability in [Durability::WriteThrough, Durability::Flush] {
            let stats = play(seed, 3 << 20, durability, 30, 100, 120);
            checkpoints += stats.checkpoints;
        }
    }
    assert!(checkpoints > 100, "the log must wrap: {checkpoints} checkpoints");
}
