//! The store inside an OSD: redirect-on-write data area, append-only metadata log, partitioned checkpoints.
