//! Placement as a whole: rules, shares, steadiness.

use std::collections::{BTreeMap, BTreeSet};

use cluster_proto::map::{
    ClusterMap, Interval, Member, OsdConfig, OsdStats, PgMap, PlacementRules, PlacementTree, PoolConfig, TreeNode,
};
use cluster_proto::shard::Space;
use cluster_proto::{Epoch, Incarnation, OsdId, PgId, PoolId};
use mon_core::ProblemCode;
use mon_core::dry_run::dry_run;
use mon_core::placement::{all_targets, ideal_shares, preferred_primaries, targets};
use proptest::prelude::*;

const POOL: PoolId = PoolId(1);

type Sets = Vec<Vec<OsdId>>;

fn everyone(map: &ClusterMap) -> BTreeSet<OsdId> {
    map.osd_configs.keys().copied().collect()
}

fn place(map: &ClusterMap, before: &Sets) -> Result<Sets, mon_core::Problem> {
    targets(map, POOL, &everyone(map), &(0..).zip(before.iter().cloned()).collect())
}

fn place_new(map: &ClusterMap) -> Sets {
    place(map, &Vec::new()).unwrap()
}

/// OSDs `1..` with these weights, each a host of its own.
fn flat(weights: &[f64], pool: PoolConfig) -> ClusterMap {
    let mut map = ClusterMap::default();
    map.osd_configs.extend((1..).zip(weights).map(|(id, weight)| (OsdId(id), OsdConfig::new(*weight))));
    map.pools.insert(POOL, pool);
    map
}

fn pool(copies: u8, pg_count: u32) -> PoolConfig {
    PoolConfig { pg_count, ..PoolConfig::replicated("p", copies) }
}

fn coded(data: u8, parity: u8, pg_count: u32) -> PoolConfig {
    PoolConfig { pg_count, ..PoolConfig::erasure_coded("p", data, parity) }
}

fn counts(sets: &Sets) -> BTreeMap<OsdId, u32> {
    let mut counts = BTreeMap::new();
    sets.iter().flatten().for_each(|osd| *counts.entry(*osd).or_default() += 1);
    counts
}

fn moved(before: &Sets, after: &Sets) -> usize {
    before.iter().zip(after).map(|(old, new)| new.iter().filter(|osd| !old.contains(osd)).count()).sum()
}

/// Shards that must move for these numbers of PGs per OSD.
fn gained(before: &Sets, after: &Sets) -> usize {
    let old = counts(before);
    let gain = |(osd, n): (OsdId, u32)| n.saturating_sub(old.get(&osd).copied().unwrap_or(0)) as usize;
    counts(after).into_iter().map(gain).sum()
}

/// What an OSD counts as at a level.
fn group(map: &ClusterMap, osd: OsdId, level: &str) -> String {
    match map.tree.ancestor(&map.osd_configs[&osd].host, level) {
        Some(node) => node.to_owned(),
        None if level == "host" || level == "osd" => format!("osd {osd}"),
        None => "nowhere".into(),
    }
}

/// Checks every rule of the pool, from the definitions.
fn check_rules(map: &ClusterMap, sets: &Sets) {
    let pool = &map.pools[&POOL];
    let rules = &pool.placement;
    assert_eq!(sets.len(), pool.pg_count as usize);
    for set in sets {
        assert_eq!(set.len(), pool.width());
        assert_eq!(set.iter().collect::<BTreeSet<_>>().len(), set.len(), "an OSD twice: {set:?}");
        for osd in set {
            let config = &map.osd_configs[osd];
            assert!(config.effective_weight() > 0.0);
            assert!(rules.tags.iter().all(|tag| config.tags.contains(tag)), "osd {osd} lacks a tag");
            assert!(
                rules.root.as_ref().is_none_or(|root| map.tree.is_below(&config.host, root)),
                "osd {osd} is outside"
            );
        }
        let limits = rules.max_per_level.iter().map(|(level, max)| (level.as_str(), usize::from(*max)));
        for (level, max) in limits.chain([(rules.failure_domain.as_str(), 1)]) {
            let mut there: BTreeMap<String, usize> = BTreeMap::new();
            for osd in set {
                *there.entry(group(map, *osd, level)).or_default() += 1;
            }
            assert!(there.values().all(|n| *n <= max), "{set:?} has more than {max} per {level}: {there:?}");
        }
    }
}

/// The smallest excess over the ideal shares with which the rules let whole PGs take all shards.
fn least_excess(map: &ClusterMap, ideal: &BTreeMap<OsdId, f64>) -> f64 {
    let pool = &map.pools[&POOL];
    let pgs = u64::from(pool.pg_count);
    let domain = pool.placement.failure_domain.as_str();
    let rack_max = pool.placement.max_per_level.get("rack").map_or(u64::MAX, |max| u64::from(*max) * pgs);
    let fits = |excess: f64| {
        let mut racks: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for (osd, share) in ideal {
            let domains = racks.entry(group(map, *osd, "rack")).or_default();
            *domains.entry(group(map, *osd, domain)).or_default() += ((share * excess + 1e-9) as u64).min(pgs);
        }
        let rack = |domains: BTreeMap<String, u64>| domains.values().map(|n| *n.min(&pgs)).sum::<u64>().min(rack_max);
        racks.into_values().map(rack).sum::<u64>() >= pgs * pool.width() as u64
    };
    let (mut low, mut high) = (1.0, 1e9);
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if fits(middle) { high = middle } else { low = middle }
    }
    high
}

/// Checks that every OSD serves its share: never less than rounded down, and more than rounded up only where that evens out the
/// excess over the share.
fn check_shares(map: &ClusterMap, sets: &Sets) {
    let ideal = ideal_shares(map, POOL, &everyone(map)).unwrap();
    let counts = counts(sets);
    let least = least_excess(map, &ideal);
    for (osd, share) in &ideal {
        let n = f64::from(counts.get(osd).copied().unwrap_or(0));
        assert!(n >= (share - 1e-6).floor(), "osd {osd} serves {n} of {share}");
        // One in a hundred more than the best is tolerated where it spares a move.
        let most = share.ceil().min(share * least * 1.01).max(share * least) + 1e-6;
        assert!(n <= most.max(share.floor()), "osd {osd} serves {n} of {share}, excess {least}");
    }
}

/// Checks that members that stay keep their shard.
fn check_positions(before: &Sets, after: &Sets) {
    for (old, new) in before.iter().zip(after) {
        for (at, osd) in old.iter().enumerate() {
            assert!(!new.contains(osd) || new[at] == *osd, "{old:?} became {new:?}");
        }
    }
}

#[test]
fn one_osd_one_copy() {
    let map = flat(&[1.0], pool(1, 8));
    assert_eq!(place_new(&map), vec![vec![OsdId(1)]; 8]);
}

#[test]
fn three_osds_three_copies_lead_in_turn() {
    let sets = place_new(&flat(&[1.0; 3], pool(3, 64)));
    let mut led = [1, 2, 3].map(|id| sets.iter().filter(|set| set[0] == OsdId(id)).count());
    led.sort_unstable();
    assert_eq!(led, [21, 21, 22]);
}

#[test]
fn an_osd_larger_than_all_others_serves_every_pg_once() {
    let map = flat(&[1.0, 1.0, 100.0], pool(2, 64));
    assert_eq!(counts(&place_new(&map)).into_values().collect::<Vec<_>>(), [32, 32, 64]);
}

#[test]
fn an_osd_without_weight_or_out_gets_nothing() {
    let mut map = flat(&[1.0, 0.0, 1.0, 1.0], pool(2, 32));
    map.osd_configs.get_mut(&OsdId(4)).unwrap().reweight = 0.0;
    assert_eq!(counts(&place_new(&map)).into_keys().collect::<Vec<_>>(), [OsdId(1), OsdId(3)]);
    let usable = BTreeSet::from([OsdId(1)]);
    let problem = targets(&map, POOL, &usable, &BTreeMap::new()).unwrap_err();
    assert_eq!(problem.code, ProblemCode::PoolTooFewOsds);
    assert_eq!(
        problem.message,
        "pool \"p\": it keeps 2 copies but only 1 OSD with weight can be used: add OSDs or create a pool with fewer copies"
    );
}

#[test]
fn too_few_hosts_are_a_problem_unless_the_pool_falls_back() {
    let mut map = flat(&[1.0; 4], pool(3, 32));
    for (osd, config) in &mut map.osd_configs {
        config.host = format!("h{}", osd.0 % 2);
    }
    let problem = place(&map, &Vec::new()).unwrap_err();
    assert!(problem.message.contains("its rules (failure domain \"host\") allow 2 together: add hosts"), "{problem}");
    map.pools.get_mut(&POOL).unwrap().placement.fall_back_to_osds = true;
    assert_eq!(counts(&place_new(&map)).into_values().collect::<Vec<_>>(), [24; 4]);
    map.pools.get_mut(&POOL).unwrap().placement.failure_domain = "shelf".into();
    assert!(place(&map, &Vec::new()).unwrap_err().message.contains("\"shelf\", which the tree does not have"));
}

#[test]
fn osds_of_which_no_rack_is_known_count_as_one_rack() {
    let mut map = flat(&[1.0; 4], pool(2, 32));
    map.pools.get_mut(&POOL).unwrap().placement.failure_domain = "rack".into();
    assert!(place(&map, &Vec::new()).unwrap_err().message.contains("allow 1 together: add racks"));
    map.tree.nodes.insert("r1".into(), TreeNode { level: "rack".into(), parent: None });
    map.osd_configs.get_mut(&OsdId(1)).unwrap().host = "r1".into();
    let sets = place_new(&map);
    check_rules(&map, &sets);
    assert_eq!(counts(&sets)[&OsdId(1)], 32);
}

#[test]
fn a_pool_that_does_not_exist_is_a_problem() {
    let problem = targets(&ClusterMap::default(), POOL, &BTreeSet::new(), &BTreeMap::new()).unwrap_err();
    assert_eq!(problem.code, ProblemCode::PoolMissing);
}

#[test]
fn an_osd_more_takes_its_share_from_all_others_and_nothing_else_moves() {
    for (n, width, pgs) in [(3, 3, 64), (10, 3, 256), (30, 3, 512), (7, 2, 100), (12, 1, 128)] {
        let mut map = flat(&vec![1.0; n], pool(width, pgs));
        let before = place_new(&map);
        map.osd_configs.insert(OsdId(n as u32 + 1), OsdConfig::new(1.0));
        let after = place(&map, &before).unwrap();
        let share = f64::from(pgs) * f64::from(width) / (n as f64 + 1.0);
        let moved = moved(&before, &after) as f64;
        assert!(moved >= share.floor() && moved <= share.ceil() * 1.3, "{n} OSDs: {moved} moved, its share is {share}");
    }
}

#[test]
fn an_osd_that_comes_back_gets_its_shards_back() {
    let map = flat(&[1.0; 9], coded(4, 2, 128));
    let before = place_new(&map);
    let mut usable = everyone(&map);
    usable.remove(&OsdId(4));
    let clean: BTreeMap<u32, Vec<OsdId>> = (0..).zip(before.iter().cloned()).collect();
    let without = targets(&map, POOL, &usable, &clean).unwrap();
    check_positions(&before, &without);
    assert!(without.iter().flatten().all(|osd| *osd != OsdId(4)));
    // Nothing became clean without it: the last clean layout is still the first one.
    assert_eq!(targets(&map, POOL, &everyone(&map), &clean).unwrap(), before);
}

#[test]
fn a_large_cluster_is_placed_quickly_and_evenly() {
    let mut map = flat(&[1.0; 500], pool(3, 4096));
    for (osd, config) in &mut map.osd_configs {
        config.host = format!("h{}", osd.0 % 50);
    }
    let start = std::time::Instant::now();
    let before = place_new(&map);
    check_rules(&map, &before);
    check_shares(&map, &before);
    map.osd_configs.retain(|_, config| config.host != "h7");
    let after = place(&map, &before).unwrap();
    check_rules(&map, &after);
    check_shares(&map, &after);
    // A tenth of a second when nobody else uses the machine; this finds what grows with the wrong power.
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    let lost =
        counts(&before).iter().filter(|(osd, _)| !map.osd_configs.contains_key(osd)).map(|(_, n)| *n).sum::<u32>();
    assert!(moved(&before, &after) as f64 <= f64::from(lost) * 1.05, "{} for {lost}", moved(&before, &after));
}

#[test]
fn an_osd_that_comes_back_gets_the_pgs_that_it_has_data_of() {
    let mut map = flat(&[1.0; 20], pool(3, 512));
    let before = place_new(&map);
    for (index, set) in (0..).zip(&before) {
        let acting = set.iter().map(|osd| Some(*osd)).collect();
        let interval = Interval { epoch: Epoch(1), acting, complete: set.clone(), min_size: 2 };
        map.histories.insert(PgId { pool: POOL, index }, vec![interval]);
    }
    let mut usable = everyone(&map);
    usable.remove(&OsdId(4));
    let without = targets(&map, POOL, &usable, &(0..).zip(before.iter().cloned()).collect()).unwrap();
    let after = place(&map, &without).unwrap();
    check_rules(&map, &after);
    let had = |set: &&Vec<OsdId>| set.contains(&OsdId(4));
    let again = before.iter().zip(&after).filter(|(old, new)| had(old) && had(new)).count();
    let all = after.iter().filter(had).count();
    assert!(again * 10 >= all * 9, "{again} of {all}");
}

/// The monitor lets few PGs move at a time, and asks again after each.
#[test]
fn a_change_made_in_small_steps_moves_no_more() {
    for pool in [pool(3, 256), coded(4, 2, 128)] {
        let mut map = flat(&[1.0; 12], pool);
        let before = place_new(&map);
        map.osd_configs.insert(OsdId(13), OsdConfig::new(1.5));
        map.osd_configs.remove(&OsdId(2));
        let at_once = place(&map, &before).unwrap();
        let (mut now, mut total) = (before.clone(), 0);
        for step in 0.. {
            assert!(step < 500, "does not end");
            let wished = place(&map, &now).unwrap();
            let different = now.iter().zip(&wished).enumerate().filter(|(_, (old, new))| old != new);
            let few: Vec<usize> = different.map(|(pg, _)| pg).take(5).collect();
            if few.is_empty() {
                break;
            }
            for pg in few {
                total += wished[pg].iter().filter(|osd| !now[pg].contains(osd)).count();
                now[pg].clone_from(&wished[pg]);
            }
        }
        check_rules(&map, &now);
        check_shares(&map, &now);
        let fewest = moved(&before, &at_once);
        assert!(total * 10 <= fewest * 11, "{total} moved in steps, {fewest} at once");
    }
}

#[test]
fn partners_follow_the_scatter_width() {
    let mut map = flat(&[1.0; 60], pool(3, 1024));
    let partners = |sets: &Sets| {
        let of =
            |id: OsdId| sets.iter().filter(move |set| set.contains(&id)).flatten().collect::<BTreeSet<_>>().len() - 1;
        (1..=60).map(|id| of(OsdId(id))).sum::<usize>() as f64 / 60.0
    };
    let automatic = partners(&place_new(&map));
    assert!((8.0..=20.0).contains(&automatic), "{automatic}");
    for width in [6, 12, 30] {
        map.pools.get_mut(&POOL).unwrap().placement.scatter_width = width;
        let measured = partners(&place_new(&map));
        let wanted = f64::from(width);
        assert!((0.7 * wanted..=1.8 * wanted).contains(&measured), "{measured} partners of {wanted}");
    }
}

#[test]
fn pools_even_out_each_others_rounding() {
    let mut map = flat(&[1.0; 10], pool(3, 16));
    let mut total: BTreeMap<OsdId, u32> = BTreeMap::new();
    for id in 1..=5 {
        let config = PoolConfig { pg_count: 16, ..PoolConfig::replicated(&format!("p{id}"), 3) };
        map.pools.insert(PoolId(id), config);
        let sets = targets(&map, PoolId(id), &everyone(&map), &BTreeMap::new()).unwrap();
        counts(&sets).into_iter().for_each(|(osd, n)| *total.entry(osd).or_default() += n);
        for (index, target) in (0..).zip(sets) {
            let acting = target.iter().map(|osd| Some(Member { osd: *osd, incarnation: Incarnation(1) })).collect();
            let present = PgMap {
                epoch: Epoch(1),
                primary: target[0],
                acting,
                target,
                dead: Vec::new(),
                unfenced: Vec::new(),
                pg_count: None,
            };
            map.pgs.insert(PgId { pool: PoolId(id), index }, present);
        }
    }
    assert_eq!(total.into_values().collect::<Vec<_>>(), [24; 10], "5 pools of 48 shards on 10 OSDs");
}

#[test]
fn pools_of_other_tags_keep_to_their_osds() {
    let mut map = flat(&[1.0; 8], pool(3, 64));
    for id in 1..=4 {
        map.osd_configs.get_mut(&OsdId(id)).unwrap().tags = vec!["ssd".into()];
    }
    let placement = PlacementRules { tags: vec!["ssd".into()], ..PlacementRules::default() };
    map.pools.insert(PoolId(2), PoolConfig { placement, pg_count: 64, ..PoolConfig::erasure_coded("fast", 2, 1) });
    let all = all_targets(&map, &everyone(&map), &BTreeMap::new());
    assert_eq!(counts(all[&POOL].as_ref().unwrap()).into_values().collect::<Vec<_>>(), [24; 8]);
    assert_eq!(counts(all[&PoolId(2)].as_ref().unwrap()).into_values().collect::<Vec<_>>(), [48; 4]);
}

#[test]
fn coded_pools_are_led_by_everybody_in_turn() {
    let mut map = flat(&[1.0; 6], coded(2, 1, 96));
    let sets = place_new(&map);
    let pool = &map.pools[&POOL];
    let leads = preferred_primaries(pool, &sets, &BTreeMap::new());
    assert!(sets.iter().zip(&leads).all(|(set, lead)| set.contains(lead)));
    assert!((1..=6).all(|id| leads.iter().filter(|lead| **lead == OsdId(id)).count() == 16));
    let present: BTreeMap<u32, OsdId> = (0..).zip(leads.iter().copied()).collect();
    assert_eq!(preferred_primaries(pool, &sets, &present), leads);
    // An OSD more leads a seventh; nobody else changes places.
    map.osd_configs.insert(OsdId(7), OsdConfig::new(1.0));
    let more = place(&map, &sets).unwrap();
    let new = preferred_primaries(&map.pools[&POOL], &more, &present);
    let changed = leads.iter().zip(&new).filter(|(old, new)| old != new).count();
    assert!((13..=20).contains(&changed), "{changed} of 96 have a new primary");
}

#[test]
fn a_dry_run_tells_what_moves_and_what_fills() {
    let mut map = flat(&[1.0; 3], pool(3, 60));
    let usable = everyone(&map);
    let pg = |index| PgId { pool: POOL, index };
    let last_clean: BTreeMap<PgId, Vec<OsdId>> =
        (0..).zip(place_new(&map)).map(|(index, set)| (pg(index), set)).collect();
    let bytes: BTreeMap<PgId, u64> = (0..60).map(|index| (pg(index), 1_000)).collect();
    let space = |total| OsdStats { space: Space { total, used: 60_000, objects: 60 }, ..OsdStats::default() };
    let mut stats: BTreeMap<OsdId, OsdStats> = usable.iter().map(|osd| (*osd, space(100_000))).collect();
    let nothing = dry_run(&map, &usable, &last_clean, &bytes, &stats);
    assert_eq!((nothing.total.shards, nothing.problems.len()), (0, 0));
    map.osd_configs.insert(OsdId(4), OsdConfig::new(1.0));
    stats.insert(OsdId(4), OsdStats { space: Space { total: 50_000, used: 0, objects: 0 }, ..OsdStats::default() });
    let run = dry_run(&map, &everyone(&map), &last_clean, &bytes, &stats);
    assert_eq!((run.total.shards, run.total.bytes), (45, 45_000));
    assert_eq!((run.osds[&OsdId(4)].gains.shards, run.osds[&OsdId(4)].fill_then), (45, Some(0.9)));
    assert_eq!((run.osds[&OsdId(1)].loses.shards, run.osds[&OsdId(1)].fill_then), (15, Some(0.45)));
    assert_eq!(run.problems.len(), 1);
    assert_eq!(run.problems[0].to_string(), "osd 4 would be 90.0% full, from 0.0% now [osd-nearly-full]");
    map.osd_configs.clear();
    let impossible = dry_run(&map, &usable, &last_clean, &bytes, &stats);
    assert_eq!((impossible.total.shards, impossible.problems[0].code), (0, ProblemCode::PoolTooFewOsds));
}

#[test]
fn a_pool_grows_and_shrinks_without_moving_more_than_it_must() {
    let mut map = flat(&[1.0; 8], pool(3, 64));
    let before = place_new(&map);
    map.pools.get_mut(&POOL).unwrap().pg_count = 128;
    let after = place(&map, &before).unwrap();
    check_rules(&map, &after);
    assert_eq!(moved(&before, &after), 0);
    map.pools.get_mut(&POOL).unwrap().scheme = cluster_proto::map::Scheme::Replicated { copies: 2 };
    let fewer = place(&map, &after).unwrap();
    check_rules(&map, &fewer);
    check_shares(&map, &fewer);
}

/// A cluster of hosts in racks, and a pool with rules.
fn cluster() -> impl Strategy<Value = ClusterMap> {
    let weight = prop_oneof![Just(1.0), Just(2.0), 0.1f64..8.0, Just(1000.0), Just(0.0)];
    let osd = (weight, any::<bool>());
    let host = (prop::collection::vec(osd, 1..5), 0usize..4);
    let scheme = prop_oneof![(1u8..5).prop_map(|n| (n, 0)), (1u8..5, 1u8..3)];
    let rules = (prop::option::of(1u8..4), 0u8..4, any::<bool>(), any::<bool>(), 0u32..40);
    (prop::collection::vec(host, 1..9), scheme, 1u32..150, rules, any::<bool>()).prop_map(
        |(hosts, (data, parity), pgs, (rack_max, domain, tagged, rooted, scatter_width), own)| {
            let mut pool = if parity == 0 { pool(data, pgs) } else { coded(data, parity, pgs) };
            pool.placement = PlacementRules {
                failure_domain: ["host", "host", "osd", "rack"][usize::from(domain)].into(),
                max_per_level: rack_max.map(|max| ("rack".to_owned(), max)).into_iter().collect(),
                root: rooted.then(|| "d0".to_owned()),
                tags: if tagged { vec!["ssd".into()] } else { Vec::new() },
                scatter_width,
                fall_back_to_osds: false,
            };
            let mut map = ClusterMap { tree: tree(&hosts), ..ClusterMap::default() };
            for (n, (osds, _)) in hosts.iter().enumerate() {
                for (weight, ssd) in osds {
                    let id = OsdId(map.osd_configs.len() as u32 + 1);
                    let host = if own && n == 0 { String::new() } else { format!("h{n}") };
                    let tags = if *ssd { vec!["ssd".into(), "new".into()] } else { Vec::new() };
                    map.osd_configs.insert(id, OsdConfig { host, tags, ..OsdConfig::new(*weight) });
                }
            }
            map.pools.insert(POOL, pool);
            map
        },
    )
}

/// Racks 0 to 2 in two datacentres; hosts in rack 3 stand at the top.
fn tree<T>(hosts: &[(T, usize)]) -> PlacementTree {
    let node = |level: &str, parent: Option<String>| TreeNode { level: level.into(), parent };
    let mut tree = PlacementTree::default();
    for n in 0..2 {
        tree.nodes.insert(format!("d{n}"), node("datacentre", None));
    }
    for n in 0..3 {
        tree.nodes.insert(format!("r{n}"), node("rack", Some(format!("d{}", n / 2))));
    }
    for (n, (_, rack)) in hosts.iter().enumerate() {
        tree.nodes.insert(format!("h{n}"), node("host", (*rack < 3).then(|| format!("r{rack}"))));
    }
    tree.validate().unwrap();
    tree
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn rules_and_shares_hold_and_a_layout_stays(map in cluster()) {
        let Ok(sets) = place(&map, &Vec::new()) else { return Ok(()) };
        check_rules(&map, &sets);
        check_shares(&map, &sets);
        prop_assert_eq!(&place_new(&map), &sets);
        prop_assert_eq!(&place(&map, &sets).unwrap(), &sets);
    }

    #[test]
    fn changes_keep_the_rules_and_move_little(
        map in cluster(),
        osd in any::<prop::sample::Index>(),
        what in 0..4,
        weight in 0.1f64..4.0,
    ) {
        let Ok(before) = place(&map, &Vec::new()) else { return Ok(()) };
        let mut after = map.clone();
        let osds: Vec<OsdId> = map.osd_configs.keys().copied().collect();
        let osd = *osd.get(&osds);
        match what {
            0 => _ = after.osd_configs.remove(&osd),
            1 => after.osd_configs.get_mut(&osd).unwrap().weight = weight,
            2 => after.osd_configs.get_mut(&osd).unwrap().reweight = 0.5,
            _ => {
                let config = OsdConfig { weight, ..map.osd_configs[&osd].clone() };
                after.osd_configs.insert(OsdId(100), config);
            }
        }
        let Ok(sets) = place(&after, &before) else { return Ok(()) };
        check_rules(&after, &sets);
        check_shares(&after, &sets);
        check_leads(&after, &sets);
        if map.pools[&POOL].scheme.copies_needed() > 1 {
            check_positions(&before, &sets);
        }
        let (moved, gained) = (moved(&before, &sets), gained(&before, &sets));
        prop_assert!(moved <= 2 * gained, "{} moved, {} would do", moved, gained);
        prop_assert_eq!(&place(&after, &sets).unwrap(), &sets);
    }

    #[test]
    fn an_osd_more_moves_about_its_share(
        n in 3usize..40, width in 1u8..4, pgs in 16u32..400, weights in prop::collection::vec(0.5f64..2.0, 41), equal: bool
    ) {
        let weights: Vec<f64> = weights.into_iter().map(|weight| if equal { 1.0 } else { weight }).collect();
        let mut map = flat(&weights[..n], pool(width, pgs));
        let before = place_new(&map);
        map.osd_configs.insert(OsdId(99), OsdConfig::new(weights[n]));
        let after = place(&map, &before).unwrap();
        let share = ideal_shares(&map, POOL, &everyone(&map)).unwrap()[&OsdId(99)];
        let moved = moved(&before, &after) as f64;
        prop_assert!(moved <= (share * 1.3).ceil() + 1.0, "{moved} moved, its share is {share}");
    }
}

/// Checks that each OSD is first in its share of the sets of a replicated pool.
fn check_leads(map: &ClusterMap, sets: &Sets) {
    let width = map.pools[&POOL].width() as u32;
    if map.pools[&POOL].scheme.copies_needed() > 1 || width == 1 {
        return;
    }
    let leads = preferred_primaries(&map.pools[&POOL], sets, &BTreeMap::new());
    for (osd, n) in counts(sets) {
        let led = leads.iter().filter(|lead| **lead == osd).count() as u32;
        assert!((n / width..=n.div_ceil(width)).contains(&led), "osd {osd} leads {led} of {n}");
    }
}
