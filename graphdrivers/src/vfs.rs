//! `vfs`: every snapshot is a whole copy of its parent. Works on any file system and needs no mount.
//!
//! ```text
//!  vfs/<snapshot>/dir      the whole tree
//! ```
//!
//! Where the file system can share blocks between files (btrfs, XFS, bcachefs) a copy costs inodes only.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use skiff_archive::{ApplyTarget, DiffTree, WhiteoutFormat};

use crate::backing::{self, kernel};
use crate::error::{Error, Result};
use crate::select::Evidence;
use crate::snapshots::{Snapshots, archive_error};
use crate::trial::{Trial, unless_full};
use crate::{
    Access, ActiveId, Capabilities, CleanupReport, DiffSource, GraphDriver, LayerId, Mount, PrepareOptions,
    SnapshotInfo, SnapshotKey, SnapshotRef, Usage,
};

/// Name of the driver.
pub(crate) const NAME: &str = "vfs";

const CONTENT: &str = "dir";

/// The driver.
#[derive(Debug)]
pub struct Vfs {
    snapshots: Snapshots,
    /// Whether copies share their blocks with the original.
    reflinks: bool,
    backing: String,
}

/// Says what copies cost below `data_root`; leaves nothing behind.
pub(crate) fn probe(data_root: &Path) -> Result<Evidence> {
    let (reflinks, backing) = try_sharing(data_root)?;
    let (finding, notes) = if reflinks {
        ("copies share their blocks", Vec::new())
    } else {
        let note = format!(
            "each layer and each container takes the room of the whole image; {backing} cannot share blocks, btrfs and \
             XFS can"
        );
        ("copies work", vec![note])
    };
    Ok(Evidence {
        driver: NAME,
        finding: format!("{finding} on {backing}, kernel {}", kernel()),
        notes,
    })
}

/// Whether FICLONE works, and on what.
fn try_sharing(data_root: &Path) -> Result<(bool, String)> {
    let trial = Trial::begin(data_root, NAME)?;
    let failed = |error| Error::io(format!("write to {}", trial.path().display()), error);
    let (from, to) = (trial.path().join("from"), trial.path().join("to"));
    fs::write(&from, vec![1; 8192]).map_err(failed)?;
    let shared = rustix::fs::ioctl_ficlone(
        File::create(to).map_err(failed)?,
        File::open(from).map_err(failed)?,
    );
    Ok((shared.is_ok(), backing::name(trial.path())))
}

impl Vfs {
    /// Opens or makes the driver's directory.
    ///
    /// # Errors
    /// `InvalidArgument` for an option (there are none); `Unsupported` when `root` is another engine's; `Io`.
    pub fn open(root: &Path, options: &[(&str, &str)]) -> Result<Self> {
        if let Some((key, _)) = options.first() {
            return Err(match *key {
                "size" => Error::invalid("vfs: quota (storage-opt size) is not supported"),
                _ => Error::invalid(format!("unknown option {key} for vfs")),
            });
        }
        let data_root = root.parent().unwrap_or(Path::new("/"));
        let (reflinks, backing) = unless_full(try_sharing(data_root), NAME, root, || {
            (false, backing::name(data_root))
        })?;
        Ok(Self {
            snapshots: Snapshots::open(NAME, root)?,
            reflinks,
            backing,
        })
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
}

impl GraphDriver for Vfs {
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

    /// Docker has no rows here.
    fn status(&self) -> Vec<(String, String)> {
        let reflinks = if self.reflinks {
            "true"
        } else {
            "false (every copy takes its whole size)"
        };
        vec![
            (String::from("Backing Filesystem"), self.backing.clone()),
            (String::from("Reflinks"), reflinks.to_owned()),
        ]
    }

    fn prepare(&self, key: &ActiveId, parent: Option<&LayerId>, options: &PrepareOptions) -> Result<()> {
        let reservation = self.snapshots.reserve(key, parent, None)?;
        let target = reservation.stage().join(CONTENT);
        make_root(&target, options.root_owner)?;
        if let Some(parent) = parent {
            let source = self.directory(SnapshotRef::Layer(parent))?;
            let copied = skiff_archive::copy_tree(&source, &target).map_err(archive_error)?;
            tracing::debug!(%key, %parent, ?copied, "copied a layer");
        }
        reservation.publish()
    }

    fn commit(&self, key: &ActiveId, layer: &LayerId) -> Result<()> {
        self.snapshots.commit(key, layer, |_| Ok(())).map(drop)
    }

    fn replace(&self, key: &ActiveId, layer: &LayerId) -> Result<()> {
        self.snapshots.replace(key, layer, |_| Ok(())).map(drop)
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

    /// The difference to the parent, as Docker counts a container's size; the disk holds the whole copy.
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
        let directory = self.directory(SnapshotRef::Active(key))?;
        Ok(ApplyTarget {
            directory,
            whiteouts: WhiteoutFormat::Delete,
        })
    }

    fn diff_source(&self, snapshot: SnapshotRef<'_>) -> Result<DiffSource> {
        let directory = self.directory(snapshot)?;
        Ok(DiffSource::Compare {
            directory,
            parent: self.parent_directory(snapshot)?,
        })
    }

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

/// Makes the root directory of a new tree.
pub(crate) fn make_root(path: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    fs::DirBuilder::new()
        .mode(0o755)
        .create(path)
        .map_err(|error| Error::io(format!("mkdir {}", path.display()), error))?;
    set_root(path, owner)
}

/// Gives the root directory of a new tree the mode and owner that Docker gives it; the process's umask has no say.
pub(crate) fn set_root(path: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    let failed = |operation: &str, error| Error::io(format!("{operation} {}", path.display()), error);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(|e| failed("chmod", e))?;
    if let Some((uid, gid)) = owner {
        chown(path, Some(uid), Some(gid)).map_err(|e| failed("chown", e))?;
    }
    Ok(())
}
