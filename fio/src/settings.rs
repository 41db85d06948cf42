//! What the engine's options mean, taken together.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;

/// The pool that is meant if none is named.
const POOL_DEFAULT: &str = "default";
/// What a size must be a multiple of. Bytes.
const SIZE_UNIT: u64 = 4096;

/// The options as they were given.
#[derive(Clone, Default, Debug)]
pub(crate) struct Options {
    pub image: Option<String>,
    pub pool: Option<String>,
    pub etcd: Option<String>,
    pub conf: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub store: Option<PathBuf>,
    /// Bytes.
    pub size: Option<u64>,
    /// Drive a bare store instead of a cluster.
    pub bare: bool,
    pub encrypt: bool,
    /// How long to look for answers before sleeping.
    pub busy_poll: Duration,
}

/// What to drive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Settings {
    /// An image of a cluster.
    Cluster {
        /// How to get at the cluster.
        access: AccessOptions,
        /// Name of the pool.
        pool: String,
        /// The image.
        image: ImageChoice,
        /// How long to look for answers before sleeping.
        busy_poll: Duration,
    },
    /// The store of an OSD, without the OSD.
    Store {
        /// The file or block device.
        path: PathBuf,
        /// Bytes to use of it.
        size: u64,
    },
}

/// Which image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ImageChoice {
    /// One that exists.
    Named(String),
    /// A new one for each job, of so many bytes.
    Temporary(u64),
}

/// Which cluster, and what it takes to be let in.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct AccessOptions {
    pub etcd: Option<String>,
    pub conf: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub encrypt: bool,
}

impl Options {
    /// Checks that the options fit together.
    ///
    /// # Errors
    /// One is missing, or makes no sense beside another.
    pub fn settings(self) -> Result<Settings, Error> {
        if let Some(size) = self.size.filter(|size| !size.is_multiple_of(SIZE_UNIT)) {
            return Err(Error::new(format!("blockyard_size is {size}: give a multiple of {SIZE_UNIT}")));
        }
        if self.bare { self.store_settings() } else { self.cluster_settings() }
    }

    fn store_settings(self) -> Result<Settings, Error> {
        let of_cluster = [
            ("blockyard_image", self.image.is_some()),
            ("blockyard_pool", self.pool.is_some()),
            ("blockyard_etcd", self.etcd.is_some()),
            ("blockyard_conf", self.conf.is_some()),
            ("blockyard_key_file", self.key_file.is_some()),
            ("blockyard_encrypt", self.encrypt),
            ("blockyard_busy_poll_us", !self.busy_poll.is_zero()),
        ];
        if let Some((name, _)) = of_cluster.iter().find(|(_, is_set)| *is_set) {
            return Err(Error::new(format!("{name} is for clusters: leave it out with blockyard_mode=store")));
        }
        match (self.store, self.size) {
            (Some(path), Some(size)) => Ok(Settings::Store { path, size }),
            _ => Err(Error::new(
                "blockyard_mode=store needs blockyard_store, the file or block device, and blockyard_size",
            )),
        }
    }

    fn cluster_settings(self) -> Result<Settings, Error> {
        if self.store.is_some() {
            return Err(Error::new("blockyard_store is only for blockyard_mode=store"));
        }
        let image = match (self.image, self.size) {
            (Some(name), None) => ImageChoice::Named(name),
            (None, Some(size)) => ImageChoice::Temporary(size),
            (Some(_), Some(_)) => {
                return Err(Error::new(
                    "give blockyard_image for an image that exists, or blockyard_size for a temporary one, not both",
                ));
            }
            (None, None) => {
                return Err(Error::new(
                    "say which image: blockyard_image names one that exists, blockyard_size makes a temporary one",
                ));
            }
        };
        let access = AccessOptions { etcd: self.etcd, conf: self.conf, key_file: self.key_file, encrypt: self.encrypt };
        let pool = self.pool.unwrap_or_else(|| POOL_DEFAULT.to_owned());
        Ok(Settings::Cluster { access, pool, image, busy_poll: self.busy_poll })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(options: Options) -> String {
        options.settings().expect_err("these options make no sense").to_string()
    }

    #[test]
    fn an_image_is_named_or_made() {
        let named = Options { image: Some("a".into()), ..Options::default() };
        let Settings::Cluster { pool, image, .. } = named.clone().settings().unwrap() else { panic!("a cluster") };
        assert_eq!((pool.as_str(), image), ("default", ImageChoice::Named("a".into())));
        let made = Options { size: Some(1 << 20), pool: Some("fast".into()), ..Options::default() };
        let Settings::Cluster { pool, image, .. } = made.settings().unwrap() else { panic!("a cluster") };
        assert_eq!((pool.as_str(), image), ("fast", ImageChoice::Temporary(1 << 20)));
        assert!(refused(Options::default()).contains("which image"));
        assert!(refused(Options { size: Some(4096), ..named.clone() }).contains("not both"));
        assert!(refused(Options { size: Some(1000), ..Options::default() }).contains("multiple of 4096"));
        assert!(refused(Options { store: Some("x".into()), ..named }).contains("blockyard_mode=store"));
    }

    #[test]
    fn a_bare_store_takes_nothing_of_a_cluster() {
        let store = Options { bare: true, store: Some("x".into()), size: Some(1 << 20), ..Options::default() };
        assert_eq!(store.clone().settings(), Ok(Settings::Store { path: "x".into(), size: 1 << 20 }));
        assert!(refused(Options { size: None, ..store.clone() }).contains("blockyard_size"));
        assert!(refused(Options { store: None, ..store.clone() }).contains("blockyard_store"));
        assert!(refused(Options { image: Some("a".into()), ..store.clone() }).contains("blockyard_image is for"));
        assert!(refused(Options { encrypt: true, ..store.clone() }).contains("blockyard_encrypt is for"));
        let polls = Options { busy_poll: Duration::from_micros(1), ..store };
        assert!(refused(polls).contains("blockyard_busy_poll_us is for"));
    }
}
