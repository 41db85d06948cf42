//! Real etcd as a process, also with TLS and users.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::process::Process;
use crate::{Done, eventually, run};

/// A free port of the address.
///
/// # Panics
/// If there is none.
pub fn free_port(address: IpAddr) -> u16 {
    TcpListener::bind((address, 0)).and_then(|l| l.local_addr()).expect("a free port").port()
}

/// Certificates for etcd and its clients, made for a test.
#[derive(Clone, Debug)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes an authority, a server's certificate for the name `etcd.test` and the address 127.0.0.1, and a client's.
    ///
    /// # Panics
    /// If openssl does not do that.
    pub fn make(folder: &Path) -> Self {
        let certificates = Self { folder: folder.to_owned() };
        let script = "set -e; cd \"$1\"
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test-ca \\
                -keyout ca.key -out ca.pem
            sign() {
                openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj \"/CN=$1\" -keyout $1.key -out $1.csr
                printf \"$2\" >$1.ext
                openssl x509 -req -in $1.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $1.ext -out $1.pem
            }
            sign server 'subjectAltName=DNS:etcd.test\\nextendedKeyUsage=serverAuth,clientAuth\\n'
            sign client 'subjectAltName=DNS:client.test\\nextendedKeyUsage=clientAuth\\n'";
        run("bash", ["-c", script, "-", folder.to_str().expect("a path of characters")]).ok();
        certificates
    }

    /// Path of `ca.pem`, `server.pem`, `server.key`, `client.pem` or `client.key`.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().expect("a path of characters").to_owned()
    }
}

/// One etcd with one member.
pub struct Etcd {
    folder: PathBuf,
    /// In memory where that is possible: what dies here are processes, and disks of test machines are slow.
    data: TempDir,
    client: SocketAddr,
    peer: SocketAddr,
    certificates: Option<Certificates>,
    process: Option<Process>,
}

impl Etcd {
    /// Starts an empty one on free ports of the address, with its data below `folder`.
    ///
    /// # Panics
    /// If it does not serve soon.
    pub fn start(folder: &Path, address: IpAddr, certificates: Option<Certificates>) -> Self {
        let (client, peer) = ((address, free_port(address)).into(), (address, free_port(address)).into());
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory } else { folder };
        let data = tempfile::Builder::new().prefix("blockyard-etcd-").tempdir_in(place).expect("a folder for etcd");
        let mut etcd = Self { folder: folder.to_owned(), data, client, peer, certificates, process: None };
        etcd.start_again();
        etcd
    }

    /// Starts it where it is stopped, with its data and on its ports.
    ///
    /// # Panics
    /// If it runs already, or does not serve soon.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "etcd runs already");
        let (client, peer) = (self.url(self.client), format!("http://{}", self.peer));
        let data = self.data.path().join("etcd");
        let mut args: Vec<String> = vec!["--data-dir".into(), data.to_str().expect("a path of characters").into()];
        for (option, value) in [
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &format!("default={peer}")),
        ] {
            args.extend([option.to_owned(), value.clone()]);
        }
        if let Some(files) = &self.certificates {
            let paths = [("--cert-file", "server.pem"), ("--key-file", "server.key"), ("--trusted-ca-file", "ca.pem")];
            paths.iter().for_each(|(option, name)| args.extend([(*option).to_owned(), files.path(name)]));
            args.push("--client-cert-auth".into());
        }
        self.process = Some(Process::start(&self.folder, "etcd", Path::new("etcd"), &args, None));
        eventually(20, "etcd serves", || (self.etcdctl(&["get", "x"]).status == 0).then_some(()));
    }

    fn url(&self, address: SocketAddr) -> String {
        format!("{}://{address}", if self.certificates.is_some() { "https" } else { "http" })
    }

    /// `host:port` for clients.
    pub fn endpoint(&self) -> String {
        self.client.to_string()
    }

    /// Runs `etcdctl` on it.
    pub fn etcdctl(&self, args: &[&str]) -> Done {
        let mut line =
            vec!["ETCDCTL_API=3".to_owned(), "etcdctl".into(), format!("--endpoints={}", self.url(self.client))];
        if let Some(files) = &self.certificates {
            line.push(format!("--cacert={}", files.path("ca.pem")));
            line.push(format!("--cert={}", files.path("client.pem")));
            line.push(format!("--key={}", files.path("client.key")));
            line.push("--insecure-skip-tls-verify".into());
        }
        line.extend(["--command-timeout=2s", "--dial-timeout=1s"].map(str::to_owned));
        run("env", line.iter().map(String::as_str).chain(args.iter().copied()))
    }

    /// The process.
    ///
    /// # Panics
    /// If it does not run.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("etcd runs").pid()
    }

    /// Kills it as a crash would.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        self.process.take().expect("etcd runs").kill();
    }
}
