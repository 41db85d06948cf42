//! Messages between clients and OSDs. docs/wire.md draws the bytes.
//!
//! A message is a 32-byte header, a body (fixed fields, then lists), one CRC-32C per 4 KiB of payload, and the payload.
//! The header's own CRC covers everything before the payload, the list covers the payload: every byte is checked once.

mod codec;
mod frame;
mod header;
mod hello;
mod peering;
mod request;
mod sub;

pub use codec::DecodeError;
pub use frame::{Decoder, encode};
pub use header::{HEADER_LEN, MAGIC};
pub use hello::{Hello, PROTOCOL, Refusal, Role};
pub use peering::{Deposed, PeerInfo, PeerList, PeerObjects, PeerQuery};
pub use request::{Reply, ReplyBody, Request, RequestOp};
pub use sub::{SubReply, SubRequest};

/// A message of the cluster's protocol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// First message of the side that connected.
    Hello(Hello),
    /// First message of the side that accepted: who it is.
    Welcome(Hello),
    /// Instead of a welcome, followed by a close.
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
    Pong,
}
