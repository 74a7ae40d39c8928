//! Room set aside while there is some: `image/migration.reserve`. A migration that filled the disk, and was killed before it
//! could clean up, is ended by writing a journal and containers' records, each a small file beside the one it replaces.
//! Without the reserve there would be no room for them, and no way out but to delete something by hand.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// The file in the store's directory.
const FILE: &str = "migration.reserve";
/// More than a journal and the largest container's record take, with their directory blocks.
const BYTES: usize = 1 << 20;

/// Sets the room aside.
///
/// # Errors
/// `NoSpace`; `Io`.
pub(super) fn take(root: &Path) -> Result<()> {
    let path = root.join(FILE);
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == BYTES as u64) {
        return Ok(());
    }
    let written = File::create(&path).and_then(|mut file| {
        // Not zeros: those a file system may leave out.
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
        let mut noise = Vec::with_capacity(BYTES);
        while noise.len() < BYTES {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            noise.extend_from_slice(&dice.to_le_bytes());
        }
        file.write_all(&noise)?;
        // Where blocks are chosen late, room is certain only when they are.
        file.sync_all()
    });
    written.map_err(|error| {
        let _ = fs::remove_file(&path);
        Error::io(format!("write {}", path.display()), error)
    })
}

/// Gives the room back, for what has to be written now.
///
/// # Errors
/// `Io`.
pub(super) fn give_back(root: &Path) -> Result<()> {
    let path = root.join(FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_takes_room_and_is_given_back() {
        use std::os::unix::fs::MetadataExt;
        let root = tempfile::tempdir().unwrap();
        give_back(root.path()).unwrap();
        for _ in 0..2 {
            take(root.path()).unwrap();
        }
        let file = root.path().join(FILE).metadata().unwrap();
        assert_eq!(file.len(), BYTES as u64);
        assert!(file.blocks() * 512 >= BYTES as u64, "{}", file.blocks());
        give_back(root.path()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        assert!(take(&root.path().join("missing")).is_err());
    }
}
