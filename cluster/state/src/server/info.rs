//! What clients ask a server about itself: services Cluster and Maintenance.

use tonic::{Request, Response, Status};

use super::Service;
use crate::pb;
use crate::pb::cluster_server::Cluster;
use crate::pb::maintenance_server::Maintenance;

/// The etcd version whose API this server speaks; clients decide by it what they may use.
const VERSION: &str = "3.4.0";

#[tonic::async_trait]
impl Cluster for Service {
    async fn member_list(&self, _: Request<pb::MemberListRequest>) -> Result<Response<pb::MemberListResponse>, Status> {
        let ((), header) = self.call(|_| Ok(())).await?;
        let member = pb::Member {
            id: self.store.id(),
            name: "blockyard".into(),
            peer_ur_ls: Vec::new(),
            client_ur_ls: vec![format!("http://{}", self.address)],
            is_learner: false,
        };
        Ok(Response::new(pb::MemberListResponse { header, members: vec![member] }))
    }
}

#[tonic::async_trait]
impl Maintenance for Service {
    async fn alarm(&self, _: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let ((), header) = self.call(|_| Ok(())).await?;
        Ok(Response::new(pb::AlarmResponse { header, alarms: Vec::new() }))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let (bytes, header) = self.call(|core| Ok(core.key_bytes())).await?;
        let revision = header.map_or(0, |header| header.revision).cast_unsigned();
        Ok(Response::new(pb::StatusResponse {
            header,
            version: VERSION.into(),
            db_size: i64::try_from(bytes).unwrap_or(i64::MAX),
            db_size_in_use: i64::try_from(bytes).unwrap_or(i64::MAX),
            leader: self.store.id(),
            raft_index: revision,
            raft_term: 1,
            raft_applied_index: revision,
            ..pb::StatusResponse::default()
        }))
    }
}
