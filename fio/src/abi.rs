//! The border to fio's side, `ioengine.c`: what `blockyard.h` declares. Nothing that comes over it is trusted, except that memory
//! is where fio says it is.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;

use buffer::Buffer;

use crate::cluster::{self, ClusterTarget};
use crate::engine::{Engine, Kind, Memory, Refused, errno};
use crate::error::Error;
use crate::settings::{Options, Settings};
use crate::store::{self, StoreTarget};
use crate::target::Target;

/// `struct blockyard_settings`.
#[repr(C)]
pub struct RawSettings {
    image: *const c_char,
    pool: *const c_char,
    etcd: *const c_char,
    conf: *const c_char,
    key_file: *const c_char,
    store: *const c_char,
    size: u64,
    mode: u32,
    encrypt: u32,
    busy_poll_us: u32,
}

const _: () = assert!(size_of::<RawSettings>() == 6 * size_of::<*const c_char>() + 24);

const MODE_CLUSTER: u32 = 0;
const MODE_STORE: u32 = 1;

/// `struct io_u *`: fio's name for an operation. Never looked into here.
#[derive(Clone, Copy)]
struct Unit(*mut c_void);

/// Memory of fio's, from the moment an operation is handed in until its end is reported.
struct FioMemory {
    start: *mut u8,
    len: usize,
}

impl Memory for FioMemory {
    fn take(&self) -> Buffer {
        if self.start.is_null() || self.len == 0 {
            return Buffer::new();
        }
        // SAFETY: fio keeps these bytes readable and leaves them alone until the operation has been reported as ended; this
        // value is dropped before. The slice does not outlive this statement.
        Buffer::copy_of(unsafe { std::slice::from_raw_parts(self.start, self.len) })
    }

    fn fill(&mut self, pieces: &[Buffer]) -> bool {
        if self.start.is_null() || pieces.iter().map(|piece| piece.len()).sum::<usize>() != self.len {
            return false;
        }
        // SAFETY: as in `take`, and writable, for the operation is a read. No reference to fio's memory exists elsewhere
        // on our side, and fio does not look at it before it is told of the end.
        let memory = unsafe { std::slice::from_raw_parts_mut(self.start, self.len) };
        let mut rest = memory;
        for piece in pieces {
            let (here, behind) = rest.split_at_mut(piece.len());
            here.copy_from_slice(piece);
            rest = behind;
        }
        true
    }
}

/// `struct blockyard_engine`.
pub struct RawEngine(Engine<Unit, FioMemory>);

/// Warnings of the client, like connections that OSDs refuse, go to standard error; `BLOCKYARD_LOG` asks for more.
fn start_log() {
    static START: Once = Once::new();
    START.call_once(|| {
        let filter = tracing_subscriber::EnvFilter::try_from_env("BLOCKYARD_LOG")
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
        // Another engine of this process may have done it.
        let _ =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
    });
}

/// # Safety
/// `text` is null or ends with a zero, and stays as it is during the call.
unsafe fn text(text: *const c_char) -> Option<Vec<u8>> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null; the rest is the caller's promise.
    let bytes = unsafe { CStr::from_ptr(text) }.to_bytes();
    (!bytes.is_empty()).then(|| bytes.to_vec())
}

fn string(name: &str, bytes: Option<Vec<u8>>) -> Result<Option<String>, Error> {
    let parsed = bytes.map(String::from_utf8).transpose();
    parsed.map_err(|_| Error::new(format!("{name} is no text in UTF-8")))
}

fn path(bytes: Option<Vec<u8>>) -> Option<PathBuf> {
    bytes.map(|bytes| PathBuf::from(OsStr::from_bytes(&bytes)))
}

/// # Safety
/// The strings are null or end with a zero.
unsafe fn settings(raw: &RawSettings) -> Result<Settings, Error> {
    // SAFETY: the caller's promise, for each.
    let [image, pool, etcd, conf, key_file, store] =
        unsafe { [raw.image, raw.pool, raw.etcd, raw.conf, raw.key_file, raw.store].map(|s| text(s)) };
    let bare = match raw.mode {
        MODE_CLUSTER => false,
        MODE_STORE => true,
        other => return Err(Error::new(format!("there is no mode {other}"))),
    };
    let options = Options {
        image: string("blockyard_image", image)?,
        pool: string("blockyard_pool", pool)?,
        etcd: string("blockyard_etcd", etcd)?,
        conf: path(conf),
        key_file: path(key_file),
        store: path(store),
        size: (raw.size > 0).then_some(raw.size),
        bare,
        encrypt: raw.encrypt != 0,
        busy_poll: Duration::from_micros(raw.busy_poll_us.into()),
    };
    options.settings()
}

/// Leaves a sentence for fio's side, cut if it is too long, always ended by a zero.
///
/// # Safety
/// `why` has `len` writable bytes.
unsafe fn tell(error: &Error, why: *mut c_char, len: usize) {
    let text = error.to_string();
    let mut end = text.len().min(len.saturating_sub(1));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    if why.is_null() || len == 0 {
        return;
    }
    // SAFETY: `end + 1 <= len`, and the caller promises that these bytes are ours to write; the text is elsewhere.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), why.cast(), end);
        why.add(end).write(0);
    }
}

fn look(settings: &Settings) -> Result<u64, Error> {
    match settings {
        Settings::Cluster { access, pool, image, .. } => cluster::look(access, pool, image),
        Settings::Store { path, size } => store::look(path, *size),
    }
}

fn open(settings: &Settings, depth: u32) -> Result<Engine<Unit, FioMemory>, Error> {
    let target: Box<dyn Target> = match settings {
        Settings::Cluster { access, pool, image, busy_poll } => {
            Box::new(ClusterTarget::open(access, pool, image, *busy_poll)?)
        }
        Settings::Store { path, size } => Box::new(StoreTarget::open(path, *size)?),
    };
    Ok(Engine::new(target, depth as usize))
}

/// See `blockyard.h`.
///
/// # Safety
/// `raw` is a valid structure whose strings end with zeroes, `size` is writable, `why` has `why_len` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockyard_look(
    raw: *const RawSettings,
    size: *mut u64,
    why: *mut c_char,
    why_len: usize,
) -> c_int {
    start_log();
    // SAFETY: the caller's promise.
    let found = unsafe { settings(&*raw) }.and_then(|settings| look(&settings));
    match found {
        Ok(bytes) => {
            // SAFETY: the caller's promise.
            unsafe { size.write(bytes) };
            0
        }
        Err(error) => {
            // SAFETY: the caller's promise.
            unsafe { tell(&error, why, why_len) };
            errno::INVALID
        }
    }
}

/// See `blockyard.h`.
///
/// # Safety
/// As for [`blockyard_look`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockyard_open(
    raw: *const RawSettings,
    depth: u32,
    why: *mut c_char,
    why_len: usize,
) -> *mut RawEngine {
    start_log();
    // SAFETY: the caller's promise.
    let opened = unsafe { settings(&*raw) }.and_then(|settings| open(&settings, depth));
    match opened {
        Ok(engine) => Box::into_raw(Box::new(RawEngine(engine))),
        Err(error) => {
            // SAFETY: the caller's promise.
            unsafe { tell(&error, why, why_len) };
            std::ptr::null_mut()
        }
    }
}

/// See `blockyard.h`.
///
/// # Safety
/// `engine` comes from [`blockyard_open`] on this thread. `memory` has `len` bytes, which stay valid, and which nobody else touches,
/// until [`blockyard_event`] has returned `io_u`; reads fill them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockyard_queue(
    engine: *mut RawEngine,
    io_u: *mut c_void,
    kind: u32,
    offset: u64,
    memory: *mut c_void,
    len: u64,
) -> c_int {
    let kind = match kind {
        0 => Kind::Read,
        1 => Kind::Write,
        2 => Kind::Trim,
        3 => Kind::Sync,
        _ => return errno::INVALID,
    };
    // SAFETY: the caller's promise; nobody else has a reference, for only this thread uses the engine.
    let RawEngine(engine) = unsafe { &mut *engine };
    let Ok(memory_len) = usize::try_from(len) else { return errno::INVALID };
    let memory = FioMemory { start: memory.cast(), len: memory_len };
    match engine.queue(Unit(io_u), kind, (offset, len), memory) {
        Ok(()) => 0,
        Err(Refused::Full) => -1,
        Err(Refused::Error(error)) => error,
    }
}

/// See `blockyard.h`.
///
/// # Safety
/// `engine` comes from [`blockyard_open`] on this thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockyard_getevents(engine: *mut RawEngine, min: u32, max: u32, timeout_ns: i64) -> c_int {
    // SAFETY: as in `blockyard_queue`.
    let RawEngine(engine) = unsafe { &mut *engine };
    let timeout = u64::try_from(timeout_ns).ok().map(Duration::from_nanos);
    match engine.wait(min as usize, max as usize, timeout) {
        Ok(count) => c_int::try_from(count).unwrap_or(c_int::MAX),
        Err(error) => -error,
    }
}

/// See `blockyard.h`.
///
/// # Safety
/// `engine` comes from [`blockyard_open`] on this thread; `error` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockyard_event(engine: *mut RawEngine, index: c_int, error: *mut c_int) -> *mut c_void {
    // SAFETY: as in `blockyard_queue`.
    let RawEngine(engine) = unsafe { &mut *engine };
    let Some(ended) = usize::try_from(index).ok().and_then(|index| engine.event(index)) else {
        return std::ptr::null_mut();
    };
    // SAFETY: the caller's promise.
    unsafe { error.write(ended.error) };
    ended.unit.0
}

/// See `blockyard.h`.
///
/// # Safety
/// `engine` comes from [`blockyard_open`] on this thread and is not used afterwards; `why` has `why_len` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockyard_close(engine: *mut RawEngine, why: *mut c_char, why_len: usize) {
    // SAFETY: `blockyard_open` made it with `Box::into_raw`, and this is its only end.
    let RawEngine(engine) = *unsafe { Box::from_raw(engine) };
    if let Err(error) = engine.close() {
        // SAFETY: the caller's promise.
        unsafe { tell(&error, why, why_len) };
    }
}

/// Where fio finds the engine: a library made by Rust exports no variable of its C part, but this it does.
///
/// # Safety
/// `ops` is writable.
#[cfg(all(fio_headers, not(test)))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn get_ioengine(ops: *mut *mut c_void) {
    unsafe extern "C" {
        fn blockyard_ioengine() -> *mut c_void;
    }
    // SAFETY: it takes nothing and returns a static table or null; `ops` is the caller's promise.
    unsafe { ops.write(blockyard_ioengine()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_cut_between_characters_and_ended() {
        let mut why = [1 as c_char; 8];
        // SAFETY: the array is as long as said.
        unsafe { tell(&Error::new("abcdeßxyz"), why.as_mut_ptr(), why.len()) };
        // SAFETY: `tell` ends it with a zero.
        assert_eq!(unsafe { text(why.as_ptr()) }.as_deref(), Some("abcdeß".as_bytes()));
        // SAFETY: as above.
        unsafe { tell(&Error::new("abcdefß"), why.as_mut_ptr(), why.len()) };
        // SAFETY: as above.
        assert_eq!(unsafe { text(why.as_ptr()) }.as_deref(), Some(&b"abcdef"[..]));
    }

    #[test]
    fn only_pieces_that_fit_exactly_are_taken() {
        let mut bytes = *b"........";
        let mut memory = FioMemory { start: bytes.as_mut_ptr(), len: bytes.len() };
        let piece = Buffer::copy_of;
        assert!(!memory.fill(&[piece(b"abc"), piece(b"defg")]));
        assert!(!memory.fill(&[piece(b"abc"), piece(b"defghi")]));
        assert_eq!(&memory.take()[..], b"........");
        assert!(memory.fill(&[piece(b"abc"), piece(b"defgh")]));
        assert_eq!(&memory.take()[..], b"abcdefgh");
    }
}
