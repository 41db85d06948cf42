//! The bytes of one connection, both ways: what its driver keeps for it.

use buffer::Buffer;

use super::{DecodeError, Decoder, Message, Sealer, Session, encode};

/// Messages to bytes and back for one connection, in plain until its introduction is settled, sealed from then on if it has
/// keys.
///
/// A driver hands each message to its core and, as long as the channel [is not introduced](Channel::is_introduced), carries out
/// all that the core wants before it decodes another: one of these wishes is [`Channel::introduce`]. One that forgets it
/// finds that the next message is refused, nothing worse.
#[derive(Default)]
pub struct Channel {
    decoder: Decoder,
    sealer: Option<Sealer>,
}

impl Channel {
    /// Of a new connection: small messages in plain.
    pub fn new() -> Self {
        Self::default()
    }

    /// The introduction is settled; there is a session if the connection is to be encrypted.
    pub fn introduce(&mut self, session: Option<Box<Session>>) {
        let (sealer, opener) = session.map(|session| (session.sealer, session.opener)).unzip();
        self.sealer = sealer;
        self.decoder.introduce(opener);
    }

    /// Has the introduction been settled?
    pub fn is_introduced(&self) -> bool {
        self.decoder.is_introduced()
    }

    /// Appends a message to `out`. In plain its payload is left out and returned, to be sent right behind; sealed it is in `out`.
    pub fn encode(&mut self, message: &Message, out: &mut Vec<u8>) -> Option<Buffer> {
        match &mut self.sealer {
            None => encode(message, out),
            Some(sealer) => {
                sealer.seal(message, out);
                None
            }
        }
    }

    /// The next message of what arrived: [`Decoder::decode`].
    ///
    /// # Errors
    /// The stream is not this protocol, is damaged, or breaks a bound; the connection must be closed.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Message>, DecodeError> {
        self.decoder.decode(input)
    }
}
