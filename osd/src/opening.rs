//! From a path to a store that serves: open and lock the device, read what is on it, check whose it is, replay.

use std::time::{Duration, Instant};

use blockstore::{Store, StoreConfig, StoreState, Superblock};
use cluster_io::{DiskId, DiskOptions, Event, Reactor};

use crate::device;
use crate::options::OsdOptions;
use crate::{Error, ErrorKind};

/// Longest wait of one turn; only a device that does not answer ever takes so long.
const TURN_MAX: Duration = Duration::from_secs(1);
/// How long the device of a killed predecessor may stay locked.
const PREDECESSOR_MAX: Duration = Duration::from_secs(10);

/// Opens the device and its store on this reactor; returns when the store serves.
pub(crate) fn open_store(reactor: &mut Reactor, options: &OsdOptions) -> Result<(DiskId, Store), Error> {
    let path = options.path.display();
    if matches!(options.path.try_exists(), Ok(false)) {
        let text = format!("{path} does not exist: check the path, or prepare it as OSD {} first", options.id);
        return Err(Error::new(ErrorKind::Missing, text));
    }
    let how = DiskOptions { create_bytes: None, direct: true, exclusive: true };
    let deadline = Instant::now() + PREDECESSOR_MAX;
    let (disk, info) = loop {
        match reactor.open_disk(&options.path, how) {
            // The kernel lets go of what a killed process had in its ring a moment after the process is gone.
            Err(error) if error.kind() == cluster_io::ErrorKind::Locked && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            opened => break opened?,
        }
    };
    let durability = options.durability.resolve(&info);
    tracing::info!(
        osd = options.id.0, %path, bytes = info.bytes, direct = info.direct, ?durability, "opening the store"
    );
    let config = StoreConfig {
        memory_bytes_max: options.memory_bytes_max,
        durability,
        discard_sectors_min: if info.discard { options.discard_sectors_min } else { 0 },
    };
    let mut store = Store::open(config, info.bytes);
    run_until_open(reactor, disk, &mut store, options)?;
    let stats = store.stats();
    tracing::info!(
        osd = options.id.0,
        objects = stats.objects,
        replayed = stats.replayed,
        cut = stats.cut,
        "the store is open"
    );
    Ok((disk, store))
}

fn run_until_open(reactor: &mut Reactor, disk: DiskId, store: &mut Store, options: &OsdOptions) -> Result<(), Error> {
    let mut is_ours = false;
    loop {
        // Before anything more is asked of the device: opening ends with writing to it.
        if let Some(superblock) = store.superblock().filter(|_| !is_ours) {
            check_owner(superblock, options)?;
            is_ours = true;
        }
        match store.state() {
            StoreState::Opening | StoreState::Replaying => {}
            StoreState::Running => return Ok(()),
            StoreState::Failed(why) => {
                let text = format!("cannot open the store on {}: {why}", options.path.display());
                return Err(Error::new(ErrorKind::BadStore, text));
            }
            StoreState::Closed => {
                let text = format!("the store on {} closed while it was opened", options.path.display());
                return Err(Error::new(ErrorKind::Broken, text));
            }
        }
        while let Some(request) = store.poll_device() {
            device::submit(reactor, disk, request);
        }
        reactor.turn(Some(Instant::now() + TURN_MAX))?;
        while let Some(event) = reactor.next_event() {
            match event {
                Event::DiskRead { token, result, .. } => store.handle_device(token, device::read_result(result)),
                Event::DiskDone { token, result, .. } => store.handle_device(token, device::done_result(result)),
                _ => {}
            }
        }
    }
}

fn check_owner(superblock: &Superblock, options: &OsdOptions) -> Result<(), Error> {
    let path = options.path.display();
    let stranger = |text| Err(Error::new(ErrorKind::Stranger, text));
    if superblock.cluster != *options.cluster.as_bytes() {
        let theirs = uuid::Uuid::from_bytes(superblock.cluster);
        return stranger(format!(
            "{path} belongs to cluster {theirs}, this is cluster {}: check the path, or prepare it anew (which destroys \
             its data)",
            options.cluster
        ));
    }
    if superblock.osd != options.id {
        return stranger(format!(
            "{path} is the store of OSD {}, not of OSD {}: check the path or the number",
            superblock.osd, options.id
        ));
    }
    Ok(())
}
