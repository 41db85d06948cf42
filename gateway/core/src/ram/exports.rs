//! A set of RAM disks as the exports of a server.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::RamVolume;
use crate::session::Exports;
use crate::volume::{BlockDevice, VolumeInfo};

/// RAM disks by name. The first one added is the default export, which has the empty name.
#[derive(Debug, Default)]
pub struct RamExports {
    volumes: BTreeMap<String, RamVolume>,
    default: Option<String>,
}

impl RamExports {
    /// No exports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a disk under its own name; one of that name is replaced.
    pub fn add(&mut self, volume: RamVolume) {
        let name = volume.info().name;
        self.default.get_or_insert_with(|| name.clone());
        self.volumes.insert(name, volume);
    }

    /// Takes a disk out of the list. Attachments go on.
    pub fn remove(&mut self, name: &str) -> Option<RamVolume> {
        self.volumes.remove(name)
    }

    /// Another attachment to a disk; the empty name is the default export.
    pub fn attach(&self, name: &str) -> Option<RamVolume> {
        self.volume(name).cloned()
    }

    /// A disk, for scripting it. The script of replies is each attachment's own.
    pub fn volume(&self, name: &str) -> Option<&RamVolume> {
        let name = if name.is_empty() { self.default.as_deref()? } else { name };
        self.volumes.get(name)
    }
}

impl FromIterator<RamVolume> for RamExports {
    fn from_iter<I: IntoIterator<Item = RamVolume>>(volumes: I) -> Self {
        let mut exports = Self::new();
        volumes.into_iter().for_each(|volume| exports.add(volume));
        exports
    }
}

impl Exports for RamExports {
    fn find(&self, name: &str) -> Option<Arc<VolumeInfo>> {
        self.volume(name).map(|volume| Arc::new(volume.info()))
    }

    fn names(&self) -> Vec<String> {
        self.volumes.keys().cloned().collect()
    }
}
