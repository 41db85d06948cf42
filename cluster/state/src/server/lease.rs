//! Service Lease.

use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Service;
use crate::pb;
use crate::pb::lease_server::Lease;

/// Answers of one stream that may wait for a slow client.
const ANSWERS_WAITING_MAX: usize = 16;

#[tonic::async_trait]
impl Lease for Service {
    type LeaseKeepAliveStream = ReceiverStream<Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let pb::LeaseGrantRequest { ttl, id } = request.into_inner();
        let ((id, ttl_s), header) = self.call(move |core| core.lease_grant(id, ttl)).await?;
        Ok(Response::new(pb::LeaseGrantResponse { header, id, ttl: ttl_s.into(), error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let id = request.into_inner().id;
        let ((), header) = self.call(move |core| core.lease_revoke(id)).await?;
        Ok(Response::new(pb::LeaseRevokeResponse { header }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (answers, stream) = mpsc::channel(ANSWERS_WAITING_MAX);
        tokio::spawn(self.clone().keep_alive(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let (info, header) = self.call(move |core| Ok(core.lease(id))).await?;
        let mut answer = pb::LeaseTimeToLiveResponse { header, id, ttl: -1, granted_ttl: 0, keys: Vec::<Bytes>::new() };
        if let Some(info) = info {
            answer.ttl = info.remaining_s.into();
            answer.granted_ttl = info.ttl_s.into();
            answer.keys = if keys { info.keys } else { Vec::new() };
        }
        Ok(Response::new(answer))
    }

    async fn lease_leases(
        &self,
        _: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let (ids, header) = self.call(|core| Ok(core.leases())).await?;
        let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        Ok(Response::new(pb::LeaseLeasesResponse { header, leases }))
    }
}

impl Service {
    async fn keep_alive(
        mut self,
        mut requests: Streaming<pb::LeaseKeepAliveRequest>,
        answers: mpsc::Sender<Result<pb::LeaseKeepAliveResponse, Status>>,
    ) {
        let mut stopped = self.stopped.clone();
        loop {
            let request = tokio::select! {
                request = requests.message() => request,
                () = super::until_stopped(&mut stopped) => return,
            };
            let Ok(Some(pb::LeaseKeepAliveRequest { id })) = request else { return };
            let answer = self.keep_one_alive(id).await;
            let failed = answer.is_err();
            if answers.send(answer).await.is_err() || failed {
                return;
            }
        }
    }

    async fn keep_one_alive(&mut self, id: i64) -> Result<pb::LeaseKeepAliveResponse, Status> {
        let (ttl_s, header) = self.call(move |core| Ok(core.lease_keep_alive(id))).await?;
        Ok(pb::LeaseKeepAliveResponse { header, id, ttl: ttl_s.unwrap_or(0).into() })
    }
}
