//! The control plane's part: follows what exports are made of, and keeps the gateway registered.

mod exports;
mod registration;

use std::sync::{Arc, mpsc as blocking};

use cluster_io::Waker;
use cluster_state::StateStore;
use tokio::sync::{mpsc, watch};

use crate::catalog::ExportChange;
use crate::handle::End;
pub(crate) use registration::Registration;

/// The tasks of one gateway on the control plane's runtime.
pub(crate) struct Control {
    pub state: Arc<dyn StateStore>,
    pub changes: mpsc::Sender<Vec<ExportChange>>,
    pub waker: Waker,
    pub registration: Registration,
}

impl Control {
    /// Runs until the gateway is told to stop or has ended, and then deregisters it.
    pub(crate) async fn run(
        mut self,
        mut stop: watch::Receiver<bool>,
        mut end: watch::Receiver<Option<End>>,
        deregistered: blocking::SyncSender<()>,
    ) {
        tokio::select! {
            // A sender that is gone has the same meaning.
            _ = stop.wait_for(|stop| *stop) => {}
            _ = end.wait_for(Option::is_some) => {}
            never = self.registration.keep() => match never {},
            () = exports::follow(self.state.clone(), self.changes, self.waker) => {}
        }
        self.registration.end().await;
        // Nobody may be waiting for it.
        let _ = deregistered.try_send(());
    }
}
