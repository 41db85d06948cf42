//! Failures as a person and a script see them: one sentence and one exit code.

use std::fmt;
use std::process::ExitCode;

use cluster_state::{StateError, StateErrorKind};

/// Exit codes. Documented in `blockyard help`; they do not change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// What was asked for failed.
    Failed = 1,
    /// The command line is wrong, or a value on it.
    Usage = 2,
    /// The cluster cannot be reached.
    Unreachable = 3,
    /// What the command is about does not exist.
    NotFound = 4,
    /// It exists already, or somebody else changed it meanwhile.
    Conflict = 5,
    /// Data would be destroyed and `--yes` was not given.
    Unconfirmed = 6,
    /// Some data still depends on what was to be removed.
    Needed = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// What failed, on what, why, and what to do, as one sentence; and the exit code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CliError {
    /// The code.
    pub exit: Exit,
    message: String,
}

impl CliError {
    /// An error with this exit code.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// What was asked for failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// A wrong value on the command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Something that does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, message)
    }

    /// Something that exists already or was changed.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Exit::Conflict, message)
    }

    /// An error unless `--yes` was given for `what`, which destroys data.
    pub fn unless_confirmed(yes: bool, what: impl fmt::Display) -> Result<(), Self> {
        if yes {
            return Ok(());
        }
        Err(Self::new(Exit::Unconfirmed, format!("{what}: add --yes if that is what you want")))
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<StateError> for CliError {
    fn from(error: StateError) -> Self {
        let exit = match error.kind {
            StateErrorKind::Unavailable => Exit::Unreachable,
            StateErrorKind::Invalid => Exit::Usage,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<blockyard_client::Error> for CliError {
    fn from(error: blockyard_client::Error) -> Self {
        use blockyard_client::ErrorKind;
        let exit = match error.kind() {
            ErrorKind::NotFound => Exit::NotFound,
            ErrorKind::AlreadyExists | ErrorKind::Conflict => Exit::Conflict,
            ErrorKind::Invalid => Exit::Usage,
            ErrorKind::State if error.state() == Some(StateErrorKind::Unavailable) => Exit::Unreachable,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

/// The system refused something that was to be done with a path.
pub fn io_failed(what: &str, path: &std::path::Path, error: &std::io::Error) -> CliError {
    let advice = match error.kind() {
        std::io::ErrorKind::StorageFull => ": free some space there",
        std::io::ErrorKind::PermissionDenied => ": check who may use it",
        _ => "",
    };
    CliError::failed(format!("cannot {what} {}: {error}{advice}", path.display()))
}
