//! Flame graphs of the OSDs' CPU time: `perf record`, and inferno's programs, which make drawings of what it recorded.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::program::require;

/// How often a second is looked at what is done. Not a divisor of what happens at regular times.
const HERTZ: &str = "1997";

/// What is narrower is left out, so that a drawing stays below 200 KB. Percent.
const WIDTH_MIN: &str = "0.4";

/// Where drawings go.
pub struct Flames {
    folder: PathBuf,
}

/// A recording under way.
pub struct Recording<'a> {
    flames: &'a Flames,
    perf: Child,
    place: TempDir,
}

impl Flames {
    /// Into a folder, which is made if need be.
    ///
    /// # Errors
    /// A program is missing, or the folder cannot be made.
    pub fn new(folder: &Path) -> Result<Self> {
        let from_crates = "'cargo install inferno' installs it";
        require("perf", "Debian has it in linux-perf")?;
        require("inferno-collapse-perf", from_crates)?;
        require("inferno-flamegraph", from_crates)?;
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Looks at these threads for so long.
    ///
    /// # Errors
    /// `perf` cannot be started.
    pub fn record(&self, threads: &[u32], time: Duration) -> Result<Recording<'_>> {
        let place = tempfile::tempdir()?;
        let threads: Vec<_> = threads.iter().map(u32::to_string).collect();
        let mut perf = Command::new("perf");
        // The clock of the CPU, because virtual machines count no cycles.
        perf.args(["record", "-q", "-e", "cpu-clock", "-F", HERTZ, "-g", "-t", &threads.join(","), "-o"]);
        perf.arg(place.path().join("data")).args(["--", "sleep", &time.as_secs_f64().to_string()]);
        Ok(Recording { flames: self, perf: perf.spawn()?, place })
    }
}

impl Recording<'_> {
    /// Waits for its end and draws it.
    ///
    /// # Errors
    /// One of the programs failed.
    pub fn draw(mut self, title: &str) -> Result<()> {
        let recorded = self.perf.wait()?;
        ensure!(recorded.success(), "perf record failed: does this machine let you look at other processes?");
        let path = self.flames.folder.join(file_name(title));
        let mut script = Command::new("perf");
        script.args(["script", "--no-inline", "-i"]).arg(self.place.path().join("data"));
        let mut script = script.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stacks = script.stdout.take().context("perf script has no output")?;
        let mut collapse = Command::new("inferno-collapse-perf").stdin(stacks).stdout(Stdio::piped()).spawn()?;
        let folded = collapse.stdout.take().context("inferno-collapse-perf has no output")?;
        let mut draw = Command::new("inferno-flamegraph");
        draw.args(["--title", &format!("OSDs: {title}"), "--minwidth", WIDTH_MIN, "--hash"]);
        let mut draw = draw.stdin(folded).stdout(File::create(&path)?).spawn()?;
        for (name, program) in
            [("perf script", &mut script), ("inferno-collapse-perf", &mut collapse), ("inferno-flamegraph", &mut draw)]
        {
            ensure!(program.wait()?.success(), "{name} failed");
        }
        eprintln!("{}", path.display());
        Ok(())
    }
}

/// Lower-case words with hyphens between them.
fn file_name(title: &str) -> String {
    let words: Vec<_> =
        title.split(|c: char| !c.is_ascii_alphanumeric() && c != '+').filter(|w| !w.is_empty()).collect();
    format!("flame-{}.svg", words.join("-").to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_after_what_they_show() {
        assert_eq!(file_name("3 copies, 4k random read, depth 1"), "flame-3-copies-4k-random-read-depth-1.svg");
        assert_eq!(file_name("EC 4+2, x"), "flame-ec-4+2-x.svg");
    }
}
