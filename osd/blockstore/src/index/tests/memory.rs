//! How much memory the index takes, and that objects keep their content while the arena moves it.

use super::*;

const SECTORS: u32 = 256;

struct Random(u64);

impl Random {
    fn below(&mut self, most: u32) -> u32 {
        self.0 = mix(self.0);
        (self.0 >> 32) as u32 % most
    }
}

/// Where each sector of an object lies, and its checksum.
fn sectors_of(index: &Index, n: u32) -> Vec<(u32, u64, u32)> {
    let view = index.object(&object(n)).expect("stored");
    let places = view.extents().flat_map(|e| e.sectors().iter().zip(e.run().start..));
    places.zip(view.crcs()).map(|((sector, at), &crc)| (sector, at, crc)).collect()
}

#[test]
fn an_image_that_breaks_up_takes_little_more_than_its_extents_and_checksums() {
    const OBJECTS: u32 = 1024;
    let mut index = Index::new(16);
    let mut model: Vec<Vec<(u32, u64, u32)>> = Vec::new();
    for n in 0..OBJECTS {
        index.apply(&write(n, 1, SectorRange::new(0, SECTORS), u64::from(n * SECTORS)));
        model.push(sectors_of(&index, n));
    }
    let (mut random, mut worst) = (Random(7), 0.0);
    for i in 0..4 * u64::from(OBJECTS * SECTORS) {
        let (n, sector) = (random.below(OBJECTS), random.below(SECTORS));
        // Every other place of the data area, so that no two join.
        let (version, at) = (2 + i, (1 << 20) + 2 * i);
        index.apply(&write(n, version, SectorRange::new(sector, 1), at));
        model[n as usize][sector as usize] = (sector, at, (version as u32) << 16);
        if i % 8192 == 0 {
            let extents: usize = (0..OBJECTS).filter_map(|n| index.object(&object(n))).map(|v| v.extents).sum();
            let needed = 24 * OBJECTS as usize + 8 * extents + 4 * (OBJECTS * SECTORS) as usize;
            worst = f64::max(worst, index.memory_bytes() as f64 / needed as f64);
        }
    }
    assert!((0..OBJECTS).all(|n| sectors_of(&index, n) == model[n as usize]));
    // Half of what is more are the spare chunks, a megabyte whatever the size of the store.
    assert!(worst < 1.5, "{worst}");
    let needed = u64::from(OBJECTS) * (24 + 12 * u64::from(SECTORS));
    assert!(index.memory_bytes() - index.arena.spare_bytes() < needed * 11 / 10);
}

#[test]
fn objects_that_come_and_go_do_not_add_up() {
    let mut index = Index::new(2);
    (0..2000).for_each(|n| _ = index.apply(&write(n, 1, SectorRange::new(0, 3), u64::from(n) * 4)));
    let (bytes, places) = (index.memory_bytes(), index.places);
    for i in 0..50_000 {
        let n = (i * 7) % 2000;
        index.apply(&Change::brief(Kind::Drop, object(n), Version(1)));
        assert_eq!(index.object(&object(n)).map(|v| v.version), None);
        index.apply(&write(n, 1, SectorRange::new(0, 3), u64::from(n) * 4));
    }
    // Places of removed keys may make a table grow once.
    assert!(index.places <= 2 * places, "{places} places became {}", index.places);
    assert!(index.memory_bytes() <= bytes + places * PLACE_BYTES);
    (0..2000).for_each(|n| assert_eq!(sectors_of(&index, n)[1].1, u64::from(n) * 4 + 1));
    (0..2000).for_each(|n| _ = index.apply(&Change::brief(Kind::Drop, object(n), Version(1))));
    assert_eq!(index.arena.bytes(), index.arena.spare_bytes());
}

#[test]
fn what_is_deleted_gives_its_memory_back() {
    const OBJECTS: u32 = 20_000;
    let mut index = Index::new(2);
    index.set_pool(PoolId(1), 3);
    (0..OBJECTS).for_each(|n| _ = index.apply(&write(n, 1, SectorRange::new(0, 3), u64::from(n) * 4)));
    let full = index.memory_bytes();
    let delete = |n| Change::new(Kind::Delete, object(n), Version(2), Origin::NONE, crate::format::log::WHOLE);
    (0..OBJECTS).for_each(|n| _ = index.apply(&delete(n)));
    for n in (0..OBJECTS).filter(|n| n % 100 != 0) {
        index.apply(&Change::brief(Kind::Collect, object(n), Version(2)));
    }
    let spare = index.arena.spare_bytes();
    assert!(index.memory_bytes() - spare < full / 20, "{full} bytes became {}", index.memory_bytes() - spare);
    assert_eq!(index.objects().count() as u32, OBJECTS / 100);
    let tombstones: usize = (0..3).map(|n| index.tombstones(scope(n, 3)).len()).sum();
    assert_eq!(tombstones as u32, OBJECTS / 100);
    (0..OBJECTS).for_each(|n| _ = index.apply(&write(n, 3, SectorRange::new(0, 3), u64::from(n) * 4)));
    assert_eq!(index.objects().count() as u32, OBJECTS);
}
