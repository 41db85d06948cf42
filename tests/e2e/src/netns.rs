//! Machines with cables that can be pulled: a network namespace for each daemon, all on one bridge.
//!
//! Needs root. The test itself is at the bridge, so it reaches everything as long as nothing is cut.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Done, run};

/// Networks that this process made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A network of namespaces. Nothing is left of it when it is dropped.
pub struct Network {
    /// Second and third byte of all addresses, which tell one test's network from another's.
    subnet: [u8; 2],
    bridge: String,
    /// Last byte of the addresses, by the names of the machines.
    nodes: BTreeMap<String, u8>,
}

/// Whether networks can be made here.
#[must_use]
pub fn can_make_networks() -> bool {
    let name = format!("by-try-{}", std::process::id());
    let made = Path::new("/proc/self/ns/net").exists() && ip(&["netns", "add", &name]).status == 0;
    if made {
        ip(&["netns", "del", &name]).ok();
    }
    made
}

fn ip(args: &[&str]) -> Done {
    run("ip", args)
}

impl Network {
    /// An empty network.
    ///
    /// # Panics
    /// If the system refuses; see [`can_make_networks`].
    pub fn make() -> Self {
        let number = std::process::id().wrapping_mul(8).wrapping_add(MADE.fetch_add(1, Ordering::Relaxed));
        let subnet = [64 + (number >> 8) as u8 % 64, number as u8];
        let network = Self { subnet, bridge: format!("by{}x{}", subnet[0], subnet[1]), nodes: BTreeMap::new() };
        ip(&["link", "add", &network.bridge, "type", "bridge"]).ok();
        ip(&["addr", "add", &format!("{}/24", network.outside()), "dev", &network.bridge]).ok();
        ip(&["link", "set", &network.bridge, "up"]).ok();
        network
    }

    fn at(&self, host: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(100, self.subnet[0], self.subnet[1], host))
    }

    /// The address of the test, and of everything that runs in no namespace.
    pub fn outside(&self) -> IpAddr {
        self.at(254)
    }

    fn namespace(&self, host: u8) -> String {
        format!("{}n{host}", self.bridge)
    }

    fn cable(&self, host: u8) -> String {
        format!("{}v{host}", self.bridge)
    }

    /// The namespace of a machine, which is made if need be.
    pub fn node(&mut self, name: &str) -> String {
        let host = self.host(name);
        self.namespace(host)
    }

    /// The address of a machine, which is made if need be.
    pub fn address(&mut self, name: &str) -> IpAddr {
        let host = self.host(name);
        self.at(host)
    }

    fn host(&mut self, name: &str) -> u8 {
        if let Some(host) = self.nodes.get(name) {
            return *host;
        }
        let host = self.nodes.len() as u8 + 1;
        self.nodes.insert(name.to_owned(), host);
        let (namespace, cable) = (self.namespace(host), self.cable(host));
        ip(&["netns", "add", &namespace]).ok();
        ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &namespace]).ok();
        ip(&["link", "set", &cable, "master", &self.bridge, "up"]).ok();
        ip(&["-n", &namespace, "addr", "add", &format!("{}/24", self.at(host)), "dev", "eth0"]).ok();
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]).ok();
        ip(&["-n", &namespace, "link", "set", "lo", "up"]).ok();
        host
    }

    /// Pulls the cable of a machine: nobody reaches it, it reaches nobody.
    pub fn isolate(&mut self, name: &str) {
        let cable = self.cable(self.nodes[name]);
        ip(&["link", "set", &cable, "down"]).ok();
    }

    /// Puts the cable back.
    pub fn rejoin(&mut self, name: &str) {
        let cable = self.cable(self.nodes[name]);
        ip(&["link", "set", &cable, "up"]).ok();
    }

    /// Lets nothing pass from one machine to another. The way back stays.
    pub fn cut_one_way(&mut self, from: &str, to: &str) {
        let (from, to) = (self.nodes[from], self.nodes[to]);
        let rule = format!("{}/32", self.at(to));
        ip(&["-n", &self.namespace(from), "route", "add", "blackhole", &rule]).ok();
    }

    /// Lets everything pass again.
    pub fn mend_one_way(&mut self, from: &str, to: &str) {
        let (from, to) = (self.nodes[from], self.nodes[to]);
        let rule = format!("{}/32", self.at(to));
        ip(&["-n", &self.namespace(from), "route", "del", "blackhole", &rule]).ok();
    }

    /// Separates two machines.
    pub fn cut(&mut self, one: &str, other: &str) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// Undoes [`Self::cut`].
    pub fn mend(&mut self, one: &str, other: &str) {
        self.mend_one_way(one, other);
        self.mend_one_way(other, one);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in self.nodes.values() {
            // The cable goes with its namespace.
            ip(&["netns", "del", &self.namespace(*host)]);
            ip(&["link", "del", &self.cable(*host)]);
        }
        ip(&["link", "del", &self.bridge]);
    }
}
