//! `blockyard osd dump|check` on sound and damaged stores.

mod support;

use std::io;

use blockstore::Durability;
use blockstore::inspect::{DumpOptions, ReadAt, check, dump};
use cluster_proto::shard::{ShardOp, ShardOutcome};
use support::Rng;
use support::device::{Device, Medium};
use support::driver::{Driver, formatted};
use support::model::{LOST, Model};

struct Reader(Medium);

impl ReadAt for Reader {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out);
        Ok(())
    }
}

fn sample() -> (Device, Model) {
    let (mut rng, mut model, mut counter) = (Rng(3), Model::default(), 0);
    let mut d = Driver::open(formatted(3 << 20, 128 << 10, Durability::WriteThrough, 0xab), 1);
    for _ in 0..150 {
        let op = model.random_op(&mut rng, 8, 30, &mut counter);
        if d.call(op.clone()) == ShardOutcome::Done {
            model.apply(&op);
        }
    }
    let staged: Vec<_> = model.objects.iter().filter(|(_, own)| own.staged.is_some()).collect();
    let commits = staged.iter().map(|(object, own)| ShardOp::Commit { object: **object, version: own.version });
    // So that nothing is kept for a rollback.
    for commit in commits.collect::<Vec<_>>() {
        assert_eq!(d.call(commit.clone()), ShardOutcome::Done);
        model.apply(&commit);
    }
    (d.device.after_kill(), model)
}

#[test]
fn a_dump_shows_what_is_stored_and_writes_nothing() {
    let (device, model) = sample();
    let options = DumpOptions { objects: true, log_entries: 5 };
    let dump = dump(&Reader(device.medium.clone()), device.bytes, options).expect("sound");
    assert_eq!(dump.objects.len(), model.objects.len());
    assert_eq!((dump.log.entries.len(), dump.log.last_lsn), (5, dump.log.entries[4].lsn));
    assert_eq!((dump.store.as_str(), dump.osd), ("ab".repeat(16).as_str(), 1));
    assert!(dump.checkpoints.iter().any(|c| c.serial > 0));
    for (shown, (id, own)) in dump.objects.iter().zip(&model.objects) {
        assert_eq!((&shown.object, shown.deleted), (&id.to_string(), own.deleted));
        let held: u32 = shown.extents.iter().map(|e| e.1).sum();
        assert_eq!(held as usize, own.sectors.len());
    }
    let text = serde_json::to_string(&dump).expect("serialisable");
    assert!(text.contains("\"replay-seq\""));
}

#[test]
fn a_check_finds_damage_in_data_and_in_structures() {
    let (device, model) = sample();
    let sectors: usize = model.objects.values().map(|o| o.sectors.len()).sum();
    let sound = check(&Reader(device.medium.clone()), device.bytes, true, &mut |_, _| {});
    assert_eq!((sound.problems.len(), sound.sectors_checked), (0, sectors as u64));
    let lost = model.objects.values().flat_map(|o| o.sectors.values()).filter(|word| **word & LOST != 0).count();
    assert_eq!((sound.sectors_unreadable, lost > 0), (lost as u64, true));
    let dump = dump(&Reader(device.medium.clone()), device.bytes, DumpOptions { objects: true, log_entries: 0 });
    let dump = dump.expect("sound");
    let sector = dump.objects.iter().flat_map(|o| &o.extents).next().expect("data").2;
    let mut rotten = device.clone();
    rotten.medium.flip(dump.geometry.data_offset + sector * 4096);
    let report = check(&Reader(rotten.medium), device.bytes, true, &mut |_, _| {});
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    let mut broken = device.clone();
    for pair in 0..dump.geometry.slot_pairs() {
        broken.medium.flip(dump.geometry.slot_offset(pair, 0) + 50);
        broken.medium.flip(dump.geometry.slot_offset(pair, 1) + 50);
    }
    let report = check(&Reader(broken.medium), device.bytes, true, &mut |_, _| {});
    assert!(report.problems[0].contains("checkpoint 0 is damaged"), "{:?}", report.problems);
}
