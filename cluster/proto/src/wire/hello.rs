//! Introduction of the two sides of a connection.

use uuid::Uuid;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::DecodeError;
use super::codec::Reader;
use crate::ids::{ClientId, Incarnation, OsdId};

/// Version of the protocol this code speaks.
pub const PROTOCOL: u16 = 6;

/// What a side of a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Role {
    /// An OSD with its number.
    Osd(OsdId),
    /// A client instance.
    Client(ClientId),
}

/// A random number, new for every connection: makes each proof one that was never seen before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nonce(pub [u8; Nonce::LEN]);

impl Nonce {
    /// Its length. Bytes.
    pub const LEN: usize = 32;
    /// In place of one, for connections that prove nothing.
    pub const ZERO: Nonce = Nonce([0; Nonce::LEN]);
}

/// How a side wants the connection to be guarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Security {
    /// It has no cluster key.
    Open = 0,
    /// It has one: both sides must prove that they do.
    Proved = 1,
    /// And it wants what follows to be encrypted.
    Encrypted = 2,
}

impl Security {
    /// Has it a key?
    pub fn is_proved(self) -> bool {
        self != Security::Open
    }

    /// Does it want encryption?
    pub fn is_encrypted(self) -> bool {
        self == Security::Encrypted
    }
}

/// Who speaks: the first message in each direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Protocol version the sender speaks.
    pub protocol: u16,
    /// Cluster the sender belongs to.
    pub cluster: Uuid,
    /// Who it is.
    pub role: Role,
    /// The run of the sender's process; new at every start.
    pub incarnation: Incarnation,
    /// The OSD the sender believes to have reached; in a welcome, the one answering.
    pub target: OsdId,
    /// How it wants the connection guarded. `Open` if it speaks another protocol version, which is all that matters then.
    pub security: Security,
    /// Chosen by the sender for this connection.
    pub nonce: Nonce,
}

/// The accepting side's introduction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// Who it is.
    pub hello: Hello,
    /// That it has the key; there if it has one.
    pub proof: Option<Proof>,
}

/// A proof that its sender has the cluster key: [`crate::auth`] makes and checks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proof(pub [u8; Proof::LEN]);

impl Proof {
    /// Its length. Bytes.
    pub const LEN: usize = 32;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Proof(*r.take("proof")?))
    }
}

/// Why a connection was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u16)]
pub enum Refusal {
    /// The sides speak different protocol versions.
    Protocol = 1,
    /// The sender belongs to another cluster.
    Cluster = 2,
    /// Another OSD listens here.
    Target = 3,
    /// The first message was not an introduction.
    NotHello = 4,
    /// The accepting side has a cluster key, the connecting side has none.
    KeyMissing = 5,
    /// The connecting side has a cluster key, the accepting side has none.
    KeyUnexpected = 6,
    /// Both have a key, but not the same, or somebody plays with recorded messages.
    Key = 7,
}

impl Refusal {
    const ALL: [Refusal; 7] = [
        Refusal::Protocol,
        Refusal::Cluster,
        Refusal::Target,
        Refusal::NotHello,
        Refusal::KeyMissing,
        Refusal::KeyUnexpected,
        Refusal::Key,
    ];
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Refusal::Protocol => "the two sides speak different versions of the protocol: run the same Blockyard release on both",
            Refusal::Cluster => "the two sides belong to different clusters: check the address and the data directory",
            Refusal::Target => "another OSD listens at this address: the map will be refreshed",
            Refusal::NotHello => "the first message was not an introduction",
            Refusal::KeyMissing => {
                "the connecting side has no cluster key, and this cluster has one: start it with the cluster's key file"
            }
            Refusal::KeyUnexpected => {
                "the accepting side has no cluster key, and the connecting side has one: start all of the cluster with its key file"
            }
            Refusal::Key => {
                "the two sides have different cluster keys: compare the fingerprints of their key files"
            }
        })
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHello {
    protocol: U16,
    role: u8,
    security: u8,
    reserved: [u8; 4],
    cluster: [u8; 16],
    sender: U64,
    incarnation: U64,
    target: U64,
}

/// What every version of the protocol has at the beginning of an introduction, so that any two can tell each other that they
/// differ.
const FROZEN_LEN: usize = 48;
const _: () = assert!(size_of::<RawHello>() == FROZEN_LEN);

impl Hello {
    /// Its length on the wire. Bytes.
    pub const LEN: usize = FROZEN_LEN + Nonce::LEN;

    /// The bytes that travel, and that are proved.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let (role, sender) = match self.role {
            Role::Osd(id) => (1, u64::from(id.0)),
            Role::Client(id) => (2, id.0),
        };
        let raw = RawHello {
            protocol: self.protocol.into(),
            role,
            security: self.security as u8,
            reserved: [0; 4],
            cluster: *self.cluster.as_bytes(),
            sender: sender.into(),
            incarnation: self.incarnation.0.into(),
            target: u64::from(self.target.0).into(),
        };
        let mut bytes = [0; Self::LEN];
        bytes[..FROZEN_LEN].copy_from_slice(raw.as_bytes());
        bytes[FROZEN_LEN..].copy_from_slice(&self.nonce.0);
        bytes
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_bytes());
    }

    /// Of another version only what all have in common is read; the rest is skipped.
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let raw: &RawHello = r.take("introduction")?;
        let protocol = raw.protocol.get();
        let narrow = |n: U64| u32::try_from(n.get()).map_err(|_| r.error("OSD number"));
        let role = match raw.role {
            1 => Role::Osd(OsdId(narrow(raw.sender)?)),
            2 if raw.sender.get() != 0 => Role::Client(ClientId(raw.sender.get())),
            _ => return Err(r.error("role")),
        };
        let hello = Hello {
            protocol,
            cluster: Uuid::from_bytes(raw.cluster),
            role,
            incarnation: Incarnation(raw.incarnation.get()),
            target: OsdId(narrow(raw.target)?),
            security: Security::Open,
            nonce: Nonce::ZERO,
        };
        if protocol != PROTOCOL {
            r.skip_rest();
            return Ok(hello);
        }
        let security = match raw.security {
            0 => Security::Open,
            1 => Security::Proved,
            2 => Security::Encrypted,
            _ => return Err(r.error("security")),
        };
        if raw.reserved != [0; 4] {
            return Err(r.error("reserved bytes"));
        }
        Ok(Hello { security, nonce: Nonce(*r.take("nonce")?), ..hello })
    }
}

impl Welcome {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        debug_assert_eq!(self.proof.is_some(), self.hello.security.is_proved());
        self.hello.put(out);
        if let Some(proof) = &self.proof {
            proof.put(out);
        }
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let hello = Hello::read(r)?;
        let proof = if hello.security.is_proved() { Some(Proof::read(r)?) } else { None };
        Ok(Welcome { hello, proof })
    }
}

impl Refusal {
    pub(super) fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(U64::new(self as u64).as_bytes());
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let code = r.take::<U64>("refusal")?.get();
        Refusal::ALL.into_iter().find(|refusal| *refusal as u64 == code).ok_or_else(|| r.error("refusal"))
    }
}
