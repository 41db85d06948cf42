//! Options about one export: `EXPORT_NAME`, `INFO`, `GO`. The first and the last begin the transmission.

use gateway_core::Exports;
use zerocopy::IntoBytes;

use super::export::Export;
use super::handshake::Handshake;
use super::outbox::Outbox;
use super::{Agreement, Outcome};
use crate::wire::greeting::ExportAnswer;
use crate::wire::info::{self, BlockSizeInfo, ExportInfo};
use crate::wire::option::{InfoQuery, OptionHeader, OptionKind, decode_export_name};
use crate::wire::option_reply::ReplyKind;

impl Handshake {
    //= nbd-proto §Option types, NBD_OPT_EXPORT_NAME
    pub(super) fn answer_export_name(&mut self, exports: &dyn Exports, data: &[u8], outbox: &mut Outbox) -> Outcome {
        let name = decode_export_name(data).ok();
        let Some((name, found)) = name.and_then(|name| Some((name, exports.find(name)?))) else {
            return Outcome::Close;
        };
        let export = Export::new(&found, &self.limits);
        let answer = ExportAnswer::new(export.size, export.flags(self.mode));
        let len = if self.wants_zeroes() { size_of::<ExportAnswer>() } else { ExportAnswer::SHORT_LEN };
        outbox.attach(&export.name);
        outbox.send(&[&answer.as_bytes()[..len]]);
        self.begin(name, export)
    }

    //= nbd-proto §Option types, NBD_OPT_INFO and NBD_OPT_GO
    pub(super) fn answer_info(
        &mut self,
        exports: &dyn Exports,
        header: &OptionHeader,
        data: &[u8],
        outbox: &mut Outbox,
    ) -> Outcome {
        let query = match InfoQuery::decode(data) {
            Ok(query) => query,
            Err(error) => return self.reject(header, ReplyKind::ErrInvalid, &error.to_string(), outbox),
        };
        let Some(found) = exports.find(query.name) else {
            return self.reject(header, ReplyKind::ErrUnknown, "there is no export of this name", outbox);
        };
        let export = Export::new(&found, &self.limits);
        self.describe(header, &query, &export, outbox);
        if header.kind != OptionKind::Go {
            return self.accept(header, outbox);
        }
        outbox.attach(&export.name);
        self.accept(header, outbox);
        self.begin(query.name, export)
    }

    fn describe(&mut self, header: &OptionHeader, query: &InfoQuery<'_>, export: &Export, outbox: &mut Outbox) {
        let item = ExportInfo::new(export.size, export.flags(self.mode));
        self.reply(header, ReplyKind::Info, &[item.as_bytes()], outbox);
        let texts = [(info::NAME, &export.name), (info::DESCRIPTION, &export.description)];
        for (kind, text) in texts {
            if query.asks(kind) {
                self.reply(header, ReplyKind::Info, &[&kind.to_be_bytes(), text.as_bytes()], outbox);
            }
        }
        if query.asks(info::BLOCK_SIZE) {
            let item = BlockSizeInfo::new(export.preferred_block, export.payload_len_max);
            self.reply(header, ReplyKind::Info, &[item.as_bytes()], outbox);
        }
    }

    /// The contexts hold only for the export they were chosen for, by the name the client used.
    fn begin(&mut self, name: &str, export: Export) -> Outcome {
        let base_allocation = self.allocation_of.as_deref() == Some(name);
        Outcome::Begin(Agreement { export, mode: self.mode, base_allocation })
    }
}
