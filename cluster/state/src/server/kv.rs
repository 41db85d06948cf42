//! Service KV: reads, writes and transactions.

use tonic::{Request, Response, Status};

use super::{Service, wire};
use crate::core::Op;
use crate::pb;
use crate::pb::kv_server::Kv;

#[tonic::async_trait]
impl Kv for Service {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let op = Op::Range(wire::range_op(request.into_inner())?);
        let (result, header) = self.call(move |core| core.handle_op(&op)).await?;
        Ok(Response::new(wire::range_response(result, header)))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let op = Op::Put(wire::put_op(request.into_inner()));
        let (result, header) = self.call(move |core| core.handle_op(&op)).await?;
        Ok(Response::new(wire::put_response(result, header)))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let op = Op::Delete(wire::delete_op(request.into_inner()));
        let (result, header) = self.call(move |core| core.handle_op(&op)).await?;
        Ok(Response::new(wire::delete_response(result, header)))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let op = Op::Txn(wire::txn_op(request.into_inner(), 1)?);
        let (result, header) = self.call(move |core| core.handle_op(&op)).await?;
        Ok(Response::new(wire::txn_response(result, header)))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let revision = request.into_inner().revision;
        let ((), header) = self.call(move |core| core.compact(revision)).await?;
        Ok(Response::new(pb::CompactionResponse { header }))
    }
}
