//! How changes of the state reach a node. The ranges of the state are watched one by one: one may be behind the others. A watch that was
//! lost begins again with all there is, in the order of keys, which may come in pieces.

use std::collections::{BTreeMap, VecDeque};

use cluster_proto::map::keys;

use crate::control::{Change, Control};
use crate::rng::Rng;

/// What a node was told.
#[derive(Default)]
pub struct Watching {
    /// Changes that were seen; the position of the next one.
    seen: usize,
    /// Those of them that were not told.
    late: VecDeque<Change>,
}

impl Watching {
    /// What is told now, and whether more is to be told later.
    pub fn hear(&mut self, control: &Control, rng: &mut Rng) -> (Vec<Change>, bool) {
        let (new, seen) = control.changes_after(self.seen);
        self.seen = seen;
        self.late.extend(new.iter().cloned());
        match rng.below(16) {
            0 | 1 => {
                let all = std::mem::take(&mut self.late);
                let (late, now) = all.into_iter().partition(|(key, _)| key.starts_with(keys::CONFIG));
                self.late = late;
                (Vec::from(now), !self.late.is_empty())
            }
            2 => {
                let mut all: VecDeque<_> = self.late.drain(..).collect::<BTreeMap<_, _>>().into_iter().collect();
                let count = rng.below(all.len() as u64 + 1) as usize;
                self.late = all.split_off(count);
                (all.into(), !self.late.is_empty())
            }
            _ => (self.late.drain(..).collect(), false),
        }
    }
}
