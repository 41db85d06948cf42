//! What goes wrong, and when.

use cluster_proto::OsdId;
use cluster_proto::map::keys;

use crate::net::{Micros, NodeId};
use crate::nodes::Broken;
use crate::rng::Rng;
use crate::world::World;

/// Which faults a run may have.
#[derive(Clone, Copy, Debug)]
pub struct FaultPlan {
    /// Mean time between faults.
    pub every: Micros,
    /// Faults that are left: the work must get done in the end.
    pub budget: u32,
    /// OSD processes die.
    pub crashes: bool,
    /// Power fails under OSDs, losing and tearing what was not flushed.
    pub power: bool,
    /// Connections break, directions stall, bits flip on the way.
    pub network: bool,
    /// Data on one OSD's disk rots.
    pub rot: bool,
    /// The state store stops answering for a while.
    pub state: bool,
    /// Clients die.
    pub clients: bool,
    /// Processes stand still for a while, or cannot reach the state store.
    pub hangs: bool,
    /// The weights of OSDs change, so that PGs move.
    pub moves: bool,
    /// The pool gets more PGs, or fewer.
    pub splits: bool,
}

impl FaultPlan {
    /// A plan for a seed: calm runs as well as wild ones. `spare`: an acknowledged change survives the loss of one member's copy.
    pub fn random(rng: &mut Rng, spare: bool) -> Self {
        Self {
            every: rng.range(20_000, 1_500_000),
            budget: rng.range(5, 60) as u32,
            crashes: rng.below(4) > 0,
            power: rng.below(4) > 0,
            network: rng.below(4) > 0,
            rot: spare && rng.one_in(2),
            state: rng.one_in(2),
            clients: rng.one_in(2),
            hangs: rng.one_in(2),
            moves: rng.one_in(2),
            splits: rng.one_in(2),
        }
    }

    fn allows(self, fault: Fault) -> bool {
        match fault {
            Fault::Crash | Fault::CrashAll => self.crashes,
            Fault::Cut | Fault::Stall => self.network,
            Fault::Rot => self.rot,
            Fault::State => self.state,
            Fault::Client => self.clients,
            Fault::Slow | Fault::Scrub | Fault::Errors | Fault::Reads | Fault::Broken => true,
            Fault::Full | Fault::Leader | Fault::Lost | Fault::GivenUp | Fault::Sectors => true,
            Fault::Hang | Fault::Lonely => self.hangs,
            Fault::Move => self.moves,
            Fault::Pgs => self.splits,
        }
    }
}

/// One thing that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Fault {
    /// An OSD's process dies, perhaps with its power.
    Crash,
    /// Those of all OSDs do.
    CrashAll,
    /// A connection breaks.
    Cut,
    /// Nothing passes between two processes for a while.
    Stall,
    /// Data on a disk rots.
    Rot,
    /// The state store stops answering for a while.
    State,
    /// A client dies.
    Client,
    /// A disk is slow.
    Slow,
    /// A disk cannot write most of what it is given. Only if asked for.
    Errors,
    /// A disk cannot read half of its data. Only if asked for.
    Reads,
    /// Sectors of an object cannot be read any more, on many disks that have it or on all. Only if asked for.
    Sectors,
    /// A disk cannot read, flush, or write its metadata: its process ends. Only if asked for.
    Broken,
    /// A store has no space left. Only if asked for.
    Full,
    /// Another monitor leads, and knows only what is in the state store. Only if asked for.
    Leader,
    /// A disk is gone for good, and another OSD takes its place. Only if asked for, and while nothing else is missing.
    Lost,
    /// The same while others have everything, but perhaps not where it should be; the OSD is given up. Only if asked for.
    GivenUp,
    /// An OSD stands still.
    Hang,
    /// An OSD cannot reach the state store.
    Lonely,
    /// An OSD's weight changes.
    Move,
    /// A scrub is asked for.
    Scrub,
    /// The pool gets more PGs, or fewer.
    Pgs,
}

/// Faults as often as they come by themselves; of those that the plan rules out nothing happens.
const USUAL: [Fault; 19] = [
    Fault::Crash,
    Fault::Crash,
    Fault::Crash,
    Fault::CrashAll,
    Fault::Cut,
    Fault::Cut,
    Fault::Stall,
    Fault::Stall,
    Fault::Rot,
    Fault::State,
    Fault::Client,
    Fault::Slow,
    Fault::Hang,
    Fault::Lonely,
    Fault::Move,
    Fault::Move,
    Fault::Scrub,
    Fault::Pgs,
    Fault::Pgs,
];

/// Lets one thing go wrong.
pub fn strike(world: &mut World) {
    if world.cuts_power() {
        return;
    }
    // Without it nothing is drawn: a seed stays what it was.
    if !world.often.is_empty() && world.rng.one_in(2) {
        let often = match world.often[..] {
            [only] => only,
            _ => world.often[world.rng.below(world.often.len() as u64) as usize],
        };
        // Whether or not the plan has it; but what rots must be left somewhere.
        if often != Fault::Rot || world.faults.rot {
            happen(world, often);
        }
        return;
    }
    let usual = USUAL[world.rng.below(USUAL.len() as u64) as usize];
    if world.faults.allows(usual) {
        happen(world, usual);
    }
}

fn happen(world: &mut World, fault: Fault) {
    match fault {
        Fault::Crash => crash_one(world),
        Fault::CrashAll => crash_all(world),
        Fault::Cut => cut(world),
        Fault::Stall => stall(world),
        Fault::Rot => {
            for _ in 0..world.rng.range(1, 4) {
                world.rot();
            }
        }
        Fault::State => {
            let until = world.now + world.rng.range(100_000, 3_000_000);
            world.state_silent_until = until;
            world.note(|| format!("state store silent until {until}"));
        }
        Fault::Client => {
            let count = world.clients.len() as u64;
            let which = world.rng.below(count) as usize;
            world.crash_client(which);
        }
        Fault::Slow => {
            let which = any_osd(world);
            world.osds[which].slow_until = world.now + world.rng.range(100_000, 1_000_000);
        }
        Fault::Errors => {
            let which = any_osd(world);
            let until = world.now + world.rng.range(10_000, 1_000_000);
            world.osds[which].failing_until = until;
            world.note(|| format!("writes to the disk of osd {} fail until {until}", which + 1));
        }
        Fault::Reads => {
            let which = any_osd(world);
            let until = world.now + world.rng.range(10_000, 2_000_000);
            world.osds[which].unreadable_until = until;
            world.note(|| format!("reads from the disk of osd {} fail until {until}", which + 1));
        }
        Fault::Sectors => world.spoil_everywhere(),
        Fault::Broken => {
            let which = any_osd(world);
            let until = world.now + world.rng.range(10_000, 2_000_000);
            let broken = [Broken::Reads, Broken::Metadata, Broken::Flushes][world.rng.below(3) as usize];
            (world.osds[which].broken_until, world.osds[which].broken) = (until, broken);
            world.note(|| format!("the disk of osd {} is broken until {until}: {broken:?}", which + 1));
        }
        Fault::Full => {
            let which = any_osd(world);
            world.fill(which);
        }
        Fault::Leader => {
            world.note(|| "another monitor leads".into());
            world.control.liveness = Default::default();
            world.state_changed();
        }
        Fault::Lost => lose(world),
        Fault::GivenUp => give_up(world),
        Fault::Hang => freeze(world),
        Fault::Lonely => {
            let osd = any_osd(world);
            world.osds[osd].state_cut_until = world.now + world.rng.range(500_000, 12_000_000);
            world.note(|| format!("osd {} cannot reach the state store", osd + 1));
        }
        Fault::Move => reweight(world),
        Fault::Scrub => world.request_scrub(),
        Fault::Pgs => world.change_pgs(),
    }
}

fn any_osd(world: &mut World) -> usize {
    let count = world.osds.len() as u64;
    world.rng.below(count) as usize
}

/// A process stands still and does not know it.
fn freeze(world: &mut World) {
    let osd = any_osd(world);
    let until = world.now + world.rng.range(100_000, 9_000_000);
    if world.osds[osd].frozen_until > world.now {
        // What waits for the end of a hang would be overtaken by what comes later if that end were another.
        return;
    }
    world.osds[osd].frozen_until = until;
    world.note(|| format!("osd {} stands still until {until}", osd + 1));
}

/// A disk breaks, and its OSD is replaced. Whoever was replaced before is removed from the configuration.
fn lose(world: &mut World) {
    let which = any_osd(world);
    // What is lost must be elsewhere, and stay there.
    let is_only_one = world.control.scheme().copies_needed() == world.control.scheme().width();
    if is_only_one || world.faults.rot || !world.control.is_clean() {
        return;
    }
    let mut targets = world.control.map().pgs.values().flat_map(|pg| &pg.target);
    if world.osds[which].is_lost || targets.any(|osd| world.osds[osd.0 as usize - 1].is_lost) {
        return;
    }
    world.note(|| format!("the disk of osd {} is lost", which + 1));
    for (osd, _) in (1..).zip(&world.osds).filter(|(_, node)| node.is_lost) {
        world.control.delete(&keys::osd_config(OsdId(osd)));
    }
    world.control.set_weight(OsdId(which as u32 + 1), 0.0);
    replace(world, which);
    world.give_up_lost();
}

/// A disk breaks although data is still to be copied, but not that of this disk alone. Its OSD is removed and given up.
fn give_up(world: &mut World) {
    let which = any_osd(world);
    let is_lost = |osd: OsdId| osd.0 > 0 && world.osds[osd.0 as usize - 1].is_lost;
    let id = OsdId(which as u32 + 1);
    if world.faults.rot || is_lost(id) || !world.control.has_all_without(id, is_lost) {
        return;
    }
    world.note(|| format!("the disk of osd {id} is lost, others have everything"));
    world.control.delete(&keys::osd_config(id));
    replace(world, which);
}

fn replace(world: &mut World, which: usize) {
    world.crash_osd(which, true);
    world.osds[which].is_lost = true;
    world.add_osd();
}

/// Data has to move.
fn reweight(world: &mut World) {
    let osd = any_osd(world);
    if world.osds[osd].is_lost {
        return;
    }
    let weight = [0.0, 0.3, 1.0, 1.0][world.rng.below(4) as usize];
    // Without enough OSDs the pool cannot be placed at all.
    let weight = if world.control.is_spare(OsdId(osd as u32 + 1)) { weight } else { 1.0 };
    world.note(|| format!("osd {} gets weight {weight}", osd + 1));
    world.control.set_weight(OsdId(osd as u32 + 1), weight);
    world.state_changed();
}

fn crash_one(world: &mut World) {
    let count = world.osds.len() as u64;
    let which = world.rng.below(count) as usize;
    let power = world.faults.power && world.rng.one_in(2);
    world.crash_osd(which, power);
}

fn crash_all(world: &mut World) {
    let power = world.faults.power && world.rng.one_in(2);
    for which in 0..world.osds.len() {
        world.crash_osd(which, power);
    }
}

fn cut(world: &mut World) {
    let alive = world.net.alive();
    if let Some(&conn) = world.rng.pick(&alive) {
        world.cut_conn(conn);
    }
}

fn stall(world: &mut World) {
    let nodes: Vec<NodeId> = world.osds.iter().map(|o| o.node()).chain(world.clients.iter().map(|c| c.node)).collect();
    let (Some(&a), Some(&b)) = (world.rng.pick(&nodes), world.rng.pick(&nodes)) else { return };
    let until = world.now + world.rng.range(50_000, 8_000_000);
    world.net.stall(a, b, until);
    if world.rng.one_in(2) {
        world.net.stall(b, a, until);
    }
    world.note(|| format!("stall {a:?} {b:?} until {until}"));
}
