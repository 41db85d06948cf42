//! Executing changes. The same functions run in operation and in replay, so both arrive at the same state.

use cluster_proto::SectorRange;
use cluster_proto::shard::ObjectHead;

use super::{Index, Place, Record, Undo, unpack, words_of};
use crate::extent::{Runs, seek};
use crate::format::log::{Change, Kind};

/// What executing a change did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Runs no longer used by any object: what was replaced, or the change's own data if it had no effect.
    pub freed: Runs,
    /// The change did not apply (a repair of a version that is gone).
    pub refused: bool,
}

impl Index {
    /// Executes a change.
    pub fn apply(&mut self, change: &Change) -> Effect {
        let place = match change.kind {
            Kind::Relocate | Kind::Cancel => return Effect::default(),
            // These need an object: one that is unknown must not make its layer known.
            Kind::Collect | Kind::Repair | Kind::Commit | Kind::Rollback | Kind::Drop => self.find(&change.object),
            _ => Some(self.place(&change.object)),
        };
        let Some(place) = place else { return Effect::without(change) };
        let old = self.head_at(place);
        let effect = match (change.kind, old) {
            // What is staged is committed by the first three, and dropped by Restore: the same, since that replaces all.
            (Kind::Write | Kind::Zero | Kind::Patch | Kind::Restore, _) => self.write(place, change),
            (Kind::Delete | Kind::RestoreDeleted, _) => self.delete(place, change),
            (Kind::Stage, old) => self.stage(place, change, old),
            (Kind::Repair, Some(old)) if old.version == change.version && !old.deleted => self.replace(place, change),
            (Kind::Repair, _) => Effect::without(change),
            (kind, Some(old)) if old.version == change.version => self.end(place, kind, &old),
            _ => Effect::without(change),
        };
        self.digest(place, old.as_ref(), self.head_after(place, change).as_ref());
        effect
    }

    fn head_after(&self, place: Place, change: &Change) -> Option<ObjectHead> {
        let Change { object, version, .. } = *change;
        match change.kind {
            // Known without looking.
            Kind::Write | Kind::Zero | Kind::Patch | Kind::Restore => {
                Some(ObjectHead { object, version, deleted: false, staged_over: None })
            }
            _ => self.head_at(place),
        }
    }

    /// Changes that take something away from an object of exactly their version.
    fn end(&mut self, place: Place, kind: Kind, old: &ObjectHead) -> Effect {
        let freed = match kind {
            Kind::Collect if old.deleted => self.discard(place),
            Kind::Drop => self.discard(place),
            Kind::Commit => self.commit(place),
            Kind::Rollback => self.rollback(place),
            _ => Runs::new(),
        };
        Effect { freed, refused: false }
    }

    fn write(&mut self, place: Place, change: &Change) -> Effect {
        let mut committed = self.commit(place);
        let mut effect = self.replace(place, change);
        effect.freed.append(&mut committed);
        effect
    }

    /// Replaces sectors, and the version.
    fn replace(&mut self, place: Place, change: &Change) -> Effect {
        match self.edit(place, change, None) {
            Some(freed) => Effect { freed, refused: false },
            None => self.rebuild(place, change),
        }
    }

    /// The general way: the object's extents are unpacked, edited and packed again.
    pub(super) fn rebuild(&mut self, place: Place, change: &Change) -> Effect {
        self.unpack_old(place);
        let mut new = std::mem::take(&mut self.new);
        let freed = new.replaced(&self.old, change.replaced(), &change.extents, &change.crcs);
        self.store(place, change.version, Some(&new));
        self.new = new;
        Effect { freed, refused: false }
    }

    /// The common case of small writes: one extent takes the place of another, or of a part of it, and joins no neighbour. Of an
    /// extent replaced whole nothing moves; otherwise it is split. `undo` takes in what was there.
    pub(super) fn edit(&mut self, place: Place, change: &Change, undo: Option<&mut Undo>) -> Option<Runs> {
        let [new] = change.extents.as_slice() else { return None };
        let sectors = new.sectors();
        if [sectors] != change.replaced() {
            return None;
        }
        let objects = &mut self.partitions[place.partition].objects;
        let record = objects.get_mut(&place.key).filter(|r| !r.is_deleted())?;
        let words = self.arena.words_mut(record.slot, record.words());
        let (extents, crcs) = words.split_at_mut(2 * record.extent_count());
        let (extents, _) = extents.as_chunks_mut::<2>();
        let (number, first) = seek(extents.len(), crcs.len(), sectors.start, |i| unpack(&extents[i]).sectors());
        let old = extents.get(number).map(unpack)?;
        let replaced = old.part(sectors).filter(|part| part.sectors() == sectors)?;
        let own = old.sectors();
        let left = old.part(SectorRange::new(own.start, sectors.start - own.start));
        let right = old.part(SectorRange::new(sectors.end(), own.end() - sectors.end()));
        let before = left.or_else(|| extents.get(number.checked_sub(1)?).map(unpack));
        let after = right.or_else(|| extents.get(number + 1).map(unpack));
        if before.is_some_and(|e| e.is_followed_by(*new)) || after.is_some_and(|e| new.is_followed_by(e)) {
            return None;
        }
        let first = first + (sectors.start - own.start) as usize;
        let changed = &mut crcs[first..first + change.crcs.len()];
        if let Some(undo) = undo {
            undo.extents.push(replaced);
            undo.crcs.extend_from_slice(changed);
        }
        changed.copy_from_slice(&change.crcs);
        record.version = change.version;
        if replaced == old {
            extents[number] = words_of(*new);
        } else {
            let mut packed = std::mem::take(&mut self.packed);
            packed.clear();
            packed.extend_from_slice(extents[..number].as_flattened());
            [left, Some(*new), right].into_iter().flatten().for_each(|extent| packed.extend(words_of(extent)));
            packed.extend_from_slice(extents[number + 1..].as_flattened());
            let count = packed.len() / 2;
            packed.extend_from_slice(crcs);
            let old = *record;
            let mut record = Record { extents: count as u16, ..old };
            record.slot = self.slot_for(place, Some(&old), record.words());
            self.arena.words_mut(record.slot, record.words()).copy_from_slice(&packed);
            self.insert(place, record, false);
            self.packed = packed;
        }
        Some(Runs::from_slice(&[replaced.run()]))
    }

    fn delete(&mut self, place: Place, change: &Change) -> Effect {
        let mut freed = self.commit(place);
        self.unpack_old(place);
        freed.extend(self.old.extents.iter().map(|e| e.run()));
        self.store(place, change.version, None);
        Effect { freed, refused: false }
    }

    /// Removes an object, with what a staged change of it replaced.
    pub(super) fn discard(&mut self, place: Place) -> Runs {
        let mut freed = self.commit(place);
        self.unpack_old(place);
        freed.extend(self.old.extents.iter().map(|e| e.run()));
        self.remove(place);
        freed
    }
}

impl Effect {
    /// The change had no effect: its own data is not used.
    fn without(change: &Change) -> Effect {
        let freed = change.extents.iter().map(|e| e.run()).collect();
        Effect { freed, refused: change.kind == Kind::Repair }
    }
}
