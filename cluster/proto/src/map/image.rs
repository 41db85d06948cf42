//! Images and exports.

use serde::{Deserialize, Serialize};

use super::SchemaError;
use super::pool::validate_name;
use crate::ids::{LayerId, PoolId};
use crate::layout::LayerRef;
use crate::limits::IMAGE_SIZE_MAX;

/// Metadata of one layer of an image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ImageMeta {
    /// Name of the image, unique within its pool. 1 to 255 bytes.
    pub name: String,
    /// The pool.
    pub pool: PoolId,
    /// First ancestor; decides placement.
    pub lineage: LayerId,
    /// The layer this one was made from, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<LayerId>,
    /// Bytes; a multiple of 512, at least 512.
    pub size: u64,
    /// Largest size the image ever had while data beyond the present size may still be stored (a shrink in progress).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrinking_from: Option<u64>,
    /// No writes.
    #[serde(default)]
    pub read_only: bool,
    /// The image is being removed: nothing may open it.
    #[serde(default)]
    pub removing: bool,
    /// Seconds since 1970.
    pub created: u64,
}

impl ImageMeta {
    /// Checks every bound.
    ///
    /// # Errors
    /// The first field that is out of range, with the range.
    pub fn validate(&self) -> Result<(), SchemaError> {
        validate_name("image", &self.name)?;
        SchemaError::check(self.lineage.0 != 0, || "lineage is 0: layers are numbered from 1".into())?;
        let size = self.size;
        SchemaError::check((512..=IMAGE_SIZE_MAX).contains(&size) && size.is_multiple_of(512), || {
            format!("size is {size}: give a multiple of 512 from 512 to {IMAGE_SIZE_MAX} bytes")
        })
    }

    /// What identifies the objects of layer `id`, which this is the metadata of.
    pub fn layer_ref(&self, id: LayerId) -> LayerRef {
        LayerRef { pool: self.pool, lineage: self.lineage, layer: id }
    }
}

/// Entry of the name index.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ImageName {
    /// The image's top layer.
    pub layer: LayerId,
}

/// An export: a name under which gateways serve an image. Every image is exported under its own name without one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ExportConfig {
    /// Pool of the image, by name.
    pub pool: String,
    /// The image, by name.
    pub image: String,
    /// No writes through this export.
    #[serde(default)]
    pub read_only: bool,
    /// Free text for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

impl ExportConfig {
    /// Checks every bound.
    ///
    /// # Errors
    /// The first field that is out of range, with the range.
    pub fn validate(&self) -> Result<(), SchemaError> {
        validate_name("pool", &self.pool)?;
        validate_name("image", &self.image)
    }
}
