//! Identifiers and counters, one type each, so that none can stand in for another.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                s.parse().map(Self)
            }
        }
    };
}

id! {
    /// An OSD: one event loop that owns one device or file. Numbers start at 1.
    OsdId(u32)
}
id! {
    /// A pool. Numbers start at 1 and are not reused.
    PoolId(u32)
}
id! {
    /// One layer of an image (the writable top or a snapshot). Numbers start at 1 and are not reused in a cluster.
    LayerId(u64)
}
id! {
    /// A running client instance: random, never 0 (0 stands for the cluster's own writes).
    ClientId(u64)
}
id! {
    /// One run of one daemon: random, new at every start.
    Incarnation(u64)
}
id! {
    /// Counts the intervals of one PG. 24 bits, because a [`Version`] carries it in its upper bits. 0 = never active.
    Epoch(u32)
}

impl Epoch {
    /// Highest epoch a version can carry.
    pub const MAX: Epoch = Epoch((1 << 24) - 1);

    /// The epoch after this one.
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

/// Version of one object: `epoch << 40 | counter`. The primary counts the changes of a PG from 1 in each interval, so
/// versions rise over all objects of a PG, over a deletion and re-creation of an object, and any write in a later
/// interval is newer than all before it. [`Version::NONE`] stands for an object that does not exist.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(pub u64);

impl Version {
    /// The version of an object that was never written.
    pub const NONE: Version = Version(0);

    /// Joins the parts. `counter` is limited to 40 bits.
    pub const fn new(epoch: Epoch, counter: u64) -> Version {
        Version((epoch.0 as u64) << 40 | (counter & ((1 << 40) - 1)))
    }

    /// The epoch the version was written in.
    pub const fn epoch(self) -> Epoch {
        Epoch((self.0 >> 40) as u32)
    }

    /// The number of the change within the PG's interval.
    pub const fn counter(self) -> u64 {
        self.0 & ((1 << 40) - 1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch().0, self.counter())
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({self})")
    }
}

/// A placement group of a pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgId {
    /// The pool.
    pub pool: PoolId,
    /// 0-based, below the pool's PG count.
    pub index: u32,
}

impl fmt::Display for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.index)
    }
}

impl fmt::Debug for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pg({self})")
    }
}

/// One `block_size` piece of a layer. The lineage travels along so that any holder can compute the PG.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// The pool.
    pub pool: PoolId,
    /// The first ancestor of the layer; decides placement, see [`crate::layout::pg_index`].
    pub lineage: LayerId,
    /// The layer.
    pub layer: LayerId,
    /// 0-based: byte offset in the layer divided by the block size.
    pub index: u32,
    /// Which shard of the object, 0-based: in erasure-coded pools the data shards come first, then parity. 0 in
    /// replicated pools, and wherever the object as a whole is meant.
    pub part: u8,
}

impl ObjectId {
    /// Another shard of the same object.
    pub const fn shard(self, part: u8) -> ObjectId {
        ObjectId { part, ..self }
    }

    /// The object as a whole.
    pub const fn whole(self) -> ObjectId {
        self.shard(0)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.pool, self.layer, self.index)?;
        if self.part == 0 { Ok(()) } else { write!(f, "#{}", self.part) }
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Object({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_epoch_always_wins() {
        let old = Version::new(Epoch(3), (1 << 40) - 2);
        let new = Version::new(Epoch(4), 1);
        assert!(new > old);
        assert_eq!((old.epoch(), old.counter()), (Epoch(3), (1 << 40) - 2));
        assert_eq!(Version::new(Epoch::MAX, 5).epoch(), Epoch::MAX);
    }
}
