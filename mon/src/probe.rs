//! Asking an OSD whether it is there, and in which run.
//!
//! A suspicion or a lease that ended says that somebody does not reach an OSD. What the monitor itself finds out is worth
//! more: an address where nothing listens, or where somebody else does, proves that the run which registered it is over;
//! silence proves nothing, as the OSD may only be slow, or cut off from us.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use cluster_proto::auth::Credentials;
use cluster_proto::link::{Identity, LinkId, Outgoing};
use cluster_proto::wire::{Decoder, Message, Nonce, Refusal, Role, encode};
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

/// Asks the OSD at `address`, at most for [`PROBE_TIMEOUT`]. `credentials`: the cluster's, if it has a key; then the answer must be
/// proved with it.
pub async fn probe(cluster: Uuid, credentials: Option<Credentials>, osd: OsdId, address: SocketAddr) -> Probe {
    let identity = Identity { cluster, role: Role::Client(MONITOR), incarnation: Incarnation(0), credentials };
    match timeout(PROBE_TIMEOUT, ask(&identity, osd, address)).await {
        Ok(Ok(result)) => result,
        // A reset of an open connection is no proof: the process may go on with others.
        Ok(Err(_)) | Err(_) => Probe::Silent,
    }
}

async fn ask(identity: &Identity, osd: OsdId, address: SocketAddr) -> io::Result<Probe> {
    let mut connection = match TcpStream::connect(address).await {
        Ok(connection) => connection,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(Probe::Refused),
        Err(error) => return Err(error),
    };
    let nonce = cluster_io::entropy::bytes().map_err(io::Error::other)?;
    let mut link = Outgoing::new(osd);
    link.poll(0, Some(address), LinkId(0));
    let Some(hello) = link.handle_connected(identity, Nonce(nonce)) else { return Ok(Probe::Silent) };
    let mut bytes = Vec::new();
    // Introductions have no payload.
    let _ = encode(&hello, &mut bytes);
    connection.write_all(&bytes).await?;
    let refused = match answer(&mut connection).await? {
        Some(Message::Welcome(theirs)) => match link.handle_welcome(0, identity, &theirs) {
            Ok(introduced) => return Ok(Probe::Alive(introduced.incarnation)),
            Err(why) => {
                // So that the other side can say why, too. It may be gone already.
                bytes.clear();
                let _ = encode(&Message::Refuse(why), &mut bytes);
                let _ = connection.write_all(&bytes).await;
                why
            }
        },
        Some(Message::Refuse(why)) => why,
        _ => return Ok(Probe::Silent),
    };
    tracing::warn!(osd = osd.0, %address, "an OSD and this monitor do not come together: {refused}");
    // Somebody else listens where the OSD did.
    let gone = matches!(refused, Refusal::Target | Refusal::Cluster);
    Ok(if gone { Probe::Refused } else { Probe::Silent })
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
    use cluster_proto::auth::{ClusterKey, Introductions, Side};
    use cluster_proto::wire::Welcome;
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
        let identity =
            Identity { cluster: CLUSTER, role: Role::Osd(OsdId(osd)), incarnation: Incarnation(77), credentials: None };
        Message::Welcome(Welcome { hello: identity.hello(OsdId(osd), Nonce::ZERO), proof: None })
    }

    async fn found(message: Option<Message>) -> Probe {
        probe(CLUSTER, None, OsdId(4), serve(message).await).await
    }

    #[tokio::test]
    async fn with_a_key_only_a_proved_answer_counts() {
        let credentials = |byte| Credentials { key: ClusterKey::from_bytes([byte; 32]), encrypt: false };
        let bare = serve(Some(welcome(4))).await;
        assert_eq!(probe(CLUSTER, Some(credentials(1)), OsdId(4), bare).await, Probe::Silent);
        for (byte, expected) in [(1, Probe::Alive(Incarnation(77))), (2, Probe::Silent)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                let (mut connection, _) = listener.accept().await.unwrap();
                let Some(Message::Hello(theirs)) = answer(&mut connection).await.unwrap() else { return };
                let role = Role::Osd(OsdId(4));
                let identity = Identity {
                    cluster: CLUSTER,
                    role,
                    incarnation: Incarnation(77),
                    credentials: Some(credentials(byte)),
                };
                let hello = identity.hello(OsdId(4), Nonce([7; 32]));
                let introductions = Introductions { hello: &theirs, welcome: &hello };
                let proof = introductions.proof(&credentials(byte).key, Side::Accepting);
                let mut bytes = Vec::new();
                let _ = encode(&Message::Welcome(Welcome { hello, proof: Some(proof) }), &mut bytes);
                connection.write_all(&bytes).await.unwrap();
            });
            assert_eq!(probe(CLUSTER, Some(credentials(1)), OsdId(4), address).await, expected);
        }
    }

    #[tokio::test]
    async fn an_osd_that_answers_is_alive_in_its_run() {
        assert_eq!(found(Some(welcome(4))).await, Probe::Alive(Incarnation(77)));
    }

    #[tokio::test]
    async fn a_free_port_and_a_stranger_prove_that_the_run_is_over() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(probe(CLUSTER, None, OsdId(4), free).await, Probe::Refused);
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
