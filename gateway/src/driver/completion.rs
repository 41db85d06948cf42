//! Requests on their way through the cluster: where each answer belongs.
//!
//! Previous hop: a session's request. Next hop: the client core (`cluster/client/src/write.rs`). An answer finds its
//! connection by the tag under which the core knows the request; if the connection has ended meanwhile, the answer is
//! counted and dropped.

use std::collections::VecDeque;
use std::rc::Rc;

use cluster_client::{Client, ImageId, ImageOp};
use cluster_io::ConnId;
use gateway_core::{Status, VolumeOp, VolumeReply};
use slab::Slab;

use crate::directory::{Attachment, Export};
use crate::metrics::{OpKind, op_bytes};
use crate::volume_cluster::{image_op, is_fua, is_write, payload_bytes, volume_reply};

/// A request at the cluster.
struct Flight {
    conn: ConnId,
    /// The session's name for it.
    tag: u64,
    export: Rc<Export>,
    kind: OpKind,
    bytes: u64,
    /// Bytes of its payload, which is in memory until the answer.
    payload: usize,
    started_ns: u64,
    image: ImageId,
    /// To be made durable before it is answered, if it is not by then (lazy pools).
    fua: bool,
}

/// An answer on its way to a session.
pub(crate) struct Landing {
    pub conn: ConnId,
    pub tag: u64,
    pub reply: VolumeReply,
}

/// All requests at the cluster.
#[derive(Default)]
pub(crate) struct Flights {
    flights: Slab<Flight>,
    /// Refused here, without asking the cluster.
    refused: VecDeque<Landing>,
    payload_bytes: usize,
}

impl Flights {
    /// Requests without an answer.
    pub(crate) fn len(&self) -> usize {
        self.flights.len()
    }

    /// Payload of the writes under way. Bytes.
    pub(crate) fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Starts a request of an attached connection.
    pub(crate) fn submit(
        &mut self,
        client: &mut Client,
        now_ns: u64,
        conn: ConnId,
        attachment: Option<&Attachment>,
        (tag, op): (u64, VolumeOp),
    ) {
        let admitted = attachment.ok_or(Status::Gone).and_then(|attachment| {
            let export = &attachment.export;
            match () {
                () if export.is_removed() => Err(Status::Gone),
                () if export.is_read_only() && is_write(&op) => Err(Status::ReadOnly),
                () => Ok(attachment),
            }
        });
        let attachment = match admitted {
            Ok(attachment) => attachment,
            Err(status) => {
                return self.refused.push_back(Landing { conn, tag, reply: VolumeReply::Failed(status) });
            }
        };
        let payload = payload_bytes(&op);
        let flight = Flight {
            conn,
            tag,
            export: attachment.export.clone(),
            kind: OpKind::of(&op),
            bytes: op_bytes(&op),
            payload,
            started_ns: now_ns,
            image: attachment.image,
            fua: is_fua(&op),
        };
        self.payload_bytes += payload;
        let key = self.flights.insert(flight);
        client.submit(attachment.image, key as u64, image_op(op));
    }

    /// The next answer.
    pub(crate) fn land(&mut self, client: &mut Client, now_ns: u64) -> Option<Landing> {
        if let Some(landing) = self.refused.pop_front() {
            return Some(landing);
        }
        loop {
            let (_, key, result) = client.poll_reply()?;
            if let Some(flight) = self.flights.get_mut(key as usize)
                && std::mem::take(&mut flight.fua)
                && result.is_ok()
                && client.unsynced() > 0
            {
                client.submit(flight.image, key, ImageOp::Flush);
                continue;
            }
            let Some(flight) = self.flights.try_remove(key as usize) else {
                debug_assert!(false, "the core answered {key:#x}, which was not asked or was answered before");
                continue;
            };
            self.payload_bytes -= flight.payload;
            let reply = volume_reply(result);
            let latency_us = now_ns.saturating_sub(flight.started_ns) / 1_000;
            flight.export.count(|stats| stats.add(flight.kind, flight.bytes, latency_us, &reply));
            return Some(Landing { conn: flight.conn, tag: flight.tag, reply });
        }
    }
}
