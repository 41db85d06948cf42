//! The code against `reed-solomon-erasure`, with every kernel that this machine has.

use erasure::{Code, CodeError, Kernel, SHARDS_MAX};
use proptest::prelude::*;
use reed_solomon_erasure::galois_8::ReedSolomon;

fn kernels() -> impl Iterator<Item = Kernel> {
    Kernel::ALL.into_iter().filter(|kernel| kernel.is_available())
}

/// A code for each kernel.
fn codes(data: usize, parity: usize) -> Vec<Code> {
    kernels().map(|kernel| Code::with_kernel(data, parity, kernel).unwrap()).collect()
}

/// Bytes that look random and differ by seed.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(next).collect()
}

/// All shards of a stripe, its parity by the oracle (by XOR for one parity).
fn stripe(data: usize, parity: usize, len: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut shards: Vec<Vec<u8>> = (0..data).map(|i| bytes(seed + i as u64, len)).collect();
    if parity == 1 {
        let xor = (0..len).map(|at| shards.iter().fold(0, |sum, shard| sum ^ shard[at])).collect();
        shards.push(xor);
        return shards;
    }
    shards.resize(data + parity, vec![0; len]);
    if len > 0 {
        ReedSolomon::new(data, parity).unwrap().encode(&mut shards).unwrap();
    }
    shards
}

fn encoded(code: &Code, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let len = data[0].len();
    // What was there must not matter.
    let mut parity = vec![vec![0xA5; len]; code.parity()];
    let inputs: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    code.encode(&inputs, &mut outputs);
    parity
}

/// Rebuilds `wanted` from the shards named.
fn rebuilt(code: &Code, stripe: &[Vec<u8>], from: &[usize], wanted: &[usize]) -> Vec<Vec<u8>> {
    let present: Vec<(usize, &[u8])> = from.iter().map(|i| (*i, stripe[*i].as_slice())).collect();
    let mut out = vec![vec![0x5A; stripe[0].len()]; wanted.len()];
    let mut places: Vec<&mut [u8]> = out.iter_mut().map(Vec::as_mut_slice).collect();
    code.reconstruct(&present, wanted, &mut places).unwrap();
    out
}

fn assert_rebuilds(code: &Code, stripe: &[Vec<u8>], from: &[usize]) {
    let wanted: Vec<usize> = (0..stripe.len()).filter(|i| !from.contains(i)).collect();
    for (shard, rebuilt) in wanted.iter().zip(rebuilt(code, stripe, from, &wanted)) {
        assert_eq!(rebuilt, stripe[*shard], "{code:?}: shard {shard} from {from:?}");
    }
}

/// Every set of `data` out of all shards.
fn choices(data: usize, parity: usize) -> impl Iterator<Item = Vec<usize>> {
    let all = 0u32..1 << (data + parity);
    let of_size = all.filter(move |set| set.count_ones() as usize == data);
    of_size.map(move |set| (0..data + parity).filter(|i| set >> i & 1 == 1).collect())
}

#[test]
fn every_erasure_of_small_codes_is_rebuilt() {
    for (data, parity) in [(1, 1), (1, 3), (2, 1), (3, 2), (4, 2), (8, 3), (4, 4)] {
        let stripe = stripe(data, parity, 203, 7);
        for code in codes(data, parity) {
            for mut from in choices(data, parity) {
                assert_rebuilds(&code, &stripe, &from);
                from.rotate_left(data / 2);
                assert_rebuilds(&code, &stripe, &from);
            }
        }
    }
}

#[test]
fn weights_say_what_reconstruction_does() {
    for (data, parity) in [(1, 1), (2, 1), (3, 2), (4, 2), (4, 4)] {
        let code = Code::new(data, parity).unwrap();
        let stripe = stripe(data, parity, 64, 9);
        for from in choices(data, parity) {
            for wanted in 0..data + parity {
                let weights = code.weights(&from, wanted).unwrap();
                let mut sum = vec![0; 64];
                for (shard, weight) in from.iter().zip(weights) {
                    let images = erasure::images(weight);
                    for (sum, byte) in sum.iter_mut().zip(&stripe[*shard]) {
                        (0..8).filter(|bit| byte >> bit & 1 == 1).for_each(|bit| *sum ^= images[bit]);
                    }
                }
                assert_eq!(sum, stripe[wanted], "{code:?}: shard {wanted} from {from:?}");
            }
        }
    }
    let code = Code::new(2, 1).unwrap();
    assert_eq!(code.weights(&[0], 2), Err(CodeError::Count { given: 1, needed: 2 }));
    assert_eq!(code.weights(&[0; 40], 2), Err(CodeError::Count { given: 40, needed: 2 }));
    assert_eq!(code.weights(&[0, 0], 2), Err(CodeError::Twice(0)));
    assert_eq!(code.weights(&[0, 1], 3), Err(CodeError::Index(3)));
}

#[test]
fn parity_is_that_of_the_oracle_for_every_shape() {
    for data in 1..SHARDS_MAX {
        for parity in 1..=SHARDS_MAX - data {
            let stripe = stripe(data, parity, 131, (data * 100 + parity) as u64);
            for code in codes(data, parity) {
                assert_eq!(encoded(&code, &stripe[..data]), stripe[data..], "{code:?}");
            }
        }
    }
}

#[test]
fn every_length_is_done_to_its_last_byte() {
    for len in (0..300).chain([4095, 4096, 4097, 8191, 8192, 12_289]) {
        let stripe = stripe(5, 6, len, 3);
        for code in codes(5, 6) {
            assert_eq!(encoded(&code, &stripe[..5]), stripe[5..], "{:?} {len}", code.kernel());
        }
    }
}

#[test]
fn slices_need_no_alignment() {
    let stripe = stripe(3, 2, 1000, 1);
    for code in codes(3, 2) {
        for skew in 0..70 {
            let cut: Vec<&[u8]> = stripe[..3].iter().map(|shard| &shard[skew..]).collect();
            let mut out = vec![vec![0; 1000]; 2];
            let mut places: Vec<&mut [u8]> = out.iter_mut().map(|o| &mut o[1000 - cut[0].len()..]).collect();
            code.encode(&cut, &mut places);
            for (out, parity) in out.iter().zip(&stripe[3..]) {
                assert_eq!(out[skew..], parity[skew..]);
                assert!(out[..skew].iter().all(|byte| *byte == 0), "written outside its range");
            }
        }
    }
}

#[test]
fn one_parity_is_plain_xor() {
    for code in codes(3, 1) {
        assert_eq!((0..3).map(|i| code.coefficient(0, i)).collect::<Vec<_>>(), [1, 1, 1]);
        let data = [vec![1, 2], vec![4, 8], vec![16, 32]];
        assert_eq!(encoded(&code, &data), [vec![21, 42]]);
    }
}

#[test]
fn the_matrix_never_changes_since_disks_depend_on_it() {
    let code = Code::new(4, 2).unwrap();
    let row = |parity| [0, 1, 2, 3].map(|data| code.coefficient(parity, data));
    assert_eq!([row(0), row(1)], [[27, 28, 18, 20], [28, 27, 20, 18]]);
}

#[test]
fn a_delta_carries_a_change_into_parity() {
    for (data, parity) in [(2, 1), (4, 2), (8, 3), (20, 12)] {
        let old = stripe(data, parity, 333, 1);
        for code in codes(data, parity) {
            let mut new = old.clone();
            for changed in 0..data {
                let fresh = bytes(1000 + changed as u64, 333);
                let delta: Vec<u8> = fresh.iter().zip(&new[changed]).map(|(a, b)| a ^ b).collect();
                new[changed] = fresh;
                for index in 0..parity {
                    code.update(changed, &delta, index, &mut new[data + index]);
                }
                assert_eq!(encoded(&code, &new[..data]), new[data..]);
            }
        }
    }
}

#[test]
fn a_present_shard_may_be_wanted() {
    let stripe = stripe(4, 2, 100, 9);
    for code in codes(4, 2) {
        let wanted = [5, 1, 0, 4, 2, 3, 0];
        let out = rebuilt(&code, &stripe, &[4, 1, 5, 2], &wanted);
        for (shard, out) in wanted.iter().zip(out) {
            assert_eq!(out, stripe[*shard]);
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    for (data, parity) in [(0, 1), (1, 0), (31, 2), (usize::MAX, 1)] {
        assert_eq!(Code::new(data, parity).err(), Some(CodeError::Shape { data, parity }));
    }
    let code = Code::new(3, 2).unwrap();
    let shard = [1; 10];
    let present = |indices: &[usize]| indices.iter().map(|i| (*i, &shard[..])).collect::<Vec<_>>();
    let mut out = [7; 10];
    let mut attempt = |present: &[(usize, &[u8])], wanted: &[usize], len: usize| {
        let error = code.reconstruct(present, wanted, &mut [&mut out[..len]]).unwrap_err();
        assert_eq!(out, [7; 10], "untouched");
        error
    };
    assert_eq!(attempt(&present(&[0, 1]), &[2], 10), CodeError::Count { given: 2, needed: 3 });
    assert_eq!(attempt(&present(&[0, 1, 3, 4]), &[2], 10), CodeError::Count { given: 4, needed: 3 });
    assert_eq!(attempt(&present(&[0, 1, 5]), &[2], 10), CodeError::Index(5));
    assert_eq!(attempt(&present(&[0, 1, 1]), &[2], 10), CodeError::Twice(1));
    assert_eq!(attempt(&present(&[0, 1, 3]), &[5], 10), CodeError::Index(5));
    assert_eq!(attempt(&present(&[0, 1, 3]), &[2], 9), CodeError::Length);
    assert_eq!(attempt(&present(&[0, 1, 3]), &[2, 4], 10), CodeError::Length);
    assert_eq!(attempt(&[(0, &shard), (1, &shard[1..]), (3, &shard)], &[2], 10), CodeError::Length);
    for kernel in Kernel::ALL.into_iter().filter(|kernel| !kernel.is_available()) {
        assert_eq!(Code::with_kernel(2, 1, kernel).err(), Some(CodeError::Kernel(kernel)));
    }
}

#[test]
#[should_panic(expected = "inputs of different lengths")]
fn encoding_unequal_shards_is_the_callers_bug() {
    let code = Code::new(2, 1).unwrap();
    code.encode(&[&[0; 4], &[0; 5]], &mut [&mut [0; 4]]);
}

#[test]
fn a_code_can_be_shared_between_threads() {
    fn shareable<T: Send + Sync + Clone>(_: &T) {}
    shareable(&Code::new(4, 2).unwrap());
}

/// A shape, and an order of its shards: the first `data` are those that are left.
fn erasures() -> impl Strategy<Value = (usize, usize, Vec<usize>)> {
    (1..SHARDS_MAX).prop_flat_map(|data| (Just(data), 1..=SHARDS_MAX - data)).prop_flat_map(|(data, parity)| {
        let order: Vec<usize> = (0..data + parity).collect();
        (Just(data), Just(parity), Just(order).prop_shuffle())
    })
}

proptest! {
    #[test]
    fn any_code_survives_any_erasure((data, parity, order) in erasures(), len in 0usize..700, seed: u16) {
        let stripe = stripe(data, parity, len, u64::from(seed));
        for code in codes(data, parity) {
            prop_assert_eq!(&encoded(&code, &stripe[..data]), &stripe[data..]);
            assert_rebuilds(&code, &stripe, &order[..data]);
        }
    }
}
