//! How a new primary learns what the members of its PG hold.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::DecodeError;
use super::codec::{Reader, put};
use crate::ids::{Epoch, LayerId, ObjectId, PgId, PoolId, Version};
use crate::limits::{DIGEST_BUCKETS, SHARDS_MAX, WIRE_BODY_MAX, WIRE_HEADS_MAX};
use crate::shard::{Buckets, Digests, ObjectHead};

/// Begins round `round` of the interval `epoch`. From then on the receiver refuses shard operations of older rounds; it
/// answers once all it had accepted of this PG is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerQuery {
    /// The PG.
    pub pg: PgId,
    /// The interval.
    pub epoch: Epoch,
    /// Counts peering attempts of the primary within its run.
    pub round: u32,
}

/// The member's state of the PG in answer to a [`PeerQuery`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerInfo {
    /// What was asked.
    pub query: PeerQuery,
    /// Digests of the member's objects.
    pub digests: Box<Digests>,
    /// Bytes free in the member's store.
    pub free_bytes: u64,
    /// For so long another primary may yet believe to hold a read lease from this member. Milliseconds.
    pub lease_ms: u32,
    /// Which parts of objects the member holds, as a bit mask. The digests do not tell them apart.
    pub parts: u32,
}

/// Asks for the heads in some buckets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerList {
    /// The round this belongs to.
    pub query: PeerQuery,
    /// The buckets.
    pub buckets: Buckets,
}

/// A member tells a former primary that it follows a newer epoch of the PG: what it says after this on the connection
/// renews no read lease for the PG.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deposed {
    /// The PG.
    pub pg: PgId,
    /// The epoch that the member follows.
    pub epoch: Epoch,
}

/// Heads in answer to a [`PeerList`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerObjects {
    /// The round this belongs to.
    pub query: PeerQuery,
    /// More messages follow.
    pub more: bool,
    /// At most [`WIRE_HEADS_MAX`].
    pub heads: Vec<ObjectHead>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawQuery {
    pool: U32,
    pg: U32,
    epoch: U32,
    round: U32,
    count: U32,
    more: U32,
    free_bytes: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHead {
    lineage: U64,
    layer: U64,
    version: U64,
    staged_over: U64,
    index: U32,
    flags: u8,
    part: u8,
    reserved: [u8; 2],
}

/// The head is a tombstone.
const DELETED: u8 = 1;
/// The newest change is staged.
const STAGED: u8 = 2;

const _: () = assert!(size_of::<RawQuery>() == 32 && size_of::<RawHead>() == 40);
const _: () = assert!(WIRE_HEADS_MAX * size_of::<RawHead>() + size_of::<RawQuery>() <= WIRE_BODY_MAX);

impl PeerQuery {
    fn raw(&self) -> RawQuery {
        RawQuery {
            pool: self.pg.pool.0.into(),
            pg: self.pg.index.into(),
            epoch: self.epoch.0.into(),
            round: self.round.into(),
            count: 0.into(),
            more: 0.into(),
            free_bytes: 0.into(),
        }
    }

    fn of(raw: &RawQuery) -> PeerQuery {
        PeerQuery {
            pg: PgId { pool: PoolId(raw.pool.get()), index: raw.pg.get() },
            epoch: Epoch(raw.epoch.get()),
            round: raw.round.get(),
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put(out, &self.raw());
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self::of(r.take("query")?))
    }
}

impl PeerInfo {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let raw = RawQuery {
            free_bytes: self.free_bytes.into(),
            count: self.lease_ms.into(),
            more: self.parts.into(),
            ..self.query.raw()
        };
        put(out, &raw);
        for digest in self.digests.iter() {
            put(out, &U64::new(*digest));
        }
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let raw: &RawQuery = r.take("peer info")?;
        let list = r.list::<U64>(DIGEST_BUCKETS as u32, DIGEST_BUCKETS, "digests")?;
        let digests = Box::new(std::array::from_fn(|i| list[i].get()));
        let (free_bytes, lease_ms, parts) = (raw.free_bytes.get(), raw.count.get(), raw.more.get());
        Ok(PeerInfo { query: PeerQuery::of(raw), digests, free_bytes, lease_ms, parts })
    }
}

impl PeerList {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put(out, &self.query.raw());
        for word in self.buckets.0 {
            put(out, &U64::new(word));
        }
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let raw: &RawQuery = r.take("peer list")?;
        let words = r.list::<U64>((DIGEST_BUCKETS / 64) as u32, DIGEST_BUCKETS / 64, "buckets")?;
        Ok(PeerList { query: PeerQuery::of(raw), buckets: Buckets(std::array::from_fn(|i| words[i].get())) })
    }
}

impl Deposed {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        PeerQuery { pg: self.pg, epoch: self.epoch, round: 0 }.put(out);
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let query = PeerQuery::read(r)?;
        Ok(Deposed { pg: query.pg, epoch: query.epoch })
    }
}

impl PeerObjects {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let heads = &self.heads;
        debug_assert!(heads.len() <= WIRE_HEADS_MAX);
        put(
            out,
            &RawQuery { count: (heads.len() as u32).into(), more: u32::from(self.more).into(), ..self.query.raw() },
        );
        for head in heads {
            put(
                out,
                &RawHead {
                    lineage: head.object.lineage.0.into(),
                    layer: head.object.layer.0.into(),
                    version: head.version.0.into(),
                    staged_over: head.staged_over.map_or(0, |v| v.0).into(),
                    index: head.object.index.into(),
                    flags: u8::from(head.deleted) * DELETED + u8::from(head.staged_over.is_some()) * STAGED,
                    part: head.object.part,
                    reserved: [0; 2],
                },
            );
        }
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let raw: &RawQuery = r.take("peer objects")?;
        let query = PeerQuery::of(raw);
        let heads = r
            .list::<RawHead>(raw.count.get(), WIRE_HEADS_MAX, "heads")?
            .iter()
            .map(|h| ObjectHead {
                object: ObjectId {
                    pool: query.pg.pool,
                    lineage: LayerId(h.lineage.get()),
                    layer: LayerId(h.layer.get()),
                    index: h.index.get(),
                    part: h.part,
                },
                version: Version(h.version.get()),
                deleted: h.flags & DELETED != 0,
                staged_over: (h.flags & STAGED != 0).then(|| Version(h.staged_over.get())),
            })
            .collect::<Vec<_>>();
        if heads.iter().any(|h| usize::from(h.object.part) >= SHARDS_MAX) {
            return Err(r.error("shard number"));
        }
        Ok(PeerObjects { query, more: raw.more.get() != 0, heads })
    }
}
