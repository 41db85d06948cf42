//! Waking a reactor from another thread, through an eventfd.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

struct Shared {
    signalled: AtomicBool,
    eventfd: File,
}

/// Makes a reactor's [`turn`](crate::Reactor::turn) return with [`Event::Woken`](crate::Event::Woken), from any thread.
///
/// What a thread published before `wake` (a message in a channel, say) is visible to the reactor's thread when it
/// sees the event. Calls while an earlier signal is still unread cost one atomic operation and no system call.
#[derive(Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers; its result is checked below.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor and nobody else knows it.
        let eventfd = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Self { shared: Arc::new(Shared { signalled: AtomicBool::new(false), eventfd }) })
    }

    /// Signals the reactor. Harmless after the reactor's end.
    pub fn wake(&self) {
        if self.shared.signalled.swap(true, Ordering::AcqRel) {
            return;
        }
        let written = (&self.shared.eventfd).write(&1u64.to_ne_bytes());
        debug_assert!(written.is_ok(), "an eventfd below its maximum always takes another count");
    }

    /// The reactor has read the eventfd: from here on a `wake` must signal again.
    pub(crate) fn rearm(&self) {
        // Swap, not store: it must read-from the swap of a wake that skipped the system call.
        self.shared.signalled.swap(false, Ordering::AcqRel);
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.shared.eventfd.as_raw_fd()
    }
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waker")
    }
}
