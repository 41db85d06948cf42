//! Follows the metadata of one open image: its size, and its end.

use std::sync::Arc;

use cluster_proto::LayerId;
use cluster_proto::map::{ImageMeta, keys, parse};
use cluster_state::{StateStore, watch_forever};

use crate::feed::KeyDiff;
use crate::image::ImageState;

/// Follows the layer's key until the image ends, and tells of every change. `size` is what is known of it. Bytes.
pub(crate) async fn follow(state: Arc<dyn StateStore>, layer: LayerId, size: u64, mut tell: impl FnMut(ImageState)) {
    let key = keys::layer(layer);
    let mut mirror = watch_forever(state, key.clone());
    let mut diff = KeyDiff::default();
    let mut known = ImageState { size, removed: false };
    let mut seen = false;
    loop {
        let changes = diff.changes(mirror.next().await);
        // A first look that finds nothing: the image was removed between its look-up and now.
        if !seen && changes.iter().all(|(changed, _)| *changed != key) {
            return tell(ImageState { removed: true, ..known });
        }
        seen = true;
        // Layers whose numbers begin with the same digits are under the same prefix.
        for (_, value) in changes.into_iter().filter(|(changed, _)| *changed == key) {
            match value.map(|value| parse::<ImageMeta>(&key, &value)) {
                Some(Ok(meta)) if !meta.removing => {
                    if meta.size != known.size {
                        known.size = meta.size;
                        tell(known);
                    }
                }
                Some(Err(error)) => tracing::error!("ignored a bad value in the cluster state: {error}"),
                Some(Ok(_)) | None => return tell(ImageState { removed: true, ..known }),
            }
        }
    }
}
