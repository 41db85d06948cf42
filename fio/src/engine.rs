//! The account of what fio has under way.
//!
//! fio hands in operations one at a time and asks for answers when it can do nothing else. So [`Engine::queue`] only collects;
//! [`Engine::wait`] sends all of it with the same system call that waits for answers. What would be much is sent earlier.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use buffer::Buffer;
use cluster_client::{ImageOp, ImageReply};
use cluster_proto::Status;
use slab::Slab;

use crate::error::Error;
use crate::target::Target;

/// Longest read or write. Bytes.
const TRANSFER_MAX: u64 = blockyard_client::TRANSFER_MAX;
/// Payload that is collected before it is sent without being asked. Bytes.
const COLLECT_MAX: u64 = 256 << 10;
/// Longest wait of one turn; only for a target that has nothing to say.
const TURN_MAX: Duration = Duration::from_secs(1);

/// Error numbers, as `errno.h` has them on Linux.
pub(crate) mod errno {
    pub const NO_ENTRY: i32 = 2;
    pub const IO: i32 = 5;
    pub const INVALID: i32 = 22;
    pub const NO_SPACE: i32 = 28;
    pub const READ_ONLY: i32 = 30;
    pub const BAD_MESSAGE: i32 = 74;
}

/// What fio wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read,
    Write,
    Trim,
    Sync,
}

/// Memory of fio's that an operation reads or fills.
pub(crate) trait Memory {
    /// A copy of all of it.
    fn take(&self) -> Buffer;
    /// Overwrites it with consecutive pieces. False, and nothing happens, if they do not fill it exactly.
    fn fill(&mut self, pieces: &[Buffer]) -> bool;
}

/// Why an operation was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// As many as agreed are under way.
    Full,
    /// With this error number.
    Error(i32),
}

struct Flight<U, M> {
    unit: U,
    /// To be filled by the answer.
    memory: Option<M>,
}

/// An operation that has ended, by fio's name for it, with its error number (0: none).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ended<U> {
    pub unit: U,
    pub error: i32,
}

/// One thread's engine. `U` is fio's name for an operation.
pub(crate) struct Engine<U, M> {
    target: Box<dyn Target>,
    depth: usize,
    flights: Slab<Flight<U, M>>,
    /// Payload taken and not sent. Bytes.
    collected: u64,
    ended: VecDeque<Ended<U>>,
    /// What the last wait returned.
    reported: Vec<Ended<U>>,
    has_explained: bool,
}

impl<U: Copy, M: Memory> Engine<U, M> {
    /// An engine for at most `depth` operations at a time.
    pub fn new(target: Box<dyn Target>, depth: usize) -> Self {
        let depth = depth.max(1);
        Self {
            target,
            depth,
            flights: Slab::with_capacity(depth),
            collected: 0,
            ended: VecDeque::with_capacity(depth),
            reported: Vec::with_capacity(depth),
            has_explained: false,
        }
    }

    /// Takes an operation. `memory` has `len` bytes, of which reads and writes make use.
    pub fn queue(&mut self, unit: U, kind: Kind, (offset, len): (u64, u64), memory: M) -> Result<(), Refused> {
        if self.flights.len() >= self.depth {
            return Err(Refused::Full);
        }
        self.check(kind, offset, len)?;
        let (op, memory) = match kind {
            Kind::Read => (ImageOp::Read { offset, len }, Some(memory)),
            Kind::Write => (ImageOp::Write { offset, data: memory.take() }, None),
            Kind::Trim => (ImageOp::Discard { offset, len }, None),
            Kind::Sync => (ImageOp::Flush, None),
        };
        let tag = self.flights.insert(Flight { unit, memory });
        self.target.submit(tag as u64, op);
        self.collected += if kind == Kind::Write { len } else { 0 };
        if self.collected >= COLLECT_MAX {
            // The operation is taken, whatever becomes of it. A target that cannot go on says so again when fio waits.
            let _ = self.turn(Instant::now());
        }
        Ok(())
    }

    /// Trusts nothing that fio says.
    fn check(&mut self, kind: Kind, offset: u64, len: u64) -> Result<(), Refused> {
        if kind == Kind::Sync {
            return Ok(());
        }
        let (unit, size) = (self.target.unit(), self.target.size());
        let is_aligned = offset.is_multiple_of(unit) && len.is_multiple_of(unit) && len > 0;
        let is_inside = offset.checked_add(len).is_some_and(|end| end <= size);
        let is_short = kind == Kind::Trim || len <= TRANSFER_MAX;
        if is_aligned && is_inside && is_short {
            return Ok(());
        }
        if !std::mem::replace(&mut self.has_explained, true) {
            tracing::error!(
                "{kind:?} of {len} bytes at {offset} was refused: at most {TRANSFER_MAX} bytes at a time, in multiples of \
                 {unit}, inside {size} bytes"
            );
        }
        Err(Refused::Error(errno::INVALID))
    }

    /// Sends everything, and waits until `min` operations have ended or the time is over (`None`: never). Returns how many have,
    /// at most `max`; they are there until the next call.
    ///
    /// # Errors
    /// An error number: the target cannot go on.
    pub fn wait(&mut self, min: usize, max: usize, timeout: Option<Duration>) -> Result<usize, i32> {
        let begin = Instant::now();
        let end = timeout.map(|timeout| begin + timeout);
        if min == 0 {
            self.turn(begin)?;
        }
        while self.ended.len() < min {
            let now = Instant::now();
            if end.is_some_and(|end| end <= now) {
                break;
            }
            self.turn(end.unwrap_or(now + TURN_MAX).min(now + TURN_MAX))?;
        }
        self.reported.clear();
        let count = self.ended.len().min(max);
        self.reported.extend(self.ended.drain(..count));
        Ok(count)
    }

    /// One of those that the last wait reported.
    pub fn event(&self, index: usize) -> Option<Ended<U>> {
        self.reported.get(index).copied()
    }

    /// Ends everything.
    ///
    /// # Errors
    /// Something was left behind.
    pub fn close(self) -> Result<(), Error> {
        self.target.close()
    }

    fn turn(&mut self, until: Instant) -> Result<(), i32> {
        self.collected = 0;
        if let Err(error) = self.target.turn(until) {
            tracing::error!("{error}");
            return Err(errno::IO);
        }
        while let Some((tag, result)) = self.target.poll_reply() {
            self.land(tag, result);
        }
        Ok(())
    }

    fn land(&mut self, tag: u64, result: Result<ImageReply, Status>) {
        let flight = usize::try_from(tag).ok().and_then(|tag| self.flights.try_remove(tag));
        let Some(Flight { unit, memory }) = flight else { return };
        let error = match (result, memory) {
            (Err(status), _) => errno_of(status),
            (Ok(ImageReply::Data(pieces)), Some(mut memory)) => {
                if memory.fill(&pieces) {
                    0
                } else {
                    errno::IO
                }
            }
            (Ok(ImageReply::Done), None) => 0,
            // An answer of another kind: never, unless the client is broken.
            (Ok(_), _) => errno::IO,
        };
        self.ended.push_back(Ended { unit, error });
    }
}

/// A failure in fio's words.
fn errno_of(status: Status) -> i32 {
    match status {
        Status::Invalid => errno::INVALID,
        Status::NotFound => errno::NO_ENTRY,
        Status::NoSpace => errno::NO_SPACE,
        Status::ReadOnly => errno::READ_ONLY,
        Status::Corrupt => errno::BAD_MESSAGE,
        Status::Ok | Status::Io | Status::Retry | Status::Busy | Status::Mismatch | Status::BadPayload => errno::IO,
    }
}

#[cfg(test)]
mod tests;
