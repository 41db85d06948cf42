//! Processors that never sleep: what a sleeping one takes to wake, tens of microseconds in a virtual machine, would be most of
//! what a single operation takes, and differs with the host's mood.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Turns between two looks at whether anybody still wants this: less than a second.
const TURNS: u32 = 1 << 24;

/// For each processor a process that does nothing, as long as nobody else wants it (`SCHED_IDLE`).
pub struct Awake {
    processes: Vec<Child>,
}

impl Awake {
    /// Starts them, if wanted.
    ///
    /// # Errors
    /// There is no `chrt` (of util-linux).
    pub fn start(wanted: bool) -> Result<Self> {
        let mut awake = Self { processes: Vec::new() };
        let own = sched_getaffinity(None)?;
        for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| wanted && own.is_set(*cpu)) {
            let mut command = Command::new("chrt");
            command.args(["--idle", "0"]).arg(std::env::current_exe()?).arg("spin");
            command.args([cpu.to_string(), std::process::id().to_string()]);
            let process = command.stdin(Stdio::null()).spawn().context("cannot run chrt, of util-linux")?;
            awake.processes.push(process);
        }
        Ok(awake)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill().and_then(|()| process.wait());
        }
    }
}

/// Keeps a processor busy until the process that wanted it, its parent, is gone.
///
/// # Errors
/// There is no such processor.
pub fn spin(cpu: usize, parent: u32) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only)?;
    while std::os::unix::process::parent_id() == parent {
        (0..TURNS).for_each(|_| std::hint::spin_loop());
    }
    Ok(())
}
