//! Asking an OSD whether it is there, and in which run.
//!
//! A suspicion or a lease that ended says that somebody does not reach an OSD. What the monitor itself finds out is worth
//! more: an address where nothing listens, or where somebody else does, proves that the run which registered it is over;
//! silence proves nothing, as the OSD may only be slow, or cut off from us.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use cluster_proto::link::Identity;
use cluster_proto::wire::{Decoder, Message, Refusal, Role, encode};
use cluster_proto::{ClientId, Incarnation, OsdId, Uuid};
use mon_core::liveness::Probe;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a probe waits for an answer, in all.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// The number under which the monitor introduces itself. A client that asks for nothing leaves no trace, so it may be
/// that of another monitor too.
const MONITOR: ClientId = ClientId(u64::MAX);
/// Bytes that an introduction has at most.
const ANSWER_MAX: usize = 4096;

/// Asks the OSD at `address`, at most for [`PROBE_TIMEOUT`].
pub async fn probe(cluster: Uuid, osd: OsdId, address: SocketAddr) -> Probe {
    match timeout(PROBE_TIMEOUT, ask(cluster, osd, address)).await {
        Ok(Ok(result)) => result,
        // A reset of an open connection is no proof: the process may go on with others.
        Ok(Err(_)) | Err(_) => Probe::Silent,
    }
}

async fn ask(cluster: Uuid, osd: OsdId, address: SocketAddr) -> io::Result<Probe> {
    let mut connection = match TcpStream::connect(address).await {
        Ok(connection) => connection,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(Probe::Refused),
        Err(error) => return Err(error),
    };
    let identity = Identity { cluster, role: Role::Client(MONITOR), incarnation: Incarnation(0) };
    let mut hello = Vec::new();
    // Introductions have no payload.
    let _ = encode(&Message::Hello(identity.hello(osd)), &mut hello);
    connection.write_all(&hello).await?;
    Ok(match answer(&mut connection).await? {
        Some(Message::Welcome(theirs)) if theirs.cluster == cluster && theirs.role == Role::Osd(osd) => {
            Probe::Alive(theirs.incarnation)
        }
        Some(Message::Welcome(_)) | Some(Message::Refuse(Refusal::Target | Refusal::Cluster)) => Probe::Refused,
        _ => Probe::Silent,
    })
}

/// The first message; `None` if it is none of this protocol, or too long for an introduction.
async fn answer(connection: &mut TcpStream) -> io::Result<Option<Message>> {
    let (mut decoder, mut received, mut bytes) = (Decoder::new(), 0, [0; 512]);
    while received < ANSWER_MAX {
        let n = connection.read(&mut bytes).await?;
        if n == 0 {
            return Ok(None);
        }
        received += n;
        match decoder.decode(&mut &bytes[..n]) {
            Ok(None) => {}
            Ok(message) => return Ok(message),
            Err(_) => return Ok(None),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::wire::{Hello, PROTOCOL};
    use tokio::net::TcpListener;
    use tokio::time::{Instant, sleep};

    const CLUSTER: Uuid = Uuid::from_u128(3);

    /// An OSD that says this to whoever introduces itself, byte by byte; `None`: nothing.
    async fn serve(message: Option<Message>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let Some(Message::Hello(hello)) = answer(&mut connection).await.unwrap() else { panic!("no introduction") };
            assert_eq!((hello.cluster, hello.target), (CLUSTER, OsdId(4)));
            let Some(message) = message else { return sleep(Duration::from_secs(60)).await };
            let mut bytes = Vec::new();
            let _ = encode(&message, &mut bytes);
            for byte in bytes {
                connection.write_all(&[byte]).await.unwrap();
                connection.flush().await.unwrap();
            }
        });
        address
    }

    fn welcome(osd: u32) -> Message {
        let (incarnation, target) = (Incarnation(77), OsdId(osd));
        Message::Welcome(Hello { protocol: PROTOCOL, cluster: CLUSTER, role: Role::Osd(target), incarnation, target })
    }

    async fn found(message: Option<Message>) -> Probe {
        probe(CLUSTER, OsdId(4), serve(message).await).await
    }

    #[tokio::test]
    async fn an_osd_that_answers_is_alive_in_its_run() {
        assert_eq!(found(Some(welcome(4))).await, Probe::Alive(Incarnation(77)));
    }

    #[tokio::test]
    async fn a_free_port_and_a_stranger_prove_that_the_run_is_over() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(probe(CLUSTER, OsdId(4), free).await, Probe::Refused);
        assert_eq!(found(Some(welcome(5))).await, Probe::Refused);
        assert_eq!(found(Some(Message::Refuse(Refusal::Target))).await, Probe::Refused);
    }

    #[tokio::test]
    async fn silence_and_nonsense_prove_nothing() {
        let begin = Instant::now();
        assert_eq!(found(None).await, Probe::Silent);
        assert!(begin.elapsed() >= PROBE_TIMEOUT && begin.elapsed() < 4 * PROBE_TIMEOUT, "{:?}", begin.elapsed());
        assert_eq!(found(Some(Message::Refuse(Refusal::Protocol))).await, Probe::Silent);
        assert_eq!(found(Some(Message::Ping)).await, Probe::Silent);
    }
}
