//! Bytes that change on a device by themselves are never returned.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use e2e::{Cluster, Random, eventually, limited};
use serde_json::Value;

pub const SECTOR: usize = 4096;
/// Data in the image. Sectors.
const SECTORS: usize = 4096;

/// Where each sector of `data` lies in a file, found by its content. More than once if its object was written anew
/// meanwhile, by recovery: what was freed stays where it was.
pub fn places(path: &Path, data: &[u8]) -> Vec<Vec<u64>> {
    let heads: HashMap<_, _> = data.chunks_exact(SECTOR).enumerate().map(|(i, sector)| (&sector[..16], i)).collect();
    let mut found = vec![Vec::new(); heads.len()];
    let mut file = File::open(path).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut block = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let n = file.read(&mut block).unwrap();
        if n == 0 {
            break;
        }
        for (i, sector) in block[..n].chunks_exact(SECTOR).enumerate() {
            if let Some(which) = heads.get(&sector[..16]) {
                found[*which].push(at + (i * SECTOR) as u64);
            }
        }
        at += n as u64;
    }
    found
}

/// The same if all of it is there.
fn find(path: &Path, data: &[u8]) -> Vec<Vec<u64>> {
    let found = places(path, data);
    assert!(found.iter().all(|at| !at.is_empty()), "all data is found in {}", path.display());
    found
}

/// Flips a bit of a sector wherever it lies.
pub fn flip(file: &File, places: &[u64], random: &mut Random) {
    for at in places {
        let place = at + random.below(SECTOR as u64);
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        byte[0] ^= 1 << random.below(8);
        file.write_all_at(&byte, place).unwrap();
    }
}

/// Damages each chosen sector on one of the OSDs. Two good copies are left of each.
fn damage(cluster: &Cluster, data: &[u8], seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let mut flipped = 0;
    for id in 1..=3 {
        let path = cluster.osd_file(id);
        let places = find(&path, data);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        for (_, at) in places.iter().enumerate().filter(|(i, _)| i % 30 == 10 * (id as usize - 1)) {
            flip(&file, at, &mut random);
            flipped += 1;
        }
        file.sync_all().unwrap();
    }
    flipped
}

fn counter(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name} in {status}"))
}

fn start_with_data(seed: u64) -> (Cluster, Vec<u8>) {
    let cluster = Cluster::start_with(&["--osd-size", "256M"]);
    let data = Random::new(seed).bytes(SECTORS * SECTOR);
    let mut nbd = cluster.connect("demo");
    nbd.write_long(0, &data).unwrap();
    nbd.flush().unwrap();
    (cluster, data)
}

/// Reads everything, which must be right, and waits until the repairs are counted.
fn read_and_count(cluster: &Cluster, data: &[u8], flipped: u64) -> u64 {
    assert!(cluster.connect("demo").read_long(0, data.len()).unwrap() == data, "what was written is read");
    let repaired = eventually(20, "damage is counted in the status", || {
        let status = cluster.status();
        let (errors, repaired) = (counter(&status, "crc-errors"), counter(&status, "repaired-sectors"));
        (errors > 0 && repaired > 0).then_some(repaired)
    });
    println!("{flipped} sectors damaged, {repaired} of them read from a primary and repaired");
    assert!(repaired <= flipped, "only what was damaged is repaired: {repaired} of {flipped}");
    repaired
}

#[test]
fn bits_flipped_while_stopped_are_repaired_and_counted() {
    limited(120, || {
        let (mut cluster, data) = start_with_data(1);
        assert_eq!(counter(&cluster.status(), "crc-errors"), 0);
        cluster.stop();
        let flipped = damage(&cluster, &data, 2);
        let check = cluster.blockyard(&["osd", "check", cluster.osd_file(1).to_str().unwrap(), "--json"]);
        assert_eq!(check.status, 1, "osd check finds the damage: {check:?}");
        let problems = serde_json::from_str::<Value>(&check.stdout).unwrap()["problems"].as_array().map_or(0, Vec::len);
        assert!(problems > 0, "{}", check.stdout);
        cluster.start_again();
        read_and_count(&cluster, &data, flipped);
        // What was repaired stays so: the next start finds nothing where it reads.
        cluster.stop();
        cluster.start_again();
        assert!(cluster.connect("demo").read_long(0, data.len()).unwrap() == data);
        std::thread::sleep(std::time::Duration::from_secs(6));
        assert_eq!(counter(&cluster.status(), "crc-errors"), 0, "repairs last");
    });
}

#[test]
fn bits_flipped_while_running_are_repaired_and_counted() {
    limited(120, || {
        let (mut cluster, data) = start_with_data(3);
        let flipped = damage(&cluster, &data, 4);
        read_and_count(&cluster, &data, flipped);
        cluster.kill();
        cluster.start_again();
        assert!(cluster.connect("demo").read_long(0, data.len()).unwrap() == data);
    });
}

#[test]
fn a_stopped_store_is_healthy_and_can_be_dumped() {
    limited(90, || {
        let (mut cluster, _) = start_with_data(5);
        cluster.connect("demo").trim(1 << 20, 1 << 20).unwrap();
        cluster.connect("demo").write(12345, b"not aligned").unwrap();
        cluster.stop();
        for id in 1..=3 {
            let file = cluster.osd_file(id);
            let file = file.to_str().unwrap();
            let check = cluster.blockyard(&["osd", "check", file, "--json"]).json();
            assert_eq!(check["problems"], serde_json::json!([]), "{check}");
            let checked = check["sectors-checked"].as_u64().or(check["sectors_checked"].as_u64());
            assert!(checked.is_some_and(|n| n >= SECTORS as u64 - 256), "{check}");
            let dump = cluster.blockyard(&["osd", "dump", file, "--objects", "--log", "5", "--json"]).json();
            assert_eq!(dump["osd"], id, "{dump}");
            assert!(dump["objects"].as_array().is_some_and(|objects| objects.len() >= 15), "{dump}");
            let text = cluster.blockyard(&["osd", "dump", file]).ok().stdout;
            assert!(text.contains("Checkpoints"), "{text}");
        }
        cluster.blockyard(&["osd", "check", "/dev/null"]).refused(1, &["/dev/null"]);
        cluster.blockyard(&["osd", "check", "/no/such/file"]).refused(4, &["/no/such/file"]);
    });
}
