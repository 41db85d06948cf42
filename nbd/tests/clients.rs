//! Real clients against a RAM disk, over TCP and a Unix socket: nbdinfo, nbdcopy, qemu-img, qemu-io and fio. libnbd's
//! tools negotiate structured replies, QEMU's extended headers where it is new enough. A tool that is not installed is
//! skipped loudly, and a failure where `CI=true`.

mod server;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use gateway_core::BlockDevice;
use gateway_core::ram::{RamExports, RamVolume};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

struct Server {
    folder: TempDir,
    port: u16,
    demo: RamVolume,
}

impl Server {
    /// Exports `demo` (64 MiB, the default), `ro` (the same, read-only) and `odd` (1,000,448 bytes).
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let demo = RamVolume::with_size("demo", SIZE);
        let mut read_only = RamVolume::with_size("ro", MIB).info();
        read_only.read_only = true;
        let odd = RamVolume::with_size("odd", 1_000_448);
        let exports: RamExports = [demo.clone(), RamVolume::new(read_only), odd].into_iter().collect();
        let exports = Arc::new(Mutex::new(exports));
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = tcp.local_addr().expect("bound").port();
        let unix = UnixListener::bind(folder.path().join("socket")).expect("a socket");
        let for_unix = Arc::clone(&exports);
        thread::spawn(move || server::serve_unix(unix, for_unix));
        thread::spawn(move || server::serve_tcp(tcp, exports));
        Self { folder, port, demo }
    }

    fn tcp(&self, export: &str) -> String {
        format!("nbd://127.0.0.1:{}/{export}", self.port)
    }

    fn unix(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.folder.path().join("socket").display())
    }

    fn both(&self, export: &str) -> [String; 2] {
        [self.tcp(export), self.unix(export)]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

struct Output {
    success: bool,
    stdout: String,
    all: String,
}

/// Runs a tool; `None` if it is not installed.
fn try_run(tool: &str, args: &[&str]) -> Option<Output> {
    let output = match Command::new(tool).args(args).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{tool} is not installed");
            eprintln!("SKIP: {tool} is not installed, so nothing was tested with it");
            return None;
        }
        other => other.expect("the tool starts"),
    };
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let all = format!("{tool} {args:?}\n{stdout}{}", String::from_utf8_lossy(&output.stderr));
    Some(Output { success: output.status.success(), stdout, all })
}

/// Runs a tool that must succeed; its standard output.
fn run(tool: &str, args: &[&str]) -> Option<String> {
    let output = try_run(tool, args)?;
    assert!(output.success, "{}", output.all);
    Some(output.stdout)
}

/// A sparse file of the size of the export with data here and there, also off the sectors.
fn image(path: &Path) -> Vec<u8> {
    let mut content = vec![0; SIZE as usize];
    let mut random = 1u32;
    for (offset, len) in [(0, 4096), (5_000_001, 777), (10 << 20, 3 << 20), (SIZE as usize - 513, 513)] {
        content[offset..offset + len].iter_mut().for_each(|byte| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (random >> 24) as u8;
        });
    }
    let file = File::create(path).expect("created");
    file.set_len(SIZE).expect("sized");
    for (index, page) in content.chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|&byte| byte != 0)) {
        file.write_all_at(page, index as u64 * 4096).expect("written");
    }
    content
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary names are UTF-8")
}

#[test]
fn nbdinfo_describes_and_lists_the_exports() {
    let server = Server::start();
    for uri in server.both("demo") {
        let Some(out) = run("nbdinfo", &[&uri]) else { return };
        let lines =
            ["using structured packets", "description: RAM disk demo", "export-size: 67108864", "base:allocation"];
        let flags = ["can_df: true", "can_multi_conn: true", "can_fast_zero: true", "can_fua: true", "can_trim: true"];
        let sizes = ["block_size_minimum: 1", "block_size_preferred: 4096", "block_size_maximum: 33554432"];
        for line in lines.iter().chain(&flags).chain(&sizes) {
            assert!(out.contains(line), "{line} is missing in {out}");
        }
    }
    let list = run("nbdinfo", &["--list", &server.tcp("")]).expect("installed");
    assert!(["demo", "ro", "odd"].iter().all(|name| list.contains(&format!("export=\"{name}\""))), "{list}");
    let read_only = run("nbdinfo", &[&server.tcp("ro")]).expect("installed");
    assert!(read_only.contains("is_read_only: true") && read_only.contains("can_trim: false"), "{read_only}");
    assert!(!try_run("nbdinfo", &[&server.tcp("nosuch")]).expect("installed").success);
}

#[test]
fn nbdcopy_brings_an_image_there_and_back() {
    let server = Server::start();
    let (there, back) = (server.path("there"), server.path("back"));
    let content = image(&there);
    for uri in server.both("demo") {
        if run("nbdcopy", &["--connections=4", "--flush", text(&there), &uri]).is_none() {
            return;
        }
        assert!(server.demo.peek(0, content.len()) == content, "content of the disk after {uri}");
        run("nbdcopy", &[&uri, text(&back)]);
        assert!(fs::read(&back).expect("written") == content, "content of the copy from {uri}");
    }
    let map = run("nbdinfo", &["--map", &server.tcp("demo")]).expect("installed");
    let rows: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["0", "4096", "0", "data"]);
    assert_eq!(rows[1], ["4096", "4993024", "3", "hole,zero"], "nbdcopy found the holes in {map}");
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let server = Server::start();
    let there = server.path("there");
    let content = image(&there);
    for uri in server.both("demo") {
        if run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&there), &uri]).is_none() {
            return;
        }
        assert!(server.demo.peek(0, content.len()) == content, "content of the disk after {uri}");
        let out = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&there), &uri]).expect("installed");
        assert!(out.contains("Images are identical"), "{out}");
        let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).expect("installed");
        let data = map.lines().filter(|line| line.contains("\"data\": true")).count();
        assert_eq!(data, 4, "stretches with data in {map}");
    }
}

#[test]
fn qemu_io_reads_back_what_it_wrote_at_any_alignment() {
    let server = Server::start();
    let commands = [
        "write -P 5 3 7777",
        "write -P 6 -f 1000000 33",
        "read -P 5 3 7777",
        "read -P 6 1000000 33",
        "read -P 0 0 3",
        "write -z -f 5 100",
        "read -P 0 5 100",
        "read -P 5 105 100",
        "write -z -u 4096 2048",
        "read -P 0 4096 2048",
        "read -P 5 6144 1636",
        "discard 1M 1M",
        "flush",
    ];
    let mut args = vec!["-f", "raw"];
    commands.iter().for_each(|command| args.extend(["-c", *command]));
    for uri in server.both("demo") {
        let with_uri = [args.clone(), vec![&uri]].concat();
        let Some(out) = run("qemu-io", &with_uri) else { return };
        assert!(!out.contains("failed"), "{out}");
    }
    let wrong = ["-f", "raw", "-c", "read -P 9 3 10", &server.tcp("demo")];
    let out = try_run("qemu-io", &wrong).expect("installed").all;
    assert!(out.contains("Pattern verification failed"), "the check itself works: {out}");
}

#[test]
fn read_only_exports_refuse_writes_of_a_stubborn_client() {
    let server = Server::start();
    let Some(out) = try_run("qemu-io", &["-f", "raw", "-c", "write 0 512", &server.tcp("ro")]) else { return };
    assert!(!out.success && out.all.contains("Permission denied"), "{}", out.all);
    let out = run("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0 0 1M", &server.tcp("ro")]).expect("installed");
    assert!(out.contains("read 1048576/1048576 bytes"), "{out}");
    let odd = ["-f", "raw", "-c", "write -P 1 999936 512", "-c", "read -P 1 999936 512", &server.tcp("odd")];
    assert!(!run("qemu-io", &odd).expect("installed").contains("failed"));
}

#[test]
fn fio_verifies_random_mixed_sizes() {
    let server = Server::start();
    for uri in server.both("demo") {
        let uri = format!("--uri={uri}");
        let folder = format!("--aux-path={}", server.folder.path().display());
        let common =
            ["--name=verify", "--ioengine=nbd", &uri, &folder, "--size=16m", "--iodepth=32", "--verify=crc32c"];
        let random = ["--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned=1", "--verify_fatal=1", "--fsync=64"];
        let Some(out) = run("fio", &[&common[..], &random[..]].concat()) else { return };
        assert!(out.contains("err= 0"), "{out}");
    }
    assert!(server.demo.submitted() > 1000, "fio did write through the volume");
}
