//! Taking over from a predecessor that was killed.
//!
//! When a process dies, the kernel ends the io_uring operations it left behind a little later than the process itself
//! (measured: up to 12 ms on a quiet machine, over a second on one that has too much to do). Until then they hold its listening sockets and its disk locks, so a restarted daemon would
//! find its own port in use. Whoever is alive is still there after this patience.

use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// Repeats `attempt` for a short while, as long as it fails with an error that is `busy`.
pub(crate) fn patiently<T, E>(busy: impl Fn(&E) -> bool, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(e) if busy(&e) && Instant::now() < deadline => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::patiently;

    #[test]
    fn only_what_is_busy_is_tried_again() {
        let mut left = 3;
        let result: Result<&str, &str> = patiently(
            |e| *e == "busy",
            || {
                left -= 1;
                if left == 0 { Ok("mine") } else { Err("busy") }
            },
        );
        assert_eq!((result, left), (Ok("mine"), 0));
        let mut count = 0;
        let result: Result<(), &str> = patiently(
            |e| *e == "busy",
            || {
                count += 1;
                Err("forbidden")
            },
        );
        assert_eq!((result, count), (Err("forbidden"), 1));
        assert_eq!(patiently::<(), _>(|_| true, || Err("busy")), Err("busy"));
    }
}
