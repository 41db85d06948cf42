//! A bound on the number of connections: above it, new ones wait in the listener's queue.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::limits::CONNECTIONS_MAX;

/// Waiting time when the process has no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A connection that counts.
pub(super) struct Limited {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

/// Connections of `listener`, at most [`CONNECTIONS_MAX`] at a time. Ends with the stream.
pub(super) fn connections(listener: TcpListener) -> ReceiverStream<io::Result<Limited>> {
    let (accepted, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let serve = async {
            while let Ok(permit) = permits.clone().acquire_owned().await {
                let limited = Limited { stream: accept(&listener).await, _permit: permit };
                if accepted.send(Ok(limited)).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = serve => {}
            () = accepted.closed() => {}
        }
    });
    ReceiverStream::new(stream)
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small and somebody waits for each. A socket that refuses this still works.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection to the state store: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

impl Connected for Limited {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Limited {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Limited {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
