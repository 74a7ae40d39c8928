//! Containers on disk.
//!
//! ```text
//! containers/
//!   ID/config.json      the Record; its appearance makes the container exist, its removal ends it
//!   ID/state.json       StateFile: state, network; rewritten at each transition
//!   ID/hostname hosts resolv.conf
//!   ID/ID-json.log      the log (written by the shim)
//! ```
//!
//! Each file is replaced by rename (ADR 0002). `config.json` is fsync'ed; `state.json` is not: after a power loss nothing
//! runs any more and the runtime is asked anyway, and a `kill -9` does not lose what rename made visible.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::state::State;
use super::view::Record;
use crate::error::{Error, Result};
use crate::network::Sandbox;

/// Version of [`Record`] and [`StateFile`] written by this program.
pub(super) const FORMAT: u32 = 1;

/// The directory of all containers.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    root: PathBuf,
}

/// What changes during a container's life.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StateFile {
    pub(super) version: u32,
    pub(super) state: State,
    #[serde(default)]
    pub(super) sandbox: Option<Sandbox>,
    #[serde(default)]
    pub(super) restart_count: u64,
}

impl Disk {
    /// Uses (and makes) `root`.
    pub(super) fn open(root: PathBuf) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o710)
            .create(&root)
            .map_err(|e| Error::system(format!("mkdir {}", root.display())).caused_by(e))?;
        Ok(Self { root })
    }

    /// Uses `root` as it is, or is not.
    pub(super) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Ids of everything that is or was going to be a container, its record readable or not. A directory that cannot be
    /// listed, or is not there, is an error: whoever took it for an empty one could take containers' data for nobody's.
    pub(super) fn ids(&self) -> io::Result<Vec<String>> {
        let names =
            fs::read_dir(&self.root)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names
            .filter(|name| name.as_ref().map_or(true, |name| is_id(name)))
            .collect()
    }

    /// The record of a container; `None` when it has none and so does not exist.
    pub(super) fn read_record(&self, id: &str) -> Result<Option<Record>> {
        let record: Option<Record> = read_json(&self.directory(id).join("config.json"))?;
        match record {
            Some(record) if record.id != id || record.version > FORMAT => Err(Error::system(
                "it is of another container or of a newer version of this program",
            )),
            other => Ok(other),
        }
    }

    pub(super) fn directory(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// Makes the directory of a new container; it does not exist for readers until its record is written.
    pub(super) fn make_directory(&self, id: &str) -> Result<()> {
        let directory = self.directory(id);
        fs::DirBuilder::new()
            .mode(0o710)
            .create(&directory)
            .map_err(|e| Error::system(format!("mkdir {}", directory.display())).caused_by(e))
    }

    pub(super) fn write_record(&self, record: &Record) -> Result<()> {
        write_json(
            &self.directory(&record.id).join("config.json"),
            record,
            Sync::Durable,
        )
    }

    pub(super) fn write_state(&self, id: &str, state: &StateFile) -> Result<()> {
        write_json(&self.directory(id).join("state.json"), state, Sync::Fast)
    }

    /// Writes one of the small files that are bound into the container. It is written in place: a running
    /// container has the inode mounted.
    pub(super) fn write_file(&self, id: &str, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory(id).join(name);
        fs::write(&path, text)
            .map_err(|e| Error::system(format!("write {}", path.display())).caused_by(e))?;
        Ok(path)
    }

    /// Ends a container's existence: the record first, then everything else.
    pub(super) fn remove(&self, id: &str) -> Result<()> {
        let directory = self.directory(id);
        let failed = |e| Error::system(format!("remove {}", directory.display())).caused_by(e);
        ignore_missing(fs::remove_file(directory.join("config.json"))).map_err(failed)?;
        ignore_missing(fs::remove_dir_all(&directory)).map_err(failed)
    }

    /// Reads all containers; removes what a killed daemon left half made or half removed, and sets aside
    /// (with an error in the log) records that cannot be read: [`Disk::ids`] still names them, so their layers stay.
    pub(super) fn load(&self) -> Result<Vec<(Record, Option<StateFile>)>> {
        let failed = |e| Error::system(format!("read {}", self.root.display())).caused_by(e);
        let mut containers = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let id = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if !is_id(&id) {
                continue;
            }
            match read_json::<Record>(&path.join("config.json")) {
                Ok(Some(record)) if record.id == id && record.version <= FORMAT => {
                    // A state that cannot be read is as good as none: the runtime knows what runs.
                    let state = read_json(&path.join("state.json")).unwrap_or_else(|error| {
                        tracing::warn!(container = %id, %error, "state file is damaged");
                        None
                    });
                    containers.push((record, state));
                }
                Ok(None) => {
                    tracing::debug!(container = %id, "removing an unfinished container directory");
                    ignore_missing(fs::remove_dir_all(&path)).map_err(failed)?;
                }
                Ok(Some(record)) => tracing::error!(
                    container = %id, version = record.version,
                    "container record is of another container or of a newer version; left alone"
                ),
                Err(error) => {
                    tracing::error!(container = %id, %error, "container record cannot be read; left alone");
                }
            }
        }
        Ok(containers)
    }
}

fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    let failed = || Error::system(format!("read {}", path.display()));
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| failed().caused_by(e)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed().caused_by(error)),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sync {
    Durable,
    Fast,
}

fn write_json<T: Serialize>(path: &Path, value: &T, sync: Sync) -> Result<()> {
    let bytes = serde_json::to_vec(value)
        .map_err(|e| Error::system(format!("serialise {}", path.display())).caused_by(e))?;
    replace(path, &bytes, sync).map_err(|e| Error::system(format!("write {}", path.display())).caused_by(e))
}

fn replace(path: &Path, bytes: &[u8], sync: Sync) -> io::Result<()> {
    let temporary = path.with_extension("json.tmp");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        if sync == Sync::Durable {
            file.sync_all()
        } else {
            Ok(())
        }
    });
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
        // The old content stays; the temporary file of a full disk must not.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    match (sync, path.parent()) {
        (Sync::Durable, Some(parent)) => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_finishes_removals_and_keeps_unreadable_records() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path().join("containers")).unwrap();
        let half = "a".repeat(64);
        let damaged = "b".repeat(64);
        disk.make_directory(&half).unwrap();
        disk.write_file(&half, "hosts", "x").unwrap();
        disk.make_directory(&damaged).unwrap();
        fs::write(disk.directory(&damaged).join("config.json"), "{").unwrap();
        assert!(disk.load().unwrap().is_empty());
        assert!(!disk.directory(&half).exists());
        assert!(disk.directory(&damaged).exists());
        assert_eq!(disk.ids().unwrap(), [damaged]);
        fs::rename(root.path().join("containers"), root.path().join("elsewhere")).unwrap();
        assert!(disk.ids().is_err(), "not an empty list");
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("config.json");
        write_json(&path, &1, Sync::Durable).unwrap();
        // The temporary name is taken by a directory: the write fails before the rename.
        fs::create_dir(root.path().join("config.json.tmp")).unwrap();
        assert!(write_json(&path, &2, Sync::Durable).is_err());
        assert_eq!(read_json::<i32>(&path).unwrap(), Some(1));
    }
}
