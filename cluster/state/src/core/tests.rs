//! Behaviour of the state machine, checked against etcd's rules and against a naive model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> Op {
    Op::Put(PutOp { key: bytes(key), value: bytes(value), ..PutOp::default() })
}

fn put_leased(key: &str, lease: i64) -> Op {
    Op::Put(PutOp { key: bytes(key), lease, ..PutOp::default() })
}

fn delete(prefix: &str) -> Op {
    Op::Delete(DeleteOp { keys: KeyRange::prefix(prefix.as_bytes()), prev_kv: false })
}

fn compare(key: &str, target: CompareTarget, relation: Relation) -> CompareOp {
    CompareOp { keys: KeyRange::Key(bytes(key)), target, relation }
}

fn txn(compare: Vec<CompareOp>, success: Vec<Op>, failure: Vec<Op>) -> Op {
    Op::Txn(TxnOp { compare, success, failure })
}

fn keys_at(core: &mut StateCore, revision: i64) -> Vec<(String, String)> {
    let op = Op::Range(RangeOp { revision, ..RangeOp::new(KeyRange::prefix(b"")) });
    let Ok(OpResult::Range { entries, .. }) = core.handle_op(&op) else {
        panic!("revision {revision} is not readable")
    };
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    entries.iter().map(|entry| (text(&entry.key), text(&entry.value))).collect()
}

#[test]
fn revisions_and_versions_count_as_in_etcd() {
    let mut core = StateCore::new();
    assert_eq!(core.revision(), 1);
    core.handle_op(&put("a", "1")).unwrap();
    core.handle_op(&put("a", "2")).unwrap();
    let entry = core.entry(b"a").unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision, entry.version), (2, 3, 2));
    core.handle_op(&delete("zzz")).unwrap();
    assert_eq!(core.revision(), 3, "deleting nothing is no revision");
    core.handle_op(&delete("a")).unwrap();
    core.handle_op(&put("a", "3")).unwrap();
    let entry = core.entry(b"a").unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision, entry.version), (5, 5, 1));
}

#[test]
fn a_transaction_is_one_revision_or_nothing() {
    let mut core = StateCore::new();
    core.handle_op(&txn(vec![], vec![put("a", "1"), put("b", "1")], vec![])).unwrap();
    assert_eq!(core.revision(), 2);
    let bad = txn(vec![], vec![put("c", "1"), put_leased("d", 77)], vec![]);
    assert_eq!(core.handle_op(&bad), Err(CoreError::LeaseNotFound));
    assert_eq!((core.revision(), core.key_count()), (2, 2));
    assert!(core.entry(b"c").is_none());
}

#[test]
fn every_relation_and_target() {
    use CompareTarget::*;
    use Relation::*;
    let mut core = StateCore::new();
    core.lease_grant(9, 60).unwrap();
    core.handle_op(&put("k", "m")).unwrap();
    core.handle_op(&put("k", "m")).unwrap();
    core.handle_op(&put_leased("l", 9)).unwrap();
    let holds = [
        compare("k", Version(2), Equal),
        compare("k", Version(1), Greater),
        compare("k", CreateRevision(2), Equal),
        compare("k", CreateRevision(3), Less),
        compare("k", ModRevision(2), NotEqual),
        compare("k", ModRevision(3), Equal),
        compare("k", Value(bytes("a")), Greater),
        compare("k", Value(bytes("z")), Less),
        compare("l", Lease(9), Equal),
        compare("none", Version(0), Equal),
        compare("none", ModRevision(0), Equal),
        CompareOp { keys: KeyRange::prefix(b""), target: Version(0), relation: Greater },
    ];
    let fails = [
        compare("k", Version(2), Less),
        compare("none", Value(bytes("")), Equal),
        compare("none", Value(bytes("x")), NotEqual),
        CompareOp { keys: KeyRange::prefix(b""), target: Lease(9), relation: Equal },
    ];
    for (compare, expected) in holds.into_iter().map(|c| (c, true)).chain(fails.into_iter().map(|c| (c, false))) {
        let result = core.handle_op(&txn(vec![compare.clone()], vec![], vec![]));
        assert_eq!(result, Ok(OpResult::Txn { succeeded: expected, results: vec![] }), "{compare:?}");
    }
}

#[test]
fn nested_transactions_decide_on_the_state_before() {
    let mut core = StateCore::new();
    let inner = txn(
        vec![compare("a", CompareTarget::Version(0), Relation::Equal)],
        vec![put("b", "absent")],
        vec![put("b", "there")],
    );
    core.handle_op(&txn(vec![], vec![put("a", "1"), inner.clone()], vec![])).unwrap();
    assert_eq!(core.entry(b"b").unwrap().value, bytes("absent"));
    core.handle_op(&inner).unwrap();
    assert_eq!(core.entry(b"b").unwrap().value, bytes("there"));
}

#[test]
fn a_key_is_changed_at_most_once() {
    let mut core = StateCore::new();
    let nested_both = txn(vec![], vec![put("a", "1")], vec![put("a", "2")]);
    let refused = [
        txn(vec![], vec![put("a", "1"), put("a", "2")], vec![]),
        txn(vec![], vec![put("a", "1"), delete("a")], vec![]),
        txn(vec![], vec![], vec![delete(""), put("a", "1")]),
        txn(vec![], vec![nested_both.clone(), put("a", "3")], vec![]),
        txn(vec![], vec![delete("a"), nested_both.clone()], vec![]),
    ];
    for op in refused {
        assert_eq!(core.handle_op(&op), Err(CoreError::DuplicateKey), "{op:?}");
    }
    core.handle_op(&txn(vec![], vec![nested_both, delete("b"), delete("b")], vec![])).unwrap();
}

#[test]
fn form_is_bounded() {
    let mut core = StateCore::new();
    let many = (0..=crate::limits::TXN_OPS_MAX).map(|i| put(&format!("k{i}"), "")).collect();
    assert_eq!(core.handle_op(&txn(vec![], many, vec![])), Err(CoreError::TooManyOps));
    let large = "x".repeat(crate::limits::REQUEST_BYTES_MAX);
    assert_eq!(core.handle_op(&put("a", &large)), Err(CoreError::TooLarge));
    assert_eq!(core.handle_op(&put(&"k".repeat(crate::limits::KEY_BYTES_MAX + 1), "")), Err(CoreError::TooLarge));
    assert_eq!(core.handle_op(&put("", "1")), Err(CoreError::EmptyKey));
    let mut deep = txn(vec![], vec![], vec![]);
    for _ in 0..crate::limits::TXN_DEPTH_MAX {
        deep = txn(vec![], vec![deep], vec![]);
    }
    assert_eq!(core.handle_op(&deep), Err(CoreError::TooManyOps));
    assert_eq!(core.revision(), 1);
}

#[test]
fn ignoring_value_or_lease_keeps_it() {
    let mut core = StateCore::new();
    core.lease_grant(5, 60).unwrap();
    let keep_value = PutOp { key: bytes("k"), ignore_value: true, ..PutOp::default() };
    assert_eq!(core.handle_op(&Op::Put(keep_value.clone())), Err(CoreError::KeyNotFound));
    core.handle_op(&Op::Put(PutOp { key: bytes("k"), value: bytes("v"), lease: 5, ..PutOp::default() })).unwrap();
    let keep_lease = PutOp { key: bytes("k"), value: bytes("w"), ignore_lease: true, ..PutOp::default() };
    core.handle_op(&Op::Put(keep_lease.clone())).unwrap();
    assert_eq!((core.entry(b"k").unwrap().value.clone(), core.entry(b"k").unwrap().lease), (bytes("w"), 5));
    core.handle_op(&Op::Put(keep_value.clone())).unwrap();
    assert_eq!((core.entry(b"k").unwrap().value.clone(), core.entry(b"k").unwrap().lease), (bytes("w"), 0));
    assert_eq!(core.handle_op(&Op::Put(PutOp { value: bytes("x"), ..keep_value })), Err(CoreError::ValueProvided));
    assert_eq!(core.handle_op(&Op::Put(PutOp { lease: 5, ..keep_lease })), Err(CoreError::LeaseProvided));
}

#[test]
fn ranges_sort_limit_and_filter() {
    let mut core = StateCore::new();
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2"), ("b", "0")] {
        core.handle_op(&put(key, value)).unwrap();
    }
    let all = RangeOp::new(KeyRange::prefix(b""));
    let keys = |core: &mut StateCore, op: RangeOp| {
        let Ok(OpResult::Range { entries, more, count }) = core.handle_op(&Op::Range(op)) else {
            panic!("range failed")
        };
        let keys: Vec<_> = entries.iter().map(|entry| String::from_utf8_lossy(&entry.key).into_owned()).collect();
        (keys.join(""), more, count)
    };
    let by_value = RangeOp { sort_by: SortTarget::Value, ..all.clone() };
    assert_eq!(keys(&mut core, by_value), ("bca".into(), false, 3));
    let newest = RangeOp { sort_by: SortTarget::ModRevision, descending: true, limit: 2, ..all.clone() };
    assert_eq!(keys(&mut core, newest), ("bc".into(), true, 3));
    assert_eq!(keys(&mut core, RangeOp { count_only: true, ..all.clone() }), (String::new(), false, 3));
    assert_eq!(keys(&mut core, RangeOp { mod_revisions: (4, 5), ..all.clone() }).0, "bc");
    assert_eq!(keys(&mut core, RangeOp { create_revisions: (0, 3), ..all }).0, "ab");
}

#[test]
fn leases_end_with_their_keys() {
    let mut core = StateCore::new();
    core.handle_time(1_000);
    let (lease, ttl_s) = core.lease_grant(0, 5).unwrap();
    assert_eq!((lease, ttl_s), (1, 5));
    core.handle_op(&txn(vec![], vec![put_leased("a", lease), put_leased("b", lease)], vec![])).unwrap();
    core.handle_op(&put("b", "kept: no longer bound")).unwrap();
    core.handle_time(4_000);
    assert_eq!(core.lease_keep_alive(lease), Some(5));
    assert_eq!(core.poll_timeout(), Some(9_000));
    core.handle_time(8_999);
    assert_eq!(core.lease(lease).unwrap().remaining_s, 1);
    let before = core.revision();
    core.handle_time(9_000);
    assert_eq!((core.revision(), core.lease_keep_alive(lease)), (before + 1, None));
    assert!(core.entry(b"a").is_none() && core.entry(b"b").is_some());
    let events = core.events(before + 1, &KeyRange::prefix(b"")).unwrap().events;
    assert!(events.len() == 1 && events[0].deleted && events[0].entry.key == bytes("a"));
    assert_eq!(core.lease_grant(0, 5).unwrap().0, 2, "ids are not reused");
    assert_eq!(core.lease_grant(2, 5), Err(CoreError::LeaseExists));
    assert_eq!(core.lease_grant(0, i64::MAX), Err(CoreError::LeaseTtl));
}

#[test]
fn compaction_ends_watches_that_are_behind() {
    let mut core = StateCore::new();
    let all = KeyRange::prefix(b"");
    for i in 0..10 {
        core.handle_op(&put("k", &i.to_string())).unwrap();
    }
    core.compact(6).unwrap();
    assert_eq!(core.events(5, &all), Err(CoreError::Compacted(6)));
    assert_eq!(core.events(6, &all).unwrap().events.len(), 6);
    assert_eq!(core.compact(5), Err(CoreError::Compacted(6)));
    assert_eq!(core.compact(12), Err(CoreError::FutureRevision));
    assert_eq!(keys_at(&mut core, 6), [("k".to_string(), "4".to_string())]);
    let old = Op::Range(RangeOp { revision: 5, ..RangeOp::new(all) });
    assert_eq!(core.handle_op(&old), Err(CoreError::Compacted(6)));
}

#[test]
fn history_is_bounded_by_whole_revisions() {
    let mut core = StateCore::new();
    let value = "v".repeat(crate::limits::REQUEST_BYTES_MAX - 1024);
    for _ in 0..100 {
        core.handle_op(&put("k", &value)).unwrap();
    }
    let kept = core.revision() + 1 - core.first_revision();
    assert!((10..=20).contains(&kept), "{kept} revisions of 4 MiB in 64 MiB");
    let events = core.events(core.first_revision(), &KeyRange::prefix(b"")).unwrap();
    assert_eq!((events.events.len(), events.through), (1, core.first_revision()), "a batch is bounded too");
}

#[derive(Clone, Debug)]
enum Step {
    Txn(Vec<(u8, Option<u8>)>),
    Lease(u8, u8),
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::btree_map(0u8..12, prop::option::of(any::<u8>()), 1..5)
            .prop_map(|changes| Step::Txn(changes.into_iter().collect())),
        2 => (0u8..12, 1u8..20).prop_map(|(key, ttl_s)| Step::Lease(key, ttl_s)),
        2 => (0u16..6000).prop_map(Step::Wait),
    ]
}

fn take(core: &mut StateCore, step: &Step, now_ms: &mut u64) {
    match step {
        Step::Txn(changes) => {
            let ops = changes.iter().map(|(key, value)| match value {
                Some(value) => put(&format!("k{key:02}"), &value.to_string()),
                None => Op::Delete(DeleteOp { keys: KeyRange::Key(bytes(&format!("k{key:02}"))), prev_kv: false }),
            });
            core.handle_op(&txn(vec![], ops.collect(), vec![])).unwrap();
        }
        Step::Lease(key, ttl_s) => {
            let (lease, _) = core.lease_grant(0, (*ttl_s).into()).unwrap();
            core.handle_op(&put_leased(&format!("k{key:02}"), lease)).unwrap();
        }
        Step::Wait(ms) => {
            *now_ms += u64::from(*ms);
            core.handle_time(*now_ms);
        }
    }
}

fn image_of(core: &mut StateCore, image: &mut Image) {
    let mut entries: BTreeMap<Bytes, Entry> = image.entries.drain(..).map(|e| (e.key.clone(), e)).collect();
    for delta in core.poll_deltas() {
        match delta {
            Delta::Put(entry) => drop(entries.insert(entry.key.clone(), entry)),
            Delta::Delete(key) => drop(entries.remove(&key)),
            Delta::Lease { id, ttl_s } => image.leases.push((id, ttl_s)),
            Delta::LeaseGone(id) => image.leases.retain(|lease| lease.0 != id),
        }
    }
    image.entries = entries.into_values().collect();
    (image.revision, image.last_lease_id) = (core.revision(), core.last_lease_id());
}

proptest! {
    /// Whatever happens: each past revision reads as it was, replaying the events from any revision leads to the same
    /// state, and the recorded deltas restore it.
    #[test]
    fn the_past_the_events_and_the_deltas_agree(steps in prop::collection::vec(step(), 1..60)) {
        let mut core = StateCore::new();
        core.record_deltas();
        let (mut now_ms, mut image) = (0, Image::default());
        let mut seen = BTreeMap::from([(1, Vec::new())]);
        for step in &steps {
            take(&mut core, step, &mut now_ms);
            image_of(&mut core, &mut image);
            let now = keys_at(&mut core, 0);
            seen.insert(core.revision(), now);
        }
        for (&revision, keys) in &seen {
            prop_assert_eq!(&keys_at(&mut core, revision), keys);
            let mut replayed: BTreeMap<_, _> = keys.iter().cloned().collect();
            for event in core.events(revision + 1, &KeyRange::prefix(b"")).unwrap().events {
                let key = String::from_utf8_lossy(&event.entry.key).into_owned();
                prop_assert_eq!(event.prev.is_some(), replayed.contains_key(&key));
                match event.deleted {
                    true => drop(replayed.remove(&key)),
                    false => drop(replayed.insert(key, String::from_utf8_lossy(&event.entry.value).into_owned())),
                }
            }
            prop_assert_eq!(replayed.into_iter().collect::<Vec<_>>(), keys_at(&mut core, 0));
        }
        let mut restored = StateCore::restore(image, now_ms).unwrap();
        prop_assert_eq!(restored.revision(), core.revision());
        prop_assert_eq!(restored.leases(), core.leases());
        prop_assert_eq!(keys_at(&mut restored, 0), keys_at(&mut core, 0));
    }
}
