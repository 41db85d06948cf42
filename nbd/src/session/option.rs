//! The answer to each option of the client, except those about exports ([`super::info`]) and metadata contexts
//! ([`super::meta_context`]).

use gateway_core::Exports;

use super::handshake::Handshake;
use super::outbox::Outbox;
use super::{Mode, Outcome};
use crate::wire::option::{OptionHeader, OptionKind};
use crate::wire::option_reply::ReplyKind;

impl Handshake {
    //= nbd-proto §Option types
    pub(super) fn answer(
        &mut self,
        exports: &dyn Exports,
        header: &OptionHeader,
        data: &[u8],
        outbox: &mut Outbox,
    ) -> Outcome {
        match header.kind {
            OptionKind::ExportName => self.answer_export_name(exports, data, outbox),
            OptionKind::Abort => self.answer_abort(header, outbox),
            OptionKind::List => self.answer_list(exports, header, outbox),
            OptionKind::StartTls => self.answer_start_tls(header, outbox),
            OptionKind::Info | OptionKind::Go => self.answer_info(exports, header, data, outbox),
            OptionKind::StructuredReply => self.answer_structured_reply(header, outbox),
            OptionKind::ListMetaContext | OptionKind::SetMetaContext => {
                self.answer_meta_context(exports, header, data, outbox)
            }
            OptionKind::ExtendedHeaders => self.answer_extended_headers(header, outbox),
            OptionKind::Unknown => self.reject(header, ReplyKind::ErrUnsup, "option is not known here", outbox),
        }
    }

    fn answer_abort(&mut self, header: &OptionHeader, outbox: &mut Outbox) -> Outcome {
        self.accept(header, outbox);
        Outcome::Close
    }

    fn answer_list(&mut self, exports: &dyn Exports, header: &OptionHeader, outbox: &mut Outbox) -> Outcome {
        if header.len > 0 {
            return self.reject_data(header, outbox);
        }
        for name in exports.names() {
            let len = (name.len() as u32).to_be_bytes();
            self.reply(header, ReplyKind::Server, &[&len, name.as_bytes()], outbox);
        }
        self.accept(header, outbox)
    }

    //= nbd-proto §NOTLS mode: "MUST respond with NBD_REP_ERR_POLICY (if it does not support TLS for policy reasons)"
    fn answer_start_tls(&mut self, header: &OptionHeader, outbox: &mut Outbox) -> Outcome {
        if header.len > 0 {
            return self.reject_data(header, outbox);
        }
        self.reject(header, ReplyKind::ErrPolicy, "TLS is not enabled on this server", outbox)
    }

    fn answer_structured_reply(&mut self, header: &OptionHeader, outbox: &mut Outbox) -> Outcome {
        match self.mode {
            _ if header.len > 0 => self.reject_data(header, outbox),
            Mode::Extended => {
                self.reject(header, ReplyKind::ErrExtHeaderReqd, "extended headers are in use already", outbox)
            }
            Mode::Structured => {
                self.reject(header, ReplyKind::ErrInvalid, "structured replies are in use already", outbox)
            }
            Mode::Simple => {
                self.mode = Mode::Structured;
                self.accept(header, outbox)
            }
        }
    }

    fn answer_extended_headers(&mut self, header: &OptionHeader, outbox: &mut Outbox) -> Outcome {
        match self.mode {
            _ if header.len > 0 => self.reject_data(header, outbox),
            Mode::Extended => self.reject(header, ReplyKind::ErrInvalid, "extended headers are in use already", outbox),
            Mode::Simple | Mode::Structured => {
                self.mode = Mode::Extended;
                self.accept(header, outbox)
            }
        }
    }

    fn reject_data(&mut self, header: &OptionHeader, outbox: &mut Outbox) -> Outcome {
        self.reject(header, ReplyKind::ErrInvalid, "option takes no data", outbox)
    }
}
