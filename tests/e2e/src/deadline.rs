//! Bounds on waiting: a test that hangs says so.

use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Runs a test that must end within `seconds`.
///
/// # Panics
/// If it does not, with a message; or with the test's own panic.
pub fn limited(seconds: u64, test: impl FnOnce() + Send + 'static) {
    let name = thread::current().name().unwrap_or("a test").to_owned();
    let (ended, end) = channel();
    let body = thread::Builder::new().name(name.clone()).spawn(move || {
        test();
        let _ = ended.send(());
    });
    let body = body.expect("a thread");
    if end.recv_timeout(Duration::from_secs(seconds)) == Err(RecvTimeoutError::Timeout) {
        panic!("{name} did not end within {seconds} s");
    }
    if let Err(panic) = body.join() {
        resume_unwind(panic);
    }
}

/// Waits until `condition` gives something, at most `seconds`.
///
/// # Panics
/// With `what` if it does not happen.
pub fn eventually<T>(seconds: u64, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < end, "waited {seconds} s in vain: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
