//! One request from its number to its answer: where it goes, when it is sent again.
//!
//! Previous hop: `write.rs`, `read.rs` and `patch.rs` here. Next hop: `osd/core/src/request.rs` of the primary.

use std::collections::VecDeque;

use cluster_proto::ids::ObjectId;
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
}

impl Part {
    /// What the part holds against other changes: a change its sectors, a patch also while it reads.
    fn hold(&self, id: PartId) -> Option<Hold<PartId>> {
        let write = self.request.is_mutation() || matches!(self.role, Role::Patch(_));
        let sectors = self.request.sectors().filter(|_| write)?;
        Some(Hold { op: id, sectors, access: Access::Change })
    }
}

/// Requests by number. The numbers in use lie close together, so that this is a ring.
#[derive(Default)]
pub(crate) struct Window {
    floor: u64,
    parts: VecDeque<Option<PartId>>,
}

impl Window {
    /// The lowest number without an answer.
    pub fn floor(&self) -> u64 {
        self.floor + 1
    }

    /// Whether a new number may be given out. Some are kept back for parts that need another request to finish.
    pub fn has_room(&self) -> bool {
        (self.parts.len() as u64) < CLIENT_WINDOW / 2
    }

    fn push(&mut self, part: PartId) -> u64 {
        self.parts.push_back(Some(part));
        self.floor + self.parts.len() as u64
    }

    fn get(&self, seq: u64) -> Option<PartId> {
        let index = seq.checked_sub(self.floor + 1)?;
        *self.parts.get(usize::try_from(index).ok()?)?
    }

    fn remove(&mut self, seq: u64) {
        let index = (seq - self.floor - 1) as usize;
        self.parts[index] = None;
        while matches!(self.parts.front(), Some(None)) {
            self.parts.pop_front();
            self.floor += 1;
        }
    }

    fn iter(&self) -> impl Iterator<Item = PartId> {
        self.parts.iter().filter_map(|part| *part)
    }
}

impl Client {
    /// A new part of a task: starts as soon as no overlapping change of ours is before it.
    pub(crate) fn start_part(&mut self, task: TaskId, object: ObjectId, role: Role, request: RequestOp) {
        if let Some(task) = self.tasks.get_mut(task) {
            task.pending += 1;
        }
        let part = Part { task, object, role, request, seq: 0, state: PartState::Blocked, attempts: 0 };
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
    }

    /// Sends the part's request to the primary of its PG; without a way there it waits.
    fn send(&mut self, id: PartId) {
        let Some(object) = self.parts.get(id).map(|part| part.object) else { return };
        let target = self.target(&object);
        let link = target.and_then(|(osd, ..)| self.link_to(osd));
        let floor = self.window.floor();
        let Some(part) = self.parts.get_mut(id) else { return };
        let (Some(link), Some((_, pg, epoch))) = (link, target) else {
            part.state = PartState::Unsent;
            self.unsent.push_back(id);
            return;
        };
        part.state = PartState::Sent(link);
        let request = Request { seq: part.seq, floor, epoch, pg, object, op: part.request.clone() };
        self.outputs.push_back(Output::Send { link, message: Message::Request(request) });
    }

    /// Primary, PG and epoch for an object, as far as the map says.
    fn target(&self, object: &ObjectId) -> Option<(cluster_proto::OsdId, u32, Epoch)> {
        let pg = self.map.pg_of(object)?;
        let map = self.map.pgs.get(&pg)?;
        Some((map.primary()?.osd, pg.index, map.epoch))
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
            self.paused.insert((now + pause, id));
            return;
        }
        self.window.remove(reply.seq);
        part.attempts = 0;
        match part.role {
            Role::Patch(_) => self.patch_step(id, reply),
            Role::Change => self.finish_part(id, reply.status, Found::Nothing),
            Role::Read { skip, take, .. } => self.read_finish(id, skip, take, reply),
            Role::Allocation { .. } => self.allocation_finish(id, reply),
        }
        self.cut_more();
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
