//! The OSDs that may serve a pool, and which of them may serve a PG together.

use std::collections::{BTreeMap, BTreeSet};

use cluster_proto::OsdId;
use cluster_proto::map::{ClusterMap, LEVEL_HOST, LEVEL_OSD, OsdConfig, PlacementRules, PlacementTree, PoolConfig};

/// OSDs by index, in the order of their ids, and the limits on sets of them.
///
/// The groups of the limits nest: each group of a limit lies in one group of every limit before it. The last limit is the
/// failure domain: one member at most. So the sets of members that the rules allow are the independent sets of a *laminar
/// matroid*, which is why greedy choices and exchanges along paths reach every layout that exists at all.
#[derive(Clone, Debug)]
pub(super) struct Candidates {
    /// Who they are.
    pub ids: Vec<OsdId>,
    /// More than 0.
    pub weights: Vec<f64>,
    /// From the widest to the failure domain.
    pub limits: Vec<Limit>,
}

/// At most `max` members of a PG in one group.
#[derive(Clone, Debug)]
pub(super) struct Limit {
    /// At least 1.
    pub max: u32,
    /// Group of each OSD.
    pub group: Vec<u32>,
    /// Number of groups.
    pub count: usize,
}

/// What an OSD counts as at some level.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Place<'a> {
    Node(&'a str),
    Itself(OsdId),
    /// In no node of the level: nothing is known of it, so all such OSDs are one group.
    Nowhere,
}

impl<'a> Place<'a> {
    fn new(tree: &'a PlacementTree, level: &str, osd: OsdId, config: &'a OsdConfig) -> Self {
        if level == LEVEL_OSD {
            return Place::Itself(osd);
        }
        match tree.ancestor(&config.host, level) {
            Some(node) => Place::Node(node),
            None if level == LEVEL_HOST => Place::Itself(osd),
            None => Place::Nowhere,
        }
    }
}

impl Candidates {
    /// The OSDs of `usable` that have weight, tags and place for the pool.
    ///
    /// # Errors
    /// The rules name a level that the tree does not have; a sentence.
    pub fn of_pool(map: &ClusterMap, pool: &PoolConfig, usable: &BTreeSet<OsdId>) -> Result<Self, String> {
        let rules = &pool.placement;
        let fits = |osd: &OsdId, config: &OsdConfig| {
            usable.contains(osd)
                && config.effective_weight() > 0.0
                && rules.tags.iter().all(|tag| config.tags.contains(tag))
                && rules.root.as_ref().is_none_or(|root| map.tree.is_below(&config.host, root))
        };
        let osds: Vec<_> = map.osd_configs.iter().filter(|(osd, config)| fits(osd, config)).collect();
        let levels = levels(&map.tree, rules)?;
        let limits = levels.into_iter().map(|(level, max)| Limit::new(&map.tree, level, max, &osds)).collect();
        Ok(Self {
            ids: osds.iter().map(|(id, _)| **id).collect(),
            weights: osds.iter().map(|(_, config)| config.effective_weight()).collect(),
            limits,
        })
    }

    /// The same OSDs, each a failure domain of its own.
    pub fn without_domains(self) -> Self {
        let count = self.ids.len();
        let own = Limit { max: 1, group: (0..count as u32).collect(), count };
        Self { limits: vec![own], ..self }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Index of an OSD.
    pub fn index(&self, osd: OsdId) -> Option<u32> {
        self.ids.binary_search(&osd).ok().map(|at| at as u32)
    }

    /// The failure domain.
    pub fn domains(&self) -> Option<&Limit> {
        self.limits.last()
    }

    /// Whether `osd` may join `set`, in which `leaving` no longer counts.
    pub fn admits(&self, set: &[Option<u32>], leaving: Option<u32>, osd: u32) -> bool {
        let staying = || set.iter().flatten().filter(|member| Some(**member) != leaving);
        self.limits.iter().rev().all(|limit| {
            let group = limit.group[osd as usize];
            let there = staying().filter(|member| limit.group[**member as usize] == group).count();
            (there as u32) < limit.max
        })
    }

    /// Members of the largest set that the rules allow, at most `width`.
    pub fn rank(&self, width: usize) -> usize {
        let mut set = Vec::new();
        for osd in 0..self.len() as u32 {
            if set.len() < width && self.admits(&set, None, osd) {
                set.push(Some(osd));
            }
        }
        set.len()
    }

    /// Failure domains as candidates of their own, for what is decided on whole domains.
    pub fn fold(&self) -> Self {
        let Some(domains) = self.domains() else { return self.clone() };
        let mut first = vec![0; domains.count];
        let mut weights = vec![0.0; domains.count];
        for osd in (0..self.len()).rev() {
            first[domains.group[osd] as usize] = osd;
            weights[domains.group[osd] as usize] += self.weights[osd];
        }
        let fold =
            |limit: &Limit| Limit { group: first.iter().map(|osd| limit.group[*osd]).collect(), ..limit.clone() };
        Self {
            ids: first.iter().map(|osd| self.ids[*osd]).collect(),
            weights,
            limits: self.limits.iter().map(fold).collect(),
        }
    }
}

/// Levels with their limits, from the widest to the first of which a node holds one member at most: what is narrower cannot
/// hold more either.
fn levels<'a>(tree: &PlacementTree, rules: &'a PlacementRules) -> Result<Vec<(&'a str, u32)>, String> {
    let mut limits = BTreeMap::new();
    let asked = rules.max_per_level.iter().map(|(level, max)| (level.as_str(), u32::from(*max)));
    for (level, max) in asked.chain([(rules.failure_domain.as_str(), 1), (LEVEL_OSD, 1)]) {
        let rank = tree.rank(level).ok_or_else(|| {
            format!(
                "its rules name the level {level:?}, which the tree does not have: its levels are {:?}",
                tree.levels
            )
        })?;
        let limit = limits.entry(rank).or_insert((level, max));
        limit.1 = limit.1.min(max);
    }
    let end = limits.values().position(|(_, max)| *max == 1).map_or(limits.len(), |at| at + 1);
    Ok(limits.into_values().take(end).collect())
}

impl Limit {
    fn new(tree: &PlacementTree, level: &str, max: u32, osds: &[(&OsdId, &OsdConfig)]) -> Self {
        let places: Vec<_> = osds.iter().map(|(osd, config)| Place::new(tree, level, **osd, config)).collect();
        let mut groups: BTreeMap<&Place<'_>, u32> = BTreeMap::new();
        let mut group = Vec::with_capacity(places.len());
        for place in &places {
            let next = groups.len() as u32;
            group.push(*groups.entry(place).or_insert(next));
        }
        Self { max, group, count: groups.len() }
    }
}
