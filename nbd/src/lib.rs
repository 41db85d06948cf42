//! NBD server protocol as a pure state machine.
