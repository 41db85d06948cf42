//! The event loop of the simulation.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use blockstore::{DeviceError, DeviceOp, DeviceResult, StoreState};
use buffer::BufferMut;
use cluster_client::ImageOp;
use cluster_proto::auth::{ClusterKey, Credentials};
use cluster_proto::layout::SECTOR;
use cluster_proto::limits::BLOCK_SIZE_MIN;
use cluster_proto::link::LinkId;
use cluster_proto::map::{Activation, Member, OsdStats, PoolConfig, Scheme};
use cluster_proto::shard::{ShardIndex, ShardOutcome};
use cluster_proto::{Epoch, Incarnation, OsdId, PgId, PgScope, PoolId};
use mon_core::liveness::Probe;
use osd_core::Output as OsdOutput;

mod clients;
mod connections;

use crate::control::Control;
use crate::faults::{self, Fault, FaultPlan};
use crate::fill;
use crate::lazy::Lazy;
use crate::net::{Micros, Net, NodeId};
use crate::nodes::{Broken, ClientNode, OsdNode};
use crate::rng::Rng;
use crate::scrubs::TAG;
use crate::workload::{Kind, Record, Shape};

/// Node numbers of clients begin here.
const CLIENT_BASE: u32 = 1000;
/// Simulated time after the faults in which everything must come to rest.
const REST_LIMIT: Micros = 120_000_000;
/// PGs that the pool may come to have.
const PGS_MAX: u32 = 48;
/// Lines of the trace that a failure shows.
const TRACE_LINES: usize = 60;

pub(crate) enum Event {
    /// Bytes arrive at a side of a connection.
    Arrive { conn: usize, side: usize, bytes: Vec<u8> },
    /// A connection attempt succeeds or fails.
    Connect { node: NodeId, life: u32, link: LinkId, target: NodeId },
    /// A side learns that its connection is gone.
    Broken { conn: usize, side: usize },
    /// A device operation completes.
    Device { osd: usize, life: u32, token: u64, done: Done },
    /// A node hears of changes in the cluster state.
    State { node: NodeId, life: u32 },
    /// An OSD's question for its registration reaches the state store.
    Register { osd: usize, life: u32, asked: u64 },
    /// The answer: whether it was there.
    Registered { osd: usize, life: u32, asked: u64, found: bool },
    /// An OSD's report of others reaches the state store.
    Suspect { osd: usize, life: u32 },
    /// The monitor's probe of an OSD ends.
    Probed { run: Member, found: Probe },
    /// An OSD's lease runs out.
    Lapse { osd: usize, incarnation: Incarnation },
    /// An activation record reaches the state store.
    Activate { osd: usize, life: u32, pg: PgId, record: Activation },
    /// The answer to that reaches the OSD.
    Activated { osd: usize, life: u32, pg: PgId, epoch: Epoch, ok: bool },
    /// The monitor looks at the state.
    Plan,
    /// A node's timer.
    Wake { node: NodeId, life: u32 },
    /// An OSD's process starts.
    Start { osd: usize },
    /// A client begins an operation.
    Begin { client: usize, life: u32 },
    /// Something goes wrong.
    Fault,
}

pub(crate) enum Done {
    Read { offset: u64, len: usize },
    Write { ticket: u64 },
    Flush { covered: Vec<u64> },
    Discard,
    Failed { read: bool },
}

/// How a run went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Hash over all events: the same for the same seed and code.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// Operations of clients that were answered.
    pub answered: u64,
    /// OSD crashes.
    pub crashes: u64,
    /// Damaged sectors repaired.
    pub repaired: u64,
    /// Objects recovered in peering.
    pub recovered: u64,
    /// Of these, by their changed sectors.
    pub patched: u64,
    /// Objects verified by scrubs.
    pub scrubbed: u64,
    /// Damaged sectors that scrubs found.
    pub scrub_errors: u64,
    /// Sectors that recovery passed on as unreadable.
    pub lost: u64,
    /// Times that the pool got more PGs.
    pub splits: u64,
    /// Times that PGs became one.
    pub merges: u64,
}

/// Everything there is.
pub struct World {
    /// The only source of randomness.
    pub rng: Rng,
    /// The time.
    pub now: Micros,
    /// The network.
    pub net: Net,
    /// OSDs; OSD n is at n - 1.
    pub osds: Vec<OsdNode>,
    /// Clients.
    pub clients: Vec<ClientNode>,
    /// What may go wrong.
    pub faults: FaultPlan,
    /// Half of all faults are one of these.
    pub often: Vec<Fault>,
    /// What the pool leaves to syncs.
    pub(crate) lazy: Lazy,
    /// What all nodes have, if the cluster of this seed has a key.
    credentials: Option<Credentials>,
    /// Until then the state store does not answer.
    pub state_silent_until: Micros,
    /// When the monitor looks again without being told.
    pub(crate) next_look: Micros,
    pub(crate) control: Control,
    queue: BTreeMap<(Micros, u64), Event>,
    pub(crate) stamp: u64,
    tickets: u64,
    pub(crate) records: Vec<Record>,
    pub(crate) shape: Shape,
    /// PGs that the pool shall have.
    pub(crate) pg_count: u32,
    splits: u64,
    pub(crate) merges: u64,
    rot_target: usize,
    /// Shards were made not to fit each other.
    pub(crate) is_spoilt: bool,
    calm: bool,
    /// A disk could not read data: clients may have been told so.
    pub(crate) reads_failed: bool,
    /// Objects that have sectors which perhaps nobody can read. By their numbers.
    pub(crate) spoilt: BTreeSet<u32>,
    answered: u64,
    crashes: u64,
    repaired: u64,
    recovered: u64,
    patched: u64,
    scrubbed: u64,
    scrub_errors: u64,
    lost: u64,
    hash: u64,
    trace: VecDeque<String>,
    verbose: bool,
    failure: Option<String>,
}

/// Runs one seed. Half of all faults are of those that shall come `often`; if there are any, it is another run than without.
///
/// # Errors
/// What went wrong, with the end of the trace.
pub fn run(seed: u64, often: &[Fault], verbose: bool) -> Result<Report, String> {
    let mut world = World::new(seed, verbose);
    world.often = often.to_vec();
    let result = world.run_all();
    result.map_err(|why| {
        let trace: Vec<_> = world.trace.iter().cloned().collect();
        format!("seed {seed} at {} us: {why}\nlast events:\n{}", world.now, trace.join("\n"))
    })
}

/// Whether a seed has a lazy pool.
pub fn is_lazy(seed: u64) -> bool {
    Lazy::random(seed, scheme(seed, &mut Rng::new(seed))).is_lazy()
}

fn scheme(seed: u64, rng: &mut Rng) -> Scheme {
    match rng.below(10) {
        0 => Scheme::Replicated { copies: 1 },
        1 | 2 => Scheme::Replicated { copies: 2 },
        3..=6 => Scheme::Replicated { copies: 3 },
        7 | 8 => Scheme::Ec { data: 2, parity: 1 },
        // So wide that small changes are made from the old parity.
        _ if seed.is_multiple_of(3) => Scheme::Ec { data: 4, parity: 1 },
        _ => Scheme::Ec { data: 2, parity: 2 },
    }
}

impl World {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut rng = Rng::new(seed);
        let scheme = scheme(seed, &mut rng);
        let (least, width) = (scheme.copies_needed() as u64, scheme.width() as u64);
        let min_size = rng.range(least, width + 1) as u8;
        let osd_count = width as u32 + rng.below(3) as u32;
        let pg_count = 1 << rng.below(4);
        let pool =
            PoolConfig { scheme, min_size, pg_count, block_size: BLOCK_SIZE_MIN, ..PoolConfig::replicated("pool", 1) };
        let lazy = Lazy::random(seed, scheme);
        let pool = PoolConfig { immediate_commit: lazy.pool, ..pool };
        let block = u64::from(pool.object_size());
        let shape = Shape { size: 3 * block + 5 * 512, block };
        let write_through = rng.one_in(3);
        let osds: Vec<_> =
            (1..=osd_count).map(|id| OsdNode::new(OsdId(id), 16 << 20, write_through, &mut rng)).collect();
        let faults = FaultPlan::random(&mut rng, u64::from(min_size) > least);
        let key = ClusterKey::from_bytes([7; 32]);
        let credentials = [None, Some(false), Some(true)][rng.below(3) as usize];
        let credentials = credentials.map(|encrypt| Credentials { key, encrypt });
        let mut world = Self {
            now: 0,
            net: Net::default(),
            clients: Vec::new(),
            faults,
            often: Vec::new(),
            lazy,
            credentials,
            state_silent_until: 0,
            next_look: 0,
            control: Control::new(osd_count, &pool),
            queue: BTreeMap::new(),
            stamp: 0,
            tickets: 0,
            records: Vec::new(),
            shape,
            pg_count,
            splits: 0,
            merges: 0,
            rot_target: rng.below(u64::from(osd_count)) as usize,
            is_spoilt: false,
            calm: false,
            reads_failed: false,
            spoilt: BTreeSet::new(),
            answered: 0,
            crashes: 0,
            repaired: 0,
            recovered: 0,
            patched: 0,
            scrubbed: 0,
            scrub_errors: 0,
            lost: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            trace: VecDeque::new(),
            verbose,
            failure: None,
            osds,
            rng,
        };
        for osd in 0..world.osds.len() {
            world.after(0, Event::Start { osd });
        }
        let clients = world.rng.range(1, 4);
        for n in 0..clients {
            let to_do = world.rng.range(30, 120) as u32;
            world.add_client(CLIENT_BASE + n as u32, 1, to_do);
        }
        world.choose_scrubs();
        let first = world.faults.every;
        world.after(first, Event::Fault);
        world
    }

    fn run_all(&mut self) -> Result<Report, String> {
        let (osd_count, through) = (self.osds.len(), self.osds[0].disk.is_write_through());
        let all_begun = |w: &World| w.clients.iter().all(|c| c.to_do == 0);
        let pool = self.control.pool();
        self.note(|| format!("osds {osd_count}, write-through {through}, {pool}"));
        self.run_until(600_000_000, all_begun).map_err(|e| format!("clients could not begin their work: {e}"))?;
        self.heal();
        let limit = self.now + REST_LIMIT;
        let all_answered = |w: &World| w.clients.iter().all(|c| c.pending.is_empty());
        self.run_until(limit, all_answered).map_err(|e| format!("operations are never answered: {e}"))?;
        // From here on everything can be read again, and nothing may be lost.
        self.reads_failed = false;
        self.flush_everything();
        self.run_until(limit, all_answered).map_err(|e| format!("the final flushes are never answered: {e}"))?;
        self.read_everything();
        self.run_until(limit, all_answered).map_err(|e| format!("the final reads are never answered: {e}"))?;
        while !self.control.is_clean() {
            let wait = self.now + 100_000;
            self.run_until(limit, |w| w.now >= wait).map_err(|e| format!("PGs do not become clean: {e}"))?;
        }
        self.run_until(limit, World::members_agree).map_err(|e| format!("members still differ: {e}"))?;
        let nothing_held = |w: &World| {
            let cores = w.osds.iter().filter_map(|osd| osd.run.as_ref()).filter_map(|run| run.core.as_ref());
            cores.map(|core| core.held_requests()).sum::<usize>() == 0
        };
        self.run_until(limit, nothing_held).map_err(|e| format!("requests are left over: {e}"))?;
        if !self.spoilt.is_empty() {
            self.write_what_is_spoilt();
            self.run_until(limit, all_answered).map_err(|e| format!("what was spoilt cannot be written: {e}"))?;
            self.flush_everything();
            self.run_until(limit, all_answered).map_err(|e| format!("the last flushes are never answered: {e}"))?;
            self.read_everything();
            self.run_until(limit, all_answered).map_err(|e| format!("what was spoilt cannot be read: {e}"))?;
        }
        self.scrub_everything()?;
        self.spoil_shard()?;
        self.settle_counts();
        self.judge()?;
        Ok(Report {
            hash: self.hash,
            events: self.stamp,
            answered: self.answered,
            crashes: self.crashes,
            repaired: self.repaired,
            recovered: self.recovered,
            patched: self.patched,
            scrubbed: self.scrubbed,
            scrub_errors: self.scrub_errors,
            lost: self.lost,
            splits: self.splits,
            merges: self.merges,
        })
    }

    // ---- the queue

    pub(crate) fn after(&mut self, delay: Micros, event: Event) {
        self.at(self.now + delay, event);
    }

    pub(crate) fn at(&mut self, time: Micros, event: Event) {
        self.tickets += 1;
        self.queue.insert((time, self.tickets), event);
    }

    pub(crate) fn run_until(&mut self, limit: Micros, done: impl Fn(&World) -> bool) -> Result<(), String> {
        while !done(self) {
            let Some(((time, _), event)) = self.queue.pop_first() else {
                return Err("nothing happens any more".into());
            };
            self.now = time;
            if time > limit {
                return Err(format!("time is up; {}", self.describe()));
            }
            self.stamp += 1;
            self.handle(event);
            if let Some(why) = self.failure.take() {
                return Err(why);
            }
        }
        Ok(())
    }

    /// Adds a line to the trace, and to the hash that two runs of one seed must share.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        let line = format!("{:>9} {}", self.now, line());
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.verbose {
            println!("{line}");
        }
        if self.trace.len() == TRACE_LINES {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    pub(crate) fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for osd in &self.osds {
            let Some(run) = &osd.run else {
                text += &format!("osd {} down; ", osd.id);
                continue;
            };
            let pgs: Vec<_> = run.core.iter().flat_map(|core| core.pg_summaries()).filter(|pg| pg.primary).collect();
            let waiting = run.store.stats().waiting;
            text += &format!("osd {} {:?}, {waiting} operations wait, {:?}; ", osd.id, run.store.state(), pgs);
        }
        let waiting: Vec<_> = self.clients.iter().map(|c| c.pending.clone()).collect();
        format!("{text}clients wait for {waiting:?}")
    }

    fn handle(&mut self, event: Event) {
        if let Some(osd) = self.osd_of(&event)
            && self.osds[osd].frozen_until > self.now
        {
            let until = self.osds[osd].frozen_until;
            return self.at(until, event);
        }
        match event {
            Event::Arrive { conn, side, bytes } => self.arrive(conn, side, &bytes),
            Event::Connect { node, life, link, target } => self.connect(node, life, link, target),
            Event::Broken { conn, side } => self.broken(conn, side),
            Event::Device { osd, life, token, done } => self.device_done(osd, life, token, done),
            Event::State { node, life } => self.hear_state(node, life),
            Event::Register { osd, life, asked } => self.register(osd, life, asked),
            Event::Registered { osd, life, asked, found } => self.registered_answer(osd, life, asked, found),
            Event::Suspect { osd, life } => self.suspect(osd, life),
            Event::Probed { run, found } => self.probed(run, found),
            Event::Lapse { osd, incarnation } => self.lapse(osd, incarnation),
            Event::Activate { osd, life, pg, record } => self.activate(osd, life, pg, record),
            Event::Activated { osd, life, pg, epoch, ok } => self.activated(osd, life, pg, epoch, ok),
            Event::Plan => self.plan(),
            Event::Wake { node, life } => self.wake(node, life),
            Event::Start { osd } => self.start_osd(osd),
            Event::Begin { client, life } => self.begin(client, life),
            Event::Fault => {
                if !self.calm && self.faults.budget > 0 {
                    self.faults.budget -= 1;
                    faults::strike(self);
                    let next = self.rng.range(1, 2 * self.faults.every);
                    self.after(next, Event::Fault);
                }
            }
        }
    }

    fn millis(&self) -> u64 {
        self.now / 1000
    }

    /// The time on an OSD's clock.
    pub(crate) fn millis_of(&self, osd: usize) -> u64 {
        self.now / 1000 + self.osds[osd].clock_ahead
    }

    /// The time on a node's clock.
    fn clock_of(&self, node: NodeId) -> u64 {
        match self.client_index(node) {
            Some(_) => self.millis(),
            None => self.millis_of(node.0 as usize - 1),
        }
    }

    /// The OSD whose process has to run for an event.
    fn osd_of(&self, event: &Event) -> Option<usize> {
        let of_node = |node: &NodeId| self.client_index(*node).is_none().then(|| node.0 as usize - 1);
        match event {
            Event::Arrive { conn, side, .. } | Event::Broken { conn, side } => {
                of_node(&self.net.conns[*conn].ends[*side].node)
            }
            Event::Connect { node, .. } | Event::State { node, .. } | Event::Wake { node, .. } => of_node(node),
            Event::Device { osd, .. } | Event::Activated { osd, .. } | Event::Registered { osd, .. } => Some(*osd),
            _ => None,
        }
    }

    fn life_of(&self, node: NodeId) -> u32 {
        match self.client_index(node) {
            Some(client) => self.clients[client].life,
            None => self.osds[node.0 as usize - 1].life,
        }
    }

    fn client_index(&self, node: NodeId) -> Option<usize> {
        (node.0 >= CLIENT_BASE).then(|| (node.0 - CLIENT_BASE) as usize)
    }

    // ---- OSDs

    fn start_osd(&mut self, osd: usize) {
        if self.osds[osd].run.is_some() || self.osds[osd].is_lost {
            return;
        }
        self.note(|| format!("osd {} starts", osd + 1));
        self.osds[osd].start(&mut self.rng);
        let (node, life) = (self.osds[osd].node(), self.osds[osd].life);
        self.after(100_000, Event::Wake { node, life });
        self.pump_osd(osd);
    }

    /// Another OSD joins.
    pub fn add_osd(&mut self) {
        let id = OsdId(self.osds.len() as u32 + 1);
        let (bytes, through) = (self.osds[0].disk.bytes(), self.osds[0].disk.is_write_through());
        self.osds.push(OsdNode::new(id, bytes, through, &mut self.rng));
        self.control.set_weight(id, 1.0);
        self.state_changed();
        let delay = self.rng.range(1, 2_000_000);
        self.after(delay, Event::Start { osd: self.osds.len() - 1 });
    }

    /// The process dies; with `power`, what its disk had not flushed is at risk.
    pub fn crash_osd(&mut self, osd: usize, power: bool) {
        let Some(run) = self.osds[osd].run.take() else { return };
        self.note(|| format!("osd {} dies, power {power}", osd + 1));
        self.crashes += 1;
        if let Some(core) = &run.core {
            self.count(&core.stats());
        }
        if power {
            self.lazy.cuts.push(self.stamp);
            self.osds[osd].disk.crash(&mut self.rng);
        } else {
            self.osds[osd].disk.kill(&mut self.rng);
        }
        self.break_all(self.osds[osd].node());
        self.osds[osd].frozen_until = 0;
        let pause = match self.rng.below(8) {
            0 => self.rng.range(4_000_000, 30_000_000),
            1 | 2 => self.rng.range(1, 4_000_000),
            _ => self.rng.range(1, 200_000),
        };
        self.after(pause, Event::Start { osd });
    }

    /// Rots something on the one disk that may. Not while its store opens: what is not recorded as durable then looks like a torn write
    /// (docs/disk.md, section 5).
    pub fn rot(&mut self) {
        let osd = &mut self.osds[self.rot_target];
        let store = osd.run.as_ref().map(|run| &run.store).filter(|store| store.is_running());
        let data = store.and_then(|store| store.superblock()).map(|s| s.geometry.sector_offset(0));
        if let Some(from) = data
            && let Some(page) = osd.disk.rot(&mut self.rng, from)
        {
            self.note(|| format!("rot at {page}"));
        }
    }

    pub(crate) fn pump_osd(&mut self, osd: usize) {
        loop {
            let now = self.millis_of(osd);
            let Some(run) = &mut self.osds[osd].run else { return };
            if let StoreState::Failed(why) = run.store.state() {
                if run.is_broken {
                    return self.crash_osd(osd, false);
                }
                return self.fail(format!("the store of osd {} failed: {why}", osd + 1));
            }
            if run.start_core(OsdId(osd as u32 + 1), (now, self.now / 1_000_000), &self.credentials) {
                let life = self.osds[osd].life;
                let delay = self.rng.range(100, 20_000);
                self.after(delay, Event::Register { osd, life, asked: now });
                self.after(delay, Event::State { node: NodeId(osd as u32 + 1), life });
                continue;
            }
            if let Some(request) = run.store.poll_device() {
                self.device_begin(osd, request);
                continue;
            }
            let Some(core) = &mut run.core else { return };
            if let Some((tag, outcome)) = run.store.poll_outcome() {
                if tag == fill::TAG {
                    continue;
                }
                if tag == TAG {
                    assert_eq!(outcome, ShardOutcome::Done, "what the checker does works");
                    continue;
                }
                core.handle_local(now, &mut run.store, tag, outcome);
                continue;
            }
            match core.poll_output() {
                Some(output) => self.osd_output(osd, output),
                None => return,
            }
        }
    }

    fn osd_output(&mut self, osd: usize, output: OsdOutput) {
        let (node, life) = (self.osds[osd].node(), self.osds[osd].life);
        match output {
            OsdOutput::Connect { link, address } => self.dial(node, life, link, address),
            OsdOutput::Send { link, message } => self.send(node, life, link, &message),
            OsdOutput::Introduced { link, session } => self.introduced(node, life, link, session),
            OsdOutput::Close(link) => self.hang_up(node, life, link),
            OsdOutput::Local { tag, op } => {
                if let Some(run) = &mut self.osds[osd].run {
                    run.store.submit(tag, op);
                }
            }
            OsdOutput::Activate { pg, record } => {
                let delay = self.rng.range(100, 10_000);
                self.after(delay, Event::Activate { osd, life, pg, record });
            }
            OsdOutput::Suspect(suspects) => {
                let delay = self.rng.range(100, 10_000);
                if let Some(run) = &mut self.osds[osd].run {
                    run.suspects = suspects;
                }
                self.after(delay, Event::Suspect { osd, life });
            }
            OsdOutput::Notice(text) | OsdOutput::Warning(text) => self.note(|| format!("osd {}: {text}", osd + 1)),
        }
    }

    pub(crate) fn device_begin(&mut self, osd: usize, request: blockstore::DeviceRequest) {
        let slow = self.osds[osd].slow_until > self.now;
        let latency = if slow { self.rng.range(1_000, 80_000) } else { self.rng.range(20, 2_000) };
        self.tickets += 1;
        let ticket = self.tickets;
        let is_read = matches!(request.op, DeviceOp::Read { .. });
        let fails = match is_read {
            true => self.osds[osd].unreadable_until > self.now && self.is_data(osd, &request.op) && self.rng.one_in(2),
            false => self.osds[osd].failing_until > self.now && self.is_data(osd, &request.op) && self.rng.below(4) > 0,
        };
        self.reads_failed |= fails && is_read;
        let breaks = self.is_broken_for(osd, &request.op) && self.rng.one_in(2);
        let OsdNode { disk, broken, run, .. } = &mut self.osds[osd];
        if let Some(run) = run {
            run.device_ops += 1;
            run.is_broken |= breaks || fails && is_read && !run.store.is_running();
        }
        let done = match request.op {
            DeviceOp::Write { offset, data } if breaks && *broken == Broken::Metadata => {
                let bytes: Vec<u8> = data.iter().flat_map(|piece| piece.iter().copied()).collect();
                disk.write_in_part(&mut self.rng, ticket, offset, &bytes);
                Done::Failed { read: false }
            }
            _ if fails || breaks => Done::Failed { read: is_read },
            DeviceOp::Read { offset, len } => Done::Read { offset, len },
            DeviceOp::Write { offset, data } => {
                let bytes: Vec<u8> = data.iter().flat_map(|piece| piece.iter().copied()).collect();
                disk.write_begin(ticket, offset, bytes);
                Done::Write { ticket }
            }
            DeviceOp::Flush => Done::Flush { covered: disk.flush_begin() },
            DeviceOp::Discard { .. } => Done::Discard,
        };
        let life = self.osds[osd].life;
        self.after(latency, Event::Device { osd, life, token: request.token, done });
    }

    fn device_done(&mut self, osd: usize, life: u32, token: u64, done: Done) {
        let node = &mut self.osds[osd];
        if node.life != life {
            return;
        }
        let Some(run) = &mut node.run else { return };
        let result = match done {
            Done::Read { offset, len } if !node.disk.is_readable(offset, len) => {
                DeviceResult::Read(Err(DeviceError(5)))
            }
            Done::Read { offset, len } => {
                let mut out = BufferMut::for_overwrite(len);
                node.disk.read(offset, &mut out);
                DeviceResult::Read(Ok(out))
            }
            Done::Write { ticket } => {
                node.disk.write_end(ticket);
                DeviceResult::Done(Ok(()))
            }
            Done::Flush { covered } => {
                node.disk.flush_end(&covered);
                DeviceResult::Done(Ok(()))
            }
            Done::Discard => DeviceResult::Done(Ok(())),
            Done::Failed { read: true } => DeviceResult::Read(Err(DeviceError(5))),
            Done::Failed { read: false } => DeviceResult::Done(Err(DeviceError(5))),
        };
        run.device_ops -= 1;
        run.store.handle_device(token, result);
        self.pump_osd(osd);
    }

    fn is_broken_for(&self, osd: usize, op: &DeviceOp) -> bool {
        let node = &self.osds[osd];
        node.broken_until > self.now
            && match (op, node.broken) {
                (DeviceOp::Read { .. }, Broken::Reads) => node.run.as_ref().is_some_and(|run| !run.store.is_running()),
                (DeviceOp::Flush, Broken::Flushes) => true,
                (DeviceOp::Write { .. }, Broken::Metadata) => !self.is_data(osd, op),
                _ => false,
            }
    }

    /// Whether this reads or writes data, not metadata.
    fn is_data(&self, osd: usize, op: &DeviceOp) -> bool {
        let superblock = self.osds[osd].run.as_ref().and_then(|run| run.store.superblock());
        let first = superblock.map(|superblock| superblock.geometry.sector_offset(0));
        let (DeviceOp::Read { offset, .. } | DeviceOp::Write { offset, .. }) = op else { return false };
        first.is_some_and(|first| *offset >= first)
    }

    // ---- state store: see state.rs

    fn hear_state(&mut self, node: NodeId, life: u32) {
        if self.life_of(node) != life {
            return;
        }
        let now = self.clock_of(node);
        if let Some(client) = self.client_index(node) {
            let target = &mut self.clients[client];
            let (changes, more) = target.told.hear(&self.control, &mut self.rng);
            for (key, value) in changes {
                target.core.handle_map(now, &key, value.as_deref()).expect("only valid values are written");
            }
            self.hear_more(node, life, more);
            return self.pump_client(client);
        }
        let osd = node.0 as usize - 1;
        let Some(run) = &mut self.osds[osd].run else { return };
        let Some(core) = &mut run.core else { return };
        let (changes, more) = run.told.hear(&self.control, &mut self.rng);
        for (key, value) in changes {
            core.handle_map(now, &mut run.store, &key, value.as_deref()).expect("only valid values are written");
        }
        self.hear_more(node, life, more);
        self.pump_osd(osd);
    }

    fn hear_more(&mut self, node: NodeId, life: u32, more: bool) {
        if more {
            let delay = self.rng.range(10, 50_000);
            self.after(delay, Event::State { node, life });
        }
    }

    fn activated(&mut self, osd: usize, life: u32, pg: PgId, epoch: Epoch, ok: bool) {
        if self.osds[osd].life != life {
            return;
        }
        let now = self.millis_of(osd);
        if let Some(run) = &mut self.osds[osd].run
            && let Some(core) = &mut run.core
        {
            core.handle_activated(now, &mut run.store, pg, epoch, ok);
            self.note(|| format!("osd {}: pg {pg} activated in epoch {epoch}: {ok}", osd + 1));
            self.pump_osd(osd);
        }
    }

    fn wake(&mut self, node: NodeId, life: u32) {
        if self.life_of(node) != life {
            return;
        }
        let now = self.clock_of(node);
        if let Some(client) = self.client_index(node) {
            self.clients[client].core.handle_timeout(now);
            return self.pump_client(client);
        }
        let osd = node.0 as usize - 1;
        let Some(run) = &mut self.osds[osd].run else { return };
        if run.device_ops == 0 && self.lazy.idles {
            run.store.handle_idle();
        }
        if let Some(core) = &mut run.core {
            core.handle_timeout(now, &mut run.store);
        }
        self.after(100_000, Event::Wake { node, life });
        self.pump_osd(osd);
        self.empty(osd);
        self.record_scrubs(osd);
    }

    // ---- the end

    fn heal(&mut self) {
        self.note(|| "calm".into());
        self.calm = true;
        self.state_silent_until = 0;
        self.net.heal();
        for osd in 0..self.osds.len() {
            self.osds[osd].full_until = 0;
            (self.osds[osd].unreadable_until, self.osds[osd].broken_until) = (0, 0);
            // Hangs end by themselves, as messages that wait for their end must not be overtaken.
            (self.osds[osd].slow_until, self.osds[osd].failing_until) = (0, 0);
            self.osds[osd].state_cut_until = 0;
            if !self.osds[osd].is_lost {
                self.control.set_weight(OsdId(osd as u32 + 1), 1.0);
            }
            self.after(1, Event::Start { osd });
        }
        self.state_changed();
    }

    fn read_everything(&mut self) {
        let mut offset = 0;
        while offset < self.shape.size {
            let len = (8 * SECTOR as u64).min(self.shape.size - offset);
            let kind = Kind::Read;
            self.submit(0, Record::new(kind, offset, len), ImageOp::Read { offset, len });
            offset += len;
        }
    }

    /// Whether all members of every PG hold the same versions of the same objects.
    fn members_agree(&self) -> bool {
        (0..self.pg_count).all(|index| {
            let pg = PgId { pool: PoolId(1), index };
            let members: Vec<_> = self.osds.iter().filter(|osd| self.is_member(osd, pg)).collect();
            let scope = PgScope { pg, count: self.pg_count };
            let runs = members.iter().filter_map(|member| member.run.as_ref());
            let digests: Vec<_> = runs.map(|run| run.store.digests(scope)).collect();
            digests.windows(2).all(|pair| pair[0] == pair[1]) && digests.len() == members.len()
        })
    }

    pub(crate) fn is_member(&self, osd: &OsdNode, pg: PgId) -> bool {
        let pgs = osd.run.iter().flat_map(|run| &run.core).flat_map(|core| core.pg_summaries());
        pgs.into_iter().any(|summary| summary.pg == pg && summary.acting)
    }

    /// The pool gets more PGs, or fewer, whether or not the last such change has ended.
    pub fn change_pgs(&mut self) {
        let part = [2, 2, 3, 4][self.rng.below(4) as usize];
        let fewer = self.rng.one_in(2) && self.pg_count.is_multiple_of(part);
        let wished = if fewer { self.pg_count / part } else { self.pg_count * part };
        if wished <= PGS_MAX && self.control.can_have_pgs(wished) {
            self.note(|| format!("the pool shall have {wished} PGs"));
            self.splits += u64::from(!fewer);
            self.pg_count = wished;
            self.control.set_pg_count(wished);
            self.state_changed();
        }
    }

    fn count(&mut self, stats: &OsdStats) {
        self.repaired += stats.repaired_sectors;
        self.recovered += stats.recovered_objects;
        self.patched += stats.patched_objects;
        self.scrubbed += stats.scrubbed_objects;
        self.scrub_errors += stats.scrub_errors;
        self.lost += stats.lost_sectors;
    }

    fn settle_counts(&mut self) {
        let (mut left, mut stats) = (0, Vec::new());
        for run in self.osds.iter().filter_map(|osd| osd.run.as_ref()) {
            if let Some(core) = &run.core {
                stats.push(core.stats());
                left += core.held_requests();
            }
        }
        stats.iter().for_each(|stats| self.count(stats));
        let tasks: usize = self.clients.iter().map(|c| c.core.tasks_in_flight()).sum();
        assert_eq!((left, tasks), (0, 0), "requests or operations are left over");
    }
}
