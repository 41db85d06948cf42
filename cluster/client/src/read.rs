//! Reads and allocation queries: parts, and putting their results together.
//!
//! Previous hop: a front door. Next hop: `request.rs` here, then `osd/core/src/read.rs` of the primary. The data's
//! checksums were verified when the message was decoded.

use buffer::Buffer;
use cluster_proto::layout::{LayerRef, Piece, SECTOR};
use cluster_proto::wire::{Reply, ReplyBody, RequestOp};
use cluster_proto::{SectorRange, Status};

use crate::client::Client;
use crate::op::{Extent, Found, TaskId};
use crate::request::{PartId, Role};

impl Client {
    /// Reserves a place among the task's results.
    fn result_number(&mut self, id: TaskId) -> usize {
        match self.tasks.get_mut(id) {
            Some(task) => {
                task.found.push(Found::Nothing);
                task.found.len() - 1
            }
            None => 0,
        }
    }

    pub(crate) fn cut_read(&mut self, id: TaskId, layer: LayerRef, piece: Piece) {
        let sectors = Self::covering(piece.offset, piece.len);
        let skip = piece.offset as usize % SECTOR;
        let role = Role::Read { number: self.result_number(id), skip, take: piece.len as usize };
        self.start_part(id, layer.object(piece.index), role, RequestOp::Read(sectors));
    }

    pub(crate) fn cut_allocation(&mut self, id: TaskId, layer: LayerRef, piece: Piece) {
        let sectors = Self::covering(piece.offset, piece.len);
        let role = Role::Allocation { number: self.result_number(id) };
        self.start_part(id, layer.object(piece.index), role, RequestOp::Allocation(sectors));
    }

    pub(crate) fn read_finish(&mut self, id: PartId, skip: usize, take: usize, reply: Reply) {
        match reply.body {
            ReplyBody::Data { data, .. } if reply.status == Status::Ok && data.len() >= skip + take => {
                self.finish_part(id, Status::Ok, Found::Data(data.slice(skip..skip + take)));
            }
            _ => self.finish_part(id, failure(reply.status), Found::Nothing),
        }
    }

    pub(crate) fn allocation_finish(&mut self, id: PartId, reply: Reply) {
        let asked = self.parts.get(id).and_then(|part| part.request.sectors()).map(SectorRange::bytes);
        match reply.body {
            ReplyBody::Allocation(runs)
                if reply.status == Status::Ok
                    && Some(runs.iter().map(|run| run.count as usize * SECTOR).sum()) == asked =>
            {
                self.finish_part(id, Status::Ok, Found::Runs(runs));
            }
            _ => self.finish_part(id, failure(reply.status), Found::Nothing),
        }
    }
}

/// The status to report for an answer that does not carry what it should.
fn failure(status: Status) -> Status {
    if status == Status::Ok { Status::Io } else { status }
}

/// The data read, in order.
pub(crate) fn data_of(found: Vec<Found>) -> Vec<Buffer> {
    found.into_iter().filter_map(|found| if let Found::Data(data) = found { Some(data) } else { None }).collect()
}

/// The extents of the range asked for, neighbours of one kind merged.
pub(crate) fn extents_of(found: Vec<Found>, offset: u64, len: u64) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut skip = offset % SECTOR as u64;
    let mut left = len;
    let runs = found.into_iter().filter_map(|found| if let Found::Runs(runs) = found { Some(runs) } else { None });
    for run in runs.flatten() {
        let bytes = u64::from(run.count) * SECTOR as u64;
        let inside = (bytes - skip.min(bytes)).min(left);
        skip -= skip.min(bytes);
        left -= inside;
        match extents.last_mut() {
            Some(last) if last.data == run.data => last.len += inside,
            _ if inside > 0 => extents.push(Extent { len: inside, data: run.data }),
            _ => {}
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::shard::Allocation;

    #[test]
    fn extents_are_clipped_and_merged() {
        let run = |count, data| Allocation { count, data };
        let found =
            vec![Found::Runs(vec![run(1, true), run(1, false)]), Found::Runs(vec![run(2, false), run(1, true)])];
        let extents = extents_of(found, 512, 4096 * 4 + 1000);
        let show: Vec<_> = extents.iter().map(|e| (e.len, e.data)).collect();
        assert_eq!(show, [(3584, true), (3 * 4096, false), (1512, true)]);
    }
}
