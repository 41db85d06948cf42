//! Between etcd's messages and the state machine's requests. Everything here comes from a peer: nothing is trusted.

use prost::bytes::Bytes;
use tonic::Status;

use crate::core::{
    CompareOp, CompareTarget, DeleteOp, Entry, Event, KeyRange, Op, OpResult, PutOp, RangeOp, Relation, SortTarget,
    TxnOp,
};
use crate::limits::TXN_DEPTH_MAX;
use crate::pb;
use crate::pb::compare::{CompareResult, CompareTarget as PbTarget, TargetUnion};
use crate::pb::range_request::{SortOrder, SortTarget as PbSort};
use crate::pb::request_op::Request;
use crate::pb::response_op::Response;

pub(super) fn range_op(request: pb::RangeRequest) -> Result<RangeOp, Status> {
    let invalid = || Status::invalid_argument("etcdserver: invalid sort option");
    let sort_by = match PbSort::try_from(request.sort_target).map_err(|_| invalid())? {
        PbSort::Key => SortTarget::Key,
        PbSort::Version => SortTarget::Version,
        PbSort::Create => SortTarget::CreateRevision,
        PbSort::Mod => SortTarget::ModRevision,
        PbSort::Value => SortTarget::Value,
    };
    let order = SortOrder::try_from(request.sort_order).map_err(|_| invalid())?;
    Ok(RangeOp {
        keys: KeyRange::from_wire(request.key, request.range_end),
        revision: request.revision.max(0),
        limit: usize::try_from(request.limit).unwrap_or(0),
        // Without an order the results come by key, except that etcd sorts ascending by any other target.
        sort_by,
        descending: order == SortOrder::Descend,
        keys_only: request.keys_only,
        count_only: request.count_only,
        mod_revisions: (request.min_mod_revision, request.max_mod_revision),
        create_revisions: (request.min_create_revision, request.max_create_revision),
    })
}

pub(super) fn put_op(request: pb::PutRequest) -> PutOp {
    PutOp {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}

pub(super) fn delete_op(request: pb::DeleteRangeRequest) -> DeleteOp {
    DeleteOp { keys: KeyRange::from_wire(request.key, request.range_end), prev_kv: request.prev_kv }
}

pub(super) fn txn_op(request: pb::TxnRequest, depth: usize) -> Result<TxnOp, Status> {
    // The protobuf decoder bounds the nesting too, but far above what we want to walk through.
    if depth > TXN_DEPTH_MAX {
        return Err(Status::invalid_argument("etcdserver: too many operations in txn request"));
    }
    Ok(TxnOp {
        compare: request.compare.into_iter().map(compare_op).collect::<Result<_, _>>()?,
        success: request_ops(request.success, depth)?,
        failure: request_ops(request.failure, depth)?,
    })
}

fn request_ops(ops: Vec<pb::RequestOp>, depth: usize) -> Result<Vec<Op>, Status> {
    ops.into_iter().map(|op| request_op(op, depth)).collect()
}

fn request_op(op: pb::RequestOp, depth: usize) -> Result<Op, Status> {
    match op.request {
        Some(Request::RequestRange(range)) => Ok(Op::Range(range_op(range)?)),
        Some(Request::RequestPut(put)) => Ok(Op::Put(put_op(put))),
        Some(Request::RequestDeleteRange(delete)) => Ok(Op::Delete(delete_op(delete))),
        Some(Request::RequestTxn(txn)) => Ok(Op::Txn(txn_op(txn, depth + 1)?)),
        None => Err(Status::invalid_argument("etcdserver: key not found")),
    }
}

fn compare_op(compare: pb::Compare) -> Result<CompareOp, Status> {
    let invalid = || Status::invalid_argument("etcdserver: invalid compare in txn request");
    let number = match compare.target_union {
        Some(
            TargetUnion::Version(number)
            | TargetUnion::CreateRevision(number)
            | TargetUnion::ModRevision(number)
            | TargetUnion::Lease(number),
        ) => number,
        _ => 0,
    };
    let target = match PbTarget::try_from(compare.target).map_err(|_| invalid())? {
        PbTarget::Version => CompareTarget::Version(number),
        PbTarget::Create => CompareTarget::CreateRevision(number),
        PbTarget::Mod => CompareTarget::ModRevision(number),
        PbTarget::Lease => CompareTarget::Lease(number),
        PbTarget::Value => match compare.target_union {
            Some(TargetUnion::Value(value)) => CompareTarget::Value(value),
            _ => CompareTarget::Value(Bytes::new()),
        },
    };
    let relation = match CompareResult::try_from(compare.result).map_err(|_| invalid())? {
        CompareResult::Equal => Relation::Equal,
        CompareResult::NotEqual => Relation::NotEqual,
        CompareResult::Greater => Relation::Greater,
        CompareResult::Less => Relation::Less,
    };
    Ok(CompareOp { keys: KeyRange::from_wire(compare.key, compare.range_end), target, relation })
}

pub(super) fn key_value(entry: Entry) -> pb::KeyValue {
    pb::KeyValue {
        key: entry.key,
        value: entry.value,
        create_revision: entry.create_revision,
        mod_revision: entry.mod_revision,
        version: entry.version,
        lease: entry.lease,
    }
}

pub(super) fn event(event: Event, prev_kv: bool) -> pb::Event {
    let kind = if event.deleted { pb::event::EventType::Delete } else { pb::event::EventType::Put };
    let prev = event.prev.filter(|_| prev_kv).map(key_value);
    pb::Event { r#type: kind.into(), kv: Some(key_value(event.entry)), prev_kv: prev }
}

pub(super) fn range_response(result: OpResult, header: Option<pb::ResponseHeader>) -> pb::RangeResponse {
    let OpResult::Range { entries, more, count } = result else { return pb::RangeResponse::default() };
    let kvs = entries.into_iter().map(key_value).collect();
    pb::RangeResponse { header, kvs, more, count: i64::try_from(count).unwrap_or(i64::MAX) }
}

pub(super) fn put_response(result: OpResult, header: Option<pb::ResponseHeader>) -> pb::PutResponse {
    let OpResult::Put { prev } = result else { return pb::PutResponse::default() };
    pb::PutResponse { header, prev_kv: prev.map(key_value) }
}

pub(super) fn delete_response(result: OpResult, header: Option<pb::ResponseHeader>) -> pb::DeleteRangeResponse {
    let OpResult::Delete { deleted, prev } = result else { return pb::DeleteRangeResponse::default() };
    let prev_kvs = prev.into_iter().map(key_value).collect();
    pb::DeleteRangeResponse { header, deleted: i64::try_from(deleted).unwrap_or(i64::MAX), prev_kvs }
}

pub(super) fn txn_response(result: OpResult, header: Option<pb::ResponseHeader>) -> pb::TxnResponse {
    let OpResult::Txn { succeeded, results } = result else { return pb::TxnResponse::default() };
    let responses = results.into_iter().map(|result| response_op(result, header)).collect();
    pb::TxnResponse { header, succeeded, responses }
}

fn response_op(result: OpResult, header: Option<pb::ResponseHeader>) -> pb::ResponseOp {
    let response = match result {
        result @ OpResult::Range { .. } => Response::ResponseRange(range_response(result, header)),
        result @ OpResult::Put { .. } => Response::ResponsePut(put_response(result, header)),
        result @ OpResult::Delete { .. } => Response::ResponseDeleteRange(delete_response(result, header)),
        result @ OpResult::Txn { .. } => Response::ResponseTxn(txn_response(result, header)),
    };
    pb::ResponseOp { response: Some(response) }
}
