//! The io_uring instance: queueing submissions, entering the kernel once per turn, collecting completions.
//!
//! Soundness rests on one count: `in_flight` operations whose final completion has not been seen. Memory that an
//! operation refers to may be freed only after that completion, and [`Ring::drain`] waits for all of them.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use crate::op::{Key, Kind};
use crate::{Error, ErrorKind};

/// One result from the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) key: Key,
    pub(crate) result: i32,
    flags: u32,
}

impl Completion {
    /// Whether this operation will complete again (multishot).
    pub(crate) fn more(self) -> bool {
        cqueue::more(self.flags)
    }

    /// The receive buffer that the kernel filled.
    pub(crate) fn buffer(self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }

    /// The result as a byte count, or the error.
    pub(crate) fn outcome(self) -> io::Result<usize> {
        usize::try_from(self.result).map_err(|_| io::Error::from_raw_os_error(-self.result))
    }
}

pub(crate) struct Ring {
    uring: IoUring,
    /// Entries that found the submission queue full even after a submission; empty except under extreme load.
    overflow: VecDeque<squeue::Entry>,
    in_flight: usize,
    enters: u64,
}

impl Ring {
    pub(crate) fn new(entries: u32) -> Result<Self, Error> {
        let uring = IoUring::builder()
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(entries.saturating_mul(4))
            .build(entries)
            .map_err(refused)?;
        let parameters = uring.params();
        if !parameters.is_feature_ext_arg() || !parameters.is_feature_nodrop() || !parameters.is_feature_submit_stable()
        {
            return Err(Error::new(ErrorKind::Unavailable, "io_uring of this kernel is too old; need Linux 6.1", None));
        }
        Ok(Self { uring, overflow: VecDeque::new(), in_flight: 0, enters: 0 })
    }

    pub(crate) fn uring(&self) -> &IoUring {
        &self.uring
    }

    pub(crate) fn enters(&self) -> u64 {
        self.enters
    }

    /// Queues an operation for the next enter.
    ///
    /// # Safety
    /// Every pointer in `entry` stays valid until the final completion of `key` was taken from [`Ring::harvest`].
    pub(crate) unsafe fn push(&mut self, key: Key, entry: squeue::Entry) {
        let entry = entry.user_data(key.encode());
        self.in_flight += usize::from(is_counted(key));
        // SAFETY: the caller vouches for the pointers.
        if self.overflow.is_empty() && unsafe { self.uring.submission().push(&entry) }.is_ok() {
            return;
        }
        self.overflow.push_back(entry);
        // A failure here is found again, and reported, by the enter of the turn.
        let _ = self.enter_once(0, None);
        self.refill();
    }

    /// Asks the kernel to end the operation `target` early; it then completes with `ECANCELED` unless it just ended.
    pub(crate) fn cancel(&mut self, target: Key) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(target.encode())).build();
        // SAFETY: a cancellation carries no pointers.
        unsafe { self.push(Key::plain(Kind::Cancel), entry) }
    }

    /// Submits everything queued and waits for `want` completions, at most `timeout`.
    ///
    /// Returns normally also when the time is over or a signal came.
    pub(crate) fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        while !self.overflow.is_empty() {
            self.enter_once(0, None)?;
            if !self.refill() {
                break; // The kernel takes no more before its completions are harvested.
            }
        }
        let want = if self.overflow.is_empty() { want } else { 0 };
        self.enter_once(want, timeout)
    }

    fn enter_once(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        self.enters += 1;
        let timespec = Timespec::from(timeout.unwrap_or_default());
        let arguments = SubmitArgs::new();
        let arguments = if timeout.is_some() { arguments.timespec(&timespec) } else { arguments };
        let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        let queued = self.uring.submission().len() as u32;
        // SAFETY: `arguments` is the structure that EXT_ARG announces and lives past the call; GETEVENTS is always
        // set because deferred completions are only posted by an enter that carries it.
        let result = unsafe { self.uring.submitter().enter(queued, want, flags.bits(), Some(&arguments)) };
        match result {
            Ok(_) => Ok(()),
            Err(e) if is_transient(&e) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Moves overflow entries into the submission queue; whether any moved.
    fn refill(&mut self) -> bool {
        let before = self.overflow.len();
        let mut queue = self.uring.submission();
        while let Some(entry) = self.overflow.front() {
            // SAFETY: whoever pushed the entry vouched for its pointers until completion.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.overflow.pop_front();
        }
        drop(queue);
        self.overflow.len() < before
    }

    /// Whether everything pushed before the last enter was started, and every completion so far was harvested: then a
    /// `SendNow` without a completion has succeeded.
    pub(crate) fn is_settled(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.is_empty() && !queue.cq_overflow() && self.overflow.is_empty()
    }

    /// Whether the kernel has posted completions.
    pub(crate) fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Whether nothing is queued for the next enter.
    pub(crate) fn is_idle(&mut self) -> bool {
        self.overflow.is_empty() && self.uring.submission().is_empty()
    }

    /// Appends all completions that the kernel has posted.
    pub(crate) fn harvest(&mut self, completions: &mut Vec<Completion>) {
        for entry in self.uring.completion() {
            let key = Key::decode(entry.user_data());
            let completion = Completion { key, result: entry.result(), flags: entry.flags() };
            if is_counted(key) && !completion.more() {
                debug_assert!(self.in_flight > 0, "a completion nobody asked for: {completion:?}");
                self.in_flight -= 1;
            }
            completions.push(completion);
        }
    }

    /// Cancels everything and waits for it; `on_completion` sees each result. Whether all operations ended, that is,
    /// whether their memory may be freed.
    pub(crate) fn drain(&mut self, patience: Duration, mut on_completion: impl FnMut(Completion)) -> bool {
        let deadline = Instant::now() + patience;
        let mut completions = Vec::new();
        while self.in_flight > 0 && Instant::now() < deadline {
            let entry = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build();
            // SAFETY: a cancellation carries no pointers.
            unsafe { self.push(Key::plain(Kind::Cancel), entry) }
            if self.enter(1, Some(Duration::from_millis(50))).is_err() {
                break;
            }
            self.harvest(&mut completions);
            completions.drain(..).for_each(&mut on_completion);
        }
        self.in_flight == 0
    }
}

/// Whether the operation completes in any case. The others are over when their submission is.
fn is_counted(key: Key) -> bool {
    key.kind != Kind::SendNow
}

/// Time is over, a signal came, or the kernel wants its completions taken first.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

fn refused(source: io::Error) -> Error {
    let why = match source.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel was built without io_uring; need Linux 6.1 or later",
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden here; set the sysctl kernel.io_uring_disabled to 0, or allow io_uring_setup, \
             io_uring_enter and io_uring_register in the container's seccomp profile"
        }
        Some(libc::EINVAL) => "io_uring of this kernel is too old; need Linux 6.1 or later",
        Some(libc::ENOMEM) => "no memory for the rings; raise the locked-memory limit (ulimit -l)",
        _ => "cannot set up io_uring",
    };
    Error::new(ErrorKind::Unavailable, why, Some(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let text = |code| refused(io::Error::from_raw_os_error(code)).to_string();
        assert!(text(libc::EPERM).contains("kernel.io_uring_disabled"));
        assert!(text(libc::ENOSYS).contains("Linux 6.1"));
        assert!(text(libc::EINVAL).contains("Linux 6.1"));
        assert_eq!(refused(io::Error::from_raw_os_error(libc::EPERM)).kind(), ErrorKind::Unavailable);
    }
}
