//! Real NBD clients against a gateway with real OSDs behind it.

mod support;

use std::fs;

use support::Gateway;
use support::cluster::Cluster;
use support::tools::{run, try_run};

const SIZE: u64 = 64 << 20;

fn content() -> Vec<u8> {
    let mut content = vec![0; SIZE as usize];
    let mut random = 1u32;
    for (offset, len) in [(0, 4096), (5_000_001, 777), (10 << 20, 3 << 20), (SIZE as usize - 513, 513)] {
        content[offset..offset + len].iter_mut().for_each(|byte| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (random >> 24) as u8;
        });
    }
    content
}

#[test]
fn exports_are_described_and_listed() {
    let cluster = Cluster::start(1);
    cluster.create_image("demo", SIZE);
    cluster.create_image("other", 8192);
    let gateway = Gateway::start(&cluster);
    cluster.run(gateway.handle.wait_export("other"));
    for uri in gateway.both("demo").iter().chain(&gateway.both("")) {
        let Some(out) = run("nbdinfo", &[uri]) else { return };
        let lines = ["export-size: 67108864", "description: default/demo", "base:allocation", "can_multi_conn: true"];
        let sizes = ["block_size_preferred: 4096", "block_size_maximum: 33554432"];
        for line in lines.iter().chain(&sizes) {
            assert!(out.contains(line), "{line} is missing in {out}");
        }
    }
    let list = run("nbdinfo", &["--list", &gateway.tcp("")]).expect("installed");
    assert!(list.contains("export=\"demo\"") && list.contains("export=\"other\""), "{list}");
    let missing = try_run("nbdinfo", &[&gateway.tcp("nothing")]).expect("installed");
    assert!(!missing.success, "{}", missing.all);
    gateway.stop();
}

#[test]
fn images_are_copied_both_ways_with_their_holes() {
    let cluster = Cluster::start(3);
    cluster.create_image("demo", SIZE);
    let gateway = Gateway::start(&cluster);
    cluster.run(gateway.handle.wait_export("demo"));
    let (source, target) = (cluster.path("source.img"), cluster.path("target.img"));
    fs::write(&source, content()).expect("written");
    let (source, target) = (source.to_str().expect("UTF-8"), target.to_str().expect("UTF-8"));
    for uri in gateway.both("demo") {
        if run("nbdcopy", &["--", source, &uri]).is_none() {
            return;
        }
        run("nbdcopy", &["--", &uri, target]).expect("installed");
        assert!(fs::read(target).expect("read") == content(), "what came back over {uri} differs");
    }
    let qemu = ["compare", "-f", "raw", "-F", "raw", source, &gateway.tcp("demo")];
    run("qemu-img", &qemu);
    // nbdcopy punches what is zero in the source; the rest of the image was never written.
    let Some(map) = run("nbdinfo", &["--map", "--totals", &gateway.tcp("demo")]) else { return };
    let data = map.lines().find(|line| line.ends_with("data")).expect("some data");
    let bytes: u64 = data.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number");
    assert!((3 << 20..8 << 20).contains(&bytes), "{map}");
    gateway.stop();
}

#[test]
fn ranges_are_cleared_and_discarded() {
    let cluster = Cluster::start(2);
    cluster.create_image("demo", SIZE);
    let gateway = Gateway::start(&cluster);
    cluster.run(gateway.handle.wait_export("demo"));
    for uri in gateway.both("demo") {
        let commands = [
            "write -P 7 1000000 5000000",
            "discard 2M 1M",
            "write -z 3M 1000",
            "write -z -u 4M 1M",
            "read -P 7 1000000 1097152",
            "read -P 0 2M 1M",
            "read -P 0 3M 1000",
            "read -P 7 3146728 1047576",
            "read -P 0 4M 1M",
            "read -P 7 5M 757120",
            "flush",
        ];
        let args: Vec<&str> =
            ["-f", "raw"].into_iter().chain(commands.iter().flat_map(|c| ["-c", *c])).chain([uri.as_str()]).collect();
        let Some(out) = run("qemu-io", &args) else { return };
        assert!(!out.contains("failed"), "{out}");
    }
    let map = run("nbdinfo", &["--map", &gateway.unix("demo")]).unwrap_or_default();
    // Off the sectors both ways, so 999,424 to 2 MiB, and 3 MiB (kept although zero) to 4 MiB, and from 5 MiB on.
    let runs: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    if !runs.is_empty() {
        let wanted = ["999424 1097728 0", "3145728 1048576 0", "5242880 757760 0"];
        for wanted in wanted {
            assert!(runs.iter().any(|run| run.join(" ") == wanted), "{wanted} in {map}");
        }
    }
    gateway.stop();
}

#[test]
fn fio_verifies_random_mixed_sizes_over_both_sockets() {
    let cluster = Cluster::start(3);
    cluster.create_image("demo", SIZE);
    let gateway = Gateway::start(&cluster);
    cluster.run(gateway.handle.wait_export("demo"));
    for uri in gateway.both("demo") {
        let uri = format!("--uri={uri}");
        let folder = format!("--aux-path={}", cluster.path("").display());
        let common =
            ["--name=verify", "--ioengine=nbd", &uri, &folder, "--size=16m", "--iodepth=32", "--verify=crc32c"];
        let random = ["--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned=1", "--verify_fatal=1", "--fsync=64"];
        let Some(out) = run("fio", &[&common[..], &random[..]].concat()) else { return };
        assert!(out.contains("err= 0"), "{out}");
    }
    let stats = || gateway.handle.stats();
    gateway.wait("operations are counted", |stats| {
        stats.exports.get("demo").is_some_and(|demo| demo.ops[1].count > 200 && demo.ops[0].count > 200)
    });
    let demo = stats().exports["demo"].clone();
    assert_eq!((demo.ops[1].errors, demo.ops[1].latency.count()), (0, demo.ops[1].count));
    assert!(stats().to_prometheus().contains("blockyard_gateway_ops_total{export=\"demo\",op=\"write\"}"));
    gateway.stop();
}
