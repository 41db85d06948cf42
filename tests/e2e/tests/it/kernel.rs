//! A real kernel's NBD client, in a guest: `KERNEL_CLIENT` is the folder of its `run`, else `../shared/kernel-client`
//! beside the workspace. Without it these tests are skipped, loudly.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use e2e::{Cluster, eventually, limited, run, skip, workspace};

/// The program that runs scripts in a guest.
fn runner() -> Option<PathBuf> {
    let folder = std::env::var_os("KERNEL_CLIENT").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| workspace().join("../shared/kernel-client"));
    let found = Some(folder.join("run")).filter(|run| run.is_file());
    if found.is_none() {
        skip(&format!("no kernel client: there is no {}/run (KERNEL_CLIENT names another folder)", folder.display()));
    }
    found
}

/// Runs `tests/interop/kernel_nbd.sh` in a guest.
fn in_guest(runner: &PathBuf, settings: &[String], more: &[&str]) -> String {
    let script = workspace().join("tests/interop/kernel_nbd.sh");
    let settings: Vec<_> = settings.iter().flat_map(|setting| ["--env", setting]).collect();
    let line = [&[script.to_str().unwrap(), "--timeout", "240"], &settings[..], more].concat();
    let done = run(runner, line).ok();
    println!("{}", done.stdout);
    done.stdout
}

#[test]
fn ext4_and_xfs_outlive_their_connections() {
    limited(300, || {
        let Some(runner) = runner() else { return };
        let cluster = Cluster::start();
        let port = format!("PORT={}", cluster.nbd().port());
        let out = in_guest(&runner, &[port.clone(), "EXPORT=demo".into(), "CASE=reconnect".into()], &[]);
        assert!(out.contains("ext4 verified") && out.contains("xfs verified"), "{out}");
        let two = [port, "EXPORT=demo".into(), "CASE=reconnect".into(), "CONNECTIONS=2".into()];
        let out = in_guest(&runner, &two, &[]);
        assert!(out.contains("2 connections") && out.contains("xfs verified"), "{out}");
    });
}

#[test]
fn file_systems_outlive_a_crash_of_the_server() {
    limited(300, || {
        let Some(runner) = runner() else { return };
        let mut cluster = Cluster::start();
        let front = Front::new(cluster.nbd());
        let share = cluster.path("share");
        std::fs::create_dir(&share).unwrap();
        let settings = [format!("PORT={}", front.port), "EXPORT=demo".into(), "CASE=crash".into()];
        let guest_share = share.to_str().unwrap().to_owned();
        let guest = thread::spawn(move || in_guest(&runner, &settings, &["--share", &guest_share]));
        // The guest asks for two crashes, one with each file system.
        for crash in 1..=2 {
            let asked = share.join(format!("crash.{crash}"));
            eventually(120, "the guest asks for a crash", || (asked.exists() || guest.is_finished()).then_some(()));
            if guest.is_finished() {
                break;
            }
            cluster.kill();
            front.close();
            cluster.start_again();
            front.point_to(cluster.nbd());
            std::fs::write(share.join(format!("restarted.{crash}")), "").unwrap();
        }
        let out = guest.join().expect("the guest succeeds");
        assert!(out.contains("ext4 verified after the crash") && out.contains("xfs verified after the crash"), "{out}");
    });
}

/// A port that stays while the server behind it moves.
struct Front {
    port: u16,
    server: Arc<Mutex<Option<SocketAddr>>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Front {
    fn new(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let front = Self { port, server: Arc::new(Mutex::new(Some(server))), open: Arc::default() };
        let (server, open) = (front.server.clone(), front.open.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Some(server) = *server.lock().unwrap() else { continue };
                let Ok(server) = TcpStream::connect(server) else { continue };
                let clones = [client.try_clone(), client.try_clone(), server.try_clone(), server.try_clone()];
                let [Ok(c1), Ok(c2), Ok(s1), Ok(s2)] = clones else { continue };
                open.lock().unwrap().extend([client, server]);
                pass(c1, s1);
                pass(s2, c2);
            }
        });
        front
    }

    fn close(&self) {
        *self.server.lock().unwrap() = None;
        self.open.lock().unwrap().drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }

    fn point_to(&self, server: SocketAddr) {
        *self.server.lock().unwrap() = Some(server);
    }
}

/// Passes bytes on until either side ends.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
}
