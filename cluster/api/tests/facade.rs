//! The public client against real OSDs.

mod support;

use std::sync::{Arc, Mutex};

use blockyard_client::{Buffer, Client, ErrorKind, Image};
use cluster_proto::map::keys;
use cluster_state::StateStore;
use support::{BLOCK, Cluster};

const SIZE: u64 = 64 << 20;

fn open(cluster: &Cluster, client: &Client, name: &str) -> Image {
    cluster.run(client.open("default", name)).expect("it exists")
}

fn pattern(seed: u64, len: usize) -> Buffer {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    Buffer::copy_of(&std::iter::repeat_with(next).take(len).collect::<Vec<_>>())
}

#[test]
fn images_are_written_read_cleared_and_described() {
    let cluster = Cluster::start(3);
    cluster.create_image("disk", SIZE);
    let client = cluster.client();
    let image = open(&cluster, &client, "disk");
    assert_eq!((image.size(), image.block_size(), image.is_removed()), (SIZE, BLOCK as u32, false));
    cluster.run(async {
        assert_eq!(&image.read_at(5, 100).await.unwrap()[..], &[0; 100]);
        let data = pattern(1, 3 << 20);
        image.write_at(BLOCK - 777, data.clone()).await.unwrap();
        assert_eq!(image.read_at(BLOCK - 777, data.len()).await.unwrap(), data);
        assert_eq!(image.read_pieces_at(BLOCK - 777, data.len()).await.unwrap().len(), 4);
        image.flush().await.unwrap();
        image.discard(2 * BLOCK, BLOCK).await.unwrap();
        assert_eq!(image.read_at(2 * BLOCK, BLOCK as usize).await.unwrap(), Buffer::zeroed(BLOCK as usize));
        image.write_zeroes(BLOCK, 4096, true).await.unwrap();
        let extents = image.allocation(0, SIZE).await.unwrap();
        let show: Vec<_> = extents.iter().map(|e| (e.len, e.data)).collect();
        let first = BLOCK - 4096;
        let last = BLOCK;
        let hole = SIZE - 4 * BLOCK;
        assert_eq!(show, [(first, false), (4096 + BLOCK, true), (BLOCK, false), (last, true), (hole, false)]);
        image.delete_objects(0..64).await.unwrap();
        assert_eq!(image.allocation(0, SIZE).await.unwrap().len(), 1);
    });
}

#[test]
fn errors_say_what_is_wrong() {
    let cluster = Cluster::start(1);
    cluster.create_image("disk", SIZE);
    let client = cluster.client();
    let image = open(&cluster, &client, "disk");
    cluster.run(async {
        let kind = |result: Result<(), blockyard_client::Error>| result.map_err(|e| e.kind());
        let small = Buffer::copy_of(b"abc");
        assert_eq!(kind(image.write_at(SIZE - 2, small.clone()).await), Err(ErrorKind::Invalid));
        assert_eq!(kind(image.write_at(u64::MAX, small.clone()).await), Err(ErrorKind::Invalid));
        assert_eq!(kind(image.read_at(0, 65 << 20).await.map(drop)), Err(ErrorKind::Invalid));
        image.compare_and_write(100, Buffer::zeroed(3), small.clone()).await.unwrap();
        let again = image.compare_and_write(100, Buffer::zeroed(3), small.clone()).await;
        assert_eq!(kind(again), Err(ErrorKind::Mismatch));
        assert_eq!(&image.read_at(99, 5).await.unwrap()[..], b"\0abc\0");
        assert_eq!(kind(client.open("default", "nothing").await.map(drop)), Err(ErrorKind::NotFound));
        assert_eq!(kind(client.open("nowhere", "disk").await.map(drop)), Err(ErrorKind::NotFound));
        assert_eq!(kind(client.create_image("default", "disk", 512).await.map(drop)), Err(ErrorKind::AlreadyExists));
        assert_eq!(kind(client.create_image("default", "odd", 513).await.map(drop)), Err(ErrorKind::Invalid));
    });
    let empty = cluster_state::EmbeddedStore::in_memory();
    let nothing = cluster.run(Client::connect(Arc::new(empty))).map(drop).map_err(|e| e.kind());
    assert_eq!(nothing, Err(ErrorKind::NotFound));
}

#[test]
fn many_operations_run_at_once_and_dropped_ones_do_no_harm() {
    let cluster = Cluster::start(2);
    cluster.create_image("disk", SIZE);
    let client = cluster.client();
    let image = open(&cluster, &client, "disk");
    cluster.run(async {
        let write = |i: u64| {
            let image = image.clone();
            tokio::spawn(async move { image.write_at(i * 10_000, pattern(i, 10_000)).await })
        };
        let tasks: Vec<_> = (0..500).map(write).collect();
        // Every third is given up at some moment.
        for task in tasks.iter().step_by(3) {
            task.abort();
        }
        for task in tasks.into_iter().enumerate().filter(|(i, _)| i % 3 != 0).map(|(_, task)| task) {
            task.await.unwrap().unwrap();
        }
        for i in (0..500).filter(|i| i % 3 != 0) {
            assert_eq!(image.read_at(i * 10_000, 10_000).await.unwrap(), pattern(i, 10_000), "{i}");
        }
    });
}

#[test]
fn sizes_and_removal_are_noticed_and_shrinking_leaves_nothing_behind() {
    let cluster = Cluster::start(2);
    cluster.create_image("disk", SIZE);
    cluster.create_image("disk2", SIZE);
    let client = cluster.client();
    let image = open(&cluster, &client, "disk");
    let other = cluster.client();
    cluster.run(async {
        let mut changes = image.resized();
        image.write_at(0, pattern(7, 8 << 20)).await.unwrap();
        let told = Mutex::new(Vec::new());
        let progress = |done, total| told.lock().unwrap().push((done, total));
        other.resize_image("default", "disk", 3 * BLOCK + 512, progress).await.unwrap();
        assert_eq!(told.into_inner().unwrap().last(), Some(&(60, 60)));
        changes.wait_for(|state| state.size == 3 * BLOCK + 512).await.unwrap();
        assert!(image.read_at(3 * BLOCK, 513).await.is_err());
        let grown = other.resize_image("default", "disk", 2 * SIZE, |_, _| {}).await.unwrap();
        assert_eq!((grown.meta.size, grown.meta.shrinking_from), (2 * SIZE, None));
        changes.wait_for(|state| state.size == 2 * SIZE).await.unwrap();
        let kept = 3 * BLOCK as usize + 512;
        assert_eq!(image.read_at(0, kept).await.unwrap(), pattern(7, 8 << 20).slice(..kept));
        assert_eq!(image.read_at(kept as u64, 6 << 20).await.unwrap(), Buffer::zeroed(6 << 20));

        other.remove_image("default", "disk", |_, _| {}).await.unwrap();
        changes.wait_for(|state| state.removed).await.unwrap();
        let error = image.write_at(0, pattern(1, 512)).await.unwrap_err();
        assert_eq!((error.kind(), image.is_removed()), (ErrorKind::Removed, true));
        let left: Vec<_> =
            cluster.state.range(keys::LAYERS).await.unwrap().entries.into_iter().map(|e| e.key).collect();
        assert_eq!(left.len(), 1, "{left:?}");
        let images = blockyard_client::metadata::images(&cluster.state).await.unwrap();
        assert_eq!(images.iter().map(|image| image.path()).collect::<Vec<_>>(), ["default/disk2"]);
    });
}

#[test]
fn a_cluster_that_stops_pauses_operations_and_the_state_store_is_not_needed() {
    let mut cluster = Cluster::start(2);
    cluster.create_image("disk", SIZE);
    let client = cluster.client();
    let image = open(&cluster, &client, "disk");
    cluster.run(image.write_at(0, pattern(1, 4096))).unwrap();
    // Two copies, of which two are the minimum: nothing is written meanwhile.
    cluster.stop_osd(2);
    let writer = image.clone();
    let waiting = cluster.runtime.spawn(async move { writer.write_at(0, pattern(2, 9000)).await });
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert!(!waiting.is_finished(), "it waits");
    cluster.start_osd(2);
    cluster.run(waiting).unwrap().unwrap();
    assert_eq!(cluster.run(image.read_at(0, 9000)).unwrap(), pattern(2, 9000));
    cluster.run(cluster.state.close());
    for i in 0..100 {
        cluster.run(image.write_at(i * 8192, pattern(i, 8192))).unwrap();
    }
    assert_eq!(cluster.run(image.read_at(50 * 8192, 8192)).unwrap(), pattern(50, 8192));
    drop((image, client));
}
