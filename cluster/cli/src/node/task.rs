//! A task of the control plane that can be stopped, and whose end is noticed.

use std::future::Future;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::error::CliError;

/// A running task.
pub struct Task {
    stop: oneshot::Sender<()>,
    handle: JoinHandle<Result<(), String>>,
}

impl Task {
    /// Runs what `work` makes of a future that is ready when the task shall stop.
    pub fn spawn<F>(work: impl FnOnce(oneshot::Receiver<()>) -> F) -> Task
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        Task { stop, handle: tokio::spawn(work(stopped)) }
    }

    /// Stops it and waits for its end.
    pub async fn stop(self) -> Result<(), String> {
        drop(self.stop);
        self.handle.await.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// Waits until it ends although nobody asked for that.
    pub async fn failed(&mut self, what: &str) -> CliError {
        let why = match (&mut self.handle).await {
            Ok(Ok(())) => "it ended".to_owned(),
            Ok(Err(why)) => why,
            Err(error) => error.to_string(),
        };
        CliError::failed(format!("{what} failed: {why}"))
    }
}
