//! The plan against clusters that change: by example and by random histories.

use std::collections::{BTreeMap, BTreeSet};

use cluster_proto::map::{
    Activation, ClusterInfo, ClusterMap, Member, OsdConfig, OsdState, OsdStats, PgMap, PgScrub, PoolConfig, keys,
};
use cluster_proto::{Epoch, Incarnation, OsdId, PgId, PoolId, Uuid};
use mon_core::health::{Health, Verdict, health};
use mon_core::{Plan, ProblemCode, Running, usable};
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

fn osd(run: u64) -> OsdState {
    let address = "127.0.0.1:1".parse().unwrap();
    OsdState { address, incarnation: Incarnation(run), started: 0 }
}

fn start(map: &mut ClusterMap, id: u32, run: u64) {
    map.osds.insert(OsdId(id), osd(run));
}

fn plan(map: &ClusterMap) -> Plan {
    mon_core::plan(map, &Running::registered(map), &usable(map, &BTreeSet::new()))
}

fn apply(map: &mut ClusterMap, plan: &Plan) {
    for (key, value) in plan.changes.iter().flat_map(|change| change.writes()) {
        map.apply(&key, value.as_deref()).unwrap();
    }
}

/// What primaries do: record every interval whose members run.
fn activate(map: &mut ClusterMap) {
    for (pg, present) in map.pgs.clone() {
        let min_size = map.pools.get(&pg.pool).map_or(1, |pool| pool.min_size);
        let runs = |m: &Member| map.osds.get(&m.osd).is_some_and(|o| o.incarnation == m.incarnation);
        let members: Vec<Member> = present.members().map(|(_, member)| member).collect();
        if members.iter().all(runs) && members.len() >= usize::from(min_size) {
            let complete = members.iter().map(|m| m.osd).collect();
            let record = Activation { epoch: present.epoch, acting: present.acting, complete, min_size };
            map.activations.insert(pg, record);
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

fn members(present: &PgMap) -> Vec<OsdId> {
    present.members().map(|(_, member)| member.osd).collect()
}

fn sorted(mut osds: Vec<OsdId>) -> Vec<OsdId> {
    osds.sort_unstable();
    osds
}

/// Runs the monitor and primaries until nothing changes.
fn settle(map: &mut ClusterMap) {
    let mut rest = 0;
    for _ in 0..10 {
        let planned = plan(map);
        apply(map, &planned);
        activate(map);
        rest = if planned.changes.is_empty() { rest + 1 } else { 0 };
    }
    assert!(rest > 1, "the plan does not come to rest");
}

#[test]
fn pgs_are_created_when_enough_of_their_members_run() {
    let mut map = cluster(4, 3);
    let before = plan(&map);
    assert!(before.changes.is_empty());
    assert_eq!(codes(&before), [ProblemCode::PoolWaitsForOsds]);
    (1..=2).for_each(|id| start(&mut map, id, 10 + u64::from(id)));
    let few = plan(&map);
    assert!(few.changes.is_empty(), "all or none");
    assert!(few.problems[0].message.contains("do not run (3, 4)"), "{}", few.problems[0]);
    start(&mut map, 3, 13);
    let all = plan(&map);
    assert_eq!(all.changes.len(), 16);
    assert!(all.changes.iter().any(|change| members(&change.map).len() == 2), "one may be absent");
    apply(&mut map, &all);
    start(&mut map, 4, 14);
    settle(&mut map);
    assert_eq!(map.pgs.len(), 16);
    for present in map.pgs.values() {
        assert!(present.members().all(|(_, m)| m.incarnation.0 == 10 + u64::from(m.osd.0)));
        assert_eq!(sorted(present.target.clone()), sorted(members(present)));
    }
}

#[test]
fn too_few_osds_are_a_problem_not_a_placement() {
    let mut map = cluster(2, 3);
    (1..=2).for_each(|id| start(&mut map, id, 1));
    let plan = plan(&map);
    assert!(plan.changes.is_empty());
    assert_eq!(codes(&plan), [ProblemCode::PoolTooFewOsds]);
    assert!(plan.problems[0].message.contains("keeps 3 copies but only 2 OSDs"), "{}", plan.problems[0]);
    assert_eq!(health(&map, &BTreeMap::new()).verdict, Verdict::Error);
}

#[test]
fn an_absence_and_a_return_are_new_intervals() {
    let mut map = cluster(3, 3);
    (1..=3).for_each(|id| start(&mut map, id, 1));
    settle(&mut map);
    assert_eq!(health(&map, &BTreeMap::new()).verdict, Verdict::Ok);
    let primaries: Vec<_> = map.pgs.values().map(|m| m.primary).collect();

    map.osds.remove(&OsdId(2));
    settle(&mut map);
    let judged = health(&map, &BTreeMap::new());
    assert_eq!((judged.pgs.degraded, judged.osds.up, judged.verdict), (16, 2, Verdict::Warning));
    assert!(map.pgs.values().all(|m| members(m).len() == 2 && m.primary != OsdId(2) && m.target.len() == 3));
    assert!(map.histories.values().all(|h| h.len() == 1), "all were complete before");

    start(&mut map, 2, 2);
    let restarted = plan(&map);
    assert_eq!(restarted.changes.len(), 16);
    assert!(restarted.changes.iter().all(|c| c.map.primary != OsdId(2)), "it has to catch up first");
    let keeps_history = |c: &mon_core::PgChange| c.unchanged().any(|key| key == keys::pg_history(c.pg));
    assert!(restarted.changes.iter().all(|c| c.history.is_some() && keeps_history(c)), "others write it, too");
    apply(&mut map, &restarted);
    assert_eq!(health(&map, &BTreeMap::new()).pgs.peering, 16);
    assert!(map.histories.values().all(|h| h.len() == 2), "the one before is needed until it has");
    settle(&mut map);
    assert_eq!(map.pgs.values().map(|m| m.primary).collect::<Vec<_>>(), primaries);
    assert!(map.histories.values().all(|h| h.len() <= 2));
}

#[test]
fn a_run_that_was_replaced_is_dead() {
    let mut map = cluster(3, 3);
    (1..=3).for_each(|id| start(&mut map, id, 1));
    settle(&mut map);
    start(&mut map, 2, 2);
    for change in plan(&map).changes {
        assert_eq!(change.map.dead, [Member { osd: OsdId(2), incarnation: Incarnation(1) }]);
        assert!(change.unchanged().any(|key| key == keys::osd(OsdId(2))), "that depends on the registration");
    }
}

#[test]
fn however_often_osds_restart_their_last_runs_are_known_dead() {
    let mut map = cluster(3, 3);
    for run in 1..30 {
        (1..=3).for_each(|id| start(&mut map, id, run));
        let planned = plan(&map);
        for change in planned.changes.iter().filter(|_| run > 1) {
            assert_eq!(change.map.dead.len(), 3, "run {run}: {:?}", change.map.dead);
            assert!(change.map.dead.iter().all(|member| member.incarnation.0 == run - 1));
        }
        apply(&mut map, &planned);
        settle(&mut map);
    }
}

#[test]
fn nobody_left_leaves_the_interval_alone() {
    let mut map = cluster(3, 3);
    (1..=3).for_each(|id| start(&mut map, id, 1));
    settle(&mut map);
    map.osds.clear();
    assert!(plan(&map).changes.is_empty());
    assert_eq!(health(&map, &BTreeMap::new()).pgs.offline, 16);
}

#[test]
fn shards_keep_their_places() {
    let mut map = cluster(5, 3);
    map.pools.insert(POOL, PoolConfig { pg_count: 16, ..PoolConfig::erasure_coded("coded", 2, 1) });
    (1..=5).for_each(|id| start(&mut map, id, 1));
    settle(&mut map);
    let before = map.pgs.clone();
    map.osds.remove(&OsdId(4));
    settle(&mut map);
    for (pg, present) in &map.pgs {
        let places = before[pg].acting.iter().zip(&present.acting);
        assert!(places.clone().all(|(old, new)| new == old || new.is_none() && old.unwrap().osd == OsdId(4)));
        assert_eq!(present.acting.len(), 3);
    }
}

#[test]
fn weight_moves_pgs_and_their_data_stays_reachable() {
    let mut map = cluster(4, 2);
    (1..=4).for_each(|id| start(&mut map, id, 1));
    settle(&mut map);
    map.osd_configs.insert(OsdId(1), OsdConfig::new(0.0));
    let moved = plan(&map);
    assert!(!moved.changes.is_empty());
    for change in &moved.changes {
        assert!(!members(&change.map).contains(&OsdId(1)));
        let history = change.history.as_ref().unwrap();
        assert!(
            history.iter().any(|past| past.osds().any(|osd| osd == OsdId(1)))
                || !map.pgs[&change.pg].target.contains(&OsdId(1))
        );
    }
    map.settings.rebalance_paused = true;
    assert!(plan(&map).changes.is_empty());
}

#[test]
fn data_of_a_dead_osd_moves_however_many_pgs_lack_it() {
    let mut map = cluster(4, 3);
    map.settings.moving_pgs_max = 4;
    (1..=3).for_each(|id| start(&mut map, id, 1));
    map.osd_configs.remove(&OsdId(4));
    settle(&mut map);
    map.osds.remove(&OsdId(1));
    settle(&mut map);
    assert!(map.pgs.values().all(|present| present.target.contains(&OsdId(1)) && members(present).len() == 2));
    // All of them lack it, more than may move at a time. An empty OSD takes its place, and it gets no data any more.
    map.osd_configs.insert(OsdId(4), OsdConfig::new(1.0));
    map.osd_configs.get_mut(&OsdId(1)).unwrap().reweight = 0.0;
    start(&mut map, 4, 1);
    let moved = |map: &ClusterMap| map.pgs.values().filter(|present| present.target.contains(&OsdId(4))).count();
    let begun = plan(&map);
    apply(&mut map, &begun);
    assert_eq!(moved(&map), 4, "so many at a time");
    assert!(plan(&map).changes.is_empty(), "the next begin when these have their data");
    settle(&mut map);
    assert_eq!(moved(&map), 16);
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
    settle(&mut map);
    for absent in [3, 2, 3, 1] {
        map.osds.remove(&OsdId(absent));
        settle(&mut map);
        map.osds.clear();
        (1..=3).for_each(|id| start(&mut map, id, u64::from(100 + absent)));
        let planned = plan(&map);
        apply(&mut map, &planned);
        assert!(map.histories.values().all(|h| h.len() >= 2), "{:?}", map.histories);
        settle(&mut map);
    }
    start(&mut map, 1, 200);
    settle(&mut map);
    assert!(map.histories.values().all(|h| h.len() == 1), "all were complete in the interval before");
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
    for uneven in [40, 12] {
        map.pools.get_mut(&POOL).unwrap().pg_count = uneven;
        let planned = plan(&map);
        assert_eq!((planned.changes.len(), codes(&planned)), (0, vec![ProblemCode::PoolChanged]));
        let restarted = std::mem::replace(map.osds.get_mut(&OsdId(2)).unwrap(), osd(2));
        assert_eq!(plan(&map).changes.len(), 16, "all go on where they are");
        map.osds.insert(OsdId(2), restarted);
    }
    map.pools.clear();
    start(&mut map, 1, 2);
    let lost = plan(&map);
    assert_eq!((lost.changes.len(), codes(&lost)), (0, vec![ProblemCode::PoolMissing]));
}

#[test]
fn a_pg_is_split_with_its_members_and_its_past() {
    let mut map = cluster(5, 3);
    (1..=5).for_each(|id| start(&mut map, id, 1));
    settle(&mut map);
    let before = map.clone();
    map.pools.get_mut(&POOL).unwrap().pg_count = 48;
    let planned = plan(&map);
    assert_eq!((planned.changes.len(), codes(&planned)), (16, vec![]));
    for change in &planned.changes {
        let (old, index) = (&before.pgs[&change.pg], change.pg.index);
        assert_eq!(change.parts(), [pg(index + 16), pg(index + 32)]);
        assert_eq!(change.map, PgMap { epoch: old.epoch.next(), pg_count: Some(48), ..old.clone() });
        let unchanged: BTreeSet<String> = change.unchanged().collect();
        assert!([index, index + 16, index + 32].iter().all(|index| unchanged.contains(&keys::pg_map(pg(*index)))));
        let last: Vec<String> = change.writes().into_iter().rev().take(3).map(|(key, _)| key).collect();
        assert!(last.iter().all(|key| key.starts_with("/blockyard/pg/map/")), "maps come last: {last:?}");
    }
    apply(&mut map, &planned);
    for (part, present) in &map.pgs {
        let whole = pg(part.index % 16);
        assert_eq!((present, &map.histories[part]), (&map.pgs[&whole], &map.histories[&whole]));
        assert_eq!(map.activations[part], before.activations[&whole], "the last interval was the whole one's");
        assert_eq!(map.histories[part].last().map(|past| past.epoch), Some(before.pgs[&whole].epoch));
    }
    assert_eq!(health(&map, &BTreeMap::new()).pgs.creating, 0);
    settle(&mut map);
    assert_eq!((map.pgs.len(), health(&map, &BTreeMap::new()).verdict), (48, Verdict::Ok));
    let served = |id| map.pgs.values().filter(|present| present.target.contains(&OsdId(id))).count();
    assert!((1..=5).all(|id| (28..=30).contains(&served(id))), "what was out of balance has moved");
}

#[test]
fn pgs_are_split_a_few_at_a_time_if_they_serve() {
    let mut map = cluster(4, 3);
    map.pools.get_mut(&POOL).unwrap().pg_count = 64;
    (1..=4).for_each(|id| start(&mut map, id, 1));
    settle(&mut map);
    map.pools.get_mut(&POOL).unwrap().pg_count = 128;
    map.osd_configs.insert(OsdId(5), OsdConfig::new(1.0));
    start(&mut map, 5, 1);
    let first = plan(&map);
    assert_eq!(first.changes.len(), 16, "what will be split soon is not moved before");
    assert!(first.changes.iter().all(|change| !change.parts().is_empty()));
    apply(&mut map, &first);
    let second = plan(&map);
    let parts: Vec<_> = second.changes.iter().map(|change| change.parts().len()).collect();
    assert_eq!(parts, [1], "the others wait until those serve");
    map.osds.remove(&OsdId(2));
    activate(&mut map);
    let third = plan(&map);
    let split: Vec<_> = third.changes.iter().filter(|change| !change.parts().is_empty()).collect();
    assert!(!split.is_empty() && !split.iter().any(|change| has(&map, change.pg, 2)), "nor what lacks a member");
    // A map that is lost now may be one that is yet to come.
    let unsplit = *map.pgs.iter().find(|(_, present)| present.pg_count == Some(64)).unwrap().0;
    let lost = map.pgs.remove(&unsplit).unwrap();
    let planned = plan(&map);
    assert_eq!(planned.changes.iter().filter(|change| change.pg == unsplit).count(), 0);
    assert!(codes(&planned).contains(&ProblemCode::PoolChanged));
    map.pgs.insert(unsplit, lost);
    for _ in 0..20 {
        settle(&mut map);
    }
    assert_eq!(map.pgs.len(), 128);
    assert!(map.pgs.values().all(|present| present.pg_count == Some(128)));
}

fn has(map: &ClusterMap, pg: PgId, osd: u32) -> bool {
    members(&map.pgs[&pg]).contains(&OsdId(osd))
}

/// Plans, applies and activates until there are so many PGs, and nothing changes any more. Every merge is looked at.
fn settle_at(map: &mut ClusterMap, count: u32) -> usize {
    map.pools.get_mut(&POOL).unwrap().pg_count = count;
    let (mut merges, mut steps) = (0, 0);
    loop {
        let planned = plan(map);
        assert_eq!(codes(&planned), vec![]);
        for change in planned.changes.iter().filter(|change| !change.merged().is_empty()) {
            check_merge(map, change);
            merges += 1;
        }
        if planned.changes.is_empty() {
            break;
        }
        apply(map, &planned);
        activate(map);
        steps += 1;
        assert!(steps < 200, "it does not come to rest: {:?}", planned.changes);
    }
    assert_eq!(map.pgs.len(), count as usize);
    assert!(map.pgs.iter().all(|(pg, own)| pg.index < count && own.pg_count == Some(count)));
    assert!(
        map.histories.keys().chain(map.activations.keys()).all(|pg| map.pgs.contains_key(pg)),
        "no records are left over"
    );
    merges
}

/// A PG's map without what the parts need not have in common.
fn plain(map: &PgMap) -> PgMap {
    PgMap { pg_count: None, dead: Vec::new(), unfenced: Vec::new(), ..map.clone() }
}

/// What must hold for a merge: its parts are alike, in one interval that all members have recorded as complete.
fn check_merge(map: &ClusterMap, change: &mon_core::PgChange) {
    let first = &map.pgs[&change.pg];
    let count = change.map.pg_count.unwrap();
    let unchanged: BTreeSet<String> = change.unchanged().collect();
    let members: Vec<OsdId> = members(first);
    let past = change.history.as_ref().unwrap();
    assert_eq!(past.len(), 1);
    assert_eq!((past[0].epoch, &past[0].complete.len()), (first.epoch, &members.len()));
    for part in [&change.pg].into_iter().chain(change.merged()) {
        let (present, record) = (&map.pgs[part], &map.activations[part]);
        assert_eq!(part.index % count, change.pg.index);
        assert_eq!(plain(present), plain(first));
        assert_eq!((record.epoch, &record.acting), (present.epoch, &present.acting));
        assert!(members.iter().all(|osd| record.complete.contains(osd)) && past[0].min_size <= record.min_size);
        assert!(unchanged.contains(&keys::pg_map(*part)) && unchanged.contains(&keys::pg_activation(*part)));
    }
    assert_eq!(plain(&change.map), PgMap { epoch: first.epoch.next(), ..plain(first) });
    assert!(change.map.unfenced.is_empty(), "recorded, so nobody serves on the strength of its registration");
    let writes = change.writes();
    let removed: BTreeSet<&str> = writes.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| &**key).collect();
    assert_eq!(removed.len(), 3 * change.merged().len());
    let first_removed = writes.iter().position(|(_, value)| value.is_none()).unwrap();
    assert!(
        writes[..first_removed].iter().any(|(key, _)| *key == keys::pg_map(change.pg)),
        "who hears of a removal knows why"
    );
}

#[test]
fn pgs_are_moved_together_aligned_and_merged() {
    for (osds, scheme) in [(5, PoolConfig::replicated("default", 3)), (6, PoolConfig::erasure_coded("default", 2, 2))] {
        let mut map = cluster(osds, 3);
        map.pools.insert(POOL, PoolConfig { pg_count: 48, ..scheme });
        (1..=osds).for_each(|id| start(&mut map, id, 1));
        settle(&mut map);
        assert_eq!(settle_at(&mut map, 16), 16);
        assert_eq!(health(&map, &BTreeMap::new()).verdict, Verdict::Ok);
        assert_eq!(settle_at(&mut map, 1), 1);
        assert_eq!(settle_at(&mut map, 64), 0);
        assert_eq!(settle_at(&mut map, 2), 2);
        let epochs = map.pgs.values().map(|present| present.epoch.0);
        assert!(epochs.max() < Some(60), "an epoch each for moving, aligning, merging");
    }
}

#[test]
fn only_what_is_whole_and_alike_is_merged() {
    let mut map = cluster(3, 3);
    (1..=3).for_each(|id| start(&mut map, id, 1));
    settle(&mut map);
    map.pools.get_mut(&POOL).unwrap().pg_count = 8;
    map.activations.get_mut(&pg(3)).unwrap().complete.pop();
    map.activations.remove(&pg(12));
    let lost = map.pgs.remove(&pg(5)).unwrap();
    let planned = plan(&map);
    let merged: BTreeSet<u32> = planned.changes.iter().filter(|c| !c.merged().is_empty()).map(|c| c.pg.index).collect();
    assert!(!merged.contains(&5) && merged.iter().all(|index| ![3, 4, 5].contains(index)));
    // The lost one is made again, unless its place was taken meanwhile.
    let again = planned.changes.iter().find(|change| change.pg == pg(5)).expect("made again");
    assert_eq!(again.map.pg_count, Some(16));
    let unchanged: BTreeSet<String> = again.unchanged().collect();
    assert!(
        [0, 1].iter().all(|index| unchanged.contains(&keys::pg_map(pg(*index)))),
        "it may have become part of one of those"
    );
    map.pgs.insert(pg(5), lost);
    // Once some are merged nobody knows any more.
    apply(&mut map, &planned);
    assert!(map.pgs.len() < 16 && map.pgs.contains_key(&pg(11)));
    let lost = *map.pgs.iter().find(|(_, present)| present.pg_count == Some(16)).unwrap().0;
    map.pgs.remove(&lost);
    let planned = plan(&map);
    assert!(planned.changes.iter().all(|change| change.pg != lost));
    assert!(codes(&planned).contains(&ProblemCode::PoolChanged));
    assert_eq!(health(&map, &BTreeMap::new()).pgs.creating, 1);
}

#[test]
fn the_number_of_pgs_may_change_again_at_any_time() {
    let mut map = cluster(4, 2);
    (1..=4).for_each(|id| start(&mut map, id, 1));
    settle(&mut map);
    for count in [8, 48, 12, 24, 2, 4, 16] {
        map.pools.get_mut(&POOL).unwrap().pg_count = count;
        for _ in 0..2 {
            let planned = plan(&map);
            let possible = !codes(&planned).contains(&ProblemCode::PoolChanged);
            assert!(possible || planned.changes.iter().all(|change| change.merged().is_empty()));
            planned.changes.iter().filter(|c| !c.merged().is_empty()).for_each(|change| check_merge(&map, change));
            apply(&mut map, &planned);
            activate(&mut map);
            let objects: Vec<_> = (0..48).map(|n| map.present_pg(POOL, n)).collect();
            assert!(!possible || objects.iter().all(Option::is_some), "{count}: {objects:?}");
        }
    }
    settle_at(&mut map, 48);
    settle_at(&mut map, 4);
    // Some PGs of 12 and others of 48 do not go to two: first those of 48 become PGs of 12.
    settle_at(&mut map, 12);
    map.pools.get_mut(&POOL).unwrap().pg_count = 48;
    map.osds.remove(&OsdId(2));
    for _ in 0..3 {
        let planned = plan(&map);
        apply(&mut map, &planned);
        activate(&mut map);
    }
    start(&mut map, 2, 2);
    let counts: BTreeSet<_> = map.pgs.values().map(|present| present.pg_count).collect();
    assert_eq!(counts.len(), 2);
    settle_at(&mut map, 1);
}

#[test]
fn maps_of_before_get_the_number_of_pgs_once() {
    let mut map = cluster(3, 3);
    (1..=3).for_each(|id| start(&mut map, id, 1));
    settle(&mut map);
    let before = map.pgs.clone();
    map.pgs.values_mut().for_each(|present| present.pg_count = None);
    let planned = plan(&map);
    assert_eq!(planned.changes.len(), 16);
    apply(&mut map, &planned);
    assert_eq!(map.pgs, before, "in the same interval");
    assert!(plan(&map).changes.is_empty());
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

/// One OSD, all of whose PGs serve.
fn healthy() -> ClusterMap {
    let mut map = cluster(1, 1);
    start(&mut map, 1, 1);
    let first = plan(&map);
    apply(&mut map, &first);
    activate(&mut map);
    map
}

#[test]
fn statistics_are_judged() {
    let map = healthy();
    let mut stats = OsdStats { crc_errors: 2, repaired_sectors: 2, io_errors: 1, ..OsdStats::default() };
    (stats.space.total, stats.space.used) = (1000, 850);
    let lossy = OsdStats { lost_sectors: 3, ..OsdStats::default() };
    let judged = health(&map, &BTreeMap::from([(OsdId(1), lossy)]));
    assert_eq!((judged.verdict, judged.problems[0].code), (Verdict::Error, ProblemCode::SectorsLost));
    assert!(judged.problems[0].message.contains("3 sectors"), "{}", judged.problems[0].message);
    let judged = health(&map, &BTreeMap::from([(OsdId(1), stats)]));
    let codes: Vec<_> = judged.problems.iter().map(|p| p.code.as_str()).collect();
    assert_eq!(codes, ["crc-errors", "io-errors", "osd-nearly-full"]);
    assert_eq!(judged.verdict, Verdict::Warning);
}

#[test]
fn what_scrubs_could_not_repair_is_told() {
    let mut map = healthy();
    map.scrubbed.insert(pg(2), PgScrub { errors: 4, ..PgScrub::default() });
    map.scrubbed.insert(pg(1000), PgScrub { errors: 4, unrepaired: 4, ..PgScrub::default() });
    let judged = |map: &_| health(map, &BTreeMap::new());
    assert_eq!(judged(&map).problems, [], "what is repaired, and what is gone, is no problem");
    map.scrubbed.insert(pg(3), PgScrub { errors: 4, unrepaired: 1, ..PgScrub::default() });
    let Health { verdict, problems, .. } = judged(&map);
    assert_eq!((verdict, problems.len(), problems[0].code), (Verdict::Error, 1, ProblemCode::ScrubUnrepaired));
    assert!(problems[0].message.contains(&format!("({})", pg(3))), "{}", problems[0].message);
}

#[derive(Clone, Debug)]
enum Step {
    Start(u32),
    Stop(u32),
    Activate,
    Plan,
    AddPool(u8),
    Split,
    Merge,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1u32..6).prop_map(Step::Start),
        1 => (1u32..6).prop_map(Step::Stop),
        2 => Just(Step::Activate),
        3 => Just(Step::Plan),
        1 => (1u8..4).prop_map(Step::AddPool),
        1 => Just(Step::Split),
        2 => Just(Step::Merge),
    ];
    prop::collection::vec(step, 1..60)
}

/// Applies the plan and checks what must hold for every plan.
fn check_plan(map: &mut ClusterMap) -> Result<(), TestCaseError> {
    let before = map.clone();
    let planned = plan(map);
    apply(map, &planned);
    let after = map.clone();
    let is_split = |(pg, present): (&PgId, &PgMap)| present.pg_count == Some(map.pools[&pg.pool].pg_count);
    let changes = |change: &mon_core::PgChange| !change.parts().is_empty() || !change.merged().is_empty();
    let splits = planned.changes.iter().any(changes);
    planned.changes.iter().filter(|change| !change.merged().is_empty()).for_each(|change| check_merge(&before, change));
    // While some are split or merged and others not, it takes some steps until nothing changes any more. Else balancing anew what the
    // first plan made may find a few moves more.
    let allowed = if splits || !map.pgs.iter().all(is_split) { 100 } else { 8 };
    let mut steps = 0;
    let mut next = plan(map);
    while !next.changes.is_empty() && steps < allowed {
        apply(map, &next);
        (next, steps) = (plan(map), steps + 1);
    }
    prop_assert!(next.changes.is_empty(), "the plan does not come to rest: {next:?} after {planned:?}");
    *map = after;
    prop_assert_eq!(map.pools.len(), before.pools.len());
    for change in &planned.changes {
        change.map.validate().unwrap();
        let old = before.pgs.get(&change.pg);
        prop_assert!(old.is_none_or(|old| old.epoch < change.map.epoch));
        prop_assert!(change.map.members().all(|(_, m)| before.osds[&m.osd].incarnation == m.incarnation));
        // An interval that was activated is never forgotten.
        if let Some(activation) = before.activations.get(&change.pg).filter(|a| old.is_some_and(|o| o.epoch == a.epoch))
        {
            prop_assert_eq!(map.histories[&change.pg].last().map(|i| i.epoch), Some(activation.epoch));
        }
        for part in change.parts() {
            prop_assert!(!before.pgs.contains_key(part) && map.pgs[part] == change.map);
            prop_assert_eq!(&map.histories[part], &map.histories[&change.pg]);
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
                Step::Split => {
                    let pool = map.pools.get_mut(&POOL).unwrap();
                    pool.pg_count = (pool.pg_count * 2).min(64);
                }
                Step::Merge => {
                    let pool = map.pools.get_mut(&POOL).unwrap();
                    pool.pg_count = (pool.pg_count / 2).max(4);
                }
            }
        }
    }
}
