//! What clients do: random operations on a few hot places, each write with content that tells who wrote it.

use buffer::{Buffer, BufferMut};
use cluster_client::{ImageOp, ImageReply};
use cluster_proto::map::ImmediateCommit;
use cluster_proto::{SECTOR, Status};

use crate::checker::{CHUNK, Did, Entry, History};
use crate::rng::Rng;

/// What kind of operation it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Write zeroes, discard or object deletion.
    Zero,
    /// Make everything answered durable.
    Flush,
    /// Compare one chunk with the content of this operation (0: zeroes) and write.
    Swap {
        /// Whose content is expected.
        expect: u64,
    },
}

/// An operation that a client started.
#[derive(Clone, Debug)]
pub struct Record {
    /// Event number of its start.
    pub start: u64,
    /// Event number of its answer.
    pub end: Option<u64>,
    /// Its kind.
    pub kind: Kind,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// For reads: the values found, by chunk. For a swap: whether it succeeded.
    pub found: Vec<u64>,
    /// For a swap: whether it succeeded.
    pub swapped: Option<bool>,
    /// The client's run.
    pub client: u64,
    /// Whole sectors that it changes may be lost with the power until the client has flushed.
    pub lazy: bool,
}

impl Record {
    /// An operation that has not begun.
    pub fn new(kind: Kind, offset: u64, len: u64) -> Record {
        Record { start: 0, end: None, kind, offset, len, found: Vec::new(), swapped: None, client: 0, lazy: false }
    }

    /// Whether what it does to a chunk may be lost. Of partial sectors only the compare-and-write that changes them is known.
    fn is_lazy_at(&self, chunk: u64) -> bool {
        let sector = chunk * CHUNK / SECTOR as u64 * SECTOR as u64;
        self.lazy && self.offset <= sector && sector + SECTOR as u64 <= self.offset + self.len
    }
}

/// Content of chunk `chunk` as written by operation `op`; operation 0 stands for zeroes.
fn content(op: u64, chunk: u64) -> u64 {
    if op == 0 { 0 } else { op << 24 | chunk }
}

/// What operation `op` writes there.
pub(crate) fn fill(op: u64, offset: u64, len: u64) -> Buffer {
    let mut data = BufferMut::for_overwrite(len as usize);
    for (i, chunk) in data.chunks_mut(CHUNK as usize).enumerate() {
        let word = content(op, offset / CHUNK + i as u64).to_le_bytes();
        chunk.chunks_mut(8).for_each(|w| w.copy_from_slice(&word));
    }
    data.freeze()
}

/// The operation that wrote a chunk, or none if nobody can have.
fn author(chunk: u64, bytes: &[u8]) -> Option<u64> {
    let word = u64::from_le_bytes(bytes[..8].try_into().ok()?);
    let same = bytes.chunks(8).all(|w| w == &bytes[..8]);
    let op = word >> 24;
    (same && word == content(op, chunk)).then_some(op)
}

/// Sizes of what is worked on.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Image size. Bytes.
    pub size: u64,
    /// Object size. Bytes.
    pub block: u64,
}

/// Makes operation number `op`.
pub fn make(rng: &mut Rng, shape: Shape, op: u64) -> (Record, ImageOp) {
    let sectors = shape.size / SECTOR as u64;
    let per_object = shape.block / SECTOR as u64;
    // Hot: the first sectors of each object and those around its end.
    let hot = [0, 1, 2, per_object - 1, per_object, per_object + 1, 2 * per_object, sectors - 1];
    let first =
        if rng.one_in(4) { rng.below(sectors) } else { hot[rng.below(hot.len() as u64) as usize].min(sectors - 1) };
    let count = if rng.one_in(8) { rng.range(1, 24) } else { rng.range(1, 4) }.min(sectors - first);
    let (mut offset, mut len) = (first * SECTOR as u64, count * SECTOR as u64);
    if rng.one_in(3) {
        // Not on sector boundaries.
        offset += CHUNK * rng.below(8);
        len = CHUNK * rng.range(1, 12);
    }
    offset = offset.min(shape.size - CHUNK);
    len = len.min(shape.size - offset);
    let record = Record::new;
    match rng.below(20) {
        0..=7 => (record(Kind::Read, offset, len), ImageOp::Read { offset, len }),
        8..=15 => (record(Kind::Write, offset, len), ImageOp::Write { offset, data: fill(op, offset, len) }),
        16 => {
            let keep_allocated = rng.one_in(3);
            (record(Kind::Zero, offset, len), ImageOp::WriteZeroes { offset, len, keep_allocated })
        }
        17 => discard(rng, shape, offset, len, record),
        _ => {
            let expect = if rng.one_in(2) { 0 } else { op.saturating_sub(rng.range(1, 30)) };
            let len = CHUNK;
            let compare = fill(expect, offset, len);
            let data = fill(op, offset, len);
            (record(Kind::Swap { expect }, offset, len), ImageOp::CompareAndWrite { offset, compare, data })
        }
    }
}

fn discard(
    rng: &mut Rng,
    shape: Shape,
    offset: u64,
    len: u64,
    record: impl Fn(Kind, u64, u64) -> Record,
) -> (Record, ImageOp) {
    if rng.one_in(3) {
        let object = offset / shape.block;
        let start = object * shape.block;
        let bytes = shape.block.min(shape.size - start);
        let (first, end) = (object as u32, object as u32 + 1);
        return (record(Kind::Zero, start, bytes), ImageOp::DeleteObjects { first, end });
    }
    // Only whole sectors are surely dropped; the end of the image counts as one.
    let sector = SECTOR as u64;
    let start = offset.next_multiple_of(sector);
    let end = if offset + len == shape.size { shape.size } else { (offset + len) / sector * sector };
    let bytes = end.saturating_sub(start);
    (record(Kind::Zero, start, bytes), ImageOp::Discard { offset, len })
}

/// Takes the answer into the record.
///
/// # Errors
/// The answer is one that no client may ever see.
pub fn answered(record: &mut Record, stamp: u64, reply: Result<ImageReply, Status>) -> Result<(), String> {
    record.end = Some(stamp);
    match (record.kind, reply) {
        (Kind::Read, Ok(ImageReply::Data(pieces))) => {
            let bytes: Vec<u8> = pieces.iter().flat_map(|p| p.iter().copied()).collect();
            if bytes.len() as u64 != record.len {
                return Err(format!("a read of {} bytes returned {}", record.len, bytes.len()));
            }
            for (i, chunk) in bytes.chunks(CHUNK as usize).enumerate() {
                let number = record.offset / CHUNK + i as u64;
                let op = author(number, chunk)
                    .ok_or_else(|| format!("chunk {number} was read with content that nobody wrote"))?;
                record.found.push(op);
            }
            Ok(())
        }
        (Kind::Write | Kind::Zero | Kind::Flush, Ok(ImageReply::Done)) => Ok(()),
        (Kind::Swap { .. }, Ok(ImageReply::Done)) => {
            record.swapped = Some(true);
            Ok(())
        }
        (Kind::Swap { .. }, Err(Status::Mismatch)) => {
            record.swapped = Some(false);
            Ok(())
        }
        (kind, other) => Err(format!("{kind:?} at {} of {} bytes was answered {other:?}", record.offset, record.len)),
    }
}

/// Whether an operation may be answered before it is durable, in a pool of this kind.
pub fn is_lazy(record: &Record, op: &ImageOp, pool: ImmediateCommit) -> bool {
    let bytes = if let ImageOp::Discard { .. } | ImageOp::WriteZeroes { keep_allocated: false, .. } = op {
        0
    } else {
        record.len
    };
    matches!(record.kind, Kind::Write | Kind::Zero)
        && !matches!(op, ImageOp::DeleteObjects { .. })
        && pool.is_lazy(bytes as usize)
}

/// All records as per-chunk histories.
pub fn history(records: &[Record]) -> History {
    let mut history = History::default();
    for (index, record) in records.iter().enumerate() {
        let op = index as u64 + 1;
        if record.kind == Kind::Flush {
            history.add_sync(record.client, record.start, record.end);
            continue;
        }
        for i in 0..record.len / CHUNK {
            let chunk = record.offset / CHUNK + i;
            let did = match record.kind {
                Kind::Read => match record.found.get(i as usize) {
                    Some(&value) => Did::Read(value),
                    None => continue,
                },
                Kind::Flush => continue,
                Kind::Write => Did::Write(op),
                Kind::Zero => Did::Write(0),
                Kind::Swap { expect } => Did::Swap { expect, new: op, ok: record.swapped },
            };
            let lazy = record.is_lazy_at(chunk);
            let (start, end, client) = (record.start, record.end, record.client);
            history.add(chunk, Entry { start, end, did, op, client, lazy });
        }
    }
    history
}
