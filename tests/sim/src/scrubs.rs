//! Scrubs in the simulation: asked for at random, by the clock, and of everything at the end, when no damage may be left anywhere.

use blockstore::{DeviceError, DeviceOp, DeviceResult};
use buffer::BufferMut;
use cluster_proto::crc::sector_crcs;
use cluster_proto::map::{ClusterSettings, PgScrub, Scheme, ScrubRequest, keys};
use cluster_proto::shard::{Buckets, ObjectHead, ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::{ObjectId, PgId, PgScope, PoolId, SECTOR, SectorRange};

use crate::control::json;
use crate::net::Micros;
use crate::world::World;

/// Time that scrubs of everything may take.
const LIMIT: Micros = 120_000_000;
/// Tag of the checker's own operations. Tags of the core are never so large.
pub(crate) const TAG: u64 = u64::MAX;

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
        let (deep, requested) = (self.rng.one_in(2), self.stamp);
        let request = ScrubRequest { deep, requested, parity_from_data: false };
        self.note(|| format!("scrub of pg {pg}: {request:?}"));
        self.control.put(&keys::scrub(pg), json(&request));
        self.state_changed();
    }

    /// Scrubs all there is, and looks at the disks afterwards.
    pub(crate) fn scrub_everything(&mut self) -> Result<(), String> {
        self.note(|| "scrub of everything".into());
        let found = self.scrub_all(false)?;
        if found.unrepaired > 0 {
            let left = found.unrepaired;
            return Err(format!("{left} sectors differ, or could not be repaired although they are intact elsewhere"));
        }
        (0..self.osds.len()).try_for_each(|osd| self.check_disk(osd))
    }

    /// Scrubs all there is. Returns what was found, in sum.
    fn scrub_all(&mut self, parity_from_data: bool) -> Result<PgScrub, String> {
        self.stamp += 1;
        let requested = self.stamp;
        for pg in self.pg_ids() {
            self.control.put(&keys::scrub(pg), json(&ScrubRequest { deep: true, requested, parity_from_data }));
        }
        self.state_changed();
        let limit = self.now + LIMIT;
        let is_served = |world: &World| world.pg_ids().all(|pg| world.scrub_of(pg, requested).is_some());
        self.run_until(limit, is_served).map_err(|e| format!("scrubs do not end: {e}"))?;
        let all = self.pg_ids().filter_map(|pg| self.scrub_of(pg, requested));
        Ok(all.fold(PgScrub::default(), |sum, pg| PgScrub {
            errors: sum.errors + pg.errors,
            unrepaired: sum.unrepaired + pg.unrepaired,
            parity: sum.parity + pg.parity,
            ..sum
        }))
    }

    /// Makes some sectors of a shard, or copy, others than they were, with checksums that fit: nothing but a comparison with the other shards can tell.
    /// Scrubs must find it, and repair what can only be wrong parity by themselves, the rest of wrong parity when they are told to.
    pub(crate) fn spoil_shard(&mut self) -> Result<(), String> {
        let scheme = self.control.scheme();
        if scheme.width() == 1 {
            return Ok(());
        }
        let Some((osd, head)) = self.any_shard() else { return Ok(()) };
        let rows = u64::from(self.spoil(osd, head)?);
        self.is_spoilt = true;
        let Scheme::Ec { data, parity } = scheme else {
            let expected = PgScrub { errors: rows, unrepaired: rows, ..PgScrub::default() };
            let found = self.scrub_all(false)?;
            let why = || format!("{rows} sectors of a copy of {head:?} differ, a scrub found {found:?}");
            return (found == expected).then_some(()).ok_or_else(why);
        };
        let is_certain = parity > 1 && head.object.part >= data;
        let expected = PgScrub { errors: rows, parity: rows, ..PgScrub::default() };
        let left = PgScrub { unrepaired: if is_certain { 0 } else { rows }, ..expected };
        let clean = if is_certain { PgScrub::default() } else { expected };
        let steps = [("finds it", false, left), ("repairs it", true, clean), ("is content", false, PgScrub::default())];
        for (what, parity_from_data, expected) in steps {
            let found = self.scrub_all(parity_from_data)?;
            if found != expected {
                return Err(format!(
                    "{rows} rows of {head:?} do not fit, a scrub that {what}: {found:?}, not {expected:?}"
                ));
            }
        }
        Ok(())
    }

    /// Some shard that is not empty, where it belongs.
    fn any_shard(&mut self) -> Option<(usize, ObjectHead)> {
        let mut all = Vec::new();
        for (number, osd) in self.osds.iter().enumerate() {
            let Some(run) = &osd.run else { continue };
            for pg in self.pg_ids().filter(|pg| self.is_member(osd, *pg)) {
                let heads = run.store.list(PgScope { pg, count: self.pg_count }, &Buckets::ALL);
                all.extend(heads.into_iter().filter(|head| !head.deleted).map(|head| (number, head)));
            }
        }
        while !all.is_empty() {
            let (osd, head) = all.swap_remove(self.rng.below(all.len() as u64) as usize);
            if matches!(self.fetch_now(osd, head.object), Some(ShardOutcome::Fetched { content, .. }) if !content.extents.is_empty())
            {
                return Some((osd, head));
            }
        }
        None
    }

    /// Returns the number of sectors.
    fn spoil(&mut self, osd: usize, head: ObjectHead) -> Result<u32, String> {
        let Some(ShardOutcome::Fetched { content, .. }) = self.fetch_now(osd, head.object) else {
            return Err("what was just there cannot be read".into());
        };
        let at = self.rng.below(content.extents.len() as u64) as usize;
        let extent = content.extents[at];
        let first = self.rng.below(extent.count.into()) as u32;
        let count = (extent.count - first).min(1 + self.rng.below(4) as u32);
        let sectors = SectorRange::new(extent.start + first, count);
        let before: u32 = content.extents[..at].iter().map(|extent| extent.count).sum();
        let begin = (before + first) as usize * SECTOR;
        let mut data = BufferMut::copy_of(&content.data[begin..begin + sectors.bytes()]);
        for sector in data.chunks_exact_mut(SECTOR) {
            let byte = self.rng.below(SECTOR as u64) as usize;
            sector[byte] ^= 1 << self.rng.below(8);
        }
        let crcs = sector_crcs(&data);
        let (object, version, data) = (head.object, head.version, data.freeze());
        self.note(|| format!("sectors {sectors:?} of {object} are others on osd {}", osd + 1));
        if let Some(run) = &mut self.osds[osd].run {
            run.store.submit(TAG, ShardOp::Repair { object, version, sectors, data, crcs });
        }
        self.pump_osd(osd);
        let until = self.now + 1_000_000;
        self.run_until(until + 1_000_000, |world| world.now >= until)?;
        Ok(count)
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
            if done.parity > 0 && !self.is_spoilt {
                self.fail(format!("pg {pg}: {} rows have parity that does not fit their data", done.parity));
            }
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
                    Some(ShardOutcome::Fetched { version, content })
                        if version == head.version && content.unreadable.is_empty() => {}
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
                let result = if node.disk.is_readable(offset, len) { Ok(out) } else { Err(DeviceError(5)) };
                store.handle_device(request.token, DeviceResult::Read(result));
            }
        }
    }
}
