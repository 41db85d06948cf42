//! `blockyard up` as a process: start, use, stop, kill, restart.

mod support;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{Run, blockyard, command};
use tempfile::TempDir;

/// Far beyond what a start or stop takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Up {
    child: Child,
    dir: PathBuf,
}

impl Up {
    /// Starts and waits until it is ready.
    fn start(dir: &Path, more: &[&str]) -> Up {
        let path = dir.to_str().unwrap();
        let args = [&["up", "--ports", "auto", "--osd-size", "1G", "--data-dir", path], more].concat();
        let child = command(&args).stdout(Stdio::null()).spawn().unwrap();
        let mut up = Up { child, dir: dir.to_owned() };
        let start = Instant::now();
        // What a killed predecessor left does not count.
        while up.endpoints()["pid"] != up.child.id() {
            assert!(up.child.try_wait().unwrap().is_none(), "it ended");
            assert!(start.elapsed() < PATIENCE, "it is not ready");
            std::thread::sleep(Duration::from_millis(10));
        }
        up
    }

    fn endpoints(&self) -> Value {
        fs::read(self.dir.join("up.json")).map_or(Value::Null, |json| serde_json::from_slice(&json).unwrap())
    }

    fn run(&self, args: &[&str]) -> Run {
        blockyard(&[&["--cluster", self.dir.to_str().unwrap()], args].concat())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn stop(mut self, signal: Signal) {
        self.signal(signal);
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(0));
                assert!(!self.dir.join("up.json").exists());
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not stop");
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A sparse file with some data, the last byte included.
fn disk(folder: &TempDir, len: u64) -> PathBuf {
    let path = folder.path().join("disk.img");
    let mut file = fs::File::create(&path).unwrap();
    file.set_len(len).unwrap();
    for (offset, bytes) in [(0, 100_000), (3 << 20, 5000), ((9 << 20) + 77, 1 << 20), (len - 1, 1)] {
        file.seek(SeekFrom::Start(offset)).unwrap();
        let data: Vec<u8> = (0..bytes as u64).map(|i| (offset + i * 7 % 251 + 1) as u8 | 1).collect();
        file.write_all(&data).unwrap();
    }
    path
}

#[test]
fn images_go_in_and_out_and_survive_kills() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let disk = disk(&folder, (20 << 20) + 12_345);
    let disk_path = disk.to_str().unwrap();
    let up = Up::start(&dir, &["--osds", "2", "--image", "one=1G", "--image", "two=64M"]);
    let endpoints = up.endpoints();
    assert_eq!((&endpoints["pid"], &endpoints["images"]), (&json!(up.child.id()), &json!(["one", "two"])));
    let mut greeting = [0; 8];
    TcpStream::connect(endpoints["nbd"].as_str().unwrap()).unwrap().read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGIC");

    let imported = up.run(&["image", "import", disk_path, "new", "--verify", "--json"]).json();
    assert_eq!((&imported["bytes"], &imported["verified"]), (&json!((20 << 20) + 12_345), &json!(true)));
    assert!(imported["written"].as_u64().unwrap() < 2 << 20, "{imported}");
    assert_eq!(up.run(&["image", "import", disk_path, "new"]).code, 6, "it exists");
    let used = up.run(&["image", "info", "new", "--usage", "--json"]).json();
    assert_eq!(used["size"], (20 << 20) + 16_384);
    assert_eq!(used["used"], imported["written"].as_u64().unwrap().next_multiple_of(4096));
    up.stop(Signal::TERM);

    let mut up = Up::start(&dir, &[]);
    up.child.kill().unwrap();
    up.child.wait().unwrap();
    drop(up);
    assert!(dir.join("up.json").exists(), "what was killed cannot clean up");
    let gone = blockyard(&["--cluster", dir.to_str().unwrap(), "status"]);
    assert_eq!(gone.code, 3);
    assert!(gone.stderr.contains("does not run any more"), "{}", gone.stderr);
    let up = Up::start(&dir, &["--osds", "2", "--replicas", "2"]);
    let copy = folder.path().join("copy.img");
    let copy_path = copy.to_str().unwrap();
    let exported = up.run(&["image", "export", "new", copy_path, "--json"]).json();
    assert_eq!(exported["size"], (20 << 20) + 16_384);
    let (mut copied, original) = (fs::read(&copy).unwrap(), fs::read(&disk).unwrap());
    assert!(copied[original.len()..].iter().all(|byte| *byte == 0));
    copied.truncate(original.len());
    assert!(copied == original, "the copy differs");
    assert_eq!(up.run(&["image", "export", "new", copy_path]).code, 6, "it exists");

    // Over an image with other content: what the file has no data for reads as zeroes again.
    fs::write(&disk, vec![9; 10 << 20]).unwrap();
    assert_eq!(up.run(&["image", "import", disk_path, "new", "--yes"]).code, 0);
    fs::write(&disk, vec![0; 4 << 20]).unwrap();
    assert_eq!(up.run(&["image", "import", disk_path, "new", "--yes", "--verify"]).code, 0);
    assert_eq!(up.run(&["image", "info", "new", "--usage", "--json"]).json()["used"], 0);
    up.stop(Signal::INT);
}

#[test]
fn images_shrink_and_vanish_with_their_data() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let disk = disk(&folder, 32 << 20);
    let up = Up::start(&dir, &["--osds", "1"]);
    assert_eq!(up.endpoints()["images"], json!(["demo"]));
    assert_eq!(up.run(&["image", "info", "demo", "--json"]).json()["size"], 4u64 << 30);
    assert_eq!(up.run(&["image", "import", disk.to_str().unwrap(), "a"]).code, 0);
    assert_eq!(up.run(&["image", "resize", "a", "1M", "--yes", "--json"]).json()["size"], 1 << 20);
    assert_eq!(up.run(&["image", "resize", "a", "32M"]).code, 0);
    let used = up.run(&["image", "info", "a", "--usage", "--json"]).json()["used"].as_u64().unwrap();
    assert!(used <= 1 << 20, "{used}");
    assert_eq!(up.run(&["image", "rm", "a", "--yes"]).code, 0);
    assert_eq!(up.run(&["image", "info", "a"]).code, 4);
    let health = up.run(&["status", "--json"]).json();
    assert_eq!((&health["verdict"], &health["pgs"]["active"]), (&json!("ok"), &json!(64)), "{health}");
    up.stop(Signal::TERM);
    let osd = dir.join("osd.1");
    let check = blockyard(&["osd", "check", osd.to_str().unwrap(), "--json"]).json();
    assert_eq!(check["problems"], json!([]));
    let dump = blockyard(&["osd", "dump", osd.to_str().unwrap(), "--objects", "--log", "4", "--json"]).json();
    assert_eq!(dump["osd"], 1);
}

#[test]
fn a_directory_has_one_cluster_and_fixed_flags() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let path = dir.to_str().unwrap();
    let up = Up::start(&dir, &["--osds", "1"]);
    let second = blockyard(&["up", "--ports", "auto", "--data-dir", path]);
    assert_eq!(second.code, 5);
    assert!(second.stderr.contains(&format!("(process {})", up.child.id())), "{}", second.stderr);
    let used = blockyard(&["osd", "check", dir.join("osd.1").to_str().unwrap()]);
    assert_eq!(used.code, 5, "{}", used.stderr);
    assert!(up.dir.join("up.json").exists());
    up.stop(Signal::TERM);
    for flags in [&["--osds", "2"][..], &["--replicas", "2"], &["--osd-size", "2G"]] {
        let run = blockyard(&[&["up", "--ports", "auto", "--data-dir", path], flags].concat());
        assert_eq!(run.code, 2, "{flags:?}: {}", run.stderr);
        assert!(run.stderr.contains("fixed at the first start"), "{}", run.stderr);
    }
    fs::rename(dir.join("osd.1"), dir.join("hidden")).unwrap();
    let missing = blockyard(&["up", "--ports", "auto", "--data-dir", path]);
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("cannot start OSD 1: its file"), "{}", missing.stderr);
    assert!(!dir.join("osd.1").exists(), "a lost OSD must not be replaced by an empty one");
    fs::rename(dir.join("hidden"), dir.join("osd.1")).unwrap();
    Up::start(&dir, &[]).stop(Signal::TERM);
}

#[test]
fn a_signal_during_the_start_ends_it_and_the_next_start_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    for delay_ms in [5, 20, 60, 120] {
        let args = ["up", "--ports", "auto", "--osd-size", "1G", "--data-dir", dir.to_str().unwrap()];
        let mut child = command(&args).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
    }
    let up = Up::start(&dir, &[]);
    let health = up.run(&["status", "--json"]).json();
    assert_eq!((&health["osds"]["up"], &health["pgs"]["active"]), (&json!(3), &json!(64)), "{health}");
    up.stop(Signal::TERM);
}
