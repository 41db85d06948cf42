//! What the peers of a PG hold of one object, and what follows from it: which version counts, who has it, who lacks it.
//!
//! - **Replicated**: the newest version counts. It includes everything acknowledged, because enough members were asked
//!   (docs/peering.md), and everything older, because members apply changes in order.
//! - **Erasure-coded**: the newest version of which enough shards exist to make the object from: staged changes that
//!   reached so many shards are kept, others are taken back. A tombstone counts wherever it is.

use std::collections::BTreeSet;

use cluster_proto::ids::{ObjectId, Version};
use cluster_proto::shard::ObjectHead;
use smallvec::SmallVec;

use super::Peer;
use crate::op::{OpId, PeerMask};

/// A shard of the object at a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shard {
    pub peer: u8,
    pub part: u8,
    pub deleted: bool,
    pub version: Version,
    /// The newest change is staged over this version.
    pub staged_over: Option<Version>,
}

impl Shard {
    pub fn new(peer: usize, head: &ObjectHead) -> Self {
        Shard {
            peer: peer as u8,
            part: head.object.part,
            deleted: head.deleted,
            version: head.version,
            staged_over: head.staged_over,
        }
    }

    /// Whether its newest change has to be taken back before it can have this version.
    pub fn is_ahead_of(&self, version: Version) -> bool {
        self.version > version && self.staged_over.is_some_and(|before| before <= version)
    }

    /// Whether this is, or can be turned back into, this version.
    fn offers(&self, version: Version) -> bool {
        self.version == version || self.staged_over == Some(version)
    }
}

/// An object that not all members of the acting set have at the version that counts.
#[derive(Debug)]
pub(crate) struct Missing {
    /// The version that counts; [`Version::NONE`]: the object does not exist.
    pub version: Version,
    pub deleted: bool,
    /// All shards that were found.
    pub shards: SmallVec<[Shard; 4]>,
    /// Members of the acting set that lack the version.
    pub stale: PeerMask,
    /// Too few shards of it were found.
    pub is_unfound: bool,
    /// Requests that wait until it is recovered.
    pub waiting: Vec<OpId>,
    /// The recovery under way.
    pub running: Option<OpId>,
    /// A recovery failed; not tried again before the next round unless somebody asks.
    pub failed: bool,
    /// Since when (microseconds, in this round) each attempt found that nobody can read some of these sectors.
    pub unreadable: Option<(u64, BTreeSet<u32>)>,
}

impl Missing {
    /// Judges what was found of an object. None if nothing has to be done. `needed`: shards that make up the object (1 in
    /// a replicated pool).
    pub fn judge(peers: &[Peer], coded: bool, needed: usize, shards: SmallVec<[Shard; 4]>) -> Option<Missing> {
        let (version, deleted, found) = if coded { newest_whole(&shards, needed) } else { newest(&shards) };
        let mut missing = Missing {
            version,
            deleted,
            shards,
            stale: 0,
            is_unfound: !found,
            waiting: Vec::new(),
            running: None,
            failed: false,
            unreadable: None,
        };
        missing.stale = missing.find_stale(peers, coded);
        let staged = missing.shards.iter().any(|shard| shard.staged_over.is_some());
        (missing.stale != 0 || missing.is_unfound || staged).then_some(missing)
    }

    fn find_stale(&self, peers: &[Peer], coded: bool) -> PeerMask {
        let mut stale = 0;
        for (number, peer) in peers.iter().enumerate() {
            let Some(serves) = peer.shard else { continue };
            let part = if coded { serves as u8 } else { 0 };
            let own = self.shards.iter().find(|shard| usize::from(shard.peer) == number && shard.part == part);
            let has = match own {
                Some(shard) => shard.version == self.version && shard.deleted == self.deleted,
                None => self.version == Version::NONE,
            };
            stale |= u64::from(!has) << number;
        }
        stale
    }

    /// The version before the one that counts takes its place, if all shards of this one can be taken back to what makes up that.
    pub fn undo_staged(&mut self, peers: &[Peer], needed: usize) -> bool {
        let newest = self.version;
        let of_newest = |shard: &&Shard| shard.version == newest;
        if self.deleted || self.shards.iter().filter(of_newest).any(|shard| shard.staged_over.is_none()) {
            return false;
        }
        let before = self.shards.iter().map(|shard| match shard.staged_over {
            Some(version) if shard.version == newest => Shard { version, staged_over: None, ..*shard },
            _ => *shard,
        });
        let before: SmallVec<[Shard; 4]> = before.filter(|shard| shard.version != Version::NONE).collect();
        let (version, deleted, found) = newest_whole(&before, needed);
        if !found || version >= newest {
            return false;
        }
        (self.version, self.deleted) = (version, deleted);
        self.stale = self.find_stale(peers, true);
        true
    }

    /// Peers that have the version that counts, whatever part of it.
    pub fn holders(&self) -> PeerMask {
        let has = self.shards.iter().filter(|shard| shard.version == self.version);
        has.fold(0, |mask, shard| mask | 1 << shard.peer)
    }

    /// Peers with this version of a copy.
    pub fn with(&self, version: Version) -> impl Iterator<Item = usize> {
        self.shards.iter().filter(move |s| s.version == version && !s.deleted).map(|s| usize::from(s.peer))
    }

    /// The shard of the acting member `peer`.
    pub fn shard_at(&self, peer: usize, part: u8) -> Option<&Shard> {
        self.shards.iter().find(|shard| usize::from(shard.peer) == peer && shard.part == part)
    }

    /// These members have changed the object: they hold this version now.
    pub fn changed(&mut self, members: PeerMask, version: Version, deleted: bool, part_at: impl Fn(usize) -> u8) {
        self.version = version;
        self.deleted = deleted;
        for peer in crate::op::bits(members) {
            self.restored(peer, part_at(peer));
        }
    }

    /// A member has the version that counts now.
    pub fn restored(&mut self, peer: usize, part: u8) {
        self.shards.retain(|shard| !(usize::from(shard.peer) == peer && shard.part == part));
        self.stale &= !(1 << peer);
        if self.version != Version::NONE {
            let (version, deleted) = (self.version, self.deleted);
            self.shards.push(Shard { peer: peer as u8, part, deleted, version, staged_over: None });
        }
    }
}

/// The newest version anybody has.
fn newest(shards: &[Shard]) -> (Version, bool, bool) {
    let newest = shards.iter().max_by_key(|shard| shard.version);
    newest.map_or((Version::NONE, false, true), |shard| (shard.version, shard.deleted, true))
}

/// The newest version of which `needed` different shards exist, or a tombstone that is newer. Not found: there must be one,
/// but too few shards of it could be asked for.
fn newest_whole(shards: &[Shard], needed: usize) -> (Version, bool, bool) {
    let mut versions: BTreeSet<Version> = shards.iter().map(|shard| shard.version).collect();
    versions.extend(shards.iter().filter_map(|shard| shard.staged_over).filter(|v| *v != Version::NONE));
    for &version in versions.iter().rev() {
        if shards.iter().any(|shard| shard.deleted && shard.version == version) {
            return (version, true, true);
        }
        let parts: BTreeSet<u8> = shards.iter().filter(|s| s.offers(version)).map(|s| s.part).collect();
        if parts.len() >= needed {
            return (version, false, true);
        }
    }
    if shards.is_empty() {
        return (Version::NONE, false, true);
    }
    // Nothing was ever completed: every shard can go back to "does not exist".
    if shards.iter().all(|shard| shard.staged_over == Some(Version::NONE)) {
        return (Version::NONE, false, true);
    }
    (versions.last().copied().unwrap_or_default(), false, false)
}

/// Shards of every object, from the heads of each peer.
pub(super) fn collect(heads: &[Vec<ObjectHead>]) -> impl Iterator<Item = (ObjectId, SmallVec<[Shard; 4]>)> + use<> {
    let mut objects: std::collections::BTreeMap<ObjectId, SmallVec<[Shard; 4]>> = Default::default();
    for (peer, list) in heads.iter().enumerate() {
        for head in list {
            objects.entry(head.object.whole()).or_default().push(Shard::new(peer, head));
        }
    }
    objects.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::ids::{Epoch, OsdId};
    use smallvec::smallvec;

    fn peers(count: usize) -> Vec<Peer> {
        (0..count).map(|i| Peer { osd: OsdId(i as u32 + 1), member: None, shard: Some(i) }).collect()
    }

    fn v(counter: u64) -> Version {
        if counter == 0 { Version::NONE } else { Version::new(Epoch(1), counter) }
    }

    fn shard(peer: u8, part: u8, version: u64, staged_over: Option<u64>) -> Shard {
        Shard { peer, part, deleted: false, version: v(version), staged_over: staged_over.map(v) }
    }

    #[test]
    fn the_newest_copy_counts() {
        let shards = smallvec![shard(0, 0, 4, None), shard(1, 0, 5, None)];
        let missing = Missing::judge(&peers(3), false, 1, shards).unwrap();
        assert_eq!((missing.version, missing.stale, missing.holders()), (v(5), 0b101, 0b010));
        let same = smallvec![shard(0, 0, 4, None), shard(1, 0, 4, None)];
        assert!(Missing::judge(&peers(2), false, 1, same).is_none());
    }

    #[test]
    fn a_staged_change_on_enough_shards_is_kept() {
        let shards = smallvec![shard(0, 0, 5, Some(4)), shard(1, 1, 5, Some(4)), shard(2, 2, 4, None)];
        let missing = Missing::judge(&peers(3), true, 2, shards).unwrap();
        assert_eq!((missing.version, missing.stale, missing.is_unfound), (v(5), 0b100, false));
    }

    #[test]
    fn a_staged_change_on_too_few_shards_is_taken_back() {
        let shards = smallvec![shard(0, 0, 5, Some(4)), shard(1, 1, 4, None), shard(2, 2, 4, None)];
        let missing = Missing::judge(&peers(3), true, 2, shards).unwrap();
        assert_eq!((missing.version, missing.stale), (v(4), 0b001));
        let first = smallvec![shard(0, 0, 5, Some(0))];
        let missing = Missing::judge(&peers(3), true, 2, first).unwrap();
        assert_eq!((missing.version, missing.stale, missing.is_unfound), (v(0), 0b001, false));
    }

    #[test]
    fn too_few_shards_of_a_kept_version_are_unfound() {
        let shards = smallvec![shard(0, 0, 5, None)];
        assert!(Missing::judge(&peers(3), true, 2, shards).unwrap().is_unfound);
        // The same shard twice is one shard.
        let twice = smallvec![shard(0, 0, 5, None), shard(1, 0, 5, None)];
        assert!(Missing::judge(&peers(3), true, 2, twice).unwrap().is_unfound);
    }

    #[test]
    fn a_tombstone_counts_wherever_it_is() {
        let mut gone = shard(2, 2, 6, None);
        gone.deleted = true;
        let missing =
            Missing::judge(&peers(3), true, 2, smallvec![shard(0, 0, 5, None), shard(1, 1, 5, None), gone]).unwrap();
        assert_eq!((missing.version, missing.deleted, missing.stale), (v(6), true, 0b011));
    }
}
