//! Whose store lies on a device, without opening it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blockstore::{Superblock, SuperblockError};
use cluster_proto::{OsdId, Uuid};

use crate::{Error, ErrorKind};

/// What a prepared device says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster it belongs to.
    pub cluster: Uuid,
    /// The OSD it is.
    pub osd: OsdId,
    /// The store itself: each preparation makes a new one.
    pub store: Uuid,
}

/// Reads whose store is on a device or file. Works while an OSD runs on it.
///
/// # Errors
/// `Missing` if there is no such path, `BadStore` if it is no store that this program knows, or `System`.
pub fn identify(path: &Path) -> Result<Identity, Error> {
    let shown = path.display();
    let file = File::open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            let advice = "check the path, or prepare it with 'blockyard osd prepare'";
            Error::new(ErrorKind::Missing, format!("{shown} does not exist: {advice}"))
        }
        _ => Error::new(ErrorKind::System, format!("cannot open {shown}: {e}")),
    })?;
    match Superblock::OFFSETS.map(|offset| superblock_at(&file, offset)) {
        [Ok(found), _] | [_, Ok(found)] => {
            let (cluster, store) = (Uuid::from_bytes(found.cluster), Uuid::from_bytes(found.store));
            Ok(Identity { cluster, osd: found.osd, store })
        }
        [Err(SuperblockError::Damaged), Err(error)] | [Err(error), _] => {
            let text = format!("cannot run an OSD on {shown}: {error}; check the path, or prepare it first");
            Err(Error::new(ErrorKind::BadStore, text))
        }
    }
}

fn superblock_at(file: &File, offset: u64) -> Result<Superblock, SuperblockError> {
    let mut block = [0; Superblock::LEN];
    // One copy may be unreadable, or the device too short for it.
    file.read_exact_at(&mut block, offset).map_err(|_| SuperblockError::Damaged)?;
    Superblock::decode(&block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PrepareOptions, prepare};

    #[test]
    fn a_prepared_file_tells_whose_it_is_even_with_one_superblock() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("osd");
        assert_eq!(identify(&path).map_err(|e| e.kind()), Err(ErrorKind::Missing));
        std::fs::write(&path, [0; 100]).expect("a file");
        assert_eq!(identify(&path).map_err(|e| e.kind()), Err(ErrorKind::BadStore));
        let (cluster, id) = (Uuid::from_u128(5), OsdId(7));
        let options = PrepareOptions { path: path.clone(), bytes: Some(256 << 20), id, cluster, force: true };
        let store = prepare(&options).expect("made").store;
        let identity = Identity { cluster, osd: id, store };
        assert_eq!(identify(&path), Ok(identity));
        let file = File::options().write(true).open(&path).expect("a file");
        file.write_all_at(&[9; 100], 0).expect("written");
        assert_eq!(identify(&path), Ok(identity));
        file.write_all_at(&[9; 100], Superblock::OFFSETS[1]).expect("written");
        assert_eq!(identify(&path).map_err(|e| e.kind()), Err(ErrorKind::BadStore));
    }
}
