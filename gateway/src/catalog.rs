//! What is exported, decided from the cluster state. Lives on the control plane; the thread gets the differences.

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster_client::ImageOptions;
use cluster_proto::map::{ClusterMap, ExportConfig, ImageMeta, ImageName, SchemaError, keys, parse};
use cluster_proto::{LayerId, PoolId};
use gateway_core::VolumeInfo;

use crate::config::{PREFERRED_BLOCK, TRANSFER_MAX};

/// Pool whose images are exported under their plain names.
const PLAIN_POOL: &str = "default";

/// One export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ExportSpec {
    /// What clients are told.
    pub info: Arc<VolumeInfo>,
    /// What the client core opens. Never read-only: that is a matter of the export.
    pub image: ImageOptions,
}

/// An export has become this; `None`: it is gone.
pub(crate) type ExportChange = (String, Option<ExportSpec>);

/// The part of the cluster state that exports are made of.
#[derive(Default)]
pub(crate) struct Catalog {
    map: ClusterMap,
    /// Top layer by the key of the name index.
    names: BTreeMap<String, LayerId>,
    layers: BTreeMap<LayerId, ImageMeta>,
    configs: BTreeMap<String, ExportConfig>,
    /// As told to the thread.
    exports: BTreeMap<String, ExportSpec>,
}

impl Catalog {
    /// Takes one key's new value (`None`: deleted). Keys of no interest change nothing.
    ///
    /// # Errors
    /// The key or value breaks its schema; the previous value stays in force.
    pub(crate) fn apply(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), SchemaError> {
        if let Some(id) = key.strip_prefix(keys::LAYERS) {
            let id: LayerId = id.parse().map_err(|_| strange(key))?;
            return put(&mut self.layers, id, value, |value| {
                let meta: ImageMeta = parse(key, value)?;
                meta.validate().map_err(|e| SchemaError(format!("{key}: {e}")))?;
                Ok(meta)
            });
        }
        if let Some(name) = key.strip_prefix(keys::EXPORTS) {
            let name = keys::decode(name).ok_or_else(|| strange(key))?;
            return put(&mut self.configs, name, value, |value| {
                let config: ExportConfig = parse(key, value)?;
                config.validate().map_err(|e| SchemaError(format!("{key}: {e}")))?;
                Ok(config)
            });
        }
        if key.starts_with(keys::CONFIG) {
            return self.map.apply(key, value).map(drop);
        }
        if key == keys::LAST_LAYER || !key.starts_with(keys::IMAGES) {
            return Ok(());
        }
        put(&mut self.names, key.to_owned(), value, |value| Ok(parse::<ImageName>(key, value)?.layer))
    }

    /// What has changed of the exports since the last call.
    pub(crate) fn changes(&mut self) -> Vec<ExportChange> {
        let next = self.exports();
        let gone = self.exports.keys().filter(|name| !next.contains_key(*name)).map(|name| (name.clone(), None));
        let mut changes: Vec<ExportChange> = gone.collect();
        let fresh = next.iter().filter(|(name, spec)| self.exports.get(*name) != Some(spec));
        changes.extend(fresh.map(|(name, spec)| (name.clone(), Some(spec.clone()))));
        self.exports = next;
        changes
    }

    fn exports(&self) -> BTreeMap<String, ExportSpec> {
        let mut exports = BTreeMap::new();
        for (pool, config) in &self.map.pools {
            let images = self.names.range(keys::image_names(*pool)..).map(|(key, layer)| (key.as_str(), *layer));
            let prefix = keys::image_names(*pool);
            for (_, layer) in images.take_while(|(key, _)| key.starts_with(&prefix)) {
                let Some(meta) = self.layers.get(&layer) else { continue };
                let path = format!("{}/{}", config.name, meta.name);
                let is_plain = config.name == PLAIN_POOL;
                let name = if is_plain { meta.name.clone() } else { path.clone() };
                let Some(spec) = self.spec(&name, *pool, layer, false, &path) else { continue };
                // An image of the plain pool wins over one of another pool whose path reads the same.
                if is_plain || !exports.contains_key(&name) {
                    exports.insert(name, spec);
                }
            }
        }
        for (name, config) in &self.configs {
            if let Some(spec) = self.configured(name, config) {
                exports.insert(name.clone(), spec);
            }
        }
        exports
    }

    /// An entry of `export/`; none as long as its image does not exist.
    fn configured(&self, name: &str, config: &ExportConfig) -> Option<ExportSpec> {
        let (pool, _) = self.map.pool_by_name(&config.pool)?;
        let layer = *self.names.get(&keys::image_name(pool, &config.image))?;
        let path = format!("{}/{}", config.pool, config.image);
        let description = if config.description.is_empty() { &path } else { &config.description };
        self.spec(name, pool, layer, config.read_only, description)
    }

    fn spec(&self, name: &str, pool: PoolId, layer: LayerId, read_only: bool, description: &str) -> Option<ExportSpec> {
        let block_size = self.map.pools.get(&pool)?.block_size;
        let meta = self.layers.get(&layer).filter(|meta| !meta.removing && meta.pool == pool)?;
        let info = VolumeInfo {
            name: name.to_owned(),
            description: description.to_owned(),
            size: meta.size,
            read_only: read_only || meta.read_only,
            preferred_block: PREFERRED_BLOCK,
            optimal_io: block_size,
            max_transfer: TRANSFER_MAX,
        };
        let image = ImageOptions { layer: meta.layer_ref(layer), size: meta.size, block_size, read_only: false };
        Some(ExportSpec { info: Arc::new(info), image })
    }
}

fn put<K: Ord, V>(
    map: &mut BTreeMap<K, V>,
    key: K,
    value: Option<&[u8]>,
    read: impl FnOnce(&[u8]) -> Result<V, SchemaError>,
) -> Result<(), SchemaError> {
    match value {
        Some(value) => drop(map.insert(key, read(value)?)),
        None => drop(map.remove(&key)),
    }
    Ok(())
}

fn strange(key: &str) -> SchemaError {
    SchemaError(format!("{key} is not a key of this schema"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::map::PoolConfig;
    use serde_json::json;

    fn catalog() -> Catalog {
        let mut catalog = Catalog::default();
        for (id, name) in [(1, "default"), (2, "fast")] {
            let pool = serde_json::to_vec(&PoolConfig::replicated(name, 3)).unwrap();
            catalog.apply(&keys::pool(PoolId(id)), Some(&pool)).unwrap();
        }
        catalog
    }

    fn image(catalog: &mut Catalog, pool: u32, layer: u64, name: &str, size: u64) {
        let meta = json!({"name": name, "pool": pool, "lineage": layer, "size": size, "created": 0});
        catalog.apply(&keys::layer(LayerId(layer)), Some(meta.to_string().as_bytes())).unwrap();
        let index = json!({"layer": layer});
        catalog.apply(&keys::image_name(PoolId(pool), name), Some(index.to_string().as_bytes())).unwrap();
    }

    fn show(changes: Vec<ExportChange>) -> Vec<(String, Option<(u64, bool)>)> {
        let view = |spec: ExportSpec| (spec.info.size, spec.info.read_only);
        changes.into_iter().map(|(name, spec)| (name, spec.map(view))).collect()
    }

    fn owned<const N: usize>(list: [(&str, Option<(u64, bool)>); N]) -> Vec<(String, Option<(u64, bool)>)> {
        list.into_iter().map(|(name, view)| (name.to_owned(), view)).collect()
    }

    #[test]
    fn every_image_is_exported_and_changes_are_told_once() {
        let mut catalog = catalog();
        image(&mut catalog, 1, 1, "a b", 4096);
        image(&mut catalog, 2, 2, "x", 8192);
        assert_eq!(show(catalog.changes()), owned([("a b", Some((4096, false))), ("fast/x", Some((8192, false)))]));
        assert_eq!(catalog.changes(), []);
        image(&mut catalog, 1, 1, "a b", 12288);
        assert_eq!(show(catalog.changes()), owned([("a b", Some((12288, false)))]));
        catalog.apply(&keys::image_name(PoolId(2), "x"), None).unwrap();
        assert_eq!(show(catalog.changes()), owned([("fast/x", None)]));
    }

    #[test]
    fn entries_follow_their_image_and_win_over_it() {
        let mut catalog = catalog();
        let entry = json!({"pool": "default", "image": "a", "read-only": true}).to_string();
        catalog.apply(&keys::export("safe/a"), Some(entry.as_bytes())).unwrap();
        assert_eq!(catalog.changes(), []);
        image(&mut catalog, 1, 1, "a", 512);
        assert_eq!(show(catalog.changes()), owned([("a", Some((512, false))), ("safe/a", Some((512, true)))]));
        catalog.apply(&keys::export("a"), Some(entry.as_bytes())).unwrap();
        assert_eq!(show(catalog.changes()), owned([("a", Some((512, true)))]));
        assert!(catalog.apply(&keys::export("a"), Some(b"{}")).is_err());
        assert_eq!(catalog.changes(), []);
    }

    #[test]
    fn an_image_being_removed_is_not_exported() {
        let mut catalog = catalog();
        image(&mut catalog, 1, 7, "a", 512);
        catalog.changes();
        let meta = json!({"name": "a", "pool": 1, "lineage": 7, "size": 512, "created": 0, "removing": true});
        catalog.apply(&keys::layer(LayerId(7)), Some(meta.to_string().as_bytes())).unwrap();
        assert_eq!(show(catalog.changes()), owned([("a", None)]));
    }
}
