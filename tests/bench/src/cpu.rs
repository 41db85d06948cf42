//! CPU time of threads, from the scheduler's own accounting.

use std::collections::BTreeMap;
use std::fs;

/// Nanoseconds on the CPU of one thread.
fn thread(path: &str) -> u64 {
    let text = fs::read_to_string(format!("{path}/schedstat")).unwrap_or_default();
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// CPU time of the calling thread. Nanoseconds.
pub fn own_thread() -> u64 {
    thread("/proc/thread-self")
}

/// CPU time of a process by part: each `osd-N`, all `osds`, `gateway`, and `rest`. Nanoseconds.
pub fn parts(pid: u32) -> BTreeMap<String, u64> {
    let mut parts: BTreeMap<String, u64> = BTreeMap::new();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let path = task.path().to_string_lossy().into_owned();
        let name = fs::read_to_string(format!("{path}/comm")).unwrap_or_default();
        let part = match name.trim() {
            // The kernel's helpers of a ring do what it cannot do at once: disk operations, which are the OSDs'.
            name if name.starts_with("osd-") || name.starts_with("iou-") => "osds",
            "gateway" => "gateway",
            // The control plane.
            _ => "rest",
        };
        let ns = thread(&path);
        if name.starts_with("osd-") {
            *parts.entry(name.trim().into()).or_default() += ns;
        }
        *parts.entry(part.into()).or_default() += ns;
    }
    parts
}
