//! Lazy pools: which seeds have one, and the power cuts and flushes that make them interesting. Everything here has random numbers of
//! its own, so that the other seeds are what they were without.

use std::collections::BTreeSet;

use cluster_client::ImageOp;
use cluster_proto::map::{ImmediateCommit, Scheme};

use crate::rng::Rng;
use crate::workload::{self, Kind, Record};
use crate::world::World;

/// What a seed's pool leaves to syncs, and what came of it.
pub struct Lazy {
    rng: Rng,
    /// The pool's setting.
    pub pool: ImmediateCommit,
    /// Stores are told when they are idle, and then make everything durable.
    pub idles: bool,
    /// When power was cut, as event numbers.
    pub cuts: Vec<u64>,
    /// Runs of clients that died.
    pub dead: BTreeSet<u64>,
}

impl Lazy {
    /// Half of the seeds with copies have a lazy pool.
    pub fn random(seed: u64, scheme: Scheme) -> Self {
        let mut rng = Rng::new(seed ^ 0x006c_617a_7900_0000);
        let is_lazy = matches!(scheme, Scheme::Replicated { .. }) && rng.one_in(2);
        let pool = match rng.below(5) {
            _ if !is_lazy => ImmediateCommit::All,
            0 => ImmediateCommit::Small,
            _ => ImmediateCommit::None,
        };
        let idles = !is_lazy || rng.one_in(2);
        Lazy { rng, pool, idles, cuts: Vec::new(), dead: BTreeSet::new() }
    }

    /// Whether the pool answers changes before they are durable.
    pub fn is_lazy(&self) -> bool {
        self.pool != ImmediateCommit::All
    }
}

impl World {
    /// In a lazy pool: cuts the power of some or all OSDs, instead of another fault.
    pub(crate) fn cuts_power(&mut self) -> bool {
        if !self.lazy.is_lazy() || !self.lazy.rng.one_in(3) {
            return false;
        }
        let count = self.osds.len() as u64;
        // Nearly at once, all or so many that redundancy may not be enough; the others die with their power on, or not at all.
        let all = self.lazy.rng.one_in(2);
        for osd in 0..self.osds.len() {
            match self.lazy.rng.below(count + 1) {
                _ if all => self.crash_osd(osd, true),
                0 => {}
                1 => self.crash_osd(osd, false),
                _ => self.crash_osd(osd, true),
            }
        }
        true
    }

    /// Removals of whole objects are left to seeds with one client: with the object goes the memory of what another client has not synced
    /// (docs/peering.md, "Lazy pools").
    pub(crate) fn is_left_out(&self, op: &ImageOp) -> bool {
        let range = match op {
            ImageOp::DeleteObjects { .. } => return self.lazy.is_lazy() && self.clients.len() > 1,
            ImageOp::Discard { offset, len } | ImageOp::WriteZeroes { offset, len, keep_allocated: false } => {
                *offset..offset + len
            }
            _ => return false,
        };
        let last = self.shape.size / self.shape.block * self.shape.block;
        let is_removal = range.start <= last && range.end == self.shape.size;
        self.lazy.is_lazy() && self.clients.len() > 1 && is_removal
    }

    /// In a lazy pool: a client flushes now and then.
    pub(crate) fn flush_sometimes(&mut self, client: usize) {
        if self.lazy.is_lazy() && self.lazy.rng.one_in(10) {
            self.submit(client, Record::new(Kind::Flush, 0, 0), ImageOp::Flush);
        }
    }

    /// At the end: what clients have not synced yet must come to rest before everything is read.
    pub(crate) fn flush_everything(&mut self) {
        if self.lazy.is_lazy() {
            for client in 0..self.clients.len() {
                self.submit(client, Record::new(Kind::Flush, 0, 0), ImageOp::Flush);
            }
        }
    }

    /// Judges what clients saw.
    pub(crate) fn judge(&mut self) -> Result<(), String> {
        let kept: usize = self.clients.iter().map(|client| client.core.unsynced()).sum();
        if kept > 0 {
            return Err(format!("clients keep {kept} changes after the last flush"));
        }
        let mut history = workload::history(&self.records);
        history.set_cuts(std::mem::take(&mut self.lazy.cuts), std::mem::take(&mut self.lazy.dead));
        history.check()
    }
}
