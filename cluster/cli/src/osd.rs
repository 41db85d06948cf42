//! `blockyard osd`.

pub mod change;
pub mod prepare;

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use blockstore::inspect::{self, CheckReport, Dump, DumpOptions, ReadAt};
use cluster_proto::OsdId;
use cluster_proto::map::{ClusterMap, LatencyStats, OsdStats, keys, parse};
use serde::Serialize;

use crate::args::{OsdCheck, OsdDump};
use crate::error::{CliError, Exit, io_failed};
use crate::output::{Output, progress_bytes, table};
use crate::session::Session;
use crate::size::Size;

/// An OSD as shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OsdView {
    id: u32,
    up: bool,
    #[serde(rename = "in")]
    within: bool,
    weight: Option<f64>,
    reweight: Option<f64>,
    host: Option<String>,
    tags: Vec<String>,
    address: Option<String>,
    started: Option<u64>,
    #[serde(flatten)]
    stats: OsdStats,
}

impl OsdView {
    /// All OSDs of a cluster.
    pub fn all(map: &ClusterMap, stats: &BTreeMap<OsdId, OsdStats>) -> Vec<OsdView> {
        let mut ids: Vec<_> = map.osd_configs.keys().chain(map.osds.keys()).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().map(|id| OsdView::new(map, stats, id)).collect()
    }

    fn new(map: &ClusterMap, stats: &BTreeMap<OsdId, OsdStats>, id: OsdId) -> OsdView {
        let state = map.osds.get(&id);
        let config = map.osd_configs.get(&id);
        let weight = config.map(|config| config.weight);
        OsdView {
            id: id.0,
            up: state.is_some(),
            within: config.is_some_and(|config| config.effective_weight() > 0.0),
            weight,
            reweight: config.map(|config| config.reweight),
            host: config.map(|config| config.host.clone()).filter(|host| !host.is_empty()),
            tags: config.map(|config| config.tags.clone()).unwrap_or_default(),
            address: state.map(|state| state.address.to_string()),
            started: state.map(|state| state.started),
            stats: stats.get(&id).cloned().unwrap_or_default(),
        }
    }

    /// How long operations took of late.
    pub fn latencies(&self) -> &[LatencyStats] {
        &self.stats.latencies
    }

    fn row(&self) -> [String; 10] {
        let dash = || "-".to_owned();
        [
            self.id.to_string(),
            if self.up { "up" } else { "down" }.into(),
            self.weight.map_or_else(dash, |weight| format!("{:.4}", weight * self.reweight.unwrap_or(1.0))),
            self.host.iter().chain(&self.tags).map(String::as_str).collect::<Vec<_>>().join(" "),
            self.address.clone().unwrap_or_else(dash),
            Size(self.stats.space.used).to_string(),
            Size(self.stats.space.total).to_string(),
            self.stats.pgs_active.to_string(),
            self.stats.crc_errors.to_string(),
            self.stats.repaired_sectors.to_string(),
        ]
    }

    /// The OSDs as a table.
    pub fn table(osds: &[OsdView]) -> String {
        let headings = [
            ">OSD",
            "STATE",
            ">WEIGHT",
            "HOST, TAGS",
            "ADDRESS",
            ">USED",
            ">SIZE",
            ">PGS LED",
            ">CRC ERRORS",
            ">REPAIRED",
        ];
        table(headings, osds.iter().map(OsdView::row))
    }
}

/// Statistics that OSDs have written. Values that cannot be understood are left out.
pub async fn statistics(session: &Session) -> Result<BTreeMap<OsdId, OsdStats>, CliError> {
    let prefix = format!("{}osd/", keys::STATS);
    let entries = session.store.range(&prefix).await?.entries;
    let read = |key: &str, value: &[u8]| Some((key.strip_prefix(&prefix)?.parse().ok()?, parse(key, value).ok()?));
    Ok(entries.iter().filter_map(|entry| read(&entry.key, &entry.value)).collect())
}

/// Lists the OSDs.
pub async fn ls(session: &Session, out: Output) -> Result<(), CliError> {
    let osds = OsdView::all(&session.map().await?, &statistics(session).await?);
    out.show(&osds, |osds| OsdView::table(osds))
}

/// The device of a stopped OSD.
struct Device {
    file: File,
    bytes: u64,
}

impl Device {
    fn open(path: &Path) -> Result<Device, CliError> {
        let mut file = File::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => CliError::not_found(format!("there is no file or device {}", path.display())),
            _ => io_failed("open", path, &e),
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let why = "an OSD runs on it: stop that first";
                return Err(CliError::new(Exit::Conflict, format!("cannot look into {}: {why}", path.display())));
            }
            Err(TryLockError::Error(e)) => return Err(io_failed("lock", path, &e)),
        }
        let bytes = file.seek(SeekFrom::End(0)).map_err(|e| io_failed("find the size of", path, &e))?;
        Ok(Device { file, bytes })
    }
}

impl ReadAt for Device {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }
}

/// Shows the structures of a store.
pub fn dump(options: &OsdDump, out: Output) -> Result<(), CliError> {
    let device = Device::open(&options.path)?;
    let wanted = DumpOptions { objects: options.objects, log_entries: options.log };
    let dump = inspect::dump(&device, device.bytes, wanted)
        .map_err(|e| CliError::failed(format!("cannot open the store on {}: {e}", options.path.display())))?;
    out.show(&dump, dump_text)
}

fn dump_text(dump: &Dump) -> String {
    let log = &dump.log;
    let facts = [
        ("osd", dump.osd.to_string()),
        ("cluster", dump.cluster.clone()),
        ("store", dump.store.clone()),
        ("device", Size(dump.geometry.device_bytes).to_string()),
        ("log", format!("blocks {} to {}, generation {}", log.start_seq, log.end_seq, log.generation)),
        ("last entry", format!("{:?}", log.last_lsn)),
    ];
    let mut text = table(["", ""], facts.map(|(name, value)| [name.to_owned(), value])).trim_start().to_owned();
    text += "\nCheckpoints\n";
    let checkpoint = |c: &inspect::CheckpointDump| {
        [
            c.pair.to_string(),
            c.serial.to_string(),
            format!("{:?}", c.lsn),
            c.replay_seq.to_string(),
            c.bytes.to_string(),
        ]
    };
    text += &table([">PAIR", ">SERIAL", ">LSN", ">REPLAY FROM", ">BYTES"], dump.checkpoints.iter().map(checkpoint));
    if !log.entries.is_empty() {
        text += "\nLog\n";
        let entry = |e: &inspect::EntryDump| {
            let cancelled = if e.cancelled { "cancelled" } else { "" };
            let kind = format!("{:?}", e.kind);
            let sectors = format!("{}+{}", e.sectors.0, e.sectors.1);
            [format!("{:?}", e.lsn), kind, e.object.clone(), e.version.clone(), sectors, cancelled.into()]
        };
        text += &table([">LSN", "KIND", "OBJECT", "VERSION", "SECTORS", ""], log.entries.iter().map(entry));
    }
    if !dump.objects.is_empty() {
        text += "\nObjects\n";
        let object = |o: &inspect::ObjectDump| {
            let sectors: u64 = o.extents.iter().map(|extent| u64::from(extent.1)).sum();
            let deleted = if o.deleted { "deleted" } else { "" };
            let lineage = o.lineage.to_string();
            [
                o.object.clone(),
                lineage,
                o.version.clone(),
                sectors.to_string(),
                o.extents.len().to_string(),
                deleted.into(),
            ]
        };
        let headings = ["OBJECT", ">LINEAGE", "VERSION", ">SECTORS", ">EXTENTS", ""];
        text += &table(headings, dump.objects.iter().map(object));
    }
    text
}

/// Checks a store. Fails if anything is wrong with it.
pub fn check(options: &OsdCheck, out: Output) -> Result<(), CliError> {
    let device = Device::open(&options.path)?;
    let bar = progress_bytes("checking", 0);
    let report = inspect::check(&device, device.bytes, !options.no_data, &mut |done, total| {
        bar.set_length(total * cluster_proto::SECTOR as u64);
        bar.set_position(done * cluster_proto::SECTOR as u64);
    });
    bar.finish_and_clear();
    out.show(&report, check_text)?;
    match report.problems.len() {
        0 => Ok(()),
        n => Err(CliError::failed(format!(
            "the store on {} has {n} problem{}: its data is repaired from other copies when the OSD runs, if those are \
             intact",
            options.path.display(),
            if n == 1 { "" } else { "s" }
        ))),
    }
}

fn check_text(report: &CheckReport) -> String {
    let mut text: String = report.problems.iter().map(|problem| format!("{problem}\n")).collect();
    if report.sectors_unreadable > 0 {
        text += &format!("{} sectors hold nothing but a mark that no copy could be read\n", report.sectors_unreadable);
    }
    text += &format!(
        "{} objects, {} sectors with data, {} of them compared with their checksums; the next start replays {} log \
         entries and cuts {}\n",
        report.objects, report.sectors, report.sectors_checked, report.replayed, report.cut
    );
    text
}
