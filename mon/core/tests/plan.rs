//! The plan against clusters that change: by example and by random histories.

use std::collections::BTreeMap;

use cluster_proto::map::{
    Activation, ClusterInfo, ClusterMap, Interval, OsdConfig, OsdState, OsdStats, PoolConfig, keys,
};
use cluster_proto::{Epoch, Incarnation, OsdId, PgId, PoolId, Uuid};
use mon_core::health::{Verdict, health};
use mon_core::{Plan, ProblemCode, plan};
use proptest::prelude::*;

const POOL: PoolId = PoolId(1);

fn cluster(osds: u32, copies: u8) -> ClusterMap {
    let mut map = ClusterMap {
        cluster: Some(ClusterInfo { id: Uuid::from_u128(1), created: 0, schema: 1 }),
        ..ClusterMap::default()
    };
    map.pools.insert(POOL, PoolConfig { pg_count: 16, ..PoolConfig::replicated("default", copies) });
    for id in 1..=osds {
        map.osd_configs.insert(OsdId(id), OsdConfig::new(1.0));
    }
    map
}

fn start(map: &mut ClusterMap, osd: u32, run: u64) {
    let address = "127.0.0.1:1".parse().unwrap();
    map.osds.insert(OsdId(osd), OsdState { address, incarnation: Incarnation(run), started: 0 });
}

fn apply(map: &mut ClusterMap, plan: &Plan) {
    for (key, value) in plan.changes.iter().flat_map(|change| change.writes()) {
        map.apply(&key, value.as_deref()).unwrap();
    }
}

/// What primaries do: record every interval whose members run.
fn activate(map: &mut ClusterMap) {
    for (pg, present) in map.pgs.clone() {
        if present.acting.iter().all(|m| map.osds.get(&m.osd).is_some_and(|o| o.incarnation == m.incarnation)) {
            map.activations.insert(pg, Activation { epoch: present.epoch, acting: present.acting });
        }
    }
}

fn codes(plan: &Plan) -> Vec<ProblemCode> {
    plan.problems.iter().map(|p| p.code).collect()
}

fn pg(index: u32) -> PgId {
    PgId { pool: POOL, index }
}

#[test]
fn a_store_without_cluster_is_left_alone() {
    let mut map = cluster(3, 3);
    map.cluster = None;
    (1..=3).for_each(|id| start(&mut map, id, 1));
    let plan = plan(&map);
    assert!(plan.changes.is_empty());
    assert_eq!(codes(&plan), [ProblemCode::NoCluster]);
}

#[test]
fn pgs_are_created_when_their_members_run() {
    let mut map = cluster(4, 2);
    let before = plan(&map);
    assert!(before.changes.is_empty());
    assert_eq!(codes(&before), [ProblemCode::PoolWaitsForOsds]);
    (1..=3).for_each(|id| start(&mut map, id, 10 + u64::from(id)));
    let some = plan(&map);
    assert!(!some.changes.is_empty() && some.changes.len() < 16);
    assert!(some.problems[0].message.contains("do not run (4)"), "{}", some.problems[0]);
    apply(&mut map, &some);
    start(&mut map, 4, 14);
    let rest = plan(&map);
    assert_eq!(some.changes.len() + rest.changes.len(), 16);
    apply(&mut map, &rest);
    assert_eq!(plan(&map), Plan::default());
    for present in map.pgs.values() {
        assert_eq!(present.epoch, Epoch(1));
        assert!(present.acting.iter().all(|m| m.incarnation.0 == 10 + u64::from(m.osd.0)));
        assert_eq!(present.target, present.acting.iter().map(|m| m.osd).collect::<Vec<_>>());
    }
}

#[test]
fn too_few_osds_are_a_problem_not_a_placement() {
    let mut map = cluster(2, 3);
    (1..=2).for_each(|id| start(&mut map, id, 1));
    let plan = plan(&map);
    assert!(plan.changes.is_empty());
    assert_eq!(codes(&plan), [ProblemCode::PoolTooFewOsds]);
    assert_eq!(
        plan.problems[0].message,
        "pool \"default\" keeps 3 copies but only 2 OSDs exist with weight: add OSDs or create a pool with fewer copies"
    );
    assert_eq!(health(&map, &BTreeMap::new()).verdict, Verdict::Error);
}

#[test]
fn a_restart_is_a_new_interval_and_an_absence_is_not() {
    let mut map = cluster(3, 3);
    (1..=3).for_each(|id| start(&mut map, id, 1));
    let first = plan(&map);
    apply(&mut map, &first);
    activate(&mut map);
    assert_eq!(health(&map, &BTreeMap::new()).verdict, Verdict::Ok);
    let primaries: Vec<_> = map.pgs.values().map(|m| m.acting[0].osd).collect();

    map.osds.remove(&OsdId(2));
    assert_eq!(plan(&map), Plan::default());
    let judged = health(&map, &BTreeMap::new());
    assert_eq!((judged.pgs.offline, judged.osds.up, judged.verdict), (16, 2, Verdict::Error));

    start(&mut map, 2, 2);
    let restarted = plan(&map);
    assert_eq!(restarted.changes.len(), 16);
    apply(&mut map, &restarted);
    for present in map.pgs.values() {
        assert_eq!(present.epoch, Epoch(2));
        assert_eq!(present.acting.iter().find(|m| m.osd == OsdId(2)).unwrap().incarnation, Incarnation(2));
    }
    assert_eq!(map.pgs.values().map(|m| m.acting[0].osd).collect::<Vec<_>>(), primaries);
    assert!(map.histories.values().all(|h| h.len() == 1 && h[0].epoch == Epoch(1) && h[0].acting.len() == 3));
    assert_eq!(health(&map, &BTreeMap::new()).pgs.peering, 16);
}

#[test]
fn only_intervals_that_were_activated_enter_the_history() {
    let mut map = cluster(3, 3);
    (1..=3).for_each(|id| start(&mut map, id, 1));
    let first = plan(&map);
    apply(&mut map, &first);
    start(&mut map, 1, 2);
    let second = plan(&map);
    assert!(second.changes.iter().all(|c| c.history.is_none() && c.map.epoch == Epoch(2)));
    apply(&mut map, &second);
    activate(&mut map);
    start(&mut map, 1, 3);
    let third = plan(&map);
    apply(&mut map, &third);
    start(&mut map, 1, 4);
    let fourth = plan(&map);
    assert!(fourth.changes.iter().all(|c| c.history.is_none() && c.map.epoch == Epoch(4)));
    apply(&mut map, &fourth);
    assert!(map.histories.values().all(|h| h.len() == 1 && h[0].epoch == Epoch(2)));
}

#[test]
fn the_history_is_kept_while_a_target_member_was_absent() {
    let mut map = cluster(3, 3);
    (1..=3).for_each(|id| start(&mut map, id, 1));
    let first = plan(&map);
    apply(&mut map, &first);
    let old = vec![Interval { epoch: Epoch(1), acting: vec![OsdId(1), OsdId(2), OsdId(3)] }];
    map.histories.insert(pg(0), old);
    let present = map.pgs.get_mut(&pg(0)).unwrap();
    present.epoch = Epoch(2);
    present.acting.retain(|m| m.osd != OsdId(3));
    let activation = Activation { epoch: Epoch(2), acting: present.acting.clone() };
    map.activations.insert(pg(0), activation);
    let next = plan(&map);
    let history = next.changes[0].history.clone().unwrap();
    assert_eq!(history.iter().map(|i| i.epoch.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(history[1].acting.len(), 2);
}

#[test]
fn a_lost_map_never_reuses_an_epoch() {
    let mut map = cluster(3, 3);
    (1..=3).for_each(|id| start(&mut map, id, 1));
    let first = plan(&map);
    apply(&mut map, &first);
    activate(&mut map);
    map.pgs.remove(&pg(5));
    let again = plan(&map);
    assert_eq!(again.changes.len(), 1);
    assert_eq!(again.changes[0].map.epoch, Epoch(2));
    assert_eq!(again.changes[0].history.as_ref().unwrap()[0].epoch, Epoch(1));
}

#[test]
fn a_changed_or_lost_pool_keeps_its_pgs() {
    let mut map = cluster(3, 3);
    (1..=3).for_each(|id| start(&mut map, id, 1));
    let first = plan(&map);
    apply(&mut map, &first);
    map.pools.get_mut(&POOL).unwrap().pg_count = 8;
    let shrunk = plan(&map);
    assert!(shrunk.changes.is_empty());
    assert_eq!(codes(&shrunk), [ProblemCode::PoolChanged]);
    map.pools.clear();
    start(&mut map, 1, 2);
    let lost = plan(&map);
    assert_eq!((lost.changes.len(), codes(&lost)), (16, vec![ProblemCode::PoolMissing]));
}

#[test]
fn the_last_epoch_is_not_passed() {
    let mut map = cluster(1, 1);
    start(&mut map, 1, 1);
    let first = plan(&map);
    apply(&mut map, &first);
    map.pgs.get_mut(&pg(3)).unwrap().epoch = Epoch::MAX;
    start(&mut map, 1, 2);
    let next = plan(&map);
    assert_eq!(next.changes.len(), 15);
    assert_eq!(codes(&next), [ProblemCode::PgEpochsExhausted]);
}

#[test]
fn statistics_are_judged() {
    let mut map = cluster(1, 1);
    start(&mut map, 1, 1);
    let first = plan(&map);
    apply(&mut map, &first);
    activate(&mut map);
    let mut stats = OsdStats { crc_errors: 2, repaired_sectors: 2, io_errors: 1, ..OsdStats::default() };
    (stats.space.total, stats.space.used) = (1000, 850);
    let judged = health(&map, &BTreeMap::from([(OsdId(1), stats)]));
    let codes: Vec<_> = judged.problems.iter().map(|p| p.code.as_str()).collect();
    assert_eq!(codes, ["crc-errors", "io-errors", "osd-nearly-full"]);
    assert_eq!(judged.verdict, Verdict::Warning);
}

#[derive(Clone, Debug)]
enum Step {
    Start(u32),
    Stop(u32),
    Activate,
    Plan,
    AddPool(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1u32..6).prop_map(Step::Start),
        1 => (1u32..6).prop_map(Step::Stop),
        2 => Just(Step::Activate),
        3 => Just(Step::Plan),
        1 => (1u8..4).prop_map(Step::AddPool),
    ];
    prop::collection::vec(step, 1..60)
}

/// Applies the plan and checks what must hold for every plan.
fn check_plan(map: &mut ClusterMap) -> Result<(), TestCaseError> {
    let before = map.clone();
    let planned = plan(map);
    apply(map, &planned);
    prop_assert!(plan(map).changes.is_empty(), "planning again finds more");
    prop_assert_eq!(map.pools.len(), before.pools.len());
    for change in &planned.changes {
        change.map.validate().unwrap();
        let old = before.pgs.get(&change.pg);
        prop_assert!(old.is_none_or(|old| old.epoch < change.map.epoch));
        prop_assert!(old.is_none_or(|old| old.target == change.map.target));
        prop_assert!(change.map.acting.iter().all(|m| before.osds[&m.osd].incarnation == m.incarnation));
        // An interval that was activated is never forgotten.
        if let Some(activation) = before.activations.get(&change.pg).filter(|a| old.is_some_and(|o| o.epoch == a.epoch))
        {
            prop_assert_eq!(map.histories[&change.pg].last().map(|i| i.epoch), Some(activation.epoch));
        }
        prop_assert!(change.writes().iter().all(|(key, _)| key.starts_with(keys::PGS)));
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_history_keeps_the_rules(steps in steps()) {
        let mut map = cluster(5, 3);
        let mut run = 0;
        for step in steps {
            run += 1;
            match step {
                Step::Start(osd) => start(&mut map, osd, run),
                Step::Stop(osd) => drop(map.osds.remove(&OsdId(osd))),
                Step::Activate => activate(&mut map),
                Step::Plan => check_plan(&mut map)?,
                Step::AddPool(copies) => {
                    let id = PoolId(map.pools.len() as u32 + 1);
                    let pool = PoolConfig { pg_count: 8, ..PoolConfig::replicated(&format!("p{id}"), copies) };
                    map.pools.insert(id, pool);
                }
            }
        }
    }
}
