//! What the end-to-end tests, and `tests/bench`, are made of: a cluster as one process or as many, with real etcd and networks that can be cut,
//! a small NBD client, a load that knows what must be there after a crash, and other people's programs.
//!
//! Nothing here links any crate of Blockyard: the tests see what users see. Settings of the environment:
//!
//! - `BLOCKYARD_BIN`: the command under test; else the one beside the running program, else `target/release/blockyard` of this
//!   workspace.
//! - `E2E_DIR`: where data directories are made; else the system's folder for temporary files.
//! - `CI=true`: a missing program fails the test that needs it, which is skipped else.
//! - `FIO_ENGINE`: fio's native engine; else `target/release/libfio_blockyard.so` of this workspace.
//! - `E2E_SKIPS`: a file to which one line is added for everything that was skipped.

mod cluster;
mod deadline;
mod distribution;
mod engine;
mod etcd;
mod fleet;
mod load;
mod metrics;
mod nbd;
mod netns;
mod process;
mod random;
mod stamp;
mod tool;

pub use cluster::{Cluster, Refused, scratch, scratch_in, try_up};
pub use deadline::{eventually, limited};
pub use distribution::Distribution;
pub use engine::Engine;
pub use etcd::{Certificates, Etcd, free_port};
pub use fleet::{Fleet, FleetOptions};
pub use load::{Lane, Pattern, Slowest};
pub use metrics::{metrics, sample, sum};
pub use nbd::{Command, Nbd, PERMISSION_DENIED};
pub use netns::{Network, can_make_networks};
pub use process::Process;
pub use random::Random;
pub use stamp::{UNIT, read_stamp, write_stamp};
pub use tool::{Done, blockyard, have, run, sha256, skip, workspace};
