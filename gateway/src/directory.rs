//! What the thread knows of the exports, and the images that are open because somebody is attached.

use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use cluster_client::{Client, ImageId};
use cluster_proto::LayerId;
use gateway_core::{Exports, VolumeEvent, VolumeInfo};

use crate::catalog::{ExportChange, ExportSpec};
use crate::metrics::ExportStats;

/// The default export, if there are several and none is called so.
const DEFAULT_NAMES: [&str; 2] = ["default", "demo"];

/// One export, for as long as it is there or somebody is attached.
pub(crate) struct Export {
    spec: RefCell<ExportSpec>,
    removed: Cell<bool>,
    /// Made at the first attachment.
    stats: RefCell<Option<Box<ExportStats>>>,
}

impl Export {
    fn new(spec: ExportSpec) -> Self {
        Self { spec: RefCell::new(spec), removed: Cell::new(false), stats: RefCell::default() }
    }

    /// Whether every request fails from now on.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.get()
    }

    /// Whether writes are refused now.
    pub(crate) fn is_read_only(&self) -> bool {
        self.spec.borrow().info.read_only
    }

    /// Counters, if somebody is or was attached.
    pub(crate) fn stats(&self) -> Ref<'_, Option<Box<ExportStats>>> {
        self.stats.borrow()
    }

    /// Changes the counters.
    pub(crate) fn count(&self, change: impl FnOnce(&mut ExportStats)) {
        change(self.stats.borrow_mut().get_or_insert_default());
    }
}

/// What a connection is attached to. To be given back with [`Directory::detach`].
#[derive(Clone)]
pub(crate) struct Attachment {
    pub export: Rc<Export>,
    pub image: ImageId,
    layer: LayerId,
}

/// An image that somebody is attached to.
struct Volume {
    image: ImageId,
    attached: u32,
}

/// A change of an export to tell those attached to it.
pub(crate) type Notice = (Rc<Export>, VolumeEvent);

/// All exports.
#[derive(Default)]
pub(crate) struct Directory {
    exports: BTreeMap<String, Rc<Export>>,
    /// Several exports may share an image.
    volumes: BTreeMap<LayerId, Volume>,
    names: Arc<BTreeSet<String>>,
}

impl Directory {
    /// Takes changes from the control plane. Returns what those attached must be told; the client core knows new sizes
    /// already then.
    pub(crate) fn apply(&mut self, client: &mut Client, changes: Vec<ExportChange>) -> Vec<Notice> {
        let mut notices = Vec::new();
        for (name, spec) in changes {
            notices.extend(self.apply_one(client, name, spec));
        }
        self.names = Arc::new(self.exports.keys().cloned().collect());
        notices
    }

    fn apply_one(&mut self, client: &mut Client, name: String, spec: Option<ExportSpec>) -> Option<Notice> {
        let old = self.exports.get(&name).cloned();
        let Some(spec) = spec else {
            self.exports.remove(&name);
            return old.map(withdraw);
        };
        if let Some(volume) = self.volumes.get(&spec.image.layer.layer) {
            client.set_size(volume.image, spec.image.size);
        }
        match old {
            Some(export) if export.spec.borrow().image.layer == spec.image.layer => {
                let size = spec.image.size;
                let before = export.spec.replace(spec);
                (before.image.size != size).then_some((export, VolumeEvent::Resized(size)))
            }
            // Another image has taken the name: those attached had the old one.
            old => {
                self.exports.insert(name, Rc::new(Export::new(spec)));
                old.map(withdraw)
            }
        }
    }

    /// Attaches to an export by the name that [`VolumeInfo`] has; opens its image if need be.
    pub(crate) fn attach(&mut self, client: &mut Client, name: &str) -> Option<Attachment> {
        let export = self.exports.get(self.resolve(name)?)?.clone();
        let options = export.spec.borrow().image;
        let layer = options.layer.layer;
        let volume = self.volumes.entry(layer).or_insert_with(|| Volume { image: client.open(options), attached: 0 });
        volume.attached += 1;
        export.count(|stats| stats.attached += 1);
        Some(Attachment { image: volume.image, export, layer })
    }

    /// Ends an attachment, and closes the image after the last one.
    pub(crate) fn detach(&mut self, client: &mut Client, attachment: &Attachment) {
        attachment.export.count(|stats| stats.attached -= 1);
        let Some(volume) = self.volumes.get_mut(&attachment.layer) else { return };
        volume.attached -= 1;
        if volume.attached == 0 {
            client.close(volume.image);
            self.volumes.remove(&attachment.layer);
        }
    }

    /// Names of all exports, shared.
    pub(crate) fn all_names(&self) -> Arc<BTreeSet<String>> {
        self.names.clone()
    }

    /// All exports with their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Rc<Export>)> {
        self.exports.iter()
    }

    /// The export meant by a name, which may be empty.
    fn resolve<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        if !name.is_empty() {
            return Some(name);
        }
        let only = self.exports.keys().next().filter(|_| self.exports.len() == 1).map(String::as_str);
        let named = |name: &&str| self.exports.contains_key(*name);
        DEFAULT_NAMES[..1].iter().copied().find(named).or(only).or(DEFAULT_NAMES.into_iter().find(named))
    }
}

fn withdraw(export: Rc<Export>) -> Notice {
    export.removed.set(true);
    (export, VolumeEvent::Removed)
}

impl Exports for Directory {
    fn find(&self, name: &str) -> Option<Arc<VolumeInfo>> {
        Some(self.exports.get(self.resolve(name)?)?.spec.borrow().info.clone())
    }

    fn names(&self) -> Vec<String> {
        self.names.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_client::{ClientOptions, ImageOptions};
    use cluster_proto::{ClientId, LayerRef, PoolId, Uuid};

    fn client() -> Client {
        Client::new(ClientOptions { id: ClientId(1), cluster: Uuid::from_u128(1), credentials: None })
    }

    fn spec(name: &str, layer: u64, size: u64) -> ExportSpec {
        let info = VolumeInfo {
            name: name.into(),
            description: String::new(),
            size,
            read_only: false,
            preferred_block: 4096,
            optimal_io: 1 << 20,
            max_transfer: 1 << 20,
        };
        let layer = LayerRef { pool: PoolId(1), lineage: LayerId(layer), layer: LayerId(layer) };
        let image = ImageOptions { layer, size, block_size: 1 << 20, read_only: false };
        ExportSpec { info: Arc::new(info), image }
    }

    fn default_of(names: &[&str]) -> Option<String> {
        let mut directory = Directory::default();
        let changes = names.iter().map(|name| ((*name).to_owned(), Some(spec(name, 1, 512)))).collect();
        directory.apply(&mut client(), changes);
        directory.find("").map(|info| info.name.clone())
    }

    #[test]
    fn the_default_export_is_never_a_guess() {
        assert_eq!(default_of(&[]), None);
        assert_eq!(default_of(&["x"]).as_deref(), Some("x"));
        assert_eq!(default_of(&["demo", "x"]).as_deref(), Some("demo"));
        assert_eq!(default_of(&["default", "demo"]).as_deref(), Some("default"));
        assert_eq!(default_of(&["x", "y"]), None);
    }

    #[test]
    fn an_image_is_open_while_somebody_is_attached() {
        let (mut directory, mut client) = (Directory::default(), client());
        let put = |name: &str, layer, size| (name.to_owned(), Some(spec(name, layer, size)));
        assert!(directory.apply(&mut client, vec![put("a", 1, 512), put("b", 1, 512)]).is_empty());
        let a = directory.attach(&mut client, "a").unwrap();
        let b = directory.attach(&mut client, "b").unwrap();
        assert_eq!(a.image, b.image, "one opening per image");
        let notices = directory.apply(&mut client, vec![put("a", 1, 1024)]);
        assert!(matches!(&notices[..], [(export, VolumeEvent::Resized(1024))] if Rc::ptr_eq(export, &a.export)));
        assert_eq!(client.image(a.image).map(|image| image.size), Some(1024));
        directory.detach(&mut client, &a);
        assert!(client.image(b.image).is_some());
        directory.detach(&mut client, &b);
        assert!(client.image(b.image).is_none());
    }

    #[test]
    fn a_name_that_passes_to_another_image_ends_the_old_attachments() {
        let (mut directory, mut client) = (Directory::default(), client());
        directory.apply(&mut client, vec![("a".into(), Some(spec("a", 1, 512)))]);
        let old = directory.attach(&mut client, "a").unwrap();
        let notices = directory.apply(&mut client, vec![("a".into(), Some(spec("a", 2, 512)))]);
        assert!(matches!(&notices[..], [(export, VolumeEvent::Removed)] if Rc::ptr_eq(export, &old.export)));
        let new = directory.attach(&mut client, "a").unwrap();
        assert!(old.export.is_removed() && !new.export.is_removed());
        assert_ne!(old.image, new.image);
    }
}
