//! How evenly, how fast and how steadily placement works, for clusters of several shapes:
//! `cargo run --release -p mon-core --example placement`.
//!
//! Times are CPU times of this process, so that other work on the machine does not count.
//!
//! *Even*: the share of all space that can be used until the first OSD is full, if every PG holds the same; *whole*: the most that
//! whole PGs allow with these weights. *Partners*: OSDs with which one shares PGs. *Moved*: shards that a change moves, and the fewest
//! that bring every OSD to its new quota.

use std::collections::{BTreeMap, BTreeSet};

use cluster_proto::map::{ClusterMap, OsdConfig, PlacementRules, PlacementTree, PoolConfig, TreeNode};
use cluster_proto::{OsdId, PoolId};
use mon_core::placement::{ideal_shares, targets};

const POOL: PoolId = PoolId(1);

struct Shape {
    name: &'static str,
    hosts: u32,
    osds_per_host: u32,
    /// Hosts per rack; 0: no racks.
    rack: u32,
    /// Weight of the n-th OSD.
    weight: fn(u32) -> f64,
    pool: PoolConfig,
}

fn main() {
    println!(
        "{:<44} {:>9} {:>8} {:>7} {:>7} {:>8} {:>14}",
        "cluster", "time", "again", "even", "whole", "partners", "moves of"
    );
    for shape in shapes() {
        measure(&shape);
    }
}

fn shapes() -> Vec<Shape> {
    let equal: fn(u32) -> f64 = |_| 1.0;
    let mixed: fn(u32) -> f64 = |n| [1.0, 2.0, 4.0][n as usize % 3];
    let random: fn(u32) -> f64 = |n| 0.5 + f64::from(n.wrapping_mul(2_654_435_761) >> 16) / 65_536.0;
    let shape =
        |name, hosts, osds_per_host, rack, weight, pool| Shape { name, hosts, osds_per_host, rack, weight, pool };
    let ec = |data, parity, pgs| PoolConfig { pg_count: pgs, ..PoolConfig::erasure_coded("p", data, parity) };
    let copies = |copies, pgs| PoolConfig { pg_count: pgs, ..PoolConfig::replicated("p", copies) };
    let racks = |pool: PoolConfig, max| {
        let placement =
            PlacementRules { max_per_level: [("rack".to_owned(), max)].into(), ..PlacementRules::default() };
        PoolConfig { placement, ..pool }
    };
    vec![
        shape("3 OSDs, 3 copies, 64 PGs", 3, 1, 0, equal, copies(3, 64)),
        shape("4 hosts x 3, 3 copies, 256 PGs", 4, 3, 0, equal, copies(3, 256)),
        shape("12 hosts x 4, EC 4+2, 512 PGs", 12, 4, 0, equal, ec(4, 2, 512)),
        shape("10 hosts x 10 of 1:2:4, 3 copies, 1024 PGs", 10, 10, 0, mixed, copies(3, 1024)),
        shape("30 hosts in 6 racks x 4, EC 8+3, 2 per rack", 30, 4, 5, equal, racks(ec(8, 3, 1024), 2)),
        shape("50 hosts x 10, 3 copies, 4096 PGs", 50, 10, 0, equal, copies(3, 4096)),
        shape("50 hosts x 10, random weights, 4096 PGs", 50, 10, 0, random, copies(3, 4096)),
        shape("50 hosts x 10 in 10 racks, 1 per rack", 50, 10, 5, equal, racks(copies(3, 4096), 1)),
        shape("50 hosts x 10, EC 8+3, 4096 PGs", 50, 10, 0, equal, ec(8, 3, 4096)),
        shape("500 hosts x 1, 3 copies, 4096 PGs", 500, 1, 0, equal, copies(3, 4096)),
        shape("500 hosts x 1, random weights, 4096 PGs", 500, 1, 0, random, copies(3, 4096)),
        shape("1000 hosts x 1, 3 copies, 16384 PGs", 1000, 1, 0, equal, copies(3, 16_384)),
    ]
}

impl Shape {
    fn osd(&self, host: u32, osd: u32) -> (OsdId, OsdConfig) {
        let n = host * self.osds_per_host + osd;
        (OsdId(n + 1), OsdConfig { host: format!("h{host}"), ..OsdConfig::new((self.weight)(n)) })
    }

    fn map(&self) -> ClusterMap {
        let mut map = ClusterMap::default();
        map.pools.insert(POOL, self.pool.clone());
        for host in 0..self.hosts {
            map.osd_configs.extend((0..self.osds_per_host).map(|osd| self.osd(host, osd)));
        }
        if self.rack > 0 {
            // One host more than there is: the one that is added.
            map.tree = racks(self.hosts + 1, self.rack);
        }
        map
    }
}

fn racks(hosts: u32, per_rack: u32) -> PlacementTree {
    let node = |level: &str, parent: Option<String>| TreeNode { level: level.into(), parent };
    let mut tree = PlacementTree::default();
    for host in 0..hosts {
        let rack = format!("r{}", host / per_rack);
        tree.nodes.insert(format!("h{host}"), node("host", Some(rack.clone())));
        tree.nodes.insert(rack, node("rack", None));
    }
    tree
}

type Sets = Vec<Vec<OsdId>>;

fn place(map: &ClusterMap, before: &Sets) -> Sets {
    let usable: BTreeSet<OsdId> = map.osd_configs.keys().copied().collect();
    let last_clean: BTreeMap<u32, Vec<OsdId>> = (0..).zip(before.iter().cloned()).collect();
    targets(map, POOL, &usable, &last_clean).unwrap_or_else(|problem| panic!("{problem}"))
}

/// CPU time that this process has used. Milliseconds; the first field of schedstat is in nanoseconds.
fn cpu_ms() -> u64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let ns: Option<u64> = text.split_whitespace().next().and_then(|field| field.parse().ok());
    ns.unwrap_or_default() / 1_000_000
}

fn measure(shape: &Shape) {
    let map = shape.map();
    let start = cpu_ms();
    let sets = place(&map, &Vec::new());
    let took = cpu_ms() - start;
    let start = cpu_ms();
    assert_eq!(place(&map, &sets), sets, "a clean layout stays");
    let again = cpu_ms() - start;
    let (even, whole) = evenness(&map, &sets);
    println!("{:<44} {:>6} ms {:>5} ms {even:>7.4} {whole:>7.4} {:>8.1}", shape.name, took, again, partners(&sets));
    for (what, after) in changes(shape, &map) {
        let usable: BTreeSet<OsdId> = after.osd_configs.keys().copied().collect();
        if ideal_shares(&after, POOL, &usable).is_err() {
            continue;
        }
        let start = cpu_ms();
        let moved_to = place(&after, &sets);
        let took = cpu_ms() - start;
        let (even, whole) = evenness(&after, &moved_to);
        let (moved, fewest) = moves(&sets, &moved_to);
        println!(
            "  {what:<42} {:>6} ms {:>8} {even:>7.4} {whole:>7.4} {:>8.1} {moved:>6} >= {fewest}",
            took,
            "",
            partners(&moved_to)
        );
    }
}

/// The cluster after each of several changes.
fn changes(shape: &Shape, map: &ClusterMap) -> Vec<(&'static str, ClusterMap)> {
    let change = |what, edit: &dyn Fn(&mut ClusterMap)| {
        let mut after = map.clone();
        edit(&mut after);
        (what, after)
    };
    vec![
        change("an OSD more", &|map| map.osd_configs.extend([shape.osd(shape.hosts, 0)])),
        change("an OSD less", &|map| _ = map.osd_configs.remove(&OsdId(2))),
        change("a host more", &|map| {
            map.osd_configs.extend((0..shape.osds_per_host).map(|osd| shape.osd(shape.hosts, osd)));
        }),
        change("a host less", &|map| map.osd_configs.retain(|_, config| config.host != "h0")),
        change("an OSD at half its weight", &|map| {
            map.osd_configs.entry(OsdId(2)).and_modify(|config| config.reweight = 0.5);
        }),
    ]
}

/// Share of the space that can be used, and the most that whole PGs allow.
fn evenness(map: &ClusterMap, sets: &Sets) -> (f64, f64) {
    let usable: BTreeSet<OsdId> = map.osd_configs.keys().copied().collect();
    let ideal = ideal_shares(map, POOL, &usable).unwrap_or_default();
    let mut served: BTreeMap<OsdId, u32> = BTreeMap::new();
    sets.iter().flatten().for_each(|osd| *served.entry(*osd).or_default() += 1);
    let worst = served.iter().map(|(osd, n)| f64::from(*n) / ideal[osd]).fold(0.0, f64::max);
    // The smallest excess with which all shards fit: whole numbers below `excess` times the ideal must suffice.
    let shards: u64 = sets.iter().map(|set| set.len() as u64).sum();
    let fits = |excess: f64| ideal.values().map(|share| (share * excess + 1e-9) as u64).sum::<u64>() >= shards;
    let (mut low, mut high) = (1.0, 1e6);
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if fits(middle) { high = middle } else { low = middle }
    }
    (1.0 / worst, 1.0 / high)
}

fn partners(sets: &Sets) -> f64 {
    let mut partners: BTreeMap<OsdId, BTreeSet<OsdId>> = BTreeMap::new();
    for set in sets {
        for osd in set {
            partners.entry(*osd).or_default().extend(set.iter().filter(|other| *other != osd));
        }
    }
    partners.values().map(BTreeSet::len).sum::<usize>() as f64 / partners.len() as f64
}

/// Shards that moved, and the fewest that give each OSD as many as it has now.
fn moves(before: &Sets, after: &Sets) -> (usize, u64) {
    let moved = before.iter().zip(after).map(|(old, new)| new.iter().filter(|osd| !old.contains(osd)).count()).sum();
    let mut gains: BTreeMap<OsdId, i64> = BTreeMap::new();
    after.iter().flatten().for_each(|osd| *gains.entry(*osd).or_default() += 1);
    before.iter().flatten().for_each(|osd| *gains.entry(*osd).or_default() -= 1);
    (moved, gains.values().map(|n| (*n).max(0) as u64).sum())
}
