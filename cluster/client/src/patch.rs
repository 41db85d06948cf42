//! Changes of less than whole sectors: read the sectors, change them, and write them back only if they are still what was
//! read (compare-and-write); otherwise begin again. So two clients that write into one sector never lose an update, and
//! two writes of one client into it follow each other, because a part holds its sectors from its read to its write.

use buffer::{Buffer, BufferMut};
use cluster_proto::layout::SECTOR;
use cluster_proto::wire::{Reply, ReplyBody, RequestOp};
use cluster_proto::{ObjectId, Status};

use crate::client::Client;
use crate::op::{Found, TaskId};
use crate::request::{PartId, Role};

/// A change of bytes inside sectors.
#[derive(Clone, Debug)]
pub(crate) struct Patch {
    /// First byte, within the sectors read.
    skip: usize,
    /// What must be there, for a compare-and-write.
    compare: Option<Buffer>,
    data: Buffer,
}

impl Client {
    /// Changes bytes of an object from `offset` on.
    pub(crate) fn start_patch(
        &mut self,
        id: TaskId,
        object: ObjectId,
        offset: u32,
        compare: Option<Buffer>,
        data: Buffer,
    ) {
        let sectors = Self::covering(offset, data.len() as u32);
        let patch = Patch { skip: offset as usize % SECTOR, compare, data };
        self.start_part(id, object, Role::Patch(patch), RequestOp::Read(sectors));
    }

    /// The sectors were read, or the compare-and-write was answered.
    pub(crate) fn patch_step(&mut self, id: PartId, reply: Reply) {
        let Some(part) = self.parts.get_mut(id) else { return };
        let Role::Patch(patch) = &part.role else { return };
        let Some(sectors) = part.request.sectors() else { return };
        match (reply.status, reply.body) {
            // Somebody else changed the sectors in between.
            (Status::Mismatch, _) => {
                part.request = RequestOp::Read(sectors);
                self.issue(id);
            }
            (Status::Ok, ReplyBody::Data { data: old, .. }) if old.len() == sectors.bytes() => {
                let range = patch.skip..patch.skip + patch.data.len();
                if patch.compare.as_ref().is_some_and(|compare| old[range.clone()] != compare[..]) {
                    return self.finish_part(id, Status::Mismatch, Found::Nothing);
                }
                let mut new = BufferMut::copy_of(&old);
                new[range].copy_from_slice(&patch.data);
                part.request = crate::write::compare_and_write(sectors, &old, &new);
                self.issue(id);
            }
            (status, _) => self.finish_part(id, status, Found::Nothing),
        }
    }
}
