//! The transmission phase: takes requests apart, starts them as far as the bounds allow, and answers them as they end.

use std::collections::VecDeque;

use buffer::Buffer;
use gateway_core::{VolumeEvent, VolumeOp, VolumeReply};

use super::admission::{Refusal, admit};
use super::export::Export;
use super::gather::{Gather, skip};
use super::outbox::Outbox;
use super::slots::{Operation, Progress, Slot, Slots, payload_bytes};
use super::write::Incoming;
use super::{Agreement, Mode, Outcome, block_status, read, reply, write, zero};
use crate::limits::{Limits, SKIP_LEN_MAX};
use crate::status::Errno;
use crate::wire::request::{Command, HeaderKind, Request};

const HEADER_LEN_MAX: usize = HeaderKind::Extended.header_len();

enum Receive {
    Header,
    /// The payload of a write goes into its buffer.
    Payload(Incoming),
    /// The payload of a refused request is dropped; then it is answered.
    Skip {
        request: Request,
        left: u64,
        refusal: Refusal,
    },
}

/// A request that waits for room; `data` is the payload of a write.
struct Waiting {
    request: Request,
    data: Buffer,
}

pub(super) struct Transmission {
    export: Export,
    mode: Mode,
    header: HeaderKind,
    base_allocation: bool,
    receive: Receive,
    gather: Gather<HEADER_LEN_MAX>,
    slots: Slots,
    waiting: VecDeque<Waiting>,
    limits: Limits,
    /// `DISC` was received: nothing more is read, and the connection closes when the last request has been answered.
    disconnecting: bool,
}

impl Transmission {
    pub(super) fn new(agreement: Agreement, limits: Limits) -> Self {
        let Agreement { export, mode, base_allocation } = agreement;
        let header = if mode == Mode::Extended { HeaderKind::Extended } else { HeaderKind::Compact };
        Self {
            export,
            mode,
            header,
            base_allocation,
            receive: Receive::Header,
            gather: Gather::new(),
            slots: Slots::default(),
            waiting: VecDeque::new(),
            limits,
            disconnecting: false,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.count()
    }

    pub(super) fn is_saturated(&self) -> bool {
        !self.waiting.is_empty()
            || self.slots.count() >= self.limits.requests_in_flight_max
            || self.slots.bytes() >= self.limits.bytes_in_flight_max
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let incoming = match &self.receive {
            Receive::Payload(incoming) => incoming.memory_bytes(),
            Receive::Header | Receive::Skip { .. } => 0,
        };
        let waiting: usize = self.waiting.iter().map(|waiting| waiting.data.len() + size_of::<Waiting>()).sum();
        incoming + waiting
    }

    pub(super) fn check_invariants(&self) -> bool {
        let bytes_ok = self.slots.count() <= 1 || self.slots.bytes() <= self.limits.bytes_in_flight_max;
        let next = self.waiting.front().map(|waiting| &waiting.request);
        self.slots.check_invariants()
            && self.slots.count() <= self.limits.requests_in_flight_max.max(1)
            && bytes_ok
            && next.is_none_or(|request| !self.has_room(request))
    }

    /// Takes one step; the caller comes again while there is input.
    pub(super) fn handle_bytes(&mut self, input: &mut &[u8], outbox: &mut Outbox) -> Outcome {
        if self.disconnecting {
            *input = &[];
            return Outcome::Continue;
        }
        match &mut self.receive {
            Receive::Header => return self.handle_header(input, outbox),
            Receive::Payload(incoming) => {
                if incoming.fill(input) {
                    self.payload_complete(outbox);
                }
            }
            Receive::Skip { left, .. } => {
                *left = skip(input, *left);
                if *left == 0 {
                    self.skip_complete(outbox);
                }
            }
        }
        Outcome::Continue
    }

    fn handle_header(&mut self, input: &mut &[u8], outbox: &mut Outbox) -> Outcome {
        let Some(bytes) = self.gather.take(input, self.header.header_len()) else { return Outcome::Continue };
        let Ok(request) = Request::decode(self.header, bytes) else { return Outcome::Close };
        if request.command == Command::Disconnect {
            self.disconnecting = true;
            return self.close_if_finished();
        }
        let payload_len = request.payload_len(self.header);
        if payload_len > SKIP_LEN_MAX {
            return Outcome::Close;
        }
        match admit(&request, &self.export, self.mode, self.base_allocation) {
            Ok(()) if payload_len > 0 => self.receive = Receive::Payload(Incoming::new(request)),
            Ok(()) => self.accept(request, Buffer::new(), outbox),
            Err(refusal) if payload_len > 0 => {
                self.receive = Receive::Skip { request, left: payload_len, refusal };
            }
            Err(refusal) => self.refuse(&request, refusal, outbox),
        }
        Outcome::Continue
    }

    fn payload_complete(&mut self, outbox: &mut Outbox) {
        if let Receive::Payload(incoming) = std::mem::replace(&mut self.receive, Receive::Header) {
            let (request, data) = incoming.finish();
            self.accept(request, data, outbox);
        }
    }

    fn skip_complete(&mut self, outbox: &mut Outbox) {
        if let Receive::Skip { request, refusal, .. } = std::mem::replace(&mut self.receive, Receive::Header) {
            self.refuse(&request, refusal, outbox);
        }
    }

    fn refuse(&self, request: &Request, refusal: Refusal, outbox: &mut Outbox) {
        reply::error(self.mode, request, refusal.errno, refusal.why, outbox);
    }

    /// An admitted request is all here.
    fn accept(&mut self, request: Request, data: Buffer, outbox: &mut Outbox) {
        //= nbd-proto §Request types, NBD_CMD_CACHE: it is advice, and the gateway has no cache to fill
        let is_nothing = request.command == Command::Cache || request.len == 0 && request.command != Command::Flush;
        if is_nothing {
            reply::done(self.mode, &request, outbox);
        } else if self.waiting.is_empty() && self.has_room(&request) {
            self.start(request, data, outbox);
        } else {
            self.waiting.push_back(Waiting { request, data });
        }
    }

    fn has_room(&self, request: &Request) -> bool {
        let bytes = self.slots.bytes() + payload_bytes(request);
        self.slots.count() == 0
            || self.slots.count() < self.limits.requests_in_flight_max && bytes <= self.limits.bytes_in_flight_max
    }

    fn start(&mut self, request: Request, data: Buffer, outbox: &mut Outbox) {
        let (op, progress) = operation(&request, data);
        let tag = self.slots.insert(Slot { request, progress });
        outbox.request(tag, op);
    }

    pub(super) fn handle_reply(&mut self, tag: u64, answer: VolumeReply, outbox: &mut Outbox) -> Outcome {
        let Some(slot) = self.slots.remove(tag) else {
            debug_assert!(false, "the driver answered {tag:#x}, which was not asked or was answered before");
            return Outcome::Continue;
        };
        self.finish(slot, answer, outbox);
        self.start_waiting(outbox);
        self.close_if_finished()
    }

    fn finish(&mut self, slot: Slot, answer: VolumeReply, outbox: &mut Outbox) {
        let Slot { request, progress } = slot;
        match (request.command, answer) {
            (Command::Read, answer) => read::finish(self.mode, &request, answer, outbox),
            (Command::BlockStatus, answer) => block_status::finish(self.mode, &request, answer, outbox),
            (_, VolumeReply::Done) if progress == Progress::Trimming => {
                let tag = self.slots.insert(Slot { request, progress: Progress::Last });
                outbox.request(tag, VolumeOp::Flush);
            }
            (_, VolumeReply::Done) => reply::done(self.mode, &request, outbox),
            (_, VolumeReply::Failed(status)) => {
                reply::error(self.mode, &request, status.into(), &status.to_string(), outbox);
            }
            (_, VolumeReply::Data(_) | VolumeReply::Extents(_)) => {
                reply::error(self.mode, &request, Errno::Io, "the volume gave a strange answer", outbox);
            }
        }
    }

    fn start_waiting(&mut self, outbox: &mut Outbox) {
        while self.waiting.front().is_some_and(|waiting| self.has_room(&waiting.request)) {
            if let Some(Waiting { request, data }) = self.waiting.pop_front() {
                self.start(request, data, outbox);
            }
        }
    }

    //= nbd-proto §Request types, NBD_CMD_DISC: "MUST handle all outstanding requests"
    fn close_if_finished(&self) -> Outcome {
        let is_idle = self.slots.count() == 0 && self.waiting.is_empty();
        if self.disconnecting && is_idle { Outcome::Close } else { Outcome::Continue }
    }

    /// NBD cannot tell a client of a new size; it is what later requests are held to.
    pub(super) fn handle_event(&mut self, event: VolumeEvent) {
        match event {
            VolumeEvent::Resized(size) => self.export.size = size,
            VolumeEvent::Removed => self.export.removed = true,
        }
    }
}

fn operation(request: &Request, data: Buffer) -> Operation {
    match request.command {
        Command::Read => read::operation(request),
        Command::Write => write::operation(request, data),
        Command::Flush => (VolumeOp::Flush, Progress::Last),
        Command::Trim => zero::trim(request),
        Command::WriteZeroes => zero::write_zeroes(request),
        Command::BlockStatus => block_status::operation(request),
        Command::Disconnect | Command::Cache | Command::Unknown => unreachable!("never started"),
    }
}
