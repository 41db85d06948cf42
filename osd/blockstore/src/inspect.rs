//! Looking into a stopped store, for `blockyard osd dump|check`. Nothing is written.
//!
//! The store itself does the reading: it is opened as in operation, with the same rules, up to the point where it would
//! write its first byte. So what these functions find is what a start would find.

use std::io;

use buffer::BufferMut;
use cluster_proto::SECTOR;
use cluster_proto::crc::crc32c;
use cluster_proto::shard::ObjectHead;
use serde::Serialize;

use crate::device::{DeviceError, DeviceOp, DeviceResult};
use crate::extent::Extent;
use crate::format::log::{Kind, Lsn};
use crate::format::mark::is_any_mark;
use crate::geometry::{BLOCK, Geometry};
use crate::index::{ObjectView, Undo};
use crate::log::append::lookahead_blocks;
use crate::log::replay::{BlockFound, Replay, ReplayFrom, TailEntry};
use crate::open::OpenError;
use crate::store::{Durability, Store, StoreConfig, StoreState};

/// Sectors read at once when data is checked.
const CHECK_SECTORS: u32 = 256;

/// Read access to a device.
pub trait ReadAt {
    /// Fills `out` from byte `offset` on; anything less is an error.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
}

/// A store's structures. Ids and versions are written as people read them.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Dump {
    /// Cluster, 32 hexadecimal digits.
    pub cluster: String,
    /// This store, 32 hexadecimal digits.
    pub store: String,
    /// The OSD.
    pub osd: u32,
    /// Layout.
    pub geometry: Geometry,
    /// Newest checkpoint of every pair; the last pair holds the remembered requests.
    pub checkpoints: Vec<CheckpointDump>,
    /// The log.
    pub log: LogDump,
    /// Objects, ascending, if they were asked for.
    pub objects: Vec<ObjectDump>,
}

/// A checkpoint.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckpointDump {
    /// The partition.
    pub pair: u32,
    /// Number of the checkpoint.
    pub serial: u64,
    /// State it holds.
    pub lsn: Lsn,
    /// Block from which it needs the log.
    pub replay_seq: u64,
    /// Generation of the log at the time.
    pub generation: u32,
    /// Bytes of content.
    pub bytes: u64,
    /// Segments.
    pub segments: Vec<u32>,
}

/// The log, from the oldest block that is needed.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LogDump {
    /// Oldest block needed.
    pub start_seq: u64,
    /// First block that is not part of it.
    pub end_seq: u64,
    /// How the log ends.
    pub end: Option<BlockFound>,
    /// Last entry that counts.
    pub last_lsn: Lsn,
    /// Recorded as durable.
    pub durable_lsn: Lsn,
    /// Highest generation.
    pub generation: u32,
    /// Its last entries, if they were asked for.
    pub entries: Vec<EntryDump>,
}

/// An entry of the log.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct EntryDump {
    /// Its number.
    pub lsn: Lsn,
    /// What it does.
    pub kind: Kind,
    /// `pool:layer:index`, and `#part` if that is not 0.
    pub object: String,
    /// The version it makes; of an entry about another one, that one's LSN.
    pub version: String,
    /// Sectors concerned: first, count.
    pub sectors: (u32, u32),
    /// First sector, count, sector of the data area.
    pub extents: Vec<(u32, u32, u64)>,
    /// Taken back by a later entry.
    pub cancelled: bool,
}

/// An object.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ObjectDump {
    /// `pool:layer:index`, and `#part` if that is not 0.
    pub object: String,
    /// First ancestor of the layer.
    pub lineage: u64,
    /// Its version.
    pub version: String,
    /// A tombstone.
    pub deleted: bool,
    /// If its newest change is staged: the version to which a rollback leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staged_over: Option<String>,
    /// First sector, count, sector of the data area.
    pub extents: Vec<(u32, u32, u64)>,
    /// The same of what the staged change replaced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<(u32, u32, u64)>,
}

/// What to include in a dump.
#[derive(Clone, Copy, Debug, Default)]
pub struct DumpOptions {
    /// Objects with their extents.
    pub objects: bool,
    /// So many entries from the end of the log.
    pub log_entries: usize,
}

/// Result of a check.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckReport {
    /// What is wrong, in words; empty for a sound store.
    pub problems: Vec<String>,
    /// Objects, tombstones included.
    pub objects: u64,
    /// Sectors that hold data, or are kept for rollbacks.
    pub sectors: u64,
    /// Sectors of them that were read and compared with their checksums.
    pub sectors_checked: u64,
    /// Sectors of those that hold a mark: what they held was lost elsewhere, before recovery brought their object here.
    pub sectors_unreadable: u64,
    /// Log entries that a start would execute.
    pub replayed: u64,
    /// Log entries that a start would cut off; none of them was acknowledged.
    pub cut: u64,
}

/// Reads a store's structures. An error is what a start would say.
pub fn dump(device: &dyn ReadAt, device_bytes: u64, options: DumpOptions) -> Result<Dump, OpenError> {
    let store = open_read_only(device, device_bytes)?;
    let Some(superblock) = store.superblock else { return Err(OpenError::Driver) };
    let mut objects: Vec<_> = if options.objects { store.index.objects().collect() } else { Vec::new() };
    objects.sort_unstable_by_key(|(head, ..)| *head);
    Ok(Dump {
        cluster: hex(&superblock.cluster),
        store: hex(&superblock.store),
        osd: superblock.osd.0,
        geometry: superblock.geometry,
        checkpoints: checkpoints(&store),
        log: log(device, &store, superblock.store, options.log_entries)?,
        objects: objects.into_iter().map(|(head, view, undo)| object_dump(&head, &view, undo)).collect(),
    })
}

fn object_dump(head: &ObjectHead, view: &ObjectView<'_>, undo: Option<&Undo>) -> ObjectDump {
    ObjectDump {
        object: head.object.to_string(),
        lineage: head.object.lineage.0,
        version: head.version.to_string(),
        deleted: head.deleted,
        staged_over: head.staged_over.map(|version| version.to_string()),
        extents: view.extents().map(extent_dump).collect(),
        kept: undo.into_iter().flat_map(|undo| &undo.extents).map(|e| extent_dump(*e)).collect(),
    }
}

fn extent_dump(extent: Extent) -> (u32, u32, u64) {
    (extent.sectors().start, extent.sectors().count, extent.run().start)
}

/// Checks everything a start checks (superblock, checkpoints, log, that no sector has two owners), and with `data` every
/// checksum. `progress` is told sectors done and total.
pub fn check(device: &dyn ReadAt, device_bytes: u64, data: bool, progress: &mut dyn FnMut(u64, u64)) -> CheckReport {
    let mut report = CheckReport::default();
    let store = match open_read_only(device, device_bytes) {
        Ok(store) => store,
        Err(error) => {
            report.problems.push(error.to_string());
            return report;
        }
    };
    let stats = store.stats();
    (report.objects, report.sectors) = (stats.objects, stats.used_sectors + stats.kept_sectors);
    (report.replayed, report.cut) = (stats.replayed, stats.cut);
    if data {
        check_data(device, &store, &mut report, progress);
    }
    report
}

fn check_data(device: &dyn ReadAt, store: &Store, report: &mut CheckReport, progress: &mut dyn FnMut(u64, u64)) {
    let mut bytes = vec![0; CHECK_SECTORS as usize * SECTOR];
    for (head, view, undo) in store.index.objects() {
        let extents: Vec<_> = view.extents().collect();
        check_extents((device, &mut bytes), store, &head, &extents, view.crcs(), report);
        if let Some(undo) = undo {
            check_extents((device, &mut bytes), store, &head, &undo.extents, &undo.crcs, report);
        }
        progress(report.sectors_checked, report.sectors);
    }
}

fn check_extents(
    (device, bytes): (&dyn ReadAt, &mut [u8]),
    store: &Store,
    head: &ObjectHead,
    extents: &[Extent],
    crcs: &[u32],
    report: &mut CheckReport,
) {
    let (id, mut crcs) = (head.object, crcs);
    for extent in extents {
        let (first, run) = (extent.sectors().start, extent.run());
        for done in (0..run.count).step_by(CHECK_SECTORS as usize) {
            let count = CHECK_SECTORS.min(run.count - done);
            let out = &mut bytes[..count as usize * SECTOR];
            let offset = store.geometry.sector_offset(run.start + u64::from(done));
            let (own, rest) = crcs.split_at(count as usize);
            crcs = rest;
            if let Err(error) = device.read_at(offset, out) {
                report.problems.push(format!("object {id} sectors {}+{count}: {error}", first + done));
                continue;
            }
            for (i, _) in out.chunks_exact(SECTOR).zip(own).enumerate().filter(|(_, (s, crc))| crc32c(s) != **crc) {
                let sector = first + done + i as u32;
                let found = &out[i * SECTOR..(i + 1) * SECTOR];
                if store.superblock.is_some_and(|superblock| is_any_mark(&superblock.store, &id, sector, found)) {
                    report.sectors_unreadable += 1;
                    continue;
                }
                report.problems.push(format!("object {id} sector {sector}: data does not match its checksum"));
            }
            report.sectors_checked += u64::from(count);
        }
    }
}

/// Opens as in operation, up to where something would be written.
fn open_read_only(device: &dyn ReadAt, device_bytes: u64) -> Result<Store, OpenError> {
    let config = StoreConfig { durability: Durability::Flush, ..StoreConfig::default() };
    let mut store = Store::open(config, device_bytes);
    while let Some(request) = store.poll_device() {
        let DeviceOp::Read { offset, len } = request.op else { return Ok(store) };
        let mut out = BufferMut::for_overwrite(len);
        let result = device.read_at(offset, &mut out);
        let result = result.map(|()| out).map_err(|e| DeviceError(e.raw_os_error().unwrap_or(0)));
        store.handle_device(request.token, DeviceResult::Read(result));
    }
    match store.state() {
        StoreState::Failed(error) => Err(error),
        _ => Err(OpenError::Driver),
    }
}

fn checkpoints(store: &Store) -> Vec<CheckpointDump> {
    let headers = store.checkpoints.headers();
    headers
        .map(|h| CheckpointDump {
            pair: h.pair,
            serial: h.serial,
            lsn: h.lsn,
            replay_seq: h.replay_seq,
            generation: h.generation,
            bytes: h.content_len,
            segments: h.segments.clone(),
        })
        .collect()
}

/// Reads the log once more, this time keeping its last entries.
fn log(device: &dyn ReadAt, store: &Store, id: [u8; 16], keep: usize) -> Result<LogDump, OpenError> {
    let g = &store.geometry;
    let from: Vec<_> = store
        .checkpoints
        .headers()
        .map(|h| ReplayFrom { seq: h.replay_seq, lsn: h.lsn, generation: h.generation })
        .collect();
    let mut replay = Replay::new(id, g.data_sectors, &from, lookahead_blocks(g.log_blocks));
    let (start_seq, limit) = (replay.next_seq(), replay.next_seq() + g.log_blocks);
    let mut entries = std::collections::VecDeque::new();
    let mut block = vec![0; BLOCK as usize];
    let mut end = None;
    while !replay.is_done() && replay.next_seq() < limit {
        let offset = g.log_block_offset(replay.next_seq());
        device.read_at(offset, &mut block).map_err(|e| OpenError::Device {
            during: "reading the log",
            error: DeviceError(e.raw_os_error().unwrap_or(0)),
        })?;
        let found = replay.feed(&block)?;
        if !matches!(found, BlockFound::Next | BlockFound::NewGeneration) {
            end.get_or_insert(found);
        }
        entries.extend(std::iter::from_fn(|| replay.pop_confirmed()));
        entries.drain(..entries.len().saturating_sub(keep));
    }
    replay.finish();
    entries.extend(std::mem::take(replay.tail()));
    entries.drain(..entries.len().saturating_sub(keep));
    Ok(LogDump {
        start_seq,
        end_seq: replay.end_seq(),
        end,
        last_lsn: store.commit.durable,
        durable_lsn: replay.durable_lsn(),
        generation: replay.generation_max(),
        entries: entries.iter().map(entry_dump).collect(),
    })
}

fn entry_dump(entry: &TailEntry) -> EntryDump {
    let change = &entry.change;
    let version = if change.kind.is_about_entry() { change.target().0.to_string() } else { change.version.to_string() };
    EntryDump {
        lsn: entry.lsn,
        kind: change.kind,
        object: change.object.to_string(),
        version,
        sectors: (change.sectors.start, change.sectors.count),
        extents: change.extents.iter().map(|e| extent_dump(*e)).collect(),
        cancelled: entry.cancelled,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
