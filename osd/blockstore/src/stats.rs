//! What a store counts and measures.

use crate::store::Store;

/// Counters since the store was opened.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counters {
    pub data_bytes_written: u64,
    pub data_writes: u64,
    pub log_bytes_written: u64,
    pub log_writes: u64,
    pub checkpoint_bytes_written: u64,
    pub checkpoints: u64,
    pub flushes: u64,
    pub reads: u64,
    pub read_bytes: u64,
    pub crc_errors: u64,
    pub io_errors: u64,
    pub bad_sectors: u64,
    pub entries: u64,
    pub replayed: u64,
    pub cut: u64,
}

/// Counters since the store was opened, and its present state. Bytes and sectors of 4 KiB as named.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct StoreStats {
    /// Payload written to the data area. Bytes.
    pub data_bytes_written: u64,
    /// Device writes to the data area.
    pub data_writes: u64,
    /// Written to the log. Bytes.
    pub log_bytes_written: u64,
    /// Device writes to the log.
    pub log_writes: u64,
    /// Written for checkpoints. Bytes.
    pub checkpoint_bytes_written: u64,
    /// Checkpoints of single partitions.
    pub checkpoints: u64,
    /// Flushes of the device.
    pub flushes: u64,
    /// Device reads of data.
    pub reads: u64,
    /// Data read from the device. Bytes.
    pub read_bytes: u64,
    /// Sectors whose data did not match its checksum.
    pub crc_errors: u64,
    /// Device operations that failed.
    pub io_errors: u64,
    /// Sectors taken out of use until the next start because a write to them failed.
    pub bad_sectors: u64,
    /// Log entries made durable.
    pub entries: u64,
    /// Log entries executed when the store was opened.
    pub replayed: u64,
    /// Log entries cut off when the store was opened; none of them was ever acknowledged.
    pub cut: u64,
    /// Sectors that can be written now.
    pub free_sectors: u64,
    /// Sectors that hold data of objects.
    pub used_sectors: u64,
    /// Objects with a staged change.
    pub staged: u64,
    /// Sectors kept for rollbacks of staged changes.
    pub kept_sectors: u64,
    /// Freed sectors that cannot be written yet.
    pub quarantined_sectors: u64,
    /// Objects, tombstones included.
    pub objects: u64,
    /// Requests remembered.
    pub requests: u64,
    /// Memory of index, free map and requests. Bytes.
    pub memory_bytes: u64,
    /// Log blocks that can be written before a checkpoint must free more. Bytes.
    pub log_bytes_free: u64,
    /// Mutations waiting for log, space or a checkpoint.
    pub waiting: u64,
    /// Last durable entry.
    pub durable_lsn: u64,
    /// Entries that a start would verify, because no log block says that they are durable.
    pub unrecorded_entries: u64,
}

impl Store {
    /// Counters and present state.
    pub fn stats(&self) -> StoreStats {
        let c = &self.counters;
        StoreStats {
            data_bytes_written: c.data_bytes_written,
            data_writes: c.data_writes,
            log_bytes_written: c.log_bytes_written,
            log_writes: c.log_writes,
            checkpoint_bytes_written: c.checkpoint_bytes_written,
            checkpoints: c.checkpoints,
            flushes: c.flushes,
            reads: c.reads,
            read_bytes: c.read_bytes,
            crc_errors: c.crc_errors,
            io_errors: c.io_errors,
            bad_sectors: c.bad_sectors,
            entries: c.entries,
            replayed: c.replayed,
            cut: c.cut,
            free_sectors: self.allocator.free_count(),
            used_sectors: self.index.sector_count(),
            staged: self.index.staged_count(),
            kept_sectors: self.index.kept_count(),
            quarantined_sectors: self.quarantine.sectors(),
            objects: self.index.object_count(),
            requests: self.requests.count(),
            memory_bytes: self.memory_bytes(),
            log_bytes_free: self.log.free() * crate::geometry::BLOCK,
            waiting: self.queue.len() as u64,
            durable_lsn: self.commit.durable.0,
            unrecorded_entries: self.log.next_lsn().0.saturating_sub(self.commit.recorded.0 + 1),
        }
    }

    /// Memory of index, free map and requests. Bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.index.memory_bytes() + self.requests.memory_bytes() + self.allocator.memory_bytes()
    }
}
