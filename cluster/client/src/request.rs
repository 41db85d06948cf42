//! One request from its number to its answer: where it goes, when it is sent again.
//!
//! Previous hop: `write.rs`, `read.rs` and `patch.rs` here. Next hop: `osd/core/src/request.rs` of the primary.

use std::collections::VecDeque;

use cluster_proto::ids::{ObjectId, OsdId, PgId};
use cluster_proto::layout::SectorRange;
use cluster_proto::limits::CLIENT_WINDOW;
use cluster_proto::link::{LinkId, Millis};
use cluster_proto::locks::{Access, Hold};
use cluster_proto::wire::{Message, Reply, Request, RequestOp};
use cluster_proto::{Epoch, Status};

use crate::client::{Client, Output};
use crate::op::{Found, TaskId};
use crate::patch::Patch;

/// Names a part: generation and slot.
pub(crate) type PartId = u64;

/// Pause before a request is sent again: not served there, or queues full.
const RETRY_MS: Millis = 20;
/// Longest such pause.
const RETRY_MAX_MS: Millis = 320;
/// Pause when the pool is full.
const NO_SPACE_MS: Millis = 500;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PartState {
    /// An overlapping change of ours is before it.
    Blocked,
    /// Waits for a connection or for the map.
    Unsent,
    Sent(LinkId),
    /// Will be sent again then.
    Paused(Millis),
}

/// What the answer to a part is for.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// Bytes `skip .. skip + take` of the sectors read are the task's result number `number`.
    Read { number: usize, skip: usize, take: usize },
    /// The runs are the task's result number `number`.
    Allocation { number: usize },
    /// A change that needs nothing but its acknowledgement.
    Change,
    /// A change of less than whole sectors.
    Patch(Patch),
    /// A change that was answered in an earlier interval and not synced.
    Repeat,
    /// Makes durable what was answered of a PG: the changes up to this stamp, set when the request is sent.
    Sync { pg: PgId, stamp: Option<u64> },
}

#[derive(Debug)]
pub(crate) struct Part {
    pub task: TaskId,
    pub object: ObjectId,
    pub role: Role,
    pub request: RequestOp,
    /// Number of the present request; 0 while blocked.
    pub seq: u64,
    pub state: PartState,
    pub attempts: u32,
    /// Epoch in which the present request was sent first, since it was last refused: it is carried out in that or a later one.
    pub epoch: Option<Epoch>,
}

impl Part {
    pub fn new(task: TaskId, object: ObjectId, role: Role, request: RequestOp) -> Self {
        Part { task, object, role, request, seq: 0, state: PartState::Blocked, attempts: 0, epoch: None }
    }

    /// What the part holds against other changes: a change its sectors, a patch also while it reads.
    fn hold(&self, id: PartId) -> Option<Hold<PartId>> {
        let write = self.request.is_mutation() || matches!(self.role, Role::Patch(_));
        let sectors = self.request.sectors().filter(|_| write)?;
        Some(Hold { op: id, sectors, access: Access::Change })
    }
}

/// A number that was given out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    /// Not answered.
    Open(PartId),
    /// Answered, but it may have to be asked again under this number.
    Kept,
    Done,
}

/// Where a request goes.
#[derive(Clone, Copy)]
struct Target {
    primary: OsdId,
    pg: PgId,
    epoch: Epoch,
    /// It removes the whole object.
    removes: bool,
}

/// Requests by number. The numbers in use lie close together, so that this is a ring.
#[derive(Default)]
pub(crate) struct Window {
    floor: u64,
    slots: VecDeque<Slot>,
}

impl Window {
    /// The lowest number that is in use.
    pub fn floor(&self) -> u64 {
        self.floor + 1
    }

    /// Numbers from the lowest to the highest in use.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether a new number may be given out. Some are kept back for parts that need another request to finish.
    pub fn has_room(&self) -> bool {
        (self.slots.len() as u64) < CLIENT_WINDOW / 2
    }

    fn push(&mut self, part: PartId) -> u64 {
        self.slots.push_back(Slot::Open(part));
        self.floor + self.slots.len() as u64
    }

    /// The part whose request has this number.
    pub fn get(&self, seq: u64) -> Option<PartId> {
        let index = seq.checked_sub(self.floor + 1)?;
        match self.slots.get(usize::try_from(index).ok()?)? {
            Slot::Open(part) => Some(*part),
            Slot::Kept | Slot::Done => None,
        }
    }

    fn set(&mut self, seq: u64, slot: Slot) {
        let index = (seq - self.floor - 1) as usize;
        self.slots[index] = slot;
    }

    /// The request was answered, but its number stays in use.
    pub fn keep(&mut self, seq: u64) {
        self.set(seq, Slot::Kept);
    }

    /// A kept number is used again.
    pub fn reopen(&mut self, seq: u64, part: PartId) {
        self.set(seq, Slot::Open(part));
    }

    /// The number is not used any more.
    pub fn remove(&mut self, seq: u64) {
        self.set(seq, Slot::Done);
        while self.slots.front() == Some(&Slot::Done) {
            self.slots.pop_front();
            self.floor += 1;
        }
    }

    fn iter(&self) -> impl Iterator<Item = PartId> {
        self.slots.iter().filter_map(|slot| if let Slot::Open(part) = slot { Some(*part) } else { None })
    }
}

impl Client {
    /// A new part of a task: starts as soon as no overlapping change of ours is before it.
    pub(crate) fn start_part(&mut self, task: TaskId, object: ObjectId, role: Role, request: RequestOp) {
        if let Some(task) = self.tasks.get_mut(task) {
            task.pending += 1;
        }
        let part = Part::new(task, object, role, request);
        let hold = part.hold(0);
        let id = self.parts.insert(part);
        let free = hold.is_none_or(|hold| self.locks.acquire(object, Hold { op: id, ..hold }));
        if free {
            self.issue(id);
        }
    }

    /// Gives the part's request a number and sends it.
    pub(crate) fn issue(&mut self, id: PartId) {
        let Some(part) = self.parts.get_mut(id) else { return };
        part.seq = self.window.push(id);
        self.send(id);
        // The numbers of what is kept must not use up all there are.
        if self.window.len() as u64 == CLIENT_WINDOW / 4 {
            self.sync();
        }
    }

    /// Sends the part's request to the primary of its PG; without a way there, or before what must be repeated first, it waits.
    fn send(&mut self, id: PartId) {
        let Some(part) = self.parts.get(id) else { return };
        let removes = |target: &Target| target.removes;
        let target = self.target(part);
        let is_early = self.unsynced.is_in_the_way(part, target.as_ref().is_some_and(removes));
        let target = target.filter(|_| !is_early);
        let link = target.and_then(|target| self.link_to(target.primary));
        let (floor, stamp) = (self.window.floor(), self.sync_stamp());
        let Some(part) = self.parts.get_mut(id) else { return };
        let (Some(link), Some(Target { pg, epoch, .. })) = (link, target) else {
            part.state = PartState::Unsent;
            self.unsent.push_back(id);
            return;
        };
        part.state = PartState::Sent(link);
        part.epoch.get_or_insert(epoch);
        if let Role::Sync { stamp: covered, .. } = &mut part.role {
            covered.get_or_insert(stamp);
        }
        let only_in_epoch = matches!(part.role, Role::Repeat | Role::Sync { .. }) || self.unsynced.has_of(&pg);
        if target.as_ref().is_some_and(removes) {
            self.unsynced.supersede(&part.object);
        }
        let (seq, object, op) = (part.seq, part.object, part.request.clone());
        let request = Request { seq, floor, epoch, only_in_epoch, pg: pg.index, object, op };
        self.outputs.push_back(Output::Send { link, message: Message::Request(request) });
    }

    /// Where a part's request goes, as far as the map says.
    fn target(&self, part: &Part) -> Option<Target> {
        let pool = self.map.pools.get(&part.object.pool)?;
        let pg = match part.role {
            Role::Sync { pg, .. } if self.map.pgs.contains_key(&pg) => pg,
            // Of a PG that was merged into another nothing is left to sync: all of it is repeated there. Any answer ends it.
            _ => self.map.pg_of(&part.object)?,
        };
        let map = self.map.pgs.get(&pg)?;
        let removes = match &part.request {
            RequestOp::Delete => true,
            RequestOp::Zero(sectors) => sectors.bytes() == pool.object_size() as usize,
            _ => false,
        };
        Some(Target { primary: map.primary()?.osd, pg, epoch: map.epoch, removes })
    }

    /// Tries again what had nowhere to go.
    pub(crate) fn send_unsent(&mut self) {
        for id in std::mem::take(&mut self.unsent) {
            if self.parts.get(id).is_some_and(|part| part.state == PartState::Unsent) {
                self.send(id);
            }
        }
    }

    /// Everything sent on a connection that is gone has to be sent again, in order.
    pub(crate) fn unsend(&mut self, link: LinkId) {
        for id in self.window.iter() {
            if let Some(part) = self.parts.get_mut(id)
                && part.state == PartState::Sent(link)
            {
                part.state = PartState::Unsent;
                self.unsent.push_back(id);
            }
        }
    }

    /// Sends again what was paused until `now`.
    pub(crate) fn resume_paused(&mut self, now: Millis) {
        let later = if now == Millis::MAX { Default::default() } else { self.paused.split_off(&(now + 1, 0)) };
        for (at, id) in std::mem::replace(&mut self.paused, later) {
            if let Some(part) = self.parts.get_mut(id)
                && part.state == PartState::Paused(at)
            {
                part.state = PartState::Unsent;
                self.unsent.push_back(id);
            }
        }
    }

    pub(crate) fn handle_reply(&mut self, link: LinkId, reply: Reply) {
        let Some(id) = self.window.get(reply.seq) else { return };
        let now = self.now;
        let Some(part) = self.parts.get_mut(id).filter(|part| part.state == PartState::Sent(link)) else { return };
        if reply.status.is_transient() {
            part.attempts += 1;
            let pause = match reply.status {
                Status::NoSpace => NO_SPACE_MS,
                _ => (RETRY_MS << part.attempts.min(8)).min(RETRY_MAX_MS),
            };
            part.state = PartState::Paused(now + pause);
            part.epoch = None;
            if let Role::Sync { stamp, .. } = &mut part.role {
                *stamp = None;
            }
            self.paused.insert((now + pause, id));
            return;
        }
        part.attempts = 0;
        match part.role {
            Role::Repeat => return self.repeat_finish(id, &reply),
            Role::Sync { .. } => {
                self.window.remove(reply.seq);
                return self.sync_finish(id, &reply);
            }
            _ => {}
        }
        self.settle_number(id, &reply);
        let Some(part) = self.parts.get_mut(id) else { return };
        part.epoch = None;
        match part.role {
            Role::Patch(_) => self.patch_step(id, reply),
            Role::Change => self.finish_part(id, reply.status, Found::Nothing),
            Role::Read { skip, take, .. } => self.read_finish(id, skip, take, reply),
            Role::Allocation { .. } => self.allocation_finish(id, reply),
            Role::Repeat | Role::Sync { .. } => {}
        }
        self.cut_more();
    }

    /// A request was answered: its number is free, unless it is a change that may have to be repeated.
    fn settle_number(&mut self, id: PartId, reply: &Reply) {
        let Some(part) = self.parts.get(id) else { return };
        let (object, sectors) = (part.object, part.request.sectors());
        let changed = reply.status == Status::Ok && part.request.is_mutation();
        let is_plain = matches!(part.request, RequestOp::Write { .. } | RequestOp::Zero(_));
        let is_plain_or_removal = is_plain || matches!(part.request, RequestOp::Delete);
        if changed && reply.unsynced && is_plain {
            return self.keep(id);
        }
        self.window.remove(reply.seq);
        if let Some(sectors) = sectors.filter(|_| changed) {
            self.forget_covered(&object, sectors);
        } else if reply.status != Status::Ok && is_plain_or_removal {
            self.removal_failed(&object);
        }
    }

    /// A part is done. Starts what waited behind it, and answers the task after its last part.
    pub(crate) fn finish_part(&mut self, id: PartId, status: Status, found: Found) {
        let Some(part) = self.parts.get(id) else { return };
        if let Some(hold) = part.hold(id) {
            for next in self.locks.release(part.object, hold.op) {
                self.issue(next);
            }
        }
        let Some(part) = self.parts.remove(id) else { return };
        let Some(task) = self.tasks.get_mut(part.task) else { return };
        task.pending -= 1;
        if status != Status::Ok {
            task.failed.get_or_insert(status);
        }
        if let Role::Read { number, .. } | Role::Allocation { number } = part.role {
            task.found[number] = found;
        }
        self.cut(part.task);
    }

    /// Sectors of a byte range of an object that it touches, wholly or in part.
    pub(crate) fn covering(offset: u32, len: u32) -> SectorRange {
        let sector = cluster_proto::SECTOR as u32;
        let first = offset / sector;
        SectorRange::new(first, (offset + len).div_ceil(sector) - first)
    }
}
