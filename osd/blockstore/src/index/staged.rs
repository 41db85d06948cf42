//! Staged changes: the object shows the new content, and what that replaced is kept aside until a commit frees it or a
//! rollback puts it back. The sectors kept belong to no object's visible content, but are in use.

use cluster_proto::SectorRange;
use cluster_proto::crc::Crcs;
use cluster_proto::ids::{ClientId, ObjectId, Version};
use cluster_proto::shard::{ObjectHead, Origin};

use super::{Index, Key, Place};
use crate::extent::{Extent, Extents, Runs, are_valid, sector_count};
use crate::format::checkpoint::{Before, Senseless, StoredUndo, extents_of};
use crate::format::log::Change;

/// What is needed to take a staged change back. One sector needs no memory beyond the struct.
#[derive(Clone, PartialEq, Debug)]
pub struct Undo {
    /// What the object was.
    pub before: Before,
    /// The version it had.
    pub version: Version,
    /// Who asked for the change.
    pub client: ClientId,
    /// Under which number.
    pub seq: u64,
    /// The sectors of the change; may be empty.
    pub sectors: SectorRange,
    /// Where the sectors lie that it replaced; what they do not cover was a hole.
    pub extents: Extents,
    /// Their checksums.
    pub crcs: Crcs,
    /// Sectors by which the object grows if the change is taken back.
    pub regrowth: u32,
}

impl Undo {
    /// What is kept of a change that replaced nothing.
    pub fn of_nothing(before: Before, version: Version, origin: &Origin) -> Undo {
        let sectors = SectorRange::new(0, 0);
        let (client, seq) = (origin.client, origin.seq);
        Undo { before, version, client, seq, sectors, extents: Extents::new(), crcs: Crcs::new(), regrowth: 0 }
    }

    /// The head to which it leads back.
    pub fn head(&self, object: ObjectId) -> Option<ObjectHead> {
        let deleted = self.before == Before::Deleted;
        let head = ObjectHead { object, version: self.version, deleted, staged_over: None };
        (self.before != Before::Absent).then_some(head)
    }

    fn memory_bytes(&self) -> u64 {
        let extents = if self.extents.spilled() { self.extents.capacity() * size_of::<Extent>() } else { 0 };
        let crcs = if self.crcs.spilled() { self.crcs.capacity() * size_of::<u32>() } else { 0 };
        (size_of::<(Key, Undo)>() + 1 + extents + crcs) as u64
    }

    fn runs(&self) -> Runs {
        self.extents.iter().map(|e| e.run()).collect()
    }
}

impl Index {
    /// Objects with a staged change.
    pub fn staged_count(&self) -> u64 {
        self.undos
    }

    /// Sectors kept for rollbacks.
    pub fn kept_count(&self) -> u64 {
        self.kept
    }

    /// What the staged change of an object replaced, if it has one.
    pub fn undo(&self, object: &ObjectId) -> Option<&Undo> {
        self.undo_at(self.find(object)?)
    }

    pub(super) fn undo_at(&self, place: Place) -> Option<&Undo> {
        self.partitions[place.partition].undos.get(&place.key)
    }

    pub(super) fn stage(&mut self, place: Place, change: &Change, old: Option<ObjectHead>) -> super::Effect {
        let freed = self.commit(place);
        let before = old.map_or(Before::Absent, |h| if h.deleted { Before::Deleted } else { Before::Live });
        let mut undo = Undo::of_nothing(before, old.map_or(Version::NONE, |h| h.version), &change.origin);
        undo.sectors = change.sectors;
        // What it replaces is not free: the undo holds it.
        if self.edit(place, change, Some(&mut undo)).is_none() {
            self.copy_parts(place, &mut undo);
            self.rebuild(place, change);
        }
        if change.extents.is_empty() {
            undo.regrowth = undo.crcs.len() as u32;
        }
        self.keep(place, undo);
        super::Effect { freed, refused: false }
    }

    fn copy_parts(&self, place: Place, undo: &mut Undo) {
        let Some(record) = self.record(place) else { return };
        for (extent, crcs) in self.view(record).parts(undo.sectors) {
            undo.extents.push(extent);
            undo.crcs.extend_from_slice(crcs);
        }
    }

    fn keep(&mut self, place: Place, undo: Undo) {
        let sectors = undo.crcs.len() as u64;
        self.undos += 1;
        self.undo_bytes += undo.memory_bytes();
        self.kept += sectors;
        self.regrowth += u64::from(undo.regrowth);
        self.partitions[place.partition].kept += sectors;
        let earlier = self.partitions[place.partition].undos.insert(place.key, undo);
        debug_assert!(earlier.is_none(), "one staged change per object");
    }

    fn take_undo(&mut self, place: Place) -> Option<Undo> {
        let own = &mut self.partitions[place.partition];
        if own.undos.is_empty() {
            return None;
        }
        let undo = own.undos.remove(&place.key)?;
        let sectors = undo.crcs.len() as u64;
        own.kept -= sectors;
        self.kept -= sectors;
        self.regrowth -= u64::from(undo.regrowth);
        self.undo_bytes -= undo.memory_bytes();
        self.undos -= 1;
        Some(undo)
    }

    /// Keeps the staged change, if there is one; returns what it replaced.
    pub(super) fn commit(&mut self, place: Place) -> Runs {
        self.take_undo(place).map_or_else(Runs::new, |undo| undo.runs())
    }

    /// Takes the staged change back, if there is one; returns what it had written.
    pub(super) fn rollback(&mut self, place: Place) -> Runs {
        let Some(undo) = self.take_undo(place) else { return Runs::new() };
        if undo.before == Before::Absent {
            return self.discard(place);
        }
        self.unpack_old(place);
        let mut new = std::mem::take(&mut self.new);
        let freed = new.replaced(&self.old, &[undo.sectors], &undo.extents, &undo.crcs);
        self.store(place, undo.version, (undo.before == Before::Live).then_some(&new));
        self.new = new;
        freed
    }

    /// Takes what a staged change replaced in from the checkpoint of its object's partition, after all objects.
    pub fn load_undo(&mut self, partition: u32, stored: &StoredUndo<'_>, data_sectors: u64) -> Result<(), Senseless> {
        let place = self.find(&stored.object).filter(|p| p.partition == partition as usize).ok_or(Senseless)?;
        let old = self.head_at(place).ok_or(Senseless)?;
        let origin = Origin { client: stored.client, seq: stored.seq, floor: stored.seq };
        let mut undo = Undo::of_nothing(stored.before, stored.version, &origin);
        undo.sectors = stored.sectors;
        undo.extents = extents_of(stored.extents).collect();
        undo.crcs = stored.crcs.iter().map(|c| c.get()).collect();
        let fits = are_valid(&undo.extents, data_sectors)
            && sector_count(&undo.extents) as usize == undo.crcs.len()
            && undo.extents.iter().all(|e| undo.sectors.contains(e.sectors()))
            && (undo.before == Before::Live || undo.crcs.is_empty())
            && (undo.before == Before::Absent) == (undo.version == Version::NONE)
            && undo.version < old.version
            && !old.deleted
            && old.staged_over.is_none();
        fits.then_some(()).ok_or(Senseless)?;
        undo.regrowth = (undo.crcs.len() as u32).saturating_sub(self.sectors_held(&stored.object, undo.sectors));
        self.keep(place, undo);
        self.digest(place, Some(&old), self.head_at(place).as_ref());
        Ok(())
    }
}
