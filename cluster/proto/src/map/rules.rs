//! What a pool asks of the OSDs that serve it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::pool::validate_name;
use super::{LEVEL_HOST, SchemaError, TREE_LEVELS_MAX};
use crate::limits::SHARDS_MAX;

/// Tags of an OSD, or of a pool.
pub const TAGS_MAX: usize = 16;
/// Largest scatter width.
pub const SCATTER_WIDTH_MAX: u32 = 4096;

/// Placement rules of a pool. Names of levels and nodes are those of the tree; a name that the tree does not know is not an
/// error of the pool's value, but then the pool cannot be placed anew: its PGs stay where they are, and health tells why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct PlacementRules {
    /// Level of which each node holds one member of a PG at most. `host` by default, where an OSD that names no host is one
    /// of its own; `osd`: any distinct OSDs will do. At other levels the OSDs that stand in no node of it count as one node
    /// together, as nothing is known of them.
    pub failure_domain: String,
    /// Most members of a PG in one node of a level, such as `{"rack": 2}`. 1 to 32.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub max_per_level: BTreeMap<String, u8>,
    /// Only OSDs in this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Only OSDs that carry all of these. At most 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// With how many others an OSD shares PGs, about; at most 4,096. More: recovery reads from more devices at once. Fewer: fewer
    /// sets of OSDs whose simultaneous loss loses data. 0: chosen by the size of the cluster.
    pub scatter_width: u32,
    /// If there are fewer failure domains than members of a PG: place on distinct OSDs, without regard to failure domain
    /// and levels, rather than not at all.
    pub fall_back_to_osds: bool,
}

impl Default for PlacementRules {
    fn default() -> Self {
        Self {
            failure_domain: LEVEL_HOST.to_owned(),
            max_per_level: BTreeMap::new(),
            root: None,
            tags: Vec::new(),
            scatter_width: 0,
            fall_back_to_osds: false,
        }
    }
}

impl PlacementRules {
    /// Checks every bound.
    ///
    /// # Errors
    /// The first field that is out of range, with the range.
    pub fn validate(&self) -> Result<(), SchemaError> {
        validate_name("level", &self.failure_domain)?;
        SchemaError::check(self.max_per_level.len() <= TREE_LEVELS_MAX, || {
            format!("max-per-level names {} levels: give at most {TREE_LEVELS_MAX}", self.max_per_level.len())
        })?;
        for (level, max) in &self.max_per_level {
            validate_name("level", level)?;
            SchemaError::check((1..=SHARDS_MAX).contains(&usize::from(*max)), || {
                format!("max-per-level of {level:?} is {max}: give 1 to {SHARDS_MAX}")
            })?;
        }
        if let Some(root) = &self.root {
            validate_name("node", root)?;
        }
        validate_tags(&self.tags)?;
        SchemaError::check(self.scatter_width <= SCATTER_WIDTH_MAX, || {
            format!("scatter-width is {}: give 0 (automatic) to {SCATTER_WIDTH_MAX}", self.scatter_width)
        })
    }
}

/// Checks tags of an OSD or of a pool.
pub(super) fn validate_tags(tags: &[String]) -> Result<(), SchemaError> {
    SchemaError::check(tags.len() <= TAGS_MAX, || format!("{} tags: give at most {TAGS_MAX}", tags.len()))?;
    tags.iter().try_for_each(|tag| validate_name("tag", tag))?;
    let twice = tags.iter().enumerate().find(|(at, tag)| tags[..*at].contains(tag));
    SchemaError::check(twice.is_none(), || format!("tags are {tags:?}: name each once"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_value_is_the_default() {
        let rules: PlacementRules = serde_json::from_str("{}").unwrap();
        assert_eq!(rules, PlacementRules::default());
        assert_eq!(rules.validate(), Ok(()));
        assert!(serde_json::from_str::<PlacementRules>(r#"{"tag":["ssd"]}"#).is_err());
    }

    #[test]
    fn every_bound_is_checked() {
        let fault = |change: fn(&mut PlacementRules)| {
            let mut rules = PlacementRules::default();
            change(&mut rules);
            rules.validate().unwrap_err().to_string()
        };
        assert!(fault(|r| r.failure_domain.clear()).contains("level name has 0 bytes"));
        assert!(fault(|r| _ = r.max_per_level.insert("rack".into(), 0)).contains("give 1 to 32"));
        assert!(fault(|r| r.tags = vec!["a".into(), "a".into()]).contains("once"));
        assert!(fault(|r| r.tags = (0..17).map(|n| n.to_string()).collect()).contains("at most 16"));
        assert!(fault(|r| r.scatter_width = 5000).contains("4096"));
        assert!(fault(|r| r.root = Some(String::new())).contains("node name"));
    }
}
