//! The first start creates the cluster; later ones check that what is asked for is what is there.
//!
//! Order of a first start: identity, OSD files, pool, images, and the configuration of the OSDs last. As long as that is
//! missing the start was not complete, and the next one goes on where this one ended; every step finds what it made before.

use blockyard_client::{ErrorKind, metadata};
use cluster_proto::map::{ClusterMap, OsdConfig, PoolConfig, Scheme, keys};
use cluster_proto::{OsdId, PoolId, Uuid};
use cluster_state::{EmbeddedStore, StateStore, Txn};
use osd::PrepareOptions;

use super::directory::Directory;
use crate::args::{EcCode, ImageSpec, NewImage, UpOptions};
use crate::error::CliError;
use crate::init::identity;
use crate::pool::{json, put_new};
use crate::size::Size;

/// The first pool.
const FIRST_POOL: PoolId = PoolId(1);

const OSDS_DEFAULT: u32 = 3;
const COPIES_DEFAULT: u8 = 3;
/// Twice the first image: a full image still leaves room to write and to delete.
const OSD_BYTES_DEFAULT: u64 = 8 << 30;
const DEMO_BYTES: u64 = 4 << 30;

/// What there is to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The cluster.
    pub cluster: Uuid,
    /// OSDs in the data directory.
    pub osds: Vec<OsdId>,
    /// Images that are there, with their sizes in bytes.
    pub images: Vec<(ImageSpec, u64)>,
}

/// Creates or checks the cluster in `directory`.
pub async fn bootstrap(store: &EmbeddedStore, directory: &Directory, options: &UpOptions) -> Result<Layout, CliError> {
    let (info, _) = identity(store, None).await?;
    let cluster = info.id;
    let map = read_config(store).await?;
    let osds = if map.osd_configs.is_empty() {
        create(store, directory, options, cluster).await?
    } else {
        check(&map, directory, options)?;
        create_images(store, &options.image).await?;
        map.osd_configs.keys().copied().collect()
    };
    forget_predecessor(store, &osds).await?;
    let images = metadata::images(store).await?.into_iter().filter(|info| !info.meta.removing);
    let images = images.map(|info| (ImageSpec { pool: info.pool_config.name, name: info.meta.name }, info.meta.size));
    Ok(Layout { cluster, osds, images: images.collect() })
}

async fn read_config(store: &EmbeddedStore) -> Result<ClusterMap, CliError> {
    let mut map = ClusterMap::default();
    for entry in store.range(keys::CONFIG).await?.entries {
        map.apply(&entry.key, Some(&entry.value)).map_err(|e| CliError::failed(e.to_string()))?;
    }
    Ok(map)
}

/// The first start.
async fn create(
    store: &EmbeddedStore,
    directory: &Directory,
    options: &UpOptions,
    cluster: Uuid,
) -> Result<Vec<OsdId>, CliError> {
    let pool = first_pool(options)?;
    let count = options.osds.unwrap_or(OSDS_DEFAULT.max(pool.width() as u32));
    let bytes = options.osd_size.map_or(OSD_BYTES_DEFAULT, |size| size.0);
    let osds: Vec<_> = (1..=count).map(OsdId).collect();
    prepare(directory, &osds, bytes, cluster).await?;
    put_new(store, FIRST_POOL, &pool).await?;
    if options.image.is_empty() {
        let demo = ImageSpec { pool: ImageSpec::DEFAULT_POOL.into(), name: "demo".into() };
        create_images(store, &[NewImage { spec: demo, size: DEMO_BYTES }]).await?;
    } else {
        create_images(store, &options.image).await?;
    }
    let config = json(&OsdConfig::new(bytes as f64 / (1u64 << 40) as f64))?;
    let txn = osds.iter().fold(Txn::new(), |txn, osd| txn.put(keys::osd_config(*osd), config.clone()));
    store.txn(txn).await?;
    Ok(osds)
}

/// What is asked for as pool `default`.
fn first_pool(options: &UpOptions) -> Result<PoolConfig, CliError> {
    let name = ImageSpec::DEFAULT_POOL;
    let refuse = |needs: String, count: u32, advice: &str| {
        Err(CliError::usage(format!("{needs} need as many OSDs, and there are to be {count}: {advice}")))
    };
    if let Some(code) = options.ec {
        let pool = PoolConfig::erasure_coded(name, code.data, code.parity);
        let width = pool.width() as u32;
        return match options.osds.filter(|count| *count < width) {
            Some(count) => refuse(format!("{width} shards"), count, "leave --osds out, or give another code"),
            None => Ok(pool),
        };
    }
    let count = options.osds.unwrap_or(OSDS_DEFAULT);
    let copies = options.replicas.unwrap_or(COPIES_DEFAULT.min(u8::try_from(count).unwrap_or(COPIES_DEFAULT)));
    match u32::from(copies) > count {
        true => refuse(format!("{copies} copies"), count, &format!("give --osds {copies} or --replicas {count}")),
        false => Ok(PoolConfig::replicated(name, copies)),
    }
}

/// Makes the files that are not there yet.
async fn prepare(directory: &Directory, osds: &[OsdId], bytes: u64, cluster: Uuid) -> Result<(), CliError> {
    for id in osds {
        let path = directory.osd(*id);
        if path.exists() {
            // From a first start that was interrupted. The OSD itself makes sure that it belongs here.
            continue;
        }
        let options = PrepareOptions { path, bytes: Some(bytes), id: *id, cluster, force: false };
        let prepared = tokio::task::spawn_blocking(move || osd::prepare(&options)).await;
        let prepared = prepared.map_err(|e| CliError::failed(format!("preparing OSD {id} failed: {e}")))?;
        prepared.map_err(|e| CliError::failed(e.to_string()))?;
    }
    Ok(())
}

/// Creates the images that do not exist.
async fn create_images(store: &EmbeddedStore, images: &[NewImage]) -> Result<(), CliError> {
    for NewImage { spec, size } in images {
        match metadata::create_image(store, &spec.pool, &spec.name, *size).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let found = metadata::image(store, &spec.pool, &spec.name).await?.meta.size;
                if found != *size {
                    tracing::warn!(
                        "image {spec} has {} already and keeps it: 'blockyard image resize' changes it",
                        Size(found)
                    );
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A later start: what is fixed must be as it was, and nothing may be missing.
fn check(map: &ClusterMap, directory: &Directory, options: &UpOptions) -> Result<(), CliError> {
    let fixed = |what: &str, found: String, asked: String| {
        CliError::usage(format!(
            "the cluster there has {found}, not {asked}: {what} is fixed at the first start, leave it out"
        ))
    };
    let count = map.osd_configs.len();
    if let Some(osds) = options.osds.filter(|osds| *osds as usize != count) {
        return Err(fixed("--osds", format!("{count} OSDs"), osds.to_string()));
    }
    let scheme = map.pool_by_name(ImageSpec::DEFAULT_POOL).map(|(_, pool)| pool.scheme);
    let found = |scheme| match scheme {
        Scheme::Replicated { copies } => format!("{copies} copies in pool default"),
        Scheme::Ec { data, parity } => format!("erasure code {data}+{parity} in pool default"),
    };
    if let (Some(scheme), Some(asked)) = (scheme, options.replicas)
        && scheme != (Scheme::Replicated { copies: asked })
    {
        return Err(fixed("--replicas", found(scheme), asked.to_string()));
    }
    if let (Some(scheme), Some(EcCode { data, parity })) = (scheme, options.ec)
        && scheme != (Scheme::Ec { data, parity })
    {
        return Err(fixed("--ec", found(scheme), format!("{data}+{parity}")));
    }
    for id in map.osd_configs.keys() {
        let path = directory.osd(*id);
        let Ok(meta) = std::fs::metadata(&path) else {
            return Err(CliError::failed(format!(
                "cannot start OSD {id}: its file {} is missing: put it back",
                path.display()
            )));
        };
        if let Some(size) = options.osd_size.filter(|size| meta.is_file() && size.0 != meta.len()) {
            return Err(fixed("--osd-size", format!("OSDs of {}", Size(meta.len())), size.to_string()));
        }
    }
    Ok(())
}

/// Removes what tells that a killed predecessor lives: nobody else runs our OSDs, or leads in our store, now.
async fn forget_predecessor(store: &EmbeddedStore, osds: &[OsdId]) -> Result<(), CliError> {
    let txn = osds.iter().fold(Txn::new().delete(keys::LEADER), |txn, osd| txn.delete(keys::osd(*osd)));
    store.txn(txn).await?;
    Ok(())
}
