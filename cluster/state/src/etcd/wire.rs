//! Our requests as etcd's messages.

use crate::core::{CompareOp, CompareTarget, KeyRange, Op, RangeOp, Relation, TxnOp};
use crate::pb;
use crate::pb::compare::{CompareResult, CompareTarget as PbTarget, TargetUnion};
use crate::pb::request_op::Request;

pub(super) fn range_request(op: &RangeOp) -> pb::RangeRequest {
    let (key, range_end) = op.keys.to_wire();
    let limit = i64::try_from(op.limit).unwrap_or(i64::MAX);
    pb::RangeRequest { key, range_end, limit, revision: op.revision, ..pb::RangeRequest::default() }
}

pub(super) fn txn_request(txn: &TxnOp) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: txn.compare.iter().map(compare).collect(),
        success: txn.success.iter().map(request_op).collect(),
        failure: txn.failure.iter().map(request_op).collect(),
    }
}

fn request_op(op: &Op) -> pb::RequestOp {
    let request = match op {
        Op::Range(range) => Request::RequestRange(range_request(range)),
        Op::Put(put) => Request::RequestPut(pb::PutRequest {
            key: put.key.clone(),
            value: put.value.clone(),
            lease: put.lease,
            prev_kv: put.prev_kv,
            ignore_value: put.ignore_value,
            ignore_lease: put.ignore_lease,
        }),
        Op::Delete(delete) => {
            let (key, range_end) = delete.keys.to_wire();
            Request::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: delete.prev_kv })
        }
        Op::Txn(txn) => Request::RequestTxn(txn_request(txn)),
    };
    pb::RequestOp { request: Some(request) }
}

fn compare(compare: &CompareOp) -> pb::Compare {
    let (target, value) = match compare.target.clone() {
        CompareTarget::Version(number) => (PbTarget::Version, TargetUnion::Version(number)),
        CompareTarget::CreateRevision(number) => (PbTarget::Create, TargetUnion::CreateRevision(number)),
        CompareTarget::ModRevision(number) => (PbTarget::Mod, TargetUnion::ModRevision(number)),
        CompareTarget::Lease(number) => (PbTarget::Lease, TargetUnion::Lease(number)),
        CompareTarget::Value(value) => (PbTarget::Value, TargetUnion::Value(value)),
    };
    let result = match compare.relation {
        Relation::Equal => CompareResult::Equal,
        Relation::NotEqual => CompareResult::NotEqual,
        Relation::Greater => CompareResult::Greater,
        Relation::Less => CompareResult::Less,
    };
    let (key, range_end) = compare.keys.to_wire();
    pb::Compare { result: result.into(), target: target.into(), key, range_end, target_union: Some(value) }
}

/// A watch of `keys` from `start_revision` on.
pub(super) fn watch_request(keys: &KeyRange, start_revision: i64) -> pb::WatchRequest {
    let (key, range_end) = keys.to_wire();
    let create = pb::WatchCreateRequest { key, range_end, start_revision, ..pb::WatchCreateRequest::default() };
    pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) }
}
