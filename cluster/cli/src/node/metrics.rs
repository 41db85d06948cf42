//! Metrics of the daemons of this process over HTTP.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

/// Makes metrics in the text format of Prometheus, at each scrape.
pub type Exporter = Arc<dyn Fn() -> String + Send + Sync>;
/// All of a process.
pub type Exports = Vec<Exporter>;

/// Serves until the listener fails.
pub async fn serve(listener: TcpListener, exports: Exports) -> io::Result<()> {
    let router = Router::new()
        .route("/", get(async || "Blockyard. Metrics: /metrics\n"))
        .route("/metrics", get(scrape))
        .with_state(exports);
    axum::serve(listener, router).await
}

async fn scrape(State(exports): State<Exports>) -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, exports.iter().map(|export| export()).collect::<String>())
}
