//! Other people's NBD clients.

use std::path::{Path, PathBuf};

use e2e::{Cluster, Random, have, limited, run, sha256};

/// A disk image with a file system made of a real directory tree.
fn disk_image(cluster: &Cluster) -> PathBuf {
    let image = cluster.path("disk.img");
    let doc = Path::new("/usr/share/doc");
    let tree = if doc.is_dir() { doc.to_owned() } else { e2e::workspace() };
    // Part of it, so that it is large enough to matter and small enough to be quick.
    let copy = cluster.path("tree");
    std::fs::create_dir(&copy).unwrap();
    let script = "cd \"$1\" && find . -xdev -type f -size -2M -not -path './target/*' | head -4000 |
        tar -c -T - | tar -x -C \"$2\"";
    run("bash", ["-c", script, "-", tree.to_str().unwrap(), copy.to_str().unwrap()]).ok();
    run("truncate", ["-s", "512M", image.to_str().unwrap()]).ok();
    let tool = if Path::new("/usr/sbin/mkfs.ext4").exists() { "/usr/sbin/mkfs.ext4" } else { "mkfs.ext4" };
    run(tool, ["-q", "-F", "-d", copy.to_str().unwrap(), image.to_str().unwrap()]).ok();
    image
}

#[test]
fn a_real_disk_image_goes_in_with_qemu_img_and_is_identical() {
    limited(180, || {
        if !have(&["qemu-img", "mkfs.ext4", "e2fsck", "nbdcopy"]) {
            return;
        }
        let cluster = Cluster::start();
        let image = disk_image(&cluster);
        let (file, uri) = (image.to_str().unwrap(), cluster.uri("demo"));
        let convert = ["convert", "-n", "-p", "-f", "raw", "-O", "raw", file, &uri];
        run("qemu-img", convert).ok();
        let compare = run("qemu-img", ["compare", "-f", "raw", "-F", "raw", file, &uri]).ok();
        assert!(compare.stdout.contains("identical"), "{}", compare.stdout);
        let map = run("qemu-img", ["map", "--output=json", "-f", "raw", &uri]).json();
        let (mut data, mut holes) = (0, 0);
        for extent in map.as_array().unwrap() {
            let sum = if extent["data"] == true { &mut data } else { &mut holes };
            *sum += extent["length"].as_u64().unwrap();
        }
        println!("{} MiB data, {} MiB holes", data >> 20, holes >> 20);
        assert_eq!(data + holes, 4 << 30);
        assert!((1 << 20..512 << 20).contains(&data), "holes of the image stay holes: {data}");
        // And the file system in it is one.
        let back = cluster.path("back.img");
        run("nbdcopy", [&uri, back.to_str().unwrap()]).ok();
        run("/usr/sbin/e2fsck", ["-fn", back.to_str().unwrap()]).ok();
    });
}

#[test]
fn nbdinfo_tells_what_the_server_can() {
    limited(60, || {
        if !have(&["nbdinfo"]) {
            return;
        }
        let cluster = Cluster::start_with(&["--image", "a=64M", "--image", "b=128M"]);
        let info = run("nbdinfo", ["--json", &cluster.uri("a")]).json();
        let export = &info["exports"][0];
        assert_eq!((&export["export-size"], &export["is_read_only"]), (&(64u64 << 20).into(), &false.into()), "{info}");
        let abilities =
            ["can_fua", "can_flush", "can_trim", "can_zero", "can_fast_zero", "can_multi_conn", "can_cache"];
        for ability in abilities.iter().chain(&["can_df"]) {
            assert_eq!(export[*ability], true, "{ability} in {info}");
        }
        assert_eq!(info["structured"], true, "{info}");
        assert!(info.to_string().contains("base:allocation"), "{info}");
        let list = run("nbdinfo", ["--list", "--json", &format!("nbd://{}", cluster.nbd())]).json();
        let names: Vec<_> = list["exports"].as_array().unwrap().iter().map(|e| e["export-name"].clone()).collect();
        assert_eq!(names, ["a", "b"], "{list}");
    });
}

#[test]
fn block_status_tells_data_from_holes() {
    limited(60, || {
        if !have(&["nbdinfo"]) {
            return;
        }
        let cluster = Cluster::start_with(&["--image", "a=64M"]);
        let mut nbd = cluster.connect("a");
        let map = || -> Vec<(u64, u64, bool)> {
            let map = run("nbdinfo", ["--map", "--json", &cluster.uri("a")]).json();
            let extents = map.as_array().unwrap().iter().map(|e| {
                (e["offset"].as_u64().unwrap(), e["length"].as_u64().unwrap(), e["type"].as_u64().unwrap() & 1 == 0)
            });
            extents.collect()
        };
        assert_eq!(map(), [(0, 64 << 20, false)]);
        nbd.write(4 << 20, &[1; 1 << 20]).unwrap();
        nbd.write((40 << 20) + 8192, &[1; 4096]).unwrap();
        let one = (40 << 20) + 8192;
        let expected = [
            (0, 4 << 20, false),
            (4 << 20, 1 << 20, true),
            (5 << 20, one - (5 << 20), false),
            (one, 4096, true),
            (one + 4096, (64 << 20) - one - 4096, false),
        ];
        assert_eq!(map(), expected);
        nbd.trim(4 << 20, 1 << 20).unwrap();
        nbd.trim(one, 4096).unwrap();
        assert_eq!(map(), [(0, 64 << 20, false)]);
        assert_eq!(nbd.read(4 << 20, 4096).unwrap(), [0; 4096]);
    });
}

#[test]
fn nbdcopy_both_ways_keeps_every_bit() {
    limited(180, || {
        if !have(&["nbdcopy"]) {
            return;
        }
        let cluster = Cluster::start_with(&["--image", "copy=256M"]);
        let (from, to) = (cluster.path("from"), cluster.path("to"));
        let mut bytes = vec![0; 256 << 20];
        let mut random = Random::new(9);
        for _ in 0..60 {
            let at = random.below(252 << 20) as usize;
            let len = random.below(4 << 20) as usize;
            bytes[at..at + len].copy_from_slice(&random.bytes(len));
        }
        std::fs::write(&from, &bytes).unwrap();
        let uri = cluster.uri("copy");
        run("nbdcopy", ["--flush", from.to_str().unwrap(), &uri]).ok();
        run("nbdcopy", [&uri, to.to_str().unwrap()]).ok();
        assert_eq!(sha256(&from), sha256(&to));
        // Many connections, small requests, and over what is there.
        bytes.rotate_right(777);
        std::fs::write(&from, &bytes).unwrap();
        run("nbdcopy", ["--connections=4", "--request-size=32768", from.to_str().unwrap(), &uri]).ok();
        run("nbdcopy", ["--connections=4", "--requests=64", &uri, to.to_str().unwrap()]).ok();
        assert_eq!(sha256(&from), sha256(&to));
    });
}

#[test]
fn fio_verifies_random_writes_of_all_sizes() {
    limited(180, || {
        if !have(&["fio"]) {
            return;
        }
        let cluster = Cluster::start();
        let sizes = "--bssplit=512/15:1536/10:4k/30:7k/10:16k/15:64k/10:132k/5:1m/5";
        fio(&cluster, &["--name=mixed", "--rw=randrw", "--rwmixread=30", sizes, "--bs_unaligned=1", "--size=64M"]);
        let four_jobs = ["--numjobs=4", "--offset_increment=64M", "--size=16M", "--thread"];
        fio(&cluster, &[&["--name=pages", "--rw=randwrite", "--bs=4k", "--offset=1G"], &four_jobs[..]].concat());
        let done = cluster.blockyard(&["image", "info", "demo", "--usage", "--json"]).json();
        assert!(done["used"].as_u64().unwrap() >= 32 << 20, "{done}");
    });
}

/// Runs fio on image `demo`; it checks everything that it wrote.
pub fn fio(cluster: &Cluster, options: &[&str]) {
    let uri = format!("--uri={}", cluster.uri("demo"));
    let folder = format!("--aux-path={}", cluster.path("").display());
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--iodepth=32", "--group_reporting"];
    let engine = ["--ioengine=nbd", &uri, &folder];
    let done = run("fio", [options, &engine[..], &verify[..]].concat()).ok();
    assert!(done.stdout.contains("err= 0"), "{}\n{}", done.stdout, done.stderr);
    println!("{}", done.stdout.lines().filter(|l| l.contains("IOPS")).collect::<Vec<_>>().join("\n"));
}
