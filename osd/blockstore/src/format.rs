//! The bytes on the device (docs/disk.md draws them). Each structure has a raw layout, checked at compile time, and a
//! validated value. Every structure carries the id of the store, so that what an earlier store left on the device
//! is never taken for ours.

pub mod checkpoint;
pub mod log;
pub mod mark;
pub mod superblock;

use buffer::Buffer;
use cluster_proto::OsdId;
use cluster_proto::crc::crc32c;

use crate::geometry::{BLOCK, Geometry, SUPERBLOCK_COPY};

/// What a store must be told to be prepared on a device.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// Size of the device. Bytes.
    pub device_bytes: u64,
    /// Id of the cluster the OSD belongs to.
    pub cluster: [u8; 16],
    /// Id of this store: random, new for every format, never all zero.
    pub store: [u8; 16],
    /// The OSD.
    pub osd: OsdId,
    /// Size of the log in bytes; `None` for a 64th of the device. At least 128 KiB.
    pub log_bytes: Option<u64>,
}

/// Why a device cannot be formatted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// No room for the smallest store.
    #[error("a device of {device_bytes} bytes is too small for a store; use at least {} MiB", MIB_MIN)]
    TooSmall {
        /// Size of the device.
        device_bytes: u64,
    },
    /// The store id is all zero, which stands for "none".
    #[error("the store id must not be zero")]
    NoStoreId,
}

/// Smallest device that needs no options. MiB.
const MIB_MIN: u64 = 4;

/// One write that prepares a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FormatWrite {
    /// Byte offset on the device.
    pub offset: u64,
    /// Page-aligned, whole blocks.
    pub data: Buffer,
}

/// The writes that make an empty store of a device, in any order, to be followed by a flush. Whatever was on the
/// device before does not matter: log blocks and data of another store id are ignored.
pub fn format(options: &FormatOptions) -> Result<Vec<FormatWrite>, FormatError> {
    if options.store == [0; 16] {
        return Err(FormatError::NoStoreId);
    }
    let geometry = Geometry::plan(options.device_bytes, options.log_bytes)
        .ok_or(FormatError::TooSmall { device_bytes: options.device_bytes })?;
    let superblock = superblock::Superblock {
        cluster: options.cluster,
        store: options.store,
        osd: options.osd,
        compatible: 0,
        geometry,
    };
    let block = Buffer::copy_of(&superblock.encode());
    let mut writes =
        vec![FormatWrite { offset: 0, data: block.clone() }, FormatWrite { offset: SUPERBLOCK_COPY, data: block }];
    for pair in 0..geometry.slot_pairs() {
        let header = checkpoint::SlotHeader::empty(pair).encode(&options.store);
        let mut both = header.to_vec();
        both.resize(2 * BLOCK as usize, 0);
        writes.push(FormatWrite { offset: geometry.slot_offset(pair, 0), data: Buffer::copy_of(&both) });
    }
    Ok(writes)
}

/// Checksum of a structure whose own first four bytes hold the checksum.
fn crc_after_crc(bytes: &[u8]) -> u32 {
    crc32c(&bytes[4..])
}
