//! Encryption of a connection: from the introduction on, the bytes of its messages travel in sealed records.
//!
//! A record is
//!
//! ```text
//! length u32 | length bytes, AES-256-GCM | tag 16
//! ```
//!
//! with the length as associated data and the record's number in its direction as nonce: a record that is changed, left
//! out, repeated or moved does not open. A message is sealed as one record, a large one as several, and never shares one with
//! another: an answer need not wait for more. Each direction has its own key; after [`RECORDS_PER_KEY`] records
//! it goes on with one derived from it, because a key must not seal too much (RFC 8446 §5.5 has the arithmetic).

use std::ops::Range;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;

use super::{DecodeError, HEADER_LEN, Message, encode};
use crate::layout::SECTOR;
use crate::limits::{WIRE_BODY_MAX, WIRE_PAYLOAD_MAX, WIRE_RECORD_MAX};

/// Bytes before a record's contents: its length.
const LEN: usize = 4;
const TAG_LEN: usize = 16;

/// Records of one direction after which its key changes: with full records 2^34 blocks of AES, the limit of RFC 8446 §5.5.
pub const RECORDS_PER_KEY: u64 = 1 << 20;

const _: () = assert!(HEADER_LEN + WIRE_BODY_MAX + WIRE_PAYLOAD_MAX / SECTOR * 4 <= WIRE_RECORD_MAX);
const _: () = assert!(RECORDS_PER_KEY as u128 * (WIRE_RECORD_MAX as u128 / 16) <= 1 << 34);

/// The keys of an encrypted connection, as one side has them.
#[derive(Debug)]
pub struct Session {
    /// For what we send.
    pub sealer: Sealer,
    /// For what we receive; belongs into [`Decoder::introduce`](super::Decoder::introduce).
    pub opener: Opener,
}

/// Key and position of one direction.
struct Direction {
    secret: hkdf::Prk,
    key: LessSafeKey,
    records: u64,
    records_per_key: u64,
}

impl Direction {
    fn new(secret: hkdf::Prk, records_per_key: u64) -> Self {
        Self { key: traffic_key(&secret), secret, records: 0, records_per_key }
    }

    /// The number of the next record as its nonce; changes the key when it is due.
    fn next_nonce(&mut self) -> Nonce {
        if self.records > 0 && self.records.is_multiple_of(self.records_per_key) {
            let next = self.secret.expand(&[b"next secret"], hkdf::HKDF_SHA256);
            self.secret = next.expect("a secret of the length of the hash can always be expanded").into();
            self.key = traffic_key(&self.secret);
        }
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&self.records.to_le_bytes());
        self.records += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

impl std::fmt::Debug for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "record {}", self.records)
    }
}

fn traffic_key(secret: &hkdf::Prk) -> LessSafeKey {
    let key = secret.expand(&[b"key"], &AES_256_GCM);
    LessSafeKey::new(UnboundKey::from(key.expect("a key is shorter than what can be expanded")))
}

/// Seals what one side sends.
#[derive(Debug)]
pub struct Sealer(Direction);

impl Sealer {
    pub(crate) fn new(secret: hkdf::Prk) -> Self {
        Self(Direction::new(secret, RECORDS_PER_KEY))
    }

    /// Appends a message, all of it, to `out`: the counterpart of [`encode`] for encrypted connections. The payload is copied once,
    /// and sealed where it then lies.
    pub fn seal(&mut self, message: &Message, out: &mut Vec<u8>) {
        let mut start = begin_record(out);
        let payload = encode(message, out);
        let mut payload = payload.as_deref().unwrap_or(&[]);
        loop {
            let room = WIRE_RECORD_MAX - (out.len() - start - LEN);
            let (now, later) = payload.split_at(room.min(payload.len()));
            out.reserve(now.len() + TAG_LEN);
            out.extend_from_slice(now);
            self.finish_record(out, start);
            if later.is_empty() {
                return;
            }
            payload = later;
            start = begin_record(out);
        }
    }

    fn finish_record(&mut self, out: &mut Vec<u8>, start: usize) {
        let len = ((out.len() - start - LEN) as u32).to_le_bytes();
        out[start..start + LEN].copy_from_slice(&len);
        let nonce = self.0.next_nonce();
        let tag = self.0.key.seal_in_place_separate_tag(nonce, Aad::from(len), &mut out[start + LEN..]);
        out.extend_from_slice(tag.expect("a record is far shorter than AES-GCM allows").as_ref());
    }
}

/// Leaves room for the length; returns where the record begins.
fn begin_record(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; LEN]);
    start
}

/// Opens what one side receives. Its memory is bounded by one record.
#[derive(Debug)]
pub struct Opener {
    direction: Direction,
    /// The record being collected, or opened.
    record: Vec<u8>,
    /// What of the opened record was not taken yet; empty while collecting.
    unread: Range<usize>,
}

impl Opener {
    pub(crate) fn new(secret: hkdf::Prk) -> Self {
        Self { direction: Direction::new(secret, RECORDS_PER_KEY), record: Vec::new(), unread: 0..0 }
    }

    /// What was opened and not taken.
    pub(super) fn unread(&self) -> &[u8] {
        &self.record[self.unread.clone()]
    }

    /// Only the last `left` bytes are still not taken.
    pub(super) fn keep(&mut self, left: usize) {
        self.unread.start = self.unread.end - left;
        if left == 0 {
            self.record.clear();
            self.unread = 0..0;
        }
    }

    /// Takes bytes from the front of `input`; true when they completed a record, which is then [`Opener::unread`].
    pub(super) fn collect(&mut self, input: &mut &[u8]) -> Result<bool, DecodeError> {
        debug_assert!(self.unread.is_empty(), "the last record is taken first");
        if !self.fill(input, LEN) {
            return Ok(false);
        }
        let Some(len) = self.record.first_chunk::<LEN>().copied() else { return Ok(false) };
        let bytes = u32::from_le_bytes(len) as usize;
        if !(1..=WIRE_RECORD_MAX).contains(&bytes) {
            return Err(DecodeError { field: "length of a sealed record", offset: 0 });
        }
        if !self.fill(input, LEN + bytes + TAG_LEN) {
            return Ok(false);
        }
        let nonce = self.direction.next_nonce();
        let opened = self.direction.key.open_in_place(nonce, Aad::from(len), &mut self.record[LEN..]);
        if opened.is_err() {
            return Err(DecodeError {
                field: "seal of a record: it was changed, left out or repeated on its way",
                offset: 0,
            });
        }
        self.unread = LEN..LEN + bytes;
        Ok(true)
    }

    /// Collects until the record has `want` bytes.
    fn fill(&mut self, input: &mut &[u8], want: usize) -> bool {
        let missing = want.saturating_sub(self.record.len());
        let (taken, rest) = input.split_at(missing.min(input.len()));
        self.record.reserve_exact(missing);
        self.record.extend_from_slice(taken);
        *input = rest;
        self.record.len() >= want
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Decoder, Refusal};

    fn pair(records_per_key: u64) -> (Sealer, Decoder) {
        let secret = || hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &[3; 32]);
        let opener = Opener { direction: Direction::new(secret(), records_per_key), ..Opener::new(secret()) };
        let mut decoder = Decoder::new();
        decoder.introduce(Some(opener));
        (Sealer(Direction::new(secret(), records_per_key)), decoder)
    }

    fn sealed(sealer: &mut Sealer) -> Vec<u8> {
        let mut out = Vec::new();
        sealer.seal(&Message::Ping, &mut out);
        out
    }

    #[test]
    fn keys_change_on_both_sides_after_the_same_record() {
        let (mut sealer, mut decoder) = pair(3);
        let (mut unchanging, _) = pair(u64::MAX);
        for number in 0..10 {
            let bytes = sealed(&mut sealer);
            assert_eq!(decoder.decode(&mut &bytes[..]), Ok(Some(Message::Ping)));
            assert_eq!(bytes == sealed(&mut unchanging), number < 3, "record {number}");
        }
    }

    #[test]
    fn equal_messages_are_sealed_differently() {
        let (mut sealer, _) = pair(RECORDS_PER_KEY);
        assert_ne!(sealed(&mut sealer), sealed(&mut sealer));
    }

    #[test]
    fn a_record_opens_once_and_in_its_place() {
        let (mut sealer, mut decoder) = pair(RECORDS_PER_KEY);
        let (first, second) = (sealed(&mut sealer), sealed(&mut sealer));
        assert!(decoder.decode(&mut &second[..]).is_err(), "left out");
        let (_, mut decoder) = pair(RECORDS_PER_KEY);
        assert_eq!(decoder.decode(&mut &first[..]), Ok(Some(Message::Ping)));
        assert!(decoder.decode(&mut &first[..]).is_err(), "repeated");
    }

    #[test]
    fn a_changed_bit_anywhere_is_noticed() {
        let (mut sealer, _) = pair(RECORDS_PER_KEY);
        let mut bytes = Vec::new();
        sealer.seal(&Message::Refuse(Refusal::Target), &mut bytes);
        for bit in 0..bytes.len() * 8 {
            let (_, mut decoder) = pair(RECORDS_PER_KEY);
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            // A greater length only means that more is awaited, and never opened.
            let mut longer = changed.clone();
            longer.resize(WIRE_RECORD_MAX + LEN + TAG_LEN, 0);
            assert!(decoder.decode(&mut &longer[..]).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn lengths_out_of_bounds_are_refused_before_anything_is_collected() {
        for len in [0, WIRE_RECORD_MAX as u32 + 1, u32::MAX] {
            let (_, mut decoder) = pair(RECORDS_PER_KEY);
            let error = decoder.decode(&mut &len.to_le_bytes()[..]).unwrap_err();
            assert_eq!(error.field, "length of a sealed record");
        }
    }
}
