//! A few seeds in every test run; `./test` runs thousands with the optimised binary.

use sim::faults::Fault;

#[test]
fn a_few_seeds_hold() {
    for seed in 0..30 {
        sim::world::run(seed, &[], false).unwrap_or_else(|why| panic!("{why}"));
    }
}

/// Runs that found something once.
#[test]
fn what_failed_once_holds() {
    for (seed, often) in [
        (100_993, &[Fault::Move][..]),
        (202_081, &[Fault::Move]),
        (134, &[Fault::Errors]),
        (185, &[Fault::Errors]),
        (502_012, &[Fault::Errors]),
        (178, &[Fault::Pgs]),
        (7, &[Fault::Reads, Fault::Move]),
        (9, &[Fault::Reads, Fault::Pgs]),
        (40_967, &[Fault::Reads, Fault::Errors, Fault::Full]),
        (35, &[Fault::Reads]),
        (130, &[Fault::Sectors]),
        (15, &[Fault::Sectors, Fault::Lost]),
    ] {
        sim::world::run(seed, often, false).unwrap_or_else(|why| panic!("{often:?}: {why}"));
    }
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [3, 17, 1234] {
        let first = sim::world::run(seed, &[], false).unwrap_or_else(|why| panic!("{why}"));
        let second = sim::world::run(seed, &[], false).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(first, second, "seed {seed}");
        assert!(first.answered > 20 && first.events > 1000, "the run did something: {first:?}");
    }
}
