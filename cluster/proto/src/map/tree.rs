//! The placement tree: where OSDs stand, so that what fails together is not relied on together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::SchemaError;
use super::pool::validate_name;

/// Level of the nodes that OSDs name in [`super::OsdConfig::host`].
pub const LEVEL_HOST: &str = "host";
/// The lowest level: every OSD for itself. It has no nodes.
pub const LEVEL_OSD: &str = "osd";
/// Levels of a tree.
pub const TREE_LEVELS_MAX: usize = 16;
/// Nodes of a tree.
pub const TREE_NODES_MAX: usize = 16 << 10;

/// One node: a host, a rack, a room.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TreeNode {
    /// One of the tree's levels.
    pub level: String,
    /// The node it stands in, of a wider level; none: it stands at the top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}

/// The whole tree, one value. Without it there are hosts only: those that OSDs name.
///
/// An OSD names its node in [`super::OsdConfig::host`]. A name that is not in the tree is a host at the top, so that
/// a cluster without racks needs no tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct PlacementTree {
    /// Names of the levels, from the widest to the narrowest. `host` must be among them; `osd` is implied below. By default
    /// `datacentre`, `room`, `rack`, `host`.
    pub levels: Vec<String>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, TreeNode>,
}

impl Default for PlacementTree {
    fn default() -> Self {
        let levels = ["datacentre", "room", "rack", LEVEL_HOST].map(str::to_owned).into();
        Self { levels, nodes: BTreeMap::new() }
    }
}

impl PlacementTree {
    /// Checks every bound, and that each node stands in one of a wider level (so there are no circles).
    ///
    /// # Errors
    /// The first fault, with what to give instead.
    pub fn validate(&self) -> Result<(), SchemaError> {
        self.validate_levels()?;
        SchemaError::check(self.nodes.len() <= TREE_NODES_MAX, || {
            format!("the tree has {} nodes: give at most {TREE_NODES_MAX}", self.nodes.len())
        })?;
        self.nodes.iter().try_for_each(|(name, node)| self.validate_node(name, node))
    }

    fn validate_levels(&self) -> Result<(), SchemaError> {
        let levels = &self.levels;
        SchemaError::check(levels.len() <= TREE_LEVELS_MAX, || {
            format!("the tree has {} levels: give at most {TREE_LEVELS_MAX}", levels.len())
        })?;
        levels.iter().try_for_each(|level| validate_name("level", level))?;
        SchemaError::check(levels.iter().any(|level| level == LEVEL_HOST), || {
            format!("levels are {levels:?}: {LEVEL_HOST:?} must be among them")
        })?;
        SchemaError::check(!levels.iter().any(|level| level == LEVEL_OSD), || {
            format!("levels are {levels:?}: leave out {LEVEL_OSD:?}, it is always there")
        })?;
        let twice = levels.iter().enumerate().find(|(at, level)| levels[..*at].contains(level));
        SchemaError::check(twice.is_none(), || format!("levels are {levels:?}: name each once"))
    }

    fn validate_node(&self, name: &str, node: &TreeNode) -> Result<(), SchemaError> {
        validate_name("node", name)?;
        let rank = self.rank(&node.level).ok_or_else(|| {
            SchemaError(format!("node {name:?} is a {:?}: the tree's levels are {:?}", node.level, self.levels))
        })?;
        let Some(parent) = &node.parent else { return Ok(()) };
        let above = self.nodes.get(parent).ok_or_else(|| {
            SchemaError(format!("node {name:?} stands in {parent:?}, which is not in the tree: add it first"))
        })?;
        SchemaError::check(self.rank(&above.level).is_some_and(|wider| wider < rank), || {
            format!("{} {name:?} stands in {} {parent:?}: give a node of a wider level", node.level, above.level)
        })
    }

    /// Position of a level, 0 for the widest. `osd` is below all others. `None`: there is no such level.
    pub fn rank(&self, level: &str) -> Option<usize> {
        if level == LEVEL_OSD {
            return Some(self.levels.len());
        }
        self.levels.iter().position(|known| known == level)
    }

    /// The node with its level and those it stands in, outwards. A name that is not in the tree is a host at the top; an
    /// empty one is nowhere.
    pub fn path<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let mut next = (!name.is_empty()).then_some(name);
        // A valid tree has no circles; one that was never validated must not hang us either.
        std::iter::from_fn(move || {
            let at = next?;
            let node = self.nodes.get(at);
            next = node.and_then(|node| node.parent.as_deref());
            Some((at, node.map_or(LEVEL_HOST, |node| node.level.as_str())))
        })
        .take(TREE_LEVELS_MAX)
    }

    /// The node of this level that `name` is or stands in.
    pub fn ancestor<'a>(&'a self, name: &'a str, level: &str) -> Option<&'a str> {
        self.path(name).find(|(_, at)| *at == level).map(|(node, _)| node)
    }

    /// Whether `name` is `root` or stands in it.
    pub fn is_below(&self, name: &str, root: &str) -> bool {
        self.path(name).any(|(node, _)| node == root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(nodes: &[(&str, &str, &str)]) -> PlacementTree {
        let node = |(name, level, parent): &(&str, &str, &str)| {
            let parent = (!parent.is_empty()).then(|| (*parent).to_owned());
            ((*name).to_owned(), TreeNode { level: (*level).to_owned(), parent })
        };
        PlacementTree { nodes: nodes.iter().map(node).collect(), ..PlacementTree::default() }
    }

    #[test]
    fn an_osd_stands_in_everything_above_its_host() {
        let tree = tree(&[("r1", "rack", "d1"), ("d1", "datacentre", ""), ("h1", "host", "r1")]);
        tree.validate().unwrap();
        assert_eq!(tree.ancestor("h1", "rack"), Some("r1"));
        assert_eq!(tree.ancestor("h1", "room"), None);
        assert!(tree.is_below("h1", "d1") && tree.is_below("h1", "h1") && !tree.is_below("d1", "h1"));
        assert_eq!(tree.ancestor("unknown", "host"), Some("unknown"));
        assert_eq!(tree.ancestor("", "host"), None);
    }

    #[test]
    fn faults_are_named() {
        let fault = |nodes: &[(&str, &str, &str)]| tree(nodes).validate().unwrap_err().to_string();
        assert!(fault(&[("h", "host", "r")]).contains("not in the tree"));
        assert!(fault(&[("h", "shelf", "")]).contains("levels are"));
        assert!(fault(&[("a", "rack", "b"), ("b", "rack", "a")]).contains("wider level"));
        assert!(fault(&[("r", "rack", "h"), ("h", "host", "")]).contains("wider level"));
        let with = |levels: &[&str]| PlacementTree {
            levels: levels.iter().map(|l| (*l).to_owned()).collect(),
            ..PlacementTree::default()
        };
        assert!(with(&["rack"]).validate().unwrap_err().to_string().contains("must be among"));
        assert!(with(&["host", "osd"]).validate().unwrap_err().to_string().contains("leave out"));
        assert!(with(&["host", "host"]).validate().unwrap_err().to_string().contains("once"));
    }

    #[test]
    fn a_circle_that_slipped_in_ends() {
        let tree = tree(&[("a", "rack", "b"), ("b", "rack", "a")]);
        assert_eq!(tree.path("a").count(), TREE_LEVELS_MAX);
        assert!(!tree.is_below("a", "c"));
    }
}
