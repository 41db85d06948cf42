//! Scrubs in the simulation: asked for at random, by the clock, and of everything at the end, when no damage may be left anywhere.

use blockstore::{DeviceOp, DeviceResult};
use buffer::BufferMut;
use cluster_proto::map::{ClusterSettings, PgScrub, ScrubRequest, keys};
use cluster_proto::shard::{Buckets, ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::{ObjectId, PgId, PgScope, PoolId};

use crate::control::json;
use crate::net::Micros;
use crate::world::World;

/// Time that scrubs of everything may take.
const LIMIT: Micros = 120_000_000;
/// Tag of the checker's own reads. Tags of the core are never so large.
const TAG: u64 = u64::MAX;

impl World {
    fn pg_ids(&self) -> impl Iterator<Item = PgId> + use<> {
        (0..self.pg_count).map(|index| PgId { pool: PoolId(1), index })
    }

    /// In some runs scrubs are due all the time; in some of those, recovery is slow.
    pub(crate) fn choose_scrubs(&mut self) {
        if self.rng.one_in(2) {
            let (scrub_interval_seconds, deep_scrub_interval_seconds) = (60, 60 * self.rng.below(3) as u32);
            let slow = self.rng.one_in(2);
            let settings = ClusterSettings {
                scrub_interval_seconds,
                deep_scrub_interval_seconds,
                recovery_objects_max: if slow { 1 } else { 16 },
                recovery_bytes_per_second_max: slow.then_some(1 << 20),
                ..ClusterSettings::default()
            };
            self.control.put(keys::SETTINGS, json(&settings));
        }
    }

    /// An operator asks for a scrub of some PG.
    pub(crate) fn request_scrub(&mut self) {
        let pg = PgId { pool: PoolId(1), index: self.rng.below(self.pg_count.into()) as u32 };
        let request = ScrubRequest { deep: self.rng.one_in(2), requested: self.stamp };
        self.note(|| format!("scrub of pg {pg}: {request:?}"));
        self.control.put(&keys::scrub(pg), json(&request));
        self.state_changed();
    }

    /// Scrubs all there is, and looks at the disks afterwards.
    pub(crate) fn scrub_everything(&mut self) -> Result<(), String> {
        let requested = self.stamp;
        self.note(|| "scrub of everything".into());
        for pg in self.pg_ids() {
            self.control.put(&keys::scrub(pg), json(&ScrubRequest { deep: true, requested }));
        }
        self.state_changed();
        let limit = self.now + LIMIT;
        let is_served = |world: &World| world.pg_ids().all(|pg| world.scrub_of(pg, requested).is_some());
        self.run_until(limit, is_served).map_err(|e| format!("scrubs do not end: {e}"))?;
        let left: u64 = self.pg_ids().filter_map(|pg| self.scrub_of(pg, requested)).map(|scrub| scrub.unrepaired).sum();
        if left > 0 {
            return Err(format!("{left} damaged sectors could not be repaired although they are intact elsewhere"));
        }
        (0..self.osds.len()).try_for_each(|osd| self.check_disk(osd))
    }

    /// How this request was served, as the cluster state says.
    fn scrub_of(&self, pg: PgId, requested: u64) -> Option<PgScrub> {
        let recorded = self.control.get(&keys::scrubbed(pg)).and_then(|value| serde_json::from_slice(value).ok());
        recorded.filter(|scrub: &PgScrub| scrub.served == Some(requested))
    }

    /// An OSD writes what it has scrubbed to the state store, if it reaches that.
    pub(crate) fn record_scrubs(&mut self, osd: usize) {
        let core = self.osds[osd].run.as_ref().and_then(|run| run.core.as_ref());
        let scrubs = core.map(|core| core.unrecorded_scrubs()).unwrap_or_default();
        if scrubs.is_empty() || self.state_silent_until > self.now || self.osds[osd].state_cut_until > self.now {
            return;
        }
        for (pg, done) in scrubs {
            self.control.put(&keys::scrubbed(pg), json(&done));
        }
        self.state_changed();
    }

    /// Reads everything that an OSD has to hold from its disk.
    fn check_disk(&mut self, osd: usize) -> Result<(), String> {
        let count = self.pg_count;
        for pg in self.pg_ids().filter(|pg| self.is_member(&self.osds[osd], *pg)).collect::<Vec<_>>() {
            let run = self.osds[osd].run.as_ref();
            let heads = run.map(|run| run.store.list(PgScope { pg, count }, &Buckets::ALL)).unwrap_or_default();
            for head in heads.iter().filter(|head| !head.deleted) {
                match self.fetch_now(osd, head.object) {
                    Some(ShardOutcome::Fetched { version, .. }) if version == head.version => {}
                    other => return Err(format!("osd {} has {head:?} as {other:?} after a scrub", osd + 1)),
                }
            }
        }
        Ok(())
    }

    /// Reads an object from an OSD's disk without letting time pass.
    fn fetch_now(&mut self, osd: usize, object: ObjectId) -> Option<ShardOutcome> {
        let node = &mut self.osds[osd];
        let store = &mut node.run.as_mut()?.store;
        store.submit(TAG, ShardOp::Fetch { object });
        loop {
            if let Some((tag, outcome)) = store.poll_outcome() {
                if tag == TAG {
                    return Some(outcome);
                }
                continue;
            }
            let request = store.poll_device()?;
            if let DeviceOp::Read { offset, len } = request.op {
                let mut out = BufferMut::for_overwrite(len);
                node.disk.read(offset, &mut out);
                store.handle_device(request.token, DeviceResult::Read(Ok(out)));
            }
        }
    }
}
