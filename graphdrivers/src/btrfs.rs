//! `btrfs`: every snapshot is a subvolume, made as a snapshot of its parent's in no time and sharing all its blocks.
//!
//! ```text
//!  btrfs/<snapshot>/subvolume      the whole tree; read-only in a layer
//! ```
//!
//! The directory around the subvolume is an ordinary one, so that the book-keeping (`snapshots.rs`) is every driver's:
//! what counts are renames of that directory.
//!
//! A program in a container may make subvolumes of its own in its tree (systemd does). A snapshot shows those as empty
//! directories, so [`GraphDriver::commit`] turns them into ordinary directories, and removal takes them along.
//!
//! What an unprivileged process may do with btrfs decides the rest. It may make subvolumes and snapshots, and change the
//! read-only flag of its own. It may delete a subvolume at once only when the file system is mounted with
//! `user_subvol_rm_allowed`; without, everything in it is deleted first, and then rmdir(2) does (Linux 4.18). It may not
//! search the trees of the file system (that takes CAP_SYS_ADMIN on the host), so a difference is found by walking over
//! both trees; what was never touched is told by its inode number and time of change, which a snapshot keeps, without
//! looking any further.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use skiff_archive::{ApplyTarget, DiffTree, WhiteoutFormat};
use skiff_sys::btrfs as ioctl;

use crate::error::{Error, ErrorKind, Result};
use crate::select::Evidence;
use crate::snapshots::{Snapshots, archive_error};
use crate::trial::unless_full;
use crate::vfs::set_root;
use crate::{
    Access, ActiveId, Capabilities, CleanupReport, DiffSource, GraphDriver, LayerId, Mount, PrepareOptions,
    SnapshotInfo, SnapshotKey, SnapshotRef, Usage,
};

mod probe;
mod subvolumes;

pub(crate) use subvolumes::{remove_places, remove_tree};

/// Name of the driver.
pub(crate) const NAME: &str = "btrfs";

const CONTENT: &str = "subvolume";

/// The driver.
#[derive(Debug)]
pub struct Btrfs {
    snapshots: Snapshots,
    removal: probe::Removal,
}

/// Says how btrfs works below `data_root`; leaves nothing behind.
pub(crate) fn probe(data_root: &Path) -> Result<Evidence> {
    Ok(probe::probe(data_root)?.evidence())
}

impl Btrfs {
    /// Tries subvolumes beside `root`, then opens or makes the driver's directory.
    ///
    /// # Errors
    /// `InvalidArgument` for an option; `Unsupported` with the evidence when the data root is not on btrfs or subvolumes
    /// cannot be removed, or when `root` is another engine's; `Io`.
    pub fn open(root: &Path, options: &[(&str, &str)]) -> Result<Self> {
        check_options(options)?;
        let data_root = root.parent().unwrap_or(Path::new("/"));
        let works = unless_full(probe::probe(data_root), NAME, root, || probe::untried(data_root))?;
        let this = Self {
            snapshots: Snapshots::open_with(NAME, root, remove_tree)?,
            removal: works.removal,
        };
        this.undo_half_commits()?;
        Ok(this)
    }

    fn directory(&self, snapshot: SnapshotRef<'_>) -> Result<PathBuf> {
        Ok(self.snapshots.path(snapshot)?.join(CONTENT))
    }

    fn parent_directory(&self, snapshot: SnapshotRef<'_>) -> Result<Option<PathBuf>> {
        let parent = self.snapshots.stat(snapshot)?.parent;
        parent
            .map(|parent| self.directory(SnapshotRef::Layer(&parent)))
            .transpose()
    }

    /// What did not become a layer stays writable.
    fn finished(&self, key: &ActiveId, made: Result<PathBuf>) -> Result<()> {
        if made.is_err()
            && let Ok(path) = self.directory(SnapshotRef::Active(key))
        {
            set_read_only(&path, &open_directory(&path)?, false)?;
        }
        made.map(drop)
    }

    /// A daemon killed within `commit` may have left an active snapshot that is read-only already.
    fn undo_half_commits(&self) -> Result<()> {
        for info in self.snapshots.list() {
            if let SnapshotKey::Active(key) = info.key {
                let path = self.directory(SnapshotRef::Active(&key))?;
                match File::open(&path) {
                    Ok(directory) => set_read_only(&path, &directory, false)?,
                    Err(error) => {
                        tracing::warn!(%key, %error, "a snapshot has lost its subvolume");
                    }
                }
            }
        }
        Ok(())
    }
}

/// Docker's only option would need quotas, which are switched on for a whole file system, by root of the host, and cost
/// everybody on it.
fn check_options(options: &[(&str, &str)]) -> Result<()> {
    match options.first() {
        None => Ok(()),
        Some((key, _)) if matches!(key.to_ascii_lowercase().as_str(), "btrfs.min_space" | "size") => {
            Err(Error::invalid(format!(
                "btrfs: storage-opt {key} needs quotas on the whole file system, which only the host's root may enable \
                 and this engine does not set"
            )))
        }
        Some((key, _)) => Err(Error::invalid(format!("btrfs: unknown option {key}"))),
    }
}

fn set_read_only(path: &Path, directory: &File, read_only: bool) -> Result<()> {
    ioctl::set_read_only(directory.as_fd(), read_only).map_err(|error| {
        let what = if read_only { "read-only" } else { "writable" };
        Error::io(format!("make subvolume {} {what}", path.display()), error)
    })
}

/// What turns an active snapshot's subvolume into a layer's.
fn finish_layer(snapshot: &Path) -> Result<()> {
    subvolumes::flatten(snapshot, OsStr::new(CONTENT))?;
    let path = snapshot.join(CONTENT);
    set_read_only(&path, &open_directory(&path)?, true)
}

fn open_directory(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| Error::io(format!("open {}", path.display()), error))
}

/// Gives what was prepared an own, empty or inherited, subvolume.
fn make_content(stage: &Path, parent: Option<&Path>) -> Result<()> {
    let directory = open_directory(stage)?;
    let name = OsStr::new(CONTENT);
    let Some(parent) = parent else {
        return ioctl::create_subvolume(directory.as_fd(), name)
            .map_err(|error| Error::io(format!("create a subvolume in {}", stage.display()), error));
    };
    let source = open_directory(parent)?;
    ioctl::snapshot(source.as_fd(), directory.as_fd(), name, false).map_err(|error| {
        Error::io(
            format!("snapshot {} in {}", parent.display(), stage.display()),
            error,
        )
    })
}

impl GraphDriver for Btrfs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            native_diff: false,
            max_depth: None,
            direct_path: true,
            parallel_apply: false,
        }
    }

    /// Docker's one row, empty there, too (it once held the version of a library that this engine does not use).
    fn status(&self) -> Vec<(String, String)> {
        vec![
            (String::from("Btrfs"), String::new()),
            (String::from("Subvolume Removal"), self.removal.to_string()),
        ]
    }

    fn prepare(&self, key: &ActiveId, parent: Option<&LayerId>, options: &PrepareOptions) -> Result<()> {
        let reservation = self.snapshots.reserve(key, parent, None)?;
        match parent {
            Some(parent) => {
                let parent = self.directory(SnapshotRef::Layer(parent))?;
                make_content(reservation.stage(), Some(&parent))?;
            }
            None => {
                make_content(reservation.stage(), None)?;
                set_root(&reservation.stage().join(CONTENT), options.root_owner)?;
            }
        }
        reservation.publish()
    }

    fn commit(&self, key: &ActiveId, layer: &LayerId) -> Result<()> {
        let committed = self.snapshots.commit(key, layer, finish_layer);
        self.finished(key, committed)
    }

    fn replace(&self, key: &ActiveId, layer: &LayerId) -> Result<()> {
        let replaced = self.snapshots.replace(key, layer, finish_layer);
        self.finished(key, replaced)
    }

    fn remove(&self, snapshot: SnapshotRef<'_>) -> Result<()> {
        self.snapshots.remove(snapshot)
    }

    fn stat(&self, snapshot: SnapshotRef<'_>) -> Result<SnapshotInfo> {
        self.snapshots.stat(snapshot)
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>> {
        Ok(self.snapshots.list())
    }

    /// The difference to the parent, as Docker counts; shared blocks cost nothing on the disk.
    fn usage(&self, snapshot: SnapshotRef<'_>) -> Result<Usage> {
        let directory = self.directory(snapshot)?;
        let parent = self.parent_directory(snapshot)?;
        let tree = DiffTree::Compare {
            directory: &directory,
            parent: parent.as_deref(),
        };
        Ok(skiff_archive::diff_usage(&tree).map_err(archive_error)?.into())
    }

    fn mounts(&self, snapshot: SnapshotRef<'_>, access: Access) -> Result<Vec<Mount>> {
        if let (SnapshotRef::Layer(id), Access::ReadWrite | Access::Volatile) = (snapshot, access) {
            return Err(Error::invalid(format!("layer {id} is immutable")));
        }
        let source = self.directory(snapshot)?;
        Ok(vec![Mount::Bind {
            source,
            read_only: access == Access::ReadOnly,
        }])
    }

    fn apply_target(&self, key: &ActiveId) -> Result<ApplyTarget> {
        Ok(ApplyTarget {
            directory: self.directory(SnapshotRef::Active(key))?,
            whiteouts: WhiteoutFormat::Delete,
        })
    }

    fn diff_source(&self, snapshot: SnapshotRef<'_>) -> Result<DiffSource> {
        Ok(DiffSource::Compare {
            directory: self.directory(snapshot)?,
            parent: self.parent_directory(snapshot)?,
        })
    }

    /// Bytes of deleted subvolumes are not known: what they shared with others stays.
    fn cleanup(&self, live: &HashSet<SnapshotKey>) -> Result<CleanupReport> {
        self.snapshots.cleanup(live)
    }

    fn purge(&self) -> Result<u64> {
        self.snapshots.purge()
    }

    fn sync(&self) -> Result<()> {
        crate::sync_file_system(self.snapshots.root())
    }
}

/// Whether `path` is a directory that is a subvolume's root.
fn is_subvolume(path: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let failed = |error| Error::io(format!("stat {}", path.display()), error);
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(failed)?,
    };
    Ok(metadata.is_dir() && metadata.ino() == ioctl::ROOT_INODE && crate::backing::name(path) == NAME)
}

/// Errors of the ioctls that mean "not with these privileges".
fn not_permitted(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::PermissionDenied
}

/// A refusal of this driver.
fn refused(text: String) -> Error {
    Error::new(ErrorKind::Unsupported, format!("btrfs: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_refused_with_the_reason() {
        assert!(check_options(&[]).is_ok());
        for (key, text) in [
            ("btrfs.min_space", "needs quotas"),
            ("BTRFS.Min_Space", "needs quotas"),
            ("size", "needs quotas"),
            ("btrfs.what", "unknown option btrfs.what"),
        ] {
            let error = check_options(&[(key, "10G")]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn other_file_systems_are_refused_by_name() {
        let error = probe(Path::new("/proc")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error
                .to_string()
                .starts_with("btrfs: the data root /proc is on 0x9fa0"),
            "{error}"
        );
        assert!(!is_subvolume(Path::new("/proc/self")).unwrap());
    }
}
