//! CPU time of threads, from the scheduler's own accounting.

use std::collections::BTreeMap;
use std::fs;

/// A thread of a process.
struct Thread {
    id: u32,
    name: String,
    /// Time on the CPU. Nanoseconds.
    ns: u64,
}

/// Nanoseconds on the CPU of one thread.
fn time(path: &str) -> u64 {
    let text = fs::read_to_string(format!("{path}/schedstat")).unwrap_or_default();
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

fn threads(pids: &[u32]) -> Vec<Thread> {
    let tasks = |pid: &u32| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let thread = |task: fs::DirEntry| {
        let path = task.path().to_string_lossy().into_owned();
        let name = fs::read_to_string(format!("{path}/comm")).ok()?;
        Some(Thread { id: task.file_name().to_str()?.parse().ok()?, name: name.trim().to_owned(), ns: time(&path) })
    };
    pids.iter().flat_map(tasks).filter_map(thread).collect()
}

/// CPU time of the calling thread. Nanoseconds.
pub fn own_thread() -> u64 {
    time("/proc/thread-self")
}

/// CPU time of a cluster's processes by part: each `osd-N`, all `osds`, `gateway`, and `rest`. Nanoseconds.
pub fn parts(pids: &[u32]) -> BTreeMap<String, u64> {
    let mut parts: BTreeMap<String, u64> = BTreeMap::new();
    for thread in threads(pids) {
        let part = match thread.name.as_str() {
            // The kernel's helpers of a ring do what it cannot do at once: disk operations, which are the OSDs'.
            name if name.starts_with("osd-") || name.starts_with("iou-") => "osds",
            "gateway" => "gateway",
            // The control plane.
            _ => "rest",
        };
        if thread.name.starts_with("osd-") {
            *parts.entry(thread.name).or_default() += thread.ns;
        }
        *parts.entry(part.into()).or_default() += thread.ns;
    }
    parts
}

/// The threads that are OSDs.
pub fn osd_threads(pids: &[u32]) -> Vec<u32> {
    threads(pids).into_iter().filter(|thread| thread.name.starts_with("osd-")).map(|thread| thread.id).collect()
}

/// Resident memory of a process. Bytes.
pub fn resident(pid: u32) -> Option<u64> {
    resident_of(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn resident_of(status: &str) -> Option<u64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))?;
    Some(kib.parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_found() {
        assert_eq!(resident_of("Name:\tx\nVmHWM:\t  99 kB\nVmRSS:\t    1234 kB\n"), Some(1234 << 10));
        assert_eq!(resident_of("Name:\tx\n"), None);
        assert!(resident(std::process::id()) > Some(1 << 20));
    }

    #[test]
    fn threads_are_found_by_name() {
        let (told, tell) = std::sync::mpsc::channel::<()>();
        let thread =
            std::thread::Builder::new().name("osd-77".into()).spawn(move || tell.recv().is_err()).expect("a thread");
        let found = || osd_threads(&[std::process::id()]).len();
        // A thread gives itself its name when it begins to run.
        e2e::eventually(10, "the thread has its name", || (found() == 1).then_some(()));
        assert!(parts(&[std::process::id()]).contains_key("osd-77"));
        drop(told);
        assert!(thread.join().expect("it ends"));
    }
}
