//! An OSD whose store is full: what memory it takes, and how long it takes to start.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::Fleet;
use serde::Serialize;

use super::Setting;
use super::scatter::scattered;
use crate::cluster::{self, IMAGE, osd_metrics};
use crate::library::Library;
use crate::load::{self, Io, Piece, Target};
use crate::metrics::totals;
use crate::{cpu, load::median};

/// Name of the only OSD's process.
const OSD: &str = "osd.1";
/// Memory is looked at after each of so many equal parts.
const PARTS: u64 = 4;
/// Share that is written again before each kill: something for the log.
const AGAIN: u64 = 16;
/// Longest start.
const START_MAX: Duration = Duration::from_secs(120);

/// How what is stored is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    /// One extent per object.
    Sequential,
    /// Each sector is an extent of its own.
    Scattered,
    /// One sector in each object.
    Sparse,
}

impl Shape {
    const ALL: [Shape; 3] = [Shape::Sequential, Shape::Scattered, Shape::Sparse];

    fn name(self) -> &'static str {
        match self {
            Shape::Sequential => "1 MiB writes, one extent per object",
            Shape::Scattered => "4 KiB writes, each sector an extent",
            Shape::Sparse => "4 KiB writes, one in each object",
        }
    }

    /// Size of the image that holds so many bytes of it. Sparse objects are many: only a quarter is written.
    fn image_bytes(self, stored: u64) -> u64 {
        if self == Shape::Sparse { (stored / 4 / 4096) << 20 } else { stored }
    }

    /// Parts `from..to` of `of` equal ones of what is stored in an image.
    fn pieces(self, image: u64, from: u64, to: u64, of: u64) -> Box<dyn Iterator<Item = Piece>> {
        let (count, len, distance) = match self {
            Shape::Sequential => (image >> 20, 1 << 20, 1 << 20),
            Shape::Scattered => (image / 4096, 4096, 4096),
            Shape::Sparse => (image >> 20, 4096, 1 << 20),
        };
        let (skip, take) = (count * from / of, count * to / of - count * from / of);
        let numbers = scattered(count, count).skip(skip as usize).take(take as usize);
        Box::new(numbers.map(move |number| (number * distance, len)))
    }
}

/// Memory of an OSD process.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Memory {
    pub shape: &'static str,
    /// Data in the store.
    pub stored_bytes: u64,
    pub objects: u64,
    /// Resident memory of the process, and what its store says that its tables take: empty, and after each quarter.
    pub points: Vec<MemoryPoint>,
    /// How much the process grows with each TiB: extrapolated from what it grew from the first quarter to the last. GiB.
    pub resident_gib_per_tib: f64,
    /// The same of the store's own account.
    pub tables_gib_per_tib: f64,
    /// Resident memory after a start with all that, before anything is written. Bytes.
    pub resident_after_start: u64,
    /// How much more that is than that of an empty store, for each TiB, extrapolated. GiB.
    pub after_start_gib_per_tib: f64,
}

/// Memory at a moment.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryPoint {
    pub stored_bytes: u64,
    pub resident_bytes: u64,
    pub tables_bytes: u64,
}

/// Starts of an OSD process of one kind.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Start {
    pub shape: &'static str,
    /// How it had ended.
    pub after: &'static str,
    pub stored_bytes: u64,
    /// What was written since its last start.
    pub written_bytes: u64,
    /// From the start of the process until it is registered in the cluster.
    pub ready_ms: Vec<f64>,
    /// Until a client has an answer.
    pub served_ms: Vec<f64>,
    pub ready_median_ms: f64,
    pub served_median_ms: f64,
}

/// Measures memory and starts with each shape.
///
/// # Errors
/// The OSD failed an operation or did not start.
pub fn measure(setting: &Setting<'_>) -> Result<(Vec<Memory>, Vec<Start>)> {
    let (mut memory, mut starts) = (Vec::new(), Vec::new());
    for shape in Shape::ALL {
        eprintln!("store: {}", shape.name());
        let mut store = Store::create(setting, shape)?;
        if starts.is_empty() {
            starts.push(Start { shape: "empty", ..store.starts(&STOP)? });
        }
        let points = store.fill()?;
        starts.push(store.starts(&STOP)?);
        let after_start = store.point()?;
        starts.push(store.starts(&KILL)?);
        memory.push(store.memory(points, after_start)?);
    }
    Ok((memory, starts))
}

/// How an OSD ends, and what is written before.
struct Ending {
    name: &'static str,
    end: fn(&mut Fleet),
    /// The first so many of `AGAIN` equal parts of what is stored.
    again: u64,
}

const STOP: Ending = Ending { name: "stop", end: |fleet| fleet.stop(OSD), again: 0 };
const KILL: Ending = Ending { name: "kill -9", end: |fleet| fleet.kill(OSD), again: 1 };

/// A cluster of one OSD.
struct Store<'a> {
    setting: &'a Setting<'a>,
    shape: Shape,
    image: u64,
    library: Library,
    fleet: Fleet,
}

impl<'a> Store<'a> {
    fn create(setting: &'a Setting<'a>, shape: Shape) -> Result<Self> {
        let stored = setting.options.stored;
        let image = shape.image_bytes(stored);
        let fleet = cluster::fleet(setting.dir, 1, (stored * 5 / 4).max(512 << 20))?;
        fleet.create(IMAGE, &image.to_string(), &["--replicas", "1"]);
        let library = setting.open(&fleet.etcd.endpoint(), IMAGE)?;
        Ok(Self { setting, shape, image, library, fleet })
    }

    fn write(&mut self, pieces: impl IntoIterator<Item = Piece>) -> Result<()> {
        let depth = if self.shape == Shape::Sequential { 8 } else { 64 };
        load::write_pieces(&mut self.library, depth, pieces)
    }

    /// Writes everything, and looks at the memory meanwhile.
    fn fill(&mut self) -> Result<Vec<MemoryPoint>> {
        let mut points = vec![self.point()?];
        for part in 0..PARTS {
            self.write(self.shape.pieces(self.image, part, part + 1, PARTS))?;
            points.push(self.point()?);
        }
        Ok(points)
    }

    fn point(&mut self) -> Result<MemoryPoint> {
        // The OSD tells what it has every 100 ms; its statistics come later.
        sleep(Duration::from_secs(1));
        let [tables, used] = totals(&osd_metrics(&self.fleet)?, ["memory_bytes", "used_bytes"])?;
        let resident_bytes = cpu::resident(self.fleet.daemon(OSD).pid()).context("the OSD is gone")?;
        Ok(MemoryPoint { stored_bytes: used as u64, resident_bytes, tables_bytes: tables as u64 })
    }

    fn memory(&self, points: Vec<MemoryPoint>, after_start: MemoryPoint) -> Result<Memory> {
        let [objects] = totals(&osd_metrics(&self.fleet)?, ["objects"])?;
        // Until the first part is written, buffers are taken that are used again later.
        let written = points.get(1).zip(points.last());
        let growth = |of: fn(&MemoryPoint) -> u64| written.map_or(0.0, |(from, to)| growth_per_tib(from, to, of));
        let resident = |point: &MemoryPoint| point.resident_bytes;
        Ok(Memory {
            shape: self.shape.name(),
            stored_bytes: after_start.stored_bytes,
            objects: objects as u64,
            resident_gib_per_tib: growth(resident),
            tables_gib_per_tib: growth(|point| point.tables_bytes),
            resident_after_start: after_start.resident_bytes,
            after_start_gib_per_tib: points.first().map_or(0.0, |empty| growth_per_tib(empty, &after_start, resident)),
            points,
        })
    }

    /// Ends the OSD and starts it again, some times.
    fn starts(&mut self, ending: &Ending) -> Result<Start> {
        let again = || self.shape.pieces(self.image, 0, ending.again, AGAIN);
        let written_bytes = again().map(|(_, len)| u64::from(len)).sum();
        let (mut ready_ms, mut served_ms) = (Vec::new(), Vec::new());
        for _ in 0..self.setting.options.starts.max(1) {
            self.write(self.shape.pieces(self.image, 0, ending.again, AGAIN))?;
            (ending.end)(&mut self.fleet);
            let (ready, served) = self.start()?;
            ready_ms.push(ready.as_secs_f64() * 1e3);
            served_ms.push(served.as_secs_f64() * 1e3);
        }
        let [used] = totals(&osd_metrics(&self.fleet)?, ["used_bytes"])?;
        Ok(Start {
            shape: self.shape.name(),
            after: ending.name,
            stored_bytes: used as u64,
            written_bytes,
            ready_median_ms: median(ready_ms.clone()),
            served_median_ms: median(served_ms.clone()),
            ready_ms,
            served_ms,
        })
    }

    /// Starts the OSD while a read waits for it. Returns when it was ready, and when the read was answered.
    fn start(&mut self) -> Result<(Duration, Duration)> {
        self.library.start(Io { slot: 0, write: false, offset: 0, len: 4096 });
        let (begin, mut ready, mut served, mut done) = (Instant::now(), None, None, Vec::new());
        self.fleet.start_osd_unwaited(1);
        loop {
            self.library.turn(Instant::now() + Duration::from_millis(1), &mut done)?;
            let now = begin.elapsed();
            let osd = self.fleet.daemon(OSD);
            ready = ready.or_else(|| osd.first_line().map(|_| now));
            served = served.or_else(|| done.pop().map(|_| now));
            if let (Some(ready), Some(served)) = (ready, served) {
                return Ok((ready, served));
            }
            ensure!(osd.ended().is_none() && now < START_MAX, "the OSD did not start: {}", osd.log());
        }
    }
}

/// By how much something grew with the data: GiB for each TiB.
fn growth_per_tib(from: &MemoryPoint, to: &MemoryPoint, of: fn(&MemoryPoint) -> u64) -> f64 {
    let data = to.stored_bytes.saturating_sub(from.stored_bytes).max(1) as f64;
    (of(to) as f64 - of(from) as f64) / data * 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_each_shape_make_up_the_whole() {
        for shape in Shape::ALL {
            let image = shape.image_bytes(64 << 20);
            let parts = (0..PARTS).flat_map(|part| shape.pieces(image, part, part + 1, PARTS));
            let mut pieces: Vec<_> = parts.collect();
            let bytes: u64 = pieces.iter().map(|(_, len)| u64::from(*len)).sum();
            pieces.sort_unstable();
            pieces.dedup();
            assert_eq!(
                pieces.iter().map(|(_, len)| u64::from(*len)).sum::<u64>(),
                bytes,
                "{shape:?}: nothing comes twice"
            );
            assert_eq!(bytes, if shape == Shape::Sparse { 16 << 20 } else { 64 << 20 }, "{shape:?}");
            assert!(pieces.iter().all(|(offset, len)| offset + u64::from(*len) <= image), "{shape:?}");
        }
    }

    #[test]
    fn growth_is_in_proportion_to_the_data() {
        let point = |gib: u64, resident_mib: u64| MemoryPoint {
            stored_bytes: gib << 30,
            resident_bytes: resident_mib << 20,
            tables_bytes: 0,
        };
        let growth = |from, to| growth_per_tib(&from, &to, |point| point.resident_bytes);
        assert_eq!((growth(point(1, 60), point(5, 64)), growth(point(1, 60), point(3, 50))), (1.0, -5.0));
        assert_eq!(growth(point(1, 60), point(1, 60)), 0.0);
    }
}
