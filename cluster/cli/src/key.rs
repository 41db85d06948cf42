//! `blockyard key`.

use cluster_io::{entropy, secret};
use cluster_proto::auth::ClusterKey;

use crate::args::KeyCommand;
use crate::error::CliError;
use crate::output::Output;
use crate::settings::read_key;

/// Runs a command.
pub fn run(command: &KeyCommand, out: Output) -> Result<(), CliError> {
    let (path, key, verb) = match command {
        KeyCommand::Create { path } => {
            if path.exists() {
                let why = "a key that is lost cannot be replaced while daemons run with it: name another file";
                return Err(CliError::conflict(format!("{} exists already: {why}", path.display())));
            }
            let key = ClusterKey::from_bytes(random()?);
            secret::create(path, &key.to_text()).map_err(|e| CliError::failed(e.to_string()))?;
            (path, key, "made")
        }
        KeyCommand::Fingerprint { path } => (path, read_key(path)?, "holds"),
    };
    let shown = serde_json::json!({ "path": path, "fingerprint": key.fingerprint() });
    out.show(&shown, |_| match verb {
        "made" => format!("made {} with the key {}", path.display(), key.fingerprint()),
        _ => key.fingerprint(),
    })
}

fn random() -> Result<[u8; 32], CliError> {
    entropy::bytes().map_err(|e| CliError::failed(e.to_string()))
}
