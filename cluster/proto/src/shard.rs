//! What one OSD's store does for the PG logic: the contract between `osd-core` and `blockstore`, which do not know
//! each other. A primary sends [`ShardOp`]s to the members of the acting set; its own share goes to its own store, the
//! others cross the network as they are.
//!
//! **Order.** Ops on one shard take effect in the order of submission, and complete (become durable) in that order:
//! after a crash a store holds the effects of a prefix of the mutating ops submitted to it, never an op without the ones
//! before it. A change that fails takes those of the same object with it that are submitted before its outcome is taken. An op is reported [`ShardOutcome::Done`] only when it and all before it are durable. Reads see what is durable,
//! and *lazy* changes already when they are on the device, if all that is before them is durable or lazy itself; those are
//! then reported [`ShardOutcome::Written`], and a [`ShardOp::Sync`] makes them durable.

use buffer::Buffer;
use smallvec::SmallVec;

use crate::crc::Crcs;
use crate::ids::{ClientId, ObjectId, PoolId, Version};
use crate::layout::{PgScope, SectorRange};
use crate::limits::DIGEST_BUCKETS;
use crate::status::Status;

/// Who asked for a change, so that the same request sent twice takes effect once, also after a crash (see
/// docs/wire.md, "Exactly once").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Origin {
    /// The client; 0 for the cluster's own changes, which are not remembered.
    pub client: ClientId,
    /// The client's sequence number for the request.
    pub seq: u64,
    /// The client has received the answer of every request numbered below this. `floor <= seq`, at most
    /// [`crate::limits::CLIENT_WINDOW`] below it.
    pub floor: u64,
}

impl Origin {
    /// A change of the cluster's own making.
    pub const NONE: Origin = Origin { client: ClientId(0), seq: 0, floor: 0 };
}

/// A remembered request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct AppliedRequest {
    /// The client.
    pub client: ClientId,
    /// Its sequence number.
    pub seq: u64,
    /// The version the request made.
    pub version: Version,
}

impl AppliedRequest {
    /// A mark among the requests of a restored object: those above this version have *not* taken effect.
    pub const fn undone_above(version: Version) -> Self {
        AppliedRequest { client: ClientId(0), seq: 0, version }
    }
}

/// What a store knows of a client's request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestState {
    /// Not seen, as far as this store knows.
    Unknown,
    /// Took effect, making this version.
    Applied(Version),
    /// Below the client's floor: a late duplicate of a request whose answer the client has. Drop it.
    BelowFloor,
}

/// A sector whose data could not be read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Unreadable {
    /// Its number in the object.
    pub sector: u32,
    /// The checksum that its data has wherever it is intact, or [`Unreadable::UNKNOWN`].
    pub crc: u32,
}

impl Unreadable {
    /// Stands for a checksum that nobody knows. (One in 2^32 sectors has it.)
    pub const UNKNOWN: u32 = 0;
}

/// A whole object as one member holds it: what recovery copies to another member.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ObjectContent {
    /// The object is a tombstone; then `extents` is empty.
    pub deleted: bool,
    /// Sectors that hold data, ascending and disjoint; the rest reads as zeroes.
    pub extents: Vec<SectorRange>,
    /// The sectors' data, in the order of `extents`.
    pub data: Buffer,
    /// One per sector of data.
    pub crcs: Crcs,
    /// Those sectors of `extents` that could not be read, ascending: in `data` they are zeroes. Whoever is given them stores that they cannot
    /// be read.
    pub unreadable: Vec<Unreadable>,
    /// Requests that made the object what it is and may yet be repeated. May end with
    /// [`AppliedRequest::undone_above`].
    pub requests: Vec<AppliedRequest>,
}

/// An operation on one shard of one object.
///
/// Versions are given by the primary and rise with every change of an object. A mutating op whose version is not above
/// the object's current version is refused with [`Status::Invalid`], except where noted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShardOp {
    /// Reads sectors. Absent sectors read as zeroes. Verified against the stored checksums.
    Read {
        /// The object.
        object: ObjectId,
        /// The sectors.
        sectors: SectorRange,
    },
    /// Reads the whole object with its holes and remembered requests, for recovery. What cannot be read of it is told.
    Fetch {
        /// The object.
        object: ObjectId,
    },
    /// Like [`ShardOp::Fetch`], but of the content only what lies in these sectors: for a member that lacks only them.
    FetchPart {
        /// The object.
        object: ObjectId,
        /// Ascending and disjoint, at most [`crate::limits::PATCH_RANGES_MAX`].
        sectors: Vec<SectorRange>,
    },
    /// Writes sectors, atomically.
    Write {
        /// The object.
        object: ObjectId,
        /// Version the write makes.
        version: Version,
        /// The sectors.
        sectors: SectorRange,
        /// Their data.
        data: Buffer,
        /// Their checksums, already verified against `data`.
        crcs: Crcs,
        /// Who asked.
        origin: Origin,
        /// May be reported before it is durable: the client keeps it and repeats it until it is.
        lazy: bool,
    },
    /// Makes sectors read as zeroes and frees their space.
    Zero {
        /// The object.
        object: ObjectId,
        /// Version the change makes.
        version: Version,
        /// The sectors.
        sectors: SectorRange,
        /// Who asked.
        origin: Origin,
        /// May be reported before it is durable.
        lazy: bool,
    },
    /// Removes the object, leaving a tombstone with this version. The tombstone counts in digests and lists.
    Delete {
        /// The object.
        object: ObjectId,
        /// Version of the tombstone.
        version: Version,
        /// Who asked.
        origin: Origin,
    },
    /// Forgets the tombstone, if the object is still deleted at exactly this version; otherwise does nothing.
    Collect {
        /// The object.
        object: ObjectId,
        /// Version of the tombstone.
        version: Version,
    },
    /// Replaces the whole object by another member's copy. Its version must be above the current one. What is staged is
    /// dropped with what it replaces.
    Restore {
        /// The object.
        object: ObjectId,
        /// Version of the copy.
        version: Version,
        /// The copy.
        content: Box<ObjectContent>,
    },
    /// Rewrites sectors whose stored data is damaged, with the same content from another member; or parity that does not fit the data, with
    /// what does. `version` must *equal* the object's current version (else [`Status::Retry`]), and does not change.
    Repair {
        /// The object.
        object: ObjectId,
        /// Current version.
        version: Version,
        /// The sectors.
        sectors: SectorRange,
        /// Their data.
        data: Buffer,
        /// Their checksums.
        crcs: Crcs,
    },
    /// Brings an object from exactly version `base` (else [`Status::Retry`]) to `version` by replacing these sectors:
    /// those in `content.extents`, which lie inside `sectors`, get data, the rest of `sectors` becomes holes.
    /// `content.deleted` is never set. Atomic.
    Patch {
        /// The object.
        object: ObjectId,
        /// The version it has.
        base: Version,
        /// The version it gets.
        version: Version,
        /// What differs: ascending and disjoint, at most [`crate::limits::PATCH_RANGES_MAX`].
        sectors: Vec<SectorRange>,
        /// The sectors' content, and the remembered requests of the object.
        content: Box<ObjectContent>,
    },
    /// A write that can be taken back: the object shows the new content at once (in reads, heads, fetches), but keeps what
    /// it replaces until [`ShardOp::Commit`] or [`ShardOp::Rollback`]. An earlier staged change of the object is
    /// committed first. With `sectors.count == 0` only the version changes; with sectors but no data they read as zeroes, and the commit
    /// frees their space. One change per object is staged at most.
    Stage {
        /// The object.
        object: ObjectId,
        /// Version the write makes.
        version: Version,
        /// The sectors; may be empty.
        sectors: SectorRange,
        /// Where any shard of the object changes by it: not for the store, but for those who remember what members miss.
        rows: SectorRange,
        /// The data of `sectors`, or nothing.
        data: Buffer,
        /// Its checksums, already verified against `data`.
        crcs: Crcs,
        /// Who asked.
        origin: Origin,
    },
    /// Keeps the staged change if it has exactly this version, and frees what it replaced; otherwise does nothing.
    Commit {
        /// The object.
        object: ObjectId,
        /// Version of the staged change.
        version: Version,
    },
    /// Takes the staged change back if it has exactly this version, with its remembered request: the object is again as before,
    /// with the version it had, or does not exist. Otherwise does nothing.
    Rollback {
        /// The object.
        object: ObjectId,
        /// Version of the staged change.
        version: Version,
    },
    /// Removes an object, or tombstone, of exactly this version (staged or not; else does nothing) without leaving a tombstone:
    /// a copy that nobody needs any more.
    Drop {
        /// The object.
        object: ObjectId,
        /// Its version.
        version: Version,
    },
    /// Reads everything stored of the object and verifies it against the stored checksums, for scrub: [`ShardOutcome::Done`], also
    /// for an object that does not exist, or [`ShardOutcome::Corrupt`] with all damage. No data is handed out. If sums are asked for, an intact
    /// object is [`ShardOutcome::Verified`] instead.
    Verify {
        /// The object.
        object: ObjectId,
        /// What is to be told of an intact object.
        sums: Sums,
    },
    /// Completes when everything submitted before is durable past the device's volatile cache.
    Sync,
}

impl ShardOp {
    /// The object concerned; none for a sync.
    pub fn object(&self) -> Option<&ObjectId> {
        match self {
            ShardOp::Read { object, .. }
            | ShardOp::Fetch { object }
            | ShardOp::Write { object, .. }
            | ShardOp::Zero { object, .. }
            | ShardOp::Delete { object, .. }
            | ShardOp::Collect { object, .. }
            | ShardOp::Restore { object, .. }
            | ShardOp::FetchPart { object, .. }
            | ShardOp::Patch { object, .. }
            | ShardOp::Stage { object, .. }
            | ShardOp::Commit { object, .. }
            | ShardOp::Rollback { object, .. }
            | ShardOp::Drop { object, .. }
            | ShardOp::Verify { object, .. }
            | ShardOp::Repair { object, .. } => Some(object),
            ShardOp::Sync => None,
        }
    }

    /// Gives the object another name: that of its shard at the member the op is for.
    pub fn rename(&mut self, name: impl FnOnce(ObjectId) -> ObjectId) {
        match self {
            ShardOp::Read { object, .. }
            | ShardOp::Fetch { object }
            | ShardOp::Write { object, .. }
            | ShardOp::Zero { object, .. }
            | ShardOp::Delete { object, .. }
            | ShardOp::Collect { object, .. }
            | ShardOp::Restore { object, .. }
            | ShardOp::FetchPart { object, .. }
            | ShardOp::Patch { object, .. }
            | ShardOp::Stage { object, .. }
            | ShardOp::Commit { object, .. }
            | ShardOp::Rollback { object, .. }
            | ShardOp::Drop { object, .. }
            | ShardOp::Verify { object, .. }
            | ShardOp::Repair { object, .. } => *object = name(*object),
            ShardOp::Sync => {}
        }
    }

    /// Whether the op may be reported before it is durable.
    pub fn is_lazy(&self) -> bool {
        matches!(self, ShardOp::Write { lazy: true, .. } | ShardOp::Zero { lazy: true, .. })
    }

    /// Whether the op changes the store.
    pub fn is_mutation(&self) -> bool {
        !matches!(
            self,
            ShardOp::Read { .. }
                | ShardOp::Fetch { .. }
                | ShardOp::FetchPart { .. }
                | ShardOp::Verify { .. }
                | ShardOp::Sync
        )
    }
}

/// What a verified object's sectors are summed up to, so that parity can be compared with data without moving either. See
/// [`crate::planes`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sums {
    /// Nothing.
    #[default]
    None,
    /// The remainder of each sector: enough for plain XOR.
    Whole,
    /// The remainders of the eight planes of each sector: enough for every code over GF(2^8).
    Planes,
}

impl Sums {
    /// Values for each sector.
    pub const fn per_sector(self) -> usize {
        match self {
            Sums::None => 0,
            Sums::Whole => 1,
            Sums::Planes => 8,
        }
    }
}

/// How a [`ShardOp`] ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShardOutcome {
    /// A change or sync is durable; a verified object is intact.
    Done,
    /// A verified object is intact, and has these sums.
    Verified {
        /// Version of the object at the time.
        version: Version,
        /// Sectors that hold data, ascending and disjoint; all others are zeroes, whose sums are 0.
        extents: Vec<SectorRange>,
        /// What was summed up.
        kind: Sums,
        /// Of each sector of data as many as the kind has.
        sums: Vec<u32>,
    },
    /// A lazy change shows and is on the device, but a loss of power may yet take it back.
    Written,
    /// Sectors read. An object that does not exist has [`Version::NONE`] and reads as zeroes.
    Read {
        /// Version of the object at the time.
        version: Version,
        /// Data of all sectors asked for.
        data: Buffer,
        /// One per sector.
        crcs: Crcs,
    },
    /// The whole object.
    Fetched {
        /// Its version.
        version: Version,
        /// Its content.
        content: Box<ObjectContent>,
    },
    /// The stored data of these sectors does not match its checksum. Nothing of it is handed out.
    Corrupt {
        /// Version of the object at the time.
        version: Version,
        /// The damaged sectors, ascending.
        sectors: SmallVec<[SectorRange; 2]>,
        /// The stored checksum of each of them: what an intact copy must have.
        crcs: Crcs,
    },
    /// Refused or failed, with no effect.
    Failed(Status),
}

/// Head of one object as digests and lists see it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct ObjectHead {
    /// The object.
    pub object: ObjectId,
    /// Its version; that of the staged change if there is one.
    pub version: Version,
    /// Whether it is a tombstone.
    pub deleted: bool,
    /// If the newest change is staged: the version to which a rollback leads, [`Version::NONE`] for "does not exist".
    pub staged_over: Option<Version>,
}

/// A run of sectors that do or do not hold data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allocation {
    /// Length of the run.
    pub count: u32,
    /// Whether the sectors hold data; if not they read as zeroes.
    pub data: bool,
}

/// Commutative digest of the objects of one PG: XOR-free sums, one per bucket, so that a change is a subtraction and an
/// addition. See [`digest_bucket`] and [`digest_hash`].
pub type Digests = [u64; DIGEST_BUCKETS];

const fn splitmix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The bucket an object's head is summed into.
pub const fn digest_bucket(object: &ObjectId) -> usize {
    (splitmix(object.layer.0 ^ splitmix(object.index as u64)) % DIGEST_BUCKETS as u64) as usize
}

/// What a head adds (wrapping) to its bucket. The same for all shards of an object at one version.
pub const fn digest_hash(head: &ObjectHead) -> u64 {
    let object = splitmix(head.object.layer.0.wrapping_mul(3) ^ splitmix(head.object.index as u64));
    let staged = (head.staged_over.is_some() as u64) << 1;
    splitmix(object ^ head.version.0.rotate_left(17) ^ head.deleted as u64 ^ staged)
}

/// Set of digest buckets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Buckets(pub [u64; DIGEST_BUCKETS / 64]);

impl Buckets {
    /// Every bucket.
    pub const ALL: Buckets = Buckets([u64::MAX; DIGEST_BUCKETS / 64]);

    /// The buckets in which two digests differ.
    pub fn differing(a: &Digests, b: &Digests) -> Buckets {
        let mut set = Buckets::default();
        for bucket in (0..DIGEST_BUCKETS).filter(|&i| a[i] != b[i]) {
            set.insert(bucket);
        }
        set
    }

    /// Adds a bucket.
    pub fn insert(&mut self, bucket: usize) {
        self.0[bucket / 64] |= 1 << (bucket % 64);
    }

    /// Whether the bucket is in the set.
    pub fn contains(&self, bucket: usize) -> bool {
        self.0[bucket / 64] >> (bucket % 64) & 1 == 1
    }

    /// Whether no bucket is in the set.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; DIGEST_BUCKETS / 64]
    }

    /// The buckets of either set.
    pub fn union(self, other: Buckets) -> Buckets {
        Buckets(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }
}

/// Space of one store, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Space {
    /// Data area.
    pub total: u64,
    /// Holding data, or waiting to become reusable.
    pub used: u64,
    /// Objects, tombstones included.
    pub objects: u64,
}

impl Space {
    /// What is left of the data area. Bytes.
    pub fn free(self) -> u64 {
        self.total.saturating_sub(self.used)
    }
}

/// What can be asked of a store's memory at once, without I/O. Answers describe what was reported: ops submitted but
/// not completed are not in them.
pub trait ShardIndex {
    /// Head of an object; `None` if it was never written or its tombstone was collected.
    fn head(&self, object: &ObjectId) -> Option<ObjectHead>;
    /// What is known of a client's request.
    fn request(&self, client: ClientId, seq: u64) -> RequestState;
    /// Tells the store that the client has received every answer below `floor`.
    fn set_floor(&mut self, client: ClientId, floor: u64);
    /// Which sectors of the range hold data.
    fn allocation(&self, object: &ObjectId, sectors: SectorRange) -> Vec<Allocation>;
    /// Declares a pool, so that digests are kept for its PGs: for `pg_count` of them, and for any number of which that is a multiple.
    /// Computes them for what is stored. Cheap when nothing changes, also if what is kept is finer already.
    fn set_pool(&mut self, pool: PoolId, pg_count: u32);
    /// Digests of a PG of a declared pool; all zero for an empty PG.
    fn digests(&self, scope: PgScope) -> Digests;
    /// Heads of the objects of a PG of a declared pool that lie in the given buckets, ascending.
    fn list(&self, scope: PgScope, buckets: &Buckets) -> Vec<ObjectHead>;
    /// Tombstones of a PG of a declared pool, ascending.
    fn tombstones(&self, scope: PgScope) -> Vec<ObjectHead>;
    /// Heads of the objects of a PG of a declared pool whose newest change is staged, ascending.
    fn staged(&self, scope: PgScope) -> Vec<ObjectHead>;
    /// Which parts of objects of a PG of a declared pool are here, as a bit mask.
    fn parts(&self, scope: PgScope) -> u32;
    /// Space of the store.
    fn space(&self) -> Space;
}
