//! Serves RAM disks over NBD: `ram_server [--unix PATH] [--port PORT] [NAME=BYTES | NAME=BYTES:ro]...`
//!
//! The first export is the default one. It is for trying clients and for measuring the protocol alone; the blocking
//! driver is that of the tests.

#[path = "../tests/server/mod.rs"]
mod server;

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::{env, io, thread};

use gateway_core::BlockDevice;
use gateway_core::ram::{RamExports, RamVolume};

fn volume(text: &str) -> Option<RamVolume> {
    let (name, size) = text.split_once('=')?;
    let (size, read_only) = match size.strip_suffix(":ro") {
        Some(size) => (size, true),
        None => (size, false),
    };
    let mut info = RamVolume::with_size(name, size.parse().ok()?).info();
    info.read_only = read_only;
    Some(RamVolume::new(info))
}

fn main() -> io::Result<()> {
    let (mut port, mut unix, mut exports) = (10809, None, RamExports::new());
    let mut args = env::args().skip(1);
    let usage = || io::Error::other("usage: ram_server [--unix PATH] [--port PORT] [NAME=BYTES | NAME=BYTES:ro]...");
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--port" => port = args.next().and_then(|text| text.parse().ok()).ok_or_else(usage)?,
            "--unix" => unix = Some(args.next().ok_or_else(usage)?),
            text => exports.add(volume(text).ok_or_else(usage)?),
        }
    }
    let exports = Arc::new(Mutex::new(exports));
    let tcp = TcpListener::bind(("127.0.0.1", port))?;
    eprintln!("serving nbd://{}", tcp.local_addr()?);
    if let Some(path) = unix {
        let listener = UnixListener::bind(&path)?;
        eprintln!("serving nbd+unix:///?socket={path}");
        let exports = Arc::clone(&exports);
        thread::spawn(move || server::serve_unix(listener, exports));
    }
    server::serve_tcp(tcp, exports);
    Ok(())
}
