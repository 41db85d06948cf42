//! The recent past: what changed in which revision, for watches and for reads of an earlier revision.

use std::collections::VecDeque;

use super::key_range::KeyRange;
use super::op::{CoreError, Entry};
use crate::limits::{HISTORY_BYTES_MAX, HISTORY_EVENTS_MAX};

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Whether the key was deleted; then `entry` has only its key and the revision of the deletion.
    pub deleted: bool,
    /// The key after the change.
    pub entry: Entry,
    /// The key before the change.
    pub prev: Option<Entry>,
}

impl Event {
    /// The revision of the change.
    pub fn revision(&self) -> i64 {
        self.entry.mod_revision
    }

    /// Memory that the event stands for. Bytes.
    pub fn weight(&self) -> usize {
        self.entry.weight() + self.prev.as_ref().map_or(0, Entry::weight)
    }
}

/// Events in a row, and up to which revision nothing else happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// The events of whole revisions, ascending.
    pub events: Vec<Event>,
    /// All events up to and including this revision have been told.
    pub through: i64,
}

/// The events since `first`, bounded in number and bytes.
pub(super) struct History {
    events: VecDeque<Event>,
    bytes: usize,
    /// The oldest revision whose events are all here.
    first: i64,
    /// The oldest revision whose state can be reconstructed: one before `first` if the history began there.
    readable: i64,
}

impl History {
    /// An empty history in which `first` is the next revision.
    pub(super) fn starting_at(first: i64) -> Self {
        Self { events: VecDeque::new(), bytes: 0, first, readable: first - 1 }
    }

    pub(super) fn first(&self) -> i64 {
        self.first
    }

    pub(super) fn readable(&self) -> i64 {
        self.readable
    }

    pub(super) fn push(&mut self, event: Event) {
        debug_assert!(self.events.back().is_none_or(|last| last.revision() <= event.revision()));
        self.bytes += event.weight();
        self.events.push_back(event);
    }

    /// Forgets the oldest revisions while there are too many events; never the newest revision.
    pub(super) fn trim(&mut self) {
        while self.events.len() > HISTORY_EVENTS_MAX || self.bytes > HISTORY_BYTES_MAX {
            let oldest = self.events.front().map_or(0, Event::revision);
            if self.events.back().is_none_or(|newest| newest.revision() == oldest) {
                return;
            }
            self.forget_before(oldest + 1);
        }
    }

    /// Forgets all events of revisions before `revision`.
    pub(super) fn forget_before(&mut self, revision: i64) {
        while let Some(event) = self.events.pop_front_if(|event| event.revision() < revision) {
            self.bytes -= event.weight();
        }
        self.first = self.first.max(revision);
        self.readable = self.readable.max(revision);
    }

    /// Events of `keys` from revision `from` on: whole revisions, until one of the limits is reached.
    pub(super) fn events(
        &self,
        from: i64,
        keys: &KeyRange,
        newest: i64,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<Events, CoreError> {
        if from < self.first {
            return Err(CoreError::Compacted(self.first));
        }
        let start = self.events.partition_point(|event| event.revision() < from);
        let mut found = Events { events: Vec::new(), through: newest };
        let mut bytes = 0;
        for event in self.events.range(start..).filter(|event| keys.contains(&event.entry.key)) {
            let last = found.events.last().map_or(event.revision(), Event::revision);
            if event.revision() != last && (found.events.len() >= count_max || bytes >= bytes_max) {
                found.through = last;
                break;
            }
            bytes += event.weight();
            found.events.push(event.clone());
        }
        Ok(found)
    }

    /// The events after `revision`, newest first: undone in this order they lead back to it.
    pub(super) fn newest_first_after(&self, revision: i64) -> impl Iterator<Item = &Event> {
        self.events.iter().rev().take_while(move |event| event.revision() > revision)
    }
}
