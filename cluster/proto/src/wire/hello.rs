//! Introduction of the two sides of a connection.

use uuid::Uuid;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::DecodeError;
use super::codec::{Reader, put};
use crate::ids::{ClientId, Incarnation, OsdId};

/// Version of the protocol this code speaks.
pub const PROTOCOL: u16 = 1;

/// What a side of a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Role {
    /// An OSD with its number.
    Osd(OsdId),
    /// A client instance.
    Client(ClientId),
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
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Refusal::Protocol => "it speaks another protocol version: run the same Blockyard release on both sides",
            Refusal::Cluster => "it belongs to another cluster: check the address and the data directory",
            Refusal::Target => "another OSD listens at this address: the map will be refreshed",
            Refusal::NotHello => "the first message was not an introduction",
        })
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHello {
    protocol: U16,
    role: u8,
    reserved: [u8; 5],
    cluster: [u8; 16],
    sender: U64,
    incarnation: U64,
    target: U64,
}

const _: () = assert!(size_of::<RawHello>() == 48);

impl Hello {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let (role, sender) = match self.role {
            Role::Osd(id) => (1, u64::from(id.0)),
            Role::Client(id) => (2, id.0),
        };
        put(
            out,
            &RawHello {
                protocol: self.protocol.into(),
                role,
                reserved: [0; 5],
                cluster: *self.cluster.as_bytes(),
                sender: sender.into(),
                incarnation: self.incarnation.0.into(),
                target: u64::from(self.target.0).into(),
            },
        );
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let raw: &RawHello = r.take("introduction")?;
        let narrow = |n: U64| u32::try_from(n.get()).map_err(|_| r.error("OSD number"));
        let role = match raw.role {
            1 => Role::Osd(OsdId(narrow(raw.sender)?)),
            2 if raw.sender.get() != 0 => Role::Client(ClientId(raw.sender.get())),
            _ => return Err(r.error("role")),
        };
        Ok(Hello {
            protocol: raw.protocol.get(),
            cluster: Uuid::from_bytes(raw.cluster),
            role,
            incarnation: Incarnation(raw.incarnation.get()),
            target: OsdId(narrow(raw.target)?),
        })
    }
}

impl Refusal {
    pub(super) fn put(self, out: &mut Vec<u8>) {
        put(out, &U64::new(self as u64));
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match r.take::<U64>("refusal")?.get() {
            1 => Refusal::Protocol,
            2 => Refusal::Cluster,
            3 => Refusal::Target,
            4 => Refusal::NotHello,
            _ => return Err(r.error("refusal")),
        })
    }
}
