//! The reactor: one ring, its sockets, its disks, one enter per turn.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use buffer::{Buffer, BufferMut};
use smallvec::SmallVec;
use socket2::{Domain, SockAddr};

use crate::disk::{DiskInfo, DiskOptions};
use crate::disk_op::Disks;
use crate::event::{ConnId, DiskId, Event, ListenerId};
use crate::listener::{Listeners, accepted_socket};
use crate::net::Net;
use crate::op::{self, Kind};
use crate::receive::Pool;
use crate::ring::{Completion, Ring};
use crate::{Error, Waker};

/// How long the end of a reactor waits for the kernel to give back its memory before it leaks it.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// Sizes of a reactor.
#[derive(Clone, Debug)]
pub struct ReactorConfig {
    /// Entries of the submission queue, rounded up to a power of two; the completion queue has four times as many.
    /// A full queue costs an extra system call, nothing else. 1 to 8192, default 1024.
    pub ring_entries: u32,
    /// Receive buffers shared by all connections. A power of two, 1 to 32768, default 128.
    pub receive_buffers: u16,
    /// Bytes of one receive buffer: the most that one [`Event::Received`] carries. Default 32 KiB.
    pub receive_buffer_bytes: u32,
    /// How long [`Reactor::close`] waits for a peer to take what is queued and to end its side. Default 1 s.
    pub close_timeout: Duration,
}

impl Default for ReactorConfig {
    fn default() -> Self {
        Self {
            ring_entries: 1024,
            receive_buffers: 128,
            receive_buffer_bytes: 32 << 10,
            close_timeout: Duration::from_secs(1),
        }
    }
}

impl ReactorConfig {
    fn validate(&self) -> Result<(), Error> {
        let wrong = |text: &str| Err(Error::os(text, io::ErrorKind::InvalidInput.into()));
        if !(1..=8192).contains(&self.ring_entries) {
            return wrong("ring_entries must be 1 to 8192");
        }
        if !self.receive_buffers.is_power_of_two() || self.receive_buffer_bytes == 0 {
            return wrong("receive_buffers must be a power of two up to 32768, of at least one byte each");
        }
        Ok(())
    }
}

/// What a reactor has done, for metrics and tests.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counters {
    /// Calls of [`Reactor::turn`].
    pub turns: u64,
    /// System calls `io_uring_enter`: at most one per turn, more only when a submission queue was full, or while it polls.
    pub enters: u64,
    /// Completions harvested.
    pub completions: u64,
    /// All system calls of turns: `enters`, and the transfers with files in memory.
    pub system_calls: u64,
}

/// What the parts of a reactor share: the way to the kernel and the way to the driver.
pub(crate) struct Core {
    pub(crate) ring: Ring,
    pub(crate) pool: Rc<Pool>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) now: Instant,
}

/// A single-threaded reactor for sockets and disks on one io_uring.
///
/// Its driver owns it and loops: handle every [`next_event`](Reactor::next_event), then [`turn`](Reactor::turn).
/// Calls in between only queue work; a turn submits all of it and waits with one `io_uring_enter`. It stays on the
/// thread that made it (it is not `Send`). Everything that the kernel may touch is owned by slots in here until its
/// completion, also for connections aborted meanwhile; dropping the reactor cancels what is in flight and waits.
///
/// A bare ring instead of an async runtime because the cores above are plain state machines; measured on a replicated
/// write it needs 6.5 us of CPU where tokio needs 8.3, and compio, monoio, tokio-uring and glommio are no better.
pub struct Reactor {
    core: Core,
    net: Net,
    listeners: Listeners,
    disks: Disks,
    waker: Waker,
    /// Where the kernel puts the count of the waker's eventfd. Freed after the ring is drained.
    wake_count: Box<u64>,
    wake_armed: bool,
    config: ReactorConfig,
    busy_poll: Duration,
    /// How long it polls the next time: at most `busy_poll`.
    poll: Duration,
    /// The last turn did not enter the ring.
    skipped: bool,
    completions: Vec<Completion>,
    counters: Counters,
}

impl Reactor {
    /// A reactor for the calling thread.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) when the kernel is older than 6.1 or forbids io_uring; the text says which and what to do.
    pub fn new(config: ReactorConfig) -> Result<Self, Error> {
        config.validate()?;
        crate::clock::start();
        let ring = Ring::new(config.ring_entries)?;
        let pool = Pool::register(&ring, config.receive_buffers, config.receive_buffer_bytes)?;
        let waker = Waker::new().map_err(|e| Error::os("cannot make an eventfd", e))?;
        Ok(Self {
            core: Core { ring, pool, events: VecDeque::new(), now: Instant::now() },
            net: Net::default(),
            listeners: Listeners::default(),
            disks: Disks::default(),
            waker,
            wake_count: Box::new(0),
            wake_armed: false,
            config,
            busy_poll: Duration::ZERO,
            poll: Duration::ZERO,
            skipped: false,
            completions: Vec::new(),
            counters: Counters::default(),
        })
    }

    /// Listens on a TCP address; port 0 means any free one, see [`local_addr`](Self::local_addr). May block for 0.3 s,
    /// because the port of a process that was just killed is released late.
    ///
    /// # Errors
    /// [`ErrorKind::AddressInUse`](crate::ErrorKind::AddressInUse) when somebody else listens there, or whatever the kernel says.
    pub fn listen_tcp(&mut self, addr: SocketAddr) -> Result<ListenerId, Error> {
        self.listeners.listen_tcp(&mut self.core, addr)
    }

    /// Listens on a Unix socket. A socket file that nobody listens on is replaced; ours is removed when the listener
    /// is closed or the reactor dropped.
    ///
    /// # Errors
    /// As [`listen_tcp`](Self::listen_tcp); also when something else than a socket has that name.
    pub fn listen_unix(&mut self, path: &Path) -> Result<ListenerId, Error> {
        self.listeners.listen_unix(&mut self.core, path)
    }

    /// The address a TCP listener is bound to; `None` for Unix sockets and closed listeners.
    pub fn local_addr(&self, listener: ListenerId) -> Option<SocketAddr> {
        self.listeners.local_addr(listener)
    }

    /// Stops listening. Connections whose `Accepted` was not taken yet are aborted; the others live on.
    pub fn close_listener(&mut self, listener: ListenerId) {
        self.listeners.close(&mut self.core, listener);
    }

    /// Connects over TCP: [`Event::Connected`] or [`Event::Closed`] follows. Sending may begin at once; it is queued.
    /// The kernel's own timeout is minutes long: a driver that wants less calls [`abort`](Self::abort).
    pub fn connect_tcp(&mut self, addr: SocketAddr) -> ConnId {
        self.connect(Domain::for_address(addr), Ok(addr.into()))
    }

    /// Connects to a Unix socket; otherwise as [`connect_tcp`](Self::connect_tcp).
    pub fn connect_unix(&mut self, path: &Path) -> ConnId {
        self.connect(Domain::UNIX, SockAddr::unix(path))
    }

    fn connect(&mut self, domain: Domain, address: io::Result<SockAddr>) -> ConnId {
        match address.and_then(|a| self.net.connect(&mut self.core, domain, a)) {
            Ok(id) => ConnId(id),
            Err(e) => ConnId(self.net.stillborn(&mut self.core, e)),
        }
    }

    /// Queues a copy of `bytes` for sending with the next turn. Ignored on a connection that is closed.
    pub fn send_bytes(&mut self, conn: ConnId, bytes: &[u8]) {
        self.send_with(conn, |out| out.extend_from_slice(bytes));
    }

    /// Like [`send_bytes`](Self::send_bytes), but lets `append` encode in place. It must only append.
    pub fn send_with(&mut self, conn: ConnId, append: impl FnOnce(&mut Vec<u8>)) {
        let Some(slot) = self.net.usable(conn.0) else { return };
        append(slot.outgoing.bytes_mut());
        self.net.mark_dirty(conn.0);
    }

    /// Queues `data` for sending with the next turn: up to 8 KiB by copy, longer by reference. Ignored on a
    /// connection that is closed.
    pub fn send_buffer(&mut self, conn: ConnId, data: Buffer) {
        let Some(slot) = self.net.usable(conn.0) else { return };
        slot.outgoing.push_buffer(data);
        self.net.mark_dirty(conn.0);
    }

    /// Bytes queued on a connection that the kernel has not taken; 0 for a closed one. It shrinks in steps of up to
    /// 1 MiB, and a turn ends when it has shrunk, if it was above [`SEND_QUIET_MAX`](crate::SEND_QUIET_MAX). The queue
    /// itself has no limit: a driver stops producing when this is too much.
    pub fn send_queue_bytes(&self, conn: ConnId) -> usize {
        self.net.conns.get(conn.0).filter(|c| !c.deaf).map_or(0, |c| c.outgoing.len())
    }

    /// Stops receiving, so that the peer is slowed down. What has arrived up to the next turn is still reported.
    /// While paused, the end of the connection is noticed only by sending.
    pub fn pause_receive(&mut self, conn: ConnId) {
        self.net.pause(&mut self.core, conn.0);
    }

    /// Undoes [`pause_receive`](Self::pause_receive).
    pub fn resume_receive(&mut self, conn: ConnId) {
        self.net.resume(&mut self.core, conn.0);
    }

    /// Ends a connection once everything queued is sent and the peer ended its side, or when
    /// [`close_timeout`](ReactorConfig::close_timeout) is over; all that in later turns. The id is dead at once: no
    /// event of this connection follows, not even those already gathered.
    pub fn close(&mut self, conn: ConnId) {
        self.net.close(&mut self.core, conn.0, self.config.close_timeout);
    }

    /// Ends a connection now: what is queued is dropped, the peer gets a reset. The id is dead at once, as for
    /// [`close`](Self::close).
    pub fn abort(&mut self, conn: ConnId) {
        self.net.abort(&mut self.core, conn.0);
    }

    /// Connections whose sockets are open, including those being closed: a server that stops turns until it is 0.
    pub fn connections(&self) -> usize {
        self.net.conns.len()
    }

    /// Opens a block device or regular file. Blocks for the time of a few system calls, or 0.3 s if it is locked.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`](crate::ErrorKind::Locked) when another process has it exclusively,
    /// [`ErrorKind::Unsuitable`](crate::ErrorKind::Unsuitable) for directories and the like, or whatever the kernel says.
    pub fn open_disk(&mut self, path: &Path, options: DiskOptions) -> Result<(DiskId, DiskInfo), Error> {
        self.disks.open(path, &options)
    }

    /// Reads `buffer.len()` bytes at `offset`; answered by [`Event::DiskRead`]. With `direct`, offset and length must
    /// be multiples of the logical block.
    ///
    /// # Panics
    /// If the disk is closed (so do the other `disk_*` operations).
    pub fn disk_read(&mut self, disk: DiskId, token: u64, offset: u64, buffer: BufferMut) {
        self.disks.read(&mut self.core, disk, token, offset, buffer);
    }

    /// Writes `data` consecutively at `offset` as one vectored write; answered by [`Event::DiskDone`]. A short write is
    /// continued. With `direct`, every buffer must be page-aligned and a multiple of the logical block.
    pub fn disk_write(&mut self, disk: DiskId, token: u64, offset: u64, data: SmallVec<[Buffer; 4]>) {
        self.disks.write(&mut self.core, disk, token, offset, data);
    }

    /// Makes every write *completed before this call* durable (fdatasync); answered by [`Event::DiskDone`].
    pub fn disk_flush(&mut self, disk: DiskId, token: u64) {
        self.disks.flush(&mut self.core, disk, token);
    }

    /// Tells the disk that a range is unused; answered by [`Event::DiskDone`]. Its content is unspecified afterwards
    /// (zeroes in files). A disk that cannot do it succeeds without doing anything.
    pub fn disk_discard(&mut self, disk: DiskId, token: u64, offset: u64, len: u64) {
        self.disks.discard(&mut self.core, disk, token, offset, len);
    }

    /// Closes a disk. Operations in flight run to their end, but are not reported; the lock is released after them.
    pub fn close_disk(&mut self, disk: DiskId) {
        self.disks.close(disk);
    }

    /// How long a turn that has to wait looks for completions before it sleeps: what arrives meanwhile needs no wake-up, but the
    /// processor is busy, as long as no other thread wants it. When nothing comes in time it looks half as long the next time, and as
    /// long as at first again once something came sooner than that. At first 0: it does not look.
    pub fn set_busy_poll(&mut self, time: Duration) {
        (self.busy_poll, self.poll) = (time, time);
    }

    /// A handle to wake this reactor from other threads.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// The time at the end of the last [`turn`](Self::turn) (before the first: of creation): one clock reading per turn.
    pub fn now(&self) -> Instant {
        self.core.now
    }

    /// [`now`](Self::now) in nanoseconds of [`clock`](crate::clock).
    pub fn now_ns(&self) -> u64 {
        crate::clock::ns_of(self.core.now)
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        let enters = self.core.ring.enters();
        Counters { enters, system_calls: enters + self.disks.transfers(), ..self.counters }
    }

    /// Submits everything queued, waits until something completes or `until` has come (`None`: for ever), and gathers
    /// all completions as events. Does not wait if events are left from before. May return early without any event:
    /// after a signal, or when only internal operations completed.
    ///
    /// # Errors
    /// When the kernel refuses to enter the ring: nothing a driver can mend.
    pub fn turn(&mut self, until: Option<Instant>) -> Result<(), Error> {
        self.counters.turns += 1;
        self.arm_wake();
        let (want, timeout) = self.patience(until);
        self.net.flush(&mut self.core);
        // Transfers with memory need no ring. Once in a row, so that the network is heard.
        self.skipped =
            !self.skipped && self.disks.has_at_once() && !self.net.is_unsettled() && self.core.ring.is_idle();
        if !self.skipped {
            self.enter(want, timeout).map_err(|e| Error::os("cannot enter io_uring", e))?;
        }
        self.disks.transfer_at_once(&mut self.core);
        self.core.now = Instant::now();
        self.harvest();
        self.net.settle(&mut self.core);
        self.net.expire(&mut self.core);
        self.listeners.expire(&mut self.core);
        Ok(())
    }

    /// The oldest event not yet taken.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            let event = self.core.events.pop_front()?;
            if self.is_wanted(&event) {
                return Some(event);
            }
        }
    }

    /// Drops events of what the driver has closed meanwhile, and notes that it learns of an end.
    fn is_wanted(&mut self, event: &Event) -> bool {
        match *event {
            Event::Accepted { listener, conn, .. } if !self.listeners.is_open(listener) => {
                self.abort(conn);
                false
            }
            Event::Accepted { conn, .. } | Event::Connected { conn } | Event::Received { conn, .. } => {
                self.net.is_heard(conn.0)
            }
            Event::Closed { conn, .. } => {
                let heard = self.net.is_heard(conn.0);
                self.net.forget(conn.0);
                heard
            }
            Event::DiskRead { disk, .. } | Event::DiskDone { disk, .. } => self.disks.is_open(disk),
            Event::Woken => true,
        }
    }

    fn patience(&mut self, until: Option<Instant>) -> (u32, Option<Duration>) {
        if !self.core.events.is_empty() || self.net.is_unsettled() || self.disks.has_at_once() {
            return (0, None);
        }
        let deadline = [until, self.net.deadline(), self.listeners.deadline()].into_iter().flatten().min();
        match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => (0, None),
            timeout => (1, timeout),
        }
    }

    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        let ring = &mut self.core.ring;
        if want == 0 || self.busy_poll.is_zero() {
            return ring.enter(want, timeout);
        }
        let begin = Instant::now();
        let mut passed = Duration::ZERO;
        while passed < self.poll {
            ring.enter(0, None)?;
            passed = begin.elapsed();
            if ring.has_completions() || timeout.is_some_and(|timeout| timeout <= passed) {
                return Ok(());
            }
            // Whoever else can run may be the one that is waited for.
            std::thread::yield_now();
        }
        ring.enter(want, timeout.map(|timeout| timeout - passed))?;
        self.poll = poll_after(begin.elapsed(), self.poll, self.busy_poll);
        Ok(())
    }

    fn arm_wake(&mut self) {
        if !self.wake_armed {
            self.wake_armed = true;
            // SAFETY: the box is not accessed while armed and is freed only after the ring is drained.
            unsafe { op::read_eventfd(&mut self.core.ring, self.waker.fd(), &raw mut *self.wake_count) }
        }
    }

    fn harvest(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        self.core.ring.harvest(&mut completions);
        self.counters.completions += completions.len() as u64;
        completions.drain(..).for_each(|c| self.handle(c));
        self.completions = completions;
    }

    fn handle(&mut self, completion: Completion) {
        match completion.key.kind {
            Kind::Receive => self.net.handle_receive(&mut self.core, completion),
            Kind::Send | Kind::SendNow => self.net.handle_send(&mut self.core, completion),
            Kind::Disk => self.disks.handle(&mut self.core, completion),
            Kind::Accept => self.listeners.handle_accept(&mut self.core, &mut self.net, completion),
            Kind::Connect => self.net.handle_connect(&mut self.core, completion),
            Kind::Wake => self.handle_wake(),
            Kind::Cancel => {}
        }
    }

    fn handle_wake(&mut self) {
        self.wake_armed = false;
        self.waker.rearm();
        self.core.events.push_back(Event::Woken);
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        let pool = Rc::clone(&self.core.pool);
        let drained = self.core.ring.drain(DRAIN_PATIENCE, |completion| match completion.key.kind {
            Kind::Accept => drop(accepted_socket(completion)),
            Kind::Receive => drop(completion.buffer().map(|id| pool.take(id, 0))),
            _ => {}
        });
        if drained {
            pool.unregister(&self.core.ring);
        } else {
            // A device that does not answer still owns this memory: rather lose it than have it overwritten.
            std::mem::forget((std::mem::take(&mut self.net), std::mem::take(&mut self.disks)));
            std::mem::forget((pool, std::mem::take(&mut self.wake_count)));
        }
    }
}

/// How long to poll the next time, after a wait that polling for `poll` did not end.
fn poll_after(wait: Duration, poll: Duration, busy_poll: Duration) -> Duration {
    if wait < busy_poll { busy_poll } else { poll / 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_that_never_helps_ends_and_begins_again_when_it_would() {
        let (busy_poll, long) = (Duration::from_micros(200), Duration::from_millis(100));
        let mut poll = busy_poll;
        for _ in 0..20 {
            poll = poll_after(long, poll, busy_poll);
        }
        assert_eq!(poll, Duration::ZERO);
        assert_eq!(poll_after(Duration::from_micros(150), poll, busy_poll), busy_poll);
    }
}
