//! The cluster key: what is proved and what is derived with it.
//!
//! Everybody who belongs to a cluster has its key, and whoever has the key belongs to it: it tells members from strangers, not
//! members from each other. Each side of a new connection proves that it has the key by a MAC over both introductions
//! ([`crate::link`] has the conversation); both contain a fresh random number, so that neither proof was ever seen before. The
//! two proofs have different labels, so that none can be handed back to its maker. From the key and the same
//! introductions each direction gets its own key for AES-256-GCM ([`crate::wire::Session`]).
//!
//! Without encryption the proofs say who has connected, not who writes later bytes: somebody who can change packets on
//! their way can still put his own behind the introduction. Encryption closes that too.
//!
//! The arithmetic is that of `ring`: constant time, AES and GHASH with the processor's vector instructions, maintained for
//! rustls, and part of every Blockyard binary already because etcd is reached through TLS. It keeps copies of keys for as long as a connection lives and does not overwrite them when it ends;
//! the cluster key's own memory is overwritten.

use std::fmt;
use std::str::FromStr;

use ring::{hkdf, hmac};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::wire::{Hello, Nonce, Opener, Proof, Sealer, Session};

/// Length of a cluster key. Bytes.
pub const KEY_LEN: usize = 32;

/// The secret that all daemons and clients of a cluster share: 256 random bits. As text it is 64 hexadecimal digits.
///
/// It is never printed by `Debug`, and overwritten when dropped.
#[derive(Clone)]
pub struct ClusterKey(Zeroizing<[u8; KEY_LEN]>);

/// A text that is not a cluster key. Does not repeat the text: it may be one almost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("a cluster key is {} hexadecimal digits, and this is not", 2 * KEY_LEN)]
pub struct KeyError;

impl ClusterKey {
    /// The key with these bytes, which must come from a good source of randomness.
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// As text for a key file: 64 lower-case hexadecimal digits. Overwritten when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(2 * KEY_LEN));
        for byte in *self.0 {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(nibble), 16).unwrap_or_default());
            }
        }
        text
    }

    /// Eight digits by which people can tell keys apart, and that tell nothing about the key.
    pub fn fingerprint(&self) -> String {
        let tag = hmac::sign(&self.mac_key(), b"blockyard fingerprint");
        tag.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn mac_key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &*self.0)
    }
}

impl FromStr for ClusterKey {
    type Err = KeyError;

    /// Takes the digits in either case, with white space around them.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let digits = text.trim().as_bytes();
        if digits.len() != 2 * KEY_LEN {
            return Err(KeyError);
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(KeyError);
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey(fingerprint {})", self.fingerprint())
    }
}

/// What a process that belongs to a guarded cluster has.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The cluster's key.
    pub key: ClusterKey,
    /// Encrypt connections. If either side wants it, it is done.
    pub encrypt: bool,
}

/// Which side of a connection: the one that made it, or the one that listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// It made the connection, and speaks first.
    Connecting,
    /// It listens.
    Accepting,
}

impl Side {
    /// The one at the other end.
    pub fn other(self) -> Side {
        match self {
            Side::Connecting => Side::Accepting,
            Side::Accepting => Side::Connecting,
        }
    }

    fn proof_label(self) -> &'static [u8] {
        match self {
            Side::Connecting => b"blockyard proof of the connecting side",
            Side::Accepting => b"blockyard proof of the accepting side",
        }
    }

    fn traffic_label(self) -> &'static [u8] {
        match self {
            Side::Connecting => b"blockyard traffic of the connecting side",
            Side::Accepting => b"blockyard traffic of the accepting side",
        }
    }
}

/// The introductions of both sides of one connection: what every proof and key of the connection depends on, with every field.
#[derive(Clone, Copy, Debug)]
pub struct Introductions<'a> {
    /// Of the connecting side.
    pub hello: &'a Hello,
    /// Of the accepting side.
    pub welcome: &'a Hello,
}

impl Introductions<'_> {
    /// The proof that a side has the key.
    pub fn proof(&self, key: &ClusterKey, side: Side) -> Proof {
        let mut mac = hmac::Context::with_key(&key.mac_key());
        mac.update(side.proof_label());
        mac.update(&self.hello.to_bytes());
        mac.update(&self.welcome.to_bytes());
        let tag = mac.sign();
        let mut proof = [0; Proof::LEN];
        proof.copy_from_slice(tag.as_ref());
        Proof(proof)
    }

    /// Is this the proof of a side that has the key? Takes the same time whatever is wrong.
    pub fn is_proved(&self, key: &ClusterKey, side: Side, proof: &Proof) -> bool {
        let message = [side.proof_label(), &self.hello.to_bytes(), &self.welcome.to_bytes()].concat();
        hmac::verify(&key.mac_key(), &message, &proof.0).is_ok()
    }

    /// The keys of the connection as this side needs them, if it is to be encrypted: if either side wants that.
    pub fn session(&self, credentials: &Credentials, side: Side) -> Option<Box<Session>> {
        if !self.hello.security.is_encrypted() && !self.welcome.security.is_encrypted() {
            return None;
        }
        let Nonce(first) = self.hello.nonce;
        let Nonce(second) = self.welcome.nonce;
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, &[first, second].concat());
        let root = salt.extract(&*credentials.key.0);
        Some(Box::new(Session {
            sealer: Sealer::new(self.traffic_secret(&root, side)),
            opener: Opener::new(self.traffic_secret(&root, side.other())),
        }))
    }

    fn traffic_secret(&self, root: &hkdf::Prk, side: Side) -> hkdf::Prk {
        let info = [side.traffic_label(), &self.hello.to_bytes(), &self.welcome.to_bytes()];
        let okm = root.expand(&info, hkdf::HKDF_SHA256);
        okm.expect("a secret of the length of the hash can always be expanded").into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ClusterKey {
        ClusterKey::from_bytes(std::array::from_fn(|i| i as u8 * 7))
    }

    #[test]
    fn text_and_back() {
        let text = key().to_text();
        assert_eq!(text.len(), 64);
        assert!(text.starts_with("00070e15"), "{}", *text);
        for form in [text.to_string(), format!("  {}\n", text.to_uppercase())] {
            assert_eq!(*form.parse::<ClusterKey>().unwrap().0, *key().0);
        }
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let good = key().to_text().to_string();
        let mut accents = good.clone();
        accents.replace_range(..2, "é");
        for bad in
            ["", "abc", &good[1..], &format!("{good}0"), &good.replace('7', "g"), &good.replace('7', "+"), &accents]
        {
            let error = bad.parse::<ClusterKey>().unwrap_err();
            assert_eq!(error, KeyError, "{bad}");
            assert!(bad.is_empty() || !error.to_string().contains(bad));
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        let credentials = Credentials { key: key(), encrypt: true };
        let printed = format!("{credentials:?} {credentials:#?}");
        assert!(!printed.contains(&key().to_text()[..8]), "{printed}");
        assert!(!printed.contains("7, 14"), "{printed}");
        assert!(printed.contains(&key().fingerprint()), "{printed}");
        assert_ne!(key().fingerprint(), ClusterKey::from_bytes([1; KEY_LEN]).fingerprint());
    }
}
