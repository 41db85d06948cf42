//! What a client is told about an export, and is held to.

use gateway_core::VolumeInfo;

use super::Mode;
use crate::limits::Limits;
use crate::wire::flags::TransmissionFlags;

/// Smallest preferred block size that is advertised. Bytes.
const PREFERRED_MIN: u32 = 512;

#[derive(Clone, Debug)]
pub(super) struct Export {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) size: u64,
    pub(super) read_only: bool,
    pub(super) preferred_block: u32,
    pub(super) payload_len_max: u32,
    /// The volume is gone; every request is refused.
    pub(super) removed: bool,
}

impl Export {
    pub(super) fn new(info: &VolumeInfo, limits: &Limits) -> Self {
        Self {
            name: info.name.clone(),
            description: info.description.clone(),
            size: info.size,
            read_only: info.read_only,
            preferred_block: info.preferred_block.max(PREFERRED_MIN),
            payload_len_max: limits.payload_len_max.min(info.max_transfer),
            removed: false,
        }
    }

    //= nbd-proto §Transmission flags
    /// Every gateway is free of dirty data and every flush reaches the cluster, hence `CAN_MULTI_CONN`; zeroing is a
    /// metadata operation of the store, hence `SEND_FAST_ZERO`.
    pub(super) fn flags(&self, mode: Mode) -> TransmissionFlags {
        type F = TransmissionFlags;
        let mut flags = F::HAS_FLAGS | F::SEND_FLUSH | F::SEND_FUA | F::SEND_CACHE | F::CAN_MULTI_CONN;
        if self.read_only {
            flags = flags | F::READ_ONLY;
        } else {
            flags = flags | F::SEND_TRIM | F::SEND_WRITE_ZEROES | F::SEND_FAST_ZERO;
        }
        if mode >= Mode::Structured { flags | F::SEND_DF } else { flags }
    }
}
