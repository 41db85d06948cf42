//! Images as entries of the cluster state: looking up, listing, making. What needs I/O on the image's data (removing,
//! shrinking) is a method of [`crate::Client`].

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use cluster_client::ImageOptions;
use cluster_proto::map::{ImageMeta, ImageName, PoolConfig, keys, parse};
use cluster_proto::{LayerId, PoolId};
use cluster_state::{Compare, KeyValue, StateStore, Txn};

use crate::error::{Error, ErrorKind};

/// Attempts to get a layer number before giving up on a store that others write to all the time.
const ATTEMPTS_MAX: usize = 64;

/// An image as the cluster state describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageInfo {
    /// Its pool.
    pub pool: PoolId,
    /// The pool's configuration.
    pub pool_config: PoolConfig,
    /// Its top layer.
    pub layer: LayerId,
    /// The top layer's metadata: name, size and so on.
    pub meta: ImageMeta,
    /// Revision in which the metadata was written, for conditions of transactions.
    pub mod_revision: i64,
}

impl ImageInfo {
    /// What the client core needs to open the image.
    pub fn options(&self) -> ImageOptions {
        ImageOptions {
            layer: self.meta.layer_ref(self.layer),
            size: self.meta.size,
            block_size: self.pool_config.block_size,
            read_only: self.meta.read_only,
        }
    }

    /// Objects that may hold data of the image, also of a larger size it once had.
    pub fn object_count(&self) -> u32 {
        let bytes = self.meta.size.max(self.meta.shrinking_from.unwrap_or(0));
        object_count(bytes, self.pool_config.block_size)
    }

    /// An error if the image is being removed.
    pub(crate) fn refuse_removing(&self) -> Result<(), Error> {
        if !self.meta.removing {
            return Ok(());
        }
        let text = format!("image {} is being removed: `blockyard image rm` finishes that", self.path());
        Err(Error::new(ErrorKind::Removed, text))
    }

    /// `pool/name`, for messages.
    pub fn path(&self) -> String {
        format!("{}/{}", self.pool_config.name, self.meta.name)
    }
}

/// Objects that an image of `bytes` has. Never overflows for sizes within the limits.
pub(crate) fn object_count(bytes: u64, block_size: u32) -> u32 {
    u32::try_from(bytes.div_ceil(u64::from(block_size))).unwrap_or(u32::MAX)
}

fn read<T: serde::de::DeserializeOwned>(entry: &KeyValue) -> Result<T, Error> {
    parse(&entry.key, &entry.value).map_err(|e| Error::new(ErrorKind::Invalid, e.to_string()))
}

pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|e| Error::new(ErrorKind::Invalid, format!("cannot write metadata: {e}")))
}

/// All pools, by number. Entries that break their schema are left out with an error in the log.
///
/// # Errors
/// `State`: the store cannot be reached.
pub async fn pools(state: &dyn StateStore) -> Result<BTreeMap<PoolId, PoolConfig>, Error> {
    let prefix = format!("{}pool/", keys::CONFIG);
    let mut pools = BTreeMap::new();
    for entry in state.range(&prefix).await?.entries {
        let id = entry.key.strip_prefix(&prefix).and_then(|id| id.parse().ok());
        match (id, read(&entry)) {
            (Some(id), Ok(config)) => drop(pools.insert(id, config)),
            (_, Err(error)) => tracing::error!("ignored a bad value in the cluster state: {error}"),
            (None, _) => tracing::error!("ignored a strange key in the cluster state: {}", entry.key),
        }
    }
    Ok(pools)
}

/// A pool by its name.
///
/// # Errors
/// `NotFound` if there is none; `State`.
pub async fn pool(state: &dyn StateStore, name: &str) -> Result<(PoolId, PoolConfig), Error> {
    let pools = pools(state).await?;
    pools.into_iter().find(|(_, config)| config.name == name).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("there is no pool {name:?}: `blockyard pool ls` lists the pools"))
    })
}

/// An image by the names of its pool and itself.
///
/// # Errors
/// `NotFound` if there is none; `Invalid` if its metadata cannot be understood; `State`. An image that is being removed
/// is found: see [`ImageMeta::removing`].
pub async fn image(state: &dyn StateStore, pool_name: &str, name: &str) -> Result<ImageInfo, Error> {
    let missing = || {
        let text = format!("there is no image {pool_name}/{name}: `blockyard image ls` lists the images");
        Error::new(ErrorKind::NotFound, text)
    };
    let (pool, pool_config) = pool(state, pool_name).await?;
    let index = state.get(&keys::image_name(pool, name)).await?.ok_or_else(missing)?;
    let layer = read::<ImageName>(&index)?.layer;
    let entry = state.get(&keys::layer(layer)).await?.ok_or_else(missing)?;
    image_info(pool, &pool_config, layer, &entry)
}

fn image_info(pool: PoolId, config: &PoolConfig, layer: LayerId, entry: &KeyValue) -> Result<ImageInfo, Error> {
    let meta: ImageMeta = read(entry)?;
    meta.validate().map_err(|e| Error::new(ErrorKind::Invalid, format!("{}: {e}", entry.key)))?;
    Ok(ImageInfo { pool, pool_config: config.clone(), layer, meta, mod_revision: entry.mod_revision })
}

/// All images, by pool and name. Entries that break their schema are left out with an error in the log.
///
/// # Errors
/// `State`.
pub async fn images(state: &dyn StateStore) -> Result<Vec<ImageInfo>, Error> {
    let pools = pools(state).await?;
    let entries = state.range(keys::IMAGES).await?.entries;
    let by_key: BTreeMap<_, _> = entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
    let mut images = Vec::new();
    for (&pool, config) in &pools {
        let prefix = keys::image_names(pool);
        for entry in entries.iter().filter(|entry| entry.key.starts_with(&prefix)) {
            let found = read::<ImageName>(entry).and_then(|ImageName { layer }| {
                let entry = by_key.get(keys::layer(layer).as_str()).copied();
                entry.map(|entry| image_info(pool, config, layer, entry)).transpose()
            });
            match found {
                Ok(found) => images.extend(found),
                Err(error) => tracing::error!("ignored a bad value in the cluster state: {error}"),
            }
        }
    }
    images.sort_by(|a, b| (&a.pool_config.name, &a.meta.name).cmp(&(&b.pool_config.name, &b.meta.name)));
    Ok(images)
}

/// Makes a thin image of `size` bytes (a multiple of 512, at least 512).
///
/// # Errors
/// `AlreadyExists`; `NotFound` if there is no such pool; `Invalid` for a bad name or size; `Conflict`; `State`.
pub async fn create_image(state: &dyn StateStore, pool_name: &str, name: &str, size: u64) -> Result<ImageInfo, Error> {
    let (pool, pool_config) = pool(state, pool_name).await?;
    for _ in 0..ATTEMPTS_MAX {
        let last = state.get(keys::LAST_LAYER).await?;
        let layer = LayerId(1 + last.as_ref().map(read::<LayerId>).transpose()?.unwrap_or_default().0);
        let meta = new_meta(pool, layer, name, size);
        meta.validate().map_err(|e| Error::new(ErrorKind::Invalid, e.to_string()))?;
        let name_key = keys::image_name(pool, name);
        let txn = Txn::new()
            .when(Compare::Absent(name_key.clone()))
            .when(Compare::Exists(keys::pool(pool)))
            .when(Compare::ModRevision {
                key: keys::LAST_LAYER.into(),
                revision: last.map_or(0, |entry| entry.mod_revision),
            })
            .put(keys::LAST_LAYER, to_json(&layer)?)
            .put(keys::layer(layer), to_json(&meta)?)
            .put(name_key.clone(), to_json(&ImageName { layer })?)
            .or_read(name_key)
            .or_read(keys::pool(pool));
        let result = state.txn(txn).await?;
        if result.succeeded {
            return Ok(ImageInfo { pool, pool_config, layer, meta, mod_revision: result.revision });
        }
        if matches!(result.read.first(), Some(Some(_))) {
            let text = format!("there is an image {pool_name}/{name} already: choose another name or remove it");
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
        if !matches!(result.read.get(1), Some(Some(_))) {
            return Err(Error::new(ErrorKind::NotFound, format!("pool {pool_name:?} was removed meanwhile")));
        }
    }
    Err(Error::new(ErrorKind::Conflict, format!("cannot make image {pool_name}/{name}: too many others at once")))
}

fn new_meta(pool: PoolId, layer: LayerId, name: &str, size: u64) -> ImageMeta {
    ImageMeta {
        name: name.to_owned(),
        pool,
        lineage: layer,
        parent: None,
        size,
        shrinking_from: None,
        read_only: false,
        removing: false,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
    }
}

/// Writes an image's metadata unless somebody else has changed it since it was looked up.
///
/// # Errors
/// `Invalid` if `meta` breaks its schema; `Conflict`; `State`.
pub async fn update_image(state: &dyn StateStore, image: &ImageInfo, meta: ImageMeta) -> Result<ImageInfo, Error> {
    meta.validate().map_err(|e| Error::new(ErrorKind::Invalid, e.to_string()))?;
    let key = keys::layer(image.layer);
    let txn = Txn::new()
        .when(Compare::ModRevision { key: key.clone(), revision: image.mod_revision })
        .put(key, to_json(&meta)?);
    let result = state.txn(txn).await?;
    if !result.succeeded {
        return Err(changed_meanwhile(image));
    }
    Ok(ImageInfo { meta, mod_revision: result.revision, ..image.clone() })
}

/// Forgets an image whose objects have been deleted, or that was never written to.
///
/// # Errors
/// `Conflict`; `State`.
pub async fn forget_image(state: &dyn StateStore, image: &ImageInfo) -> Result<(), Error> {
    let key = keys::layer(image.layer);
    let txn = Txn::new()
        .when(Compare::ModRevision { key: key.clone(), revision: image.mod_revision })
        .delete(key)
        .delete(keys::image_name(image.pool, &image.meta.name));
    if state.txn(txn).await?.succeeded { Ok(()) } else { Err(changed_meanwhile(image)) }
}

fn changed_meanwhile(image: &ImageInfo) -> Error {
    Error::new(ErrorKind::Conflict, format!("image {} was changed by somebody else meanwhile: try again", image.path()))
}
