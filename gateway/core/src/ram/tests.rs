use proptest::prelude::*;

use super::*;
use crate::session::Exports;
use crate::volume::Extent;

const MIB: u64 = 1 << 20;

fn disk() -> RamVolume {
    RamVolume::with_size("disk", MIB)
}

fn run(volume: &mut RamVolume, op: VolumeOp) -> VolumeReply {
    volume.submit(1, op);
    volume.poll_reply().expect("delivery is in order").1
}

fn write(volume: &mut RamVolume, offset: u64, bytes: &[u8]) -> VolumeReply {
    run(volume, VolumeOp::Write { offset, data: Buffer::copy_of(bytes), fua: false })
}

#[test]
fn pieces_of_a_read_add_up() {
    let mut volume = disk();
    write(&mut volume, 4090, b"hello world");
    volume.set_read_piece(4);
    let VolumeReply::Data(pieces) = run(&mut volume, VolumeOp::Read { offset: 4089, len: 13 }) else { panic!("data") };
    assert_eq!(pieces.iter().map(|p| p.len()).collect::<Vec<_>>(), [4, 4, 4, 1]);
    assert_eq!(pieces.iter().flat_map(|p| p.to_vec()).collect::<Vec<_>>(), b"\0hello world\0");
}

#[test]
fn allocation_follows_writes_discards_and_zeroes() {
    let mut volume = disk();
    write(&mut volume, 8192, &[1; 8192]);
    run(&mut volume, VolumeOp::Discard { offset: 8193, len: 8191 });
    run(&mut volume, VolumeOp::WriteZeroes { offset: 65536, len: 4096, may_unmap: false, fua: false });
    let reply = run(&mut volume, VolumeOp::BlockStatus { offset: 100, len: MIB - 100 });
    let expect = [(8092, false), (4096, true), (53248, false), (4096, true), (MIB - 69632, false)];
    assert_eq!(reply, VolumeReply::Extents(expect.map(|(len, data)| Extent { len, data }).to_vec()));
    assert_eq!(volume.peek(8192, 2), [1, 1], "part of a block is not discarded");
}

#[test]
fn compare_and_write_needs_equal_content() {
    let mut volume = disk();
    let caw = |compare: &[u8], data: &[u8]| VolumeOp::CompareAndWrite {
        offset: 10,
        compare: Buffer::copy_of(compare),
        data: Buffer::copy_of(data),
    };
    assert_eq!(run(&mut volume, caw(&[0; 3], b"abc")), VolumeReply::Done);
    assert_eq!(run(&mut volume, caw(&[0; 3], b"xyz")), VolumeReply::Failed(Status::Mismatch));
    assert_eq!(run(&mut volume, caw(b"abc", b"xy")), VolumeReply::Failed(Status::Invalid));
    assert_eq!(volume.peek(10, 3), b"abc");
}

#[test]
fn failures_are_injected_and_have_no_effect() {
    let mut volume = disk();
    volume.fail_next(Status::Medium);
    assert_eq!(write(&mut volume, 0, b"x"), VolumeReply::Failed(Status::Medium));
    volume.fail_range(4096..8192, Status::Failed);
    assert_eq!(write(&mut volume, 4095, b"xx"), VolumeReply::Failed(Status::Failed));
    assert_eq!(write(&mut volume, 4095, b"x"), VolumeReply::Done);
    assert_eq!(write(&mut volume, MIB - 1, b"xx"), VolumeReply::Failed(Status::Invalid));
    assert_eq!(write(&mut volume, u64::MAX, b"xx"), VolumeReply::Failed(Status::Invalid));
    volume.remove();
    assert_eq!(run(&mut volume, VolumeOp::Flush), VolumeReply::Failed(Status::Gone));
    assert_eq!(volume.poll_event(), Some(VolumeEvent::Removed));
    assert_eq!(volume.poll_event(), None);
}

#[test]
fn every_attachment_sees_a_resize_and_the_content() {
    let mut one = disk();
    let mut two = one.clone();
    write(&mut one, 6000, &[9; 4000]);
    one.resize(8000);
    assert_eq!(one.poll_event(), Some(VolumeEvent::Resized(8000)));
    assert_eq!(two.poll_event(), Some(VolumeEvent::Resized(8000)));
    one.resize(MIB);
    assert_eq!(two.peek(7998, 4), [9, 9, 0, 0], "a shrunk part does not come back");
    assert_eq!(two.info().size, MIB);
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let mut info = disk().info();
    info.read_only = true;
    let mut volume = RamVolume::new(info);
    assert_eq!(write(&mut volume, 0, b"x"), VolumeReply::Failed(Status::ReadOnly));
    assert_eq!(run(&mut volume, VolumeOp::Flush), VolumeReply::Done);
}

#[test]
fn replies_are_held_delayed_and_shuffled() {
    let mut volume = disk();
    volume.set_delivery(Delivery::Held);
    (0..3).for_each(|tag| volume.submit(tag, VolumeOp::Flush));
    assert_eq!(volume.poll_reply(), None);
    assert!(volume.release(2) && !volume.release(2));
    assert_eq!(volume.poll_reply().map(|(tag, _)| tag), Some(2));
    assert_eq!(volume.held(), [0, 1]);

    let mut volume = disk();
    volume.set_delivery(Delivery::Delayed { polls: 2 });
    volume.submit(7, VolumeOp::Flush);
    let polls: Vec<bool> = (0..4).map(|_| volume.poll_reply().is_some()).collect();
    assert_eq!(polls, [false, false, true, false]);

    let order = |seed| {
        let mut volume = disk();
        volume.set_delivery(Delivery::Shuffled { seed });
        (0..16).for_each(|tag| volume.submit(tag, VolumeOp::Flush));
        std::iter::from_fn(|| volume.poll_reply()).map(|(tag, _)| tag).collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    let mut all = order(3);
    all.sort_unstable();
    assert_eq!(all, (0..16).collect::<Vec<_>>());
}

#[test]
fn the_first_export_is_the_default() {
    let exports: RamExports = ["b", "a"].map(|name| RamVolume::with_size(name, MIB)).into_iter().collect();
    assert_eq!(exports.names(), ["a", "b"]);
    assert_eq!(exports.find("").map(|info| info.name.clone()), Some("b".to_owned()));
    assert!(exports.find("c").is_none() && exports.attach("c").is_none());
    let mut attached = exports.attach("a").expect("exists");
    write(&mut attached, 0, b"shared");
    assert_eq!(exports.volume("a").expect("exists").peek(0, 6), b"shared");
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Zero(u64, u64, bool),
    Discard(u64, u64),
}

fn steps() -> impl Strategy<Value = Step> {
    let range = (0u64..50_000, 0u64..15_000);
    prop_oneof![
        (0u64..50_000, prop::collection::vec(1u8.., 0..9000)).prop_map(|(at, bytes)| Step::Write(at, bytes)),
        (range.clone(), any::<bool>()).prop_map(|((at, len), unmap)| Step::Zero(at, len, unmap)),
        range.prop_map(|(at, len)| Step::Discard(at, len)),
    ]
}

fn apply(volume: &mut RamVolume, model: &mut [u8], step: Step) {
    match step {
        Step::Write(offset, bytes) => {
            model[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            write(volume, offset, &bytes);
        }
        Step::Zero(offset, len, may_unmap) => {
            model[offset as usize..][..len as usize].fill(0);
            run(volume, VolumeOp::WriteZeroes { offset, len, may_unmap, fua: true });
        }
        Step::Discard(offset, len) => {
            let (first, end) = (offset.div_ceil(4096) * 4096, (offset + len) / 4096 * 4096);
            if first < end {
                model[first as usize..end as usize].fill(0);
            }
            run(volume, VolumeOp::Discard { offset, len });
        }
    }
}

proptest! {
    #[test]
    fn content_is_that_of_a_flat_array(steps in prop::collection::vec(steps(), 1..20)) {
        let mut model = vec![0; 65_536];
        let mut volume = RamVolume::with_size("model", 65_536);
        for step in steps {
            apply(&mut volume, &mut model, step);
        }
        prop_assert_eq!(&volume.peek(0, 65_536), &model);
        let VolumeReply::Extents(extents) = run(&mut volume, VolumeOp::BlockStatus { offset: 1, len: 65_535 }) else {
            panic!("extents")
        };
        let mut at = 1;
        for extent in &extents {
            prop_assert!(extent.data || model[at..at + extent.len as usize].iter().all(|&byte| byte == 0));
            at += extent.len as usize;
        }
        prop_assert_eq!(at, 65_536);
        prop_assert!(extents.windows(2).all(|pair| pair[0].data != pair[1].data), "merged");
    }
}
