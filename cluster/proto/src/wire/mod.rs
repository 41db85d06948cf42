//! Messages between clients and OSDs. docs/wire.md draws the bytes.
//!
//! A message is a 32-byte header, a body (fixed fields, then lists), one CRC-32C per 4 KiB of payload, and the payload.
//! The header's own CRC covers everything before the payload, the list covers the payload: every byte is checked once. On
//! encrypted connections these bytes travel in sealed records ([`Session`]).

mod channel;
mod codec;
mod frame;
mod header;
mod hello;
mod peering;
mod request;
mod seal;
mod sub;

pub use channel::Channel;
pub use codec::DecodeError;
pub use frame::{Decoder, encode};
pub use header::{HEADER_LEN, MAGIC};
pub use hello::{Hello, Nonce, PROTOCOL, Proof, Refusal, Role, Security, Welcome};
pub use peering::{Deposed, PeerInfo, PeerList, PeerObjects, PeerQuery};
pub use request::{Reply, ReplyBody, Request, RequestOp};
pub use seal::{Opener, RECORDS_PER_KEY, Sealer, Session};
pub use sub::{SubReply, SubRequest};

/// A message of the cluster's protocol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// First message of the side that connected.
    Hello(Hello),
    /// First message of the side that accepted: who it is.
    Welcome(Welcome),
    /// The connecting side's answer to a welcome, if both have a key: that it has it.
    Proof(Proof),
    /// Instead of a welcome or its answer, followed by a close.
    Refuse(Refusal),
    /// A client's request to the primary.
    Request(Request),
    /// The primary's answer to a client.
    Reply(Reply),
    /// A primary's operation on a member's shard.
    SubRequest(SubRequest),
    /// The member's answer.
    SubReply(SubReply),
    /// A primary begins a peering round.
    PeerQuery(PeerQuery),
    /// The member's digests.
    PeerInfo(PeerInfo),
    /// A primary asks for the heads in some buckets.
    PeerList(PeerList),
    /// The member's heads, in one or more messages.
    PeerObjects(PeerObjects),
    /// A member follows a newer epoch than the receiver leads.
    Deposed(Deposed),
    /// Are you there?
    Ping,
    /// Yes.
    Pong {
        /// What is free in the store of the OSD that answers. Bytes.
        free_bytes: u64,
    },
}
