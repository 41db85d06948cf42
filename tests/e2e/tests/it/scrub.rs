//! Scrubs of a running cluster: what rotted is found, repaired and counted, and what was done is remembered.

use std::fs::File;
use std::time::Duration;

use e2e::{Fleet, FleetOptions, Nbd, Random, eventually, have, limited, sample};
use serde_json::{Value, json};

use crate::daemons::metrics;
use crate::damage::{SECTOR, flip, places};

/// Data in the image. Sectors.
const SECTORS: usize = 2048;
const PGS: usize = 4;

fn start(redundancy: &[&str], seed: u64) -> (Fleet, Vec<u8>) {
    start_with(3, redundancy, seed)
}

fn start_with(osds: u32, redundancy: &[&str], seed: u64) -> (Fleet, Vec<u8>) {
    let fleet = Fleet::start(FleetOptions { osds, osd_size: "256M".into(), ..FleetOptions::default() });
    let count = PGS.to_string();
    fleet.blockyard(&[&["pool", "create", "default", "--pg-count", &count], redundancy].concat()).ok();
    fleet.blockyard(&["image", "create", "demo", "--size", "64M"]).ok();
    fleet.wait_active(30);
    let nbd = fleet.nbd();
    let mut demo = eventually(20, "demo is exported", || Nbd::connect(nbd, "demo").ok());
    let data = Random::new(seed).bytes(SECTORS * SECTOR);
    demo.write_long(0, &data).unwrap();
    demo.flush().unwrap();
    (fleet, data)
}

fn pgs(fleet: &Fleet) -> Vec<String> {
    let list = fleet.blockyard(&["pg", "ls", "--json"]).json();
    let list = list.as_array().expect("a list");
    assert!(list.len() == PGS && list.iter().all(|pg| pg["state"] == "active"), "{list:?}");
    list.iter().map(|pg| pg["pg"].as_str().expect("a name").to_owned()).collect()
}

fn describe(fleet: &Fleet, pg: &str) -> Value {
    fleet.blockyard(&["pg", "describe", pg, "--json"]).json()
}

/// Asks for this of all PGs, and waits for what was found. Returns errors, and those that were not repaired.
fn scrub_all(fleet: &Fleet, words: &[&str]) -> (u64, u64) {
    let asked: Vec<(String, Value)> = pgs(fleet)
        .into_iter()
        .map(|pg| {
            let asked = fleet.blockyard(&[&["pg", words[0], &pg], &words[1..], &["--json"]].concat()).json();
            (pg, asked["requested"].clone())
        })
        .collect();
    asked.iter().fold((0, 0), |(errors, unrepaired), (pg, requested)| {
        let done = eventually(60, "the scrub ends and is recorded", || {
            let description = describe(fleet, pg);
            assert_eq!(&description["scrub-request"]["requested"], requested);
            (description["scrubbed"]["served"] == *requested).then(|| description["scrubbed"].clone())
        });
        let count = |name: &str| done[name].as_u64().unwrap_or_else(|| panic!("no {name} in {done}"));
        (errors + count("errors"), unrepaired + count("unrepaired"))
    })
}

/// Flips a bit of the chosen sectors on this OSD, where it has them.
fn damage(fleet: &Fleet, osd: u32, data: &[u8], random: &mut Random, is_chosen: impl Fn(usize) -> bool) -> u64 {
    let path = fleet.osd_file(osd);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut flipped = 0;
    for (_, at) in places(&path, data).iter().enumerate().filter(|(i, at)| is_chosen(*i) && !at.is_empty()) {
        flip(&file, at, random);
        flipped += 1;
    }
    file.sync_all().unwrap();
    flipped
}

/// Repairs what is damaged, and makes sure that all of it was found and is gone.
fn repair(fleet: &Fleet, data: &[u8], flipped: u64) {
    let counter = |name: &str| fleet.status()["counters"][name].as_u64().unwrap_or_default();
    assert_eq!(counter("crc-errors"), 0, "nobody has noticed yet");
    assert_eq!(scrub_all(fleet, &["scrub"]), (0, 0), "a light scrub compares what the members say they have");
    assert_eq!(scrub_all(fleet, &["repair"]), (flipped, 0), "each damaged sector is found and repaired");
    eventually(15, "repairs are counted", || (counter("repaired-sectors") == flipped).then_some(()));
    assert_eq!(scrub_all(fleet, &["scrub", "--deep"]), (0, 0), "nothing is left");
    assert!(fleet.connect("demo").read_long(0, data.len()).unwrap() == data);
    let text = fleet.blockyard(&["pg", "describe", &pgs(fleet)[0]]).ok().stdout;
    assert!(text.contains("0 errors found, 0 not repaired"), "{text}");
}

#[test]
fn damage_in_every_copy_but_one_is_repaired_and_scrubs_are_remembered() {
    limited(200, || {
        if !have(&["etcd"]) {
            return;
        }
        let (mut fleet, data) = start(&["--replicas", "3"], 1);
        let mut random = Random::new(2);
        // Of every twentieth sector one copy is left, each time on another OSD.
        let spoilt = |osd: u32| move |i: usize| i % 20 == 7 && (i / 20) as u32 % 3 + 1 != osd;
        let flipped = (1..=3).map(|osd| damage(&fleet, osd, &data, &mut random, spoilt(osd))).sum();
        assert_eq!(flipped, 2 * (0..SECTORS).filter(|i| i % 20 == 7).count() as u64);
        repair(&fleet, &data, flipped);

        let before: Vec<Value> = pgs(&fleet).iter().map(|pg| describe(&fleet, pg)["scrubbed"].clone()).collect();
        assert!(before.iter().all(|done| done["deep"].as_u64() > Some(1_500_000_000)), "{before:?}");
        for id in 1..=3 {
            fleet.stop(&format!("osd.{id}"));
        }
        let ready: Vec<Value> = (1..=3).map(|id| fleet.start_osd(id)).collect();
        fleet.wait_active(30);
        std::thread::sleep(Duration::from_secs(4));
        let after: Vec<Value> = pgs(&fleet).iter().map(|pg| describe(&fleet, pg)["scrubbed"].clone()).collect();
        assert_eq!(before, after, "what was scrubbed is known after a restart");
        for (ready, id) in ready.iter().zip(1..) {
            let name = format!("blockyard_osd_process_scrubbed_objects_total{{osd=\"{id}\"}}");
            assert_eq!(sample(&metrics(ready), &name), Some(0.0), "and is not scrubbed again");
        }
        assert_eq!(fleet.status()["counters"]["crc-errors"], json!(0), "repairs last");
    });
}

#[test]
fn damage_of_every_copy_is_told_until_it_is_written_anew() {
    limited(150, || {
        if !have(&["etcd"]) {
            return;
        }
        let (mut fleet, data) = start(&["--replicas", "2"], 5);
        let told = |fleet: &Fleet| {
            let status = fleet.status();
            let problems = status["problems"].as_array().expect("a list");
            let told = problems.iter().any(|problem| problem["code"] == "scrub-unrepaired");
            assert!(!told || status["verdict"] == "error", "{status}");
            told
        };
        let mut random = Random::new(6);
        let flipped: u64 = (1..=3).map(|osd| damage(&fleet, osd, &data, &mut random, |i| i == 7)).sum();
        assert_eq!((flipped, told(&fleet)), (2, false));
        assert_eq!(scrub_all(&fleet, &["repair"]), (2, 2), "no copy is left");
        assert!(told(&fleet));
        fleet.stop("mon.1");
        let monitor = fleet.start_monitor(1);
        eventually(20, "the monitor tells, too", || {
            (sample(&metrics(&monitor), "blockyard_problems{code=\"scrub-unrepaired\"}") == Some(1.0)).then_some(())
        });
        let mut demo = fleet.connect("demo");
        demo.read(7 * SECTOR as u64, SECTOR).expect_err("nothing is made up");
        demo.write(7 * SECTOR as u64, &data[7 * SECTOR..8 * SECTOR]).unwrap();
        assert_eq!(scrub_all(&fleet, &["repair"]), (0, 0));
        assert!(!told(&fleet) && demo.read_long(0, data.len()).unwrap() == data);
    });
}

#[test]
fn damage_in_one_shard_is_repaired() {
    limited(150, || {
        if !have(&["etcd"]) {
            return;
        }
        let (fleet, data) = start(&["--ec", "2+1"], 3);
        let mut random = Random::new(4);
        // One sector of every fourth row of stripes, in whichever shard it is.
        let flipped = (1..=3).map(|osd| damage(&fleet, osd, &data, &mut random, |i| i % 32 == 5)).sum();
        assert_eq!(flipped, (SECTORS / 32) as u64, "each sector of data is in one shard");
        repair(&fleet, &data, flipped);
    });
}

/// An OSD is lost, and a sector of another cannot be read: the rest gets its redundancy back.
fn a_lost_sector_costs_no_more_than_itself(redundancy: &[&str], lost: usize) {
    const PER_OBJECT: usize = 256;
    let (mut fleet, data) = start_with(4, redundancy, 8);
    let found: Vec<_> = (1..=4).map(|osd| places(&fleet.osd_file(osd), &data)).collect();
    fleet.kill("osd.1");
    fleet.wait_status(30, "it is missed", |status| status["osds"]["up"] == 3);
    // One that is elsewhere, of an object of which the lost OSD had some.
    let had = |sector: usize| !found[0][sector].is_empty();
    let has_object = |sector: &usize| (sector / PER_OBJECT * PER_OBJECT..).take(PER_OBJECT).any(had);
    let elsewhere = |sector: &usize| found[1..].iter().any(|places| !places[*sector].is_empty());
    let bad = (0..SECTORS).filter(has_object).find(elsewhere).expect("it had data");
    let mut random = Random::new(9);
    let damaged: u64 = (2..=4).map(|osd| damage(&fleet, osd, &data, &mut random, |sector| sector == bad)).sum();
    assert_eq!(damaged, 1, "of copies and shards alike one is left of each sector");
    let read = |demo: &mut Nbd, sector: usize| demo.read((sector * SECTOR) as u64, SECTOR);
    let mut reader = fleet.connect("demo");
    reader.set_patience(Some(Duration::from_secs(6))).unwrap();
    let waits = read(&mut reader, bad).expect_err("the lost OSD might come back with it");
    assert_eq!(waits.kind(), std::io::ErrorKind::WouldBlock, "{waits}");

    fleet.blockyard(&["osd", "rm", "1", "--force"]).ok();
    fleet.wait_active(120);
    let is_told = |problem: &Value| problem["code"] == "sectors-lost";
    fleet.wait_status(15, "it is told", |status| {
        let told = status["problems"].as_array().is_some_and(|problems| problems.iter().any(is_told));
        told && status["counters"]["lost-sectors"] == 1
    });
    let mut demo = fleet.connect("demo");
    demo.set_patience(Some(Duration::from_secs(20))).unwrap();
    let of_sector = |sector: usize| &data[sector * SECTOR..(sector + 1) * SECTOR];
    let failed: Vec<usize> = (0..SECTORS)
        .filter(|sector| match read(&mut demo, *sector) {
            Ok(found) => found != of_sector(*sector),
            Err(error) => error.raw_os_error() == Some(5),
        })
        .collect();
    assert!(failed.contains(&bad) && failed.len() == lost, "{failed:?}, {bad} was damaged");
    let unrepaired = scrub_all(&fleet, &["scrub", "--deep"]).1;
    assert!(unrepaired > 0, "a scrub tells, too");
    // What is written is there again.
    let object = bad / PER_OBJECT * PER_OBJECT;
    demo.write_long((object * SECTOR) as u64, &data[object * SECTOR..(object + PER_OBJECT) * SECTOR]).unwrap();
    assert_eq!(scrub_all(&fleet, &["scrub", "--deep"]), (0, 0));
    assert!(demo.read_long(0, data.len()).unwrap() == data);
}

#[test]
fn a_lost_sector_of_copies_costs_no_more_than_itself() {
    limited(200, || {
        if have(&["etcd"]) {
            a_lost_sector_costs_no_more_than_itself(&["--replicas", "2"], 1);
        }
    });
}

#[test]
fn a_lost_sector_of_shards_costs_no_more_than_its_row() {
    limited(200, || {
        if have(&["etcd"]) {
            a_lost_sector_costs_no_more_than_itself(&["--ec", "2+1"], 2);
        }
    });
}
