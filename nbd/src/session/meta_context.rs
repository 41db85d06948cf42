//! Metadata contexts: there is `base:allocation`, and it is number 1.

use gateway_core::Exports;

use super::handshake::Handshake;
use super::outbox::Outbox;
use super::{Mode, Outcome};
use crate::wire::meta_context::{BASE_ALLOCATION, BASE_ALLOCATION_ID, MetaQuery};
use crate::wire::option::{OptionHeader, OptionKind};
use crate::wire::option_reply::ReplyKind;

impl Handshake {
    //= nbd-proto §Option types, NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT
    pub(super) fn answer_meta_context(
        &mut self,
        exports: &dyn Exports,
        header: &OptionHeader,
        data: &[u8],
        outbox: &mut Outbox,
    ) -> Outcome {
        let is_set = header.kind == OptionKind::SetMetaContext;
        if is_set {
            // Also a failed choice replaces the one before.
            self.allocation_of = None;
        }
        if self.mode < Mode::Structured {
            return self.reject(header, ReplyKind::ErrInvalid, "structured replies come first", outbox);
        }
        let query = match MetaQuery::decode(data) {
            Ok(query) => query,
            Err(error) => return self.reject(header, ReplyKind::ErrInvalid, &error.to_string(), outbox),
        };
        if exports.find(query.name).is_none() {
            return self.reject(header, ReplyKind::ErrUnknown, "there is no export of this name", outbox);
        }
        if is_set { self.set_context(header, &query, outbox) } else { self.list_contexts(header, &query, outbox) }
    }

    fn set_context(&mut self, header: &OptionHeader, query: &MetaQuery<'_>, outbox: &mut Outbox) -> Outcome {
        if query.names_allocation {
            self.allocation_of = Some(query.name.to_owned());
            self.reply_context(header, BASE_ALLOCATION_ID, outbox);
        }
        self.accept(header, outbox)
    }

    fn list_contexts(&mut self, header: &OptionHeader, query: &MetaQuery<'_>, outbox: &mut Outbox) -> Outcome {
        if query.count == 0 || query.names_allocation || query.names_base {
            self.reply_context(header, 0, outbox);
        }
        self.accept(header, outbox)
    }

    fn reply_context(&mut self, header: &OptionHeader, id: u32, outbox: &mut Outbox) {
        self.reply(header, ReplyKind::MetaContext, &[&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()], outbox);
    }
}
