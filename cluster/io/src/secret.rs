//! Files with secrets: read only if nobody else can, and created so that nobody else ever could.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use crate::{Error, ErrorKind};

/// Longest secret. Bytes.
pub const SECRET_LEN_MAX: u64 = 4096;

/// What a file holds. The memory is overwritten when it is dropped.
///
/// # Errors
/// It cannot be read or is longer than [`SECRET_LEN_MAX`]; it is not a regular file, or not text
/// ([`ErrorKind::Unsuitable`]); its group or others have any access to it ([`ErrorKind::Exposed`]).
pub fn read(path: &Path) -> Result<Zeroizing<String>, Error> {
    let failed = |e| Error::os(format!("cannot read the secret in {}", path.display()), e);
    let unsuitable = |why: &str| {
        Err(Error::new(ErrorKind::Unsuitable, format!("cannot take a secret from {}: {why}", path.display()), None))
    };
    // Somebody may have put a pipe there: opening it must not wait.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return unsuitable("it is not a regular file");
    }
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        let path = path.display();
        let why = format!("{path} is open to other users (mode {mode:03o}): make it private with 'chmod 600 {path}'");
        return Err(Error::new(ErrorKind::Exposed, why, None));
    }
    if metadata.len() > SECRET_LEN_MAX {
        return unsuitable("it is too long");
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_LEN_MAX as usize));
    file.take(SECRET_LEN_MAX).read_to_end(&mut bytes).map_err(failed)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => unsuitable("it is not text"),
    }
}

/// Creates a file with a secret (and a line end), for its owner only (mode 0600), durably.
///
/// # Errors
/// It exists already, or cannot be written.
pub fn create(path: &Path, secret: &str) -> Result<(), Error> {
    let failed = |e| Error::os(format!("cannot write a secret to {}", path.display()), e);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let written = file.write_all(secret.as_bytes()).and_then(|()| file.write_all(b"\n")).and_then(|()| file.sync_all());
    written.and_then(|()| sync_parent(path)).map_err(failed)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_created_for_its_owner_only_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, "abc").unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap().trim(), "abc");
        let error = create(&path, "def").unwrap_err();
        assert_eq!(error.io().unwrap().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path).unwrap().trim(), "abc");
    }

    #[test]
    fn a_secret_that_others_can_reach_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, "abc").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o610, 0o601, 0o644, 0o777] {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = read(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Exposed, "{mode:o}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
            assert!(!error.to_string().contains("abc"), "{error}");
        }
        for mode in [0o600, 0o400, 0o700] {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(read(&path).is_ok(), "{mode:o}");
        }
    }

    #[test]
    fn what_cannot_be_a_secret_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        let private = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            write(&path, bytes).unwrap();
            set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            read(&path).unwrap_err().kind()
        };
        assert_eq!(private("long", &[b'a'; SECRET_LEN_MAX as usize + 1]), ErrorKind::Unsuitable);
        assert_eq!(private("binary", &[0xFF; 32]), ErrorKind::Unsuitable);
        assert_eq!(read(dir.path()).unwrap_err().kind(), ErrorKind::Unsuitable);
        let missing = read(&dir.path().join("missing")).unwrap_err();
        assert_eq!(missing.io().unwrap().kind(), io::ErrorKind::NotFound);
    }
}
