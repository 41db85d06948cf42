//! Follows the metadata of one open image: its size, and its end.

use std::sync::Arc;

use cluster_client::ImageId;
use cluster_proto::LayerId;
use cluster_proto::map::{ImageMeta, keys, parse};
use cluster_state::{StateStore, watch_forever};
use tokio::sync::watch;

use crate::feed::KeyDiff;
use crate::image::ImageState;
use crate::shard::{Command, Commands};

/// Follows the layer's key until the image ends. The client core is told first, then whoever waits.
pub(crate) async fn follow(
    state: Arc<dyn StateStore>,
    commands: Commands,
    image: ImageId,
    layer: LayerId,
    tell: watch::Sender<ImageState>,
) {
    let key = keys::layer(layer);
    let mut mirror = watch_forever(state, key.clone());
    let mut diff = KeyDiff::default();
    let mut seen = false;
    loop {
        let changes = diff.changes(mirror.next().await);
        // A first look that finds nothing: the image was removed between its look-up and now.
        if !seen && changes.iter().all(|(changed, _)| *changed != key) {
            return apply(&commands, image, &tell, |state| state.removed = true);
        }
        seen = true;
        // Layers whose numbers begin with the same digits are under the same prefix.
        for (_, value) in changes.into_iter().filter(|(changed, _)| *changed == key) {
            match value.map(|value| parse::<ImageMeta>(&key, &value)) {
                Some(Ok(meta)) if !meta.removing => apply(&commands, image, &tell, |state| state.size = meta.size),
                Some(Err(error)) => tracing::error!("ignored a bad value in the cluster state: {error}"),
                Some(Ok(_)) | None => return apply(&commands, image, &tell, |state| state.removed = true),
            }
        }
    }
}

fn apply(commands: &Commands, image: ImageId, tell: &watch::Sender<ImageState>, change: impl FnOnce(&mut ImageState)) {
    let mut next = *tell.borrow();
    change(&mut next);
    let before = *tell.borrow();
    if next == before {
        return;
    }
    commands.send(if next.removed { Command::SetRemoved(image) } else { Command::SetSize(image, next.size) });
    tell.send_replace(next);
}
