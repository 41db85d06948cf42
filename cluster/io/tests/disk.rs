//! Disks (files in the temporary folder, `O_DIRECT` where it works), the waker and the clock.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use cluster_io::buffer::{Buffer, BufferMut};
use cluster_io::{DiskId, DiskInfo, DiskOptions, ErrorKind, Event, Reactor, ReactorConfig};
use smallvec::{SmallVec, smallvec};

fn reactor() -> Reactor {
    Reactor::new(ReactorConfig::default()).expect("a reactor")
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn next(r: &mut Reactor) -> Event {
    let end = far();
    loop {
        if let Some(event) = r.next_event() {
            return event;
        }
        assert!(Instant::now() < end, "nothing happened");
        r.turn(Some(end)).unwrap();
    }
}

fn done(r: &mut Reactor, expected: u64) {
    match next(r) {
        Event::DiskDone { token, result, .. } => {
            assert_eq!(token, expected);
            result.unwrap();
        }
        other => panic!("{other:?}"),
    }
}

fn read(r: &mut Reactor, disk: DiskId, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    r.disk_read(disk, 77, offset, BufferMut::zeroed(len));
    match next(r) {
        Event::DiskRead { token: 77, result, .. } => result.map(|b| b.to_vec()),
        other => panic!("{other:?}"),
    }
}

/// A folder on a disk, or wherever temporary files go, and one in memory, where transfers are done at once.
fn folders() -> Vec<tempfile::TempDir> {
    let memory = tempfile::tempdir_in("/dev/shm").expect("every Linux has it");
    vec![tempfile::tempdir().unwrap(), memory]
}

fn create(r: &mut Reactor, path: &Path, bytes: u64) -> (DiskId, DiskInfo) {
    r.open_disk(path, DiskOptions { create_bytes: Some(bytes), direct: true, exclusive: true }).unwrap()
}

#[test]
fn writes_read_back_and_discards_leave_zeroes() {
    for folder in folders() {
        let path = folder.path().join("disk");
        let mut r = reactor();
        let (disk, info) = create(&mut r, &path, 16 << 20);
        assert_eq!((info.bytes, info.is_block_device), (16 << 20, false));
        assert_eq!(read(&mut r, disk, 1 << 20, 8192).unwrap(), [0; 8192]);
        let pieces: SmallVec<[Buffer; 4]> = (1..=6u8).map(|i| Buffer::copy_of(&[i; 4096])).collect();
        r.disk_write(disk, 1, 4096, pieces);
        done(&mut r, 1);
        r.disk_flush(disk, 2);
        done(&mut r, 2);
        let got = read(&mut r, disk, 0, 8 * 4096).unwrap();
        assert!(got.chunks(4096).map(|c| c[0]).eq([0, 1, 2, 3, 4, 5, 6, 0]));
        assert!(got.chunks(4096).all(|c| c.iter().all(|b| *b == c[0])));
        assert_eq!(std::fs::read(&path).unwrap()[..8 * 4096], got[..]);
        r.disk_discard(disk, 3, 8192, 8192);
        done(&mut r, 3);
        let got = read(&mut r, disk, 0, 8 * 4096).unwrap();
        let firsts: Vec<u8> = got.chunks(4096).map(|c| c[0]).collect();
        assert!(firsts == [0, 1, 0, 0, 4, 5, 6, 0] || firsts == [0, 1, 2, 3, 4, 5, 6, 0], "{firsts:?}");
        r.disk_discard(disk, 4, 0, 0);
        done(&mut r, 4);
        r.disk_write(disk, 5, 0, smallvec![]);
        done(&mut r, 5);
        let past = read(&mut r, disk, 16 << 20, 4096).unwrap_err();
        assert_eq!(past.kind(), std::io::ErrorKind::UnexpectedEof);
        let part = read(&mut r, disk, (16 << 20) - 4096, 8192).unwrap_err();
        assert_eq!(part.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn hundreds_of_operations_are_in_flight_at_once() {
    for folder in folders() {
        let mut r = reactor();
        let (disk, _) = create(&mut r, &folder.path().join("disk"), 64 << 20);
        let count = 1_000u64;
        for i in 0..count {
            let data = Buffer::copy_of(&[i as u8; 4096]);
            r.disk_write(disk, i, i * 8192, smallvec![data.clone(), data]);
        }
        let mut seen = vec![false; count as usize];
        for _ in 0..count {
            let Event::DiskDone { token, result, .. } = next(&mut r) else { panic!() };
            result.unwrap();
            assert!(!std::mem::replace(&mut seen[token as usize], true), "{token} ended twice");
        }
        (0..count).for_each(|i| r.disk_read(disk, i, i * 8192, BufferMut::for_overwrite(8192)));
        for _ in 0..count {
            let Event::DiskRead { token, result, .. } = next(&mut r) else { panic!() };
            assert!(result.unwrap().iter().all(|b| *b == token as u8));
        }
    }
}

#[test]
fn one_write_may_have_more_pieces_than_the_kernel_takes() {
    for folder in folders() {
        let mut r = reactor();
        let (disk, _) = create(&mut r, &folder.path().join("disk"), 16 << 20);
        let pieces: SmallVec<[Buffer; 4]> = (0..2_500u32).map(|i| Buffer::copy_of(&[(i % 251) as u8; 4096])).collect();
        r.disk_write(disk, 1, 0, pieces);
        done(&mut r, 1);
        let got = read(&mut r, disk, 0, 2_500 * 4096).unwrap();
        assert!(got.chunks(4096).enumerate().all(|(i, c)| c.iter().all(|b| *b == (i % 251) as u8)));
    }
}

#[test]
fn a_store_is_opened_by_one_process_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let (mut a, mut b) = (reactor(), reactor());
    let (disk, _) = create(&mut a, &path, 1 << 20);
    let options = DiskOptions { exclusive: true, ..Default::default() };
    let error = b.open_disk(&path, options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.to_string().contains("another process"), "{error}");
    b.open_disk(&path, DiskOptions::default()).expect("looking is allowed");
    a.close_disk(disk);
    let (_, info) = b.open_disk(&path, options).expect("free again");
    assert_eq!(info.bytes, 1 << 20);
}

#[test]
fn opening_creates_and_extends_but_never_shrinks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let mut r = reactor();
    let missing = r.open_disk(&path, DiskOptions::default()).unwrap_err();
    assert_eq!(missing.io().unwrap().kind(), std::io::ErrorKind::NotFound);
    assert!(missing.to_string().contains("cannot open"), "{missing}");
    for (ask, bytes) in [(8192, 8192), (1 << 20, 1 << 20), (4096, 1 << 20)] {
        let (disk, info) = create(&mut r, &path, ask);
        assert_eq!(info.bytes, bytes);
        r.close_disk(disk);
    }
    let error = r.open_disk(folder.path(), DiskOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsuitable);
    let error = r.open_disk(Path::new("/dev/null"), DiskOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsuitable);
}

#[test]
fn operations_of_a_closed_disk_end_silently() {
    for folder in folders() {
        let path = folder.path().join("disk");
        let mut r = reactor();
        let (disk, _) = create(&mut r, &path, 1 << 20);
        r.disk_write(disk, 1, 0, smallvec![Buffer::copy_of(&[9; 4096])]);
        r.close_disk(disk);
        let options = DiskOptions { exclusive: true, ..Default::default() };
        while r.open_disk(&path, options).is_err() {
            r.turn(Some(far())).unwrap();
            assert!(r.next_event().is_none());
        }
        assert_eq!(std::fs::read(&path).unwrap()[..4096], [9; 4096]);
    }
}

#[test]
fn dropping_waits_for_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut r = reactor();
    let (disk, _) = create(&mut r, &folder.path().join("disk"), 64 << 20);
    let data = Buffer::copy_of(&vec![3; 1 << 20]);
    for i in 0..64 {
        r.disk_write(disk, i, i << 20, smallvec![data.clone()]);
        r.disk_read(disk, i, i << 20, BufferMut::for_overwrite(1 << 20));
    }
    r.disk_flush(disk, 64);
    r.turn(Some(Instant::now())).unwrap();
    drop(r);
    data.try_into_mut().expect("nothing refers to the buffer any more");
}

#[test]
fn every_wake_is_seen_and_those_in_between_share_an_event() {
    let mut r = reactor();
    let waker = r.waker();
    (0..100).for_each(|_| waker.wake());
    assert!(matches!(next(&mut r), Event::Woken));
    r.turn(Some(Instant::now())).unwrap();
    assert!(r.next_event().is_none(), "100 calls, one event");
    let (tx, rx) = std::sync::mpsc::channel();
    let senders: Vec<_> = (0..4)
        .map(|_| {
            let (tx, waker) = (tx.clone(), waker.clone());
            std::thread::spawn(move || {
                for i in 0..5_000u32 {
                    tx.send(i).unwrap();
                    waker.wake();
                }
            })
        })
        .collect();
    let mut sums: HashMap<u32, u32> = HashMap::new();
    let mut count = 0;
    while count < 20_000 {
        assert!(matches!(next(&mut r), Event::Woken));
        while let Ok(i) = rx.try_recv() {
            *sums.entry(i).or_default() += 1;
            count += 1;
        }
    }
    senders.into_iter().for_each(|s| s.join().unwrap());
    assert!(sums.values().all(|n| *n == 4));
    drop(r);
    waker.wake();
}

#[test]
fn a_turn_ends_at_its_deadline() {
    let mut r = reactor();
    let start = Instant::now();
    let until = start + Duration::from_millis(30);
    while r.now() < until {
        r.turn(Some(until)).unwrap();
        assert!(r.next_event().is_none());
    }
    assert!(r.counters().turns <= 5, "it waited, it did not spin: {:?}", r.counters());
    r.turn(Some(start)).unwrap();
    assert!(r.now_ns() > 0);
}

#[test]
fn wrong_sizes_are_refused() {
    for config in [
        ReactorConfig { ring_entries: 0, ..Default::default() },
        ReactorConfig { receive_buffers: 3, ..Default::default() },
        ReactorConfig { receive_buffer_bytes: 0, ..Default::default() },
    ] {
        assert!(Reactor::new(config).is_err());
    }
}

/// `CLUSTER_IO_TEST_DEVICE=/dev/loop0 cargo test -p cluster-io --test disk -- --ignored` overwrites that device.
#[test]
#[ignore = "needs a scratch block device in CLUSTER_IO_TEST_DEVICE"]
fn a_block_device_writes_flushes_and_discards() {
    let path = std::env::var("CLUSTER_IO_TEST_DEVICE").expect("CLUSTER_IO_TEST_DEVICE");
    let mut r = reactor();
    let options = DiskOptions { create_bytes: Some(1 << 40), direct: true, exclusive: true };
    let (disk, info) = r.open_disk(Path::new(&path), options).unwrap();
    println!("{info:?}");
    assert!(info.is_block_device && info.direct && info.bytes > 0 && info.bytes < 1 << 40);
    assert!(info.logical_block.is_power_of_two() && info.logical_block >= 512);
    r.disk_write(disk, 1, 4096, smallvec![Buffer::copy_of(&[7; 8192]), Buffer::copy_of(&[8; 4096])]);
    done(&mut r, 1);
    r.disk_flush(disk, 2);
    done(&mut r, 2);
    r.disk_discard(disk, 3, 4096, 4096);
    done(&mut r, 3);
    let got = read(&mut r, disk, 4096, 12_288).unwrap();
    println!("first byte after the discard: {}", got[0]);
    assert!(got[4096..8192].iter().all(|b| *b == 7) && got[8192..].iter().all(|b| *b == 8));
    let past = read(&mut r, disk, info.bytes, 4096).unwrap_err();
    assert_eq!(past.kind(), std::io::ErrorKind::UnexpectedEof);
    let error = reactor().open_disk(Path::new(&path), options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
}
