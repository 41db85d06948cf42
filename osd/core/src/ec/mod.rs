//! Erasure-coded objects at their primary: `layout` says where sectors lie, `read` gathers shards, `write` makes staged
//! changes of them, `rebuild` brings shards to those that lack them, `rows` computes them, `parity` tells whether they fit each other.

mod layout;
mod parity;
mod read;
mod rebuild;
mod rows;
mod write;

use std::collections::BTreeMap;
use std::rc::Rc;

use buffer::Buffer;
use cluster_proto::crc::Crcs;
use cluster_proto::ids::{ObjectId, Version};
use cluster_proto::layout::SectorRange;
use cluster_proto::map::Scheme;
use erasure::Code;

use crate::op::PeerMask;
use crate::pg::Pg;

pub(crate) use parity::{Comparison, Misfit, PartMask, ShardSums, sums_for};

/// Codes by their shape: making one costs a matrix inversion.
#[derive(Default)]
pub(crate) struct Codes {
    codes: BTreeMap<(u8, u8), Rc<Code>>,
}

impl Codes {
    /// The code of an erasure-coded scheme.
    pub fn get(&mut self, scheme: Scheme) -> Option<Rc<Code>> {
        let Scheme::Ec { data, parity } = scheme else { return None };
        if let Some(code) = self.codes.get(&(data, parity)) {
            return Some(code.clone());
        }
        let code = Rc::new(Code::new(data.into(), parity.into()).ok()?);
        self.codes.insert((data, parity), code.clone());
        Some(code)
    }
}

/// What shards are gathered for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// To answer a read, or to compare.
    Read,
    /// To compute parity from all data of the rows.
    Write,
    /// To compute parity from what it was and how the data changes.
    Delta,
    /// To rewrite damaged sectors of a shard.
    Repair { part: u8, peer: usize },
}

/// Sectors of one shard.
#[derive(Debug)]
pub(crate) struct ShardRead {
    pub part: u8,
    pub peer: usize,
    pub sectors: SectorRange,
    pub got: Option<(Buffer, Crcs)>,
}

impl ShardRead {
    /// Some of the sectors read.
    fn slice(&self, sectors: SectorRange) -> Option<(Buffer, Crcs)> {
        let (data, crcs) = self.got.as_ref()?;
        let first = (sectors.start - self.sectors.start) as usize;
        let bytes = first * cluster_proto::SECTOR..first * cluster_proto::SECTOR + sectors.bytes();
        Some((data.slice(bytes), crcs[first..first + sectors.count as usize].into()))
    }
}

/// Shards being gathered for a client's request.
#[derive(Debug)]
pub(crate) struct EcOp {
    pub purpose: Purpose,
    /// The rows concerned.
    pub rows: SectorRange,
    pub reads: Vec<ShardRead>,
    /// Shards are computed from others: all `reads` are of all `rows`.
    pub rebuilds: bool,
    pub version: Version,
    /// Damage that was found: the shard, who serves it, the first damaged sectors.
    pub damage: Option<(u8, usize, SectorRange)>,
    /// Shards, with who serves them, that these rows cannot be computed from.
    pub useless: Vec<(u8, usize)>,
    pub failed: bool,
    /// A shard does not have the version that counts (any more).
    pub outdated: bool,
}

impl Pg {
    /// A peer that has a shard of an object at the version that counts; its regular member first.
    pub(crate) fn peer_with(&self, object: &ObjectId, part: u8) -> Option<usize> {
        let regular = self.peer_of_shard(usize::from(part));
        let Some(missing) = self.missing.get(object) else { return regular };
        let has = |peer: usize| missing.shard_at(peer, part).is_some_and(|shard| shard.version == missing.version);
        regular
            .filter(|peer| missing.stale >> peer & 1 == 0)
            .or_else(|| (0..self.peers().len()).find(|peer| has(*peer)))
    }

    /// Peers that have a shard of an object at the version that counts; its regular member first.
    fn peers_with(&self, object: &ObjectId, part: u8) -> impl Iterator<Item = usize> {
        let first = self.peer_with(object, part);
        let missing = self.missing.get(object);
        let others = missing.into_iter().flat_map(move |missing| {
            let has = move |s: &&crate::pg::Shard| s.part == part && s.version == missing.version && !s.deleted;
            missing.shards.iter().filter(has).map(|s| usize::from(s.peer))
        });
        first.into_iter().chain(others.filter(move |peer| Some(*peer) != first))
    }

    /// As many shards as make up the object, each at another peer: data shards first, without those `but` at those peers.
    pub(crate) fn enough_shards(&self, object: &ObjectId, but: &[(u8, usize)]) -> Option<Vec<(u8, usize)>> {
        let needed = self.scheme.copies_needed();
        let mut chosen: BTreeMap<usize, u8> = BTreeMap::new();
        for part in 0..self.scheme.width() as u8 {
            self.choose(object, part, but, &mut chosen, &mut 0);
            if chosen.len() == needed {
                let mut found: Vec<_> = chosen.into_iter().map(|(peer, part)| (part, peer)).collect();
                found.sort_unstable();
                return Some(found);
            }
        }
        None
    }

    /// Finds a peer for a part, if need be by giving another part another peer (augmenting paths).
    fn choose(
        &self,
        object: &ObjectId,
        part: u8,
        but: &[(u8, usize)],
        chosen: &mut BTreeMap<usize, u8>,
        tried: &mut PeerMask,
    ) -> bool {
        for peer in self.peers_with(object, part).filter(|peer| !but.contains(&(part, *peer))) {
            if *tried >> peer & 1 == 1 {
                continue;
            }
            *tried |= 1 << peer;
            let present = chosen.get(&peer).copied();
            if present.is_none_or(|other| self.choose(object, other, but, chosen, tried)) {
                chosen.insert(peer, part);
                return true;
            }
        }
        false
    }
}
