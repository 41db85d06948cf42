//! Greeting and option haggling: takes options apart and keeps what was agreed. [`super::option`] answers them.

use gateway_core::{Exports, Millis};
use zerocopy::IntoBytes;

use super::gather::{Gather, skip};
use super::outbox::Outbox;
use super::{Mode, Outcome};
use crate::limits::{HANDSHAKE_REPLY_BYTES_MAX, Limits, OPTION_LEN_MAX};
use crate::wire::greeting::{ClientFlags, Greeting};
use crate::wire::option::{OptionHeader, OptionKind};
use crate::wire::option_reply::{OptionReply, ReplyKind};

enum Stage {
    ClientFlags,
    Option,
    Data { header: OptionHeader, data: Vec<u8> },
    Skip { header: OptionHeader, left: u64 },
}

pub(super) struct Handshake {
    stage: Stage,
    gather: Gather<{ OptionHeader::LEN }>,
    client: ClientFlags,
    pub(super) mode: Mode,
    /// The export, as the client named it, for which `base:allocation` was chosen.
    pub(super) allocation_of: Option<String>,
    pub(super) limits: Limits,
    deadline: Millis,
    reply_bytes: usize,
}

impl Handshake {
    pub(super) fn new(now: Millis, limits: &Limits, outbox: &mut Outbox) -> Self {
        outbox.send(&[Greeting::new().as_bytes()]);
        Self {
            stage: Stage::ClientFlags,
            gather: Gather::new(),
            client: ClientFlags { fixed_newstyle: false, no_zeroes: false },
            mode: Mode::Simple,
            allocation_of: None,
            limits: limits.clone(),
            deadline: now.saturating_add(limits.handshake_timeout_ms),
            reply_bytes: 0,
        }
    }

    pub(super) fn deadline(&self) -> Millis {
        self.deadline
    }

    pub(super) fn memory_bytes(&self) -> usize {
        match &self.stage {
            Stage::Data { data, .. } => data.capacity(),
            _ => 0,
        }
    }

    pub(super) fn wants_zeroes(&self) -> bool {
        !self.client.no_zeroes
    }

    /// Takes one step; the caller comes again while there is input.
    pub(super) fn handle_bytes(
        &mut self,
        now: Millis,
        exports: &dyn Exports,
        input: &mut &[u8],
        outbox: &mut Outbox,
    ) -> Outcome {
        let complete = match &mut self.stage {
            Stage::ClientFlags => return self.handle_client_flags(input),
            Stage::Option => return self.handle_header(now, exports, input, outbox),
            Stage::Data { header, data } => {
                let more = input.len().min(header.len as usize - data.len());
                data.extend_from_slice(&input[..more]);
                *input = &input[more..];
                data.len() == header.len as usize
            }
            Stage::Skip { left, .. } => {
                *left = skip(input, *left);
                *left == 0
            }
        };
        if complete { self.handle_option(now, exports, outbox) } else { Outcome::Continue }
    }

    fn handle_client_flags(&mut self, input: &mut &[u8]) -> Outcome {
        let Some(bytes) = self.gather.take(input, ClientFlags::LEN).and_then(|b| b.first_chunk()) else {
            return Outcome::Continue;
        };
        match ClientFlags::decode(*bytes) {
            Ok(flags) => {
                self.client = flags;
                self.stage = Stage::Option;
                Outcome::Continue
            }
            Err(_) => Outcome::Close,
        }
    }

    fn handle_header(&mut self, now: Millis, exports: &dyn Exports, input: &mut &[u8], outbox: &mut Outbox) -> Outcome {
        let Some(bytes) = self.gather.take(input, OptionHeader::LEN) else { return Outcome::Continue };
        let Ok(header) = OptionHeader::decode(bytes) else { return Outcome::Close };
        if !self.is_acceptable(&header) {
            return Outcome::Close;
        }
        self.stage = if header.len > OPTION_LEN_MAX {
            Stage::Skip { header, left: header.len.into() }
        } else {
            Stage::Data { header, data: Vec::with_capacity(header.len as usize) }
        };
        if header.len == 0 { self.handle_option(now, exports, outbox) } else { Outcome::Continue }
    }

    //= nbd-proto §Option types, NBD_OPT_EXPORT_NAME: "the only valid option in nonfixed newstyle negotiation"
    fn is_acceptable(&self, header: &OptionHeader) -> bool {
        let by_name = header.kind == OptionKind::ExportName;
        // EXPORT_NAME has no error reply, so a name that is too long can only end the session.
        if by_name { header.len <= OPTION_LEN_MAX } else { self.client.fixed_newstyle }
    }

    /// All of an option has arrived.
    fn handle_option(&mut self, now: Millis, exports: &dyn Exports, outbox: &mut Outbox) -> Outcome {
        self.deadline = now.saturating_add(self.limits.handshake_timeout_ms);
        let outcome = match std::mem::replace(&mut self.stage, Stage::Option) {
            Stage::Data { header, data } => self.answer(exports, &header, &data, outbox),
            Stage::Skip { header, .. } => {
                self.reject(&header, ReplyKind::ErrTooBig, "option is too long", outbox);
                Outcome::Continue
            }
            Stage::ClientFlags | Stage::Option => unreachable!("called at the end of an option"),
        };
        //= nbd-proto §Termination of the session during option haggling: denial of service
        if self.reply_bytes > HANDSHAKE_REPLY_BYTES_MAX { Outcome::Close } else { outcome }
    }

    pub(super) fn reply(&mut self, header: &OptionHeader, kind: ReplyKind, data: &[&[u8]], outbox: &mut Outbox) {
        // Nothing more is worth queueing for a connection that is about to be closed.
        if self.reply_bytes > HANDSHAKE_REPLY_BYTES_MAX {
            return;
        }
        let len = data.iter().map(|part| part.len()).sum();
        self.reply_bytes += size_of::<OptionReply>() + len;
        outbox.send(&[OptionReply::new(header.code, kind, len).as_bytes()]);
        if len > 0 {
            outbox.send(data);
        }
    }

    pub(super) fn accept(&mut self, header: &OptionHeader, outbox: &mut Outbox) -> Outcome {
        self.reply(header, ReplyKind::Ack, &[], outbox);
        Outcome::Continue
    }

    /// Answers with an error and a sentence for people.
    pub(super) fn reject(&mut self, header: &OptionHeader, kind: ReplyKind, why: &str, outbox: &mut Outbox) -> Outcome {
        self.reply(header, kind, &[why.as_bytes()], outbox);
        Outcome::Continue
    }
}
