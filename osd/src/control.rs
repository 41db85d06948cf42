//! The control plane of an OSD: one task beside its thread. It says that the OSD is there, brings it the cluster state,
//! makes activation records durable, and writes statistics. All of it waits while the state store is away; the data
//! path does not.

mod activation;
mod follow;
mod registration;
mod statistics;

use std::sync::Arc;
use std::sync::mpsc as blocking;

use cluster_proto::map::keys;
use cluster_proto::{OsdId, Uuid};
use cluster_state::StateStore;
use tokio::sync::{mpsc, watch};

use crate::activations::ActivationRequest;
use crate::command::CommandSender;
use crate::handle::End;
use crate::live::Live;

pub(crate) use registration::Registration;

/// Everything the task needs.
pub(crate) struct Control {
    pub id: OsdId,
    pub cluster: Uuid,
    pub state: Arc<dyn StateStore>,
    pub commands: CommandSender,
    pub activations: mpsc::Receiver<ActivationRequest>,
    pub live: watch::Receiver<Live>,
    pub registration: Registration,
}

impl Control {
    /// Works until the OSD is told to stop or has ended, then deregisters it.
    pub async fn run(
        self,
        mut stop: watch::Receiver<bool>,
        mut end: watch::Receiver<Option<End>>,
        deregistered: blocking::SyncSender<()>,
    ) {
        let Self { id, cluster, state, commands, activations, live, registration } = self;
        let follow = |prefix| follow::run(state.clone(), prefix, cluster, commands.clone());
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            _ = end.wait_for(Option::is_some) => {}
            never = registration.run(&commands) => match never {},
            never = follow(keys::CONFIG) => match never {},
            never = follow(keys::OSDS) => match never {},
            never = follow(keys::PGS) => match never {},
            never = follow(keys::SCRUBS) => match never {},
            () = activation::run(id, state.as_ref(), activations, &commands) => {}
            never = statistics::run(id, state.as_ref(), live) => match never {},
        }
        registration.end().await;
        // Nobody waits if the handle was dropped.
        let _ = deregistered.send(());
    }
}
