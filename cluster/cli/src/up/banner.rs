//! What a person is told when everything serves.

use std::fmt::Write;
use std::path::Path;

use cluster_proto::map::keys;

use super::bootstrap::Layout;
use super::directory::Endpoints;
use crate::size::Size;

/// Endpoints and commands to copy and paste.
pub fn banner(endpoints: &Endpoints, layout: &Layout, data_dir: &Path) -> String {
    let mut out = String::new();
    let osds = layout.osds.len();
    let noun = if osds == 1 { "OSD" } else { "OSDs" };
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "Blockyard is ready: cluster {}, {osds} {noun}, data in {}\n",
        layout.cluster,
        data_dir.display()
    );
    for (image, size) in &layout.images {
        let _ = writeln!(out, "  image     {} ({})", uri(&endpoints.nbd, &image.export_name()), Size(*size));
    }
    if let Some(socket) = &endpoints.nbd_socket {
        let _ = writeln!(out, "  socket    {}", socket.display());
    }
    let _ = writeln!(out, "  metrics   http://{}/metrics", endpoints.metrics);
    let _ = writeln!(out, "  state     etcdctl --endpoints {} get --prefix {}", endpoints.etcd, keys::ROOT);
    if let Some((image, _)) = layout.images.first() {
        let _ = write!(out, "\nUse it:\n{}", commands(endpoints, &image.export_name()));
    }
    let cluster = if data_dir == Path::new("./blockyard-data") {
        String::new()
    } else {
        format!(" --cluster {}", data_dir.display())
    };
    let _ = writeln!(
        out,
        "\nLook after it:\n  blockyard{cluster} status\n  blockyard{cluster} image ls\n\nCtrl-C stops it."
    );
    out
}

fn commands(endpoints: &Endpoints, export: &str) -> String {
    let uri = uri(&endpoints.nbd, export);
    let (host, port) = endpoints.nbd.rsplit_once(':').unwrap_or((&endpoints.nbd, ""));
    [
        format!("nbdinfo {uri}"),
        format!("qemu-img convert -n -O raw disk.img {uri}"),
        format!("nbdcopy {uri} copy.img"),
        format!("fio --name=try --ioengine=nbd --uri={uri} --rw=randrw --bs=4k --iodepth=32 --size=256M --verify=crc32c"),
        format!("sudo nbd-client {host} {port} /dev/nbd0 -N {export} && sudo mkfs.ext4 /dev/nbd0 && sudo mount /dev/nbd0 /mnt"),
    ]
    .map(|command| format!("  {command}\n"))
    .concat()
}

/// Address of an export as `nbdinfo`, `qemu-img` and others take it.
fn uri(nbd: &str, export: &str) -> String {
    let path: Vec<_> = export.split('/').map(keys::encode).collect();
    format!("nbd://{nbd}/{}", path.join("/"))
}
