//! Flushes of the device's volatile cache, shared by everyone who needs one.

/// At most one flush is in flight. A ticket names the first flush that starts after now.
#[derive(Default)]
pub struct Flushes {
    needed: bool,
    started: u64,
    completed: u64,
    wanted: u64,
}

impl Flushes {
    /// `needed`: a completed write is durable only after a flush.
    pub fn new(needed: bool) -> Flushes {
        Flushes { needed, ..Flushes::default() }
    }

    /// Whether completed writes need a flush.
    pub fn is_needed(&self) -> bool {
        self.needed
    }

    /// Asks that all writes completed so far become durable; done when [`Flushes::is_done`] says so.
    pub fn ticket(&mut self) -> u64 {
        if self.needed {
            self.wanted = self.started + 1;
        }
        self.wanted
    }

    /// Whether the flush of a ticket has completed.
    pub fn is_done(&self, ticket: u64) -> bool {
        self.completed >= ticket
    }

    /// Whether one should start now for a ticket's sake.
    pub fn is_wanted(&self) -> bool {
        self.wanted > self.started
    }

    /// Whether one can start.
    pub fn can_start(&self) -> bool {
        self.needed && self.started == self.completed
    }

    /// One was given to the device.
    pub fn start(&mut self) {
        self.started += 1;
    }

    /// It completed.
    pub fn complete(&mut self) {
        self.completed = self.started;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_never_served_by_a_flush_already_running() {
        let mut f = Flushes::new(true);
        f.start();
        let ticket = f.ticket();
        assert!(!f.can_start());
        f.complete();
        assert!(!f.is_done(ticket) && f.is_wanted() && f.can_start());
        f.start();
        f.complete();
        assert!(f.is_done(ticket) && !f.is_wanted());
        let mut none = Flushes::new(false);
        let ticket = none.ticket();
        assert!(none.is_done(ticket) && !none.is_wanted() && !none.can_start());
    }
}
