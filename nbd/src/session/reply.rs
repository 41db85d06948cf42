//! Replies of the transmission phase, in the form that was negotiated.

use buffer::Buffer;
use zerocopy::IntoBytes;

use super::Mode;
use super::outbox::Outbox;
use crate::limits::STRING_LEN_MAX;
use crate::status::Errno;
use crate::wire::chunk::{ChunkKind, ErrorPayload, ExtendedChunk, StructuredChunk};
use crate::wire::request::{Command, Request};
use crate::wire::simple_reply::SimpleReply;

/// Sends the only chunk of a reply: header, `head`, and after it `tail_len` bytes that the caller sends.
pub(super) fn chunk(
    mode: Mode,
    request: &Request,
    kind: ChunkKind,
    head: &[&[u8]],
    tail_len: usize,
    outbox: &mut Outbox,
) {
    let len = head.iter().map(|part| part.len()).sum::<usize>() + tail_len;
    let len = u32::try_from(len).expect("payloads are bounded far below 4 GiB");
    let structured = StructuredChunk::new(kind, request.cookie, len);
    let extended = ExtendedChunk::new(kind, request.cookie, request.offset, len);
    let header = if mode == Mode::Extended { extended.as_bytes() } else { structured.as_bytes() };
    match head {
        [] => outbox.send(&[header]),
        [one] => outbox.send(&[header, one]),
        [one, two] => outbox.send(&[header, one, two]),
        _ => unreachable!("no payload here has more than two parts before its data"),
    }
}

//= nbd-proto §Structured reply chunk message: "MAY use either a simple reply or a structured reply to all other
//= requests"
/// Success without data. The simple reply is the shortest, and allowed with structured replies except for reads.
pub(super) fn done(mode: Mode, request: &Request, outbox: &mut Outbox) {
    let simple = mode == Mode::Simple || mode == Mode::Structured && request.command != Command::Read;
    if simple {
        outbox.send(&[SimpleReply::new(request.cookie, 0).as_bytes()]);
    } else {
        chunk(mode, request, ChunkKind::None, &[], 0, outbox);
    }
}

/// Failure, with a sentence for people where the protocol has room for it.
pub(super) fn error(mode: Mode, request: &Request, errno: Errno, why: &str, outbox: &mut Outbox) {
    debug_assert!(why.len() <= STRING_LEN_MAX);
    if mode == Mode::Simple {
        return outbox.send(&[SimpleReply::new(request.cookie, errno.code()).as_bytes()]);
    }
    let payload = ErrorPayload::new(errno.code(), why.len() as u16);
    chunk(mode, request, ChunkKind::Error, &[payload.as_bytes(), why.as_bytes()], 0, outbox);
}

/// The data of a read, in one chunk, whatever the number of pieces.
pub(super) fn data(mode: Mode, request: &Request, pieces: Vec<Buffer>, outbox: &mut Outbox) {
    if mode == Mode::Simple {
        outbox.send(&[SimpleReply::new(request.cookie, 0).as_bytes()]);
    } else {
        let offset = request.offset.to_be_bytes();
        chunk(mode, request, ChunkKind::OffsetData, &[&offset], request.len as usize, outbox);
    }
    pieces.into_iter().for_each(|piece| outbox.send_payload(piece));
}
